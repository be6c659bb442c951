"""A program that plays by the Go Text Protocol, seen by the one who asks: a command, and its answer within a deadline.

    "gnugo --mode gtp" -> Engine -> set_up(game) -> play("black", "D4") -> move(game, state_B) -> action
                            |
          ends, hangs, talks nonsense, refuses, plays what is not legal -> EngineError, with its last words

Go Text Protocol, version 2, draft 2 (Farnebäck 2002): a command is a line `number name arguments`, its answer is
`=number text`, or `?number why not`, and ends with an empty line.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from nomoat.core.errors import ConfigError, NomoatError

if TYPE_CHECKING:
    from nomoat.core.domain import States
    from nomoat.games.rules import Game

COLOURS = ("black", "white")
"""By `Domain.mover`: who moves first is black."""
RESIGN = -1
"""In place of an action."""

GNU_GO = "gnugo --mode gtp --chinese-rules --positional-superko --capture-all-dead --play-out-aftermath"
"""GNU Go by the rules of Tromp and Taylor: without the last two it passes while dead stones lie there, which count."""

LIMIT = 1 << 18
"""Bytes: a longer answer is none."""
PIECE = 1 << 16
LAST_WORDS = 2000
"""Bytes of its standard error that are kept."""
QUOTED = 200
PATIENCE_SECONDS = 2.0
ANSWER = re.compile(r"([=?])([0-9]*)[ \t]*(.*)", re.DOTALL)
SCORE = re.compile(r"([BW])\+([0-9]*\.?[0-9]+)|0(?:\.0*)?", re.IGNORECASE)


class EngineError(NomoatError):
    """An engine that did not start or went wrong; start it anew, for what it says from now on cannot be relied on."""


class RefusedError(EngineError):
    """It answered `?`: it does not know the command or cannot do it, and is well."""


def board_size(game: Game) -> int:
    """What `boardsize` says of a game: the protocol's boards are square, and of others the longer side is meant."""
    return max(game.planes[1:])


