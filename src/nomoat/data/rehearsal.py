"""Rehearsal: a share of a training's rows shows a model what it says itself, so that it goes on saying it.

    sample i -> Schedule (share) -> the data's next sample | the rehearsal's next sample -> one batch

What a network learns later overwrites what it learned before, unless that is shown again; where the old data is not at
hand, what the network itself makes of other inputs stands for it (pseudo-rehearsal).

Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

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
        schedule = Schedule((1 - self.share, self.share))
        sources = [each.sampler(seed) for each in (self.data, Lessons(self.rehearsal, self.context_length))]
        share, step = np.arange(rank, batch_size, world), start
        while True:
            index_B = step * batch_size + share
            source_B, nth_B = schedule.at(index_B)
            parts = [np.flatnonzero(source_B == source) for source in range(len(sources))]
            batches = [read(nth_B[part]) for read, part in zip(sources, parts, strict=True) if len(part)]
            made = together(batches, [part for part in parts if len(part)])
            yield {**made, "index": _numbers(index_B)}
            step += 1


def _numbers(index_B: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(index_B, dtype=np.int64))
