"""A game by its name on the command line, or from a user's own file.

"go:9@6.5" | "othello:6" | "open-spiel:hex(board_size=5)" | "my_game.py" -find-> Game
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from nomoat.core.errors import ConfigError, nearest
from nomoat.core.recipe import module_at
from nomoat.games.connect_four import ConnectFour
from nomoat.games.go import Go
from nomoat.games.open_spiel import OpenSpiel
from nomoat.games.othello import Othello
from nomoat.games.rules import Game
from nomoat.games.tic_tac_toe import TicTacToe


class Known(NamedTuple):
    """How a game is asked for.

    Args:
        example: its name with settings.
        settings: a pattern for what follows the colon.
        make: the game of what the pattern's groups found; None where there was nothing.
    """

    example: str
    settings: str
    make: Callable[..., Game]


def _connect_four(columns: str | None, rows: str | None, in_a_row: str | None) -> Game:
    return ConnectFour(int(rows or 6), int(columns or 7), int(in_a_row or 4))


KNOWN: Mapping[str, Known] = {
    "tic-tac-toe": Known("tic-tac-toe", "", TicTacToe),
    "connect-four": Known("connect-four:8x7", r"(?:(\d{1,3})x(\d{1,3})(?:x(\d{1,3}))?)?", _connect_four),
    "othello": Known("othello:6", r"(\d{1,3})?", lambda size: Othello(int(size or 8))),
    "go": Known(
        "go:9@6.5",
        r"(\d{1,3})?(?:@(-?\d{1,3}(?:\.\d{1,8})?))?",
        lambda size, komi: Go(int(size or 9), 7.5 if komi is None else float(komi)),
    ),
    "open-spiel": Known("open-spiel:hex(board_size=5)", "(.+)", OpenSpiel),
}
ALSO = {"tictactoe": "tic-tac-toe", "connect4": "connect-four", "reversi": "othello"}


def find(name: str) -> Game:
    """The game of a name: see `KNOWN`; or of a file: `my_game.py`, or `my_game.py:name` where it has several.

    Raises:
        ConfigError: there is none, or not of those settings; or the file holds no game, or several.
    """
    if file := re.fullmatch(r"(.+\.py)(?::(\w+))?", name):
        return _from_file(Path(file[1]), file[2])
    word, colon, settings = name.partition(":")
    word = word.lower().replace("_", "-")
    known = KNOWN.get(ALSO.get(word, word))
    if known is None:
        listed = ", ".join(known.example for known in KNOWN.values())
        near = nearest(word, (*KNOWN, *ALSO))
        raise ConfigError(
            f"there is no game `{name}`", f"there is {listed}", near or "or `open-spiel:NAME`, or give a .py file"
        )
    found = re.fullmatch(known.settings, settings, re.ASCII)
    if found is None or bool(colon) != bool(settings):
        raise ConfigError(f"`{name}` cannot be read", fix=f"write it like `{known.example}`")
    return known.make(*found.groups())


def _from_file(path: Path, name: str | None) -> Game:
    """The one game that a file defines, or that of a name.

    A class that has all of a game's parts looks like a game to `isinstance`: only values count.
    """
    module = module_at(path, f"a game is a name like `{KNOWN['go'].example}` or a .py file")
    games = {
        word: value for word, value in vars(module).items() if isinstance(value, Game) and not isinstance(value, type)
    }
    if name is not None:
        games = {word: value for word, value in games.items() if word == name}
    if len(games) != 1:
        what = f"{len(games)} games: {', '.join(games)}" if games else f"no game `{name}`" if name else "no game"
        fix = f"name one: `{path}:{next(iter(games))}`" if games else "end it with `game = MyGame()`"
        raise ConfigError(f"{path} defines {what}", "a game has all parts of nomoat.games.rules.Game", fix)
    return next(iter(games.values()))
