"""Pictures changed by chance before they are learned from, so that a small set does not run out.

    image_BCYX -> cut, turned, mirrored (one affine map each, bilinear) -> brightness, contrast, saturation -> image

All of it at once for a whole batch, and every number comes from the generator that is passed: it is for `draw`.
Off unless asked for. Simard et al. 2003 (affine distortions); Krizhevsky et al. 2012 (crops and colours).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nomoat.core.errors import ConfigError


@dataclass(frozen=True)
class Augment:
    """How pictures are changed by chance.

    Args:
        crop: least share of a side that is kept, then enlarged to the whole; 1: nothing is cut.
        turn: largest turn either way, in degrees; what comes in from outside repeats the edge.
        flip: mirror every second picture. Off by default: captions speak of left and right, and letters have a side.
        colour: largest change of brightness (of the half range), contrast and saturation, as a share. Hues are left
            alone, because captions name them.
    """

    crop: float = 1.0
    turn: float = 0.0
    flip: bool = False
    colour: float = 0.0

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("crop", 0 < self.crop <= 1, "above 0, at most 1; 1 cuts nothing"),
            ("turn", 0 <= self.turn <= 180, "0 to 180 degrees"),
            ("colour", 0 <= self.colour < 1, "0 or more, below 1"),
        ):
            if not holds:
                raise ConfigError(f"augment.{name} {getattr(self, name)!r} cannot be used", fix=f"allowed: {allowed}")

    def apply(self, image_BCYX: Tensor, generator: torch.Generator) -> Tensor:
        """The pictures changed, each by chance of its own; in [-1, 1] as they came."""
        if self.crop < 1 or self.turn or self.flip:
            image_BCYX = _moved(image_BCYX, self, generator)
        if self.colour:
            image_BCYX = _coloured(image_BCYX, self.colour, generator)
        return image_BCYX


def _moved(image_BCYX: Tensor, how: Augment, generator: torch.Generator) -> Tensor:
    kept_B, turn_B, mirror_B, right_B, down_B = torch.rand(5, len(image_BCYX), generator=generator)
    scale_B = how.crop + (1 - how.crop) * kept_B
    angle_B = math.radians(how.turn) * (2 * turn_B - 1)
    side_B = torch.where(mirror_B < 0.5, -1.0, 1.0) if how.flip else torch.ones_like(mirror_B)
    cos_B, sin_B = scale_B * angle_B.cos(), scale_B * angle_B.sin()
    # Rows of the map from a place in the new picture to the place in the old one, both from -1 to 1.
    rows = [cos_B * side_B, -sin_B, (1 - scale_B) * (2 * right_B - 1)]
    rows += [sin_B * side_B, cos_B, (1 - scale_B) * (2 * down_B - 1)]
    map_B23 = torch.stack(rows, 1).view(-1, 2, 3).to(image_BCYX)
    grid = F.affine_grid(map_B23, list(image_BCYX.shape), align_corners=False)
    return F.grid_sample(image_BCYX, grid, padding_mode="border", align_corners=False)


def _coloured(image_BCYX: Tensor, most: float, generator: torch.Generator) -> Tensor:
    chance_3B = most * (2 * torch.rand(3, len(image_BCYX), generator=generator) - 1)
    brighter, contrast, saturation = chance_3B.to(image_BCYX)[..., None, None, None]
    grey = image_BCYX.mean(1, keepdim=True)
    image_BCYX = grey + (image_BCYX - grey) * (1 + saturation)
    middle = image_BCYX.mean((1, 2, 3), keepdim=True)
    return (middle + (image_BCYX - middle) * (1 + contrast) + brighter).clamp(-1, 1)
