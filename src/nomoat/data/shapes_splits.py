"""Which scenes a model of the shapes world is taught, and which are kept from it to see whether it combines.

    split, chance of each sample -> kinds that the split allows, layout, places -> Scenes

What is held out is fixed by one seed and never changes (`fingerprint` is its hash, which a test holds):

    pair        16 of the 64 pairs of shape and colour, by a Latin square: each shape and colour is seen in 6 pairs
    triple      8 of shape, colour and texture and 8 of shape, colour and size, among the pairs that are seen
    relation    16 ordered pairs of shapes that never stand in this order, left to right or top to bottom; the
                reverse order is seen
    count       one thing more than is seen, all of one kind
    paraphrase  scenes as seen, told by sentence forms that are never seen
    nonsense    scenes as seen, told by words without a meaning: whoever scores here guesses
    all         every kind in every order: for judges, and as the ceiling

No scene of `seen`, `count`, `paraphrase` or `nonsense` has a thing of a held-out pair or triple, or two shapes in a
held-out order. After Okawa et al. 2023, arXiv:2310.09336 (combinations of concepts never seen together).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.core.errors import ConfigError, nearest
from nomoat.data.order import Words, key, permute
from nomoat.data.shapes_scene import (
    BACKGROUNDS,
    GAP,
    MARGIN,
    RADII,
    RELATIONS,
    SHAPES,
    VALUES,
    Floats,
    Numbers,
    Scenes,
)

SPLITS = ("seen", "pair", "triple", "relation", "count", "paraphrase", "nonsense", "all")
SPLIT_SEED = 20260
MOST = 3  # things in a scene that is seen
TRIES = 1000
UNCOUNTED = ("pair", "triple", "nonsense")
"""Splits whose several things always differ: each with its own shape and colour."""
ALONE, RELATED, LISTED, COUNTED = range(4)
WHOLE, SHORT = (True, True, True, True), (True, True, False, False)
PARTS = (SHORT, (True, True, True, False), (True, True, False, True))

_ranks = [permute(np.arange(8), 8, key(SPLIT_SEED, number)) for number in range(3)]
SYMBOL = (_ranks[0][:, None] + _ranks[1][None, :]) % 8
"""A Latin square [shape, colour]: each number from 0 to 7 stands once in every row and once in every column."""
HELD_ORDER = np.isin((_ranks[2][None, :] - _ranks[2][:, None]) % 8, (1, 2))
"""Whether the row's shape left of or above the column's is held out [shape, shape]."""


def split_of(kind_ND: Numbers) -> NDArray[np.str_]:
    """Where things of these kinds [N, 4] belong: `seen`, `pair` or `triple` [N]."""
    shape_N, colour_N, size_N, texture_N = kind_ND.T
    symbol_N, rank_N = SYMBOL[shape_N, colour_N], _ranks[0][shape_N]
    triple_N = ((symbol_N == 2) & (texture_N == rank_N % 2)) | ((symbol_N == 3) & (size_N == rank_N % 3))
    return np.where(symbol_N < 2, "pair", np.where(triple_N, "triple", "seen"))


KINDS = np.stack(np.meshgrid(*(np.arange(len(names)) for names in VALUES), indexing="ij"), -1).reshape(-1, 4)
"""All 384 kinds: shape, colour, size, texture."""
_OF = {name: KINDS[split_of(KINDS) == name] for name in ("seen", "pair", "triple")}


def kinds(split: str) -> Numbers:
    """The kinds [N, 4] that scenes of a split are made of."""
    return KINDS if split == "all" else _OF.get(split, _OF["seen"])


def fingerprint(forms: Any = ()) -> str:
    """SHA-256 of all that is held out.

    Args:
        forms: the sentence forms, as JSON can hold them.
    """
    held = {name: [[VALUES[d][n] for d, n in enumerate(kind)] for kind in _OF[name]] for name in ("pair", "triple")}
    order = [[SHAPES[a], SHAPES[b]] for a, b in np.argwhere(HELD_ORDER)]
    return hashlib.sha256(json.dumps([held, order, forms], sort_keys=True).encode()).hexdigest()


def check(split: str, objects: int) -> None:
    """Raises ConfigError where there is no such split, or it has no scenes of so few or so many things."""
    if split not in SPLITS:
        raise ConfigError(f"there is no split `{split}`", f"there is {', '.join(SPLITS)}", nearest(split, SPLITS))
    if not 1 <= objects <= MOST:
        raise ConfigError(f"scenes of {objects} objects cannot be made", "", f"objects is 1 to {MOST}")
    if split == "relation" and objects == 1:
        raise ConfigError("one thing alone stands in no relation", "", "set objects=2")


def draw(split: str, chance_B: Words, objects: int, exactly: bool = False) -> Scenes:
    """One scene of a split for each 64-bit number [B].

    Args:
        split: one of `SPLITS`.
        chance_B: all chance comes from it.
        objects: things at most; one more in the split `count`, always two in `relation`.
        exactly: as many things as may be, and captions that leave nothing out: what is asked in an examination.
            Else from one thing upwards, and some captions tell but a part.

    Raises:
        ConfigError: as `check` says.
    """
    check(split, objects)
    layout_B, count_B = _layouts(split, chance_B, objects, exactly)
    most = int(count_B.max(initial=1))
    kind_BND = np.zeros((len(chance_B), most, 4), dtype=np.int64)
    cell_BND = np.zeros((len(chance_B), most, 2), dtype=np.int64)
    todo = np.arange(len(chance_B))
    for attempt in range(TRIES):
        here_B, count, layout = key(chance_B[todo], attempt), count_B[todo], layout_B[todo]
        kind = kinds(split)[_below(len(kinds(split)), here_B, 1, most)]
        kind[layout == COUNTED] = kind[layout == COUNTED, :1]
        cell = _cells(here_B, count, most)
        kind_BND[todo], cell_BND[todo] = kind, cell
        todo = todo[~_allowed(split, kind, cell, count, layout)]
        if not len(todo):
            break
    assert not len(todo), f"{len(todo)} scenes of {split} were not found"
    place_BND = _places(chance_B, kind_BND, cell_BND, count_B)
    told_B = layout_B == RELATED
    said_BD = np.array([WHOLE, SHORT, *PARTS])[_said(split, chance_B, count_B, exactly)]
    background_B = _below(len(BACKGROUNDS), chance_B, 2, 1)[:, 0]
    return Scenes(count_B, kind_BND, place_BND, background_B, np.where(told_B, _relation(cell_BND), -1), said_BD)


def uniform(chance_B: Words, name: int, columns: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) [B, columns]; other names, other numbers."""
    drawn = key(chance_B[:, None], name, np.arange(columns)[None, :])
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _below(size: int, chance_B: Words, name: int, columns: int) -> Numbers:
    return (uniform(chance_B, name, columns) * size).astype(np.int64)


