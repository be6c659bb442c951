"""Attention for training on a CPU: tiles of the score matrix that stay in the cache, and a backward pass of its own.

    q_BHLK, k_BGMK, v_BGMK -> for some rows of the batch, for some queries:
        scores = q k^T + mask  ->  shares = softmax  ->  y = shares v                                    (shares kept)
        backward: d_shares = dy v^T -> d_scores -> dq = d_scores k, dk += d_scores^T q, dv += shares^T dy

PyTorch's fused CPU kernel reads forward as fast, but its backward pass takes two to six times as long as these batched
products (AMX, bf16, 64 to 512 tokens); in return it keeps no shares, so it needs less memory. Under a causal triangle
each row of tiles ends at its last query, which saves almost half of the work. No second derivative: that is the plain
kernel's (nn/attention.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nomoat.nn.derive import plainly_derived

QUERIES = 128
"""Queries of one tile. Fewer waste less of the triangle, more make better matrix products."""

TILE = 1 << 21
"""Scores of one tile: 4 MB in bf16. Smaller ones would stay nearer, but cost more calls than that saves."""


class _Tile(NamedTuple):
    """Some rows of the batch, some queries, and the number of keys that they see."""

    rows: slice
    queries: slice
    keys: int


class _Shape(NamedTuple):
    """Sizes of a call: B, G, R query heads a group, L, M, K, and whether keys end at the last query."""

    batch: int
    groups: int
    share: int
    length: int
    reach: int
    width: int
    triangle: bool

    @classmethod
    def of(cls, q_BHLK: Tensor, k_BGMK: Tensor, triangle: bool) -> _Shape:
        batch, heads, length, width = q_BHLK.shape
        groups, reach = k_BGMK.shape[1:3]
        return cls(batch, groups, heads // groups, length, reach, width, triangle)

    def rows(self) -> Iterator[slice]:
        """Slices of the batch whose scores make one tile."""
        scores = self.groups * self.share * min(self.length, QUERIES) * self.reach
        step = max(1, TILE // scores)
        for start in range(0, self.batch, step):
            yield slice(start, min(start + step, self.batch))

    def tiles(self, rows: slice) -> Iterator[_Tile]:
        """The tiles of these rows, the last queries first: they see all keys."""
        for start in reversed(range(0, self.length, QUERIES)):
            stop = min(start + QUERIES, self.length)
            yield _Tile(rows, slice(start, stop), min(stop, self.reach) if self.triangle else self.reach)

    def queries_of(self, x_BHLK: Tensor, tile: _Tile) -> Tensor:
        """The tile's part of a tensor of the queries' shape, as [B' G, R L', K] without gaps."""
        part = x_BHLK[tile.rows, :, tile.queries]
        return part.reshape(len(part) * self.groups, -1, self.width)

    def keys_of(self, x_BGMK: Tensor, rows: slice) -> Tensor:
        """The rows' part of a tensor of the keys' shape, as [B' G, M, K] without gaps."""
        return x_BGMK[rows].reshape(-1, self.reach, self.width)

    def by_head(self, scores: Tensor, tile: _Tile) -> Tensor:
        """A tile's scores as [B', H, L', M'], as the mask is."""
        return scores.view(-1, self.groups * self.share, tile.queries.stop - tile.queries.start, tile.keys)

    def triangles(self, like: Tensor) -> dict[int, Tensor]:
        """Minus infinity where a query stands before the key: [R L', M'] for each tile's first query."""
        found = {}
        for _, queries, keys in self.tiles(slice(0, 1)):
            places = torch.arange(queries.start, queries.stop, device=like.device)
            later = torch.arange(keys, device=like.device) > places[:, None]
            hidden = like.new_zeros(later.shape).masked_fill_(later, -math.inf)
            found[queries.start] = hidden.repeat(self.share, 1)
        return found


class _Tiles(torch.autograd.Function):
    """softmax(scale q k^T + mask) v, derived once."""

    @staticmethod
    def forward(
        ctx: Any, q_BHLK: Tensor, k_BGMK: Tensor, v_BGMK: Tensor, mask: Tensor | None, triangle: bool, scale: float
    ) -> Tensor:
        shape = _Shape.of(q_BHLK, k_BGMK, triangle)
        y_BLHK = q_BHLK.new_empty(shape.batch, shape.length, q_BHLK.shape[1], shape.width)
        y_BHLK = y_BLHK.transpose(1, 2)
        hidden, nothing = shape.triangles(q_BHLK) if triangle and mask is None else {}, q_BHLK.new_zeros(1)
        kept = []
        for rows in shape.rows():
            keys, values = shape.keys_of(k_BGMK, rows), shape.keys_of(v_BGMK, rows)
            for tile in shape.tiles(rows):
                turned = keys[:, : tile.keys].transpose(1, 2)
                queries = shape.queries_of(q_BHLK, tile)
                bias = hidden.get(tile.queries.start, nothing)
                scores = torch.baddbmm(bias, queries, turned, beta=0 if bias is nothing else 1, alpha=scale)
                if mask is not None:
                    shape.by_head(scores, tile).add_(_part(mask, tile))
                shares = torch.softmax(scores, -1, out=scores)
                part = y_BHLK[rows, :, tile.queries]
                part.copy_(torch.bmm(shares, values[:, : tile.keys]).view(part.shape))
                kept.append(shares)
        ctx.save_for_backward(q_BHLK, k_BGMK, v_BGMK, *kept)
        ctx.shape, ctx.scale, ctx.mask_shape = shape, scale, None if mask is None else mask.shape
        return y_BHLK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHLK: Tensor) -> tuple[Tensor | None, ...]:
        q_BHLK, k_BGMK, v_BGMK, *kept = ctx.saved_tensors
        shape: _Shape = ctx.shape
        dq_BHLK, dk_BGMK, dv_BGMK = _side_by_side(q_BHLK, shape)
        grad_mask = q_BHLK.new_zeros(ctx.mask_shape) if ctx.needs_input_grad[3] else None
        place, nothing = iter(kept), q_BHLK.new_zeros(1)
        for rows in shape.rows():
            keys, values = shape.keys_of(k_BGMK, rows), shape.keys_of(v_BGMK, rows)
            d_keys, d_values = torch.empty_like(keys), torch.empty_like(values)
            for tile in shape.tiles(rows):
                shares = next(place)
                queries, grad = shape.queries_of(q_BHLK, tile), shape.queries_of(grad_BHLK, tile)
                d_scores = torch.bmm(grad, values[:, : tile.keys].transpose(1, 2))
                torch._softmax_backward_data(d_scores, shares, -1, shares.dtype, grad_input=d_scores)
                first = tile.queries.stop == shape.length
                _add(d_values, shares, grad, first, 1.0)
                _add(d_keys, d_scores, queries, first, ctx.scale)
                part = dq_BHLK[rows, :, tile.queries]
                d_queries = torch.baddbmm(nothing, d_scores, keys[:, : tile.keys], beta=0, alpha=ctx.scale)
                part.copy_(d_queries.view(part.shape))
                if grad_mask is not None:
                    part = _part(grad_mask, tile)
                    part.add_(shape.by_head(d_scores, tile).sum_to_size(part.shape))
            for target, source in ((dk_BGMK[rows], d_keys), (dv_BGMK[rows], d_values)):
                target.copy_(source.view(target.shape))
        return dq_BHLK, dk_BGMK, dv_BGMK, grad_mask, None, None


