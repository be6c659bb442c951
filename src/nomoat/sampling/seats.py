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
SPARE, WORTH = 16, 256
"""A text that would lose more by a rewind is copied: while a seat is empty, and at the cost of another text."""


@dataclass
class Seat:
    """One slot.

    Args:
        number: the slot.
        tokens: the text; the memory has read the first `read` of them.
        room: tokens that the memory has room for.
        own: tokens read that are lost if this seat goes back behind them.
        busy: somebody writes here.
        used: when it was last taken or left; 0: never.
    """

    number: int
    tokens: list[int] = field(default_factory=list)
    read: int = 0
    room: int = 0
    own: int = 0
    busy: bool = False
    used: int = 0

    @property
    def waiting(self) -> int:
        """Tokens that the memory has not read."""
        return len(self.tokens) - self.read


class Seats:
    """All slots of one memory.

    Args:
        model: read without gradient; the caller sees to that.
        count: slots.
        length: most tokens of a slot.
        block: the memory of a slot grows by so many tokens.
        spare: tokens that a text may lose before it is copied: while a seat is empty, and else.
    """

    def __init__(
        self, model: Decodes, count: int, length: int, block: int = 256, spare: tuple[int, int] = (SPARE, WORTH)
    ) -> None:
        self.model, self.length, self.block, self.spare = model, length, block, spare
        room = min(length, block)
        self.memory = model.memory(count, room)
        self.seats = [Seat(number, room=room) for number in range(count)]
        self._device = device_of(model)
        self._clock = 0
        self._snapshot = getattr(self.memory, "snapshot", None)

    def idle(self) -> list[Seat]:
        """Seats that nobody writes in, the one left longest ago first."""
        return sorted((seat for seat in self.seats if not seat.busy), key=lambda seat: (seat.used, seat.number))

    def take(self, tokens: Sequence[int], fresh: bool = False) -> tuple[Seat, int]:
        """A seat for the text, with as much read as the memory can keep, and how much some seat has in common with it.

        At least the last token is left to read, for its logits. There must be an idle seat.

        Args:
            tokens: the text, at least one token.
            fresh: read it from the start whatever is there.
        """
        idle, wanted = self.idle(), list(tokens[:-1])
        shared = {} if fresh else {seat.number: agree(seat.tokens[: seat.read], wanted) for seat in self.seats}
        source = max(self.seats, key=lambda seat: (shared.get(seat.number, 0), not seat.busy, -seat.read))
        common = shared.get(source.number, 0)
        if common < LEAST:
            seat, common = idle[0], 0
            self.memory.free(seat.number)
            seat.read = 0
        else:
            seat = source if self._give_up(source, common, idle) else next(each for each in idle if each is not source)
            if seat is not source:
                source.used = self._tick()
                self._copy(source, seat)
            seat.read = self.memory.rewind(seat.number, common)
        seat.tokens, seat.busy, seat.used = list(tokens), True, self._tick()
        return seat, common

    def fork(self, source: Seat) -> Seat:
        """An idle seat, made a copy of another; it is busy then."""
        seat = self.idle()[0]
        self._copy(source, seat)
        seat.tokens, seat.busy, seat.used = list(source.tokens), True, self._tick()
        return seat

    def leave(self, seat: Seat, own: int | None = None) -> None:
        """Nobody writes here any more; what has been read stays until the seat is needed, its first `own` tokens (all)
        longer than the rest."""
        del seat.tokens[seat.read :]
        seat.own = seat.read if own is None else min(own, seat.read)
        seat.busy, seat.used = False, self._tick()

    def rewind(self, seat: Seat, length: int) -> None:
        """Forget what was read beyond `length`; the text stays, and what cannot be kept waits to be read again."""
        if seat.read > length:
            seat.read = self.memory.rewind(seat.number, length)

    def remember(self, seat: Seat) -> None:
        """Make sure that the seat can be rewound to where it stands."""
        if self._snapshot is not None:
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

    def _give_up(self, source: Seat, common: int, idle: Sequence[Seat]) -> bool:
        """Whether the source itself is cut to what is common, rather than copied over the seat left longest ago."""
        if source.busy or len(idle) == 1 or idle[0] is source:
            return not source.busy
        return source.own - common <= self.spare[bool(idle[0].read)]

    def _copy(self, source: Seat, target: Seat) -> None:
        self.memory.fork(source.number, target.number)
        target.read, target.room = source.read, max(source.room, target.room)

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
