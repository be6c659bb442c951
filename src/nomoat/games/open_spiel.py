"""Other games for two through the optional package `open_spiel`: hex, breakthrough, chess and some thirty more.

    "hex(board_size=5)" -> OpenSpiel's game -> states: an object array of its states; each step is a copy of one

One state at a time, about a thousand times slower than a game written here. Lanctot et al. 2019, arXiv:1908.09453.
"""

from __future__ import annotations

import hashlib
import math
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nomoat.core.domain import Outcome
from nomoat.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from nomoat.core.domain import States
    from nomoat.games.rules import Array


@cache
def _loaded(text: str) -> Any:
    """OpenSpiel's game of that name, once it is known to be one that can be searched."""
    if find_spec("pyspiel") is None:
        raise ConfigError(
            f"`open-spiel:{text}` needs the package open_spiel",
            "it is not installed",
            "pip install 'nomoat[games]'",
        )
    import pyspiel

    known = pyspiel.registered_names()
    name = text.partition("(")[0]
    if name not in known:
        near = nearest(name, known) or "`python -c 'import pyspiel; print(pyspiel.registered_names())'` lists them"
        raise ConfigError(f"OpenSpiel has no game `{name}`", fix=near)
    try:
        game = pyspiel.load_game(text)
    except pyspiel.SpielError as error:
        raise ConfigError(f"OpenSpiel cannot make `{text}`", str(error), "write it like `hex(board_size=5)`") from error
    kind = game.get_type()
    wrong = {
        f"is for {game.num_players()}, not for two": game.num_players() != 2,
        "has chance in it": kind.chance_mode != kind.ChanceMode.DETERMINISTIC,
        "hides something from a player": kind.information != kind.Information.PERFECT_INFORMATION,
        "lets both move at once": kind.dynamics != kind.Dynamics.SEQUENTIAL,
        "has winners without losers": kind.utility != kind.Utility.ZERO_SUM,
        "does not show its board as numbers": not kind.provides_observation_tensor,
    }
    if any(wrong.values()):
        why = next(why for why, is_so in wrong.items() if is_so)
        raise ConfigError(
            f"`{name}` {why}", "search is for two who see all, with nothing left to chance", "take another game"
        )
    return game


@dataclass(frozen=True)
class OpenSpiel:
    """A game of OpenSpiel's. Its moves are written as its numbers for them; `show` says which is which.

    `observe` gives OpenSpiel's own planes, which need not be from the mover's side, and one more: ones where the second
    player moves. What is no picture becomes one of a single column or cell.

    Args:
        game: its name there, with settings in brackets: `hex(board_size=5)`.

    Raises:
        ConfigError: the package is missing, there is no such game, or it has chance, hidden things or more players.
    """

    game: str

    players: ClassVar[int] = 2
    symmetries: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _loaded(self.game)

    @property
    def name(self) -> str:
        """`open-spiel:` and the game."""
        return f"open-spiel:{self.game}"

    @property
    def actions(self) -> int:
        """All that there are in any state."""
        return int(_loaded(self.game).num_distinct_actions())

    @property
    def planes(self) -> tuple[int, int, int]:
        """OpenSpiel's, and one that says who moves."""
        channels, *rest = _loaded(self.game).observation_tensor_shape()
        rows, columns = rest if len(rest) == 2 else (1, math.prod(rest))
        return channels + 1, rows, columns

    @property
    def plies(self) -> int:
        """OpenSpiel's bound, which is a wide one for some games."""
        return int(_loaded(self.game).max_game_length())

    def start(self, count: int) -> States:
        """Games at their beginning."""
        return _states([_loaded(self.game).new_initial_state()] * count)

    def mover(self, state_B: States) -> Array:
        """Who moves, int8 [B]; 0 where it is over."""
        return np.array([max(state.current_player(), 0) for state in state_B], np.int8)

    def legal(self, state_B: States) -> Array:
        """Bool [B, A]."""
        legal_BA = np.zeros((len(state_B), self.actions), bool)
        for row, state in enumerate(state_B):
            legal_BA[row, state.legal_actions()] = True
        return legal_BA

    def step(self, state_B: States, action_B: Array) -> States:
        """The states after moves; one that is over stays."""
        pairs = zip(state_B, action_B.tolist(), strict=True)
        return _states([state if state.is_terminal() else state.child(action) for state, action in pairs])

    def outcome(self, state_B: States) -> Outcome:
        """OpenSpiel's returns, as a share of the highest."""
        over_B = np.array([state.is_terminal() for state in state_B], bool)
        most = _loaded(self.game).max_utility()
        value_B = [state.returns()[0] / most if over else 0 for state, over in zip(state_B, over_B, strict=True)]
        return Outcome(over_B, np.array(value_B, np.float32))

    def key(self, state_B: States) -> Array:
        """A hash of what is observed and of the moves that are legal."""
        seen = zip(self.observe(state_B), self.legal(state_B), strict=True)
        digests = [
            hashlib.blake2b(planes.tobytes() + legal.tobytes(), digest_size=8).digest() for planes, legal in seen
        ]
        return np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)

    def observe(self, state_B: States) -> Array:
        """Float32 [B, C, Y, X]; see the class."""
        planes = np.empty((len(state_B), *self.planes), np.float32)
        for row, (state, mover) in enumerate(zip(state_B, self.mover(state_B).tolist(), strict=True)):
            planes[row, :-1] = np.reshape(state.observation_tensor(mover), planes[row, :-1].shape)
            planes[row, -1] = mover
        return planes

    def packed(self, state: Array) -> Array:
        """States of any shape as texts, which files can hold; what is no state becomes an empty one."""
        texts = [each.serialize() if hasattr(each, "serialize") else "" for each in state.ravel()]
        return np.array(texts, dtype=np.str_).reshape(state.shape)

    def unpacked(self, text: Array) -> Array:
        """The states that `packed` gave."""
        game = _loaded(self.game)
        return _states([game.deserialize_state(str(each)) if each else 0 for each in text.ravel()]).reshape(text.shape)

    def turned(self, planes_BCYX: Array, policy_BA: Array, number_B: Array) -> tuple[Array, Array]:
        """As they are: no symmetry is known."""
        return planes_BCYX, policy_BA

    def spell(self, action: int) -> str:
        """OpenSpiel's number: its names depend on the state."""
        return str(int(action))

    def parse(self, text: str) -> int:
        """The number.

        Raises:
            ConfigError: it is none of an action.
        """
        if not re.fullmatch("0|[1-9][0-9]{0,8}", text) or int(text) >= self.actions:
            raise ConfigError(
                f"{text[:40]!r} is no move of {self.name}",
                f"a move is OpenSpiel's number for it, from 0 to {self.actions - 1}",
                "those that are legal stand below the board",
            )
        return int(text)

    def show(self, state: Any) -> str:
        """OpenSpiel's text for the state, and the number and the name of each legal move."""
        moves = [f"{action}={state.action_to_string(action)}".replace(" ", "_") for action in state.legal_actions()]
        return f"{str(state).rstrip()}\n\n{textwrap.fill('  '.join(moves), 100)}".rstrip()


def _states(states: list[Any]) -> States:
    state_B = np.empty(len(states), object)
    state_B[:] = states
    return state_B
