"""Connect four for benchmarks: the exact solver and the alpha-beta players of `solver.c`, and the labelled positions.

    boards_BYX -Solver.values-> values_BA            boards_BYX -Solver.alphabeta-> move_B
    positions.csv -positions-> Positions(boards_BYX, values_BA, stones_B, phase_B, moves)

A board is int8 [6, 7], the top row first: 0 empty, 1 a stone of the one who moves, 2 one of the other. So nothing here
asks how a game stores its states. `load` compiles the C file with the system's compiler, once for each machine;
`positions` needs neither the compiler nor the solver.

    from connect_four.play import load, positions       # beside a script in benchmarks/
    best = load().values(positions().boards_BYX[:3])
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROWS, COLUMNS = 6, 7
ILLEGAL = -2
PHASES = {"opening": range(4, 14), "middle": range(14, 26), "end": range(26, 39)}
VALUES = {"W": 1, "D": 0, "L": -1, ".": ILLEGAL}

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Positions:
    """The labelled test set: not over, no win at once, and at least one legal move is worse than another.

    Args:
        boards_BYX: int8, as above.
        values_BA: int8, what a stone in each column leads to for the mover if nobody errs: 1, 0, -1, or `ILLEGAL`.
        stones_B: int64, on the board; player 0 moves where it is even.
        phase_B: "opening", "middle" or "end".
        moves: the columns played, counted from 0.
    """

    boards_BYX: Array
    values_BA: Array
    stones_B: Array
    phase_B: Array
    moves: list[list[int]]

    def mistakes(self, move_B: Array) -> Array:
        """Bool [B]: whether the move lowers the value of the position."""
        return self.values_BA[np.arange(len(move_B)), move_B] < self.values_BA.max(1)


def board_after(moves: list[int]) -> Array:
    """The board [6, 7] seen by the one who moves next; no move is checked."""
    board_YX = np.zeros((ROWS, COLUMNS), np.int8)
    for number, x in enumerate(moves):
        y = ROWS - 1 - np.count_nonzero(board_YX[:, x])
        board_YX[y, x] = 1 if (len(moves) - number) % 2 == 0 else 2
    return board_YX


def positions(path: Path = HERE / "positions.csv") -> Positions:
    """The labelled positions, 400 a phase, sorted by stones."""
    rows = [line.split(",") for line in path.read_text(encoding="ascii").split()[1:]]
    moves = [[int(x) - 1 for x in row[1]] for row in rows]
    return Positions(
        np.stack([board_after(played) for played in moves]),
        np.array([[VALUES[letter] for letter in row[2]] for row in rows], np.int8),
        np.array([len(played) for played in moves]),
        np.array([row[0] for row in rows]),
        moves,
    )


class Solver:
    """What is in `solver.c`, for arrays of boards; one process has one table of what was proved, so no threads.

    Args:
        library: the compiled file.
        table_bits: the table takes 2^(bits + 3) bytes. 22 do from 14 stones up; earlier positions want 26 or more.
    """

    def __init__(self, library: Path, table_bits: int = 24) -> None:
        self.c = ctypes.CDLL(str(library))
        self.c.searched_so_far.restype = ctypes.c_uint64
        if not self.c.table_of(table_bits):
            raise MemoryError(f"no room for a table of {2 ** (table_bits - 17)} MiB; take fewer table_bits")

    @property
    def searched(self) -> int:
        """Positions searched so far, in all calls."""
        return int(self.c.searched_so_far())

    def values(self, boards_BYX: Array) -> Array:
        """What each move leads to for the mover: int8 [B, 7] of 1, 0, -1 or `ILLEGAL`. No board may be over."""
        own_B, both_B = _bits(boards_BYX)
        out_BA = np.empty((len(own_B), COLUMNS), np.int8)
        self.c.values_of_many(ctypes.c_int64(len(own_B)), _at(own_B), _at(both_B), _at(out_BA))
        return out_BA

    def wins(self, boards_BYX: Array) -> Array:
        """Bool [B, 7]: where a stone of the mover makes four."""
        own_B, both_B = _bits(boards_BYX)
        out_BA = np.empty((len(own_B), COLUMNS), np.bool_)
        self.c.wins_of_many(ctypes.c_int64(len(own_B)), _at(own_B), _at(both_B), _at(out_BA))
        return out_BA

    def alphabeta(self, boards_BYX: Array, depth: int, seed: int) -> Array:
        """The columns, int8 [B], of a player that looks `depth` plies ahead; equals are drawn by lot from the seed.

        `solver.c` says how it judges. Equal seeds and equal arrays give equal moves.
        """
        own_B, both_B = _bits(boards_BYX)
        seed_B = np.random.default_rng(seed).integers(0, 2**63, len(own_B)).astype(np.uint64)
        out_B = np.empty(len(own_B), np.int8)
        self.c.alphabeta_of_many(ctypes.c_int64(len(own_B)), _at(own_B), _at(both_B), depth, _at(seed_B), _at(out_B))
        return out_B


def load(table_bits: int = 24) -> Solver:
    """The solver, compiled if it has not been yet.

    Raises:
        FileNotFoundError: there is no C compiler called `cc`.
    """
    source = HERE / "solver.c"
    mark = hashlib.sha256(source.read_bytes() + platform.node().encode()).hexdigest()[:12]
    library = HERE / "build" / f"solver-{mark}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        fresh = library.with_suffix(f".{os.getpid()}")
        subprocess.run(["cc", "-O3", "-march=native", "-shared", "-fPIC", "-o", fresh, source], check=True)
        fresh.replace(library)
    return Solver(library, table_bits)


def _bits(boards_BYX: Array) -> tuple[Array, Array]:
    """Own stones and all stones, uint64 [B]: column x and row y from the bottom are bit 7 x + y."""
    bit_YX = np.uint64(1) << (7 * np.arange(COLUMNS) + np.arange(ROWS)[::-1, None]).astype(np.uint64)
    own_B = np.where(boards_BYX == 1, bit_YX, np.uint64(0)).sum((1, 2), dtype=np.uint64)
    both_B = np.where(boards_BYX != 0, bit_YX, np.uint64(0)).sum((1, 2), dtype=np.uint64)
    return own_B, both_B


def _at(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
