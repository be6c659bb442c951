"""Matches: two players, the same openings with colours swapped, all games at once; and what the result says in Elo.

    openings -> state_B of pairs of games -> choose(row_B, state_B) by whoever moves -> step -> told -> ... -> result
    result -> points of each pair -> elo -> difference, low, high

Both games of a pair share luck (an opening that is good for black), so that not games are independent, but pairs.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np

from nomoat.core.errors import ConfigError
from nomoat.games.gtp import COLOURS, RESIGN, Engine, EngineError
from nomoat.games.rules import random_actions

if TYPE_CHECKING:
    from nomoat.core.domain import States
    from nomoat.games.rules import Array, Game

FAULTS = 3
"""So many in a row end a match."""
Z = 1.959964
"""Of 95 %, two-sided."""
DRAWS = 20


class Player(Protocol):
    """Who plays many games at once, each known by its row. One that needs only the state ignores all but `choose`."""

    @property
    def name(self) -> str: ...
    def begin(self, count: int) -> None:
        """So many games begin, rows 0 to `count` - 1."""

    def choose(self, row_B: Array, state_B: States) -> Iterable[int | EngineError]:
        """For each of some games, in which it moves: the action, RESIGN, or why it has none and forfeits the game."""

    def told(self, row_B: Array, state_B: States, action_B: Array) -> None:
        """What has been played, by either, in the states before it."""


class Random:
    """Any legal move, all as likely: where ladders begin."""

    def __init__(self, game: Game, seed: int = 0) -> None:
        self.name, self.game, self.rng = "random", game, np.random.default_rng(seed)

    def begin(self, count: int) -> None:
        """Nothing to do."""

    def choose(self, row_B: Array, state_B: States) -> list[int]:
        """A legal action for each."""
        return [int(action) for action in random_actions(self.game, state_B, self.rng)]

    def told(self, row_B: Array, state_B: States, action_B: Array) -> None:
        """Nothing to do."""


@dataclass
class _Seat:
    """An engine's process, and the moves that lie on its board."""

    engine: Engine | None = None
    moves: list[tuple[str, str]] = field(default_factory=list)


