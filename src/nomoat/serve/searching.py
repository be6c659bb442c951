"""Answers by search: a request with a `search` object is thought about, and only the best answer comes back.

    ChatRequest, CompletionRequest -> Ask -> EngineWriter -> think, on a thread -> the best text, usage.search

All that is written on the way goes through the engine as other requests do, and counts as completion tokens. Verifiers
that read files or run programs cannot be named by a client.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nomoat.core.errors import ConfigError
from nomoat.sampling.write import Outlet
from nomoat.search.finding import PLAIN, find
from nomoat.search.planning import Effort
from nomoat.search.text_tree import searched
from nomoat.search.thoughts import Piece, Question, Thinking, strategy_of, think
from nomoat.serve import streams
from nomoat.serve.ask import Ask, Event, Full, Ticket
from nomoat.serve.chunks import Chunks
from nomoat.serve.openai import ApiError, Search, Texts
from nomoat.serve.streams import LeftError, Wanted

if TYPE_CHECKING:
    from starlette.types import Receive

    from nomoat.serve.models import Served

PAUSE = 0.02
WORDS_ONLY = (*PLAIN, "regex")
"""Verifiers that a client may name: they read nothing but the answer."""


class EngineWriter:
    """A `Writer` that writes through the engine of a served model.

    Args:
        served: the model.
        ask: what was asked; its prompt is what every text begins with.
        stop: strings that end an answer.
        mark: ends a step.
    """

    def __init__(self, served: Served, ask: Ask, stop: Sequence[str], mark: str = "\n") -> None:
        self.served, self.ask, self.stop, self.mark = served, ask, tuple(stop), mark
        self.given_up = threading.Event()

    def __call__(self, prompts: Sequence[str], texts: Sequence[str], whole: bool, seed: int) -> list[Piece]:
        """The next step of each text, or all the rest; in waves that the engine's queue has room for."""
        return [
            self._one(ticketed, whole)
            for first in range(0, len(texts), self.wave)
            for ticketed in self._wave(texts[first : first + self.wave], whole, seed * 65_537 + first)
        ]

    @property
    def wave(self) -> int:
        """Texts that are asked for at once; others' requests have the rest of the queue."""
        return max(1, self.served.engine.stats().slots_free or 1)

    def _wave(self, texts: Sequence[str], whole: bool, seed: int) -> list[_Heard]:
        asked = [_Heard(self, text, whole, seed + row) for row, text in enumerate(texts)]
        for each in asked:
            each.done.wait()
        return asked

    def _one(self, heard: _Heard, whole: bool) -> Piece:
        if self.given_up.is_set():
            raise LeftError
        if heard.finish not in ("stop", "length"):
            status, why = streams.FAILURES.get(heard.finish, (503, "the request was given up"))
            raise ApiError(status, why, code=heard.finish)
        at_mark = not whole and heard.outlet.stopped and heard.text.endswith(self.mark)
        return Piece(heard.text, heard.tokens, heard.logprob, not at_mark)


class _Heard:
    """One text on its way through the engine."""

    def __init__(self, writer: EngineWriter, text: str, whole: bool, seed: int) -> None:
        self.writer, self.text, self.tokens, self.logprob, self.finish = writer, "", 0, 0.0, "cancelled"
        self.outlet = Outlet(writer.stop if whole else (*writer.stop, writer.mark))
        self.whole, self.done = whole, threading.Event()
        served, ask = writer.served, writer.ask
        tokens = (*ask.tokens, *served.encoded(text)) if text else ask.tokens
        room = ask.options.max_tokens - (len(tokens) - len(ask.tokens))
        if room < 1:
            self.finish = "length"
            self.done.set()
            return
        options = replace(ask.options, seed=(ask.options.seed + seed) % 2**62, max_tokens=room)
        one = replace(ask, tokens=tokens, options=options, n=1, top_logprobs=0)
        self.ticket: Ticket | None = None
        while not writer.given_up.is_set():
            with suppress(Full):
                self.ticket = served.engine.submit(one, self._hear)
                return
            time.sleep(PAUSE)
        self.done.set()

    def _hear(self, event: Event) -> None:
        """Called on the engine's thread."""
        if self.done.is_set():
            return
        if event.token is not None and not event.prompt:
            self.tokens, self.logprob = self.tokens + 1, self.logprob + event.logprob
            if event.token not in self.writer.ask.stop_tokens:
                self.text += self.outlet.push(self.writer.served.spelled[event.token])
        if self.writer.given_up.is_set():
            self.finish = "cancelled"
        elif self.outlet.stopped:
            self.finish = "stop"
            # The mark belongs to the step; a stop string of the request's own does not.
            if not self.whole:
                self.text += self.writer.mark
        elif event.finish:
            self.finish, self.text = event.finish, self.text + self.outlet.finish()
        else:
            return
        if self.ticket is not None:
            self.ticket.cancel()
        self.done.set()


