"""Augmentations that a gradient passes: pictures moved, with a piece cut out, in other colours.

    image_BCYX, chance [B, DRAWS] in [0, 1) -> other colours -> moved -> a square cut out -> image_BCYX

A discriminator that sees real and generated pictures through the same augmentations needs fewer real ones, and what it
tells the generator comes back through them. The chance is drawn outside, and of strength 0 nothing is done at all.
Zhao et al. 2020, arXiv:2006.10738. There a moved picture is filled up with grey; here its edge is repeated, which
leaves no frame behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nomoat.core.errors import ConfigError

DRAWS = 7
"""Numbers a picture: brightness, saturation, contrast, rows and columns moved, row and column of the cut."""


@dataclass(frozen=True)
class Augment:
    """How strongly; the paper's strengths are 0.125, 0.5 and 1.

    Args:
        translation: how far a picture moves at most, as a share of its side.
        cutout: side of the square that becomes grey, as a share of the picture's; its centre may lie anywhere.
        colour: 1: brightness up to 0.5 up or down, saturation 0 to 2 times, contrast 0.5 to 1.5 times.
    """

    translation: float = 0.0
    cutout: float = 0.0
    colour: float = 0.0

    def __post_init__(self) -> None:
        for name in ("translation", "cutout", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name} must lie between 0 and 1", f"it is {getattr(self, name)}")

    def __call__(self, image_BCYX: Tensor, chance_BK: Tensor) -> Tensor:
        """The pictures, each by its own chance [B, DRAWS]; as many rows as pictures."""
        if self.colour:
            image_BCYX = coloured(image_BCYX, chance_BK[:, :3], self.colour)
        if self.translation:
            image_BCYX = moved(image_BCYX, chance_BK[:, 3:5], self.translation)
        if self.cutout:
            image_BCYX = cut(image_BCYX, chance_BK[:, 5:7], self.cutout)
        return image_BCYX


def coloured(image_BCYX: Tensor, chance_BK: Tensor, strength: float) -> Tensor:
    """Brightness, saturation and contrast by three numbers a picture; 0.5 leaves a picture as it is."""
    light_B111, colour_B111, contrast_B111 = ((chance_BK - 0.5) * strength).T[..., None, None, None]
    image_BCYX = image_BCYX + light_B111
    grey_B1YX = image_BCYX.mean(1, keepdim=True)
    image_BCYX = grey_B1YX + (image_BCYX - grey_B1YX) * (1 + 2 * colour_B111)
    mean_B111 = image_BCYX.mean((1, 2, 3), keepdim=True)
    return mean_B111 + (image_BCYX - mean_B111) * (1 + contrast_B111)


def moved(image_BCYX: Tensor, chance_BK: Tensor, most: float) -> Tensor:
    """Moved by whole pixels, up to `most` of the side either way, by two numbers a picture."""
    batch, channels, height, width = image_BCYX.shape
    rows_BY, columns_BX = (
        (torch.arange(side, device=image_BCYX.device) + shift_B[:, None]).clamp(0, side - 1)
        for side, shift_B in (
            (height, _pixels(chance_BK[:, 0], most * height)),
            (width, _pixels(chance_BK[:, 1], most * width)),
        )
    )
    image_BCYX = image_BCYX.gather(2, rows_BY[:, None, :, None].expand(batch, channels, height, width))
    return image_BCYX.gather(3, columns_BX[:, None, None, :].expand(batch, channels, height, width))


def cut(image_BCYX: Tensor, chance_BK: Tensor, share: float) -> Tensor:
    """A square of `share` of the side made grey (0), about a centre by two numbers a picture."""
    far_BY, far_BX = (
        (torch.arange(side, device=image_BCYX.device) + 0.5 - chance * side).abs() >= share * side / 2
        for side, chance in ((size, chance_BK[:, axis, None]) for axis, size in enumerate(image_BCYX.shape[2:]))
    )
    return image_BCYX * (far_BY[:, None, :, None] | far_BX[:, None, None, :])


def _pixels(chance_B: Tensor, most: float) -> Tensor:
    """Whole pixels from -most to most."""
    whole = int(most)
    return (chance_B * (2 * whole + 1)).long().clamp(max=2 * whole) - whole