def _side_by_side(q_BHLK: Tensor, shape: _Shape) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the three gradients; of self-attention in one tensor, as they stand in `qkv` (see `split_heads`)."""
    heads, groups = q_BHLK.shape[1], shape.groups
    if shape.length == shape.reach:
        whole = q_BHLK.new_empty(shape.batch, shape.length, heads + 2 * groups, shape.width)
        dq_BLHK, dk_BLGK, dv_BLGK = whole.split((heads, groups, groups), dim=2)
        return dq_BLHK.transpose(1, 2), dk_BLGK.transpose(1, 2), dv_BLGK.transpose(1, 2)
    dk_BGMK, dv_BGMK = q_BHLK.new_empty(2, shape.batch, groups, shape.reach, shape.width)
    return torch.empty_like(q_BHLK), dk_BGMK, dv_BGMK


def _add(total: Tensor, left: Tensor, right: Tensor, first: bool, scale: float) -> None:
    """total += scale left^T right, for as many keys as `left` has; the first tile, which has them all, sets it."""
    total[:, : left.shape[2]].baddbmm_(left.transpose(1, 2), right, beta=0 if first else 1, alpha=scale)


def _part(mask: Tensor, tile: _Tile) -> Tensor:
    """The tile's part of a mask [1 or B, 1 or H, 1 or L, M]."""
    rows = tile.rows if len(mask) > 1 else slice(None)
    queries = tile.queries if mask.shape[2] > 1 else slice(None)
    return mask[rows, :, queries, : tile.keys]


def attend_in_tiles(
    q_BHLK: Tensor, k_BGMK: Tensor, v_BGMK: Tensor, mask: Tensor | None, triangle: bool, scale: float
) -> Tensor:
    """softmax(scale q k^T + mask) v; with `triangle` no query sees a key after it, whatever the mask says."""
    with torch.autocast(q_BHLK.device.type, enabled=False):  # all three are in the working precision already
        return _Tiles.apply(q_BHLK, k_BGMK.to(q_BHLK.dtype), v_BGMK.to(q_BHLK.dtype), mask, triangle, scale)


def split_heads(heads_BLHK: Tensor, sizes: tuple[int, int, int]) -> tuple[Tensor, ...]:
    """Queries, keys and values of a fused projection, as views."""
    ordinary = plainly_derived((heads_BLHK,))
    return heads_BLHK.split(sizes, dim=2) if ordinary else _Split.apply(heads_BLHK, sizes)


class _Split(torch.autograd.Function):
    """Split along the heads; where the gradients already stand side by side, joining them copies nothing."""

    @staticmethod
    def forward(ctx: Any, heads_BLHK: Tensor, sizes: tuple[int, int, int]) -> tuple[Tensor, ...]:
        ctx.shape, ctx.sizes = heads_BLHK.shape, sizes
        return heads_BLHK.split(sizes, dim=2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        whole = grads[0]._base
        if whole is not None and whole.shape == ctx.shape and not torch.is_grad_enabled():
            parts = whole.split(ctx.sizes, dim=2)
            if all(grad.data_ptr() == part.data_ptr() for grad, part in zip(grads, parts, strict=True)):
                return whole, None
        return torch.cat(grads, dim=2), None
