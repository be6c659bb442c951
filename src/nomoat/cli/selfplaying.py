"""selfplay: a player of a game, from nothing.

game, budget -> nomoat.selfplaying.selfplay(..., watch=display) -> Run -> the ladder, what to type next
"""

from __future__ import annotations

import click

from nomoat.cli import options
from nomoat.cli.display import watching
from nomoat.cli.making import ended
from nomoat.cli.output import Output


@click.command()
@click.argument("game")
@click.argument("changes", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--budget", default="30m", help="As everywhere. [30m]")
@click.option("--workers", type=click.IntRange(0), help="Processes that play beside the training. [the recipe's]")
@options.seed
@options.device
@options.as_json
@click.pass_obj
def selfplay(
    output: Output, game: str, changes: tuple[str, ...], budget: str, workers: int | None, seed: int, device: str
) -> None:
    """Train a player of GAME from nothing, by letting it play itself (AlphaZero).

    GAME is connect-four (or connect-four:8x7), go:5 (go:9@6.5 has a komi of its own), othello:6, tic-tac-toe,
    open-spiel:NAME, or a .py file with a game of your own. Settings of the recipe can be changed:
    data.manner.simulations=64 family.trunk.width=64.
    """
    from nomoat import selfplaying

    with watching(output, f"nomoat selfplay {game} \u00b7 {budget}") as watch:
        run = selfplaying.selfplay(game, budget, device, seed, watch, workers, changes)
    ended(output, run)
