"""Countdown as training data: problems without end with a solution each, made while they are read, by number alone.

    sample index -> chance -> how many numbers -> problem and solution -> Notation -> tokens, mask [B, L + 1]

The solution is what is learned; the problem is read. All other rows and the test sets: games/countdown_problems.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from nomoat.core.errors import ConfigError
from nomoat.core.types import Batch
from nomoat.data.order import key
from nomoat.data.rows import batches
from nomoat.data.words import WordTokenizer
from nomoat.games.countdown import Countdown
from nomoat.games.countdown_problems import problems
from nomoat.games.countdown_text import Notation

HELD_SEED = 0
MOST_HELD = 1000
PERIODS = np.array([2, 3, 4, 5, 7, 8, 9, 10, 11, 13, 16, 20, 25, 32, 50, 64, 100, 128, 200, 256, 500, 1000, 2000.0])
LOG_PERIODS = np.array([0.25, 0.5, 1, 2, 4, 8, 16])
"""Of the waves of a number and of its logarithm."""


@dataclass(frozen=True)
class CountdownProblems:
    """Recipe data: worked Countdown problems.

    Args:
        sizes: how many numbers a problem may have; each is as likely. Shorter rows are padded with the document end.
        limit: the largest number that a step may give.
        waves: whether numbers begin as what they are worth (`begin`), not as a thousand unknown words.
    """

    sizes: tuple[int, ...] = (4,)
    limit: int = 999
    waves: bool = True
    title: ClassVar[str] = "countdown"
    licence: ClassVar[str] = "CC0-1.0"

    def __post_init__(self) -> None:
        if not self.sizes or len(set(self.sizes)) < len(self.sizes) or min(self.sizes) < 3:
            raise ConfigError(f"sizes {self.sizes} cannot be", fix="name each once, 3 or more, as in sizes=4,5,6")
        self.notations()

    @property
    def paths(self) -> tuple[str, ...]:
        """It lies nowhere."""
        return ()

    def changed(self) -> list[str]:
        """It never changes."""
        return []

    def notations(self) -> list[Notation]:
        """How problems of each size are written; their ids are the same."""
        return [_notation(size, self.limit) for size in self.sizes]

    def words(self) -> WordTokenizer:
        """All tokens."""
        return WordTokenizer(self.notations()[0].words)

    @property
    def vocab_size(self) -> int:
        """Tokens, the document end among them."""
        return self.notations()[0].vocab_size

    @property
    def context_length(self) -> int:
        """L: targets of the longest row."""
        return max(notation.length for notation in self.notations()) - 1

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """This worker's part of the batch of every step from `start` on, without end; what the loop calls.

        Raises:
            ConfigError: the family knows fewer tokens, or reads shorter rows.
        """
        self._suits(family)
        return batches(self.sampler(seed), batch_size, start, rank, world)

    def begin(self, family: Any) -> None:
        """Write waves of a number's value, and of its logarithm, into the first columns of the token table.

        Sums are turns of such waves, products turns of those of logarithms: what a model of text comes to by itself
        (Zhou et al. 2024, arXiv:2406.03445) and would take far more problems than there is time for. The other columns
        stay random.

        Args:
            family: with a token table `embed`; one without is left alone.
        """
        import torch

        embed = getattr(family, "embed", None)
        if not self.waves or not isinstance(embed, torch.nn.Embedding):
            return
        value_N1 = np.arange(self.limit + 1)[:, None]
        turns_NF = np.concatenate((value_N1 / PERIODS, np.log(1 + value_N1) / LOG_PERIODS), 1) * 2 * np.pi
        waves_NF = np.concatenate((np.cos(turns_NF), np.sin(turns_NF)), 1)[:, : embed.embedding_dim // 2]
        size = embed.weight.std() * 2**0.5
        with torch.no_grad():
            rows = torch.from_numpy(self.notations()[0].number_ids)
            embed.weight[rows, : waves_NF.shape[1]] = torch.from_numpy(waves_NF).float() * size

    def sampler(self, seed: int) -> Callable[[ArrayLike], Batch]:
        """What gives the samples of any global indices [B]."""
        return lambda index: self._made("train", seed, index)

    def held_out(self, family: Any, batch_size: int, tokens: int) -> Iterator[Batch]:
        """Batches of about `tokens` tokens, of sets of numbers that neither training nor a test shows."""
        self._suits(family)
        count = min(MOST_HELD, max(1, tokens // self.context_length))
        for first in range(0, count, batch_size):
            yield self._made("heldout", HELD_SEED, np.arange(first, min(first + batch_size, count)))

    def _made(self, split: str, seed: int, index: ArrayLike) -> Batch:
        import torch

        index_B = np.atleast_1d(np.asarray(index, dtype=np.int64))
        notations, slots = self.notations(), self.context_length + 1
        tokens_BL = np.full((len(index_B), slots), notations[0].eot, dtype=np.int64)
        document_BL, mask_BL = np.full(tokens_BL.shape, -1), np.zeros(tokens_BL.shape, dtype=bool)
        which_B = key(seed, index_B) % np.uint64(len(notations))
        for number, notation in enumerate(notations):
            rows = np.flatnonzero(which_B == number)
            made = problems(notation.game, split, seed, index_B[rows])
            tokens_BL[rows, : notation.length] = notation.spell(made.state_B, made.action_BS)
            mask_BL[rows, notation.prompt_length : notation.length] = True
            document_BL[rows, : notation.length] = 0
        made_of = {"tokens": tokens_BL, "mask": mask_BL, "document": document_BL, "index": index_B}
        if len(notations) == 1:  # without padding nothing need be kept apart
            del made_of["document"]
        return {name: torch.from_numpy(array) for name, array in made_of.items()}

    def _suits(self, family: Any) -> None:
        config = getattr(family, "config", None)
        for name, needed in (("vocab_size", self.vocab_size), ("context_length", self.context_length)):
            has = getattr(config, name, None)
            if has is not None and has < needed:
                raise ConfigError(
                    f"the model has {name}={has}, countdown needs {needed}", fix=f"set family.{name}={needed}"
                )


@cache
def _notation(size: int, limit: int) -> Notation:
    return Notation(Countdown(size, limit))
