"""Answers that the model itself writes while it is trained, rewarded by a verifier, as data: a live source.

    questions by (seed, step) -> the live model writes several answers to each -> right? -> advantages -> tokens, mask

What a step reads depends on the seed, the step and the weights at that step alone, so a resumed run is bit-equal.
Advantages: Shao et al. 2024, arXiv:2402.03300 (GRPO); Ahmadian et al. 2024, arXiv:2402.14740 (RLOO).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nomoat.core.errors import ConfigError, nearest
from nomoat.core.types import Batch
from nomoat.data.chat import talking
from nomoat.data.order import Order
from nomoat.search.replay import load
from nomoat.search.tasks import Attempts

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

BASELINES = ("group", "others")


@dataclass(frozen=True)
class Rollouts:
    """Recipe data: groups of answers to the same question; a batch is `batch_size` answers.

    Args:
        task: questions and their verifier.
        tries: answers to each question.
        baseline: `group`: less the group's mean, over its deviation (GRPO); `others`: less the mean of the others
            (RLOO).
        tokenizer: file of the model's tokenizer, where the task is one of text.
    """

    task: Any
    tries: int = 8
    baseline: str = "group"
    tokenizer: str = ""

    def __post_init__(self) -> None:
        if self.tries < 2:
            raise ConfigError("a group has at least two answers", f"tries is {self.tries}", "use tries=8")
        if self.baseline not in BASELINES:
            raise ConfigError(
                f"there is no baseline `{self.baseline}`", ", ".join(BASELINES), nearest(self.baseline, BASELINES)
            )

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """This worker's part of the batch of every step from `start` on; what the loop calls."""
        if batch_size % (self.tries * world):
            raise ConfigError(
                f"a batch of {batch_size} is no whole number of groups of {self.tries} for {world} processes",
                fix=f"use batch_size={max(1, batch_size // (self.tries * world)) * self.tries * world}",
            )
        groups, step = batch_size // self.tries // world, start
        spelling = talking(Path(self.tokenizer).parent) if self.tokenizer else None
        while True:
            index = (step * world + rank) * groups + np.arange(groups)
            questions, model = self.task.train(seed, index), family.product
            was = model.training
            attempts = self.task.attempts(
                model.eval(), spelling, questions, self.tries, seed * 1_000_003 + step * world + rank
            )
            model.train(was)
            yield self.batch(attempts)
            step += 1

    def batch(self, attempts: Attempts) -> Batch:
        """Answers with their advantages."""
        advantage, idle = advantages(attempts.right.reshape(-1, self.tries), self.baseline)
        length = max(1.0, float(attempts.mask.sum(1).mean()))
        arrays = {
            "tokens": np.asarray(attempts.tokens, np.int64),
            "mask": np.array(attempts.mask),
            "advantage": advantage.ravel(),
            "length": np.full(len(attempts.right), length, np.float32),
            "reward": attempts.right,
            "idle": np.repeat(idle, self.tries).astype(np.float32),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def advantages(reward_GT: Array, baseline: str) -> tuple[Array, Array]:
    """The advantage of each answer, float32 [G, T], and which groups [G] have none: all alike.

    Args:
        reward_GT: of T answers to each of G questions.
        baseline: one of `BASELINES`.
    """
    reward_GT = reward_GT.astype(np.float32)
    count, mean_G1 = reward_GT.shape[1], reward_GT.mean(1, keepdims=True)
    idle_G = np.ptp(reward_GT, axis=1) == 0
    if baseline == "others":
        return (reward_GT - mean_G1) * np.float32(count / (count - 1)), idle_G
    spread_G1 = reward_GT.std(1, keepdims=True)
    return (reward_GT - mean_G1) / np.maximum(spread_G1, 1e-6) * ~idle_G[:, None], idle_G


@dataclass(frozen=True)
class Kept:
    """Recipe data: answers that were written and judged before, from a file of `Attempts`.

    Args:
        path: an .npz with `tokens`, `mask`, `ends`, `right`.
        only_right: those that are right alone (STaR); else all, with how they ended (process rewards).
    """

    path: str
    only_right: bool = True

    @property
    def paths(self) -> tuple[str, ...]:
        """The file, as of any data."""
        return (self.path,)

    def stream(
        self, family: Any, batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """This worker's part of the batch of every step from `start` on: every row once, then in another order."""
        arrays = load(Path(self.path))
        rows = np.flatnonzero(arrays["right"] >= 1) if self.only_right else np.arange(len(arrays["right"]))
        order, share, step = Order([len(rows)], None, seed), np.arange(rank, batch_size, world), start
        while True:
            chosen = rows[order.at(step * batch_size + share)[1]]
            yield {
                "tokens": torch.from_numpy(arrays["tokens"][chosen].astype(np.int64)),
                "mask": torch.from_numpy(arrays["mask"][chosen]),
                "ends": torch.from_numpy(arrays["ends"][chosen]),
                "right": torch.from_numpy(arrays["right"][chosen]),
            }
            step += 1