class EnginePlayer:
    """A program that speaks GTP; `with` ends its processes. They answer side by side.

    A process that is asked of another game than before is told that game's moves from the beginning. One that goes
    wrong is ended, and started anew when it is next asked.

    Args:
        command: the program and its arguments, such as `gtp.GNU_GO`.
        game: the rules, which must be the program's too.
        processes: how many.
        seconds: within which each answer must be there.
        name: as matches call it; the command if empty.
    """

    def __init__(
        self, command: str | Sequence[str], game: Game, processes: int = 1, seconds: float = 60.0, name: str = ""
    ) -> None:
        if processes < 1:
            raise ConfigError(f"an engine cannot play in {processes} processes", fix="use at least 1")
        self.command, self.game, self.seconds = command, game, seconds
        self.name = name or (command if isinstance(command, str) else shlex.join(command))
        self._seats = [_Seat() for _ in range(processes)]
        self._moves: list[list[tuple[str, str]]] = []

    def __enter__(self) -> EnginePlayer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        for seat in self._seats:
            self._leave(seat)

    def begin(self, count: int) -> None:
        """Start a process, so that what is wrong with the program or its board is known before a game is lost by it.

        Raises:
            EngineError: it does not start, or does not play this game.
        """
        self._moves = [[] for _ in range(count)]
        self._sit(self._seats[0], [])

    def told(self, row_B: Array, state_B: States, action_B: Array) -> None:
        """Kept until the row's process is next asked."""
        for row, mover, action in zip(row_B, self.game.mover(state_B), action_B, strict=True):
            self._moves[row].append((COLOURS[int(mover)], self.game.spell(int(action))))

    def choose(self, row_B: Array, state_B: States) -> list[int | EngineError]:
        """Each process answers for its rows, one after the other."""
        # Of a pair one row moves now and the other next: even and odd rows each spread over all processes.
        half = (len(self._moves) + 1) // 2
        seat_B = (row_B % 2 * half + row_B // 2) % len(self._seats)
        said: dict[int, int | EngineError] = {}

        def answer(seat: int) -> None:
            for place in np.flatnonzero(seat_B == seat):
                said[int(place)] = self._answer(self._seats[seat], int(row_B[place]), state_B[place : place + 1])

        with ThreadPoolExecutor(len(self._seats)) as pool:
            list(pool.map(answer, np.unique(seat_B)))
        return [said[place] for place in range(len(row_B))]

    def _answer(self, seat: _Seat, row: int, state_B: States) -> int | EngineError:
        try:
            action = self._sit(seat, self._moves[row]).move(self.game, state_B)
        except EngineError as error:
            self._leave(seat)
            return error
        if action != RESIGN:
            seat.moves.append((COLOURS[int(self.game.mover(state_B)[0])], self.game.spell(action)))
        return action

    def _sit(self, seat: _Seat, moves: list[tuple[str, str]]) -> Engine:
        """A seat's engine, with these moves on its board."""
        if seat.engine is None:
            seat.engine = Engine(self.command, self.seconds)
            seat.engine.set_up(self.game)
        elif seat.moves != moves[: len(seat.moves)]:
            seat.engine.ask("clear_board")
            seat.moves = []
        for colour, move in moves[len(seat.moves) :]:
            seat.engine.play(colour, move)
            seat.moves.append((colour, move))
        return seat.engine

    def _leave(self, seat: _Seat) -> None:
        if seat.engine is not None:
            seat.engine.close()
        seat.engine, seat.moves = None, []


@dataclass(frozen=True)
class Played:
    """A game that has come to an end.

    Args:
        pair: both games of a pair began with the same random moves.
        first: `one` moved first.
        points: of `one`: 1, 0.5 or 0.
        moves: all actions, with the opening's.
        end: forfeited: by an error or a move that was not legal.
        why: the error, where it was forfeited.
    """

    pair: int
    first: bool
    points: float
    moves: tuple[int, ...]
    end: Literal["played", "resigned", "forfeited"] = "played"
    why: str = ""


@dataclass(frozen=True)
class MatchResult:
    """All games of a match that have ended.

    Args:
        one, other: names of the players.
        games: in the order in which they ended.
        stopped: why the match ended before its last game; empty if it did not.
    """

    one: str
    other: str
    games: tuple[Played, ...]
    stopped: str = ""

    def counts(self, first: bool | None = None) -> tuple[int, int, int]:
        """Games won, drawn and lost by `one`: as the one who moves first (True) or second (False), or all (None)."""
        points = [game.points for game in self.games if first in (None, game.first)]
        return points.count(1), points.count(0.5), points.count(0)

    def forfeits(self) -> tuple[int, int]:
        """How many games `one` and `other` have forfeited."""
        lost = [game.points for game in self.games if game.end == "forfeited"]
        return lost.count(0), lost.count(1)

    def pairs(self) -> list[float]:
        """The share of points that `one` has of each pair; of a pair cut short, of the game that there is."""
        found: dict[int, list[float]] = {}
        for game in self.games:
            found.setdefault(game.pair, []).append(game.points)
        return [sum(points) / len(points) for _, points in sorted(found.items())]


def match(
    game: Game, one: Player, other: Player, games: int, seed: int = 0, openings: int = 0, keep: bool = False
) -> MatchResult:
    """Play games in pairs, colours swapped, all in step.

    A player whose answer is an error or not a legal move loses that game by forfeit; three such answers in a row end
    the match with the games that have ended.

    Args:
        game: the rules, for two.
        one: whose points are counted.
        other: its opponent.
        games: an even number.
        seed: of the openings.
        openings: random plies at the beginning of each pair. Without them, players that do not choose at random play
            the same pair over and over. Openings differ as far as the game has so many.
        keep: Ctrl-C ends the match with the games that have ended; all going on in step, those are the short ones.

    Raises:
        ConfigError: a number of games that makes no pairs; an opening as long as the game; a game for one.
        EngineError: an engine does not start.
    """
    if games < 2 or games % 2 or game.players != 2:
        raise ConfigError(
            f"a match of {games} games for {game.players} cannot be", fix="2, 4, ... games, and 2 players"
        )
    opening_PT = _openings(game, games // 2, openings, np.random.default_rng(seed))
    table = _Table(game, (one, other), games)
    for player in table.players:
        player.begin(games)
    for action_P in opening_PT.T:
        table.step(np.arange(games), np.repeat(action_P, 2))
    try:
        while table.going.size and not table.stopped:
            table.turn()
    except KeyboardInterrupt:
        if not keep or not table.played:
            raise
        table.stopped = f"broken off, {games - len(table.played)} games had not ended: those that had were the shorter"
    return MatchResult(one.name, other.name, tuple(table.played), table.stopped)


class _Table:
    """A match under way. Row r is a game of pair r // 2, in which `one` moves first if r is even."""

    def __init__(self, game: Game, players: tuple[Player, Player], games: int) -> None:
        self.game, self.players, self.state_B, self.going = game, players, game.start(games), np.arange(games)
        self.moves: list[list[int]] = [[] for _ in range(games)]
        self.played: list[Played] = []
        self.faults, self.stopped = [0, 0], ""

    def step(self, rows: Array, action_B: Array) -> None:
        """Play on all boards and tell both players."""
        before_B = self.state_B[rows]
        self.state_B[rows] = self.game.step(before_B, action_B)
        for row, action in zip(rows, action_B, strict=True):
            self.moves[row].append(int(action))
        for player in self.players:
            player.told(rows, before_B, action_B)

    def turn(self) -> None:
        """One move in each game that is going on."""
        chosen: dict[int, int] = {}
        number_B = (self.game.mover(self.state_B[self.going]) + self.going) % 2  # 0: it is `one`'s move
        for number in (0, 1):
            rows = self.going[number_B == number]
            if rows.size and not self.stopped:
                self._ask(number, rows, chosen)
        rows = np.array(sorted(chosen), dtype=np.int64)
        self.going = rows
        if not rows.size:
            return
        self.step(rows, np.array([chosen[row] for row in rows]))
        outcome = self.game.outcome(self.state_B[rows])
        for row in np.flatnonzero(outcome.over_B):
            lead = float(np.sign(outcome.value_B[row])) * (1 if rows[row] % 2 == 0 else -1)
            self._end(int(rows[row]), (1 + lead) / 2)
        self.going = rows[~outcome.over_B]

    def _ask(self, number: int, rows: Array, chosen: dict[int, int]) -> None:
        """A player's moves in its rows; a game that it gives up or forfeits ends here."""
        player, states_B = self.players[number], self.state_B[rows]
        legal_BA = self.game.legal(states_B)
        for row, legal_A, said in zip(rows, legal_BA, player.choose(rows, states_B), strict=True):
            if (
                not isinstance(said, EngineError)
                and said != RESIGN
                and not (0 <= said < len(legal_A) and legal_A[said])
            ):
                said = EngineError(f"{player.name} plays action {said}, which is not legal")
            if isinstance(said, EngineError):
                self.faults[number] += 1
                self._end(int(row), float(number), "forfeited", str(said))
                if self.faults[number] == FAULTS:
                    self.stopped = f"{player.name} failed {FAULTS} times in a row, the last time so: {said}"
                    return
                continue
            self.faults[number] = 0
            if said == RESIGN:
                self._end(int(row), float(number), "resigned")
            else:
                chosen[int(row)] = int(said)

    def _end(
        self, row: int, points: float, end: Literal["played", "resigned", "forfeited"] = "played", why: str = ""
    ) -> None:
        self.played.append(Played(row // 2, row % 2 == 0, points, tuple(self.moves[row]), end, why))


def _openings(game: Game, count: int, plies: int, rng: np.random.Generator) -> Array:
    """Random actions from the beginning, int [P, T], after which a game is not over; different while there are such."""
    found: dict[int, Array] = {}
    for _ in range(DRAWS):
        state_B, action_BT = game.start(count), np.zeros((count, 0), dtype=np.int64)
        for _ in range(plies):
            action_B = random_actions(game, state_B, rng)
            state_B, action_BT = game.step(state_B, action_B), np.column_stack((action_BT, action_B))
            going_B = ~game.outcome(state_B).over_B
            state_B, action_BT = state_B[going_B], action_BT[going_B]
        for key, action_T in zip(game.key(state_B), action_BT, strict=True):
            found.setdefault(int(key), action_T)
        if len(found) >= count or not plies:
            break
    if not found:
        raise ConfigError(f"no game of {game.name} goes on after {plies} random plies", fix="use fewer")
    lines = list(found.values())
    return np.stack([lines[number % len(lines)] for number in range(count)])


class Elo(NamedTuple):
    """How much stronger `one` is, with a 95 % interval; 400 is a factor of ten in the odds."""

    difference: float
    low: float
    high: float


def elo(result: MatchResult) -> Elo:
    """The difference in Elo points that a match shows.

    The interval is a normal approximation over pairs, whose points vary less than twice a game's where the opening
    decides, after two pairs more have been counted, one won and one lost (as Agresti and Coull 1998, American
    Statistician 52:119, count two successes and two failures more): without them few or equal pairs look certain.
    Where all or nothing is won there is one bound: who wins a pair with a chance of 0.05^(1/n) wins n of n in 5 %.
    """
    points = np.array(result.pairs())
    count, mean = len(points), float(points.mean()) if len(points) else 0.5
    if not count:
        return Elo(math.nan, -math.inf, math.inf)
    if mean in (0, 1):
        bound = 0.05 ** (1 / count)
        return Elo(math.inf, _elo(bound), math.inf) if mean else Elo(-math.inf, -math.inf, _elo(1 - bound))
    points = np.append(points, (0, 1))
    spread = Z * float(points.std()) / math.sqrt(count + 2)
    return Elo(_elo(mean), _elo(float(points.mean()) - spread), _elo(float(points.mean()) + spread))


def _elo(share: float) -> float:
    """Points for an expected share of the points (Elo 1978)."""
    if share <= 0 or share >= 1:
        return math.copysign(math.inf, share - 0.5)
    return 400 * math.log10(share / (1 - share))
