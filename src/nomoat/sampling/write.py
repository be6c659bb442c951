r"""Writing text: the one loop for whatever can be read token by token.

    prompts -> chunks -> decode -> logits_BV -> pick -> token -> decode (L = 1) -> ...   until end, stop or length
                                                  \-> bytes -> UTF-8 -> stop strings -> pieces of text

A row that fills the context slides: its memory is freed and the last half of the window is read again. Rows are drawn
from chance of their own (seed, row), so a row's text does not depend on the rows beside it.
"""

from __future__ import annotations

import codecs
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nomoat.core.device import generator
from nomoat.core.errors import ConfigError
from nomoat.core.types import Batch, Decodes, Remembers
from nomoat.sampling.tokens import SamplingOptions, pick

CHUNK = 512
"""Most tokens read in one call while a prompt is taken in."""


class Spells(Protocol):
    """What writing needs of a tokenizer.

    Args:
        eot: the document end, with which a text is begun where nothing else begins it.
        begin: what stands before a text.
        stops: any of them ends a text.
        prefixes: whether a text's first token begins with a space that is none of its own.
    """

    eot: int
    begin: tuple[int, ...]
    stops: tuple[int, ...]
    prefixes: bool

    def encode(self, text: str) -> Any:
        """Text to a sequence of token ids."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for."""


class Written(NamedTuple):
    """One token of one row.

    Args:
        row: the index of the prompt.
        token: its id; a stop token is given too, as the row's last.
        logprob: its log-probability in nats under the model itself, before temperature and cuts.
    """

    row: int
    token: int
    logprob: float


@dataclass
class _Row:
    """A prompt on its way: `waiting` are tokens that the memory has not read yet."""

    slot: int
    chance: torch.Generator
    waiting: list[int]
    window: list[int] = field(default_factory=list)


def write(
    model: Decodes,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions = SamplingOptions(),
    stop_tokens: Sequence[int] = (),
    context_length: int | None = None,
    until: Callable[[int, int], bool] | None = None,
    start: Batch | None = None,
    first: int = 0,
) -> Iterator[Written]:
    """Continue each prompt, all rows together, and give out every token as it is drawn.

    Args:
        model: read in eval mode; no gradient is kept.
        prompts: at least one token each; of one longer than the context its end is read.
        options: `stop` is left to the text functions below.
        stop_tokens: any of them ends its row.
        context_length: tokens that the model can look back on; default: `model.config.context_length`.
        until: asked with (row, token) after each token; True ends the row.
        start: handed to `model.begin` (encoder input, picture prefix).
        first: number of the first row, for its chance.

    Raises:
        ConfigError: a prompt without tokens.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ConfigError("an empty prompt gives nothing to continue", fix="start it with the end-of-document token")
    reach: int = context_length or model.config.context_length  # type: ignore[attr-defined]
    if not prompts or options.max_tokens == 0:
        return
    room = min(reach, max(map(len, prompts)) + options.max_tokens)
    active = [
        _Row(slot, generator(options.seed, "row", first + slot), [int(token) for token in prompt[-reach:]])
        for slot, prompt in enumerate(prompts)
    ]
    memory = _call(model.memory, len(active), room)
    if start is not None:
        _call(model.begin, start, memory, range(len(active)))
    for _ in range(options.max_tokens):
        for row in active:
            if len(row.window) + len(row.waiting) > reach:
                row.waiting = (row.window + row.waiting)[-max(1, reach // 2) :]
                row.window = []
                _call(memory.free, row.slot)
                _call(memory.reserve, row.slot, room)
                if start is not None:
                    _call(model.begin, start, memory, [row.slot])
        logits_BV = _read(model, memory, active)
        tokens_B = pick(logits_BV, options, [row.chance for row in active])
        logp_B = logits_BV.float().log_softmax(1).gather(1, tokens_B[:, None])[:, 0]
        going = []
        for row, token, logprob in zip(active, tokens_B.tolist(), logp_B.tolist(), strict=True):
            yield Written(row.slot, token, logprob)
            row.waiting = [token]
            if token not in stop_tokens and not (until and until(row.slot, token)):
                going.append(row)
        active = going
        if not active:
            return


def _read(model: Decodes, memory: Remembers, rows: list[_Row]) -> Tensor:
    """Feed what waits in each row, rows with chunks of one length together; logits [B, V] after each row's last."""
    last: dict[int, Tensor] = {}
    device = device_of(model)
    waiting = {row.slot: row.waiting for row in rows}
    while waiting:
        lengths = defaultdict(list)
        for slot, tokens in waiting.items():
            lengths[min(CHUNK, len(tokens))].append(slot)
        for length, slots in lengths.items():
            tokens_BL = torch.tensor([waiting[slot][:length] for slot in slots], device=device)
            logits_BLV = _call(model.decode, tokens_BL, memory, slots, True)
            for index, slot in enumerate(slots):
                waiting[slot] = waiting[slot][length:]
                if not waiting[slot]:
                    last[slot] = logits_BLV[index, -1]
                    del waiting[slot]
    for row in rows:
        row.window += row.waiting
    return torch.stack([last[row.slot] for row in rows])


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """No gradient for one call only: that must not leak from a generator into the code that reads it.

    Not inference mode, for its tensors may only be changed within it, and a memory may be used elsewhere too.
    """
    with torch.no_grad():
        return function(*arguments)


