"""Seats: the slots of a memory with the texts that they hold, so that a prompt begins where an earlier one agrees.

    prompt -> the seat with the longest common beginning -> rewind, or fork where that text is still wanted -> feed

A seat that is left keeps its text; the one left longest ago is written over first. What a state-space layer cannot be
rewound to is fed again. Prefix reuse for attention: Kwon et al. 2023, arXiv:2309.06180; with a state kept where two
texts parted: Pan et al. 2024, arXiv:2411.19379.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nomoat.core.types import Decodes
from nomoat.sampling.write import device_of

LEAST = 8
"""A common beginning of fewer tokens is read again."""
SPARE = 64
"""A text that would lose more tokens by a rewind is copied first, over the one left longest ago."""


@dataclass
class Seat:
    """A slot: its text, of which the memory has read the first `read` tokens and has room for `room`.

    Its first `parted` tokens stood in another seat too, `own` of those read would be missed, somebody writes in `busy`
    ones, `used` tells which was taken or left last, and `adapter` what the text was read with: a text read with one
    adapter is no beginning for another.
    """

    number: int
    tokens: list[int] = field(default_factory=list)
    read: int = 0
    room: int = 0
    parted: int = 0
    own: int = 0
    busy: bool = False
    used: int = 0
    adapter: int = -1

    @property
    def waiting(self) -> int:
        """Tokens that the memory has not read."""
        return len(self.tokens) - self.read


class Seats:
    """All slots of one memory; the caller sees to it that no gradient is kept.

    Args:
        model: whose memory it is.
        count: slots.
        length: most tokens of a slot.
        block: the memory of a slot grows by so many tokens.
        spare: tokens that a text may lose before it is copied.
    """

    def __init__(self, model: Decodes, count: int, length: int, block: int = 256, spare: int = SPARE) -> None:
        self.model, self.length, self.block, self.spare = model, length, block, spare
        room = min(length, block)
        self.memory = model.memory(count, room)
        self.seats = [Seat(number, room=room) for number in range(count)]
        self._device = device_of(model)
        self._clock = 0
        self._adapters = getattr(self.memory, "adapters", None)  # a memory's that knows of several
        self._snapshot = getattr(self.memory, "snapshot", lambda slots: None)  # needed where a rewind may fall short

    def idle(self) -> list[Seat]:
        """Seats that nobody writes in, the one left longest ago first."""
        return sorted((seat for seat in self.seats if not seat.busy), key=lambda seat: (seat.used, seat.number))

    def take(self, tokens: Sequence[int], fresh: bool = False, adapter: int = -1) -> Seat:
        """A seat for the text with as much read as is known, the last token at most excepted: its logits are wanted.

        There must be an idle seat.

        Args:
            tokens: the text, at least one token.
            fresh: read it from the start whatever is there.
            adapter: of the model, where it has several; -1: none.
        """
        idle, wanted = self.idle(), list(tokens[:-1])
        strange = [fresh or seat.adapter != adapter for seat in self.seats]
        shared = [0 if strange[seat.number] else agree(seat.tokens[: seat.read], wanted) for seat in self.seats]
        source = max(self.seats, key=lambda seat: (shared[seat.number], not seat.busy, -seat.read))
        common = shared[source.number]
        if common < LEAST:
            seat, common = idle[0], 0
            self.memory.free(seat.number)
            seat.read = 0
        else:
            cut = source is idle[0] or (not source.busy and source.own - common <= self.spare)
            seat = source if cut else idle[0]
            if not cut:
                source.used = self._tick()
                self._copy(source, seat)
            seat.read = self.memory.rewind(seat.number, common)
        seat.tokens, seat.parted, seat.busy, seat.used = list(tokens), common, True, self._tick()
        seat.adapter = adapter
        if self._adapters is not None:
            self._adapters[seat.number] = adapter
        return seat

    def fork(self, source: Seat) -> Seat:
        """An idle seat, made a copy of another; it is busy then."""
        seat = self.idle()[0]
        self._copy(source, seat)
        seat.tokens, seat.busy, seat.used = list(source.tokens), True, self._tick()
        return seat

    def leave(self, seat: Seat, own: int | None = None) -> None:
        """Nobody writes here any more; what has been read stays, and the first `own` tokens of it (all) are wanted."""
        self.rewind(seat, len(seat.tokens))
        del seat.tokens[seat.read :]
        seat.own = seat.read if own is None else min(own, seat.read)
        seat.busy, seat.used = False, self._tick()

    def clear(self) -> None:
        """Forget all: nobody knows what the memory holds."""
        for seat in self.seats:
            self.memory.free(seat.number)
            seat.tokens, seat.read, seat.own, seat.busy = [], 0, 0, False

    def rewind(self, seat: Seat, length: int) -> None:
        """Forget what was read beyond `length`; the text stays, and what cannot be kept waits to be read again."""
        if seat.read > length:
            seat.read = self.memory.rewind(seat.number, length)

    def remember(self, seat: Seat) -> None:
        """Make sure that the seat can be rewound to where it stands."""
        self._snapshot([seat.number])

    def feed(self, seats: Sequence[Seat], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Read as many tokens in each of the seats and return the logits [B, L, V] after each of them."""
        length = len(tokens[0])
        for seat in seats:
            if seat.read + length > seat.room:
                seat.room = min(self.length, max(seat.read + length, seat.room + self.block))
                self.memory.reserve(seat.number, seat.room)
        tokens_BL = torch.tensor(tokens, device=self._device)
        logits_BLV = self.model.decode(tokens_BL, self.memory, [seat.number for seat in seats])
        for seat in seats:
            seat.read += length
        return logits_BLV

    def _copy(self, source: Seat, target: Seat) -> None:
        self.memory.fork(source.number, target.number)
        target.read, target.room, target.adapter = source.read, max(source.room, target.room), source.adapter

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def agree(one: list[int], other: list[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # comparing slices is what Python does fastest
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
