"""The order of samples, computed from one integer: which source, and which of its items, is the i-th sample.

    sample i -> Schedule (largest deficit) -> source s, its k-th draw -> epoch k // size, slot k % size
             -> keyed permutation of the slots -> item

Nothing is iterated to and nothing is remembered: the state of a stream is i, and any number of workers that share out
the same i read the same samples. Each epoch of each source has an order of its own.

Luby and Rackoff 1988 (Feistel permutations); Black and Rogaway 2002 (cycle walking).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nomoat.core.errors import ConfigError

ROUNDS = 6
SMALL = 256  # below it a Feistel network has too few bits to mix: sort by keyed hashes instead
PERIOD = 4096
GOLDEN, FIRST, SECOND = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)

Indices = NDArray[np.int64]
Words = NDArray[np.uint64]


def _mix(word: ArrayLike) -> Words:
    """Scramble 64-bit words, one to one (the finalizer of SplitMix64, Steele et al. 2014)."""
    mixed = np.asarray(word, dtype=np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * SECOND
    return mixed ^ (mixed >> np.uint64(31))


def key(*words: ArrayLike) -> Words:
    """One 64-bit key of several integers (arrays are taken element by element)."""
    with np.errstate(over="ignore"):
        made = np.asarray(GOLDEN)
        for word in words:
            made = _mix(made + GOLDEN + _mix(_word(word)))
    return np.asarray(made, dtype=np.uint64)


def permute(index: ArrayLike, size: int, keys: ArrayLike) -> Indices:
    """Where each index [n] in 0..size-1 goes under the permutation named by its key (one integer, or [n]).

    A bijection of 0..size-1 for every key; the same for arrays and for single indices.
    """
    if size < 1:
        raise ConfigError(f"Nothing can be drawn from {size} items", fix="Give at least one")
    index_N = np.atleast_1d(np.asarray(index, dtype=np.int64))
    if len(index_N) and (index_N.min() < 0 or index_N.max() >= size):
        raise IndexError(f"index outside 0..{size - 1}")
    key_N = np.broadcast_to(_word(keys), index_N.shape)
    if (key_N == key_N[:1]).all():
        key_N = key_N[:1]  # one key for all, the usual case: its round keys are made once
    with np.errstate(over="ignore"):
        moved_N = _sorted_hashes(index_N, size, key_N) if size <= SMALL else _feistel(index_N, size, key_N)
    return moved_N.reshape(np.shape(index))


class Schedule:
    """Which source each sample comes from, by largest deficit, with a period.

    Args:
        weights: share of each source, in any unit; every one above zero.

    Attributes:
        counts: samples of each source in one period [sources].
    """

    def __init__(self, weights: Sequence[float]) -> None:
        share_S = np.asarray(weights, dtype=np.float64)
        if not len(share_S) or not np.isfinite(share_S).all() or (share_S <= 0).any():
            raise ConfigError(
                f"The weights {tuple(weights)} are no mixture", fix="Give each source a number above zero"
            )
        share_S = share_S / share_S.sum()
        if share_S.min() * 16 * PERIOD < 1:
            raise ConfigError(
                f"A source with a share of {share_S.min():.2g} would hardly ever be read",
                f"The mixture repeats every {16 * PERIOD:,} samples",
                "Raise its weight or leave it out",
            )
        period = 1 if len(share_S) == 1 else PERIOD if share_S.min() * PERIOD >= 16 else 16 * PERIOD
        self.source_P = _largest_deficit(share_S, period)
        drawn_PS = np.cumsum(self.source_P[:, None] == np.arange(len(share_S)), axis=0)
        self.counts = drawn_PS[-1]
        self.before_P = np.take_along_axis(drawn_PS, self.source_P[:, None], axis=1)[:, 0] - 1

    def at(self, samples: ArrayLike) -> tuple[Indices, Indices]:
        """The source of each sample [n], and how many samples of that source came before it [n]."""
        period_N, place_N = np.divmod(np.asarray(samples, dtype=np.int64), len(self.source_P))
        source_N = self.source_P[place_N]
        return source_N, period_N * self.counts[source_N] + self.before_P[place_N]


class Order:
    """The items of every sample of a mixture.

    Args:
        sizes: items in each source.
        weights: share of each source; None: each item of all of them once an epoch.
        seed: another seed, another order.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, seed: int) -> None:
        self.sizes, self.seed = tuple(int(size) for size in sizes), seed
        self.firsts = np.cumsum([0, *self.sizes])
        self.schedule = Schedule(weights) if weights is not None else None
        if self.schedule and len(self.schedule.counts) != len(self.sizes):
            raise ConfigError(f"{len(self.schedule.counts)} weights for {len(self.sizes)} sources", fix="Give one each")

    @property
    def epoch_samples(self) -> int:
        """Samples after which every item of every source has been drawn."""
        if self.schedule is None:
            return int(self.firsts[-1])
        last = 0
        for source, size in enumerate(self.sizes):
            periods, draw_in_period = divmod(size - 1, int(self.schedule.counts[source]))
            place = np.flatnonzero(self.schedule.source_P == source)[draw_in_period]
            last = max(last, periods * len(self.schedule.source_P) + int(place) + 1)
        return last

    def at(self, samples: ArrayLike) -> tuple[Indices, Indices, Indices]:
        """Source, item and epoch of each sample [n]."""
        sample_N = np.atleast_1d(np.asarray(samples, dtype=np.int64))
        if self.schedule is None:
            total = int(self.firsts[-1])
            epoch_N, slot_N = np.divmod(sample_N, max(total, 1))
            place_N = permute(slot_N, total, key(self.seed, -1, epoch_N))
            source_N = np.searchsorted(self.firsts, place_N, side="right") - 1
            return source_N, place_N - self.firsts[source_N], epoch_N
        source_N, draw_N = self.schedule.at(sample_N)
        item_N, epoch_N = np.zeros_like(draw_N), np.zeros_like(draw_N)
        for source in np.unique(source_N):
            here = source_N == source
            size = self.sizes[source]
            epoch_N[here], slot_N = np.divmod(draw_N[here], size)
            item_N[here] = permute(slot_N, size, key(self.seed, int(source), epoch_N[here]))
        return source_N, item_N, epoch_N


