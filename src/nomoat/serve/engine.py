"""The engine: writes many texts at once with one model, on a thread of its own.

    submit -> queue -> a seat where the prompt's beginning is known -> chunks -> fork (n > 1) -> rows
                                                                                                  |
    tick: one decode for all rows of equal length, with drafts -> choose -> events -> sink <------+
          then one chunk of the first prompt that waits

Rows join and leave at any tick, a request's text does not depend on its neighbours, and whatever can be read token by
token (`Decodes`) is served. Continuous batching: Yu et al. 2022 (Orca, OSDI); prompts in chunks beside the others'
decoding: Agrawal et al. 2024, arXiv:2403.02310.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence

import torch
from torch import Tensor

from nomoat.core.errors import RunError
from nomoat.core.types import Decodes
from nomoat.sampling.seats import Seat, Seats
from nomoat.sampling.speculate import MOST, Drafts, accept
from nomoat.serve.ask import Ask, Event, Full, Sink, Stats, Ticket
from nomoat.serve.choosing import NOTHING, Chosen, Row, choose, said, tell

FEW = 2
"""Drafts are made for no more rows at once: with more, checking them costs what it saves."""
PACE = 32
"""Requests that ended lately, by which the next ones are foretold."""


class Engine:
    """See the module's first lines. It starts when it is made; `close` ends it, as does leaving a `with`.

    Args:
        model: with `config.context_length` and `config.vocab_size`; no other thread may use its memory.
        slots: texts written at once.
        context_length: most tokens of a prompt and its continuation; None: the model's.
        chunk: most tokens of prompts read between two tokens of the other texts. They are read in two pieces, so that
            a state-space layer has snapshots as dense as that.
        queue: requests that may wait.
        draft: guesses that are checked while few texts are written; None: no speculation.
    """

    def __init__(
        self,
        model: Decodes,
        slots: int = 8,
        context_length: int | None = None,
        chunk: int = 256,
        queue: int = 64,
        draft: Drafts | None = None,
    ) -> None:
        config = model.config  # type: ignore[attr-defined]
        self.context_length: int = context_length or config.context_length
        self._model, self._vocab_size, self._slots = model, config.vocab_size, slots
        self._chunk, self._piece, self._queue, self._draft = chunk, max(1, chunk // 2), queue, draft
        self._waiting: deque[Ticket] = deque()
        self._rows: list[Row] = []
        self._reading: Ticket | None = None
        self._place: Seat | None = None  # where its prompt is read
        self._seats = Seats(model, slots, self.context_length, self._piece)
        self._counts: Counter[str] = Counter()
        self._ends: deque[float] = deque(maxlen=PACE)
        self._closing = self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="nomoat-engine", daemon=True)
        self._thread.start()

    # Called from other threads

    def submit(self, ask: Ask, sink: Sink) -> Ticket:
        """Put a request into the queue.

        Args:
            ask: what is asked.
            sink: called with every event on the engine's thread; it must not block.

        Raises:
            Full: as many wait as may.
            ConfigError: the engine cannot do it, for example a prompt longer than the context.
            RunError: the engine has been closed.
        """
        ask.check(self.context_length, self._vocab_size, self._slots)
        ticket = Ticket(ask, sink)
        with self._changed:
            if self._closing:
                raise RunError("this model is being unloaded", fix="try again once it is loaded")
            if len(self._waiting) >= self._queue:
                raise Full(len(self._waiting), self._seconds_a_place())
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    def stats(self) -> Stats:
        """Counts since the start, and what is going on."""
        active = len(self._rows) + (self._reading is not None)
        return Stats(len(self._waiting), active, self._slots - active, **self._counts)

    def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, let those at hand go on for some seconds, then cancel them, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is threading.current_thread():  # a sink closes: the thread ends after this tick
            self._stopping = True
            return
        self._thread.join(drain_seconds)
        self._stopping = True
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _seconds_a_place(self) -> float:
        """Seconds between two ends, of late; a place in the queue is free with each."""
        if len(self._ends) < 2:
            return 1.0
        return max(0.1, (max(time.monotonic(), self._ends[-1]) - self._ends[0]) / len(self._ends))

    # The engine's thread

    @torch.no_grad()  # not inference mode: what a model keeps for later calls may be needed outside
    def _run(self) -> None:
        try:
            while self._goes_on():
                try:
                    self._tick()
                except Exception as error:
                    self._collapse("error", said(error))
        finally:
            with self._changed:
                self._closing = True
            while self._waiting:
                self._tell_end(self._waiting.popleft(), "cancelled")
            self._collapse("cancelled")

    def _goes_on(self) -> bool:
        """Wait until there is something to do; False: no more."""
        with self._changed:
            while not (busy := self._waiting or self._rows or self._reading) and not self._closing:
                self._changed.wait()
            return bool(busy) and not self._stopping

    def _tick(self) -> None:
        """One token of every text, then a chunk of what waits to be read."""
        self._look()
        if self._rows:
            self._step(tuple(self._rows))
        budget = self._chunk
        while budget > 0 and (ticket := self._reading or self._next()):
            budget -= self._read(ticket)

    def _look(self) -> None:
        """End what has been cancelled or is late."""
        now = time.monotonic()
        with self._changed:
            gone = [(ticket, finish) for ticket in self._waiting if (finish := ticket.over(now))]
            for ticket, _ in gone:
                self._waiting.remove(ticket)
        for ticket, finish in gone:
            self._tell_end(ticket, finish)
        if self._reading is not None and (finish := self._reading.over(now)):
            self._stop_reading(finish)
        for row in tuple(self._rows):
            if finish := row.ticket.over(now):
                self._leave(row)
                self._tell_end(row.ticket, finish, choices=(row.choice,))

    # Reading prompts

    def _next(self) -> Ticket | None:
        """Begin with the request that has waited longest, if there are seats for all its choices."""
        with self._changed:
            if self._waiting and self._slots - len(self._rows) >= self._waiting[0].ask.n:
                self._reading = self._waiting.popleft()
        return self._reading

    def _read(self, ticket: Ticket) -> int:
        """Read a piece of the prompt, all but its last token, and make rows of it at the end; returns its tokens."""
        ask = ticket.ask
        if self._place is None:
            self._place = self._seats.take(ask.tokens, ask.prompt_logprobs, ask.adapter)
            self._counts["tokens_in"] += len(ask.tokens)
            self._counts["prefix_tokens_reused"] += self._place.read
        seat, start, last = self._place, self._place.read, len(ask.tokens) - 1
        end = min(last, start + self._piece)
        if start < seat.parted < end:
            end = seat.parted  # where two texts parted a third may part too: a state is kept there
        if start < end:
            logits_BLV = self._seats.feed([seat], [ask.tokens[start:end]])
            self._seats.remember(seat)
            if ask.prompt_logprobs:
                for chosen in tell(logits_BLV[0].float(), ask.tokens[start + 1 : end + 1], ask.top_logprobs):
                    ticket.tell(Event(0, *chosen, prompt=True))
        if end == last:
            seats = [seat, *(self._seats.fork(seat) for _ in range(ask.n - 1))]
            self._reading = self._place = None
            for choice, each in enumerate(seats):
                self._begin(ticket, choice, each)
        return max(1, end - start)

    def _begin(self, ticket: Ticket, choice: int, seat: Seat) -> None:
        """Make a row of a choice whose prompt has been read."""
        try:
            row = Row(ticket, choice, seat)
        except Exception as error:  # of the constraint
            self._seats.leave(seat)
            self._tell_end(ticket, "error", said(error), (choice,))
            return
        self._rows.append(row)
        self._rows.sort(key=lambda row: row.seat.number)  # neighbouring slots are read without a copy
        if not row.options.max_tokens:
            self._leave(row)
            self._tell_end(ticket, "length", choices=(choice,))

    # Writing

    def _step(self, rows: Sequence[Row]) -> None:
        """Feed what waits in each row, rows with as many tokens together, and write what follows."""
        groups: dict[int, list[Row]] = {}
        for row in rows:
            if self._draft is not None and len(rows) <= FEW:
                self._guess(row, self._draft)
            if row.finish is None:
                groups.setdefault(row.seat.waiting + len(row.draft.tokens), []).append(row)
        for members in groups.values():
            tokens = [[*row.seat.tokens[row.seat.read :], *row.draft.tokens] for row in members]
            logits_BLV = self._seats.feed([row.seat for row in members], tokens)
            self._counts["steps"] += 1
            plain = [index for index, row in enumerate(members) if not row.draft.tokens]
            if plain:
                logits_BV = logits_BLV[:, -1] if len(plain) == len(members) else logits_BLV[plain, -1]
                chosen = choose([members[index] for index in plain], logits_BV)
                for index, one in zip(plain, chosen, strict=True):
                    self._write(members[index], one)
            for row, logits_LV in zip(members, logits_BLV, strict=True):
                if row.draft.tokens:
                    self._check(row, logits_LV.float())

    def _guess(self, row: Row, drafts: Drafts) -> None:
        """Ask for a draft, where one could be checked."""
        seat = row.seat
        room = min(MOST, row.options.max_tokens - row.written - 1, self.context_length - len(seat.tokens))
        if row.constraint is not None or seat.waiting != 1 or room < 1:
            return
        try:
            row.draft = drafts.propose(seat.tokens, room, row.options, row.chance)
        except Exception as error:
            row.fail(error)
            self._write(row, None)
        if row.draft.tokens:
            self._seats.remember(seat)

    def _check(self, row: Row, logits_LV: Tensor) -> None:
        """Write what the model accepts of a draft, and one token more; forget what it read of the rest."""
        assert self._draft is not None
        draft, row.draft = row.draft, NOTHING
        try:
            tokens = accept(logits_LV, draft, row.options, row.chance)
        except Exception as error:
            row.fail(error)
            tokens = []
        self._draft.saw(draft, max(0, len(tokens) - 1))
        self._counts["drafts_proposed"] += len(draft.tokens)
        self._counts["drafts_accepted"] += max(0, len(tokens) - 1)
        self._seats.rewind(row.seat, len(row.seat.tokens) + len(tokens) - 1)
        for chosen in tell(logits_LV[: len(tokens)], tokens, row.ask.top_logprobs) if tokens else [None]:
            self._write(row, chosen)
            if row.finish:
                return

    def _write(self, row: Row, chosen: Chosen | None) -> None:
        """Add a token to a row and tell it; None: the row has failed."""
        if chosen is None:
            event = Event(row.choice, None, finish=row.finish, error=row.error)
        else:
            row.add(chosen.token, self.context_length)
            self._counts["tokens_out"] += 1
            event = Event(row.choice, *chosen, row.finish, row.error)
        if row.finish:
            self._leave(row)
        row.ticket.tell(event)

    # Ends

    def _leave(self, row: Row) -> None:
        """Take a row out that has ended."""
        self._rows.remove(row)
        if self._draft is not None:
            self._draft.keep(row.seat.tokens)
        self._seats.leave(row.seat)
        self._ends.append(time.monotonic())

    def _stop_reading(self, finish: str, error: str = "") -> None:
        """End the request whose prompt is being read."""
        assert self._reading is not None
        ticket, seat = self._reading, self._place
        self._reading = self._place = None
        if seat is not None:
            self._seats.leave(seat)
        self._tell_end(ticket, finish, error)

    def _collapse(self, finish: str, error: str = "") -> None:
        """End all that is at hand and forget all that was read."""
        rows, self._rows, self._place = self._rows, [], None
        if self._reading is not None:
            self._stop_reading(finish, error)
        for row in rows:
            self._tell_end(row.ticket, finish, error, (row.choice,))
        self._seats.clear()

    def _tell_end(self, ticket: Ticket, finish: str, error: str = "", choices: Sequence[int] | None = None) -> None:
        """Tell the end of some choices of a request, or of all."""
        for choice in range(ticket.ask.n) if choices is None else choices:
            self._counts["cancelled"] += finish == "cancelled"
            ticket.tell(Event(choice, None, finish=finish, error=error))
