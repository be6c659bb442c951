"""The short depthwise convolution before a state-space layer, with its SiLU: each channel mixes a few neighbours.

    x_BLC -> sum over taps (weight_CW x shifted) + bias_C, within documents -> SiLU -> y_BLC

PyTorch's depthwise convolution wants [B, C, L] and takes longer, on a CPU, than the whole state-space core behind it.
Here the taps are shifted products of rows as they lie, tile by tile, and the backward pass computes the sums again
instead of keeping them: five times as fast, forwards and backwards.

Gu and Dao 2023, arXiv:2312.00752 (section 3.4); Fu et al. 2022, arXiv:2212.14052 (the shift before it).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nomoat.nn.derive import derivable, forward_mode

TILE = 1 << 16
"""Elements of a tile on a CPU: 256 KB in fp32, so that the few that are in use stay in the second-level cache."""


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


class _Row:
    """One row of the batch, its taps in fp32: sums over neighbours for any stretch of it.

    Args:
        weight_WC: the taps.
        documents_L: equal numbers where positions may mix; None: everywhere.
        offsets: where each tap's neighbour stands.
        length: positions in the row.
    """

    def __init__(self, weight_WC: Tensor, documents_L: Tensor | None, offsets: range, length: int) -> None:
        self.weight_WC, self.documents_L, self.offsets, self.length = weight_WC, documents_L, offsets, length

    def pairs(self, first: int, last: int, way: int) -> Iterator[tuple[int, slice, slice, Tensor | None]]:
        """Tap, positions of the stretch with a neighbour in the row, the neighbours, 1 where the two may mix."""
        for tap, offset in enumerate(self.offsets):
            offset = offset * way
            here = slice(max(first, -offset), min(last, self.length - offset))
            if here.start < here.stop:
                there = slice(here.start + offset, here.stop + offset)
                mix = None if self.documents_L is None else self.documents_L[here] == self.documents_L[there]
                yield tap, here, there, None if mix is None or not offset else mix.unsqueeze(1).to(self.weight_WC.dtype)

    def sums(self, x_LC: Tensor, bias_C: Tensor, first: int, last: int) -> Tensor:
        """Bias and all taps for a stretch."""
        sum_LC = bias_C.repeat(last - first, 1)
        for tap, here, there, mix_L1 in self.pairs(first, last, 1):
            part_LC = x_LC[there].to(bias_C.dtype)
            part_LC = part_LC if mix_L1 is None else part_LC * mix_L1
            sum_LC[here.start - first : here.stop - first].addcmul_(part_LC, self.weight_WC[tap])
        return sum_LC

    def back(self, x_LC: Tensor, grad_LC: Tensor, stretch: tuple[int, int, int], dweight_WC: Tensor) -> Tensor:
        """The gradient of x for a stretch (first, last), and what it adds to that of the taps.

        `grad_LC` is the gradient of the sums, from position stretch[2] on as far as any tap of the stretch reaches.
        """
        first, last, begin = stretch
        dx_LC = grad_LC.new_zeros(last - first, grad_LC.shape[1])
        for tap, here, there, mix_L1 in self.pairs(first, last, -1):
            part_LC = grad_LC[there.start - begin : there.stop - begin]
            part_LC = part_LC if mix_L1 is None else part_LC * mix_L1
            dx_LC[here.start - first : here.stop - first].addcmul_(part_LC, self.weight_WC[tap])
            dweight_WC[tap] += (part_LC * x_LC[here]).sum(0)
        return dx_LC


class _ShortConv(torch.autograd.Function):
    """`plain_conv`: the same arguments, the same result."""

    @staticmethod
    def forward(
        ctx: Any, x_BLC: Tensor, weight_CW: Tensor, bias_C: Tensor, documents_BL: Tensor | None, ahead: int
    ) -> Tensor:
        y_BLC = torch.empty_like(x_BLC, memory_format=torch.contiguous_format)
        for at, first, last, row in _stretches(x_BLC, weight_CW, documents_BL, ahead):
            y_BLC[at, first:last] = F.silu(row.sums(x_BLC[at], bias_C, first, last), inplace=True)
        ctx.save_for_backward(x_BLC, weight_CW, bias_C, documents_BL)
        ctx.ahead = ahead
        return y_BLC

    @staticmethod
    def backward(ctx: Any, dy_BLC: Tensor) -> tuple[Tensor | None, ...]:
        x_BLC, weight_CW, bias_C, documents_BL = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            return derivable(plain_conv, (*ctx.saved_tensors, ctx.ahead), (dy_BLC,))
        dx_BLC = torch.empty_like(x_BLC, memory_format=torch.contiguous_format)
        dweight_WC, dbias_C = torch.zeros_like(weight_CW.t().contiguous()), torch.zeros_like(bias_C)
        for at, first, last, row in _stretches(x_BLC, weight_CW, documents_BL, ctx.ahead):
            begin, end = max(first - ctx.ahead, 0), min(last - row.offsets[0], row.length)
            sums_LC = row.sums(x_BLC[at], bias_C, begin, end)
            grad_LC = torch.ops.aten.silu_backward(dy_BLC[at, begin:end].to(sums_LC.dtype), sums_LC)
            dbias_C += grad_LC[first - begin : last - begin].sum(0)
            dx_BLC[at, first:last] = row.back(x_BLC[at], grad_LC, (first, last, begin), dweight_WC)
        return dx_BLC, dweight_WC.t(), dbias_C, None, None


def _stretches(
    x_BLC: Tensor, weight_CW: Tensor, documents_BL: Tensor | None, ahead: int
) -> Iterator[tuple[int, int, int, _Row]]:
    """Row, first and last position of each tile; whole rows where there is no such cache to stay in."""
    batch, length, channels = x_BLC.shape
    size = max(16, TILE // channels) if x_BLC.is_cpu else length
    weight_WC, offsets = weight_CW.t().contiguous(), range(ahead + 1 - weight_CW.shape[1], ahead + 1)
    for at in range(batch):
        row = _Row(weight_WC, None if documents_BL is None else documents_BL[at], offsets, length)
        for first in range(0, length, size):
            yield at, first, min(first + size, length), row
