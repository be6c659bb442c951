"""From the engine's events to pieces of text on the event loop.

    engine thread: sink(Event) -> Mailbox -> event loop: Answer -> Written (bytes, stop strings, calls) -> Piece

An Answer belongs to one request. It ends when every choice has ended, and ends the engine's work when the client has
gone, when a stop string was written, or when the server stops.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from starlette.types import Receive

from nomoat.sampling.write import Outlet
from nomoat.serve.ask import Ask, Event, Ticket
from nomoat.serve.guard import log
from nomoat.serve.openai import ApiError
from nomoat.serve.tools import Call, ToolReader

if TYPE_CHECKING:
    from nomoat.serve.models import Served

FAILURES = {"deadline": (504, "the request took longer than it may"), "error": (500, "the engine failed")}


class LeftError(Exception):
    """The client has gone; nobody reads an answer."""


class Mark(NamedTuple):
    """A token with its log-probability in nats, and those that were likeliest in its place."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


class Piece(NamedTuple):
    """What one event adds to one choice."""

    choice: int
    text: str
    marks: Sequence[Mark]
    calls: Sequence[Call]
    finish: str | None


class Mailbox:
    """Events of all engines on their way to the event loop: one wake-up for all that have come meanwhile."""

    def __init__(self) -> None:
        self.answers: set[Answer] = set()
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Answer, int, Event]] = deque()
        self._called = False

    def post(self, answer: Answer, choice: int, event: Event) -> None:
        """Leave an event; called on an engine's thread."""
        self._waiting.append((answer, choice, event))
        if not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._called = False  # before it is emptied, so that what comes meanwhile calls again
        while self._waiting:
            answer, choice, event = self._waiting.popleft()
            answer.take(choice, event)

    def end(self, error: ApiError) -> None:
        """End every answer with `error`."""
        for answer in tuple(self.answers):
            answer.fail(error)


@dataclass(frozen=True)
class Wanted:
    """What is to be written, and how it is to be read.

    Args:
        asks: for the engine, one a prompt; each with the same n.
        stop: strings that end a text; none of their characters are given out.
        tools: names of the tools that may be called.
        marked: whether log-probabilities are wanted.
        echo: texts that the choices begin with, one a prompt.
        fresh: whether a space at the beginning of a text is none of its own.
    """

    asks: Sequence[Ask]
    stop: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    marked: bool = False
    echo: Sequence[str] = ()
    fresh: bool = False


class Written:
    """One choice on its way: bytes become characters, stop strings end it, calls are taken out.

    Args:
        index: its number.
        spelled: the bytes of each token.
        wanted: how it is to be read.
        ask: what the engine was asked.
        before: the text that it begins with.
        marks: log-probabilities of the prompt, filled while it is read.
    """

    def __init__(
        self, index: int, spelled: Sequence[bytes], wanted: Wanted, ask: Ask, before: str, marks: list[Mark]
    ) -> None:
        self.index, self.finish = index, ""
        self._spelled, self._stops, self._marked, self._fresh = spelled, ask.stop_tokens, wanted.marked, wanted.fresh
        self._before, self._before_marks = before, marks
        self._outlet = Outlet(wanted.stop)
        self._reader = ToolReader(wanted.tools) if wanted.tools else None
        self._held: deque[tuple[int, Mark]] = deque()  # with the number of bytes before it
        self._read = self._given = 0

    def add(self, event: Event) -> Piece | None:
        """What can be given out now that `event` has come."""
        text = ""
        if event.token is not None and event.token not in self._stops:
            spelled = self._spelled[event.token]
            if self._fresh and spelled:
                spelled, self._fresh = spelled.removeprefix(b" "), False
            if self._marked:
                self._held.append((self._read, Mark(event.token, event.logprob, event.top)))
                self._read += len(spelled)
            text = self._outlet.push(spelled)
        ended = "stop" if self._outlet.stopped else event.finish
        if ended:
            text += self._outlet.finish()
        marks = self._marks_of(text, bool(ended)) if self._marked else []
        calls: Sequence[Call] = ()
        if self._reader is not None:
            text, calls = self._reader.push(text)
            if ended:
                more, last = self._reader.finish()
                text, calls = text + more, [*calls, *last]
                ended = "tool_calls" if self._reader.called and ended == "stop" else ended
        self.finish = ended or ""
        text, self._before = self._before + text, ""
        marks, self._before_marks = self._before_marks + marks, []
        return Piece(self.index, text, marks, calls, ended) if text or marks or calls or ended else None

    def _marks_of(self, text: str, ended: bool) -> list[Mark]:
        """The tokens whose text has been given out; those of a stop string never are."""
        self._given += len(text.encode())
        whole = ended and not self._outlet.stopped
        marks = []
        while self._held and (whole or self._held[0][0] < self._given):
            marks.append(self._held.popleft()[1])
        return marks


