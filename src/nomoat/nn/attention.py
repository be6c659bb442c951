"""Attention: every position asks, the keys answer, the values are mixed.

    x_BLD -> qkv [(H+2G) K, D] -> norm, turn -> q_BHLK, k_BGMK, v_BGMK -> softmax(q k / sqrt(K) + mask) v -> out_BLD

Grouped heads (Ainslie et al. 2023, arXiv:2305.13245), norm of queries and keys (Dehghani et al. 2023,
arXiv:2302.05442), rotary positions (nn/rotary.py), masks (nn/masks.py), memory (nn/memory.py), cross-attention.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.nn.dialect import Dialect
from nomoat.nn.linear import fused_linear, linear, output_linear
from nomoat.nn.memory import AttentionMemory, empty_like
from nomoat.nn.norms import make_head_norm
from nomoat.nn.rotary import keep, turn
from nomoat.nn.scene import Scene
from nomoat.nn.tiles import attend_in_tiles, split_heads

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, float], Tensor]


def fused(q_BHLK: Tensor, k_BGMK: Tensor, v_BGMK: Tensor, mask: Tensor | None, triangle: bool, scale: float) -> Tensor:
    """PyTorch's fused kernel: no L x M tensor is kept; no second derivative."""
    grouped = q_BHLK.shape[1] != k_BGMK.shape[1]
    return F.scaled_dot_product_attention(
        q_BHLK, k_BGMK, v_BGMK, attn_mask=mask, is_causal=triangle and mask is None, scale=scale, enable_gqa=grouped
    )


def plain(q_BHLK: Tensor, k_BGMK: Tensor, v_BGMK: Tensor, mask: Tensor | None, triangle: bool, scale: float) -> Tensor:
    """Two batched matrix products and a softmax: any derivative, and faster than the fused kernel on few tokens."""
    batch, heads, length, width = q_BHLK.shape
    groups = k_BGMK.shape[1]
    q_BGQK = (q_BHLK * scale).reshape(batch, groups, -1, width)
    scores_BHLM = (q_BGQK @ k_BGMK.transpose(2, 3)).view(batch, heads, length, -1)
    scores_BHLM = scores_BHLM if mask is None else scores_BHLM + mask
    shares_BGQM = scores_BHLM.softmax(-1).to(v_BGMK.dtype).view(batch, groups, -1, k_BGMK.shape[2])
    return (shares_BGQM @ v_BGMK).view(batch, heads, length, width)


def tiled(q_BHLK: Tensor, k_BGMK: Tensor, v_BGMK: Tensor, mask: Tensor | None, triangle: bool, scale: float) -> Tensor:
    """nn/tiles.py where a gradient is wanted, once: the fastest in bf16 on a CPU. Else the fused kernel."""
    kernel = attend_in_tiles if torch.is_grad_enabled() else fused
    return kernel(q_BHLK, k_BGMK, v_BGMK, mask, triangle, scale)


KERNELS: dict[str, Kernel] = {"fused": fused, "plain": plain, "tiled": tiled}


