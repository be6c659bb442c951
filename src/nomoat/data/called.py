"""Called: recipe data whose pictures all have one caption, spelled as the model to be taught spells its own.

batch of `data` -> the same pictures, with `caption` and `caption_mask` [B, M] of the one caption
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from nomoat.core.types import Batch
from nomoat.data.rows import batches
from nomoat.data.tokenizer import load
from nomoat.data.words import padded

LEFT = ("image", "index")


@dataclass(frozen=True)
class Called:
    """See the file's first lines.

    Args:
        data: pictures, with `sampler(seed)`.
        caption: of all of them.
        spelled_by: a tokenizer.json that knows its words.
        caption_length: most words of a caption, M, as the model has it.
        channels: as the model has them; grey pictures are shown in that many.
    """

    data: Any
    caption: str
    spelled_by: str
    caption_length: int
    channels: int = 3

    @property
    def size(self) -> int:
        """Pixels a side."""
        return int(self.data.size)

    @property
    def paths(self) -> tuple[str, ...]:
        """As of the data."""
        return tuple(self.data.paths)

    @property
    def classes(self) -> tuple[str, ...]:
        """None: all are the same."""
        return ()

    def words(self) -> Any:
        """The model's."""
        return load(Path(self.spelled_by))

    def changed(self) -> list[str]:
        """As of the data."""
        return list(self.data.changed())

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """This worker's part of the batch of every step from `start` on, without end; what the loop calls."""
        return batches(self.sampler(seed), batch_size, start, rank, world)

    def sampler(self, seed: int) -> Callable[[ArrayLike], Batch]:
        """What gives the samples of any global indices [B]."""
        read, told = self.data.sampler(seed), self._told()
        return lambda index_B: told(read(index_B))

    def held_out(self, family: Any, batch_size: int, tokens: int) -> Iterator[Batch]:
        """As of the data; nothing where there are too few pictures to hold any back."""
        told = self._told()
        for batch in self.data.held_out(family, batch_size, tokens):
            yield told(batch)

    def _told(self) -> Callable[[Batch], Batch]:
        import torch

        words = self.words()
        caption_1M, there_1M = map(
            torch.from_numpy, padded([words.encode(self.caption)], self.caption_length, words.eot)
        )

        def told(batch: Batch) -> Batch:
            rows = len(batch["image"])
            kept = {name: batch[name] for name in LEFT if name in batch}
            if kept["image"].shape[1] == 1:
                kept["image"] = kept["image"].expand(-1, self.channels, -1, -1)
            return {**kept, "caption": caption_1M.expand(rows, -1), "caption_mask": there_1M.expand(rows, -1)}

        return told