class Engine:
    """A running engine; `with` ends it. Commands are asked one after the other, from one thread.

    Args:
        command: the program and its arguments: `gnugo --mode gtp --level 10`.
        seconds: within which every answer must be there, unless a command is given its own.

    Raises:
        EngineError: the program does not start.
    """

    def __init__(self, command: str | Sequence[str], seconds: float = 60.0) -> None:
        try:
            words = shlex.split(command) if isinstance(command, str) else list(command)
        except ValueError as error:
            raise ConfigError(f"the command `{command}` cannot be read", str(error), "close its quotes") from error
        if not words:
            raise ConfigError("no program is named", fix="give a command, such as `gnugo --mode gtp`")
        self.command, self.seconds, self.answers = shlex.join(words), seconds, 0
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # a group of its own, which can be ended as a whole; Ctrl-C stays with us
            )
        except FileNotFoundError as error:
            fix = "install it, or give its whole path; Debian puts games into /usr/games, which may not be on the PATH"
            raise EngineError(f"there is no program `{words[0]}`", "it is not on the PATH", fix) from error
        except OSError as error:
            raise EngineError(f"the program `{words[0]}` does not start", str(error)) from error
        self._news = threading.Condition()
        self._heard, self._errors, self._ended, self._in_step, self._number = b"", b"", False, True, 0
        self._threads = [threading.Thread(target=listen, daemon=True) for listen in (self._listen, self._listen_aside)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        while len(self._heard) <= LIMIT and (piece := self._process.stdout.read(PIECE)):
            with self._news:
                self._heard += piece.replace(b"\r", b"")
                self._news.notify()
        with self._news:
            self._ended = True
            self._news.notify()

    def _listen_aside(self) -> None:
        assert self._process.stderr is not None
        while piece := self._process.stderr.read(PIECE):
            self._errors = (self._errors + piece)[-LAST_WORDS:]

    def ask(self, command: str, seconds: float | None = None) -> str:
        """Ask one command and return the text of its answer, without the number.

        Args:
            command: its name and arguments, one line.
            seconds: to wait for the whole answer; the engine's own if None.

        Raises:
            RefusedError: it answers `?`.
            EngineError: it has ended, is silent, never ends its answer, or answers what is none.
        """
        if not command.strip() or not command.isprintable() or "#" in command:
            raise ConfigError(f"`{command!r}` is no command", "it is one line of printable characters without a #")
        assert self._process.stdin is not None
        self._number += 1
        self._in_step = False
        with suppress(OSError):  # it has ended: the answer that does not come says so
            self._process.stdin.write(f"{self._number} {command}\n".encode())
        text = self._answer(command, self.seconds if seconds is None else seconds)
        found = ANSWER.fullmatch(text)
        if found is None or found[2] != str(self._number):
            why = f"its answer should begin with `={self._number}` or `?{self._number}`, and is `{_short(text)}`"
            raise EngineError(f"`{self.command}` does not answer `{command}` by the Go Text Protocol", why)
        self.answers, self._in_step = self.answers + 1, True
        if found[1] == "?":
            raise RefusedError(f"`{self.command}` refuses `{command}`", f"it says: {_short(found[3]) or 'nothing'}")
        return found[3].strip()

    def _answer(self, command: str, seconds: float) -> str:
        """All up to the next empty line."""
        until = time.monotonic() + seconds
        with self._news:
            while True:
                heard = self._heard.lstrip(b"\n")
                text, end, rest = heard.partition(b"\n\n")
                line, line_end, _ = heard.partition(b"\n")
                if end or (line_end and line[:1] not in b"=?"):
                    self._heard = rest
                    return (text if end else line).decode(errors="replace")
                if len(self._heard) > LIMIT:
                    why = f"after {len(self._heard):,} bytes there is no empty line; they begin with `{_short(heard)}`"
                    raise EngineError(f"`{self.command}` never ends its answer to `{command}`", why)
                if self._ended:
                    raise self._death(command)
                left = until - time.monotonic()
                if left <= 0:
                    said = f"it said `{_short(heard)}` without an empty line after it" if heard else "it said nothing"
                    fix = "allow it more seconds, or make it think less"
                    what = f"`{self.command}` did not answer `{command}` in {seconds:g} s"
                    raise EngineError(what, said + self._last_words(), fix)
                self._news.wait(left)

    def _death(self, command: str) -> EngineError:
        self._gone(PATIENCE_SECONDS)
        self._threads[1].join(PATIENCE_SECONDS)
        code = self._process.returncode
        how = "it closed its output" if code is None else f"exit code {code}"
        if code is not None and code < 0:
            how = f"it was ended by signal {-code} ({signal.strsignal(-code)})"
        what = f"died at `{command}`, after {self.answers} answers" if self.answers else "ends before it answers"
        return EngineError(f"`{self.command}` {what}", how + self._last_words(), "run it in a terminal to see more")

    def _last_words(self) -> str:
        lines = self._errors.decode(errors="replace").strip().splitlines()[-5:]
        return f"; on standard error: {' | '.join(lines)}" if lines else ""

    def name(self) -> str:
        """What it calls itself, with its version."""
        return f"{self.ask('name')} {self.ask('version')}".strip()

    def set_up(self, game: Game, needs: Sequence[str] = ()) -> None:
        """An empty board of the game's size, with its komi where the game has one.

        Args:
            game: to be played.
            needs: commands that it must know.

        Raises:
            EngineError: it does not know one, or does not play on such a board.
        """
        if missing := [name for name in needs if self.ask(f"known_command {name}").lower() != "true"]:
            raise EngineError(f"`{self.command}` does not know {', '.join(missing)}", "a game needs it")
        size = board_size(game)
        try:
            self.ask(f"boardsize {size}")
        except RefusedError as error:
            raise EngineError(f"`{self.command}` does not play on a board of {size} x {size}", error.why) from error
        self.ask("clear_board")
        komi = getattr(game, "komi", None)
        if komi is not None:
            self.ask(f"komi {komi:g}")

    def play(self, colour: str, move: str) -> None:
        """Tell it a move.

        Raises:
            EngineError: it does not take it.
        """
        try:
            self.ask(f"play {colour} {move}")
        except RefusedError as error:
            fix = "the rules must be the same: superko, suicide, whose turn it is"
            raise EngineError(f"`{self.command}` does not take {colour}'s move {move}", error.why, fix) from error

    def genmove(self, colour: str, seconds: float | None = None) -> str:
        """Let it move, and return the move as it spells it, or `resign`."""
        return self.ask(f"genmove {colour}", seconds)

    def move(self, game: Game, state_B: States) -> int:
        """Let it move in a state that it has been told, and return the action, or RESIGN.

        Args:
            game: the rules.
            state_B: a batch of one.

        Raises:
            EngineError: its move cannot be read, or is not legal.
        """
        colour = COLOURS[int(game.mover(state_B)[0])]
        text = self.genmove(colour)
        if text.lower() == "resign":
            return RESIGN
        try:
            action = game.parse(text)
        except ConfigError as error:
            raise EngineError(f"`{self.command}` plays what is no move: `{_short(text)}`", error.what) from error
        if not game.legal(state_B)[0, action]:
            raise EngineError(f"`{self.command}` plays {text} for {colour}, which is not legal", game.show(state_B[0]))
        return action

    def final_score(self) -> float:
        """By how many points black has won; below 0: white.

        Raises:
            EngineError: it cannot say, or what it says is no score.
        """
        text = self.ask("final_score")
        found = SCORE.fullmatch(text)
        if found is None:
            raise EngineError(f"`{self.command}` gives no score: `{_short(text)}`", "a score is B+3.5, W+2 or 0")
        return 0.0 if found[1] is None else float(found[2]) * (1 if found[1] in "bB" else -1)

    def close(self) -> None:
        """End it: asked to, then told to, then killed, with all that it has started in its process group."""
        if self._in_step:
            with suppress(NomoatError):
                self.ask("quit", PATIENCE_SECONDS)
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        if not self._gone(PATIENCE_SECONDS if self._in_step else 0):
            self._signal(signal.SIGTERM)
            if not self._gone(PATIENCE_SECONDS):
                self._signal(signal.SIGKILL)
                self._process.wait()
        for thread, stream in zip(self._threads, (self._process.stdout, self._process.stderr), strict=True):
            thread.join(PATIENCE_SECONDS)
            assert stream is not None
            if not thread.is_alive():  # else a process that left the group still holds it
                stream.close()

    def _gone(self, seconds: float) -> bool:
        """Whether it ends within some seconds; then all of its group ends, while the number is still the group's."""
        if self._process.returncode is None:
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                return False
            self._signal(signal.SIGKILL)
        return True

    def _signal(self, number: signal.Signals) -> None:
        with suppress(OSError):
            os.killpg(self._process.pid, number)


def _short(text: str | bytes) -> str:
    """The beginning of what an engine said, on one line."""
    words = text[: 2 * QUOTED].decode(errors="replace") if isinstance(text, bytes) else text
    line = " ".join(words.split())
    return line if len(line) <= QUOTED else line[:QUOTED] + " ..."
