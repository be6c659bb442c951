"""Tic-tac-toe: three in a row on nine cells, small enough that a test can look at all of it.

own, taken: nine bits each -step-> taken | 1 << action -outcome-> WINS[stones], one of 512 answers
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nomoat.core.domain import Outcome
from nomoat.games import board

if TYPE_CHECKING:
    from nomoat.core.domain import States
    from nomoat.games.rules import Array

STATE = np.dtype([("own", "u2"), ("taken", "u2"), ("ply", "u1"), ("won", "?")], align=True)
"""own: stones of the one who moves; taken: all stones; won: by the one who moved last."""
LINES = (0o700, 0o070, 0o007, 0o444, 0o222, 0o111, 0o421, 0o124)
WINS = np.array([any(stones & line == line for line in LINES) for stones in range(512)])
HAS_NA = (np.arange(512)[:, None] >> np.arange(9)) & 1 == 1
NAMES = board.Names("tic-tac-toe", 3)


@dataclass(frozen=True)
class TicTacToe:
    """The rules. Actions go row by row: 0 is `a1`, the corner above and left, 1 is `b1`. A full board is a draw.

    `observe` gives 2 planes: the mover's stones and the other's.
    """

    players: ClassVar[int] = 2
    actions: ClassVar[int] = 9
    planes: ClassVar[tuple[int, int, int]] = (2, 3, 3)
    plies: ClassVar[int] = 9
    symmetries: ClassVar[int] = 8
    name: ClassVar[str] = NAMES.game

    def start(self, count: int) -> States:
        """Empty boards."""
        return np.zeros(count, STATE)

    def mover(self, state_B: States) -> Array:
        """Who moves, int8 [B]; they take turns."""
        return (state_B["ply"] & 1).astype(np.int8)

    def legal(self, state_B: States) -> Array:
        """Bool [B, 9]: the free cells."""
        return ~(HAS_NA[state_B["taken"]] | state_B["won"][:, None])

    def step(self, state_B: States, action_B: Array) -> States:
        """The states after stones were put down."""
        other_B = state_B["own"] ^ state_B["taken"]
        stone_B = np.left_shift(1, action_B).astype(np.uint16)
        new_B = np.empty(len(state_B), STATE)
        new_B["own"] = other_B
        new_B["taken"] = state_B["taken"] | stone_B
        new_B["ply"] = state_B["ply"] + 1
        new_B["won"] = WINS[state_B["own"] | stone_B]
        return new_B

    def outcome(self, state_B: States) -> Outcome:
        """Won by the last to move, or a full board."""
        won_B, ply_B = state_B["won"], state_B["ply"]
        return Outcome(won_B | (ply_B == 9), won_B * np.where(ply_B & 1, np.float32(1), np.float32(-1)))

    def key(self, state_B: States) -> Array:
        """Another number for each position."""
        return state_B["own"].astype(np.uint64) << np.uint64(9) | state_B["taken"]

    def observe(self, state_B: States) -> Array:
        """Float32 [B, 2, 3, 3]."""
        own_B, taken_B = state_B["own"], state_B["taken"]
        return HAS_NA[np.stack((own_B, own_B ^ taken_B), axis=1)].reshape(-1, 2, 3, 3).astype(np.float32)

    def turned(self, planes_BCYX: Array, policy_BA: Array, number_B: Array) -> tuple[Array, Array]:
        """The eight symmetries of the square."""
        return board.turned(planes_BCYX, policy_BA, number_B)

    def spell(self, action: int) -> str:
        """The cell's name."""
        return NAMES.spell(action)

    def parse(self, text: str) -> int:
        """The cell of a name.

        Raises:
            ConfigError: it is none.
        """
        return NAMES.parse(text)

    def show(self, state: Any) -> str:
        """`X` is the first player, `O` the second."""
        own_N, other_N = self.observe(np.array([state], STATE)).reshape(2, 9)
        own, other = "XO" if state["ply"] % 2 == 0 else "OX"
        return NAMES.show(np.where(own_N > 0, own, np.where(other_N > 0, other, ".")))
