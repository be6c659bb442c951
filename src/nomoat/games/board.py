"""A square board: its cells in flat memory with an edge around them, its eight symmetries, the names of its cells.

    [B, size, size] -inside-> [B, M]: an edge row above and below, an edge column between two rows
    planes, policy, number -turned-> planes, policy                  "d4" <-Names.spell / parse-> y * size + x

In flat memory a neighbour lies at a fixed offset, also from the last column to the edge before the next row, so that
one slice of the whole batch gives a neighbour of all cells. Cell 0, beside which there is only edge, stands for a pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from nomoat.core.errors import ConfigError

if TYPE_CHECKING:
    from nomoat.games.rules import Array


def width(size: int) -> int:
    """How far apart in flat memory two cells are of which one lies below the other."""
    return size + 1


@cache
def inside(size: int) -> Array:
    """Where the board's cells lie in flat memory, int [size * size], row by row."""
    rows = width(size) * np.arange(1, size + 1)
    return (rows[:, None] + np.arange(1, size + 1)).ravel()


def cells(size: int) -> int:
    """M, the board's cells with the edge."""
    return width(size) * (size + 2) + 1


@cache
def _orders(size: int) -> Array:
    """Which cell comes to each place, int [8, size * size]; a mirror after each quarter turn."""
    cell_YX = np.arange(size * size).reshape(size, size)
    turns = [np.rot90(cell_YX, quarter) for quarter in range(4)]
    return np.stack([order.ravel() for turn in turns for order in (turn, turn[:, ::-1])])


def turned(planes_BCYX: Array, policy_BA: Array, number_B: Array) -> tuple[Array, Array]:
    """Planes and policy under symmetries 0 to 7 of the square; 0 is none. What follows the cells (a pass) stays."""
    count, channels, size, _ = planes_BCYX.shape
    order_BN = _orders(size)[number_B]
    planes_BCN = np.take_along_axis(planes_BCYX.reshape(count, channels, -1), order_BN[:, None], axis=2)
    first_BN = np.take_along_axis(policy_BA, order_BN, axis=1)
    return planes_BCN.reshape(planes_BCYX.shape), np.concatenate((first_BN, policy_BA[:, size * size :]), axis=1)


@dataclass(frozen=True)
class Names:
    """How moves on a square board are written: the column's letter, then the row's number.

    Args:
        game: as on the command line.
        size: of the board.
        letters: of the columns from left to right, as they are printed.
        rising: row 1 is the lowest, else the highest.
        passes: the action after the last cell is called `pass`.
    """

    game: str
    size: int
    letters: str = "abcdefghijklmnop"
    rising: bool = False
    passes: bool = False

    def spell(self, action: int) -> str:
        """The cell's name."""
        if action == self.size**2:
            return "pass"
        y, x = divmod(int(action), self.size)
        return f"{self.letters[x]}{self._row(y)}"

    def _row(self, y: int) -> int:
        return self.size - y if self.rising else y + 1

    def parse(self, text: str) -> int:
        """The action of a name, in capitals or not.

        Raises:
            ConfigError: it is no cell's name.
        """
        known = {self.spell(action).lower(): action for action in range(self.size**2 + self.passes)}
        # A Kelvin sign is a k to `lower`.
        action = known.get(text.lower()) if text.isascii() else None
        if action is None:
            without = " without I" if "I" not in self.letters.upper() and self.size > 8 else ""
            rows = f"a row's number 1 to {self.size} counted from the {'bottom' if self.rising else 'top'}"
            raise ConfigError(
                f"{text[:40]!r} is no move of {self.game}",
                f"a move is a column's letter {self.letters[0]} to {self.letters[self.size - 1]}{without}, then {rows}",
                f"write it like `{self.spell(self.size)}`" + (" or `pass`" if self.passes else ""),
            )
        return action

    def show(self, mark_N: Array) -> str:
        """The board with what stands on each cell, one character each, row by row."""
        head = "   " + " ".join(self.letters[: self.size])
        rows = [f"{self._row(y):2} {' '.join(row)}" for y, row in enumerate(mark_N.reshape(self.size, self.size))]
        return "\n".join((head, *rows))
