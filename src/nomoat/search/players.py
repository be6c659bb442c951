"""Who plays a game by searching: a network's guesses, or playing on at random, looked at before each move.

    row_B, state_B -Trees, plan-> action_B       one state -> what it thinks: visits, values, how sure

A player for matches (games/match.py), for GTP and for playing against. Guesses are remembered as long as it plays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nomoat.core.domain import Domain, Value
from nomoat.search.cache import Cached
from nomoat.search.planning import Planned, Rollouts, plan
from nomoat.search.selection import PUCT, Gumbel
from nomoat.search.tree import Trees

if TYPE_CHECKING:
    from nomoat.core.domain import States
    from nomoat.games.rules import Game

    Array = np.ndarray[Any, Any]


class Searcher:
    """A player for `match`.

    Args:
        domain: the game.
        value: guesses; it must not change while this plays.
        simulations: before each move; 0: the policy alone.
        rule: how edges are chosen; None: Gumbel's, as it is.
        name: as matches call it.
        noise: for moves that are not the same each time; None: the best, always.
        seconds: for a move at most; None: no limit.
    """

    def __init__(
        self,
        domain: Domain,
        value: Value,
        simulations: int,
        rule: Gumbel | PUCT | None = None,
        name: str = "",
        noise: np.random.Generator | None = None,
        seconds: float | None = None,
    ) -> None:
        self.domain, self.value, self.simulations = domain, Cached(domain, value), simulations
        self.rule, self.noise, self.seconds = rule or Gumbel(), noise, seconds
        self.name = name or (f"searched {simulations}" if simulations else "raw policy")

    def begin(self, count: int) -> None:
        """Nothing to do."""

    def told(self, row_B: Array, state_B: States, action_B: Array) -> None:
        """Nothing to do: each state is looked at for itself."""

    def choose(self, row_B: Array, state_B: States) -> list[int]:
        """An action for each."""
        return self.planned(state_B).action_B.tolist()

    def planned(self, state_B: States) -> Planned:
        """All that a search of these states says."""
        trees = Trees(self.domain, state_B, self.value, self.simulations + 1)
        return plan(trees, self.rule, self.simulations, self.noise, self.seconds)


def playouts(game: Domain, count: int, seed: int = 0) -> Searcher:
    """A player without a network: UCT with one random playout a simulation.

    Args:
        game: the rules.
        count: playouts before each move.
        seed: of the playouts.
    """
    return Searcher(
        game,
        Rollouts(game, 1, np.random.default_rng(seed)),
        count,
        PUCT(c=2.0, first=0.0),
        f"{count} playouts",
    )


class Thought(NamedTuple):
    """What a search thinks of one state, for people.

    Args:
        action: the move.
        won: chance that the mover wins, a draw being half a win.
        known: the mover's result where it is certain: 1, 0 or -1; else None.
        moves: (action, visits, the mover's chance), the most visited first.
    """

    action: int
    won: float
    known: float | None
    moves: tuple[tuple[int, int, float], ...]

    def said(self, game: Game) -> str:
        """In one line: how sure, and what was looked at most."""
        sure = {1.0: "won", 0.0: "drawn", -1.0: "lost"}
        head = f"{sure[self.known]}, whatever the other does" if self.known is not None else f"{self.won:.0%} to win"
        looked = ", ".join(
            f"{game.spell(action)} {visits}x {won:.0%}" for action, visits, won in self.moves[:5] if visits
        )
        return f"{game.spell(self.action)}: {head}" + (f" ({looked})" if looked else "")


def thought(domain: Domain, planned: Planned, state_B: States, row: int = 0) -> Thought:
    """What a search says of one of its states."""
    sign = 1 - 2 * int(domain.mover(state_B[row : row + 1])[0])
    visits, q = planned.visits_BA[row], planned.q_BA[row]
    order = np.argsort(-visits, kind="stable")
    known = planned.known_B[row] * sign
    return Thought(
        int(planned.action_B[row]),
        float(planned.value_B[row] * sign + 1) / 2,
        None if np.isnan(known) else float(known),
        tuple(
            (int(a), int(visits[a]), float((np.nan_to_num(q[a]) + 1) / 2))
            for a in order
            if domain.legal(state_B)[row, a]
        ),
    )