def refuse(body: Texts, wanted: Wanted) -> None:
    """Say what a request with a search cannot have beside it.

    Raises:
        ApiError: it is streamed, or wants several texts, tools, log-probabilities or a form.
    """
    search, ask = body.search, wanted.asks[0]
    assert search is not None
    for wrong, why in (
        (body.stream, "cannot be streamed: the best answer is known when all are written"),
        (len(wanted.asks) > 1 or ask.n > 1, "gives one text: leave n and further prompts out"),
        (wanted.tools, "calls no tools"),
        (wanted.marked, "gives no log-probabilities"),
        (ask.constraint is not None, "cannot be held to a form"),
    ):
        if wrong:
            raise ApiError(400, f"an answer by search {why}", param="search")
    if search.verifier and search.verifier.partition(":")[0] not in WORDS_ONLY:
        known = ", ".join((*PLAIN, "regex:PATTERN"))
        raise ApiError(400, f"there is no verifier `{search.verifier}` here; there is {known}", param="search")


async def answer(served: Served, wanted: Wanted, body: Texts, chunks: Chunks, receive: Receive) -> dict[str, Any]:
    """The whole answer to a request with a search.

    Raises:
        ApiError, ConfigError: it cannot be had.
        LeftError: the client has gone.
    """
    search = body.search
    assert search is not None
    refuse(body, wanted)
    ask = wanted.asks[0]
    writer = EngineWriter(served, ask, wanted.stop)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        writer.given_up.set()

    watcher = asyncio.create_task(watch())
    try:
        found = await asyncio.to_thread(_thought, search, writer, ask.options.seed)
    finally:
        watcher.cancel()
        writer.given_up.set()
    if found.best is None:
        raise ApiError(400, f"a budget of {search.budget} steps finished no answer: raise it", param="search")
    spent, usage = found.usage, {"prompt_tokens": len(ask.tokens), "completion_tokens": found.usage.tokens}
    told = {
        "strategy": search.strategy,
        "pieces": spent.nodes,
        "evaluations": spent.evaluations,
        "finished": len(found.done),
        "right": found.best.right,
        "seconds": round(spent.seconds, 3),
    }
    text = found.best.text.removeprefix(" ") if wanted.fresh else found.best.text
    piece = streams.Piece(0, text, [], [], "stop" if found.best.done else "length")
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    return chunks.whole([piece], {**usage, "total_tokens": total, "search": told})  # type: ignore[dict-item]


def _thought(search: Search, writer: EngineWriter, seed: int) -> Thinking:
    """What is done on the thread."""
    verify = find(search.verifier) if search.verifier else None
    question = Question("", {"answer": search.answer, "question": ""})
    if search.strategy == "mcts":
        return searched([question], writer, Effort(nodes=search.budget), None, verify, seed % 65_537)[0]
    strategy, effort = strategy_of(search.strategy, search.budget)
    try:
        return think([question], writer, strategy, effort, None, verify, seed=seed % 65_537)[0]
    except ConfigError as error:
        raise ApiError(400, str(error), param="search") from error