def _layouts(split: str, chance_B: Words, objects: int, exactly: bool) -> tuple[Numbers, Numbers]:
    """How each scene's things stand to each other [B], and how many they are [B]."""
    if split == "count":
        return np.full(len(chance_B), COUNTED), np.full(len(chance_B), objects + 1)
    if split == "relation":
        return np.full(len(chance_B), RELATED), np.full(len(chance_B), 2)
    u_BD = uniform(chance_B, 3, 2)
    count_B = np.full(len(chance_B), objects) if exactly else 1 + (u_BD[:, 0] * objects).astype(np.int64)
    share_B = u_BD[:, 1]
    never = split in UNCOUNTED
    two_B = np.select([share_B < 0.5, never | (share_B < 0.75)], [RELATED, LISTED], COUNTED)
    more_B = np.where(never | (share_B >= 0.5), LISTED, COUNTED)
    return np.where(count_B == 1, ALONE, np.where(count_B == 2, two_B, more_B)), count_B


def _said(split: str, chance_B: Words, count_B: Numbers, exactly: bool) -> Numbers:
    """What each caption tells [B]: 0 all, 1 shape and colour, from 2 on the `PARTS`."""
    many_B = count_B > 1
    if exactly or split not in ("seen", "all"):
        return np.where(many_B & (split != "triple"), 1, 0)
    u_BD = uniform(chance_B, 4, 2)
    part_B = 2 + (u_BD[:, 1] * len(PARTS)).astype(np.int64)
    return np.where(many_B, np.where(u_BD[:, 0] < 0.3, 0, 1), np.where(u_BD[:, 0] < 0.6, 0, part_B))


