"""The short depthwise convolution before a state-space layer, with its SiLU: each channel mixes a few neighbours.

    x_BLC -> sum over taps (weight_CW x shifted) + bias_C, within documents -> SiLU -> y_BLC

PyTorch's depthwise convolution wants [B, C, L] and takes longer, on a CPU, than the whole state-space core behind it.
Here the taps are shifted products of rows as they lie, tile by tile, and the backward pass computes the sums again
instead of keeping them: about four times as fast, forwards and backwards.

Gu and Dao 2023, arXiv:2312.00752 (section 3.4); Fu et al. 2022, arXiv:2212.14052 (the shift before it).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nomoat.nn.derive import derivable, forward_mode

TILE = 1 << 16
"""Elements of a tile, a CPU thread: 256 KB in fp32, so that those in use stay in the second-level cache."""


def short_conv(
    x_BLC: Tensor, weight_CW: Tensor, bias_C: Tensor, documents_BL: Tensor | None = None, ahead: int = 0
) -> Tensor:
    """SiLU of the convolution, [B, L, C]; beyond both ends of the row, and of the document, stand zeros.

    Args:
        x_BLC: the rows, in the dtype of the result; sums are made in that of the weights.
        weight_CW: the taps of each channel, the earliest position first.
        bias_C: added to the sum.
        documents_BL: equal numbers where positions may mix; None: everywhere.
        ahead: how many of the W taps lie after the position.
    """
    inputs = (x_BLC, weight_CW, bias_C, documents_BL, ahead)
    return plain_conv(*inputs) if forward_mode(inputs) else _ShortConv.apply(*inputs)


def plain_conv(
    x_BLC: Tensor, weight_CW: Tensor, bias_C: Tensor, documents_BL: Tensor | None = None, ahead: int = 0
) -> Tensor:
    """The same in ordinary operations, which can be derived in any way."""
    length, width = x_BLC.shape[1], weight_CW.shape[1]
    ends = (width - 1 - ahead, ahead)
    padded_BLC = F.pad(x_BLC.to(weight_CW.dtype), (0, 0, *ends))
    sum_BLC = bias_C
    for tap in range(width):
        part_BLC = padded_BLC[:, tap : tap + length]
        if documents_BL is not None:
            shifted_BL = F.pad(documents_BL, ends, value=-1)[:, tap : tap + length]
            part_BLC = part_BLC * (shifted_BL == documents_BL).unsqueeze(2)
        sum_BLC = sum_BLC + part_BLC * weight_CW[:, tap]
    return F.silu(sum_BLC).to(x_BLC.dtype)


def conv_step(x_BWC: Tensor, weight_CW: Tensor, bias_C: Tensor) -> Tensor:
    """The last position alone, [B, 1, C], from the W positions that it sees: one step of decoding."""
    sum_B1C = (x_BWC * weight_CW.t()).sum(1, keepdim=True) + bias_C
    return F.silu(sum_B1C).to(x_BWC.dtype)


class _Tile(NamedTuple):
    """A stretch of one row of the batch."""

    row: int
    first: int
    last: int

    def of(self, x_BLC: Tensor, before: int, after: int, dtype: torch.dtype) -> Tensor:
        """The stretch of x and that many positions before and after it, zeros beyond the ends of the row."""
        begin, end = self.first - before, self.last + after
        low, high = max(begin, 0), min(end, x_BLC.shape[1])
        part_LC = x_BLC[self.row, low:high].to(dtype)
        return part_LC if (low, high) == (begin, end) else F.pad(part_LC, (0, 0, low - begin, end - high))


def _tiles(x_BLC: Tensor) -> Iterator[_Tile]:
    """All of x; whole rows where there is no such cache to stay in."""
    batch, length, channels = x_BLC.shape
    size = max(16, TILE * torch.get_num_threads() // channels) if x_BLC.is_cpu else length
    for row in range(batch):
        for first in range(0, length, size):
            yield _Tile(row, first, min(first + size, length))


def _neighbours(x_MC: Tensor, documents_M1: Tensor | None, width: int, centre: int) -> Iterator[Tensor]:
    """The neighbours that each tap sees [M - width + 1, C], the earliest first; zeros where they may not mix."""
    length = len(x_MC) - width + 1
    for tap in range(width):
        part_LC = x_MC[tap : tap + length]
        if documents_M1 is not None and tap != centre:
            mix_L1 = documents_M1[tap : tap + length] == documents_M1[centre : centre + length]
            part_LC = part_LC * mix_L1.to(x_MC.dtype)
        yield part_LC


class _ShortConv(torch.autograd.Function):
    """`plain_conv`: the same arguments, the same result."""

    @staticmethod
    def forward(
        ctx: Any, x_BLC: Tensor, weight_CW: Tensor, bias_C: Tensor, documents_BL: Tensor | None, ahead: int
    ) -> Tensor:
        """SiLU of the sums over taps."""
        y_BLC = torch.empty_like(x_BLC, memory_format=torch.contiguous_format)
        weight_WC, behind = weight_CW.t().contiguous(), weight_CW.shape[1] - 1 - ahead
        for tile in _tiles(x_BLC):
            documents_M1 = (
                None if documents_BL is None else tile.of(documents_BL.unsqueeze(2), behind, ahead, torch.int64)
            )
            x_MC = tile.of(x_BLC, behind, ahead, bias_C.dtype)
            sum_LC = _sums(x_MC, documents_M1, weight_WC, bias_C, behind)
            y_BLC[tile.row, tile.first : tile.last] = F.silu(sum_LC, inplace=True)
        ctx.save_for_backward(x_BLC, weight_CW, bias_C, documents_BL)
        ctx.ahead = ahead
        return y_BLC

    @staticmethod
    def backward(ctx: Any, dy_BLC: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias; the sums are computed again, for a margin around the tile too."""
        x_BLC, weight_CW, bias_C, documents_BL = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            return derivable(plain_conv, (*ctx.saved_tensors, ctx.ahead), (dy_BLC,))
        ahead, more = ctx.ahead, weight_CW.shape[1] - 1
        behind, dtype = more - ahead, bias_C.dtype
        dx_BLC = torch.empty_like(x_BLC, memory_format=torch.contiguous_format)
        weight_WC = weight_CW.t().contiguous()
        dweight_WC, dbias_C, turned_WC = torch.zeros_like(weight_WC), torch.zeros_like(bias_C), weight_WC.flip(0)
        for tile in _tiles(x_BLC):
            documents_M1 = near_M1 = None
            if documents_BL is not None:
                documents_M1 = tile.of(documents_BL.unsqueeze(2), more, more, torch.int64)
                near_M1 = documents_M1[behind : len(documents_M1) - ahead]
            x_MC = tile.of(x_BLC, more, more, dtype)
            sum_LC = _sums(x_MC, documents_M1, weight_WC, bias_C, behind)
            grad_LC = torch.ops.aten.silu_backward(tile.of(dy_BLC, ahead, behind, dtype), sum_LC)
            length = tile.last - tile.first
            x_LC, dbias_C = x_MC[more : more + length], dbias_C + grad_LC[ahead : ahead + length].sum(0)
            dx_LC = torch.zeros_like(x_LC)
            for tap, part_LC in enumerate(_neighbours(grad_LC, near_M1, more + 1, ahead)):
                dx_LC.addcmul_(part_LC, turned_WC[tap])
                dweight_WC[more - tap] += (part_LC * x_LC).sum(0)
            dx_BLC[tile.row, tile.first : tile.last] = dx_LC
        return dx_BLC, dweight_WC.t(), dbias_C, None, None


def _sums(x_MC: Tensor, documents_M1: Tensor | None, weight_WC: Tensor, bias_C: Tensor, centre: int) -> Tensor:
    """Bias and all taps, [M - W + 1, C]."""
    first_LC, *rest = _neighbours(x_MC, documents_M1, len(weight_WC), centre)
    sum_LC = torch.addcmul(bias_C, first_LC, weight_WC[0])
    for part_LC, weight_C in zip(rest, weight_WC[1:], strict=True):
        sum_LC.addcmul_(part_LC, weight_C)
    return sum_LC