def draw(samples: ArrayLike, sizes: Sequence[int], weights: Sequence[float] | None, seed: int) -> tuple[Any, Any]:
    """Source and item of each sample [n] of a mixture (see `Order`, which keeps the schedule between calls)."""
    source_N, item_N, _ = Order(sizes, weights, seed).at(samples)
    return source_N, item_N


def _feistel(index_N: Indices, size: int, key_N: Words) -> Indices:
    """Alternately scramble the left half of the bits by the right one; walk on while the result is not below `size`."""
    bits = (size - 1).bit_length()
    right_bits = np.uint64(bits // 2)
    right_mask = np.uint64((1 << (bits // 2)) - 1)
    left_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    round_keys = _mix(key_N + np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None] * GOLDEN)  # [rounds, n or 1]
    word_N = index_N.astype(np.uint64)
    todo = np.arange(len(index_N))
    while len(todo):
        word = word_N[todo]
        turn_keys = round_keys[:, todo] if len(key_N) > 1 else round_keys
        left, right = word >> right_bits, word & right_mask
        for turn, turn_key in enumerate(turn_keys):
            if turn % 2:
                right = right ^ (_scramble(left, turn_key) & right_mask)
            else:
                left = left ^ (_scramble(right, turn_key) & left_mask)
        word_N[todo] = word = (left << right_bits) | right
        todo = todo[word >= size]
    return word_N.astype(np.int64)


def _scramble(half: Words, round_key: Words) -> Words:
    mixed = (half ^ round_key) * FIRST
    mixed = (mixed ^ (mixed >> np.uint64(32))) * SECOND
    return mixed >> np.uint64(32)


def _sorted_hashes(index_N: Indices, size: int, key_N: Words) -> Indices:
    """The rank order of one hash a slot is a uniform permutation; one sort for each key."""
    keys_U, which_N = np.unique(np.broadcast_to(key_N, index_N.shape), return_inverse=True)
    moved_N = np.empty_like(index_N)
    step = max(1, 2**20 // size)  # keys at a time, to bound memory
    for first in range(0, len(keys_U), step):
        hashes = _mix(_mix(keys_U[first : first + step, None]) + np.arange(1, size + 1, dtype=np.uint64))
        order = np.argsort(hashes, axis=1, kind="stable")
        here = (which_N >= first) & (which_N < first + step)
        moved_N[here] = order[which_N[here] - first, index_N[here]]
    return moved_N


def _largest_deficit(share_S: NDArray[np.float64], period: int) -> Indices:
    source_P = np.zeros(period, dtype=np.int64)
    due_S = np.zeros_like(share_S)
    for place in range(period):
        due_S += share_S
        source_P[place] = source = int(due_S.argmax())
        due_S[source] -= 1
    return source_P


def _word(number: ArrayLike) -> Words:
    """Integers of any sign and size as 64-bit words."""
    if isinstance(number, int):
        return np.asarray(number % 2**64, dtype=np.uint64)
    return np.asarray(number).astype(np.uint64)
