"""What a recipe costs on paper: parameters, floating-point operations, and hours and money on one H100.

    recipe -> parameters, FLOPs a token -> tokens of its budget -> FLOPs -> / (peak x share) -> hours -> money

Nothing is trained and no data is read. The peak is NVIDIA's figure for dense bf16 on the SXM card; the share of it that
training reaches is assumed (Chowdhery et al. 2022, arXiv:2204.02311, table 3 has 21 to 46 %).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nomoat.core.errors import ConfigError
from nomoat.core.recipe import Recipe
from nomoat.train.plan import flops_per_token

H100_FLOPS = 989e12
SHARE = 0.4
USD_PER_HOUR = 2.5
BYTES_PER_PARAMETER = 16  # weights, gradient and two moments in fp32


@dataclass(frozen=True)
class OnPaper:
    """A recipe's cost, none of it measured.

    Args:
        recipe: what would be trained.
        parameters: of the model.
        flops_per_token: forward and backward.
        tokens: that the budget buys.
        flops: of the whole training.
        h100_hours: on one H100 at `SHARE` of its peak.
        money: for these hours, in the currency of `price_per_hour`.
        price_per_hour: as stated, or `USD_PER_HOUR` as an assumption.
        state_bytes: weights, gradients and optimizer; activations come on top.
    """

    recipe: Recipe
    parameters: int
    flops_per_token: float
    tokens: float
    flops: float
    h100_hours: float
    money: float
    price_per_hour: float
    state_bytes: float

    @property
    def expected(self) -> dict[str, Any]:
        """As plain numbers."""
        return {name: value for name, value in asdict(self).items() if name != "recipe"} | {"how": "assumed"}

    def as_text(self) -> str:
        """For the terminal."""
        rows: Mapping[str, str] = {
            "recipe": self.recipe.about,
            "parameters": f"{self.parameters:,}",
            "tokens": f"{self.tokens:,.0f}",
            "FLOPs": f"{self.flops:.3g} ({self.flops_per_token:.3g} a token, forward and backward)",
            "memory": f"{self.state_bytes / 1e9:.2f} GB for weights, gradients and optimizer; activations on top",
            "time": f"{self.h100_hours:.1f} h on one H100 at {SHARE:.0%} of {H100_FLOPS / 1e12:.0f} TFLOP/s, assumed",
            "cost": f"{self.money:,.2f} at {self.price_per_hour:g} an hour (assumed; state yours: --price-per-hour)",
        }
        return "\n".join(f"{name:<11} {text}" for name, text in rows.items())


def on_paper(recipe: Recipe, price_per_hour: float | None = None) -> OnPaper:
    """Reckon what a recipe with a budget in tokens or steps costs.

    Args:
        recipe: of a model of text.
        price_per_hour: of one H100; None: `USD_PER_HOUR`.

    Raises:
        ConfigError: a budget in time, money or energy: what it buys depends on the machine.
    """
    family, budget = recipe.family, recipe.budget
    if not hasattr(family, "backbone") or not hasattr(family, "vocab_size"):
        raise ConfigError(f"{type(family).__name__} cannot be reckoned on paper", "it is not a model of text")
    per_step = recipe.batch_size * family.context_length
    known = {"tokens": budget.amount, "steps": budget.amount * per_step}
    if budget.unit not in known:
        raise ConfigError(
            f"a budget of {budget.text} buys other tokens on every machine",
            "on paper there is none",
            "add budget=20Mtokens, or plan for a folder: `nomoat plan notes --budget 30m`",
        )
    tables = 1 if family.backbone.dialect.output == "tied" else 2
    parameters = family.backbone.parameters() + tables * family.vocab_size * family.backbone.width
    tokens, each = known[budget.unit], flops_per_token(recipe)
    hours = tokens * each / (H100_FLOPS * SHARE) / 3600
    price = price_per_hour or USD_PER_HOUR
    return OnPaper(
        recipe, parameters, each, tokens, tokens * each, hours, hours * price, price, BYTES_PER_PARAMETER * parameters
    )
