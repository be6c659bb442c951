"""State-space duality: the core of Mamba-2 as matrix products, and the same thing step by step.

    state_t = exp(dt_t a) state_(t-1) + dt_t x_t b_t^T        y_t = state_t c_t        (per head; x is K, b and c are N)

    x_BLHK, dt_BLH, b_BLGN, c_BLGN -> chunks of Q positions:
        within a chunk          y = (decay * c b^T, lower triangle) (dt x)       [Q, Q] @ [Q, K] for each head
        what a chunk adds       b^T (dt x, decayed to the chunk's end)           [N, Q] @ [Q, R K] for each group
        from chunk to chunk     state = decay state + what the chunk adds        a loop over the chunks
        what the state gives    y += decay * (c state)                           [Q, N] @ [N, R K] for each group
    -> y_BLHK, state_BHKN

`ssd_scan` is the definition; `ssd` computes it with a backward pass of its own, tile by tile, or with `tiled=False` as
the four lines above in ordinary operations; by itself it takes those only where a forward-mode derivative is wanted.

Dao and Gu 2024, arXiv:2405.21060 (section 6 and listing 1).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nomoat.nn.derive import forward_mode
from nomoat.nn.ssd_chunks import plain
from nomoat.nn.ssd_tiles import Tiled


def ssd_scan(
    x_BLHK: Tensor,
    dt_BLH: Tensor,
    a_H: Tensor,
    b_BLGN: Tensor,
    c_BLGN: Tensor,
    starts_BL: Tensor | None = None,
    state_BHKN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence, one position after the other: slow, and right by inspection. Arguments as for `ssd`."""
    heads_a_group = x_BLHK.shape[2] // b_BLGN.shape[2]
    b_BLHN, c_BLHN = (each.repeat_interleave(heads_a_group, dim=2).to(dt_BLH.dtype) for each in (b_BLGN, c_BLGN))
    if state_BHKN is None:
        state_BHKN = dt_BLH.new_zeros(x_BLHK.shape[0], *x_BLHK.shape[2:], b_BLGN.shape[3])
    outputs = []
    for at in range(x_BLHK.shape[1]):
        decay_BH = torch.exp(dt_BLH[:, at] * a_H)
        if starts_BL is not None:
            decay_BH = decay_BH.masked_fill(starts_BL[:, at, None], 0.0)
        step_BHK = dt_BLH[:, at, :, None] * x_BLHK[:, at]
        state_BHKN = decay_BH[..., None, None] * state_BHKN + step_BHK[..., None] * b_BLHN[:, at, :, None]
        outputs.append((state_BHKN * c_BLHN[:, at, :, None]).sum(3).to(x_BLHK.dtype))
    return torch.stack(outputs, dim=1), state_BHKN


def ssd(  # noqa: PLR0913 - the recurrence's own arguments, and how it is cut
    x_BLHK: Tensor,
    dt_BLH: Tensor,
    a_H: Tensor,
    b_BLGN: Tensor,
    c_BLGN: Tensor,
    starts_BL: Tensor | None = None,
    state_BHKN: Tensor | None = None,
    chunk: int = 64,
    tiled: bool = True,
) -> tuple[Tensor, Tensor]:
    """What every position reads from the state, and the last state; the recurrence as matrix products.

    A position with dt = 0 leaves the state as it is: so padding moves nothing.

    Args:
        x_BLHK: inputs; their dtype is that of the matrix products and of y.
        dt_BLH: step sizes >= 0 in at least fp32; decays and states have this dtype.
        a_H: decay rates < 0.
        b_BLGN: what each position writes with; H / G heads share it.
        c_BLGN: what each position reads with.
        starts_BL: True where everything before is forgotten (the first token of a document).
        state_BHKN: the state before the first position; None: zeros.
        chunk: positions at most in a chunk; the length may be any.
        tiled: False: ordinary operations, which can be derived in any way, for more time and memory.

    Returns:
        y_BLHK, and the state [B, H, K, N] after the last position.
    """
    inputs = (x_BLHK, dt_BLH, a_H, b_BLGN, c_BLGN, starts_BL)
    core = Tiled.apply if tiled and not forward_mode((*inputs, state_BHKN)) else plain
    return _run(core, inputs, state_BHKN, chunk)


def _run(core: Any, inputs: tuple[Any, ...], state_BHKN: Tensor | None, chunk: int) -> tuple[Tensor, Tensor]:
    """Pad to whole chunks, of equal length; bring the state into the order of the core and back."""
    x_BLHK, dt_BLH, a_H, b_BLGN, c_BLGN, starts_BL = inputs
    batch, length, heads, head_width = x_BLHK.shape
    groups, state_width = b_BLGN.shape[2:]
    chunks = -(-length // chunk)
    size = length if chunks == 1 else min(chunk, -(-length // (8 * chunks)) * 8)
    if more := -length % size:
        x_BLHK, b_BLGN, c_BLGN = (F.pad(each, (0, 0, 0, 0, 0, more)) for each in (x_BLHK, b_BLGN, c_BLGN))
        dt_BLH = F.pad(dt_BLH, (0, 0, 0, more))
        starts_BL = None if starts_BL is None else F.pad(starts_BL, (0, more))
    if state_BHKN is None:
        state = dt_BLH.new_zeros(batch, groups, state_width, heads // groups * head_width)
    else:
        grouped = state_BHKN.to(dt_BLH.dtype).unflatten(1, (groups, -1))
        state = grouped.permute(0, 1, 4, 2, 3).flatten(3)
    with torch.autocast(x_BLHK.device.type, enabled=False):
        y_BLHK, state = core(x_BLHK, dt_BLH, a_H.to(dt_BLH.dtype), b_BLGN, c_BLGN, starts_BL, state, size)
    state_BHKN = state.unflatten(3, (-1, head_width)).permute(0, 1, 3, 4, 2).flatten(1, 2)
    return y_BLHK[:, :length], state_BHKN
