"""Rehearsal: a share of a training's rows shows a model what it says itself, so that it goes on saying it.

    sample i -> Schedule (share) -> the data's next sample | the rehearsal's next sample -> one batch

`Rehearsed` is for texts; `Preserved` for pictures: beside a few of one subject, its class as the model draws it.

What a network learns later overwrites what it learned before, unless that is shown again; where the old data is not at
hand, what the network itself makes of other inputs stands for it (pseudo-rehearsal).

Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal"; Ruiz et al. 2022, arXiv:2208.12242 (DreamBooth's
prior preservation).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nomoat.core.errors import ConfigError, DataError
from nomoat.core.types import Batch
from nomoat.data.lessons import Lessons
from nomoat.data.order import Schedule
from nomoat.data.rows import together


@dataclass(frozen=True)
class Rehearsed:
    """Recipe data: lessons or text, with a share of the rows from another folder of lessons.

    The rehearsal is none of the data: it is neither held out nor counted among what the model was taught.

    Args:
        data: `Lessons` or `Text`.
        rehearsal: folder of the lessons that are shown again, spelled by the same tokenizer.
        share: of all rows, above 0 and below 1.
    """

    data: Any
    rehearsal: str
    share: float = 0.15

    @property
    def path(self) -> Any:
        """The data's folder, or its folders."""
        return self.data.path

    @property
    def paths(self) -> tuple[str, ...]:
        """The data's folders."""
        return tuple(self.data.paths)

    @property
    def context_length(self) -> int:
        """Tokens that a model sees at once, L."""
        return int(self.data.context_length)

    def open(self, *which: Any) -> Any:
        """As of the data."""
        return self.data.open(*which)

    def changed(self) -> list[str]:
        """As of the data."""
        return list(self.data.changed())

    def held_out(self, family: Any, batch_size: int, tokens: int) -> Iterator[Batch]:
        """As of the data."""
        yield from self.data.held_out(family, batch_size, tokens)

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """This worker's part of the batch of every step from `start` on, without end; what the loop calls.

        Raises:
            ConfigError, DataError: see `Lessons.open`; a share that is none.
        """
        sources = [each.sampler(seed) for each in (self.data, Lessons(self.rehearsal, self.context_length))]
        yield from _mixed(sources, (1 - self.share, self.share), (batch_size, start, rank, world))


@dataclass(frozen=True)
class Preserved:
    """Recipe data: pictures of a subject, with a share of the rows from other pictures that are to stay as they are.

    The others are neither held out nor counted among what the model was taught. What only one of both brings is left
    out; `index` is that of the mixture.

    Args:
        data: of the subject, such as four pictures with a word of their own.
        priors: such as what the model itself draws of its class, and what it was taught; each has `sampler(seed)`, as
            the data, and gets as many rows as another.
        share: of all rows that are the priors', above 0 and below 1; 0.5: as many as of the subject.
    """

    data: Any
    priors: tuple[Any, ...]
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"share {self.share} is no mixture", fix="above 0 and below 1; 0.5 is usual")

    @property
    def size(self) -> int:
        """Pixels a side."""
        return int(self.data.size)

    @property
    def caption_length(self) -> int:
        """As of the data."""
        return int(self.data.caption_length)

    @property
    def paths(self) -> tuple[str, ...]:
        """The data's."""
        return tuple(self.data.paths)

    @property
    def classes(self) -> tuple[str, ...]:
        """None: a mixture has no labels."""
        return ()

    def words(self) -> Any:
        """As of the data."""
        return self.data.words()

    def changed(self) -> list[str]:
        """As of all."""
        return [line for each in (self.data, *self.priors) for line in each.changed()]

    def held_out(self, family: Any, batch_size: int, tokens: int) -> Iterator[Batch]:
        """As of the data."""
        yield from self.data.held_out(family, batch_size, tokens)

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """This worker's part of the batch of every step from `start` on, without end; what the loop calls.

        Raises:
            DataError: the rows of both are not alike.
        """
        sources = [each.sampler(seed) for each in (self.data, *self.priors)]
        shares = 1 - self.share, *[self.share / len(self.priors)] * len(self.priors)
        yield from _mixed(sources, shares, (batch_size, start, rank, world))


def _mixed(sources: list[Any], shares: tuple[float, ...], which: tuple[int, int, int, int]) -> Iterator[Batch]:
    """Batches of several sources by their shares; `which`: batch size, first step, rank and world."""
    schedule = Schedule(shares)
    batch_size, step, rank, world = which
    mine = np.arange(rank, batch_size, world)
    while True:
        index_B = step * batch_size + mine
        source_B, nth_B = schedule.at(index_B)
        parts = [np.flatnonzero(source_B == source) for source in range(len(sources))]
        batches = [read(nth_B[part]) for read, part in zip(sources, parts, strict=True) if len(part)]
        _alike(batches)
        yield {**together(batches, [part for part in parts if len(part)]), "index": _numbers(index_B)}
        step += 1


def _alike(batches: list[Batch]) -> None:
    """Raises DataError where rows of the same name have other shapes."""
    for name in batches[0]:
        shapes = [tuple(batch[name].shape[1:]) for batch in batches if name in batch]
        if len({*shapes}) > 1:
            first, second = (" x ".join(map(str, shape)) or "1" for shape in shapes[:2])
            raise DataError(f"`{name}` of the two kinds of rows is {first} and {second}", "they make one batch")


def _numbers(index_B: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(index_B, dtype=np.int64))
