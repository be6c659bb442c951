"""A trained player at the table: against a person, as a GTP engine, in a match against another program or run.

run -> Searcher -> one move at a time, with what it thinks of it      Searcher | EnginePlayer -match-> result, Elo
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from nomoat.core.errors import ConfigError
from nomoat.core.run import Run
from nomoat.texts import at_hand

if TYPE_CHECKING:
    from nomoat.core.domain import States
    from nomoat.games.match import MatchResult
    from nomoat.games.rules import Game
    from nomoat.search.players import Searcher, Thought
    from nomoat.search.tree import Trees

SIMULATIONS = 200


class Seat(NamedTuple):
    """A player at the table.

    Args:
        game: its rules.
        player: who searches.
        name: of its run.
    """

    game: Game
    player: Searcher
    name: str


@contextmanager
def seated(
    model: Run | Path | str, simulations: int = SIMULATIONS, seconds: float | None = None, device: str = "cpu"
) -> Iterator[Seat]:
    """A run's player, ready to choose moves.

    Args:
        model: a run of `selfplay`.
        simulations: before each move; 0: the network's first thought.
        seconds: for a move at most.
        device: where its network computes.

    Raises:
        RunError: no such run.
        ConfigError: it plays no game, or a number that cannot be.
    """
    from nomoat.core.device import choose
    from nomoat.core.run import load
    from nomoat.games.rules import Game
    from nomoat.search.players import Searcher
    from nomoat.search.selfplay import playing

    if simulations < 0 or (seconds is not None and seconds <= 0):
        raise ConfigError(
            f"{simulations} simulations in {seconds} seconds cannot be",
            "0 simulations are the network's first thought, and time is above zero",
            "use --simulations 200",
        )
    run = at_hand(model)
    if not isinstance(game := getattr(run.recipe.product, "game", None), Game):
        raise ConfigError(
            f"{run.name} plays no game", run.recipe.about, "`nomoat selfplay connect-four` makes a player"
        )
    family: Any = load(run).to(choose(device))
    with playing(family, run.decided("precision", "fp32")) as guess:
        yield Seat(game, Searcher(game, guess, simulations, seconds=seconds), run.name)


class Board:
    """One game against somebody: its states, and the tree of our thoughts, which is kept from move to move.

    Args:
        seat: who plays.
    """

    def __init__(self, seat: Seat) -> None:
        self.seat, self.states = seat, [seat.game.start(1)]
        self.trees: Trees | None = None

    @property
    def state(self) -> States:
        """Now, [1]."""
        return self.states[-1]

    @property
    def over(self) -> bool:
        """Nothing more can be played."""
        return bool(self.seat.game.outcome(self.state).over_B[0])

    def play(self, action: int) -> None:
        """Somebody's move.

        Raises:
            ConfigError: it is not legal; says which are.
        """
        import numpy as np

        game = self.seat.game
        legal = game.legal(self.state)[0]
        if not 0 <= action < len(legal) or not legal[action]:
            words = [game.spell(int(a)) for a in np.flatnonzero(legal)]
            raise ConfigError(
                f"{game.spell(action)} is not legal here",
                fix=f"play {', '.join(words[:30])}{' ...' * (len(words) > 30)}",
            )
        after = game.step(self.state, np.array([action]))
        if self.trees is not None and not game.outcome(after).over_B[0]:
            self.trees.advance(np.array([action]), after)
        self.states.append(after)

    def undo(self, plies: int) -> None:
        """Back by so many plies, to the beginning at most."""
        self.states = self.states[: max(1, len(self.states) - plies)]
        self.trees = None

    def think(self) -> Thought:
        """What our player would do now, and why; what was thought before about what came is kept."""
        from nomoat.search.planning import plan
        from nomoat.search.players import thought
        from nomoat.search.tree import Trees

        player = self.seat.player
        if self.trees is None:
            self.trees = Trees(self.seat.game, self.state, player.value, player.simulations + 1)
        planned = plan(self.trees, player.rule, player.simulations, player.noise, player.seconds)
        return thought(self.seat.game, planned, self.state)

    def result(self, colour: int) -> float:
        """1, 0 or -1 for who has that colour; 0 before the end."""
        return float(self.seat.game.outcome(self.state).value_B[0]) * (1 - 2 * colour)


def speak_gtp(seat: Seat, stdin: TextIO, stdout: TextIO, stderr: TextIO) -> None:
    """Be a GTP engine until `quit`."""
    from nomoat.games.gtp_engine import Chosen, serve
    from nomoat.search.players import thought

    def choose(state_B: States) -> Chosen:
        found = thought(seat.game, seat.player.planned(state_B), state_B)
        return Chosen(found.action, found.said(seat.game))

    serve(seat.game, choose, stdin, stdout, stderr, f"nomoat {seat.name}")


def against(
    seat: Seat, opponent: str, games: int = 20, seed: int = 0, openings: int = 0, seconds: float = 60.0
) -> MatchResult:
    """A match, colours swapped, the same openings for both.

    Args:
        seat: our player, whose points are counted.
        opponent: a GTP program's command line, `random`, `playouts:N`, or another run's name.
        games: an even number.
        seed: of the openings.
        openings: random plies at the beginning of each pair of games.
        seconds: that a program may take for an answer.

    Raises:
        ConfigError: an odd number of games, another game's run.
        EngineError: the program does not start.
    """
    from nomoat.games.match import EnginePlayer, Random, match
    from nomoat.search.players import playouts

    game, kind, count = seat.game, *opponent.partition(":")[::2]
    if opponent == "random":
        return match(game, seat.player, Random(game, seed), games, seed, openings, keep=True)
    if kind == "playouts" and count.isdigit() and int(count):
        return match(game, seat.player, playouts(game, int(count), seed), games, seed, openings, keep=True)
    if (other := _run(opponent)) is not None:
        with seated(other, seat.player.simulations, seat.player.seconds) as theirs:
            if theirs.game != game:
                raise ConfigError(f"{theirs.name} plays {theirs.game.name}", f"{seat.name} plays {game.name}")
            theirs.player.name = theirs.name
            return match(game, seat.player, theirs.player, games, seed, openings, keep=True)
    with EnginePlayer(opponent, game, seconds=seconds) as engine:
        return match(game, seat.player, engine, games, seed, openings, keep=True)


def _run(name: str) -> Run | None:
    """The run of a name, or None: then it is a program."""
    from nomoat.core.errors import NomoatError

    try:
        return at_hand(name)
    except NomoatError:
        return None
