"""Embedded: recipe data whose pictures come with the vector that another run makes of them.

    batch of `data` -> the encoder's `encode` of its pictures -> the same batch with `embedding` [B, E]

For decoders that draw from an embedding (DALL-E 2). Nothing of the encoder is learned.
Ramesh et al. 2022, arXiv:2204.06125.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nomoat.core.recipe import Ref
from nomoat.core.types import Batch


@dataclass(frozen=True)
class Embedded:
    """See the file's first lines.

    Args:
        data: pictures.
        encoder: a run that Encodes pictures, such as a CLIP.
    """

    data: Any
    encoder: Ref

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
        """As of the data."""
        return tuple(self.data.paths)

    @property
    def classes(self) -> tuple[str, ...]:
        """As of the data."""
        return tuple(self.data.classes)

    def words(self) -> Any:
        """As of the data."""
        return self.data.words()

    def changed(self) -> list[str]:
        """As of the data."""
        return list(self.data.changed())

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """As of the data, with `embedding` [B, E].

        Raises:
            RunError, CheckpointError: the encoder is no run, or has no weights.
        """
        return self._with(self.data.stream(family, batch_size, seed, start, rank, world))

    def held_out(self, family: Any, batch_size: int, tokens: int) -> Iterator[Batch]:
        """As of the data, with `embedding` [B, E]."""
        return self._with(self.data.held_out(family, batch_size, tokens))

    def _with(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        from nomoat.core.run import load

        encoder: Any = load(self.encoder)
        for batch in batches:  # what was loaded has no gradients, so that nothing is kept for a backward pass
            yield {**batch, "embedding": encoder.encode({"image": batch["image"]}).float()}
