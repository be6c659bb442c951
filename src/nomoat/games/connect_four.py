"""Connect four: two drop stones into columns, and the first to have four in a row wins.

    own, taken: one uint64 a board -step-> taken + the lowest free bit of a column -> won: x & (x >> s) & ... in 4 ways

A column is rows + 1 bits, of which the highest stays free: it keeps a row from going on in the next column, and makes
`own + taken` a different number for each position. Bits: Tromp's Fhourstones and Pons 2015, "Solving Connect 4".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nomoat.core.domain import Outcome
from nomoat.core.errors import ConfigError

if TYPE_CHECKING:
    from nomoat.core.domain import States
    from nomoat.games.rules import Array

STATE = np.dtype(
    # own: stones of the one who moves; taken: all stones; won: by the one who moved last
    [("own", "<u8"), ("taken", "<u8"), ("ply", "u1"), ("won", "?")],
    align=True,
)
LAST = np.array([-1, 1], np.float32)
"""The value if the last to move has won, after an even and after an odd number of plies."""
SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""Odd: 2^64 times the golden ratio."""


@cache
def _bits(rows: int, columns: int) -> tuple[Array, Array, Array]:
    """The lowest and the highest cell of each column, and the shifts to a cell's four kinds of neighbours."""
    low_A = np.uint64(1) << np.arange(0, columns * (rows + 1), rows + 1, dtype=np.uint64)
    return low_A, low_A << np.uint64(rows - 1), np.array([[1], [rows], [rows + 1], [rows + 2]], np.uint64)


@cache
def _board(rows: int, columns: int) -> tuple[Any, Any]:
    """The lowest cells, and all."""
    low_A, high_A, _ = _bits(rows, columns)
    return low_A.sum(dtype=np.uint64), (2 * high_A - low_A).sum(dtype=np.uint64)