class Answer:
    """All that is written for one request: submitted to the engine, read piece by piece, given up when nobody reads.

    Args:
        served: the model.
        wanted: what is to be written.
        mailbox: where the engine's events arrive.

    Raises:
        Full: the queue is full; what was submitted before is cancelled.
    """

    def __init__(self, served: Served, wanted: Wanted, mailbox: Mailbox) -> None:
        self.served, self.wanted, self.mailbox = served, wanted, mailbox
        self.began, self.prompt_tokens, self.completion_tokens = time.perf_counter(), 0, 0
        self.texts: list[Written] = []
        self._events: list[tuple[int, Event]] = []
        self._prompts: dict[int, list[Mark]] = {}
        self._wake: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._tickets: list[Ticket] = []
        for number, ask in enumerate(wanted.asks):
            base, echo = len(self.texts), wanted.echo[number] if wanted.echo else ""
            marks = [Mark(ask.tokens[0], None, ())] if ask.prompt_logprobs else []
            self._prompts[base] = marks
            for row in range(ask.n):
                self.texts.append(Written(base + row, served.spelled, wanted, ask, echo, marks))
            self.prompt_tokens += len(ask.tokens)
            try:
                self._tickets.append(served.engine.submit(ask, self._sink(base)))
            except BaseException:
                self.cancel()
                raise
        mailbox.answers.add(self)

    def _sink(self, base: int) -> Callable[[Event], None]:
        """What the engine calls on its own thread with each event."""
        post, measures, began = self.mailbox.post, self.served.measures, self.began
        last: dict[int, float] = {}

        def heard(event: Event) -> None:
            if event.token is not None and not event.prompt:
                at = time.perf_counter()
                if (before := last.get(event.choice)) is None:
                    measures.first_token.observe(at - began)
                else:
                    measures.between_tokens.observe(at - before)
                last[event.choice] = at
            post(self, base + event.choice, event)

        return heard

    def take(self, choice: int, event: Event) -> None:
        """Receive an event, on the event loop."""
        self._events.append((choice, event))
        self._rouse()

    def fail(self, error: Exception) -> None:
        """Give up: whoever reads gets `error`."""
        self._failure = self._failure or error
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def cancel(self) -> None:
        """Stop the engine's work for this request, whatever is left of it."""
        self.mailbox.answers.discard(self)
        for ticket in self._tickets:
            ticket.cancel()

    async def __aiter__(self) -> AsyncIterator[list[Piece]]:
        """The pieces that have come meanwhile, until every choice has ended.

        Raises:
            ApiError: the engine failed, the deadline has passed or the server stops.
            LeftError: the client has gone.
        """
        left = len(self.texts)
        while left:
            if not self._events and self._failure is None:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
            if self._failure is not None:
                raise self._failure
            events, self._events = self._events, []
            pieces = []
            for choice, event in events:
                if event.prompt and event.token is not None:
                    self._prompts[choice].append(Mark(event.token, event.logprob, event.top))
                    continue
                written = self.texts[choice]
                if written.finish:
                    continue  # beyond a stop string: on its way before the cancellation
                self.completion_tokens += event.token is not None
                if event.finish not in (None, "stop", "length"):
                    status, why = FAILURES.get(event.finish or "", (503, "the request was given up"))
                    if status == 500:
                        log.error("the engine of %s failed", self.served.name)  # why, could hold what was asked
                    raise ApiError(status, event.error or why, code=event.finish)
                if (piece := written.add(event)) is not None:
                    left -= bool(piece.finish)
                    pieces.append(piece)
            if not left:
                self.cancel()
            yield pieces

    @asynccontextmanager
    async def watched(self, receive: Receive) -> AsyncIterator[None]:
        """Within it, the client's leaving raises LeftError where the pieces are read; at its end nothing goes on."""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.cancel()
            self.fail(LeftError())

        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            watcher.cancel()
            self.cancel()

    def usage(self) -> dict[str, int]:
        """What was read and written, in tokens."""
        read, written = self.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
