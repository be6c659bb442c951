"""The chunked core with a backward pass of its own, in tiles that stay in the cache.

    tile of chunks (T of them, of one row or of several)
        forwards    as nn/ssd_chunks.py: plain
        backwards   computes the [Q, Q] matrices again, walks through the states in reverse

Against autograd on the plain form, with 6 heads of 64 on 4,096 positions and two threads, forwards and backwards: 28
instead of 37 ms, and 15 instead of 67 MB kept for the backward pass (its inputs and one state a chunk, no [Q, Q]
matrix).

Gradients of the log decays come without cancellation, also in bf16. The weight of a pair of positions (j writes, i
reads: dy_i . c_i b_j decay x_j) counts once for each step between them. So it is summed over the later positions i and
taken away at j where both are in the chunk, from one matrix; summed over later i where j lies before the chunk, and
over earlier j where i lies after it.

Dao and Gu 2024, arXiv:2405.21060; the layout of letters is that of nn/ssd_chunks.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nomoat.nn.derive import derivable
from nomoat.nn.ssd_chunks import LOWEST, Decay, decays, plain, within

TILE = 1 << 18
"""Elements of a tile's largest tensor, a CPU thread: 1 MB in fp32, so that a few stay in the second-level cache."""


class _Chunks(NamedTuple):
    """The inputs cut into chunks: views of them."""

    x_BZQGRK: Tensor
    dt_BZQGR1: Tensor
    b_BZGQN: Tensor
    c_BZGQN: Tensor

    @classmethod
    def of(cls, x_BLHK: Tensor, dt_BLH: Tensor, b_BLGN: Tensor, c_BLGN: Tensor, size: int) -> _Chunks:
        groups = b_BLGN.shape[2]
        b, c = (each.unflatten(1, (-1, size)).transpose(2, 3) for each in (b_BLGN, c_BLGN))
        return cls(_cut(x_BLHK, size, groups), _cut(dt_BLH, size, groups).unsqueeze(5), b, c)

    def tile(self, at: tuple[slice, slice]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, dt, b, c = (each[at].flatten(0, 1) for each in self)
        return x, dt, b.contiguous(), c.contiguous()


class _Gradients(NamedTuple):
    """Where the tiles write; `later` is what each position adds to the log decays up to it, `earlier` to those after,
    `crossing` what the chunk as a whole adds to all of its own."""

    x_BZQGRK: Tensor
    step_BZQGR: Tensor
    b_BZGQN: Tensor
    c_BZGQN: Tensor
    later_BZQGR: Tensor
    earlier_BZQGR: Tensor
    crossing_BZGR: Tensor

    def tile(self, at: tuple[slice, slice]) -> _Gradients:
        return _Gradients(*(each[at].flatten(0, 1) for each in self))


def _cut(x: Tensor, size: int, groups: int) -> Tensor:
    """[B, L, H, ...] -> [B, Z, Q, G, R, ...], a view."""
    return x.unflatten(2, (groups, -1)).unflatten(1, (-1, size))


def _wide(x: Tensor) -> Tensor:
    """[T, Q, G, R, ...] <-> [T, G, Q, R, ...]: all heads of a group in one row."""
    return x.transpose(1, 2)


def _tall(x_TQGRK: Tensor) -> Tensor:
    """[T, Q, G, R, K] -> [T, G, R, Q, K]: a matrix for each head."""
    return x_TQGRK.permute(0, 2, 3, 1, 4)


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    """x times a small factor in x's dtype, contiguous in the order of its axes.

    One pass where `mul` and `contiguous` would be two; factors of another dtype would make it ten times as slow.
    """
    return torch.mul(x, factor.to(x.dtype), out=torch.empty(x.shape, dtype=x.dtype, device=x.device))


def _weights(decay_TGRQQ: Tensor, scores_TGQQ: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix [T, G, R, Q, Q] that takes dt x to y within a chunk."""
    out_TGRQQ = torch.empty_like(decay_TGRQQ, dtype=dtype)
    return torch.mul(decay_TGRQQ, scores_TGQQ.unsqueeze(2), out=out_TGRQQ)


def _tiles(chunks: _Chunks) -> Iterator[tuple[slice, slice]]:
    """Rows and chunks of each tile, in the order of time: whole rows, or parts of one."""
    batch, count, size, groups, heads, _ = chunks.x_BZQGRK.shape
    wanted = TILE * torch.get_num_threads() // (size * size * groups * heads)
    room = max(1, wanted) if chunks.x_BZQGRK.is_cpu else batch * count
    rows, span = max(1, room // count), min(room, count)
    for row in range(0, batch, rows):
        for first in range(0, count, span):
            yield slice(row, min(row + rows, batch)), slice(first, min(first + span, count))


def _read_tile(
    tile: tuple[Tensor, Tensor, Tensor, Tensor], decay: Decay, whole_BZG1R1: Tensor, states_BZGNP: Tensor, y: Tensor
) -> None:
    """Fill in y [T, Q, G, R, K], and the states [B, Z + 1, G, N, P] after the first."""
    x, dt, b, c = tile
    dtype, heads = x.dtype, x.shape[3:]
    decay_TGRQQ, scores_TGQQ = within(decay.log_BZQH, b, c, decay.mask)
    weights_TGRQQ = _weights(decay_TGRQQ, scores_TGQQ, dtype)
    near_TGRQK = torch.matmul(weights_TGRQQ, _scaled(_tall(x), _tall(dt)))

    ending_TGQP = _scaled(_wide(x), _wide(dt * decay.shrink_BZQGR1)).flatten(3)
    added_TGNP = torch.matmul(b.transpose(2, 3), ending_TGQP).to(states_BZGNP.dtype)
    added_BZGNRK = added_TGNP.unflatten(0, whole_BZG1R1.shape[:2]).unflatten(4, heads)
    states_BZGNRK = states_BZGNP.unflatten(4, heads)
    for at in range(added_BZGNRK.shape[1]):
        state = states_BZGNRK[:, at + 1]
        torch.addcmul(added_BZGNRK[:, at], states_BZGNRK[:, at], whole_BZG1R1[:, at], out=state)

    before_TGNP = states_BZGNP[:, :-1].flatten(0, 1).to(dtype)
    far_TGQRK = torch.matmul(c, before_TGNP).unflatten(3, heads).mul_(_wide(decay.grow_BZQGR1).to(dtype))
    torch.add(near_TGRQK.permute(0, 3, 1, 2, 4), _wide(far_TGQRK), out=y)


def _far_back(
    tile: tuple[Tensor, Tensor, Tensor, Tensor],
    decay: Decay,
    whole_BZG1R1: Tensor,
    before_BZGNP: Tensor,
    carry_BGNP: Tensor,
    dy: Tensor,
    grads: _Gradients,
) -> Tensor:
    """Gradients through the states; returns that of dt x, [T, G, Q, R, K].

    `carry_BGNP`, the gradient of the state after the tile, becomes that of the state before it.
    """
    x, dt, b, c = tile
    dtype, heads = x.dtype, x.shape[3:]
    read_TGQP = _scaled(_wide(dy), _wide(decay.grow_BZQGR1)).flatten(3)
    before_TGNP = before_BZGNP.flatten(0, 1).to(dtype)
    grads.c_BZGQN.copy_(torch.matmul(read_TGQP, before_TGNP.transpose(2, 3)))
    far_TGQRK = torch.matmul(c, before_TGNP).mul_(read_TGQP).unflatten(3, heads)
    grads.later_BZQGR.copy_(_wide(far_TGQRK.sum(4)))

    gained_TGNP = torch.matmul(c.transpose(2, 3), read_TGQP).to(carry_BGNP.dtype)
    gained_BZGNRK = gained_TGNP.unflatten(0, whole_BZG1R1.shape[:2]).unflatten(4, heads)
    after_BZGNRK, carry_BGNRK = torch.empty_like(gained_BZGNRK), carry_BGNP.unflatten(3, heads)
    for at in reversed(range(after_BZGNRK.shape[1])):
        after_BZGNRK[:, at] = carry_BGNRK
        torch.addcmul(gained_BZGNRK[:, at], carry_BGNRK, whole_BZG1R1[:, at], out=carry_BGNRK)
    crossing_BZGR = (after_BZGNRK * before_BZGNP.unflatten(4, heads)).sum((3, 5)) * whole_BZG1R1[:, :, :, 0, :, 0]
    grads.crossing_BZGR.copy_(crossing_BZGR.flatten(0, 1))

    after_TGNP = after_BZGNRK.flatten(4).flatten(0, 1).to(dtype)
    ending_TGQP = _scaled(_wide(x), _wide(dt * decay.shrink_BZQGR1)).flatten(3)
    grads.b_BZGQN.copy_(torch.matmul(ending_TGQP, after_TGNP.transpose(2, 3)))
    written_TGQP = torch.matmul(b, after_TGNP)
    grads.earlier_BZQGR.copy_(_wide((written_TGQP * ending_TGQP).unflatten(3, heads).sum(4)))
    return written_TGQP.unflatten(3, heads).mul_(_wide(decay.shrink_BZQGR1).to(dtype))


def _near_back(tile: tuple[Tensor, Tensor, Tensor, Tensor], decay: Decay, dy: Tensor, grads: _Gradients) -> Tensor:
    """Gradients within the chunks, added to those through the states; returns that of dt x, [T, G, R, Q, K]."""
    x, dt, b, c = tile
    decay_TGRQQ, scores_TGQQ = within(decay.log_BZQH, b, c, decay.mask)
    weights_TGRQQ = _weights(decay_TGRQQ, scores_TGQQ, x.dtype)
    dy_TGRQK = _tall(dy).contiguous()
    step_TGRQK = torch.matmul(weights_TGRQQ.transpose(3, 4), dy_TGRQK)
    pairs_TGRQQ = torch.matmul(dy_TGRQK, _scaled(_tall(x), _tall(dt)).transpose(3, 4))
    pairs_TGRQQ = decay_TGRQQ.mul_(pairs_TGRQQ)
    scores_grad_TGQQ = pairs_TGRQQ.sum(2).mul_(decay.mask).to(x.dtype)
    grads.c_BZGQN.add_(torch.matmul(scores_grad_TGQQ, b))
    grads.b_BZGQN.add_(torch.matmul(scores_grad_TGQQ.transpose(2, 3), c))
    pairs_TGRQQ.mul_(scores_TGQQ.unsqueeze(2))
    grads.later_BZQGR.add_((pairs_TGRQQ.sum(4) - pairs_TGRQQ.sum(3)).permute(0, 3, 1, 2))
    return step_TGRQK


class Tiled(torch.autograd.Function):
    """`plain` of nn/ssd_chunks.py: the same arguments, the same results."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        """y_BLHK and the last state_BGNP."""
        x_BLHK, dt_BLH, a_H, b_BLGN, c_BLGN, starts_BL, state_BGNP, size = inputs
        groups = b_BLGN.shape[2]
        chunks = _Chunks.of(x_BLHK, dt_BLH, b_BLGN, c_BLGN, size)
        decay = decays(dt_BLH, a_H, starts_BL, size, groups)
        whole = decay.whole()
        states = state_BGNP.new_empty(len(state_BGNP), whole.shape[1] + 1, *state_BGNP.shape[1:])
        states[:, 0] = state_BGNP
        y_BLHK = torch.empty_like(x_BLHK, memory_format=torch.contiguous_format)
        y_BZQGRK = _cut(y_BLHK, size, groups)
        for at in _tiles(chunks):
            upto = (at[0], slice(at[1].start, at[1].stop + 1))
            _read_tile(chunks.tile(at), decay.tile(at), whole[at], states[upto], y_BZQGRK[at].flatten(0, 1))
        ctx.save_for_backward(x_BLHK, dt_BLH, a_H, b_BLGN, c_BLGN, starts_BL, state_BGNP, states)
        ctx.size = size
        return y_BLHK, states[:, -1].clone()

    @staticmethod
    def backward(ctx: Any, dy_BLHK: Tensor, dstate_BGNP: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, dt, a, b, c and the first state."""
        *inputs, states = ctx.saved_tensors
        with torch.autocast(dy_BLHK.device.type, enabled=False):
            if torch.is_grad_enabled():  # a second derivative is wanted
                return derivable(plain, (*inputs, ctx.size), (dy_BLHK, dstate_BGNP))
            return _backward(inputs, states, ctx.size, dy_BLHK, dstate_BGNP)


def _backward(
    inputs: list[Tensor], states_BZGNP: Tensor, size: int, dy_BLHK: Tensor, dstate_BGNP: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs of `plain`, one tile after the other from the last to the first."""
    x_BLHK, dt_BLH, a_H, b_BLGN, c_BLGN, starts_BL, _ = inputs
    groups = b_BLGN.shape[2]
    chunks = _Chunks.of(x_BLHK, dt_BLH, b_BLGN, c_BLGN, size)
    decay = decays(dt_BLH, a_H, starts_BL, size, groups)
    whole, dy_BZQGRK, carry = decay.whole(), _cut(dy_BLHK, size, groups), dstate_BGNP.clone()
    dx_BLHK, db_BLGN, dc_BLGN = (
        torch.empty_like(each, memory_format=torch.contiguous_format) for each in (x_BLHK, b_BLGN, c_BLGN)
    )
    later, earlier, step = (dt_BLH.new_empty(chunks.dt_BZQGR1.shape[:-1]) for _ in range(3))
    crossing = torch.empty_like(whole[:, :, :, 0, :, 0])
    written = _Chunks.of(dx_BLHK, dt_BLH, db_BLGN, dc_BLGN, size)
    grads = _Gradients(written.x_BZQGRK, step, written.b_BZGQN, written.c_BZGQN, later, earlier, crossing)
    for at in reversed(list(_tiles(chunks))):
        tile, there, part, dy = chunks.tile(at), decay.tile(at), grads.tile(at), dy_BZQGRK[at].flatten(0, 1)
        far_TGQRK = _far_back(tile, there, whole[at], states_BZGNP[at], carry[at[0]], dy, part)
        near_TGRQK = _near_back(tile, there, dy, part)
        step_TQGRK = _wide(far_TGQRK).add_(near_TGRQK.permute(0, 3, 1, 2, 4))
        part.step_BZQGR.copy_((step_TQGRK * tile[0]).sum(4))
        torch.mul(step_TQGRK, tile[1].to(x_BLHK.dtype), out=part.x_BZQGRK)
    # Sums over later and over earlier positions as products with the mask: nothing leaks out of a document.
    mask, later_BZQH, earlier_BZQH = decay.mask, later.flatten(3), earlier.flatten(3)
    mask = mask if mask.ndim == 2 else mask.squeeze(2)
    log_BZQH = torch.matmul(mask.transpose(-1, -2), later_BZQH) + torch.matmul(mask, earlier_BZQH) - earlier_BZQH
    log_BZQH += crossing.flatten(2).unsqueeze(2)
    log_BLH = log_BZQH.flatten(1, 2) * (dt_BLH * a_H > LOWEST)
    ddt_BLH = step.flatten(3).flatten(1, 2) + log_BLH * a_H
    return dx_BLHK, ddt_BLH, (log_BLH * dt_BLH).sum((0, 1)), db_BLGN, dc_BLGN, None, carry, None
