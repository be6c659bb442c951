"""The labelled connect-four positions of the benchmarks: what the file holds, and that its labels are right."""

from __future__ import annotations

import importlib
import shutil
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

STEPS = (1, 7, 8, 9)  # along a row, a falling diagonal, a column, a rising one


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("connect_four.play")


def sides(board_YX: Any) -> tuple[int, int]:
    """The stones of the mover and of the other as sets of bits: column x and row y from the bottom are bit 8 y + x."""
    return tuple(sum(1 << (8 * (5 - int(y)) + int(x)) for y, x in np.argwhere(board_YX == side)) for side in (1, 2))


def cells(own: int, other: int) -> dict[int, int]:
    """By column, centre first, where a stone comes to lie."""
    taken = own | other
    heights = {x: (taken >> x & 0x010101010101).bit_count() for x in (3, 2, 4, 1, 5, 0, 6)}
    return {x: 1 << (8 * height + x) for x, height in heights.items() if height < 6}


def has_four(own: int) -> bool:
    return any(own & own >> step & own >> 2 * step & own >> 3 * step for step in STEPS)


@cache
def forces(own: int, other: int, goal: int) -> bool:
    """Plain minimax: whether the side `own`, which moves, can have at least a draw (0) or a win (1)."""
    new_cells = cells(own, other).values()
    if any(has_four(own | new) for new in new_cells):
        return True
    return any(not forces(other, own | new, 1 - goal) for new in new_cells) if new_cells else goal == 0


def value_after(own: int, other: int, new: int) -> int:
    """What the stone leads to for the side `own`; it does not win at once."""
    return 1 - forces(other, own | new, 0) - forces(other, own | new, 1)


def test_counts(play) -> None:
    labelled = play.positions()
    assert {phase: int((labelled.phase_B == phase).sum()) for phase in play.PHASES} == dict.fromkeys(play.PHASES, 400)
    for phase, stones in play.PHASES.items():
        of_each = np.bincount(labelled.stones_B[labelled.phase_B == phase], minlength=stones.stop)
        assert of_each[: stones.start].sum() == 0
        assert set(of_each[stones.start :]) <= {400 // len(stones), -(-400 // len(stones))}
    assert labelled.boards_BYX.dtype == labelled.values_BA.dtype == np.int8
    assert labelled.boards_BYX.shape == (1200, 6, 7)
    assert ((labelled.boards_BYX != 0).sum((1, 2)) == labelled.stones_B).all()


def test_every_position_is_reached_by_legal_moves_and_undecided(play) -> None:
    labelled = play.positions()
    for moves, board_YX in zip(labelled.moves, labelled.boards_BYX, strict=True):
        own = other = 0  # own moves next
        for x in moves:
            own, other = other, own | cells(own, other)[x]
            assert not has_four(other)
        assert (own, other) == sides(board_YX)
        assert not any(has_four(own | new) for new in cells(own, other).values())


def test_labels_fit_the_boards_and_leave_room_for_a_mistake(play) -> None:
    labelled = play.positions()
    full_BA = labelled.boards_BYX[:, 0] != 0
    assert ((labelled.values_BA == play.ILLEGAL) == full_BA).all()
    worst_B = np.where(full_BA, 1, labelled.values_BA).min(1)
    assert (worst_B < labelled.values_BA.max(1)).all()
    right_B, wrong_B = labelled.values_BA.argmax(1), np.where(full_BA, 1, labelled.values_BA).argmin(1)
    assert not labelled.mistakes(right_B).any()
    assert labelled.mistakes(wrong_B).all()


def test_no_position_is_there_twice_nor_its_mirror_image(play) -> None:
    boards_BYX = play.positions().boards_BYX
    names = [min(board_YX.tobytes(), board_YX[:, ::-1].tobytes()) for board_YX in boards_BYX]
    assert len({*names}) == len(names)


def test_late_labels_are_those_of_a_plain_search(play) -> None:
    labelled = play.positions()
    late = np.flatnonzero(labelled.stones_B >= 24)[::4]
    for number in late:
        own, other = sides(labelled.boards_BYX[number])
        found = {x: value_after(own, other, new) for x, new in cells(own, other).items()}
        assert labelled.values_BA[number].tolist() == [found.get(x, play.ILLEGAL) for x in range(7)]


@pytest.mark.slow
def test_the_solver_labels_again_what_it_labelled(play) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler called cc")
    labelled, solver = play.positions(), play.load(table_bits=22)
    some = np.flatnonzero(labelled.stones_B >= 14)[:: 800 // 60][:60]
    assert len(some) == 60
    assert (solver.values(labelled.boards_BYX[some]) == labelled.values_BA[some]).all()


@pytest.mark.slow
def test_the_player_wins_blocks_and_draws_lots(play) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler called cc")
    solver = play.load(table_bits=16)
    boards_BYX = np.stack([play.board_after(moves) for moves in ([3, 0, 3, 0, 3, 0], [3, 0, 3, 0, 3])])
    for seed in range(8):
        assert solver.alphabeta(boards_BYX, 1, seed).tolist() == [3, 3]  # wins at once; else stops the other
    assert [np.flatnonzero(wins_A).tolist() for wins_A in solver.wins(boards_BYX)] == [[3], []]
    empty_BYX = np.zeros((200, 6, 7), np.int8)
    first, again, others = (solver.alphabeta(empty_BYX, 2, seed) for seed in (0, 0, 1))
    assert {*first.tolist()} == {*range(7)}
    assert (first == again).all()
    assert (first != others).any()
