"""Process reward: at the end of each step, the chance that what has been written so far will end right.

    tokens_BL -> body.stack -> x_BLD at the ends of steps -> head -> logit -> cross-entropy with how it ended

Trained on what a model itself wrote and how that ended, no step need be labelled by hand: the mean over continuations
is what is learned (Wang et al. 2023, arXiv:2312.08935; Lightman et al. 2023, arXiv:2305.20050). The body is a language
model, which the recipe's `start` gives.
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
from nomoat.nn.answers import tiny_policy


@dataclass(frozen=True)
class ProcessReward:
    """A head on a language model.

    Args:
        policy: the config of the body; None in a recipe: that of its `start`.
    """

    policy: Any = None

    @property
    def context_length(self) -> int:
        """Of the body."""
        return int(self.policy.context_length)

    def build(self, parts: Parts) -> ProcessRewardModel:
        return ProcessRewardModel(self)

    @classmethod
    def tiny(cls) -> ProcessReward:
        return cls(tiny_policy())


class ProcessRewardModel(Family):
    """See the module's first lines."""

    counts: ClassVar[str] = "step"
    claims: ClassVar[dict[str, str]] = {
        "uses_input": "it predicts how a text ends, not its tokens; tests/test_improving.py shows that it reads them"
    }

    def __init__(self, config: ProcessReward) -> None:
        super().__init__()
        self.config = config
        self.policy: Any = config.policy.build({})
        self.head = nn.Linear(config.policy.backbone.width, 1)
        nn.init.zeros_(self.head.weight)  # at first everything may end either way
        nn.init.zeros_(self.head.bias)

    @property
    def starts(self) -> Family:
        return self.policy

    def logits(self, tokens_BL: Tensor) -> Tensor:
        """After each token [B, L]."""
        x_BLD = self.policy.stack(self.policy.embed(tokens_BL), None).x_BLD
        return self.head(x_BLD.to(self.head.weight.dtype))[..., 0].float()

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Summed over the ends of steps, `ends` [B, L + 1]; `right` [B] says how each row ended. Part: `accuracy`."""
        ends_BL = batch["ends"]
        logit_BL = self.logits(batch["tokens"])
        right_BL = batch["right"][:, None].expand_as(logit_BL).float()
        nats_BL = F.binary_cross_entropy_with_logits(logit_BL, right_BL, reduction="none")
        hits = (((logit_BL > 0) == (right_BL > 0.5)) & ends_BL).sum()
        return Loss((nats_BL * ends_BL).sum(), ends_BL.sum(), {"accuracy": hits})

    def first_loss(self, batch: Batch) -> float:
        """ln 2: either way."""
        return math.log(2)

    @torch.inference_mode()
    def judge(self, tokens_BL: Tensor) -> Tensor:
        """The chance [B] that rows, each at the end of a step, will end right."""
        return self.logits(tokens_BL)[:, -1].sigmoid()

    def example(self, samples: int = 2) -> Batch:
        batch = self.policy.example(samples)
        ends = torch.zeros_like(batch["mask"])
        ends[:, 2::3] = True
        return {"tokens": batch["tokens"], "ends": ends, "right": torch.arange(samples) % 2}
