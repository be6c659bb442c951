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

Cells = frozenset[tuple[int, int]]
ALL_FOURS = [
    frozenset((x + i * across, y + i * up) for i in range(4))
    for across, up in ((1, 0), (0, 1), (1, 1), (1, -1))
    for x in range(7)
    for y in range(6)
    if x + 3 * across < 7 and 0 <= y + 3 * up < 6
]
FOURS_THROUGH = {(x, y): [four for four in ALL_FOURS if (x, y) in four] for x in range(7) for y in range(6)}


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("connect_four.play")


def sides(board_YX: Any) -> tuple[Cells, Cells]:
    """The cells (column, row from the bottom) of the mover and of the other."""
    return tuple(frozenset((int(x), 5 - int(y)) for y, x in np.argwhere(board_YX == side)) for side in (1, 2))


def cell(own: Cells, other: Cells, x: int) -> tuple[int, int] | None:
    """Where a stone in the column comes to lie."""
    height = sum(column == x for column, _ in own | other)
    return (x, height) if height < 6 else None


def makes_four(own: Cells, new: tuple[int, int]) -> bool:
    return any(four <= own | {new} for four in FOURS_THROUGH[new])


@cache
def value(own: Cells, other: Cells) -> int:
    """Plain negamax over sets of cells: 1, 0 or -1 for the side `own`, which moves."""
    cells = [new for x in range(7) if (new := cell(own, other, x))]
    if any(makes_four(own, new) for new in cells):
        return 1
    best = -1 if cells else 0
    for new in cells:
        best = max(best, -value(other, own | {new}))
        if best == 1:
            break
    return best


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
        own, other = Cells(), Cells()  # own moves next
        for x in moves:
            new = cell(own, other, x)
            assert new is not None
            assert not makes_four(own, new)
            own, other = other, own | {new}
        assert (own, other) == sides(board_YX)
        next_cells = [new for x in range(7) if (new := cell(own, other, x))]
        assert not any(makes_four(own, new) for new in next_cells)


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
    late = np.flatnonzero(labelled.stones_B >= 24)[::8]
    for number in late:
        own, other = sides(labelled.boards_BYX[number])
        for x, label in enumerate(labelled.values_BA[number].tolist()):
            new = cell(own, other, x)
            assert label == (play.ILLEGAL if new is None else -value(other, own | {new}))


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
