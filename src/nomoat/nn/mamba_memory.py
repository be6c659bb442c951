"""What a Mamba layer remembers: a state and the convolution's last inputs, the same size after any number of tokens.

    slots x (state_HKN, tail_WC) -> read -> [B, ...] -> the layer -> write -> slots
                                                                               |
                                                                  snapshots (length, state, tail)

A state cannot be run backwards: `rewind` goes to the last snapshot, and the caller feeds the rest again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nomoat.nn.scene import Scene

KEPT = 8
"""Snapshots kept for each slot; of more, one goes where they stand closest."""


class Snapshot(NamedTuple):
    """The state of one slot after `length` tokens."""

    length: int
    state_HKN: Tensor
    tail_WC: Tensor


class MambaMemory:
    """States, convolution tails and snapshots of one layer; no gradient flows into them.

    Args:
        states_SHKN: zeros [slots, H, K, N], in fp32 or better.
        tails_SWC: zeros [slots, taps - 1, C], what the convolution saw last.
    """

    def __init__(self, states_SHKN: Tensor, tails_SWC: Tensor) -> None:
        self.states_SHKN, self.tails_SWC = states_SHKN, tails_SWC
        self.lengths = [0] * len(states_SHKN)
        self.snapshots: list[list[Snapshot]] = [[] for _ in self.lengths]

    def read(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """State [B, H, K, N] and tail [B, taps - 1, C] of the slots."""
        return self.states_SHKN[rows], self.tails_SWC[rows]

    def write(self, scene: Scene, state_BHKN: Tensor, mixed_BLC: Tensor) -> None:
        """The state after this call, and all that the convolution saw: the old tail, then each row's valid inputs."""
        assert scene.rows is not None
        width = self.tails_SWC.shape[1]
        self.states_SHKN[scene.rows] = state_BHKN.detach().to(self.states_SHKN.dtype)
        last_BW = torch.tensor(scene.counts, device=mixed_BLC.device)[:, None]
        last_BW = last_BW + torch.arange(width, device=mixed_BLC.device)
        tail_BWC = mixed_BLC.detach().take_along_dim(last_BW.unsqueeze(2), dim=1)
        self.tails_SWC[scene.rows] = tail_BWC.to(self.tails_SWC.dtype)
        for seat, length, count in zip(scene.seats, scene.lengths, scene.counts, strict=True):
            self.lengths[seat] = length + count

    def reserve(self, slot: int, length: int) -> None:
        """Nothing to do: a state holds any number of tokens."""

    def fork(self, source: int, target: int, length: int) -> None:
        """Copy the slot; its snapshots, which nothing changes, are shared."""
        self.states_SHKN[target], self.tails_SWC[target] = self.states_SHKN[source], self.tails_SWC[source]
        self.lengths[target] = self.lengths[source]
        self.snapshots[target] = list(self.snapshots[source])

    def spread(self, sources: Sequence[int]) -> MambaMemory:
        """Copies of the states; snapshots are shared."""
        rows = torch.tensor(sources, device=self.states_SHKN.device)
        copied = MambaMemory(self.states_SHKN[rows], self.tails_SWC[rows])
        copied.lengths = [self.lengths[source] for source in sources]
        copied.snapshots = [list(self.snapshots[source]) for source in sources]
        return copied

    def rewind(self, slot: int, length: int) -> int:
        """Go back to the last snapshot that is not above `length`, or to the start; return its length."""
        if length >= self.lengths[slot]:
            return self.lengths[slot]
        kept = [each for each in self.snapshots[slot] if each.length <= length]
        self.free(slot)
        if not kept:
            return 0
        self.snapshots[slot], last = kept, kept[-1]
        self.lengths[slot], self.states_SHKN[slot], self.tails_SWC[slot] = last
        return last.length

    def free(self, slot: int) -> None:
        """Forget the slot."""
        self.states_SHKN[slot], self.tails_SWC[slot] = 0.0, 0.0
        self.lengths[slot], self.snapshots[slot] = 0, []

    def snapshot(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Keep a copy of each slot as it stands."""
        for slot, length in zip(slots, lengths, strict=True):
            kept = self.snapshots[slot]
            if not kept or kept[-1].length < length:
                kept.append(Snapshot(length, self.states_SHKN[slot].clone(), self.tails_SWC[slot].clone()))
                if len(kept) > KEPT:
                    del kept[_least(kept)]

    def bytes(self) -> int:
        """Bytes of states, tails and snapshots; what forks share counts once."""
        kept = {id(each): each for slot in self.snapshots for each in slot}.values()
        snapshots = sum(each.state_HKN.nbytes + each.tail_WC.nbytes for each in kept)
        return self.states_SHKN.nbytes + self.tails_SWC.nbytes + snapshots


def _least(kept: Sequence[Snapshot]) -> int:
    """The snapshot whose loss leaves the shortest stretch without any.

    So the many close together that drafts leave do not drive out those of the prompt. Not one of the last two: the
    last but one may stand before a draft just read.
    """
    ends = [0, *(each.length for each in kept)]
    return min(range(len(kept) - 2), key=lambda index: ends[index + 2] - ends[index])
