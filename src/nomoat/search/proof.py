"""Whether a player of a small game can be beaten at all: every answer to its moves is tried.

    start -> the player's move, or every legal one of the other's -> ... -> the games that the player loses

Only for games whose positions can be counted: tic-tac-toe has 5,478.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nomoat.core.errors import ConfigError

if TYPE_CHECKING:
    from nomoat.core.domain import States
    from nomoat.games.rules import Game

    Array = np.ndarray[Any, Any]

MOST = 2_000_000
"""Positions that are tried, unless it is said otherwise."""


class Proof(NamedTuple):
    """What came of trying everything against a player.

    Args:
        positions: different ones in which it moved.
        lost: different ends at which it had lost, in both colours.
        example: a state at which it had lost, or None.
    """

    positions: int
    lost: int
    example: Any


def prove(game: Game, choose: Callable[[States], Array], most: int = MOST) -> Proof:
    """Play both colours against every line of play.

    Args:
        game: a small one.
        choose: the player: actions [B] for states [B], the same for the same states.
        most: positions that are tried.

    Raises:
        ConfigError: there are more positions than that.
    """
    moved, lost, example = 0, 0, None
    for colour in (0, 1):
        state, seen = game.start(1), set[int]()
        while len(state):
            mine = game.mover(state) == colour
            after = [game.step(state[mine], choose(state[mine]))] if mine.any() else []
            moved += int(mine.sum())
            legal = game.legal(state[~mine])
            rows, actions = np.nonzero(legal)
            after.append(game.step(state[~mine][rows], actions))
            state = np.concatenate(after)
            keys = game.key(state)
            _, first = np.unique(keys, return_index=True)
            new = [row for row in first.tolist() if int(keys[row]) not in seen]
            seen.update(keys[new].tolist())
            state = state[new]
            over, value = game.outcome(state)
            beaten = np.flatnonzero(over & (value * (1 - 2 * colour) < 0))
            lost += len(beaten)
            example = state[beaten[0]] if len(beaten) and example is None else example
            state = state[~over]
            if len(seen) > most:
                raise ConfigError(f"{game.name} is too large to try everything", f"more than {most:,} positions")
    return Proof(moved, lost, example)
