"""How far drawn pictures follow a control picture: the silhouette under a mask, the edges under an outline.

    image -> what is not background -> filled -> silhouette_BYX;  its border -> edges_BYX
    mask, filled, against silhouette -> |both| / |either|     outline against edges, one pixel apart at most -> F-score

What lies within an outline counts as inside, of both: whether it is white or a hole no picture tells. Beside each
figure stand what the true pictures come to, read in the same way, and the same figure against the control picture of
another sample (half a batch away: neighbours are often alike): what is had without following.

Van Rijsbergen 1979 (F-score); Martin et al. 2004 (edges that match within a distance).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nomoat.core.errors import ConfigError, DataError, nearest
from nomoat.core.types import Batch, Generates
from nomoat.evaluate.bits import interval

APART = 0.15
"""By how much of the range from black to white a pixel differs from the background, at least, in some channel."""


@dataclass(frozen=True)
class Followed:
    """A figure of pictures drawn under control pictures.

    Args:
        name: of the figure.
        value: mean over pictures.
        low, high: its 95 % interval over pictures.
        shuffled: the same against the control pictures of others.
        count: pictures.
        true: what the true pictures come to, read in the same way; None: there were none.
    """

    name: str
    value: float
    low: float
    high: float
    shuffled: float
    count: int
    true: float | None = None

    def __str__(self) -> str:
        ceiling = "" if self.true is None else f"; true pictures {self.true:.3f}"
        return (
            f"{self.name}: {self.value:.3f} (95 %: {self.low:.3f} to {self.high:.3f}){ceiling}; against the control "
            f"pictures of others {self.shuffled:.3f}; of {self.count:,}"
        )


def silhouette(image_BCYX: Tensor) -> Tensor:
    """What is not background, filled [B, Y, X]: the background is the median colour of the picture's border."""
    rim_BCN = torch.cat(
        (image_BCYX[:, :, 0], image_BCYX[:, :, -1], image_BCYX[:, :, 1:-1, 0], image_BCYX[:, :, 1:-1, -1]), 2
    )
    ground_BC11 = rim_BCN.median(2).values[..., None, None]
    return filled(((image_BCYX - ground_BC11).abs().amax(1) / 2) > APART)


def filled(mask_BYX: Tensor) -> Tensor:
    """A mask with all that cannot be reached from the picture's edge, going up, down, left and right."""
    free_BYX = ~mask_BYX
    outside_BYX = free_BYX.clone()
    outside_BYX[:, 1:-1, 1:-1] = False
    while True:
        grown_BYX = (outside_BYX | _beside(outside_BYX)) & free_BYX
        if torch.equal(grown_BYX, outside_BYX):
            return ~outside_BYX
        outside_BYX = grown_BYX


def border(mask_BYX: Tensor) -> Tensor:
    """The pixels of a mask that touch what is outside, above, below, left or right; the picture's edge is inside."""
    return mask_BYX & _beside(~mask_BYX)


def _beside(mask_BYX: Tensor) -> Tensor:
    """The pixels above, below, left and right of those of a mask."""
    wide = F.pad(mask_BYX, (1, 1, 1, 1), value=False)
    return wide[:, :-2, 1:-1] | wide[:, 2:, 1:-1] | wide[:, 1:-1, :-2] | wide[:, 1:-1, 2:]


def overlap(one_BYX: Tensor, other_BYX: Tensor) -> Tensor:
    """Intersection over union [B] of masks; 1 where both are empty."""
    both_B, either_B = (one_BYX & other_BYX).sum((1, 2)), (one_BYX | other_BYX).sum((1, 2))
    return torch.where(either_B > 0, both_B / either_B.clamp(min=1), 1.0)


def edge_score(found_BYX: Tensor, true_BYX: Tensor, apart: int = 1) -> Tensor:
    """F-score [B] of edge pixels: each counts as right where the other set has one at most `apart` pixels away."""
    right_B = _share(found_BYX, _near(true_BYX, apart))
    complete_B = _share(true_BYX, _near(found_BYX, apart))
    return 2 * right_B * complete_B / (right_B + complete_B).clamp(min=1e-9)


def _near(edges_BYX: Tensor, apart: int) -> Tensor:
    return F.max_pool2d(edges_BYX.float()[:, None], 2 * apart + 1, 1, apart)[:, 0] > 0


def _share(edges_BYX: Tensor, near_BYX: Tensor) -> Tensor:
    """Share [B] of edge pixels that lie near others; of none at all 1 where there are no others, else 0."""
    count_B, empty_B = edges_BYX.sum((1, 2)), ~near_BYX.flatten(1).any(1)
    found_B = (edges_BYX & near_BYX).sum((1, 2)) / count_B.clamp(min=1)
    return torch.where(count_B > 0, found_B, empty_B.float())


KINDS = {"mask": "silhouette IoU", "edges": "edge F-score"}


def agreement(image_BCYX: Tensor, hint_BHYX: Tensor, kind: str) -> Tensor:
    """How far each picture follows a control picture, by the outer shapes of both, [B] in [0, 1].

    Args:
        image_BCYX: drawn pictures in [-1, 1], on one colour.
        hint_BHYX: control pictures in [0, 1]; whatever is above a half in any channel counts.
        kind: `mask` or `edges`.
    """
    shape_BYX, wanted_BYX = silhouette(image_BCYX), filled((hint_BHYX > 0.5).any(1))
    if kind == "mask":
        return overlap(shape_BYX, wanted_BYX)
    return edge_score(border(shape_BYX), border(wanted_BYX))


def followed(model: Generates, batches: Iterable[Batch], options: Any, kind: str = "mask") -> Followed:
    """Draw a picture for each control picture, and measure it against that one and against the next sample's.

    Args:
        model: reads `hint` and whatever else the batches hold.
        batches: prompts; two or more samples in each.
        options: a `Drawing`.
        kind: `mask` or `edges`.

    Raises:
        ConfigError: no such kind.
        DataError: batches without control pictures, or of one sample.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no figure for `{kind}`", f"there is {', '.join(KINDS)}", nearest(kind, KINDS))
    own, others, true, done = [], [], list[Tensor](), 0
    for batch in batches:
        if "hint" not in batch or len(batch["hint"]) < 2:
            raise DataError("a batch needs the control pictures of two samples or more")
        hint_BHYX = batch["hint"].cpu()
        prompts = {name: each for name, each in batch.items() if name not in ("image", "index")}
        drawn = model.generate({**prompts, "first": done}, options, torch.Generator())["image"].float().cpu()
        own.append(agreement(drawn, hint_BHYX, kind))
        others.append(agreement(drawn, hint_BHYX.roll(len(hint_BHYX) // 2, 0), kind))
        if "image" in batch:
            true.append(agreement(batch["image"].float().cpu(), hint_BHYX, kind))
        done += len(hint_BHYX)
    if not own:
        raise DataError("there is no control picture to follow")
    own_N, others_N = (torch.cat(each).double().numpy() for each in (own, others))
    low, high = interval(own_N, np.ones_like(own_N))
    ceiling = float(torch.cat(true).mean()) if true else None
    return Followed(KINDS[kind], float(own_N.mean()), low, high, float(others_N.mean()), len(own_N), ceiling)
