"""A conversation with a model: it remembers what was said, and reads only what is new.

message -> chat.tokens -> oldest turns left out until it fits -> without what the memory holds already -> decode
        -> pick -> bytes -> pieces of text ... -> the answer, a message like any other
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from nomoat.core.device import generator
from nomoat.core.errors import ConfigError
from nomoat.core.types import Decodes, Remembers
from nomoat.data.chat import Chat, Marked
from nomoat.sampling.tokens import SamplingOptions, pick
from nomoat.sampling.write import CHUNK, Outlet, device_of

ROOM = 1024
"""Tokens that the memory has room for at first; it doubles."""


@dataclass(frozen=True)
class Answer:
    """What an answer came to.

    Args:
        text: without what ended it.
        reason: `end`, `stop` (a stop string), `length` or `cancelled`.
        reused, read: tokens of its prompt that the memory held already, and the others.
        written: tokens drawn.
        first_seconds, seconds: until the first of them, and from the first to the last.
        dropped: messages that were forgotten to make room.
    """

    text: str
    reason: str
    reused: int
    read: int
    written: int
    first_seconds: float
    seconds: float
    dropped: int

    @property
    def tokens_per_second(self) -> float | None:
        """How fast it was written, without the first token, which waits for the prompt."""
        return (self.written - 1) / self.seconds if self.written > 1 and self.seconds else None


class Talk:
    """A conversation.

    Args:
        model: read in eval mode.
        tokenizer: its tokenizer.
        chat: its template.
        options: how answers are drawn.
        system: what the model is told beforehand.

    `messages`, dicts of `role` and `content`, and `options` may be changed between answers; `answers` is what each
    came to.
    """

    def __init__(
        self, model: Decodes, tokenizer: Marked, chat: Chat, options: SamplingOptions, system: str | None = None
    ) -> None:
        self.model, self.tokenizer, self.chat, self.options = model, tokenizer, chat, options
        self.messages: list[dict[str, str]] = []
        self.answers: list[Answer] = []
        self.tell(system)
        self._memory: Remembers | None = None
        self._room, self._held = 0, list[int]()
        self._stopped, self._dropped = False, 0

    def tell(self, system: str | None) -> None:
        """Give the model another system message, or none."""
        turns = [message for message in self.messages if message["role"] != "system"]
        self.messages = ([{"role": "system", "content": system}] if system else []) + turns

    def undo(self) -> str:
        """Take the last message of the user back, and what followed it; returns it.

        Raises:
            ConfigError: there is none.
        """
        users = [number for number, message in enumerate(self.messages) if message["role"] == "user"]
        if not users:
            raise ConfigError("there is nothing to take back", "nothing was said yet", "say something")
        text = self.messages[users[-1]]["content"]
        del self.messages[users[-1] :]
        return text

    def stop(self) -> None:
        """End the answer that is being written after its present token; from any thread or signal handler."""
        self._stopped = True

    def say(self, text: str | None, attempt: int = 0) -> Iterator[str]:
        """Answer piece by piece, always in whole characters; then it is in `messages` and in `answers`.

        Args:
            text: what the user says; None: what was said last, answered anew.
            attempt: another answer for each number.

        Raises:
            ConfigError: it does not fit the context, or the template refuses it; then all is as it was before.
        """
        before = [*self.messages]
        try:
            self.messages.append({"role": "user", "content": self.undo() if text is None else text})
            yield from self._answer(attempt)
        except BaseException:  # a memory that was being written is not what it was thought to be
            self.messages, self._memory = before, None
            raise

    def _prompt(self) -> list[int]:
        """The conversation's tokens; where it has outgrown the context, its oldest turns are forgotten."""
        kept, room = [*self.messages], min(self.options.max_tokens, self._context // 4)
        while True:
            ids, _ = self.chat.tokens(kept, self.tokenizer)
            users = [number for number, message in enumerate(kept) if message["role"] == "user"]
            if len(ids) + room <= self._context or len(users) == 1:
                break
            del kept[users[0] : users[1]]
        if len(ids) >= self._context:
            why = f"with what stands before it, it has {len(ids):,} tokens; the model looks back on {self._context:,}"
            raise ConfigError("this message is too long", why, "make it shorter")
        self._dropped, self.messages = len(self.messages) - len(kept), kept
        return ids

    @property
    def _context(self) -> int:
        return int(self.model.config.context_length)  # type: ignore[attr-defined]

    def _answer(self, attempt: int) -> Iterator[str]:
        start = first = time.perf_counter()
        prompt = self._prompt()
        options, outlet, self._stopped = self.options, Outlet((*self.options.stop, *self.chat.stop)), False
        chance = generator(options.seed, "turn", len(self.messages), attempt)
        text, written, reason = "", 0, "length"
        reused = self._recall(prompt)
        waiting = prompt[reused:]
        while written < min(options.max_tokens, self._context - len(prompt)) and not outlet.stopped:
            logits_1V = self._read(waiting)
            if self._stopped:
                reason = "cancelled"
                break
            waiting = pick(logits_1V, options, chance).tolist()
            written, first = written + 1, first if written else time.perf_counter()
            if waiting[0] in self.tokenizer.stops:
                reason = "end"
                break
            piece = outlet.push(self.tokenizer.token_bytes(waiting[0]))
            if piece := piece if text else piece.lstrip():
                text += piece
                yield piece
        seconds = time.perf_counter() - first
        if piece := outlet.finish():
            text += piece
            yield piece
        self.messages.append({"role": "assistant", "content": text.strip()})
        reason, read = "stop" if outlet.stopped else reason, len(prompt) - reused
        answer = Answer(text.strip(), reason, reused, read, written, first - start, seconds, self._dropped)
        self.answers.append(answer)

    def _recall(self, prompt: list[int]) -> int:
        """Make the memory hold a beginning of the prompt, not all of it, with room for the rest; returns its length."""
        needed = min(self._context, len(prompt) + self.options.max_tokens)
        if self._memory is None or needed > self._room:
            self._room = min(self._context, max(ROOM, 2 * needed))
            self._memory, self._held = self.model.memory(1, self._room), []
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._held, prompt[:-1], strict=False)))
        if same < len(self._held):
            same = self._memory.rewind(0, same)
        del self._held[same:]
        return same

    @torch.no_grad()
    def _read(self, tokens: list[int]) -> Tensor:
        """Read tokens, at least one, into the memory; the logits [1, V] after the last."""
        assert self._memory is not None
        for start in range(0, len(tokens), CHUNK):
            chunk = tokens[start : start + CHUNK]
            tokens_BL = torch.tensor([chunk], device=device_of(self.model))
            logits_BLV = self.model.decode(tokens_BL, self._memory, [0], last=True)
            self._held += chunk
            if self._stopped:
                break
        return logits_BLV[:, -1]
