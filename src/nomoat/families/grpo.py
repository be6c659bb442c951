"""GRPO and RLOO: what was written and came out better than what was written beside it becomes likelier.

    live source: several answers to each prompt -> rewards -> advantage_B      policy.score -> logp_BL
    ratio = e^(logp - old) -> -min(ratio A, clip(ratio) A) + kl (e^(ref - logp) - (ref - logp) - 1), a token

The advantages come with the batch (data/rollouts.py): a group's rewards less their mean, over their deviation
(GRPO), or each less the mean of the others (RLOO). Shao et al. 2024, arXiv:2402.03300; Ahmadian et al. 2024,
arXiv:2402.14740; Liu et al. 2025, arXiv:2503.20783 (one divisor for all rows, so that long ones weigh no less);
Schulman 2020 ("Approximating KL divergence": the third estimator).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from nomoat.core.errors import ConfigError
from nomoat.core.family import Frozen, Parts
from nomoat.core.types import Batch, Loss
from nomoat.nn.answers import Preferring, tiny_policy

REFERENCE = "reference"


@dataclass(frozen=True)
class GRPO:
    """Reinforcement of whatever scores.

    Args:
        policy: the config of the model that is trained and kept; None in a recipe: that of its `start`.
        clip: how far a token's ratio may be from 1, below and above; only where a batch is used more than once does it
            ever get there.
        kl: how dear it is to leave the part `reference`; 0: free, and no such part is needed.
    """

    policy: Any = None
    clip: tuple[float, float] = (0.2, 0.28)
    kl: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.clip[0] < 1 or not self.clip[1] > 0 or self.kl < 0:
            raise ConfigError(f"clip {self.clip} and kl {self.kl} cannot be", "clip lies in (0, 1), kl is not below 0")

    @property
    def product(self) -> Any:
        return self.policy

    def build(self, parts: Parts) -> Reinforced:
        return Reinforced(self, parts)

    @classmethod
    def tiny(cls) -> GRPO:
        return cls(tiny_policy())


class Reinforced(Preferring):
    """See the module's first lines. What is kept is the policy."""

    counts: ClassVar[str] = "answer"
    claims: ClassVar[dict[str, str]] = {
        "overfits": "a better answer has no likeliest value: its probability only grows",
    }

    def __init__(self, config: GRPO, parts: Parts | None = None) -> None:
        super().__init__(config)
        self.reference: Frozen | None = (parts or {}).get(REFERENCE)
        if config.kl and self.reference is None:
            raise ConfigError(
                "kl keeps the model near a reference, and there is none",
                f"the part `{REFERENCE}` is missing",
                "set family.kl=0, or name the run: parts={'reference': Ref(RUN)}",
            )

    def draw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """`reference_logp` [B, L], where the loss needs it."""
        if not self.config.kl or self.reference is None or "reference_logp" in batch:
            return batch
        device = next(self.parameters()).device
        placed = {name: batch[name].to(device) for name in ("tokens", "mask")}
        with torch.no_grad():
            return {**batch, "reference_logp": self.reference.to(device).score(placed).cpu()}

    def loss(self, batch: Batch, player: str = "model", progress: float = 0.0) -> Loss:
        """Summed over answers, each token's share being one of `length`, the mean tokens of an answer in the batch.

        Of the batch: `tokens` and `mask` [B, L + 1], `advantage` [B], `length` [B] (the same for all); where a batch
        is used more than once `old_logp` [B, L]; and what is only reported, `reward` and `idle` [B] (answers of groups
        whose advantages are all zero). Parts: `reward`, `idle`, `nats` of the answers' tokens, `kl` to the reference.
        """
        counted_BL, advantage_B1 = batch["mask"][:, 1:], batch["advantage"][:, None]
        logp_BL = self.policy.score(batch).float()
        old_BL = batch.get("old_logp", logp_BL.detach())
        ratio_BL = (logp_BL - old_BL).exp()
        low, high = self.config.clip
        gain_BL = torch.minimum(ratio_BL * advantage_B1, ratio_BL.clamp(1 - low, 1 + high) * advantage_B1)
        kl_BL = torch.zeros_like(logp_BL)
        if "reference_logp" in batch:
            gap_BL = batch["reference_logp"] - logp_BL
            kl_BL = gap_BL.exp() - gap_BL - 1
        share_BL = counted_BL / batch["length"][:, None]
        total = ((self.config.kl * kl_BL - gain_BL) * share_BL).sum()
        parts: dict[str, Tensor] = {
            "reward": batch["reward"].sum(),
            "idle": batch["idle"].sum(),
            "nats": -(logp_BL.detach() * share_BL).sum(),
            "kl": (kl_BL.detach() * share_BL).sum(),
        }
        return Loss(total, torch.tensor(len(counted_BL)), parts)

    def first_loss(self, batch: Batch) -> float:
        """Minus the mean advantage, by tokens: all ratios are 1."""
        share_B = batch["mask"][:, 1:].sum(1) / batch["length"]
        return -float((batch["advantage"] * share_B).mean())

    def example(self, samples: int = 2) -> Batch:
        batch = self.policy.example(samples)
        advantage = torch.linspace(-1, 1.5, samples)
        rest = {"reward": (advantage > 0).float(), "idle": torch.zeros(samples)}
        length = batch["mask"][:, 1:].sum(1).float()
        return {**batch, "advantage": advantage, "length": length.mean().expand(samples).clone(), **rest}
