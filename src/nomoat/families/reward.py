"""Reward model: one number for an answer, learned from which of two was preferred.

    pairs [B, 2, L] -> body.encode (mean over prompt and answer) -> x [2 B, D] -> head -> reward_B2
                                                     -> -log sigmoid(chosen - rejected)

Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, section 3.5. The body is whatever encodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomoat.core.family import Family, Parts
from nomoat.core.types import Batch, Loss
from nomoat.nn.answers import pairs, sides, tiny_policy


@dataclass(frozen=True)
class Reward:
    """A head on whatever encodes.

    Args:
        policy: the config of the body; None in a recipe: that of its `start`.
    """

    policy: Any = None

    @property
    def context_length(self) -> int:
        """Of the body."""
        return int(self.policy.context_length)

    def build(self, parts: Parts) -> RewardModel:
        return RewardModel(self, parts)

    @classmethod
    def tiny(cls) -> Reward:
        return cls(tiny_policy())


class RewardModel(Family):
    """See the module's first lines. Scores: a number a row."""

    counts: ClassVar[str] = "pair"

    def __init__(self, config: Reward, parts: Parts | None = None) -> None:
        super().__init__()
        self.config = config
        self.policy: Any = config.policy.build(parts or {})
        self.head = nn.Linear(config.policy.backbone.width, 1, bias=False)
        nn.init.zeros_(self.head.weight)  # at first it prefers nothing

    @property
    def starts(self) -> Family:
        return self.policy

    def score(self, batch: Batch) -> Tensor:
        """The reward [B, 1] of each row: of its tokens [B, L] up to the last under `mask`, the answer's end."""
        mask_BL = batch["mask"]
        read_BL = mask_BL.int().flip(-1).cumsum(-1).flip(-1) > 0
        return self.head(self.policy.encode({"tokens": batch["tokens"], "mask": read_BL}).to(self.head.weight.dtype))

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Summed over pairs; parts: `margin` and `accuracy`."""
        reward_B2 = self.score(sides(batch)).float().unflatten(0, (-1, 2))[..., 0]
        margin_B = reward_B2[:, 0] - reward_B2[:, 1]
        parts = {"margin": margin_B.sum(), "accuracy": (margin_B > 0).sum()}
        return Loss(-F.logsigmoid(margin_B).sum(), torch.tensor(len(margin_B)), parts)

    def first_loss(self, batch: Batch) -> float:
        """ln 2: both sides have the same reward."""
        return math.log(2)

    def example(self, samples: int = 2) -> Batch:
        return pairs(self.policy, samples)