def _cells(chance_B: Words, count_B: Numbers, most: int) -> Numbers:
    """Column and row of each thing in a grid of two by two [B, N, 2]; two things share a row or a column."""
    rank_BN = np.argsort(uniform(chance_B, 5, 4), axis=1)[:, :most]
    cell_BND = np.stack([rank_BN % 2, rank_BN // 2], -1)
    if most > 1:
        way_B = _below(4, chance_B, 6, 1)[:, 0]
        both = np.zeros((len(chance_B), 2, 2), dtype=np.int64)
        rows = np.arange(len(chance_B))
        both[rows, (way_B % 2 == 0).astype(np.int64), way_B // 2] = 1
        two_B = count_B == 2
        cell_BND[two_B, :2] = both[two_B]
    return cell_BND


def _allowed(
    split: str, kind_BND: Numbers, cell_BND: Numbers, count_B: Numbers, layout_B: Numbers
) -> NDArray[np.bool_]:
    """Whether each scene [B] has things that differ where they must, in orders that its split allows."""
    good_B = np.ones(len(count_B), dtype=bool)
    most = kind_BND.shape[1]
    for first in range(most):
        for second in range(first + 1, most):
            there_B = count_B > second
            a, b = kind_BND[:, first], kind_BND[:, second]
            differ_B = (a[:, 0] != b[:, 0]) & (a[:, 1] != b[:, 1])
            good_B &= ~there_B | (layout_B == COUNTED) | differ_B
            for axis in range(2):
                step_B = cell_BND[:, second, axis] - cell_BND[:, first, axis]
                held_B = np.where(step_B > 0, HELD_ORDER[a[:, 0], b[:, 0]], HELD_ORDER[b[:, 0], a[:, 0]])
                wrong_B = ~held_B if split == "relation" else held_B & (split != "all")
                good_B &= ~(there_B & (step_B != 0) & wrong_B)
    return good_B


def _relation(cell_BND: Numbers) -> Numbers:
    """Number of the first thing's relation to the second [B]."""
    if cell_BND.shape[1] < 2:
        return np.full(len(cell_BND), -1)
    step_BD = cell_BND[:, 1] - cell_BND[:, 0]
    left, right, above, below = range(len(RELATIONS))
    return np.where(
        step_BD[:, 0] != 0, np.where(step_BD[:, 0] > 0, left, right), np.where(step_BD[:, 1] > 0, above, below)
    )


def _places(chance_B: Words, kind_BND: Numbers, cell_BND: Numbers, count_B: Numbers) -> Floats:
    """The middle of each thing [B, N, 2], free within what margins, gaps and cells leave."""
    batch, most = count_B.shape[0], kind_BND.shape[1]
    u_BND = uniform(chance_B, 7, 2 * most).reshape(batch, most, 2)
    radius_BN1 = np.array(RADII)[kind_BND[:, :, 2]][..., None]
    low = MARGIN + radius_BN1
    place_BND = low + u_BND * (1 - 2 * low)
    edge = GAP / 2 + radius_BN1
    grid_BND = cell_BND * 0.5 + edge + u_BND * (0.5 - 2 * edge)
    place_BND = np.where((count_B > 2)[:, None, None], grid_BND, place_BND)
    two = np.flatnonzero(count_B == 2)
    if len(two):
        place_BND[two, :2] = _beside(place_BND[two, :2], u_BND[two, :2], radius_BN1[two, :2, 0], cell_BND[two, :2])
    return place_BND.astype(np.float32)


def _beside(place_BND: Any, u_BND: Any, radius_BN: Any, cell_BND: Numbers) -> Any:
    """Two things, one after the other along the axis in which their cells differ, and clearly less apart across it."""
    rows = np.arange(len(place_BND))
    along_B = (cell_BND[:, 0, 0] == cell_BND[:, 1, 0]).astype(np.int64)
    across_B = 1 - along_B
    fore_B = (cell_BND[rows, 1, along_B] == 0).astype(np.int64)  # which of the two comes first
    aft_B = 1 - fore_B
    fore_radius_B, aft_radius_B = radius_BN[rows, fore_B], radius_BN[rows, aft_B]
    free_B = 1 - 2 * MARGIN - GAP - 2 * (fore_radius_B + aft_radius_B)
    spent_BN = free_B[:, None] * np.sort(u_BND[rows, :, along_B], axis=1)
    fore_at_B = MARGIN + fore_radius_B + spent_BN[:, 0]
    aft_at_B = MARGIN + 2 * fore_radius_B + GAP + aft_radius_B + spent_BN[:, 1]
    sway_B = (u_BND[rows, aft_B, across_B] - 0.5) * (aft_at_B - fore_at_B)
    low_B = MARGIN + aft_radius_B
    made_BND = place_BND.copy()
    made_BND[rows, fore_B, along_B], made_BND[rows, aft_B, along_B] = fore_at_B, aft_at_B
    made_BND[rows, aft_B, across_B] = np.clip(place_BND[rows, fore_B, across_B] + sway_B, low_B, 1 - low_B)
    return made_BND
