"""Go by the rules of Tromp and Taylor: area counts, no position may come again, two passes end the game.

    board, chain: [B, M] cells with an edge -step-> a stone joins chains, and takes those whose liberties are gone
        -> liberties of each chain by one bincount -> legal moves -> less those whose position was there before (hashes)

A chain has the name of one of its cells; chains only join or vanish, so that no group is ever searched for. The
liberties that are counted are pseudo-liberties, an empty point once for each stone beside it: a chain is in atari at p
exactly when it has as many as it has stones beside p. Rules: https://tromp.github.io/go.html; hashes: Zobrist 1970.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from nomoat.core.domain import Outcome
from nomoat.core.errors import ConfigError
from nomoat.games import board

if TYPE_CHECKING:
    from nomoat.core.domain import States
    from nomoat.games.rules import Array

EMPTY, EDGE = 0, 3
"""On a board; 1 and 2 are the first and the second player's stones, so that 3 less a colour is the other one."""
LETTERS = "ABCDEFGHJKLMNOPQRST"


class _Layout(NamedTuple):
    """What depends on the size alone.

    Args:
        dtype: of states. `board` and `chain` (its name; 0: none) of each cell; `lost`: bits 1 and 2, whether a stone
            of that colour was ever taken there; `hash` of the stones; `past`: hashes after each ply.
        cell_A: the cell of each action in flat memory; of a pass 0.
        beside_4: from a cell to its neighbours.
        stone_3M: a random number for each colour and cell; 0 for a pass.
        legal_A: a random number for each action that is legal.
        turn: one for the second player's move.
        passed: one for a pass before.
    """

    dtype: np.dtype[Any]
    cell_A: Array
    beside_4: Array
    stone_3M: Array
    legal_A: Array
    turn: np.uint64
    passed: np.uint64


@cache
def _layout(size: int) -> _Layout:
    cells, actions, below = (board.cells(size),), (size * size + 1,), board.width(size)
    fields: list[Any] = [("board", "i1", cells), ("chain", "i2", cells), ("lost", "u1", cells), ("legal", "?", actions)]
    fields += [("hash", "u8"), ("past", "u8", (3 * size * size,)), ("ply", "u2"), ("passes", "u1"), ("result", "i1")]
    numbers = np.random.default_rng(size).integers(0, 2**64, (5, *cells), np.uint64)
    numbers[:3, 0] = 0
    cell_A = np.append(board.inside(size), 0)
    beside_4 = np.array([-below, -1, 1, below])
    dtype = np.dtype(fields, align=True)
    return _Layout(dtype, cell_A, beside_4, numbers[:3], numbers[3, cell_A], numbers[4, 0], numbers[4, 1])


