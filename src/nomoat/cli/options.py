"""Options that several commands share, each written once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
allow: Decorator = click.option("--allow", metavar="REASON", help="Why it may be trained against its licences.")
seed: Decorator = click.option("--seed", type=int, default=0, help="Same seed, same result. [0]")


def sampling(function: Callable[..., Any]) -> Callable[..., Any]:
    """How text is drawn."""
    for option in (
        click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times."),
        click.option("--min-p", type=click.FloatRange(0, 1), help="Only tokens of this share of the best. [0]"),
        click.option(
            "--top-p", type=click.FloatRange(0, 1), help="Only tokens that make up this share. [0.95; chat: 0.9]"
        ),
        click.option("--top-k", type=click.IntRange(0), help="Only the k likeliest tokens; 0: all. [0]"),
        click.option("--temperature", type=click.FloatRange(0), help="0: always the likeliest token. [0.8; chat: 0.2]"),
        click.option("--max-tokens", type=click.IntRange(0), help="Stop after so many tokens. [256; chat: 512]"),
    ):
        function = option(function)
    return function


def given(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in sampling.items() if value not in (None, ())}


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


def of_pictures(function: Callable[..., Any]) -> Callable[..., Any]:
    """What may be asked of a model that draws."""
    for option in (
        click.option("--size", type=int, metavar="PIXELS", help="Of pictures, a side, 8 to 64. [what suits, up to 32]"),
        click.option(
            "--family", "kind", metavar="KIND", help="Of pictures: diffusion, dit, shortcut, r3gan. [what suits]"
        ),
    ):
        function = option(function)
    return function


bits = click.option(
    "--bits",
    type=click.Choice(["32", "16", "8", "4"]),
    callback=lambda context, option, value: None if value is None else int(value),
    help="Bits of the weights in memory. [what is fast]",
)
