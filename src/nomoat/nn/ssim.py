"""Structural similarity of two pictures: 1 where they are the same, near 0 where their structure differs.

    a_BCYX, b_BCYX -> means, variances and covariance under a Gaussian window -> SSIM map -> its mean_B

    SSIM = (2 ma mb + C1) (2 sab + C2) / ((ma^2 + mb^2 + C1) (sa^2 + sb^2 + C2))

Wang, Bovik, Sheikh and Simoncelli 2004: window of 11 pixels with a deviation of 1.5, C1 = (0.01 span)^2 and
C2 = (0.03 span)^2.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW, DEVIATION = 11, 1.5


def ssim(a_BCYX: Tensor, b_BCYX: Tensor, span: float = 2.0) -> Tensor:
    """The similarity [B] of each pair of pictures, in fp32, with a gradient.

    Args:
        a_BCYX: pictures; those with fewer pixels a side than the window get a smaller one.
        b_BCYX: what they are held against.
        span: the greatest value less the smallest: 2 for pictures in [-1, 1].
    """
    with torch.autocast(a_BCYX.device.type, enabled=False):
        a_BCYX, b_BCYX = a_BCYX.float(), b_BCYX.float()
        rows, columns = (_windows(side, a_BCYX) for side in a_BCYX.shape[2:])
        maps = torch.stack((a_BCYX, b_BCYX, a_BCYX.square(), b_BCYX.square(), a_BCYX * b_BCYX))
        ma, mb, aa, bb, ab = (rows @ maps @ columns.T).unbind()
        first, second = (0.01 * span) ** 2, (0.03 * span) ** 2
        above = (2 * ma * mb + first) * (2 * (ab - ma * mb) + second)
        below = (ma.square() + mb.square() + first) * (aa - ma.square() + bb - mb.square() + second)
        return (above / below).flatten(1).mean(1)


def _windows(side: int, like: Tensor) -> Tensor:
    """The window at each place where it fits, as a matrix [places, side]: a blur is a product with it."""
    size = min(WINDOW, side - 1 + side % 2)
    bell = torch.exp(-0.5 * ((torch.arange(size, device=like.device) - size // 2) / DEVIATION).square())
    offset = torch.arange(side, device=like.device) - torch.arange(side - size + 1, device=like.device)[:, None]
    within = (offset >= 0) & (offset < size)
    return torch.where(within, (bell / bell.sum())[offset.clamp(0, size - 1)], 0.0)