@dataclass(frozen=True)
class Go:
    """The rules. Actions go row by row from the corner above and left; the last is the pass.

    - A stone takes the other's chains that it leaves without liberties. Suicide is illegal.
    - Positional superko: a stone may not bring back any earlier position of the whole board, whoever moved then. A pass
      is always legal, and repeats nothing.
    - Two passes in a row end the game, and so do 3 * size * size plies. All stones count as alive: a side has its
      stones and the empty points from which only they are reached; the second player has the komi as well.

    `observe` gives 6 planes: the mover's stones; the other's; where a stone is legal; ones where the last ply was a
    pass; ones where the first player moves; ones where the second does. It does not tell the number of plies. A state
    keeps the hash of every earlier position: it takes 0.8 kB at size 5, 2.4 kB at 9 and 11 kB at 19.

    Args:
        size: of the board, 5 to 19.
        komi: points for the second player; a whole number makes draws possible.

    Raises:
        ConfigError: no such board, or a komi that is no number of points on it.
    """

    size: int = 9
    komi: float = 7.5

    players: ClassVar[int] = 2
    symmetries: ClassVar[int] = 8

    def __post_init__(self) -> None:
        if self.size not in range(5, 20):
            raise ConfigError(f"go cannot be played on a board of {self.size}", fix="take a size from 5 to 19")
        if not abs(self.komi) < self.size**2 + 1:
            raise ConfigError(f"komi cannot be {self.komi}", "there are not so many points", "7.5 is usual")

    @property
    def name(self) -> str:
        """`go:9`, with the komi (`go:9@6.5`) where it is not 7.5."""
        return f"go:{self.size}" + (f"@{self.komi:.8g}" if self.komi != 7.5 else "")

    @property
    def actions(self) -> int:
        """The points and the pass."""
        return self.size**2 + 1

    @property
    def planes(self) -> tuple[int, int, int]:
        """See the class."""
        return 6, self.size, self.size

    @property
    def plies(self) -> int:
        """After so many the game is scored as it stands."""
        return 3 * self.size**2

    def start(self, count: int) -> States:
        """Empty boards."""
        state_B = np.zeros(count, _layout(self.size).dtype)
        state_B["board"] = EDGE
        state_B["board"][:, board.inside(self.size)] = EMPTY
        state_B["legal"] = True
        return state_B

    def mover(self, state_B: States) -> Array:
        """Who moves, int8 [B]; they take turns."""
        return (state_B["ply"] & 1).astype(np.int8)

    def legal(self, state_B: States) -> Array:
        """Bool [B, A]; they were found when the states were made."""
        return state_B["legal"].copy()

    def step(self, state_B: States, action_B: Array) -> States:
        """The states after stones or passes: chains are joined and taken, and the next mover's moves are found."""
        layout = _layout(self.size)
        new_B, row_B1 = state_B.copy(), np.arange(len(state_B))[:, None]
        board_BM, chain_BM = np.ascontiguousarray(new_B["board"]), np.ascontiguousarray(new_B["chain"])
        cell_B1 = layout.cell_A[action_B][:, None]
        own_B1 = 1 + (new_B["ply"] & 1).astype(np.int8)[:, None]
        near_B4 = cell_B1 + layout.beside_4
        stone_B4, name_B4 = board_BM[row_B1, near_B4], chain_BM[row_B1, near_B4]
        board_BM[row_B1, cell_B1] = np.where(cell_B1, own_B1, EDGE)
        chain_BM[row_B1, cell_B1] = cell_B1
        joined_BM = _in_chains(chain_BM, np.where(stone_B4 == own_B1, name_B4, -1))
        np.copyto(chain_BM, cell_B1.astype(np.int16), where=joined_BM)
        new_B["hash"] ^= layout.stone_3M[own_B1, cell_B1][:, 0]
        liberty_BM = self._liberties(board_BM, chain_BM)
        takes_B4 = (stone_B4 == 3 - own_B1) & (liberty_BM[row_B1, near_B4] == 0)
        if (row_K := np.flatnonzero(takes_B4.any(1))).size:
            gone_KM = _in_chains(chain_BM[row_K], np.where(takes_B4, name_B4, -1)[row_K])
            colour_K1 = 3 - own_B1[row_K]
            new_B["hash"][row_K] ^= self._hashed(gone_KM, colour_K1[:, 0])
            new_B["lost"][row_K] |= gone_KM * colour_K1.astype(np.uint8)
            board_BM[row_K] *= ~gone_KM
            chain_BM[row_K] *= ~gone_KM
            liberty_BM[row_K] = self._liberties(board_BM[row_K], chain_BM[row_K])
        new_B["past"][row_B1[:, 0], np.minimum(new_B["ply"], self.plies - 1)] = new_B["hash"]
        new_B["board"], new_B["chain"] = board_BM, chain_BM
        new_B["ply"] += 1
        new_B["passes"] = np.where(cell_B1[:, 0], 0, new_B["passes"] + 1)
        new_B["legal"][:, :-1] = self._moves(new_B, board_BM, chain_BM, liberty_BM)
        over_B = (new_B["passes"] == 2) | (new_B["ply"] >= self.plies)
        if (row_K := np.flatnonzero(over_B)).size:
            new_B["legal"][row_K] = False
            new_B["result"][row_K] = np.sign(self._lead(board_BM[row_K]) - self.komi)
        return new_B

    @property
    def _inner(self) -> slice:
        """A batch's flat memory without the first and the last edge row."""
        return slice(board.width(self.size), -board.width(self.size))

    def _beside(self, flat: Array) -> list[Array]:
        """The four neighbours of the inner cells of a batch; views."""
        below = board.width(self.size)
        return [flat[below + way : len(flat) - below + way] for way in (-below, -1, 1, below)]

    def _liberties(self, board_BM: Array, chain_BM: Array) -> Array:
        """Pseudo-liberties of the chain at each cell, int16 [B, M]; where there is no stone: anything."""
        count, cells = board_BM.shape
        empty = (board_BM == EMPTY).ravel().view(np.int8)
        near = np.zeros(empty.shape, np.int8)
        above, left, right, below = self._beside(empty)
        near[self._inner] = above + left + right + below
        name = (chain_BM + (np.arange(count) * cells)[:, None]).ravel()
        return np.bincount(name, near, count * cells).astype(np.int16)[name].reshape(count, cells)

    def _moves(self, state_B: States, board_BM: Array, chain_BM: Array, liberty_BM: Array) -> Array:
        """Bool [B, size * size]: where the next mover may put a stone."""
        own_B1 = 1 + (state_B["ply"] & 1).astype(np.int8)[:, None]
        empty_BM = board_BM == EMPTY
        name_4, liberty_4 = self._beside(chain_BM.ravel()), self._beside(liberty_BM.ravel())
        empty_4, own_4, other_4 = (
            self._beside(kind_BM.ravel()) for kind_BM in (empty_BM, board_BM == own_B1, board_BM == 3 - own_B1)
        )
        touches_4 = np.ones((4, len(name_4[0])), np.int8)
        for one, other in combinations(range(4), 2):
            same = (name_4[one] == name_4[other]).view(np.int8)
            touches_4[one] += same
            touches_4[other] += same
        takes_4 = np.empty(touches_4.shape, bool)
        free = np.zeros(len(name_4[0]), bool)
        for side in range(4):
            last = liberty_4[side] == touches_4[side]  # the point is the only liberty of the chain there
            takes_4[side] = other_4[side] & last
            free |= empty_4[side] | takes_4[side] | (own_4[side] & ~last)
        move_BM = np.zeros_like(empty_BM)
        move_BM.ravel()[self._inner] = free
        move_BM &= empty_BM
        # A stone can only bring back what was there before where one of its colour was taken.
        row_K, cell_K = np.nonzero(move_BM & (state_B["lost"] & own_B1.view(np.uint8)).astype(bool))
        if row_K.size:
            takes_K4 = takes_4[:, row_K * board_BM.shape[1] + cell_K - board.width(self.size)].T
            again_K = self._repeats(state_B, chain_BM, row_K, cell_K, takes_K4)
            move_BM[row_K[again_K], cell_K[again_K]] = False
        return move_BM[:, board.inside(self.size)]

    def _repeats(self, state_B: States, chain_BM: Array, row_K: Array, cell_K: Array, takes_K4: Array) -> Array:
        """Whether stones at these cells of these rows, which take the chains beside them, bring back what has been."""
        layout = _layout(self.size)
        own_K = 1 + (state_B["ply"][row_K] & 1)
        hash_K = state_B["hash"][row_K] ^ layout.stone_3M[own_K, cell_K]
        if (take_J := np.flatnonzero(takes_K4.any(1))).size:
            row_J, near_J4 = row_K[take_J], cell_K[take_J, None] + layout.beside_4
            name_J4 = np.where(takes_K4[take_J], chain_BM[row_J[:, None], near_J4], -1)
            hash_K[take_J] ^= self._hashed(_in_chains(chain_BM[row_J], name_J4), 3 - own_K[take_J])
        past_KT = state_B["past"][:, : state_B["ply"].max()][row_K]
        return (past_KT == hash_K[:, None]).any(1)

    def _hashed(self, stone_KM: Array, colour_K: Array) -> Array:
        """The hash of some stones of one colour in each row."""
        number_KM = _layout(self.size).stone_3M[colour_K]
        return np.bitwise_xor.reduce(np.where(stone_KM, number_KM, np.uint64(0)), axis=1)

    def _lead(self, board_KM: Array) -> Array:
        """The first player's area less the second's, before komi."""
        reached, empty = np.concatenate((board_KM == 1, board_KM == 2)).ravel(), np.tile((board_KM == EMPTY).ravel(), 2)
        before = -1
        while before != (before := int(np.count_nonzero(reached))):
            above, left, right, below = self._beside(reached)
            reached[self._inner] |= (above | left | right | below) & empty[self._inner]
        first_KM, second_KM = reached.reshape(2, *board_KM.shape)
        return first_KM.sum(1) - second_KM.sum(1)  # what both reach is in both

    def outcome(self, state_B: States) -> Outcome:
        """Two passes, or too many plies; then by area."""
        over_B = (state_B["passes"] == 2) | (state_B["ply"] >= self.plies)
        return Outcome(over_B, state_B["result"].astype(np.float32))

    def score(self, state_B: States) -> Array:
        """The first player's area less the second's and the komi, as the stones lie, float64 [B]."""
        score_B: Array = self._lead(state_B["board"]) - self.komi
        return score_B

    def key(self, state_B: States) -> Array:
        """Of the stones, the moves that are legal, who moves and whether the last ply was a pass."""
        layout = _layout(self.size)
        turn_B = (state_B["ply"] & 1) * layout.turn + (state_B["passes"] == 1) * layout.passed
        return (state_B["hash"] ^ state_B["legal"] @ layout.legal_A) + turn_B

    def observe(self, state_B: States) -> Array:
        """Float32 [B, 6, Y, X]; see the class."""
        stone_BN, second_B1 = state_B["board"][:, board.inside(self.size)], (state_B["ply"] & 1)[:, None]
        seen = np.zeros((len(state_B), 6, self.size**2), np.float32)
        seen[:, 0], seen[:, 1] = stone_BN == 1 + second_B1, stone_BN == 2 - second_B1
        seen[:, 2], seen[:, 3] = state_B["legal"][:, :-1], state_B["passes"][:, None] == 1
        seen[:, 4], seen[:, 5] = 1 - second_B1, second_B1
        return seen.reshape(-1, *self.planes)

    def turned(self, planes_BCYX: Array, policy_BA: Array, number_B: Array) -> tuple[Array, Array]:
        """The eight symmetries of the square; a pass stays."""
        return board.turned(planes_BCYX, policy_BA, number_B)

    @property
    def _names(self) -> board.Names:
        return board.Names(self.name, self.size, LETTERS, rising=True, passes=True)

    def spell(self, action: int) -> str:
        """The point's name (`D4`: column D, fourth row from below), or `pass`."""
        return self._names.spell(action)

    def parse(self, text: str) -> int:
        """The point of a name, or the pass.

        Raises:
            ConfigError: it is neither.
        """
        return self._names.parse(text)

    def show(self, state: Any) -> str:
        """`X` is the first player, black, `O` the second."""
        return self._names.show(np.array([".", "X", "O"])[state["board"][board.inside(self.size)]])


def _in_chains(chain_KM: Array, name_K4: Array) -> Array:
    """Where cells belong to one of four chains; -1 is no chain."""
    found_KM = chain_KM == name_K4[:, :1]
    for side in range(1, 4):
        found_KM |= chain_KM == name_K4[:, side : side + 1]
    return found_KM
