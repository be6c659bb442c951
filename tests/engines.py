"""Programs that speak GTP, well or badly, written where a test wants them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

WELL = """
import os, signal, subprocess, sys, time
KNOWN = {"name": "fake", "version": "1", "known_command": "true"}
def say(text, mark="=", end="\\n\\n"):
    sys.stdout.write(f"{mark}{number} {text}{end}")
    sys.stdout.flush()
def well():
    say(KNOWN.get(command, ""))
"""
LOOP = """
for line in sys.stdin:
    number, command, *words = line.split()
    answer()
    if command == "quit":
        break
"""


def fake(folder: Path, body: str, first: str = "") -> str:
    """The command that starts an engine.

    Args:
        folder: where its program is written.
        body: of a function that answers `command` with `words`; `say(text)` answers, `well()` as others do.
        first: what it does before it listens.
    """
    lines = "".join(f"\n    {line}" for line in body.strip().splitlines())
    path = folder / "engine.py"
    path.write_text(f"{WELL}\ndef answer():{lines}\n{first}\n{LOOP}", encoding="utf-8")
    return shlex.join([sys.executable, "-I", "-S", str(path)])


def ours(folder: Path, game: str, chooser: str) -> str:
    """The command that starts our own engine.

    Args:
        folder: where its program is written.
        game: an expression, such as `Go(5, 0.5)`.
        chooser: an expression; `game` and `rng` are known to it.
    """
    path = folder / "ours.py"
    path.write_text(
        f"""
import sys
import numpy as np
from nomoat.games.go import Go
from nomoat.games.gtp_engine import Chosen, serve
from nomoat.games.rules import random_actions
from nomoat.games.tic_tac_toe import TicTacToe
game, rng = {game}, np.random.default_rng(0)
serve(game, {chooser}, sys.stdin, sys.stdout, sys.stderr)
""",
        encoding="utf-8",
    )
    return shlex.join([sys.executable, str(path)])
