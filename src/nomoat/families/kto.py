"""Kahneman-Tversky optimization: single answers, each called good or bad; no pairs are needed.

    answers [B, 2, L] -> draw: policy.score of side 1 -> z0, how far the model has moved on answers to other prompts
                      -> loss: policy.score of side 0 -> r_B = logp - reference -> 1 - sigmoid(+-beta (r - z0))

Ethayarajh et al. 2024, arXiv:2402.01306. Side 0 is a prompt with its answer, side 1 the same prompt with another one's:
their mean log-ratio estimates the divergence from the reference, which has no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nomoat.core.errors import ConfigError
from nomoat.core.family import Parts
from nomoat.core.types import Batch, Loss
from nomoat.nn.answers import Preferring, reference, tiny_policy


@dataclass(frozen=True)
class KTO:
    """Preference tuning on single answers, of whatever scores.

    Args:
        policy: the config of the model that is tuned and kept; None in a recipe: that of its `start`.
        beta: how dear it is to leave the reference.
        good: weight of answers that are called good.
        bad: weight of the others; the paper advises weights x counts of about the same size on both sides.
    """

    policy: Any = None
    beta: float = 0.1
    good: float = 1.0
    bad: float = 1.0

    def __post_init__(self) -> None:
        if not min(self.beta, self.good, self.bad) > 0:
            raise ConfigError(
                f"beta {self.beta}, good {self.good} and bad {self.bad} cannot be", fix="use numbers above zero"
            )

    @property
    def product(self) -> Any:
        return self.policy

    def build(self, parts: Parts) -> ProspectTheory:
        return ProspectTheory(self, parts)

    @classmethod
    def tiny(cls) -> KTO:
        return cls(tiny_policy(), beta=1.0)


def answer_losses(ratio_B: Tensor, divergence_B: Tensor, good_B: Tensor, config: KTO) -> Tensor:
    """The loss of each answer [B]: of its log-ratio to the reference, the divergence, and whether it is good."""
    sign_B = torch.where(good_B, 1.0, -1.0)
    value_B = 1 - torch.sigmoid(config.beta * sign_B * (ratio_B - divergence_B))
    return value_B * torch.where(good_B, config.good, config.bad)


class ProspectTheory(Preferring):
    """See the module's first lines. What is kept is the policy."""

    counts: ClassVar[str] = "answer"

    @torch.no_grad()
    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Add `divergence` [B]: one number of the whole batch, so that the loss may be split."""
        place = next(self.parameters()).device
        other = {name: batch[name][:, 1:].to(place) for name in ("tokens", "mask", "reference")}
        logp = self.policy.score({name: other[name].flatten(0, 1) for name in ("tokens", "mask")}).float().sum(-1)
        divergence = (logp - reference(other).flatten()).mean().clamp(min=0)
        return {**batch, "divergence": divergence.expand(len(batch["tokens"])).cpu()}

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Summed over answers; parts: `accuracy` (moved the right way), `divergence`."""
        own = {name: batch[name][:, :1] for name in ("tokens", "mask")}
        logp_B = self.policy.score({name: held.flatten(0, 1) for name, held in own.items()}).float().sum(-1)
        ratio_B, divergence_B, good_B = logp_B - reference(batch)[:, 0], batch["divergence"], batch["label"]
        loss_B = answer_losses(ratio_B, divergence_B, good_B, self.config)
        parts = {"accuracy": ((ratio_B > divergence_B) == good_B).sum(), "divergence": divergence_B.sum()}
        return Loss(loss_B.sum(), torch.tensor(len(loss_B)), parts)

    def first_loss(self, batch: Batch) -> float:
        """Half the mean weight: nothing has moved yet."""
        return float(torch.where(batch["label"], self.config.good, self.config.bad).mean() / 2)
