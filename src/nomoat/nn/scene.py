"""Scene: everything a mixer must know about a call, resolved once per call of the stack.

    positions, ports, memory lengths -> Scene -> every layer's mixer(x_BLD, scene, layer_memory) -> y_BLD

A mixer is a module with

    mixer(x_BLD, scene, layer_memory=None) -> y_BLD
    mixer.memory(slots, length, dtype) -> LayerMemory          (nn/memory.py)
    mixer.flops_per_token(context_length) -> float             forward and backward, beyond 6 a weight
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scene:
    """What is the same for all layers of one call. Attention reads masks and angles, Mamba the raw ports.

    Args:
        causal: the stack reads from left to right (False: every position sees every other).
        valid_BL: True where a position is no padding; None: all are. Padding may stand anywhere in a row.
        documents_BL: integer document id of each position, equal ids contiguous; None: one document a row.
        prefix_B: length of the prefix that all may see; None: no prefix.
        slots: int64 [B], the row of the memory that each row of the batch continues; None: no memory.
        rows: `slots` as an index: a slice where they are consecutive (no copy), else the tensor itself.
        lengths: tokens that each row's slot held before this call, as Python integers; empty without a memory.
        lengths_B: the same as a tensor.
        reach: with a memory, how many of its columns hold anything after this call.
        order_BL: with a memory or padding, the index [B, L] of each position among the valid ones of its slot.
        angles: cosine and sine [B or 1, L, 1, K'] for the rotary embedding; None: no rotary positions.
        triangle: attention is causal and the kernel draws the triangle itself (no mask is needed).
        mask: attention's mask, boolean (True: seen) or added to the scores, [B or 1, H or 1, L, M]; None: none needed.
        context_BMD: the sequence for the cross-attention; None: none, or already in the memory.
        context_mask: boolean [B, 1, 1, M] for it; None: all of it is seen.
        cond_BD: condition vectors; None: none.
        adapter_B: the low-rank adapter of each row; None: none.
        kernel: "fused" or "plain", for attention.
    """

    causal: bool = True
    valid_BL: Tensor | None = None
    documents_BL: Tensor | None = None
    prefix_B: Tensor | None = None
    slots: Tensor | None = None
    rows: slice | Tensor | None = None
    lengths: tuple[int, ...] = ()
    lengths_B: Tensor | None = None
    reach: int = 0
    order_BL: Tensor | None = None
    angles: tuple[Tensor, Tensor] | None = None
    triangle: bool = True
    mask: Tensor | None = None
    context_BMD: Tensor | None = None
    context_mask: Tensor | None = None
    cond_BD: Tensor | None = None
    adapter_B: Tensor | None = None
    kernel: str = "fused"
