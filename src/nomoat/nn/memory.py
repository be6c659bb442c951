"""Memory: what a stack remembers between calls. One object for all layers; a row of it is a slot.

    reserve(slot, length) -> decode ... decode -> fork | rewind | free
                               |
                  each layer's LayerMemory: keys and values (attention), states and snapshots (Mamba)

The lengths live here, once, as Python integers; a layer keeps tensors only. Attention rewinds to any length, a
state-space layer only to its snapshots, so `rewind` returns the length that all layers reached and the caller feeds
the rest again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from nomoat.nn.scene import Scene


class LayerMemory(Protocol):
    """What one layer remembers. Rows are slots; the stack's Memory tells it the lengths."""

    def reserve(self, slot: int, length: int) -> None:
        """Make room for `length` tokens in the slot; what it holds stays."""

    def fork(self, source: int, target: int, length: int) -> None:
        """Make the target slot an independent copy of the source slot, which holds `length` tokens; snapshots too."""

    def spread(self, sources: Sequence[int]) -> LayerMemory:
        """Another memory whose slots are independent copies of these."""

    def rewind(self, slot: int, length: int) -> int:
        """Go back to the greatest length that can be reached and is not above `length`; return it (0 always can)."""

    def free(self, slot: int) -> None:
        """Forget the slot: the next token written to it is its first."""

    def snapshot(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Remember the present state of each slot, which holds that many tokens, as a place to rewind to."""

    def bytes(self) -> int:
        """Bytes held by tensors."""


class Memory:
    """All layers' memories and the number of tokens that each slot holds.

    Args:
        layers: one LayerMemory a layer, in order.
        slots: number of rows.
        contexts: one ContextMemory a layer where the stack has cross-attention, else none.

    `lengths` are the tokens and `context_lengths` the columns of context that each slot holds; `adapters` is the
    adapter that it is read with, -1 for none: whoever puts a text there sets it.
    """

    def __init__(self, layers: Sequence[LayerMemory], slots: int, contexts: Sequence[ContextMemory] = ()) -> None:
        self.layers, self.contexts = tuple(layers), tuple(contexts)
        self.lengths, self.context_lengths, self.reserved = [0] * slots, [0] * slots, [0] * slots
        self.adapters = [-1] * slots

    def reserve(self, slot: int, length: int) -> None:
        """Make room for `length` tokens in the slot."""
        if length > self.reserved[slot]:
            self.reserved[slot] = length
            for layer in self.layers:
                layer.reserve(slot, length)

    def fork(self, source: int, target: int) -> None:
        """Make the target slot an independent copy of the source slot."""
        if source != target:
            for layer in self.layers:
                layer.fork(source, target, self.lengths[source])
            for context in self.contexts:
                context.fork(source, target, self.context_lengths[source])
            for held in (self.lengths, self.context_lengths, self.reserved, self.adapters):
                held[target] = held[source]

    def spread(self, sources: Sequence[int]) -> Memory:
        """Another memory whose slots are independent copies of these, each as often as it is named."""
        contexts = [context.spread(sources) for context in self.contexts]
        copied = Memory([layer.spread(sources) for layer in self.layers], len(sources), contexts)
        for name in ("lengths", "context_lengths", "reserved", "adapters"):
            setattr(copied, name, [getattr(self, name)[source] for source in sources])
        return copied

    def rewind(self, slot: int, length: int) -> int:
        """Forget all after the first `length` tokens; returns the length reached, from which the caller feeds again."""
        reached = min(length, self.lengths[slot])
        while (lowest := min((layer.rewind(slot, reached) for layer in self.layers), default=reached)) < reached:
            reached = lowest
        self.lengths[slot] = reached
        return reached

    def free(self, slot: int) -> None:
        """Forget the slot, its context too."""
        for layer in self.layers:
            layer.free(slot)
        self.lengths[slot] = self.context_lengths[slot] = 0

    def snapshot(self, slots: Sequence[int]) -> None:
        """Remember where the slots stand, so that every layer can be rewound to here."""
        lengths = [self.lengths[slot] for slot in slots]
        for layer in self.layers:
            layer.snapshot(slots, lengths)

    def advance(self, slots: Sequence[int], counts: Sequence[int], chunk: bool) -> None:
        """Note that each slot has read `counts` more tokens; after a chunk (of more than one) take a snapshot."""
        for slot, count in zip(slots, counts, strict=True):
            self.lengths[slot] += count
        if chunk:
            self.snapshot(slots)

    def bytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.bytes() for layer in (*self.layers, *self.contexts))


class AttentionMemory:
    """Keys and values [slots, G, capacity, K] of one attention layer; garbage after each slot's length is never seen.

    Args:
        slots: number of rows.
        capacity: tokens that fit before the tensors must grow.
        heads: key-value heads G.
        head_width: K.
        like: a tensor on the device and of the dtype that the memory takes.
    """

    def __init__(self, slots: int, capacity: int, heads: int, head_width: int, like: Tensor) -> None:
        self.keys = like.new_zeros(slots, heads, capacity, head_width)
        self.values = torch.zeros_like(self.keys)

    def reserve(self, slot: int, length: int) -> None:
        """Grow to hold `length` tokens, by half at least, so that token after token costs little."""
        capacity = self.keys.shape[2]
        if length > capacity:
            more = max(length - capacity, capacity // 2)
            self.keys, self.values = F.pad(self.keys, (0, 0, 0, more)), F.pad(self.values, (0, 0, 0, more))

    def write(
        self, keys_BLGK: Tensor, values_BLGK: Tensor, slots: Tensor, index_BL: Tensor, valid_BL: Tensor | None
    ) -> None:
        """Put each valid position at its index in its slot. No gradient flows into a memory."""
        where: tuple[Tensor | slice, ...] = (slots[:, None], slice(None), index_BL)
        keys, values = keys_BLGK.detach().to(self.keys.dtype), values_BLGK.detach().to(self.values.dtype)
        if valid_BL is not None:
            row, column = valid_BL.nonzero(as_tuple=True)
            where = (slots[row], slice(None), index_BL[row, column])
            keys, values = keys[row, column], values[row, column]
        self.keys[where], self.values[where] = keys, values

    def extend(self, keys_BLGK: Tensor, values_BLGK: Tensor, scene: Scene) -> tuple[Tensor, Tensor]:
        """Write this call's keys and values and return all that its rows now hold, [B, G, M, K]."""
        assert scene.slots is not None and scene.order_BL is not None and scene.rows is not None
        self.write(keys_BLGK, values_BLGK, scene.slots, scene.order_BL, scene.valid_BL)
        return self.read(scene.rows, scene.reach, keys_BLGK.dtype)

    def read(self, rows: slice | Tensor, reach: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, reach, K] of the rows: views where the rows are a slice and the dtype is kept."""
        return self.keys[rows, :, :reach].to(dtype), self.values[rows, :, :reach].to(dtype)

    def fork(self, source: int, target: int, length: int) -> None:
        """Copy what the slot holds; what lies behind it is not seen."""
        for kept in (self.keys, self.values):
            kept[target, :, :length] = kept[source, :, :length]

    def spread(self, sources: Sequence[int]) -> AttentionMemory:
        """One copy of each tensor."""
        copied = AttentionMemory(0, 0, 0, 0, self.keys)
        rows = torch.tensor(sources, device=self.keys.device)
        copied.keys, copied.values = self.keys[rows], self.values[rows]
        return copied

    def rewind(self, slot: int, length: int) -> int:
        """Any length can be reached: what lies behind it is not seen and written over."""
        return length

    def free(self, slot: int) -> None:
        """Nothing to do: what lies behind the length is not seen."""

    def snapshot(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Nothing to do: every length can be reached."""

    def bytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes


def empty_like(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """An empty tensor where a module's weights (packed ones are buffers) are."""
    return next(chain(module.parameters(), module.buffers())).new_empty(0, dtype=dtype)


ContextMemory = AttentionMemory
"""Keys and values of a cross-attention layer: written once for each slot, when its context is known."""
