"""Pictures by search: of several noises the one whose picture a judge likes best, and a second judge who reports.

    prompts -> noise [B, ...] x N -> draw -> images -> chooser: score_B -> the best so far
    zero-order: neighbours of the best noise, sqrt(1 - r^2) x + r e, are the next to be tried
    after 1, 2, 4, ... tries: what the chooser says, what the reporter says, how different the pictures are

A chooser that is searched against long enough is fooled: its score grows while the reporter's falls. That is why the
two are never the same. Ma et al. 2025, arXiv:2501.09732 (search over noises; zero-order search).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nomoat.core.errors import ConfigError, nearest
from nomoat.core.types import Batch
from nomoat.sampling.drawing import noise

WAYS = ("best-of-n", "zero-order")

Draw = Callable[[Batch], Tensor]
"""Prompts with `noise` [B, ...] -> images [B, C, Y, X]."""
Judge = Callable[[Tensor, Batch], Tensor]
"""Images and their prompts -> how good each is, [B]."""


@dataclass(frozen=True)
class Search:
    """How noises are searched.

    Args:
        tries: pictures that are drawn for each that is asked for.
        way: `best-of-n`: all noises are new; `zero-order`: after the first quarter, neighbours of the best.
        radius: r of neighbours, in (0, 1].
        seed: of all noises.
    """

    tries: int = 16
    way: str = "best-of-n"
    radius: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise ConfigError(
                f"there is no way `{self.way}`", f"there is {' and '.join(WAYS)}", nearest(self.way, WAYS)
            )
        if self.tries < 1 or not 0 < self.radius <= 1:
            raise ConfigError(
                f"{self.tries} tries with radius {self.radius} cannot be", "1 or more; above 0, at most 1"
            )


class Tried(NamedTuple):
    """Where a search stands after some tries.

    Args:
        tries: that were made for each picture.
        chosen: the chooser's mean score of the best pictures.
        reported: the reporter's mean score of the same pictures; None: there is no reporter.
        spread: mean distance of two of the pictures, root of the mean square difference: how different they are.
    """

    tries: int
    chosen: float
    reported: float | None
    spread: float


class Found(NamedTuple):
    """What a search has found.

    Args:
        image: [B, C, Y, X], the best.
        noise: [B, ...], theirs.
        course: after 1, 2, 4, ... tries, and all.
    """

    image: Tensor
    noise: Tensor
    course: list[Tried]

    @property
    def warning(self) -> str:
        """What the reporter exposes; empty where it exposes nothing."""
        told = [each.reported for each in self.course if each.reported is not None]
        first, last = self.course[0], self.course[-1]
        if len(told) > 1 and last.chosen > first.chosen and told[-1] < max(told) - 0.05 * (abs(max(told)) + 1e-9):
            best = self.course[told.index(max(told))].tries
            return f"the judge that chooses is fooled: beyond {best} tries the second judge finds the pictures worse"
        return ""


def searched(
    draw: Draw, prompts: Batch, shape: tuple[int, ...], how: Search, chooser: Judge, reporter: Judge | None = None
) -> Found:
    """Draw each picture several times, from other noises, and keep what the chooser likes best.

    Args:
        draw: the model.
        prompts: one row a picture.
        shape: of a picture's noise.
        how: how noises are searched.
        chooser: whose word counts.
        reporter: another judge, who is only asked.
    """
    rows = int(prompts.get("rows", 0)) or len(next(v for v in prompts.values() if isinstance(v, Tensor) and v.ndim))
    best_B = torch.full((rows,), -torch.inf)
    image_kept, noise_kept = torch.zeros(0), torch.zeros(0)
    course = list[Tried]()
    with torch.no_grad():
        for number in range(1, how.tries + 1):
            begin = _begin(number - 1, rows, shape, how, noise_kept)
            image = draw({**prompts, "noise": begin})
            score_B = chooser(image, prompts).float().cpu()
            if number == 1:
                image_kept, noise_kept = image.clone(), begin.clone()
            better_B = score_B > best_B
            image_kept[better_B], noise_kept[better_B] = image[better_B], begin[better_B]
            best_B = torch.where(better_B, score_B, best_B)
            if number & (number - 1) == 0 or number == how.tries:
                told = None if reporter is None else float(reporter(image_kept, prompts).float().mean())
                course.append(Tried(number, float(best_B.mean()), told, spread(image_kept)))
    return Found(image_kept, noise_kept, course)


def _begin(number: int, rows: int, shape: tuple[int, ...], how: Search, best: Tensor) -> Tensor:
    """The noises of one try."""
    new = noise(rows, shape, how.seed, 0, "noise" if not number else f"noise {number}")
    if how.way == "zero-order" and 4 * number >= how.tries and number:
        new = (1 - how.radius**2) ** 0.5 * best + how.radius * new
    return new


def spread(image: Tensor) -> float:
    """Root of the mean square difference of two pictures, over all pairs; 0 for one picture."""
    flat = image.float().flatten(1)
    if len(flat) < 2:
        return 0.0
    return float(torch.pdist(flat).mean() / flat.shape[1] ** 0.5)
