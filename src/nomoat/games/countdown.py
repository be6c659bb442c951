"""Countdown: join given numbers two by two with + - * / until one is left, which is to be the target.

    numbers, target -start-> state_B -legal-> [B, A] -step (a, b -> a o b)-> ... -> one number -outcome-> 1 or -1
    state -solutions-> all distinct states, ways from each to the target      states -random_play-> solved [B, tries]

Each of the n numbers is used exactly once, so a game has n - 1 steps, and the last number must equal the target. Only
integers: a - b where a >= b, a / b where b > 0 divides a; nothing above `limit`. Rules of Gandhi et al. 2024,
arXiv:2404.03683 (Stream of Search), but for the limit, which they do not have.

An action is 4 x pair + operation. Numbers stand in falling order, so that the first of a pair i < j is never the
smaller one; pairs are counted by j, then i, so that an action has the same number however many numbers are given. Of
pairs of equal values only the first is legal: a line such as `96-25=71` is one action, and an action is one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nomoat.core.domain import Outcome
from nomoat.core.errors import ConfigError

if TYPE_CHECKING:
    from nomoat.core.domain import States

Array = np.ndarray[Any, Any]

OPERATIONS = "+-*/"
NOTHING = -1
"""Stands for a number that is used up, and for what a step that is not legal would give."""
MOST_NUMBERS, MOST_LIMIT = 8, 30_000
ROWS = 1 << 15
"""States that `random_play` moves at a time, to bound memory."""


class Parts(NamedTuple):
    """What actions join and give, each int32 [B, A]: a o b = c. A: those of as many numbers as are left in any state.

    Args:
        a_BA: the number that is not the smaller one.
        b_BA: the other.
        c_BA: what they give; -1 where the action is not legal.
    """

    a_BA: Array
    b_BA: Array
    c_BA: Array


@dataclass(frozen=True)
class Countdown:
    """The rules; a one-player `Domain`. The value of the end is 1 where the target is met, else -1.

    Args:
        numbers: n, how many are given, 2 to 8.
        limit: the largest number that a step may give, at most 30,000.
    """

    numbers: int = 4
    limit: int = 999

    def __post_init__(self) -> None:
        for name, least, most in (("numbers", 2, MOST_NUMBERS), ("limit", 1, MOST_LIMIT)):
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)}", f"it must lie in {least} to {most:,}")

    @property
    def players(self) -> int:
        """One."""
        return 1

    @property
    def actions(self) -> int:
        """A: operations times pairs."""
        return 4 * len(_pairs(self.numbers)[0])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a state: `numbers` [n] in falling order, -1 where used up; `target`; `count`, how many are left."""
        return np.dtype([("numbers", np.int32, (self.numbers,)), ("target", np.int32), ("count", np.int8)], align=True)

    def start(self, numbers_BN: Any, target_B: Any) -> States:
        """Problems from their numbers [B, n], in any order, and their targets [B].

        Raises:
            ConfigError: another number of numbers, or one that is below 0 or above the limit.
        """
        given_BN, target_B = np.asarray(numbers_BN), np.asarray(target_B)
        if given_BN.shape != (len(target_B), self.numbers):
            raise ConfigError(f"numbers {given_BN.shape} for {len(target_B)} targets", f"each has {self.numbers}")
        if given_BN.size and (given_BN.min() < 0 or given_BN.max() > self.limit):
            raise ConfigError(f"numbers must lie in 0 to {self.limit:,}", f"{given_BN.min()} to {given_BN.max()} given")
        state_B = np.zeros(len(target_B), self.dtype)
        state_B["numbers"], state_B["target"], state_B["count"] = _falling(given_BN), target_B, self.numbers
        return state_B

    def mover(self, state_B: States) -> Array:
        """Always the one player, 0."""
        return np.zeros(len(state_B), np.int8)

    def parts(self, state_B: States) -> Parts:
        """What the actions join and give."""
        most = int(state_B["count"].max(initial=0))
        numbers_BN = np.ascontiguousarray(state_B["numbers"][:, :most])
        i_P, j_P = _pairs(most)
        a_BP, b_BP = numbers_BN[:, i_P], numbers_BN[:, j_P]
        divisor_BP = np.maximum(b_BP, 1)
        quotient_BP = a_BP // divisor_BP
        c_BPO = np.stack((a_BP + b_BP, a_BP - b_BP, a_BP * b_BP, quotient_BP), axis=2)
        c_BPO[..., 3][(quotient_BP * divisor_BP != a_BP) | (b_BP < 1)] = NOTHING
        c_BPO[c_BPO > self.limit] = NOTHING
        same_BN = np.zeros(numbers_BN.shape, dtype=bool)
        same_BN[:, 1:] = numbers_BN[:, 1:] == numbers_BN[:, :-1]
        c_BPO[(b_BP < 0) | same_BN[:, i_P] | same_BN[:, j_P] & (j_P > i_P + 1)] = NOTHING
        return Parts(a_BP.repeat(4, 1), b_BP.repeat(4, 1), c_BPO.reshape(len(state_B), 4 * len(i_P)))

    def legal(self, state_B: States) -> Array:
        """Bool [B, A]; a - b always is, so that only a state with one number has none."""
        c_BA = self.parts(state_B).c_BA
        legal_BA = np.zeros((len(state_B), self.actions), dtype=bool)
        legal_BA[:, : c_BA.shape[1]] = c_BA >= 0
        return legal_BA

    def step(self, state_B: States, action_B: Array) -> States:
        """The states with two numbers replaced by what they give."""
        pair_B, operation_B = np.divmod(np.asarray(action_B), 4)
        i_P, j_P = _pairs(self.numbers)
        rows, i_B, j_B = np.arange(len(state_B)), i_P[pair_B], j_P[pair_B]
        numbers_BN = state_B["numbers"].copy()
        a_B, b_B = numbers_BN[rows, i_B], numbers_BN[rows, j_B]
        numbers_BN[rows, i_B] = np.choose(operation_B, (a_B + b_B, a_B - b_B, a_B * b_B, a_B // np.maximum(b_B, 1)))
        numbers_BN[rows, j_B] = NOTHING
        after_B = state_B.copy()
        after_B["numbers"] = _falling(numbers_BN)
        after_B["count"] -= 1
        return after_B

    def outcome(self, state_B: States) -> Outcome:
        """Over with one number left; 1 where it is the target, else -1."""
        over_B = state_B["count"] == 1
        value_B = np.where(state_B["numbers"][:, 0] == state_B["target"], 1.0, -1.0)
        return Outcome(over_B, (value_B * over_B).astype(np.float32))

    def key(self, state_B: States) -> Array:
        """Uint64 [B], of the numbers left and the target."""
        return mixed(*state_B["numbers"].T, state_B["target"])


class Solved(NamedTuple):
    """All that can be reached from one state.

    Args:
        levels: the distinct states with n, n - 1, ... 1 numbers left.
        ways: for each of them, int64, how many sequences of actions lead to the target.
    """

    levels: list[States]
    ways: list[Array]

    @property
    def states(self) -> int:
        """Distinct states, the first among them: what an exhaustive search has to visit."""
        return sum(map(len, self.levels))


def solutions(game: Countdown, state: States) -> Solved:
    """Search one state [1] exhaustively, level by level, each distinct state once."""
    levels, edges = [state], list[tuple[Array, Array]]()
    for _ in range(int(state["count"][0]) - 1):
        rows, action_N = np.nonzero(game.legal(levels[-1]))
        after_N = game.step(levels[-1][rows], action_N)
        _, first, child_N = np.unique(game.key(after_N), return_index=True, return_inverse=True)
        levels.append(after_N[first])
        edges.append((rows, child_N))
    ways = [(levels[-1]["numbers"][:, 0] == state["target"][0]).astype(np.int64)]
    for level, (rows, child_N) in zip(levels[-2::-1], reversed(edges), strict=True):
        ways.append(np.bincount(rows, ways[-1][child_N], len(level)).astype(np.int64))
    return Solved(levels, ways[::-1])


def random_play(game: Countdown, state_B: States, tries: int, generator: np.random.Generator) -> Array:
    """Whether each try solves each problem, bool [B, tries]: legal actions by chance, all equally likely."""
    solved_N = np.zeros(len(state_B) * tries, dtype=bool)
    for first in range(0, len(solved_N), ROWS):
        here = np.arange(first, min(first + ROWS, len(solved_N)))
        state_N = state_B[here // tries]
        while (state_N["count"] > 1).any():
            state_N = game.step(state_N, chosen(game.legal(state_N), generator.random(len(state_N))))
        solved_N[here] = game.outcome(state_N).value_B > 0
    return solved_N.reshape(len(state_B), tries)


def chosen(legal_BA: Array, uniform_B: Array) -> Array:
    """The action [B] at a share in [0, 1) of the legal ones, of which there is at least one a row."""
    reach_BA = legal_BA.cumsum(1, dtype=np.int16)
    wanted_B = (uniform_B * reach_BA[:, -1]).astype(np.int16)
    return (reach_BA > wanted_B[:, None]).argmax(1)


def mixed(*words: Any) -> Array:
    """One 64-bit number of several integers or arrays of them, as good as chance (SplitMix64, Steele et al. 2014)."""
    made = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            made = (made ^ np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            made = (made ^ (made >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            made = (made ^ (made >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            made = made ^ (made >> np.uint64(31))
    return np.asarray(made)


def _falling(numbers_BN: Array) -> Array:
    return np.sort(numbers_BN, axis=1)[:, ::-1]


@cache
def _pairs(numbers: int) -> tuple[Array, Array]:
    """The positions i and j of each pair, those of few numbers first."""
    pairs_P2 = np.array([(i, j) for j in range(numbers) for i in range(j)], dtype=np.int64).reshape(-1, 2)
    return pairs_P2[:, 0], pairs_P2[:, 1]
