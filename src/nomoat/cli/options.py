"""Options that several commands share, each written once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

as_json: Decorator = click.option(
    "--json", "as_json", is_flag=True, expose_value=False, help="One JSON object a line; the last is the result."
)
device: Decorator = click.option(
    "--device", metavar="auto|cpu|cuda|mps", default="auto", help="Where to compute. [auto]"
)
licence: Decorator = click.option("--licence", metavar="SPDX", help="The licence of the files, e.g. CC-BY-4.0.")
seed: Decorator = click.option("--seed", type=int, default=0, help="Same seed, same result. [0]")


def budget(function: Callable[..., Any]) -> Callable[..., Any]:
    """The budget, and what turns money and energy into time."""
    for option in (
        click.option("--watts", type=float, help="Power of the machine, where it cannot be measured."),
        click.option("--price-per-hour", type=float, help="What an hour of the machine costs, for budgets in money."),
        click.option(
            "--budget",
            default="5m",
            help="Time, steps, tokens, money or energy: 30m, 5000steps, 20Mtokens, 0.50EUR, 30Wh. [5m]",
        ),
    ):
        function = option(function)
    return function