def device_of(model: object) -> torch.device | None:
    """Where the model's weights are; None where it has none."""
    parameter = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return None if parameter is None else parameter.device


class Outlet:
    """Bytes in, text out: holds back an unfinished character and whatever may be the beginning of a stop string.

    Args:
        stop: the strings that end the text.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stop = tuple(stop)
        self.stopped = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def push(self, data: bytes) -> str:
        """The text that is certain now; after a stop string nothing more, and `stopped` is True."""
        return self._release(self._decoder.decode(data))

    def finish(self) -> str:
        """The rest: no more bytes will come."""
        return self._release(self._decoder.decode(b"", final=True), last=True)

    def _release(self, text: str, last: bool = False) -> str:
        if self.stopped:
            return ""
        self._held += text
        # The stop string that is complete first ends the text, wherever the borders of the tokens fall.
        found = [(start + len(stop), start) for stop in self.stop if (start := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            cut, kept = min(found)[1], ""
        else:
            longest = 0 if last else max(map(len, self.stop), default=1) - 1
            tails = (self._held[len(self._held) - size :] for size in range(min(longest, len(self._held)), 0, -1))
            kept = next((tail for tail in tails if any(stop.startswith(tail) for stop in self.stop)), "")
            cut = len(self._held) - len(kept)
        text, self._held = self._held[:cut], kept
        return text


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt.

    Args:
        text: without the prompt, the stop string and the end token.
        tokens: all that were drawn, the end token included.
        logprob: their summed log-probability in nats.
        reason: "end" (end token), "stop" (stop string) or "length" (max_tokens).
    """

    text: str
    tokens: tuple[int, ...]
    logprob: float
    reason: str


def continue_text(
    model: Decodes,
    tokenizer: Spells,
    prompt: str,
    options: SamplingOptions = SamplingOptions(),
    context_length: int | None = None,
) -> Iterator[str]:
    """The continuation of `prompt`, piece by piece as it is written: always whole characters, never a stop string.

    The prompt is the beginning of a document: as in training, `tokenizer.begin` stands before it.
    """
    outlet = Outlet(options.stop)
    tokens = [*tokenizer.begin, *(int(token) for token in tokenizer.encode(prompt))] or [tokenizer.eot]
    first = tokenizer.prefixes and not prompt
    for written in write(model, [tokens], options, tokenizer.stops, context_length):
        if written.token in tokenizer.stops:
            break
        data = tokenizer.token_bytes(written.token)
        if first and data:
            data, first = data.removeprefix(b" "), False
        if piece := outlet.push(data):
            yield piece
        if outlet.stopped:
            return
    if piece := outlet.finish():
        yield piece


def continue_tokens(
    model: Decodes,
    tokenizer: Spells,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions = SamplingOptions(),
    context_length: int | None = None,
) -> list[Continuation]:
    """The continuations of several prompts of tokens, written together."""
    outlets = [Outlet(options.stop) for _ in prompts]
    texts: list[list[str]] = [[] for _ in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs = [0.0] * len(prompts)

    def stopped(row: int, token: int) -> bool:
        texts[row].append(outlets[row].push(tokenizer.token_bytes(token)))
        return outlets[row].stopped

    for row, token, logprob in write(model, prompts, options, tokenizer.stops, context_length, stopped):
        tokens[row].append(token)
        logprobs[row] += logprob
    done = []
    for row, outlet in enumerate(outlets):
        texts[row].append(outlet.finish())
        ended = bool(tokens[row]) and tokens[row][-1] in tokenizer.stops
        reason = "stop" if outlet.stopped else "end" if ended else "length"
        done.append(Continuation("".join(texts[row]), tuple(tokens[row]), logprobs[row], reason))
    return done
