"""Direct preference optimization: make the chosen answer likelier than the rejected one, measured from where one began.

    pairs [B, 2, L] -> policy.score -> logp_B2 - reference_B2 -> beta x (chosen - rejected) -> -log sigmoid

Rafailov et al. 2023, arXiv:2305.18290. Alone it may lower the log-probability of both sides, as long as the rejected
one falls faster; with `nll` the chosen answer is also taught (Pang et al. 2024, arXiv:2404.19733), so that it does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nomoat.core.errors import ConfigError
from nomoat.core.family import Parts
from nomoat.core.types import Batch, Loss
from nomoat.nn.answers import Preferring, log_probabilities, reference, tiny_policy


@dataclass(frozen=True)
class DPO:
    """Preference tuning of whatever scores.

    Args:
        policy: the config of the model that is tuned and kept; None in a recipe: that of its `start`.
        beta: how dear it is to leave the reference: the loss is satisfied by a margin of a few / beta nats.
        nll: weight of the chosen answer's nats a token, beside the loss of the pair; 0: the loss of the paper alone.
    """

    policy: Any = None
    beta: float = 0.1
    nll: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta > 0 or not self.nll >= 0:
            raise ConfigError(f"beta {self.beta} and nll {self.nll} cannot be", "beta is above zero, nll not below")

    @property
    def product(self) -> Any:
        return self.policy

    def build(self, parts: Parts) -> DirectPreference:
        return DirectPreference(self, parts)

    @classmethod
    def tiny(cls) -> DPO:
        return cls(tiny_policy())


def pair_losses(logp_B2: Tensor, reference_B2: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The loss of each pair [B], and its margin [B]: beta times how much more the chosen side has gained."""
    gained_B2 = beta * (logp_B2 - reference_B2)
    margin_B = gained_B2[:, 0] - gained_B2[:, 1]
    return -F.logsigmoid(margin_B), margin_B


class DirectPreference(Preferring):
    """See the module's first lines. What is kept is the policy."""

    counts: ClassVar[str] = "pair"

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Summed over pairs; parts: `margin`, `accuracy` (margins above zero), `chosen_gain` (nats of the answer)."""
        before_B2 = reference(batch)
        logp_B2, count_B2 = log_probabilities(self.policy, batch)
        loss_B, margin_B = pair_losses(logp_B2, before_B2, self.config.beta)
        if self.config.nll:
            loss_B = loss_B - self.config.nll * logp_B2[:, 0] / count_B2[:, 0]
        gain = (logp_B2 - before_B2)[:, 0].sum()
        parts = {"margin": margin_B.sum(), "accuracy": (margin_B > 0).sum(), "chosen_gain": gain}
        return Loss(loss_B.sum(), torch.tensor(len(loss_B)), parts)

    def first_loss(self, batch: Batch) -> float:
        """ln 2, and the weighted nats a token of the chosen answers before training."""
        count_B = batch["mask"][:, 0, 1:].sum(-1).clamp(min=1)
        return math.log(2) - self.config.nll * float((batch["reference"][:, 0] / count_B).mean())
