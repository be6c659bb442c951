"""Countdown problems without end, each by its number alone, with one of its solutions; and the fixed test sets.

    seed, index, attempt -> chance -> n numbers, target -> in the split? -> all ways to the target -> one of them
    split, n -> the first 1,000 different problems that can be solved -> exam -> digest

Numbers from 1 to 99 and a target from 10 to 100, each equally likely, of which those are kept that can be solved with
all numbers under the domain's limit: so draws the code of Gandhi et al. 2024, arXiv:2404.03683, without a limit. With
6 and more numbers `problems` draws the first steps and looks at all ways of the last five numbers alone, so that there,
and not in the test sets, problems with many good first steps come more often.

A way is in order where no line could change places with the one before it and stand there with greater numbers; of a
problem's ways in order one is chosen, all equally likely.

Splits, by rule, so that no list is needed: 9 of the 91 targets (10, 18, 21, 41, 48, 49, 68, 82, 83) are kept for
`targets`; of the sets of numbers one in twenty is kept for `numbers`, another for `heldout`, the rest is for `train`
and `targets`. So no two splits share a problem, and none but `train` and `targets` share a set of numbers.

SHA-256 of the test sets (`digest`), with the usual limit of 999:

    4 numbers  f3e64d6c180d08782c118a0054209cdc3a8f37e1e226d9147040e939668f3a3f
    4 targets  b7825c7d8345f28d1fafb16839f1fcef165024ffe946ca8dc634e9f32e4530ca
    5 numbers  15a49decadfe9462c08bb836aa24c67acff111eaf94416390f00f0d8cb29fb81
    5 targets  8389ec61ac8e322df5240dc691f7822baab6fff93222e1f44d0eebea71ec8412
    6 numbers  dcff7a6c64061ab3849b91c36c510afc754752c93365b002fee84e5e5bf26f68
    6 targets  6e51615fcf03accf4f2d6e965bec5467b6bbfc49f4b82d8d58e0679ae4158965
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nomoat.core.errors import ConfigError, nearest
from nomoat.games.countdown import Countdown, chosen, mixed

if TYPE_CHECKING:
    from nomoat.core.domain import States

Array = np.ndarray[Any, Any]

LARGEST = 99
TARGETS = np.arange(10, 101)
HELD_TARGETS = np.sort(TARGETS[np.argsort(mixed(TARGETS))[:9]])
SPLITS = ("train", "heldout", "numbers", "targets")
TESTS = ("numbers", "targets")
TEST_SEED, TEST_SIZE = 0, 1000
ENDING = 5
"""Numbers from which on every way is looked at."""
ROUND = 64
"""Attempts that are looked at together, at least."""
TOGETHER = 32
"""Problems whose ways are all looked at together, to bound memory."""


class Problems(NamedTuple):
    """Problems, and how each can be solved.

    Args:
        state_B: at their beginning.
        action_BS: int16, the n - 1 actions of one solution.
    """

    state_B: States
    action_BS: Array


def problems(game: Countdown, split: str, seed: int, index_B: Any) -> Problems:
    """The problems of these numbers [B]; each depends on the game, the split, the seed and its own number alone.

    Raises:
        ConfigError: there is no such split, or the game has less than 3 numbers.
    """
    if split not in SPLITS:
        raise ConfigError(f"there is no split `{split}`", f"there is {', '.join(SPLITS)}", nearest(split, SPLITS))
    if game.numbers < 3 or game.limit < TARGETS[-1]:
        raise ConfigError(
            f"no problems are made of {game.numbers} numbers up to {game.limit}",
            fix="use 3 or more, and a limit from 100",
        )
    index_B = np.atleast_1d(np.asarray(index_B, dtype=np.int64))
    state_B = np.zeros(len(index_B), game.dtype)
    action_BS = np.zeros((len(index_B), game.numbers - 1), np.int16)
    todo, attempts = np.arange(len(index_B)), 0
    while len(todo):
        tries = max(1, ROUND // len(todo))
        index_R, attempt_R = index_B[todo].repeat(tries), attempts + np.tile(np.arange(tries), len(todo))
        chance_R = mixed(seed, SPLITS.index(split), game.numbers, index_R, attempt_R)
        drawn_R = _drawn(game, split, chance_R)
        fits_R = split_of(drawn_R) == SPLITS.index(split)
        solved_R, found_RS = np.zeros(len(fits_R), dtype=bool), np.zeros((len(fits_R), game.numbers - 1), np.int16)
        solved_R[fits_R], found_RS[fits_R] = one_way(game, drawn_R[fits_R], chance_R[fits_R])
        first_T = solved_R.reshape(-1, tries).argmax(1) + tries * np.arange(len(todo))
        done_T = solved_R[first_T]
        state_B[todo[done_T]], action_BS[todo[done_T]] = drawn_R[first_T[done_T]], found_RS[first_T[done_T]]
        todo, attempts = todo[~done_T], attempts + tries
    return Problems(state_B, action_BS)


def split_of(state_B: States) -> Array:
    """Of problems at their beginning, the split [B] they may come in, counted in `SPLITS`; -1: in none."""
    part_B = mixed(1, *state_B["numbers"].T) % np.uint64(20)
    plain_B = np.select([part_B == 0, part_B == 1], [SPLITS.index("numbers"), SPLITS.index("heldout")], 0)
    kept_B = np.where(plain_B == 0, SPLITS.index("targets"), -1)
    return np.where(np.isin(state_B["target"], HELD_TARGETS), kept_B, plain_B)


def one_way(game: Countdown, state_B: States, chance_B: Array) -> tuple[Array, Array]:
    """Whether each problem has a solution, bool [B], and the actions [B, S] of one of those in order, by chance.

    With more than 5 numbers the first steps are drawn, and only what follows them is looked at.
    """
    origin_N, action_NS = np.arange(len(state_B)), np.zeros((len(state_B), 0), np.int16)
    state_N, steps = state_B, _steps(game, state_B, None)
    for left in range(game.numbers, 3, -1):
        if left > ENDING:
            share_N = (mixed(chance_B[origin_N], left) >> np.uint64(11)) * 2.0**-53
            rows, action_N = np.arange(len(state_N)), chosen(steps.in_order_NA, share_N)
        else:
            rows, action_N = np.nonzero(steps.in_order_NA)
        origin_N, action_NS = origin_N[rows], np.column_stack((action_NS[rows], action_N.astype(np.int16)))
        state_N = game.step(state_N[rows], action_N)
        steps = _steps(game, state_N, (steps.c_NA[rows, action_N], steps.rank_NA[rows, action_N]))
    rows, action_N, operation_N = np.nonzero(_meets(state_N, steps))
    action_NS = np.column_stack((action_NS[rows], action_N, operation_N)).astype(np.int16)
    ways_B = np.bincount(origin_N[rows], minlength=len(state_B))
    which_B = (chance_B % np.maximum(ways_B, 1).astype(np.uint64)).astype(np.int64)
    found_B, first_B = ways_B > 0, np.cumsum(ways_B) - ways_B
    action_BS = np.zeros((len(state_B), game.numbers - 1), np.int16)
    action_BS[found_B] = action_NS[(first_B + which_B)[found_B]]
    return found_B, action_BS


@cache
def exam(game: Countdown, split: str) -> States:
    """The 1,000 problems of a test: the first different ones of seed 0 that can be solved.

    Args:
        game: of 4, 5 or 6 numbers (more take long).
        split: `numbers` (sets of numbers that no training shows) or `targets` (targets that no training shows).
    """
    kept_B, first = np.zeros(0, game.dtype), 0
    while len(kept_B) < TEST_SIZE:
        chance_R = mixed(TEST_SEED, SPLITS.index(split), game.numbers, np.arange(first, first + ROUND))
        drawn_R, first = _drawn(game, split, chance_R), first + ROUND
        fits_R = drawn_R[split_of(drawn_R) == SPLITS.index(split)]
        kept_B = np.concatenate((kept_B, fits_R[solvable(game, fits_R)]))
        kept_B = kept_B[np.sort(np.unique(game.key(kept_B), return_index=True)[1])]
    return kept_B[:TEST_SIZE]


def solvable(game: Countdown, state_B: States) -> Array:
    """Whether each problem has a solution, bool [B]; all ways are looked at, whatever the number of numbers."""
    solvable_B = np.zeros(len(state_B), dtype=bool)
    for first in range(0, len(state_B), TOGETHER):
        state_N = state_B[first : first + TOGETHER]
        origin_N = first + np.arange(len(state_N))
        for _ in range(game.numbers - 3):
            rows, action_N = np.nonzero(game.legal(state_N))
            state_N, origin_N = game.step(state_N[rows], action_N), origin_N[rows]
            once = np.unique(mixed(game.key(state_N), origin_N), return_index=True)[1]
            state_N, origin_N = state_N[once], origin_N[once]
        solvable_B[origin_N[_meets(state_N, _steps(game, state_N, None)).any((1, 2))]] = True
    return solvable_B


def digest(state_B: States) -> str:
    """SHA-256 of problems, as rows of n numbers in falling order and the target, 16 bits each, low byte first."""
    rows_BN = np.column_stack((state_B["numbers"], state_B["target"]))
    return hashlib.sha256(rows_BN.astype("<i2").tobytes()).hexdigest()


class _Steps(NamedTuple):
    """The actions of some states, after the last one taken in each.

    Args:
        in_order_NA: whether a line is legal, and could not stand before the last one with greater numbers.
        a_NA, b_NA, c_NA: what it joins and gives.
        rank_NA: by which lines are compared.
    """

    in_order_NA: Array
    a_NA: Array
    b_NA: Array
    c_NA: Array
    rank_NA: Array


def _steps(game: Countdown, state_N: States, last: tuple[Array, Array] | None) -> _Steps:
    """The steps of states, `last` being what the line before gave and its rank, each [N]."""
    a_NA, b_NA, c_NA = game.parts(state_N)
    rank_NA = (a_NA.astype(np.int64) * (game.limit + 1) + b_NA) * 4 + np.arange(c_NA.shape[1]) % 4
    in_order_NA = c_NA >= 0
    if last is not None:
        c_N1, rank_N1 = (each_N[:, None] for each_N in last)
        uses_NA = (a_NA == c_N1).astype(np.int8) + (b_NA == c_N1)
        free_NA = uses_NA < (state_N["numbers"] == c_N1).sum(1)[:, None]
        in_order_NA &= ~(free_NA & (rank_NA > rank_N1))
    return _Steps(in_order_NA, a_NA, b_NA, c_NA, rank_NA)


def _meets(state_N: States, steps: _Steps) -> Array:
    """Of states with three numbers, whether an action and an operation after it give the target, bool [N, A, 4]."""
    target_N1 = state_N["target"][:, None]
    other_NA = state_N["numbers"][:, :3].sum(1)[:, None] - steps.a_NA - steps.b_NA
    high_NA, low_NA = np.maximum(steps.c_NA, other_NA), np.minimum(steps.c_NA, other_NA)
    quotient_NA = (high_NA == target_N1 * low_NA) & (low_NA > 0)
    given = (high_NA + low_NA == target_N1, high_NA - low_NA == target_N1, high_NA * low_NA == target_N1, quotient_NA)
    return np.stack(given, axis=2) & steps.in_order_NA[:, :, None]


def _drawn(game: Countdown, split: str, chance_B: Array) -> States:
    """Numbers and a target by chance, whether or not they can be solved."""
    numbers_BN = np.stack(
        [mixed(chance_B, place) % np.uint64(LARGEST) + np.uint64(1) for place in range(game.numbers)], 1
    )
    targets = HELD_TARGETS if split == "targets" else np.setdiff1d(TARGETS, HELD_TARGETS)
    return game.start(numbers_BN.astype(np.int32), targets[mixed(chance_B, -1) % np.uint64(len(targets))])
