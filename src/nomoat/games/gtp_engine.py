"""Our own side of the Go Text Protocol: any game whose moves are words, played by any function that chooses.

    lines -strip control characters and comments-> number, command -> Table (the states so far) -> "=number text", ""
                                            genmove: state_B -chooser-> action, and what it says of it -> standard error

Go Text Protocol, version 2, draft 2 (Farnebäck 2002). A colour may play twice in a row: the other is taken to have
passed between, and `undo` takes both back. Clocks are read and not used: how long is thought is the chooser's affair.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple, TextIO

import numpy as np

from nomoat import __version__
from nomoat.core.errors import ConfigError, NomoatError
from nomoat.games.gtp import COLOURS, RESIGN, board_size

if TYPE_CHECKING:
    from nomoat.core.domain import States
    from nomoat.games.rules import Game

CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
LETTERS = "ABCDEFGHJKLMNOPQRSTUVWXYZ"
BLANK = re.compile(r"\n[ \t\r]*(?=\n)")
NUMBER = re.compile(r"[0-9]{1,10}")


class Chosen(NamedTuple):
    """A move and what there is to say of it.

    Args:
        action: or RESIGN.
        said: for people, such as how often each move was visited; it goes to standard error.
    """

    action: int
    said: str = ""


Chooser = Callable[["States"], "Chosen | int"]
"""A batch of one state, that is not over -> the action of the one who moves."""


class _RefusedError(Exception):
    """What follows the question mark."""


def serve(
    game: Game, chooser: Chooser, stdin: Iterable[str], stdout: TextIO, stderr: TextIO, name: str = "nomoat"
) -> None:
    """Answer commands until `quit` or the end of the input.

    Args:
        game: the rules; `boardsize` must be theirs, and `komi` changes theirs where they have one.
        chooser: who moves at `genmove`. It is not told of another komi, which is said on standard error.
        stdin: lines.
        stdout: where answers go; each is flushed.
        stderr: where what the chooser says goes.
        name: the answer to `name`.
    """
    table = Table(game, chooser, stderr, name)
    for line in stdin:
        words = CONTROL.sub("", line.partition("#")[0]).split()
        if not words:
            continue
        number = words.pop(0) if NUMBER.fullmatch(words[0]) else ""
        try:
            mark, text = "=", table.answer(*words)
        except (_RefusedError, NomoatError) as error:
            mark, text = "?", str(error)
        stdout.write(BLANK.sub("", f"{mark}{number} {text}").rstrip() + "\n\n")
        stdout.flush()
        if words[:1] == ["quit"]:
            return


class Table:
    """A game under way, and what may be asked of it: a method for each command of the protocol."""

    def __init__(self, game: Game, chooser: Chooser, stderr: TextIO, name: str) -> None:
        self.game, self.chooser, self.stderr, self._name = game, chooser, stderr, name
        self.commands: dict[str, tuple[int, Callable[..., str]]] = {
            "protocol_version": (0, lambda: "2"),
            "name": (0, lambda: self._name),
            "version": (0, lambda: __version__),
            "known_command": (1, lambda command: str(command in self.commands).lower()),
            "list_commands": (0, lambda: "\n".join(self.commands)),
            "quit": (0, lambda: ""),
            "boardsize": (1, self.boardsize),
            "clear_board": (0, self.clear_board),
            "komi": (1, self.komi),
            "fixed_handicap": (1, self.fixed_handicap),
            "set_free_handicap": (1, self.set_free_handicap),
            "play": (2, self.play),
            "genmove": (1, self.genmove),
            "undo": (0, self.undo),
            "time_settings": (3, _clock),
            "time_left": (3, lambda colour, *times: _clock(*times)),
            "final_score": (0, self.final_score),
            "showboard": (0, lambda: "\n" + self.game.show(self.states[-1][0])),
        }
        try:
            self.pass_: int | None = game.parse("pass")
        except ConfigError:
            self.pass_ = None
        self.clear_board()

    def answer(self, command: str = "", *words: str) -> str:
        """What follows the equals sign."""
        if command not in self.commands:
            raise _RefusedError("unknown command")
        count, method = self.commands[command]
        if len(words) < count:
            raise _RefusedError("syntax error")
        return method(*(words if command == "set_free_handicap" else words[:count]))

    def clear_board(self) -> str:
        """The states since the beginning, of which the last is the present one, and no stone."""
        self.states, self.handicap = [self.game.start(1)], False
        return ""

    def boardsize(self, size: str) -> str:
        """Only the game's own."""
        if _number(size, int) != board_size(self.game):
            raise _RefusedError("unacceptable size")
        return self.clear_board()

    def komi(self, text: str) -> str:
        """Change the rules where they have one; the protocol wants every komi to be taken."""
        komi, ours = _number(text), getattr(self.game, "komi", None)
        if ours is not None and komi != ours:
            self.game = dataclasses.replace(self.game, komi=komi)  # type: ignore[type-var]
            self.stderr.write(f"komi {komi:g} is for the score alone: moves are still chosen for {ours:g}\n")
        return ""

    def play(self, colour: str, move: str) -> str:
        """Somebody's move."""
        mover = _colour(colour)
        try:
            action = self.game.parse(move)
        except ConfigError as error:
            raise _RefusedError("illegal move") from error
        self.states.append(self._after(self._turn(self.states[-1], mover), action))
        return ""

    def genmove(self, colour: str) -> str:
        """The chooser's; in a game that is over it passes."""
        state_B = self.states[-1]
        if not self._over(state_B):
            state_B = self._turn(state_B, _colour(colour))
        if self._over(state_B):
            if self.pass_ is None:
                raise _RefusedError("the game is over")
            self.states.append(state_B)
            return "pass"
        chosen = self.chooser(state_B)
        action, said = chosen if isinstance(chosen, Chosen) else (int(chosen), "")
        if said:
            self.stderr.write(said.rstrip("\n") + "\n")
            self.stderr.flush()
        if action == RESIGN:
            return "resign"
        self.states.append(self._after(state_B, action, "no legal move was chosen"))
        return self.game.spell(action)

    def undo(self) -> str:
        """Back by one move; stones of a handicap stay."""
        if len(self.states) == 1:
            raise _RefusedError("cannot undo")
        self.states.pop()
        return ""

    def final_score(self) -> str:
        """Points where the game counts them (`score`, the first player's lead), else one for who has won."""
        state_B = self.states[-1]
        outcome, score = self.game.outcome(state_B), getattr(self.game, "score", None)
        if score is None and not outcome.over_B[0]:
            raise _RefusedError("cannot score")
        lead = float((outcome.value_B if score is None else score(state_B))[0])
        return f"{'B' if lead > 0 else 'W'}+{abs(lead):g}" if lead else "0"

    def fixed_handicap(self, count: str) -> str:
        """Stones at the usual places, which are the answer."""
        self._check_empty()
        places = fixed_places(board_size(self.game), int(_number(count, int)))
        self.set_free_handicap(*places)
        return " ".join(places)

    def set_free_handicap(self, *places: str) -> str:
        """Stones wherever they are wanted: black's moves, between which white passes, who moves next."""
        self._check_empty()
        try:
            actions = [self.game.parse(place) for place in places]
        except ConfigError as error:
            raise _RefusedError("bad vertex list") from error
        if len(actions) < 2 or len({*actions, self.pass_}) <= len(actions):  # a place twice, or a pass
            raise _RefusedError("bad vertex list")
        state_B = self.states[-1]
        for action in actions:
            state_B = self._after(self._turn(state_B, 0), action)
        self.states, self.handicap = [state_B], True
        return ""

    def _check_empty(self) -> None:
        if self.pass_ is None:
            raise _RefusedError("handicap not supported")
        if len(self.states) > 1 or self.handicap:
            raise _RefusedError("board not empty")

    def _over(self, state_B: States) -> bool:
        return bool(self.game.outcome(state_B).over_B[0])

    def _turn(self, state_B: States, mover: int) -> States:
        """The state in which that one moves: this one, or the next if the other passes."""
        if int(self.game.mover(state_B)[0]) == mover:
            return state_B
        if self.pass_ is None:
            raise _RefusedError("illegal move")
        return self._after(state_B, self.pass_)

    def _after(self, state_B: States, action: int, refusal: str = "illegal move") -> States:
        if not (0 <= action < self.game.actions and self.game.legal(state_B)[0, action]):
            raise _RefusedError(refusal)
        return self.game.step(state_B, np.array([action]))


