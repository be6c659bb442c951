"""Does a generator copy? For each picture it drew the nearest training picture, and how near real pictures are to it.

    samples, held-out real pictures -> nearest training picture of each, in features and in pixels
        -> median of the samples' distances / median of the held-out ones'            (1: as far as real pictures are)
        -> how often a sample is nearer than a held-out picture                       (50 %: as often as not)
        -> share of the samples that are nearer than the nearest 1 % of the held-out  (1 %: as many)
        -> the nearest pairs, with source, author and licence of the training picture

Training pictures are read once, in a stream, and compared with everything: nothing is approximate. Pixels are compared
at 32 px at most. A distance finds copies and near-copies; it says nothing of a style, or of a part that was copied.

After Meehan et al. 2020, arXiv:2004.05675 (samples nearer to the training set than held-out pictures are).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nomoat.core.errors import DataError
from nomoat.core.ledger import UNKNOWN
from nomoat.evaluate.bits import RESAMPLES, Watch
from nomoat.evaluate.classifier import small
from nomoat.evaluate.distances import squared
from nomoat.evaluate.features import Features
from nomoat.evaluate.figure import Figure, plain, wilson
from nomoat.evaluate.seen import as_seen

CHUNK = 512  # training pictures at a time
NEAREST_SHARE, FEWEST_NEAREST = 0.01, 10
COPY = 4.0
"""Pixels whose levels (0 to 255) differ by less than this, in the root of the mean square: the same picture."""


@dataclass(frozen=True)
class Nearness:
    """How near samples are to training pictures, beside held-out real pictures.

    Args:
        ratio: median distance of the samples to their nearest training picture / that of the held-out ones.
        nearer: how often a sample is nearer than a held-out picture, over all pairs of them.
        nearest: share of the samples that are nearer than the nearest `share` of the held-out pictures.
        share: 1 %, or as many as 10 held-out pictures are.
    """

    ratio: Figure
    nearer: Figure
    nearest: Figure
    share: float


@dataclass(frozen=True)
class Near:
    """A sample and its nearest training picture.

    Args:
        sample: number of the sample.
        training: number of the training picture.
        distance: between their features, in medians of the held-out pictures' nearest distances.
        levels: between their pixels: root of the mean square, of 255 levels.
        source, author, licence: the training picture's, from its ledger line.
    """

    sample: int
    training: int
    distance: float
    levels: float
    source: str
    author: str
    licence: str

    def origin(self) -> str:
        """Whose the training picture is."""
        return f"{self.source}; {self.author or 'author unknown'}; {self.licence}"


@dataclass(frozen=True)
class Memorised:
    """What a search among all training pictures found.

    Args:
        training: how many were searched.
        samples, held_out: how many were looked for.
        features: name of the features.
        by_features, by_pixels: the figures.
        copies: share of the samples that differ from a training picture by less than `COPY` levels.
        copies_held_out: the same share of the held-out pictures: what the data itself repeats.
        pairs: the nearest pairs by features.
        nearest_NCYX: the nearest training picture of every sample, by features.
    """

    training: int
    samples: int
    held_out: int
    features: str
    by_features: Nearness
    by_pixels: Nearness
    copies: Figure
    copies_held_out: Figure
    pairs: tuple[Near, ...]
    nearest_NCYX: Tensor = field(repr=False, compare=False)

    @property
    def copied(self) -> bool:
        """Whether samples stand nearer to training pictures than real pictures do, beyond chance."""
        many = self.by_features.nearest.low > 2 * self.by_features.share  # 10 pictures know the share to a third
        return many or self.copies.low > self.copies_held_out.high

    @property
    def verdict(self) -> str:
        """In plain words."""
        share, times = self.by_features.nearest, self.by_features.ratio
        if self.copied:
            return (
                f"It copies: {share.value:.0%} of its pictures are nearer to a training picture than the nearest "
                f"{self.by_features.share:.0%} of held-out real pictures are, and {self.copies.value:.1%} are the same "
                f"but for {COPY:g} of 255 levels. Look at the pairs before you pass it on."
            )
        if times.high < 1:
            return f"No copies, but it stays near to its training pictures: {times.value:.2f} of the real distance."
        return "No copies were found: its pictures are as far from the training pictures as real ones are."

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**plain(self), "verdict": self.verdict}


def memorised(
    sample_NCYX: Tensor,
    held_out_NCYX: Tensor,
    training: Iterable[tuple[Tensor, Any]],
    features: Features,
    pairs: int = 10,
    seed: int = 0,
    watch: Watch | None = None,
) -> Memorised:
    """Find the nearest training picture of every sample and of every held-out picture.

    Args:
        sample_NCYX: what was drawn, in [-1, 1].
        held_out_NCYX: real pictures that were not trained on.
        training: (picture [C, Y, X] in [-1, 1], its ledger line): a mapping or an object with source, author, licence.
        features: by which they are compared.
        pairs: how many of the nearest pairs to tell of.
        seed: of the intervals.
        watch: told {"kind": "memorised", "done"} in training pictures.

    Raises:
        DataError: nothing to search for or in, or pictures of another size.
    """
    sought_NCYX = torch.cat([as_seen(sample_NCYX, "samples", drawn=True), as_seen(held_out_NCYX, "held-out pictures")])
    samples, held_out = len(sample_NCYX), len(held_out_NCYX)
    if not samples or not held_out:
        raise DataError(f"{samples:,} samples and {held_out:,} held-out pictures", "both are needed to see who copies")
    best = _Best(sought_NCYX, features, samples)
    for image_MCYX, lines in _chunks(training, tuple(sought_NCYX.shape[1:])):
        best.look(image_MCYX, lines)
        if watch:
            watch({"kind": "memorised", "done": best.seen})
    if not best.seen:
        raise DataError("there are no training pictures to search", fix="name the data that it was trained on")
    far_N, pixels_N = best.distance_N.sqrt().numpy(), best.pixel_distance_N.sqrt().numpy()
    unit = float(np.median(far_N[samples:])) or 1.0
    same_N = pixels_N < COPY
    return Memorised(
        training=best.seen,
        samples=samples,
        held_out=held_out,
        features=features.name,
        by_features=nearness(far_N[:samples], far_N[samples:], seed),
        by_pixels=nearness(pixels_N[:samples], pixels_N[samples:], seed),
        copies=wilson(int(same_N[:samples].sum()), samples),
        copies_held_out=wilson(int(same_N[samples:].sum()), held_out),
        pairs=tuple(best.pair(int(at), unit) for at in np.argsort(far_N[:samples], kind="stable")[:pairs]),
        nearest_NCYX=best.picture_NCYX,
    )


def nearness(sample_N: np.ndarray, held_out_M: np.ndarray, seed: int = 0) -> Nearness:
    """The three figures, from the nearest distance of each sample and of each held-out picture."""
    chance = np.random.default_rng(seed)
    drawn = [
        values[chance.integers(0, len(values), (RESAMPLES, len(values)))].astype(np.float32)
        for values in (sample_N, held_out_M)
    ]
    tiny = 1e-12  # held-out pictures that all stand in the training set as well
    ratios_R = np.median(drawn[0], 1) / np.maximum(np.median(drawn[1], 1), tiny)
    ratio = float(np.median(sample_N) / max(float(np.median(held_out_M)), tiny))
    wins_NM = np.sign(held_out_M[None] - sample_N[:, None]).astype(np.float32) / 2 + 0.5
    count_N, count_M = (np.full(len(side), 1 / len(side)) for side in (sample_N, held_out_M))
    weight_RN, weight_RM = (
        chance.multinomial(len(one), one, RESAMPLES).astype(np.float32) for one in (count_N, count_M)
    )
    nearer_R = ((weight_RN @ wins_NM) * weight_RM).sum(1) / wins_NM.size
    share = max(NEAREST_SHARE, min(0.5, FEWEST_NEAREST / len(held_out_M)))
    limit = float(np.quantile(held_out_M, share))
    return Nearness(
        Figure(ratio, *map(float, np.percentile(ratios_R, [2.5, 97.5]))),
        Figure(float(wins_NM.mean()), *map(float, np.percentile(nearer_R, [2.5, 97.5]))),
        wilson(int((sample_N < limit).sum()), len(sample_N)),
        share,
    )


class _Best:
    """The nearest training picture so far, of each picture that is looked for."""

    def __init__(self, sought_NCYX: Tensor, features: Features, samples: int) -> None:
        self.features, self.samples, self.seen = features, samples, 0
        self.x_ND, self.pixels_ND = features.of(sought_NCYX), _pixels(sought_NCYX)
        self.middle_D = self.x_ND.mean(0)
        count = len(sought_NCYX)
        self.distance_N, self.pixel_distance_N = torch.full((count,), torch.inf), torch.full((count,), torch.inf)
        self.number_N = torch.zeros(count, dtype=torch.int64)
        self.picture_NCYX = torch.zeros_like(sought_NCYX[:samples])
        self.lines: dict[int, Any] = {}
        self.small_NCYX = sought_NCYX[:samples]

    def look(self, image_MCYX: Tensor, lines: list[Any]) -> None:
        """Compare with some more training pictures."""
        squares_NM = squared(self.x_ND - self.middle_D, self.features.of(image_MCYX) - self.middle_D)
        least_N, place_N = squares_NM.min(1)
        better_N = least_N < self.distance_N
        self.distance_N = torch.where(better_N, least_N, self.distance_N)
        self.number_N = torch.where(better_N, place_N + self.seen, self.number_N)
        rows_N = better_N[: self.samples].nonzero()[:, 0]
        self.picture_NCYX[rows_N] = image_MCYX[place_N[rows_N]]
        for row in rows_N.tolist():
            self.lines[row] = lines[int(place_N[row])]
        pixels_NM = squared(self.pixels_ND, _pixels(image_MCYX)) / self.pixels_ND.shape[1]
        self.pixel_distance_N = torch.minimum(self.pixel_distance_N, pixels_NM.min(1).values)
        self.seen += len(image_MCYX)

    def pair(self, row: int, unit: float) -> Near:
        """A sample and its nearest, with whose that is."""
        said = _line(self.lines[row])
        apart = 127.5 * float((self.small_NCYX[row] - self.picture_NCYX[row]).square().mean().sqrt())
        distance = float(self.distance_N[row].sqrt()) / unit
        return Near(row, int(self.number_N[row]), distance, apart, said["source"], said["author"], said["licence"])


def _chunks(training: Iterable[tuple[Tensor, Any]], shape: tuple[int, ...]) -> Iterator[tuple[Tensor, list[Any]]]:
    """Training pictures as they are seen, `CHUNK` at a time, with their lines."""
    stream, first = iter(training), 0
    while some := list(islice(stream, CHUNK)):
        for number, (image_CYX, _) in enumerate(some, first):
            if tuple(image_CYX.shape) != shape:
                raise DataError(
                    f"training picture {number:,} is {list(image_CYX.shape)}, the samples {list(shape)}",
                    "they can only be compared at one size",
                    "give the training pictures as the model was shown them",
                )
        yield (
            as_seen(torch.stack([image_CYX for image_CYX, _ in some]), "training pictures"),
            [line for _, line in some],
        )
        first += len(some)


def _pixels(image_NCYX: Tensor) -> Tensor:
    """Levels of 255 of the pictures at 32 px at most, about their middle [N, D]."""
    return small(image_NCYX).flatten(1) * 127.5


def _line(line: Any) -> dict[str, str]:
    """Source, author and licence of a ledger line, whatever it is kept in."""
    given = (
        line
        if isinstance(line, Mapping)
        else {name: getattr(line, name, None) for name in ("source", "author", "licence")}
    )
    return {
        "source": str(given.get("source") or ("" if line is None else UNKNOWN)) or UNKNOWN,
        "author": str(given.get("author") or ""),
        "licence": str(given.get("licence") or UNKNOWN),
    }
