"""The shapes world: pictures with captions without end, made while they are read, each by its number alone.

    sample index -> (which picture, where `count` bounds them) -> chance -> Scene -> image, caption, label, hint

8 shapes x 8 colours x 3 sizes x 2 textures on 4 backgrounds, 1 to 3 things, four relations, counts. Which combinations
are kept from training, and how: shapes_splits.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from nomoat.core.errors import ConfigError
from nomoat.core.types import Batch
from nomoat.data.order import Words, key, permute
from nomoat.data.rows import batches
from nomoat.data.shapes_captions import captions, longest, words
from nomoat.data.shapes_picture import HINTS, check, hint, images
from nomoat.data.shapes_scene import SHAPES, Numbers, Scene, Scenes
from nomoat.data.shapes_splits import SPLITS, draw
from nomoat.data.shapes_splits import check as check_split
from nomoat.data.words import WordTokenizer, padded

TRAINED, HELD, ASKED = range(3)
"""What a picture is for: another purpose, other pictures."""
HELD_SEED = 0  # the same pictures whatever a run's own seed


class Shown(NamedTuple):
    """Pictures with all that is known of them."""

    batch: Batch
    scenes: list[Scene]
    captions: list[str]


@dataclass(frozen=True)
class Shapes:
    """Recipe data: the shapes world.

    Args:
        size: pixels a side, 16 to 128.
        objects: things in a picture at most, 1 to 3.
        split: which scenes: `seen`, `pair`, `triple`, `relation`, `count`, `paraphrase`, `nonsense` or `all`.
        count: different training pictures; None: no picture comes twice.
        caption_length: words and signs of a caption at most, M.
        hint: the control picture that comes along: `mask`, `edges` or `depth`.
    """

    size: int = 32
    objects: int = 1
    split: str = "seen"
    count: int | None = None
    caption_length: int = 20
    hint: str | None = None
    title: ClassVar[str] = "the shapes world"
    licence: ClassVar[str] = "CC0-1.0"

    def __post_init__(self) -> None:
        check(self.size)
        check_split(self.split, self.objects)
        if self.hint is not None and self.hint not in HINTS:
            hint(Scenes.of([]), self.size, self.hint)
        if self.count is not None and self.count < 1:
            raise ConfigError(f"nothing can be learned from {self.count} pictures", fix="count is at least 1, or none")
        if self.caption_length < longest(self.objects):
            raise ConfigError(
                f"captions of {self.caption_length} words are too short",
                f"those of up to {self.objects} objects have up to {longest(self.objects)} words and signs",
                f"set caption_length={longest(self.objects)}",
            )

    @property
    def paths(self) -> tuple[str, ...]:
        """It lies nowhere."""
        return ()

    def changed(self) -> list[str]:
        """It never changes."""
        return []

    def words(self) -> WordTokenizer:
        """All words of the grammar, whatever the split."""
        return words()

    @property
    def classes(self) -> tuple[str, ...]:
        """What `label` counts: the shape of the first thing."""
        return SHAPES

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """This worker's part of the batch of every step from `start` on, without end; what the loop calls.

        Raises:
            ConfigError: the family expects other pictures, or fewer words.
        """
        self._suits(family)
        return batches(self.sampler(seed), batch_size, start, rank, world)

    def sampler(self, seed: int) -> Callable[[ArrayLike], Batch]:
        """What gives the samples of any global indices [B]."""
        return lambda index: self._made(TRAINED, seed, index).batch

    def held_out(self, family: Any, batch_size: int, tokens: int) -> Iterator[Batch]:
        """Batches of the same kind that no training shows, the same for every seed.

        Args:
            family: whose they are.
            batch_size: pictures in each.
            tokens: how much is wanted; a picture counts as one token for each 2 x 2 pixels.
        """
        self._suits(family)
        count = max(1, tokens // (self.size // 2) ** 2)
        for first in range(0, count, batch_size):
            yield self._made(HELD, HELD_SEED, np.arange(first, min(count, first + batch_size))).batch

    def asked(self, index: ArrayLike) -> Shown:
        """Pictures of an examination, by number [B], the same for every seed: exactly `objects` things (in the split
        `count` one more), and captions that leave nothing out (of several things: that tell shapes and colours)."""
        return self._made(ASKED, HELD_SEED, index)

    def shown(self, index: ArrayLike, seed: int) -> Shown:
        """Training pictures by their global indices [B], with what is in them."""
        return self._made(TRAINED, seed, index)

    def _made(self, purpose: int, seed: int, index: ArrayLike) -> Shown:
        import torch

        index_B = np.atleast_1d(np.asarray(index, dtype=np.int64))
        chance_B = self._chance(purpose, seed, index_B)
        drawn = draw(self.split, chance_B, self.objects, exactly=purpose == ASKED)
        scenes = drawn.all
        told = captions(scenes, chance_B, self.split)
        ids_BM, there_BM = padded([words().encode(text) for text in told], self.caption_length, words().eot)
        made = {"image": images(drawn, self.size), "caption": ids_BM, "caption_mask": there_BM}
        made |= {"label": drawn.kind_BND[:, 0, 0], "index": index_B}
        made |= {"hint": hint(drawn, self.size, self.hint)} if self.hint else {}
        return Shown({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in made.items()}, scenes, told)

    def _chance(self, purpose: int, seed: int, index_B: Numbers) -> Words:
        """A 64-bit number for each sample: all chance comes from it."""
        number_B = index_B
        if purpose == TRAINED and self.count is not None:
            epoch_B, slot_B = np.divmod(index_B, self.count)
            number_B = permute(slot_B, self.count, key(seed, -1, epoch_B))
        return key(seed, purpose, SPLITS.index(self.split), number_B)

    def _suits(self, family: Any) -> None:
        """Raises ConfigError where a family's config and this world do not fit."""
        config = getattr(family, "config", None)
        wanted = {"size": self.size, "channels": 3, "classes": len(SHAPES), "caption_length": self.caption_length}
        wanted["vocab_size"] = words().vocab_size
        for name, needed in wanted.items():
            has = getattr(config, name, None)
            fits = has == needed or (has == 0 and name in ("classes", "vocab_size", "caption_length"))
            if has is not None and not fits and (name != "vocab_size" or has < needed):
                raise ConfigError(
                    f"the model has {name}={has}, the shapes world has {needed}", fix=f"set family.{name}={needed}"
                )
