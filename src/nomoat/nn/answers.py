"""Whole answers: the log-probability of each side of a batch of pairs, whoever scores them.

    tokens [B, 2, L], mask [B, 2, L] (the answer's tokens) -> 2 B rows -> policy.score -> logp_B2, count_B2

`2` is the axis of the sides: 0 the answer that was chosen, 1 the one that was rejected. A batch of pairs also carries
`reference` [B, 2], the log-probability of each side before training, which never changes and is computed once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nomoat.core.config import from_json, to_json
from nomoat.core.errors import ConfigError
from nomoat.core.family import Family, Parts
from nomoat.core.types import Batch, Scores
from nomoat.nn.backbone import Backbone


def sides(batch: Batch) -> Batch:
    """The sides as rows of their own [2 B, L]: what a model of tokens reads."""
    return {name: batch[name].flatten(0, 1) for name in ("tokens", "mask")}


def log_probabilities(policy: Scores, batch: Batch) -> tuple[Tensor, Tensor]:
    """The summed log-probability [B, 2] in nats of each side's answer, and how many tokens [B, 2] it has."""
    rows = sides(batch)
    logp_B2 = policy.score(rows).float().sum(-1).unflatten(0, (-1, 2))
    return logp_B2, rows["mask"][:, 1:].sum(-1).unflatten(0, (-1, 2)).clamp(min=1)


def reference(batch: Batch) -> Tensor:
    """The log-probabilities [B, 2] before training.

    Raises:
        ConfigError: the batch has none.
    """
    if "reference" not in batch:
        raise ConfigError(
            "these pairs carry no log-probabilities of the model before training",
            "the loss holds the model against what it was",
            "let the data compute them once: data.model=RUN",
        )
    return batch["reference"]


def pairs(policy: Any, samples: int) -> Batch:
    """A small valid batch of pairs, the same every time for the same weights; half of each row is the prompt."""
    length = policy.config.context_length + 1
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(policy.config.vocab_size, (samples, 2, length), generator=generator)
    tokens[:, 1, : length // 2] = tokens[:, 0, : length // 2]
    mask = torch.zeros(samples, 2, length, dtype=torch.bool)
    mask[..., length // 2 :] = True
    batch: Batch = {"tokens": tokens, "mask": mask}
    with torch.no_grad():
        batch["reference"] = log_probabilities(policy, batch)[0]
    return {**batch, "label": torch.arange(samples) % 2 == 0}


def tiny_policy() -> Any:
    """The config of a very small model that scores; found by its name, as in a run: families do not import another."""
    backbone = to_json(Backbone(width=32, depth=2, heads=2))
    return from_json({"type": "nomoat.families.lm:LM", "vocab_size": 17, "context_length": 8, "backbone": backbone})


class Preferring(Family):
    """A family that tunes whatever scores, and of which that is kept.

    Args:
        config: with the `policy` that is tuned.
    """

    def __init__(self, config: Any, parts: Parts | None = None) -> None:
        super().__init__()
        self.config = config
        self.policy: Any = config.policy.build(parts or {})

    @property
    def product(self) -> Family:
        return self.policy

    def example(self, samples: int = 2) -> Batch:
        return pairs(self.policy, samples)
