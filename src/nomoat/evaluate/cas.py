"""Classifier accuracy score: what a classifier learns from drawn pictures, asked of real ones.

    drawn pictures, what was asked for -> classifier \\
    real training pictures, labels     -> classifier  -> held-out real pictures -> share that it calls right
    the most frequent class            ------------- /

Both classifiers are the same small net with the same seed, steps and number of pictures. A score near the real one
says that the drawn pictures hold what tells the classes apart, in its variety; a few fine pictures a class do not do.

Ravuri and Vinyals 2019, arXiv:1905.10887.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nomoat.core.device import generator
from nomoat.core.errors import DataError
from nomoat.evaluate.bits import Watch
from nomoat.evaluate.classifier import STEPS, train
from nomoat.evaluate.figure import Figure, plain, wilson
from nomoat.evaluate.seen import as_seen


@dataclass(frozen=True)
class AccuracyScore:
    """How well a classifier does on held-out real pictures.

    Args:
        drawn: trained on drawn pictures.
        real: trained on as many real ones: the ceiling.
        chance: by always naming the most frequent class: the floor.
        classes: how many there are.
        pictures: that each classifier was trained on.
        tested: real pictures that it was asked about.
        steps, seed: of both trainings.
    """

    drawn: Figure
    real: Figure
    chance: Figure
    classes: int
    pictures: int
    tested: int
    steps: int
    seed: int

    @property
    def verdict(self) -> str:
        """In plain words."""
        share = (
            f"{self.drawn.value:.0%} of real pictures right, {self.real.value:.0%} when trained on as many real ones"
        )
        if self.drawn.low <= self.chance.value:
            return f"A classifier learns nothing of its classes from its pictures ({share})."
        return f"A classifier trained on its pictures alone calls {share}."

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**plain(self), "verdict": self.verdict}


@dataclass(frozen=True)
class Labelled:
    """Pictures [N, C, Y, X] and the class [N] of each, numbered from 0."""

    image_NCYX: Tensor
    label_N: Tensor

    def some(self, count: int, seed: int, what: str) -> tuple[Tensor, Tensor]:
        """So many of them, as they are seen, in an order of chance."""
        if len(self.image_NCYX) != len(self.label_N):
            raise DataError(f"{what}: {len(self.label_N):,} labels for {len(self.image_NCYX):,} pictures")
        order_N = torch.randperm(len(self.label_N), generator=generator(seed, "accuracy", what))[:count]
        return as_seen(self.image_NCYX[order_N], what, drawn=what == "drawn pictures"), self.label_N[order_N]


def accuracy_score(
    drawn: Labelled,
    training: Labelled,
    held_out: Labelled,
    classes: int,
    steps: int = STEPS,
    seed: int = 0,
    device: torch.device | None = None,
    watch: Watch | None = None,
) -> AccuracyScore:
    """Train on drawn and on as many real pictures; ask both about held-out real ones.

    Args:
        drawn: what was drawn, and the classes that were asked for.
        training: real pictures.
        held_out: other real pictures.
        classes: how many there are.
        steps: of each training.
        seed: of each training.
        device: where.
        watch: told of their progress.

    Raises:
        DataError: fewer than two classes, no pictures, or labels that are not theirs.
    """
    if classes < 2:
        raise DataError(f"{classes} classes: there is nothing to tell apart", fix="leave the accuracy score out")
    count = min(len(drawn.label_N), len(training.label_N))
    if not count or not len(held_out.label_N):
        raise DataError("the accuracy score needs drawn, training and held-out pictures", "one of the three is empty")
    test_NCYX, truth_N = held_out.some(len(held_out.label_N), seed, "held-out pictures")
    figures = []
    for what, side in (("drawn pictures", drawn), ("training pictures", training)):
        taught = train(*side.some(count, seed, what), classes, steps, seed, device, watch)
        figures.append(wilson(int((taught.labels(test_NCYX) == truth_N).sum()), len(truth_N)))
    frequent = int(torch.bincount(training.label_N).argmax())
    chance = wilson(int((truth_N == frequent).sum()), len(truth_N))
    return AccuracyScore(figures[0], figures[1], chance, classes, count, len(truth_N), steps, seed)
