"""Odds-ratio preference optimization: teach the chosen answer and raise its odds over the rejected one's, at once.

    pairs [B, 2, L] -> policy.score -> logp_B2 / tokens -> log odds [B, 2] -> -log sigmoid of their difference
                                                     \\-> nats a token of the chosen answer

Hong et al. 2024, arXiv:2403.07691. Odds of an answer: P / (1 - P), with P the geometric mean of its tokens'
probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nomoat.core.errors import ConfigError
from nomoat.core.family import Parts
from nomoat.core.types import Batch, Loss
from nomoat.nn.answers import Preferring, log_probabilities, tiny_policy


@dataclass(frozen=True)
class ORPO:
    """Preference tuning in one stage with supervised tuning, of whatever scores.

    Args:
        policy: the config of the model that is tuned and kept; None in a recipe: that of its `start`.
        beta: weight of the odds ratio (the paper's lambda) beside the chosen answer's nats a token.
    """

    policy: Any = None
    beta: float = 0.1

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ConfigError(f"beta {self.beta} would leave the rejected answers out", fix="use a number above zero")

    @property
    def product(self) -> Any:
        return self.policy

    def build(self, parts: Parts) -> OddsRatio:
        return OddsRatio(self, parts)

    @classmethod
    def tiny(cls) -> ORPO:
        return cls(tiny_policy())


def odds_losses(mean_B2: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each pair [B] and its log odds ratio [B], of mean log-probabilities a token [B, 2]."""
    # 1 - P goes to zero with P to one: P is held below it, so that a learned answer has finite odds.
    mean_B2 = mean_B2.clamp(max=-1e-6)
    odds_B2 = mean_B2 - torch.log(-torch.expm1(mean_B2))
    ratio_B = odds_B2[:, 0] - odds_B2[:, 1]
    return -F.logsigmoid(ratio_B), ratio_B


class OddsRatio(Preferring):
    """See the module's first lines. What is kept is the policy."""

    counts: ClassVar[str] = "pair"

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Summed over pairs; parts: `margin` (the log odds ratio), `accuracy` (ratios above one), `chosen_nats`."""
        logp_B2, count_B2 = log_probabilities(self.policy, batch)
        mean_B2 = logp_B2 / count_B2
        loss_B, ratio_B = odds_losses(mean_B2)
        parts = {"margin": ratio_B.sum(), "accuracy": (ratio_B > 0).sum(), "chosen_nats": -mean_B2[:, 0].sum()}
        return Loss((self.config.beta * loss_B - mean_B2[:, 0]).sum(), torch.tensor(len(loss_B)), parts)

    def first_loss(self, batch: Batch) -> float:
        """The chosen answers' nats a token before training, and the weighted loss of their odds as they are then."""
        mean_B2 = batch["reference"] / batch["mask"][..., 1:].sum(-1).clamp(min=1)
        return float((self.config.beta * odds_losses(mean_B2)[0] - mean_B2[:, 0]).mean())