@dataclass(frozen=True)
class ConnectFour:
    """The rules. Action `x` drops a stone into column x, from the left; a full board is a draw.

    `observe` gives the mover's stones and the other's, then with `threats` the cells that would win for the mover and
    for the other, and those where a stone can fall now; row 0 is the highest.

    Args:
        rows: 2 at least.
        columns: 2 at least; (rows + 1) * columns is 64 at most.
        in_a_row: how many win.
        threats: whether a network sees what follows from the stones at once. The same game in any case.

    Raises:
        ConfigError: the board has no place in 64 bits, or nobody can win on it.
    """

    rows: int = 6
    columns: int = 7
    in_a_row: int = 4
    threats: bool = field(default=True, compare=False)

    players: ClassVar[int] = 2
    symmetries: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 2 or (self.rows + 1) * self.columns > 64:
            raise ConfigError(
                f"connect four cannot be played on {self.columns} columns of {self.rows} rows",
                "a board is held in 64 bits, one more in each column than it has rows",
                "take a smaller board: 8 columns of 7 rows fit, 2 of 2 are the fewest",
            )
        if not 2 <= self.in_a_row <= max(self.rows, self.columns):
            raise ConfigError(
                f"{self.in_a_row} in a row cannot be had on {self.columns} columns of {self.rows} rows",
                fix=f"ask for 2 to {max(self.rows, self.columns)}",
            )

    @property
    def name(self) -> str:
        """`connect-four`, then columns, rows and how many win where they are not the usual ones."""
        size = f"{self.columns}x{self.rows}" + (f"x{self.in_a_row}" if self.in_a_row != 4 else "")
        return "connect-four" + (f":{size}" if size != "7x6" else "")

    @property
    def actions(self) -> int:
        """One for each column."""
        return self.columns

    @property
    def planes(self) -> tuple[int, int, int]:
        """See `observe`."""
        return 5 if self.threats else 2, self.rows, self.columns

    @property
    def plies(self) -> int:
        """The cells."""
        return self.rows * self.columns

    def start(self, count: int) -> States:
        """Empty boards."""
        return np.zeros(count, STATE)

    def mover(self, state_B: States) -> Array:
        """Who moves, int8 [B]; they take turns."""
        return (state_B["ply"] & 1).astype(np.int8)

    def legal(self, state_B: States) -> Array:
        """Bool [B, columns]: those that are not full."""
        _, high_A, _ = _bits(self.rows, self.columns)
        # Columns first: NumPy is twice as fast along the long axis.
        free_AB = (state_B["taken"] & high_A[:, None]) == 0
        free_AB &= ~state_B["won"]
        return free_AB.T

    def step(self, state_B: States, action_B: Array) -> States:
        """The states after stones have fallen."""
        low_A, _, _ = _bits(self.rows, self.columns)
        taken_B = state_B["taken"]
        other_B = state_B["own"] ^ taken_B
        new_B = np.empty(len(state_B), STATE)
        new_B["own"] = other_B
        new_B["taken"] = taken_B = taken_B | (taken_B + low_A[action_B])
        new_B["ply"] = state_B["ply"] + 1
        new_B["won"] = self._rowed(other_B ^ taken_B)
        return new_B

    def _rowed(self, stones_B: Array) -> Array:
        """Where stones stand in a row, so many that they win."""
        _, _, shift_41 = _bits(self.rows, self.columns)
        # Bits where a row of `length` begins, in each way; two of them that overlap make a longer one.
        begins_4B, length = stones_B[None], 1
        while length < self.in_a_row:
            more = min(length, self.in_a_row - length)
            begins_4B = begins_4B & (begins_4B >> (shift_41 * np.uint64(more)))
            length += more
        return np.logical_or.reduce(begins_4B, axis=0)

    def outcome(self, state_B: States) -> Outcome:
        """Won by the last to move, or a full board."""
        won_B, ply_B = state_B["won"], state_B["ply"]
        return Outcome(won_B | (ply_B == self.plies), won_B * LAST[ply_B & 1])

    def key(self, state_B: States) -> Array:
        """Another number for each position: `own + taken` is, and what follows can be undone; it fills all bits."""
        key_B = (state_B["own"] + state_B["taken"]) * SPREAD
        return key_B ^ (key_B >> np.uint64(32))

    def observe(self, state_B: States) -> Array:
        """Float32 [B, 2 or 5, Y, X]."""
        own_B, taken_B = state_B["own"], state_B["taken"]
        seen = np.stack((own_B, own_B ^ taken_B))
        if self.threats:
            low, board = _board(self.rows, self.columns)
            free_B = board & ~taken_B
            seen = np.concatenate((seen, self._winning(seen) & free_B, ((taken_B + low) & free_B)[None]))
        bits_BPN = np.unpackbits(seen.T[..., None].copy().view(np.uint8), axis=2, bitorder="little")
        shape = *bits_BPN.shape[:2], self.columns, self.rows + 1
        columns = bits_BPN[..., : shape[2] * shape[3]].reshape(shape)
        return columns[..., -2::-1].swapaxes(2, 3).astype(np.float32)

    def _winning(self, stones_PB: Array) -> Array:
        """Cells that a stone would win on, free ones and others."""
        _, _, shift_41 = _bits(self.rows, self.columns)
        shift_411 = shift_41[..., None]
        # Where 0, 1, ... stones in a row end below a cell, in each way, and begin above it.
        below, above = [~np.zeros_like(stones_PB)], [~np.zeros_like(stones_PB)]
        for _ in range(self.in_a_row - 1):
            below.append((stones_PB & below[-1]) << shift_411)
            above.append((stones_PB & above[-1]) >> shift_411)
        joined = [down & up for down, up in zip(below, reversed(above), strict=True)]
        return np.bitwise_or.reduce([np.bitwise_or.reduce(each, axis=0) for each in joined], axis=0)

    def turned(self, planes_BCYX: Array, policy_BA: Array, number_B: Array) -> tuple[Array, Array]:
        """Symmetry 1 is the mirror image."""
        mirror_B = np.asarray(number_B, bool)
        planes = np.where(mirror_B[:, None, None, None], planes_BCYX[..., ::-1], planes_BCYX)
        return planes, np.where(mirror_B[:, None], policy_BA[:, ::-1], policy_BA)

    def spell(self, action: int) -> str:
        """The column's number, from 1."""
        return str(int(action) + 1)

    def parse(self, text: str) -> int:
        """The column of a number.

        Raises:
            ConfigError: it is none from 1 to the last.
        """
        known = {self.spell(action): action for action in range(self.columns)}
        if text not in known:
            raise ConfigError(
                f"{text[:40]!r} is no move of {self.name}",
                "a move is the number of a column, counted from the left",
                f"write 1 to {self.columns}",
            )
        return known[text]

    def show(self, state: Any) -> str:
        """`X` is the first player, `O` the second."""
        own_YX, other_YX = self.observe(np.array([state], STATE))[0, :2]
        own, other = "XO" if state["ply"] % 2 == 0 else "OX"
        mark_YX = np.where(own_YX > 0, own, np.where(other_YX > 0, other, "."))
        rows = [" ".join(row) for row in mark_YX]
        return "\n".join((*rows, " ".join(map(self.spell, range(self.columns)))))
