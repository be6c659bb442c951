"""Scene: everything a mixer must know about a call, resolved once per call of the stack.

    positions, ports, memory lengths -> resolve (nn/resolve.py) -> Scene -> every mixer(x_BLD, scene, memory) -> y_BLD

A mixer is a module with

    mixer(x_BLD, scene, layer_memory=None) -> y_BLD
    mixer.memory(slots, length, dtype) -> LayerMemory          (nn/memory.py)
    mixer.flops_per_token(context_length) -> float             forward and backward, beyond 6 a weight
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nomoat.nn.rotary import Angles

Linear = Callable[[nn.Module, Tensor], Tensor]


def plainly(layer: nn.Module, x_BLD: Tensor) -> Tensor:
    """The layer as it is."""
    return layer(x_BLD)


def with_adapters(adapter_B: Tensor) -> Linear:
    """Calls layers that have several adapters (nn/several.py) with each row's own, and all others as they are."""

    def call(layer: Any, x_BLD: Tensor) -> Tensor:
        return layer.chosen(x_BLD, adapter_B) if hasattr(layer, "chosen") else layer(x_BLD)

    return call


@dataclass(frozen=True, slots=True)
class Scene:
    """What is the same for all layers of one call. Attention reads masks and angles, Mamba the raw ports.

    Args:
        causal: the stack reads from left to right (False: every position sees every other).
        valid_BL: True where a position is no padding; None: all are. Padding may stand anywhere in a row.
        documents_BL: integer document id of each position, equal ids contiguous; None: one document a row.
        prefix_B: length of the prefix that all may see; None: no prefix.
        slots: int64 [B], the row of the memory that each row of the batch continues; None: no memory.
        seats: the same as Python integers; empty without a memory.
        rows: `slots` as an index: a slice where they are consecutive (no copy), else the tensor itself.
        lengths: tokens that each row's slot held before this call, as Python integers; empty without a memory.
        counts: valid tokens of each row in this call; empty without a memory.
        lengths_B: `lengths` as a tensor.
        reach: with a memory, how many of its columns hold anything after this call.
        order_BL: [1 or B, L], the index of each position among the valid ones of its row and slot.
        positions: what was passed, else `order_BL`: [1 or B, L] or [B, L, axes].
        angles: cosine and sine [1 or B, L, 1, K] for the rotary embedding; None: no rotary positions.
        triangle: no query sees a key after it; where `mask` is None, the kernel sees to that itself.
        mask: added to attention's scores, [1 or B, 1 or H, L, M]; None: none needed.
        context_BMD: the sequence for the cross-attention; None: none, or already in the memory.
        context_valid_BM: True where it is no padding; None: all of it.
        context_mask: added to the cross-attention's scores, [B, 1, 1, M]; None: all of it is seen.
        context_given: boolean [B, 1, 1], False where a row has no context at all; None: all have one.
        context_reach: columns of context that the memory holds for these rows, where none is passed; 0: none.
        cond_B1D: condition vectors after their SiLU; None: none.
        kernel: "fused", "tiled" or "plain", for attention.
        linear: calls a linear layer, with each row's adapter where there are several.
    """

    causal: bool = True
    valid_BL: Tensor | None = None
    documents_BL: Tensor | None = None
    prefix_B: Tensor | None = None
    slots: Tensor | None = None
    seats: tuple[int, ...] = ()
    rows: slice | Tensor | None = None
    lengths: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    lengths_B: Tensor | None = None
    reach: int = 0
    order_BL: Tensor | None = None
    positions: Tensor | None = None
    angles: Angles | None = None
    triangle: bool = True
    mask: Tensor | None = None
    context_BMD: Tensor | None = None
    context_valid_BM: Tensor | None = None
    context_mask: Tensor | None = None
    context_given: Tensor | None = None
    context_reach: int = 0
    cond_B1D: Tensor | None = None
    kernel: str = "fused"
    linear: Linear = plainly


ALONE = Scene()
"""Nothing but what the layer is given."""


def working_dtype(like: Tensor) -> torch.dtype:
    """The dtype in which matrix products of `like` are computed here: autocast's, where that is on."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype
