"""Countdown: the rules against a slow search in plain Python, problems by their numbers, splits that do not overlap."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomoat.core.domain import Domain
from nomoat.core.errors import ConfigError
from nomoat.games import countdown_problems
from nomoat.games.countdown import Countdown, mixed, random_play, solutions
from nomoat.games.countdown_problems import (
    HELD_TARGETS,
    SPLITS,
    TESTS,
    digest,
    exam,
    one_way,
    problems,
    solvable,
    split_of,
)

LIMIT = 200
small = st.lists(st.one_of(st.integers(0, 12), st.integers(0, LIMIT)), min_size=2, max_size=4)


def lines(numbers, limit=LIMIT):
    """Every line that may be written, with the numbers after it: no arrays, no thought of speed."""
    found = {}
    for i, j in combinations(range(len(numbers)), 2):
        a, b = max(numbers[i], numbers[j]), min(numbers[i], numbers[j])
        given = {"+": a + b, "-": a - b, "*": a * b}
        if b and a % b == 0:
            given["/"] = a // b
        rest = [number for place, number in enumerate(numbers) if place not in (i, j)]
        for sign, c in given.items():
            if c <= limit:
                found[a, sign, b, c] = tuple(sorted([*rest, c], reverse=True))
    return found


def ways(numbers, target):
    """Every sequence of lines from the numbers to the target."""
    if len(numbers) == 1:
        return [()] if numbers[0] == target else []
    return [(line, *rest) for line, after in lines(numbers).items() for rest in ways(after, target)]


def in_order(way, numbers):
    """No line could stand before the one that is before it, and be the greater one."""
    for first, second in pairwise(way):
        left = Counter(numbers) - Counter([first[0], first[2]])
        need = Counter([second[0], second[2]])
        rank_1, rank_2 = ((a, b, "+-*/".index(sign)) for a, sign, b, _ in (first, second))
        if need <= left and rank_2 > rank_1:
            return False
        numbers = list((left + Counter([first[3]])).elements())
    return True


def written(game, state_B):
    """The legal lines of one state, by their actions."""
    parts = game.parts(state_B)
    actions = np.flatnonzero(game.legal(state_B)[0]).tolist()
    return {(int(parts.a_BA[0, k]), "+-*/"[k % 4], int(parts.b_BA[0, k]), int(parts.c_BA[0, k])): k for k in actions}


def left(state_B):
    return [tuple(row[row >= 0].tolist()) for row in state_B["numbers"]]


@given(small)
def test_the_legal_lines_are_those_of_a_slow_search(numbers):
    game = Countdown(len(numbers), LIMIT)
    state_B = game.start([numbers], [50])
    before = state_B.copy()
    found, expected = written(game, state_B), lines(numbers)
    assert found.keys() == expected.keys()
    assert len(found) == game.legal(state_B).sum(), "each line is one action"
    for line, action in found.items():
        after_B = game.step(state_B, np.array([action]))
        assert left(after_B) == [expected[line]]
        assert after_B["count"][0] == len(numbers) - 1
    assert (state_B == before).all()


@given(small, st.integers(0, 60))
def test_all_that_can_be_reached_is_found_once(numbers, target):
    game = Countdown(len(numbers), LIMIT)
    solved = solutions(game, game.start([numbers], [target]))
    level, total = {tuple(sorted(numbers, reverse=True))}, 0
    for found, count in zip(solved.levels, solved.ways, strict=True):
        assert sorted(left(found)) == sorted(level)
        assert count.tolist() == [len(ways(each, target)) for each in left(found)]
        total += len(level)
        level = {after for each in level for after in lines(each).values()}
    assert solved.states == total


def test_it_is_a_domain_for_one():
    game = Countdown(3)
    assert isinstance(game, Domain) and game.players == 1 and game.actions == 12
    state_B = game.start([[3, 99, 7], [3, 99, 7], [3, 98, 7], [2, 1, 0]], [24, 25, 24, 3])
    assert game.mover(state_B).tolist() == [0] * 4 and game.mover(state_B).dtype == np.int8
    assert len(set(game.key(state_B).tolist())) == 4 and game.key(state_B).dtype == np.uint64
    assert game.key(game.start([[99, 7, 3]], [24])) == game.key(state_B[:1])
    assert not game.outcome(state_B).over_B.any() and not game.outcome(state_B).value_B.any()
    last_B = state_B[[0, 3]]
    for _ in range(2):
        last_B = game.step(last_B, game.legal(last_B).argmax(1))
    over_B, value_B = game.outcome(last_B)
    assert over_B.all() and left(last_B) == [(109,), (3,)]
    assert value_B.tolist() == [-1, 1] and value_B.dtype == np.float32
    assert not game.legal(last_B).any()
    assert game.legal(np.concatenate((last_B, state_B))).shape == (6, 12)


def test_an_action_has_the_same_number_in_every_game():
    few, many = Countdown(3), Countdown(6)
    one, other = few.start([[50, 20, 4]], [9]), many.start([[50, 20, 4, 3, 2, 1]], [9])
    assert written(few, one).items() <= written(many, other).items()


def test_what_cannot_be_played_is_refused():
    for wrong in ({"numbers": 1}, {"numbers": 9}, {"limit": 0}, {"limit": 10**6}):
        with pytest.raises(ConfigError):
            Countdown(**wrong)
    for numbers in ([[1, 2, 3]], [[1, 2, 3, -1]], [[1, 2, 3, 1000]]):
        with pytest.raises(ConfigError):
            Countdown(4).start(numbers, [10])


def test_blind_play_solves_as_often_as_it_should():
    game = Countdown(3, LIMIT)
    numbers, target = (7, 3, 2), 8

    def chance(numbers):
        if len(numbers) == 1:
            return float(numbers[0] == target)
        after = lines(numbers).values()
        return sum(map(chance, after)) / len(after)

    state_B = game.start([numbers, (200, 200, 200), (1, 1, 1)], [target, 150, 1])
    solved = random_play(game, state_B, 20_000, np.random.default_rng(0))
    p = chance(numbers)
    assert 0.02 < p < 0.5
    assert solved.shape == (3, 20_000) and not solved[1].any() and 0 < solved[2].mean() < 1
    assert abs(solved[0].mean() - p) < 4 * (p * (1 - p) / 20_000) ** 0.5


def test_mixing_depends_on_every_word_and_on_their_order():
    made = [int(mixed(*words)) for words in ((), (0,), (0, 0), (1, 2), (2, 1), (-1,), (2**40,))]
    assert len(set(made)) == len(made)
    assert (mixed(5, np.arange(3)) == [int(mixed(5, number)) for number in range(3)]).all()
    bits = np.unpackbits(mixed(7, np.arange(4000)).view(np.uint8)).mean()
    assert abs(bits - 0.5) < 0.005


# problems


@pytest.mark.parametrize("numbers", [4, 5, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("split", TESTS)
def test_the_test_sets_are_the_published_ones(numbers, split):
    game = Countdown(numbers)
    state_B = exam(game, split)
    assert f"{numbers} {split:<7}  {digest(state_B)}" in countdown_problems.__doc__
    assert len(np.unique(state_B)) == 1000
    assert (np.isin(state_B["target"], HELD_TARGETS) == (split == "targets")).all()
    assert state_B["numbers"].min() >= 1 and state_B["numbers"].max() <= 99
    assert state_B["target"].min() >= 10 and state_B["target"].max() <= 100
    assert (split_of(state_B) == SPLITS.index(split)).all()
    assert all(solutions(game, state_B[row : row + 1]).ways[0][0] for row in range(0, 1000, 50 if numbers < 6 else 250))


def test_no_split_shows_what_another_keeps():
    game = Countdown(4)
    made = {split: problems(game, split, 1, np.arange(400)).state_B for split in SPLITS}
    made["train"] = problems(game, "train", 1, np.arange(3000)).state_B
    for number, (split, state_B) in enumerate(made.items()):
        assert (split_of(state_B) == number).all(), split
    held = np.isin(made["train"]["target"], HELD_TARGETS)
    assert not held.any() and len(HELD_TARGETS) == 9 and set(range(10, 101)) - set(HELD_TARGETS.tolist()) >= {24}
    sets = {split: set(map(tuple, state_B["numbers"].tolist())) for split, state_B in made.items()}
    for one, other in combinations(("train", "heldout", "numbers"), 2):
        assert not sets[one] & sets[other]
    grid = game.start(np.random.default_rng(0).integers(1, 100, (20_000, 4)), np.full(20_000, 24))
    shares = np.bincount(split_of(grid), minlength=3) / len(grid)
    assert shares[:3] == pytest.approx([0.9, 0.05, 0.05], abs=0.01)
    kept = split_of(game.start(grid["numbers"], np.full(20_000, HELD_TARGETS[0])))
    assert set(kept.tolist()) == {-1, SPLITS.index("targets")}


@pytest.mark.parametrize("numbers", [4, 6])
def test_a_problem_is_the_same_however_it_is_come_by(numbers):
    game = Countdown(numbers)
    whole = problems(game, "train", 3, np.arange(100, 130))
    for rows in (np.array([4]), np.array([29, 0, 17])):
        some = problems(game, "train", 3, 100 + rows)
        assert (some.state_B == whole.state_B[rows]).all() and (some.action_BS == whole.action_BS[rows]).all()
    assert (problems(game, "train", 4, np.arange(100, 130)).state_B != whole.state_B).all()
    assert len(np.unique(whole.state_B)) == 30


@pytest.mark.parametrize("numbers", [(9, 7, 4, 3), (12, 6, 3, 3), (8, 6, 4, 2), (99, 50, 50, 1)])
def test_each_way_in_order_is_as_likely(numbers):
    game, target = Countdown(4, LIMIT), 24 if 99 not in numbers else 99
    all_ways = ways(numbers, target)
    expected = [way for way in all_ways if in_order(way, numbers)]
    assert {tuple(sorted(way)) for way in expected} == {tuple(sorted(way)) for way in all_ways}
    tries = 200 * len(expected)
    state_B = game.start([numbers] * tries, [target] * tries)
    found_B, action_BS = one_way(game, state_B, mixed(9, np.arange(tries)))
    assert found_B.all()
    seen = Counter()
    for actions, count in Counter(map(tuple, action_BS.tolist())).items():
        way, state = [], state_B[:1]
        for action in actions:
            way.append({k: line for line, k in written(game, state).items()}[action])
            state = game.step(state, np.array([action]))
        seen[tuple(way)] = count
    assert seen.keys() == set(expected) and len(expected) == len(set(expected))
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 2 * len(expected) + 20


def test_problems_are_all_that_can_be_solved():
    game = Countdown(3, LIMIT)
    generator = np.random.default_rng(2)
    state_B = game.start(generator.integers(1, 100, (300, 3)), generator.integers(10, 101, 300))
    found_B, _ = one_way(game, state_B, mixed(np.arange(300)))
    assert (found_B == solvable(game, state_B)).all()
    expected = [
        bool(ways(numbers, int(target))) for numbers, target in zip(left(state_B), state_B["target"], strict=True)
    ]
    assert found_B.tolist() == expected and 5 < found_B.sum() < 100


@pytest.mark.parametrize("numbers", [4, 5, 6])
def test_made_problems_are_solved_by_their_actions_and_random_ones_as_often_as_an_exhaustive_search_says(numbers):
    game, generator = Countdown(numbers), np.random.default_rng(numbers)
    state_B, action_BS = problems(game, "train", 7, np.arange(40))
    for action_B in action_BS.T:
        assert game.legal(state_B)[np.arange(40), action_B].all()
        state_B = game.step(state_B, action_B)
    assert (game.outcome(state_B).value_B == 1).all()
    rows = 40 if numbers < 6 else 6
    random_B = game.start(generator.integers(1, 100, (rows, numbers)), generator.integers(10, 101, rows))
    expected = [solutions(game, random_B[row : row + 1]).ways[0][0] > 0 for row in range(rows)]
    assert solvable(game, random_B).tolist() == expected
    if numbers < 6:
        assert one_way(game, random_B, mixed(np.arange(rows)))[0].tolist() == expected


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ConfigError, match="did you mean `targets`"):
        problems(Countdown(4), "target", 0, 1)
    for game in (Countdown(2), Countdown(4, 99)):
        with pytest.raises(ConfigError, match="no problems"):
            problems(game, "train", 0, 1)