class Attention(nn.Module):
    """Self-attention. Rows of `qkv`: H query heads, G key heads, G value heads, each K rows.

    Args:
        width: D.
        heads, kv_heads, head_width: H, G and K.
        dialect: biases, query-key norm, rotary positions, scale of the scores.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int, dialect: Dialect) -> None:
        super().__init__()
        self.sizes = (heads, kv_heads, kv_heads)
        self.head_width = head_width
        self.scale = 1 / math.sqrt(head_width) if dialect.attention_scale == "sqrt" else 1.0
        rows = tuple(size * head_width for size in self.sizes)
        self.qkv = fused_linear(width, rows, dialect.bias != "none", dialect)
        self.out = output_linear(heads * head_width, width, dialect.bias == "all", dialect)
        self.query_norm, self.key_norm = make_head_norm(dialect, head_width), make_head_norm(dialect, head_width)
        # Scores that are not divided by sqrt(K) start as if they were (T5).
        self.qkv.weight.data[: heads * head_width] /= math.sqrt(head_width) * self.scale
        self.turn = turn if dialect.positions == "rope" else keep

    def forward(self, x_BLD: Tensor, scene: Scene, layer_memory: AttentionMemory | None = None) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        heads_BLHK = scene.linear(self.qkv, x_BLD).unflatten(-1, (-1, self.head_width))
        q_BLHK, k_BLGK, v_BLGK = split_heads(heads_BLHK, self.sizes)
        q_BLHK = self.turn(self.query_norm(q_BLHK), scene.angles)
        k_BLGK = self.turn(self.key_norm(k_BLGK), scene.angles)
        if layer_memory is None:
            k_BGMK, v_BGMK = k_BLGK.transpose(1, 2), v_BLGK.transpose(1, 2)
        else:
            k_BGMK, v_BGMK = layer_memory.extend(k_BLGK, v_BLGK, scene)
        kernel = KERNELS[scene.kernel]
        y_BHLK = kernel(q_BLHK.transpose(1, 2), k_BGMK, v_BGMK, scene.mask, scene.triangle, self.scale)
        return scene.linear(self.out, y_BHLK.transpose(1, 2).flatten(2))

    def memory(self, slots: int, length: int, dtype: torch.dtype) -> AttentionMemory:
        """Empty keys and values of `slots` rows with room for `length` tokens."""
        return AttentionMemory(slots, length, self.sizes[1], self.head_width, empty_like(self.qkv, dtype))

    def flops_per_token(self, context_length: int) -> float:
        """Forward and backward of the two products, full (not causal) attention: 12 H K L."""
        return 12.0 * self.sizes[0] * self.head_width * context_length


class CrossAttention(nn.Module):
    """Attention to the context port's sequence; its output layer starts at zero. No positions.

    Args:
        width, context_width: D of the stream and of the context.
        heads, kv_heads, head_width: H, G and K.
        dialect: biases, query-key norm, scale of the scores.
    """

    def __init__(
        self, width: int, context_width: int, heads: int, kv_heads: int, head_width: int, dialect: Dialect
    ) -> None:
        super().__init__()
        self.head_width, self.kv_heads = head_width, kv_heads
        self.scale = 1 / math.sqrt(head_width) if dialect.attention_scale == "sqrt" else 1.0
        self.query = linear(width, heads * head_width, dialect.bias != "none", dialect)
        self.kv = linear(context_width, 2 * kv_heads * head_width, dialect.bias != "none", dialect)
        self.out = output_linear(heads * head_width, width, dialect.bias == "all", dialect)
        nn.init.zeros_(self.out.weight)
        self.query.weight.data /= math.sqrt(head_width) * self.scale
        self.query_norm, self.key_norm = make_head_norm(dialect, head_width), make_head_norm(dialect, head_width)

    def forward(self, x_BLD: Tensor, scene: Scene, layer_memory: AttentionMemory | None = None) -> Tensor:
        """[B, L, D] to [B, L, D]; the context is the scene's, else the memory's."""
        q_BLHK = self.query_norm(scene.linear(self.query, x_BLD).unflatten(-1, (-1, self.head_width)))
        if scene.context_BMD is not None:
            k_BMGK, v_BMGK = self.keys_values(scene.context_BMD)
            k_BGMK, v_BGMK = k_BMGK.transpose(1, 2), v_BMGK.transpose(1, 2)
        else:
            assert layer_memory is not None and scene.rows is not None
            k_BGMK, v_BGMK = layer_memory.read(scene.rows, scene.context_reach, q_BLHK.dtype)
        kernel = KERNELS[scene.kernel]
        y_BHLK = kernel(q_BLHK.transpose(1, 2), k_BGMK, v_BGMK, scene.context_mask, False, self.scale)
        y_BLD = scene.linear(self.out, y_BHLK.transpose(1, 2).flatten(2))
        return y_BLD if scene.context_given is None else y_BLD * scene.context_given

    def keys_values(self, context_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, M, G, K] of a context."""
        k_BMGK, v_BMGK = self.kv(context_BMD).unflatten(-1, (-1, self.head_width)).split(self.kv_heads, dim=2)
        return self.key_norm(k_BMGK), v_BMGK

    def memory(self, slots: int, dtype: torch.dtype) -> AttentionMemory:
        """Empty keys and values of `slots` rows; it grows when a context comes."""
        return AttentionMemory(slots, 0, self.kv_heads, self.head_width, empty_like(self.kv, dtype))


def fastest_kernel(
    attention: Attention, batch_size: int, length: int, dtype: torch.dtype, causal: bool = True, repeats: int = 5
) -> tuple[str, dict[str, float]]:
    """The faster kernel at this shape and the seconds of each (forward and backward, best of turns taken one by one).

    Args:
        attention: any attention layer of the stack; its weights are not touched.
        batch_size: B of a training step's (micro-)batch.
        length: L.
        dtype: what the products are computed in.
        causal: with the causal triangle, or without a mask.
        repeats: turns of each kernel, after one that is not counted.
    """
    like = empty_like(attention.out, dtype)
    heads_BLHK = torch.empty(batch_size, length, sum(attention.sizes), attention.head_width, dtype=dtype)
    heads_BLHK = heads_BLHK.to(like.device).normal_().requires_grad_()
    hidden = torch.full((length, length), -math.inf, dtype=dtype, device=like.device).triu(1) if causal else None
    cases = {"fused": (None, causal), "tiled": (None, causal), "plain": (hidden, False)}
    seconds = dict.fromkeys(cases, math.inf)
    for turn_number in range(repeats + 1):
        for name, (mask, triangle) in cases.items():
            start = time.perf_counter()
            q_BHLK, k_BGLK, v_BGLK = (part.transpose(1, 2) for part in split_heads(heads_BLHK, attention.sizes))
            y_BHLK = KERNELS[name](q_BHLK, k_BGLK, v_BGLK, mask, triangle, attention.scale)
            slope = torch.autograd.grad(y_BHLK, heads_BLHK, y_BHLK.detach())[0]
            float(slope[-1, -1, -1, -1])  # a read waits for the device
            if turn_number:
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return min(seconds, key=seconds.__getitem__), seconds
