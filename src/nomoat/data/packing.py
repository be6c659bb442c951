"""Packing whole documents into rows of one length: planned once, stored, then read in constant time.

    document sizes -> full rows of the long ones + best fit of the rest -> holes filled by splitting a few
                   -> Plan: runs (first position, slots, context) of each row

A row has L + 1 slots. Slot 0 is never learned: it holds the token before the row's first target, which for a whole
document is the document end of the one before. A document that follows another needs no such slot, since the document
end before it serves; a piece from the middle of a document does (`context`). Every token of every document is the
target of exactly one slot; a document is split only where it is longer than a row, or where holes would otherwise take
more than a hundredth of all slots.

Ding et al. 2024, arXiv:2404.10830 (best-fit packing), here without the truncation.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np

from nomoat.data.order import Indices

Piece = tuple[int, int, int]  # first target's position, targets, 1 where it begins inside a document


@dataclass(frozen=True)
class Plan:
    """Rows as runs of slots copied from the token positions; row r holds the runs firsts[r] to firsts[r + 1].

    Args:
        firsts: first run of each row, and the number of runs [rows + 1].
        target: position of each run's first learned token [runs].
        targets: learned tokens of each run [runs].
        context: 1 where the token before `target` takes a slot of its own that is not learned, else 0 [runs].
    """

    firsts: Indices
    target: Indices
    targets: Indices
    context: Indices

    @property
    def rows(self) -> int:
        return len(self.firsts) - 1


def plan(ends: Indices, length: int) -> Plan:
    """Pack documents, whose last tokens stand before `ends` [documents], into rows of `length` targets."""
    sizes = np.diff(ends, prepend=0)
    starts = ends - sizes
    full_D = sizes // length
    document_F = np.repeat(np.arange(len(ends)), full_D)
    nth_F = np.arange(len(document_F)) - np.repeat(np.cumsum(full_D) - full_D, full_D)
    full = np.stack([starts[document_F] + nth_F * length, np.full_like(nth_F, length), (nth_F > 0) * 1], axis=1)
    rest_D = np.flatnonzero(sizes % length)
    rest = np.stack([(starts + full_D * length)[rest_D], (sizes % length)[rest_D], (full_D[rest_D] > 0) * 1], axis=1)
    row_I, hole_R = best_fit(rest[:, 1], rest[:, 2], length)
    order = np.lexsort((-rest[:, 1], -rest[:, 2], row_I))  # in front, a piece from inside a document costs no slot
    rest, row_I = rest[order], row_I[order]
    if hole_R.sum() > (len(full) + len(hole_R)) * length // 100:
        rest, row_I = _split_to_fill(rest, row_I, hole_R, length)
    pieces = np.concatenate([full, rest])
    _, runs_R = np.unique(row_I, return_counts=True)
    firsts = np.concatenate([np.arange(len(full)), len(full) + np.cumsum(np.concatenate([[0], runs_R]))])
    context = pieces[:, 2].copy()
    context[firsts[:-1]] = 1
    return Plan(firsts.astype(np.int64), pieces[:, 0].copy(), pieces[:, 1].copy(), context)


def stored_plan(folder: Path, split: str, ends: Indices, length: int) -> Plan:
    """The plan from `folder/plans`, made and written there at the first time; a folder that is read-only is left so."""
    digest = hashlib.sha256(ends.tobytes()).hexdigest()[:16]
    path = folder / "plans" / f"{split}-documents-{length}-{digest}.plan"
    if path.is_file() and path.stat().st_size > 16:
        stored = np.memmap(path, dtype="<i8", mode="r", shape=path.stat().st_size // 8)
        rows, runs = int(stored[0]), int(stored[1])
        if len(stored) == 3 + rows + 3 * runs:
            firsts, target, targets, context = np.split(stored[2:], np.cumsum([rows + 1, runs, runs]))
            return Plan(firsts, target, targets, context)
    made = plan(ends, length)
    words = np.concatenate([[made.rows, len(made.target)], made.firsts, made.target, made.targets, made.context])
    try:
        path.parent.mkdir(exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            words.astype("<i8").tofile(file)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    except OSError:
        pass  # the plan is a function of the data: it can be made again
    return made


def best_fit(size_I: Indices, inside_I: Indices, length: int) -> tuple[Indices, Indices]:
    """Put each piece, the largest first, into the row that it leaves fullest; all pieces of a size at once.

    Returns the row of each piece [pieces] and the slots left in each row [rows].
    """
    row_I = np.zeros(len(size_I), dtype=np.int64)
    rows_by_hole: list[list[Indices]] = [[] for _ in range(length + 1)]
    filled = np.zeros(length + 1, dtype=bool)  # holes that some row has
    rows = 0
    cost_I = size_I + inside_I
    order = np.lexsort((inside_I, -cost_I))
    cuts = np.flatnonzero(np.diff(cost_I[order] * 2 + inside_I[order])) + 1
    for same in np.split(order, cuts) if len(order) else []:
        cost, size = int(cost_I[same[0]]), int(size_I[same[0]])
        while len(same):
            fits = np.flatnonzero(filled[cost:])
            if len(fits):
                hole = cost + int(fits[0])
                open_rows = np.concatenate(rows_by_hole[hole])
                taken, left = open_rows[: len(same)], open_rows[len(same) :]
                rows_by_hole[hole] = [left] if len(left) else []
                filled[hole] = bool(len(left))
                hole -= cost
            else:
                in_row = 1 + (length - size) // cost
                taken = np.arange(rows, rows + -(-len(same) // in_row))
                rows += len(taken)
                hole = length - size
            row_I[same[: len(taken)]] = taken
            rows_by_hole[hole].append(taken)
            filled[hole] = True
            same = same[len(taken) :]
    hole_R = np.zeros(rows, dtype=np.int64)
    for hole, lists in enumerate(rows_by_hole):
        for some in lists:
            hole_R[some] = hole
    return row_I, hole_R


def _split_to_fill(rest: Indices, row_I: Indices, hole_R: Indices, length: int) -> tuple[Indices, Indices]:
    """Take the emptiest rows apart and fill the others' holes with what they held, cut to measure.

    `rest` [pieces, 3] is sorted by row. Only a piece that fills its row is cut, so every other one ends its document.
    """
    first_R = np.searchsorted(row_I, np.arange(len(hole_R) + 1))
    small = length // 64
    todo = deque(row for row in np.argsort(-hole_R, kind="stable").tolist() if hole_R[row] > small)
    gone: list[int] = []
    added: list[tuple[int, Piece]] = []
    supply: deque[Piece] = deque()
    row, hole = -1, 0  # the row being filled and its slots left
    while todo:
        if not supply:
            gone.append(todo.popleft())
            supply.extend((int(p), int(n), int(c)) for p, n, c in rest[first_R[gone[-1]] : first_R[gone[-1] + 1]])
        elif hole <= small:
            row = todo.popleft()
            hole = int(hole_R[row])
        else:
            hole = _fill(supply, added, row, hole)
    _fill(supply, added, row, hole)
    row = len(hole_R)
    while supply:
        _fill(supply, added, row, length + supply[0][2])
        row += 1
    kept = ~np.isin(row_I, gone)
    pieces = np.array([piece for _, piece in added], dtype=np.int64).reshape(-1, 3)
    rows = np.concatenate([row_I[kept], np.array([row for row, _ in added], dtype=np.int64)])
    order = np.argsort(rows, kind="stable")
    return np.concatenate([rest[kept], pieces])[order], rows[order]


def _fill(supply: deque[Piece], added: list[tuple[int, Piece]], row: int, hole: int) -> int:
    """Move pieces from the supply into a row until it is full or the supply is empty; returns the slots left."""
    while supply and hole > 0:
        position, size, inside = supply.popleft()
        if size + inside <= hole:
            added.append((row, (position, size, inside)))
            hole -= size + inside
            continue
        some = hole - inside
        if some < 1:  # a slot that could only hold context
            supply.appendleft((position, size, inside))
            return 0
        added.append((row, (position, some, inside)))
        supply.appendleft((position + some, size - some, 1))
        return 0
    return hole
