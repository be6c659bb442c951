"""One chunk of a state-space layer as matrices: decays between positions, and the plain form of the whole core.

    dt_BLH, a_H -> summed log decays -> decays: position to position [Q, Q], from the chunk's beginning, to its end

Decays are differences of summed logarithms, taken before the exponential and never above 0, so that nothing
overflows however strong they are. Letters beside those of core/types.py: Z chunk, Q position in the chunk, R head in
its group, T chunks of a tile, P = R K.

Dao and Gu 2024, arXiv:2405.21060 (section 6 and listing 1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LOWEST = -60.0
"""Log decays end here: exp(-60) is nothing beside 1, and much smaller numbers are denormal, which costs tenfold."""


class Decay(NamedTuple):
    """All that hangs on dt and a alone.

    Args:
        log_BZQH: log decay from the chunk's beginning to each position, its own step included.
        grow_BZQGR1: the decay itself, or 0 where a document began in between.
        shrink_BZQGR1: decay from each position to the chunk's end, or 0 where a document begins in between.
        mask: 1 where one position may see another: a triangle [Q, Q], or within documents [B, Z, 1, Q, Q].
    """

    log_BZQH: Tensor
    grow_BZQGR1: Tensor
    shrink_BZQGR1: Tensor
    mask: Tensor

    def whole(self) -> Tensor:
        """The decay over each chunk, [B, Z, G, 1, R, 1]."""
        return self.grow_BZQGR1[:, :, -1].unsqueeze(3)

    def tile(self, at: tuple[slice, slice]) -> Decay:
        """The part for some rows and chunks; B and Z become T."""
        mask = self.mask if self.mask.ndim == 2 else self.mask[at].flatten(0, 1)
        log, grow, shrink = (each[at].flatten(0, 1) for each in self[:3])
        return Decay(log, grow, shrink, mask)


def decays(dt_BLH: Tensor, a_H: Tensor, starts_BL: Tensor | None, size: int, groups: int) -> Decay:
    """The decays of chunks of `size` positions; L is a multiple of it."""
    log_BZQH = (dt_BLH * a_H).clamp(min=LOWEST).unflatten(1, (-1, size)).cumsum(2)
    grow = log_BZQH.clamp(min=LOWEST).exp()
    shrink = (log_BZQH[:, :, -1:] - log_BZQH).clamp(min=LOWEST).exp()
    mask = torch.ones(size, size, dtype=grow.dtype, device=grow.device).tril()
    if starts_BL is not None:
        document_BZQ = starts_BL.unflatten(1, (-1, size)).cumsum(2)
        grow = grow * (document_BZQ == 0).unsqueeze(3)
        shrink = shrink * (document_BZQ == document_BZQ[..., -1:]).unsqueeze(3)
        mask = mask * (document_BZQ[..., :, None] == document_BZQ[..., None, :]).unsqueeze(2)
    grow, shrink = (each.unflatten(3, (groups, -1)).unsqueeze(5) for each in (grow, shrink))
    return Decay(log_BZQH, grow, shrink, mask)


def within(log_TQH: Tensor, b_TGQN: Tensor, c_TGQN: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The decay [T, G, R, Q, Q] between positions (above the diagonal: 1), and c b^T [T, G, Q, Q] under the mask."""
    log_THQ = log_TQH.transpose(1, 2).contiguous()
    decay_THQQ = (log_THQ.unsqueeze(3) - log_THQ.unsqueeze(2)).clamp_(LOWEST, 0.0).exp_()
    scores_TGQQ = torch.matmul(c_TGQN, b_TGQN.transpose(2, 3)) * mask
    return decay_THQQ.unflatten(1, (b_TGQN.shape[1], -1)), scores_TGQQ


def plain(
    x_BLHK: Tensor,
    dt_BLH: Tensor,
    a_H: Tensor,
    b_BLGN: Tensor,
    c_BLGN: Tensor,
    starts_BL: Tensor | None,
    state_BGNP: Tensor,
    size: int,
) -> tuple[Tensor, Tensor]:
    """The core in ordinary operations: y_BLHK and the last state_BGNP; L is a multiple of the chunk's `size`."""
    (batch, _, _, head_width), groups, dtype = x_BLHK.shape, b_BLGN.shape[2], x_BLHK.dtype
    decay = decays(dt_BLH, a_H, starts_BL, size, groups)
    log_TQH, grow_TQGR1, shrink_TQGR1, mask = decay.tile((slice(None), slice(None)))
    b_TGQN, c_TGQN = (each.unflatten(1, (-1, size)).flatten(0, 1).transpose(1, 2) for each in (b_BLGN, c_BLGN))
    step_BLHK = x_BLHK * dt_BLH.unsqueeze(3)
    step_TQGRK = step_BLHK.unflatten(2, (groups, -1)).unflatten(1, (-1, size)).flatten(0, 1)

    decay_TGRQQ, scores_TGQQ = within(log_TQH, b_TGQN, c_TGQN, mask)
    weights_TGRQQ = (decay_TGRQQ * scores_TGQQ.unsqueeze(2)).to(dtype)
    near_TGRQK = torch.matmul(weights_TGRQQ, step_TQGRK.to(dtype).permute(0, 2, 3, 1, 4))

    ending_TGQP = (step_TQGRK * shrink_TQGR1).to(dtype).transpose(1, 2).flatten(3)
    added_TGNP = torch.matmul(b_TGQN.transpose(2, 3), ending_TGQP).to(state_BGNP.dtype)
    before = []
    for added_BGNP, whole in zip(added_TGNP.unflatten(0, (batch, -1)).unbind(1), decay.whole().unbind(1), strict=True):
        before.append(state_BGNP)
        state_BGNP = (state_BGNP.unflatten(3, (-1, head_width)) * whole).flatten(3) + added_BGNP
    before_TGNP = torch.stack(before, dim=1).flatten(0, 1).to(dtype)

    far_TGQRK = torch.matmul(c_TGQN, before_TGNP).unflatten(3, (-1, head_width))
    y_TQGRK = near_TGRQK.permute(0, 3, 1, 2, 4) + far_TGQRK.transpose(1, 2) * grow_TQGR1
    return y_TQGRK.to(dtype).flatten(2, 3).unflatten(0, (batch, -1)).flatten(1, 2), state_BGNP
