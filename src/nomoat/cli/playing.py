"""play: a game against a trained player, in the terminal, over GTP, or a match.

run -> nomoat.playing.seated -> board, your move, its move and what it thinks      --gtp: an engine      --opponent: Elo
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from nomoat.cli import options
from nomoat.cli.output import Output
from nomoat.core.errors import ConfigError

if TYPE_CHECKING:
    from nomoat.games.match import MatchResult
    from nomoat.playing import Board

HELP = "a move, or: hint, undo, quit"


@click.command()
@click.argument("model", metavar="RUN")
@click.option("--simulations", default=200, show_default=True, type=click.IntRange(0), help="Thought before a move.")
@click.option("--seconds", type=float, help="Thought before a move at most. [no limit]")
@click.option("--second", is_flag=True, help="You move second.")
@click.option("--gtp", is_flag=True, help="Be an engine for programs that speak the Go Text Protocol.")
@click.option("--opponent", metavar="PLAYER", help="A match: a GTP program's command, random, playouts:N, or a run.")
@click.option("--games", default=20, show_default=True, type=click.IntRange(2), help="Of a match, an even number.")
@click.option("--openings", default=0, show_default=True, type=click.IntRange(0), help="Random plies before each pair.")
@options.seed
@options.device
@options.as_json
@click.pass_obj
def play(
    output: Output,
    model: str,
    simulations: int,
    seconds: float | None,
    second: bool,
    gtp: bool,
    opponent: str | None,
    device: str,
    **match: Any,
) -> None:
    """Play against RUN, a player that `nomoat selfplay` made; it says how sure it is and what it looked at.

    --gtp makes it an engine that any GTP program can drive; --opponent "gnugo --mode gtp --level 10" plays a match with
    colours swapped and gives the difference in Elo.
    """
    from nomoat import playing

    with playing.seated(model, simulations, seconds, device) as seat:
        if gtp:
            playing.speak_gtp(seat, sys.stdin, sys.stdout, sys.stderr)
        elif opponent is not None:
            _match(output, playing.against(seat, opponent, **match))
        else:
            _table(output, playing.Board(seat), 1 if second else 0)


def _match(output: Output, result: MatchResult) -> None:
    """What a match came to."""
    from nomoat.games.match import elo

    found, (won, drawn, lost) = elo(result), result.counts()
    first, then = result.counts(True), result.counts(False)
    ours, theirs = result.forfeits()
    lines = [
        f"{result.one} against {result.other}: {won} won, {drawn} drawn, {lost} lost",
        f"moving first {first[0]}-{first[1]}-{first[2]}, second {then[0]}-{then[1]}-{then[2]}",
        f"Elo {found.difference:+.0f} (95 %: {found.low:+.0f} to {found.high:+.0f})",
    ]
    if ours or theirs:
        lines.append(f"forfeited: {ours} by {result.one}, {theirs} by {result.other}")
    if result.stopped:
        lines.append(f"stopped early: {result.stopped}")
    told = {"won": won, "drawn": drawn, "lost": lost, "elo": list(found), "forfeits": [ours, theirs]}
    output.result({"one": result.one, "other": result.other, **told, "stopped": result.stopped}, "\n".join(lines))


def _table(output: Output, board: Board, colour: int) -> None:
    """A game against whoever types."""
    game = board.seat.game
    while not board.over:
        if int(game.mover(board.state)[0]) == colour:
            output.say(f"\n{game.show(board.state[0])}\n")
            if not _asked(output, board):
                return
        else:
            found = board.think()
            board.play(found.action)
            output.say(found.said(game))
            output.event({"kind": "move", "action": game.spell(found.action), "won": found.won})
    output.say(f"\n{game.show(board.state[0])}\n")
    said = {1.0: "You have won.", -1.0: "You have lost.", 0.0: "A draw."}[max(-1.0, min(1.0, board.result(colour)))]
    output.result({"result": board.result(colour)}, said)


def _asked(output: Output, board: Board) -> bool:
    """One move of the person's; False to end."""
    while True:
        try:
            typed = click.prompt("your move", prompt_suffix=" > ").strip()
        except (click.Abort, EOFError):
            return False
        if typed in ("quit", "exit", "q"):
            return False
        if typed == "undo":
            board.undo(2)
            output.say(f"\n{board.seat.game.show(board.state[0])}\n")
        elif typed == "hint":
            output.say(f"I would play {board.think().said(board.seat.game)}")
        else:
            try:
                board.play(board.seat.game.parse(typed))
                return True
            except ConfigError as error:
                output.say(f"{error.what}. {error.fix} ({HELP})")
