"""Which documents are kept, and which of them are held out: decided by their contents alone, never by chance.

    hashes [N, 32], sizes [N], signatures [N, 112] -> the first of equal texts -> groups of near-duplicates
        -> groups in the order of their hashes, until a tenth of the text or 2 MB is held out

All of a group goes to one side. A single text is cut by position: its last tenth is held out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nomoat.data.near import Signatures, group

KEEP, HOLD, CUT, DROP = 0, 1, 2, 3
SMALL = 1000  # bytes: a text this short is held out whole rather than cut


@dataclass(frozen=True)
class Plan:
    """What becomes of each document.

    Args:
        fate: KEEP for training, HOLD, CUT (its last part is held out) or DROP (equal to an earlier one) [N].
        tail: the share that is held out of each document [N]; 0 or 1 but for CUT.
        first: the first document with the same text [N]; itself where it is the first.
        near: how many documents have a near-duplicate.
    """

    fate: NDArray[np.int8]
    tail: NDArray[np.float64]
    first: NDArray[np.int64]
    near: int

    @property
    def key(self) -> str:
        """Equal plans have equal keys."""
        return hashlib.sha256(self.fate.tobytes() + self.tail.tobytes()).hexdigest()


def plan(
    hashes: NDArray[np.uint8], sizes: NDArray[np.int64], signatures: Signatures, one_text: bool, share: float, most: int
) -> Plan:
    """Decide for every document.

    Args:
        hashes: SHA-256 of each text [N, 32].
        sizes: bytes of each [N].
        signatures: MinHash signature of each [N, 112].
        one_text: the documents are the pieces of a single text, in order.
        share: of the bytes to hold out.
        most: bytes to hold out at most.
    """
    first = first_equal(hashes)
    fate = np.where(first == np.arange(len(first)), KEEP, DROP).astype(np.int8)
    tail = np.zeros(len(fate))
    kept = np.flatnonzero(fate == KEEP)
    total = int(sizes[kept].sum())
    budget = min(share * total, most)
    near = 0
    if one_text or len(kept) == 1:
        by_position(fate, tail, kept, sizes, budget, most)
    else:
        member = group(signatures[kept])
        near = int((np.bincount(member, minlength=len(kept))[member] > 1).sum())
        by_hash(fate, tail, kept, member, (hashes, sizes, budget, most))
    return Plan(fate, tail, first, near)


def first_equal(hashes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The first document with the same hash as each [N]."""
    rows = np.ascontiguousarray(hashes).view("V32").reshape(-1)
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return first[inverse.reshape(-1)]


def by_position(
    fate: NDArray[np.int8],
    tail: NDArray[np.float64],
    kept: NDArray[np.int64],
    sizes: NDArray[np.int64],
    budget: float,
    most: int,
) -> None:
    """Hold out the end of one text: whole pieces from the last one back, and the end of the piece before them."""
    left = budget - 1 if budget == most else budget  # the cut can round up by a byte
    for piece in kept[::-1]:
        if sizes[piece] <= left and piece != kept[0]:
            fate[piece], tail[piece] = HOLD, 1.0
            left -= sizes[piece]
            continue
        if left >= 1 or piece == kept[-1]:
            fate[piece], tail[piece] = CUT, left / sizes[piece]
        return


def by_hash(
    fate: NDArray[np.int8],
    tail: NDArray[np.float64],
    kept: NDArray[np.int64],
    member: NDArray[np.int64],
    measures: tuple[NDArray[np.uint8], NDArray[np.int64], float, int],
) -> None:
    """Hold out whole groups in the order of their smallest hash, as long as they fit.

    Where the first that does not fit finds less than half of the budget used, it is taken too if it is not much too
    large; else the end of each of its documents is: few large texts would otherwise give no held-out part, or one far
    too large.
    """
    hashes, sizes, budget, most = measures
    order = np.lexsort(hashes[kept].T[::-1])
    ranked = member[order]
    group_order = ranked[np.sort(np.unique(ranked, return_index=True)[1])]
    weight = np.bincount(member, weights=sizes[kept], minlength=len(kept))
    used = np.cumsum(weight[group_order])
    whole = int(np.searchsorted(used, budget, side="right"))
    held: Any = kept[np.isin(member, group_order[:whole])]
    fate[held], tail[held] = HOLD, 1.0
    spent = float(used[whole - 1]) if whole else 0.0
    if spent < budget / 2 and whole < len(group_order):
        weight_next = weight[group_order[whole]]
        others = len(group_order) > 1
        near_enough = weight_next <= max(SMALL, min(1.5 * (budget - spent), most - spent)) and others
        part = kept[member == group_order[whole]]
        left = max(0.0, budget - spent - len(part))  # each cut can round up by a byte
        fate[part], tail[part] = (HOLD, 1.0) if near_enough else (CUT, left / weight_next)