def fixed_places(size: int, count: int) -> list[str]:
    """Where handicap stones stand (section 4.1.1 of the specification): corners, then sides, an odd one in the middle.

    Args:
        size: of the board, 7 to 25.
        count: of stones, 2 to 4, on odd boards from 9 on to 9.
    """
    if size < 7 or count not in range(2, 10 if size % 2 and size > 7 else 5):
        raise _RefusedError("invalid number of stones")
    low, middle = 3 if size < 13 else 4, (size + 1) // 2
    high = size + 1 - low
    corners = [(low, low), (high, high), (low, high), (high, low)]
    sides = [(low, middle), (high, middle), (middle, low), (middle, high)]
    points = corners[:count] + sides[: max(0, count - 4) // 2 * 2] + [(middle, middle)] * (count > 4 and count % 2)
    return [f"{LETTERS[column - 1]}{row}" for column, row in points]


def _colour(text: str) -> int:
    """0 for black, 1 for white, in any of the protocol's spellings."""
    for number, name in enumerate(COLOURS):
        if text.lower() in (name, name[0]):
            return number
    raise _RefusedError("syntax error")


def _number(text: str, kind: type[float] = float) -> float:
    """A number of the protocol's kinds, `int` or `float`."""
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _RefusedError("syntax error")
    return number


def _clock(*texts: str) -> str:
    """Times are read and not used."""
    for text in texts:
        _number(text)
    return ""
