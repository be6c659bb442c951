"""Othello (Reversi): a stone turns the other's stones between it and the next of one's own; most stones win.

    own, other: [B, M] cells with an edge -along 8 ways-> runs of the other's stones -> turned stones, legal moves

All cells of the batch are looked at together, once for each step along each way: no board is walked by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nomoat.core.domain import Outcome
from nomoat.core.errors import ConfigError
from nomoat.games import board

if TYPE_CHECKING:
    from nomoat.core.domain import States
    from nomoat.games.rules import Array


@cache
def _layout(size: int) -> tuple[np.dtype[Any], Array, Array]:
    """What a state holds, the cell of each action in flat memory (of a pass: 0), and numbers for keys."""
    stones, actions = (board.cells(size),), (size * size + 1,)
    fields = [("own", "?", stones), ("other", "?", stones), ("legal", "?", actions), ("player", "u1"), ("over", "?")]
    numbers = np.random.default_rng(size).integers(0, 2**64, (3, *stones), np.uint64)
    return np.dtype(fields), np.append(board.inside(size), 0), numbers


def _ways(size: int) -> tuple[int, ...]:
    below = board.width(size)
    return (1, below - 1, below, below + 1, -1, 1 - below, -below, -1 - below)


def _shift(way: int) -> tuple[slice, slice]:
    """All cells that are one step in some way from another, and those others; of flat memory."""
    return (slice(way, None), slice(None, -way)) if way > 0 else (slice(None, way), slice(-way, None))


def _along(start: Array, through: Array, way: int, steps: int) -> Array:
    """The cells of `through` that are come to from `start` in up to `steps` steps in one way; all flat."""
    onto, of = _shift(way)
    run = np.zeros_like(start)
    run[onto] = start[of] & through[onto]
    for _ in range(steps - 1):
        run[onto] |= run[of] & through[onto]
    return run


@dataclass(frozen=True)
class Othello:
    """The rules. Actions go row by row, 0 is `a1` above and left; the last is the pass.

    Who cannot move passes: an action of its own, legal only when there is no other. So players always take turns. The
    game is over when neither can move. `observe` gives 2 planes: the mover's stones and the other's.

    Args:
        size: of the board, even.

    Raises:
        ConfigError: no such board.
    """

    size: int = 8

    players: ClassVar[int] = 2
    symmetries: ClassVar[int] = 8

    def __post_init__(self) -> None:
        if self.size not in range(4, 17, 2):
            raise ConfigError(
                f"othello cannot be played on a board of {self.size}",
                "four stones stand in its middle",
                "take an even size from 4 to 16",
            )

    @property
    def name(self) -> str:
        """`othello`, then the size where it is not 8."""
        return "othello" + (f":{self.size}" if self.size != 8 else "")

    @property
    def actions(self) -> int:
        """The cells and the pass."""
        return self.size**2 + 1

    @property
    def planes(self) -> tuple[int, int, int]:
        """Own and other stones."""
        return 2, self.size, self.size

    @property
    def plies(self) -> int:
        """Every cell but four, and before each a pass."""
        return 2 * (self.size**2 - 4)

    def start(self, count: int) -> States:
        """Four stones in the middle; the first player's stand above right and below left, as in tournaments."""
        state_B = np.zeros(count, _layout(self.size)[0])
        low = board.inside(self.size)[(self.size // 2 - 1) * (self.size + 1)]
        below = board.width(self.size)
        state_B["own"][:, [low + 1, low + below]] = True
        state_B["other"][:, [low, low + below + 1]] = True
        state_B["legal"][:, :-1] = self._moves(state_B["own"], state_B["other"])
        return state_B

    def mover(self, state_B: States) -> Array:
        """Who moves, int8 [B]; they take turns, a pass included."""
        return state_B["player"].astype(np.int8)

    def legal(self, state_B: States) -> Array:
        """Bool [B, A]: cells whose stone would turn another, or the pass alone."""
        return state_B["legal"].copy()

    def _moves(self, own_BM: Array, other_BM: Array) -> Array:
        """Bool [B, size * size]: the free cells from which a run of the other's stones ends at one's own."""
        own, other = own_BM.ravel(), other_BM.ravel()
        found = np.zeros_like(own)
        for way in _ways(self.size):
            onto, of = _shift(way)
            found[onto] |= _along(own, other, way, self.size - 2)[of]
        free_BM = ~(own_BM | other_BM)
        return (found.reshape(own_BM.shape) & free_BM)[:, board.inside(self.size)]

    def _turns(self, own: Array, other: Array, stone: Array) -> Array:
        """The other's stones between a new stone and the next of one's own; all flat."""
        turns = np.zeros_like(own)
        for way in _ways(self.size):
            from_stone = _along(stone, other, way, self.size - 2)
            turns |= from_stone & _along(own, other, -way, self.size - 2)
        return turns

    def step(self, state_B: States, action_B: Array) -> States:
        """The states after moves: stones are put down and turned, and the next mover's moves are found."""
        dtype, cell_A, _ = _layout(self.size)
        own_BM, other_BM = (np.ascontiguousarray(state_B[field]) for field in ("own", "other"))
        stone_BM = np.zeros_like(own_BM)
        stone_BM[np.arange(len(state_B)), cell_A[action_B]] = action_B < self.size**2  # a pass puts none
        turns_BM = self._turns(own_BM.ravel(), other_BM.ravel(), stone_BM.ravel()).reshape(own_BM.shape)
        own_BM, other_BM = other_BM & ~turns_BM, own_BM | turns_BM | stone_BM
        move_BN = self._moves(own_BM, other_BM)
        stuck_B = ~np.logical_or.reduce(move_BN, axis=1)
        over_B = stuck_B.copy()
        if (row_K := np.flatnonzero(stuck_B)).size:
            over_B[row_K] = ~self._moves(other_BM[row_K], own_BM[row_K]).any(1)
        new_B = np.empty(len(state_B), dtype)
        new_B["own"], new_B["other"], new_B["player"] = own_BM, other_BM, 1 - state_B["player"]
        new_B["legal"] = np.concatenate((move_BN, (stuck_B & ~over_B)[:, None]), axis=1)
        new_B["over"] = over_B
        return new_B

    def outcome(self, state_B: States) -> Outcome:
        """Who has more stones, once neither can move."""
        over_B, value_B = state_B["over"].copy(), np.zeros(len(state_B), np.float32)
        if (row_K := np.flatnonzero(over_B)).size:
            ended_K = state_B[row_K]
            lead_K = ended_K["own"].sum(1) - ended_K["other"].sum(1)
            value_B[row_K] = np.sign(np.where(ended_K["player"], -lead_K, lead_K))
        return Outcome(over_B, value_B)

    def key(self, state_B: States) -> Array:
        """A sum of random numbers, one for each stone and one for the second player's move."""
        _, _, number_3M = _layout(self.size)
        own_B, other_B = state_B["own"] @ number_3M[0], state_B["other"] @ number_3M[1]
        return own_B + other_B + state_B["player"] * number_3M[2, 0]

    def observe(self, state_B: States) -> Array:
        """Float32 [B, 2, Y, X]."""
        inside_N = board.inside(self.size)
        planes_BCN = np.stack((state_B["own"][:, inside_N], state_B["other"][:, inside_N]), axis=1)
        return planes_BCN.reshape(-1, *self.planes).astype(np.float32)

    def turned(self, planes_BCYX: Array, policy_BA: Array, number_B: Array) -> tuple[Array, Array]:
        """The eight symmetries of the square; a pass stays."""
        return board.turned(planes_BCYX, policy_BA, number_B)

    @property
    def _names(self) -> board.Names:
        return board.Names(self.name, self.size, passes=True)

    def spell(self, action: int) -> str:
        """The cell's name, or `pass`."""
        return self._names.spell(action)

    def parse(self, text: str) -> int:
        """The cell of a name, or the pass.

        Raises:
            ConfigError: it is neither.
        """
        return self._names.parse(text)

    def show(self, state: Any) -> str:
        """`X` is the first player, `O` the second."""
        own_N, other_N = (state[field][board.inside(self.size)] for field in ("own", "other"))
        own, other = "OX" if state["player"] else "XO"
        return self._names.show(np.where(own_N, own, np.where(other_N, other, ".")))
