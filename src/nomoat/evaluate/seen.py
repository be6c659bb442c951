"""Pictures as they are seen: three checks at the door, then rounded to the 256 levels that a file has.

    image_NCYX in [-1, 1], from a data set or from a model -> image_NCYX, in [-1, 1], in steps of 2 / 255

Without the rounding a model's pictures would differ from real ones by what nobody can see (Parmar et al. 2022,
arXiv:2104.11222, found that such details move published distances).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nomoat.core.errors import DataError

SLACK = 1e-3


def as_seen(pictures: Tensor, what: str, drawn: bool = False) -> Tensor:
    """Return the pictures rounded to 8 bits, as float32 on the CPU.

    Args:
        pictures: floats in [-1, 1], [N, C, Y, X]; C is 1 or 3.
        what: how an error names them.
        drawn: whether a model made them: what it draws beyond [-1, 1] is cut off, as in a file.

    Raises:
        DataError: they are not pictures.
    """
    shape = tuple(pictures.shape)
    if pictures.ndim != 4 or shape[1] not in (1, 3) or not all(shape[1:]):
        raise DataError(f"{what}: a tensor {list(shape)} is no pictures", "pictures are [N, 1 or 3, rows, columns]")
    if not pictures.is_floating_point():
        fix = "divide bytes by 127.5 and take away 1"
        raise DataError(f"{what}: {pictures.dtype} where floats in [-1, 1] are read", fix=fix)
    image = pictures.detach().to("cpu", torch.float32)
    if not torch.isfinite(image).all():
        broken = int((~torch.isfinite(image)).flatten(1).any(1).sum())
        why = "the model's weights or its solver have run away" if drawn else ""
        raise DataError(f"{what}: {broken:,} of {len(image):,} hold values that are no numbers", why)
    if not drawn and len(image) and float(image.abs().max()) > 1 + SLACK:
        low, high = float(image.min()), float(image.max())
        raise DataError(f"{what}: values from {low:.3g} to {high:.3g}", "pictures are in [-1, 1]", "scale them")
    return ((image.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def as_colour(image_NCYX: Tensor) -> Tensor:
    """Grey pictures with their one channel three times; colour as it is."""
    return image_NCYX.expand(-1, 3, -1, -1) if image_NCYX.shape[1] == 1 else image_NCYX
