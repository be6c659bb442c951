"""The order of samples: permutations for any size and key, mixtures in proportion, nothing that depends on history."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nomoat.core.errors import ConfigError
from nomoat.data.order import SMALL, Order, Schedule, draw, key, permute

sizes = st.integers(1, 3000) | st.sampled_from([SMALL, SMALL + 1, 511, 512, 513, 4095, 4096, 4097, 65537])
keys = st.integers(-(2**70), 2**70)


@given(sizes, keys)
@settings(deadline=None)
def test_a_permutation_for_every_size_and_key(size, name):
    assert sorted(permute(np.arange(size), size, name).tolist()) == list(range(size))


@given(sizes, keys, st.data())
@settings(deadline=None, max_examples=50)
def test_arrays_and_single_indices_agree(size, name, data):
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    together = permute(np.array(indices), size, name)
    assert together.tolist() == [int(permute(index, size, name)) for index in indices]
    names = [name + turn for turn in range(len(indices))]
    mixed = permute(np.array(indices), size, np.array([key(one) for one in names]))
    assert mixed.tolist() == [int(permute(index, size, key(one))) for index, one in zip(indices, names, strict=True)]


def test_a_large_permutation_has_no_collisions():
    moved = permute(np.arange(1_000_003), 1_000_003, 11)
    assert np.bincount(moved, minlength=1_000_003).max() == 1


@pytest.mark.parametrize("size", [3, 5, 100, 300, 1000])
def test_each_index_goes_everywhere_equally_often(size):
    """Chi-squared over 2,000 keys: mean size - 1, standard deviation sqrt(2 (size - 1)); six of them is far out."""
    trials = 2000
    where = permute(np.full(trials, size // 2), size, key(3, np.arange(trials)))
    seen = np.bincount(where, minlength=size)
    chi_squared = ((seen - trials / size) ** 2 / (trials / size)).sum()
    assert abs(chi_squared - (size - 1)) < 6 * np.sqrt(2 * (size - 1))


@pytest.mark.parametrize("size", [257, 1000, 50_000])
def test_neighbours_are_torn_apart(size):
    moved = permute(np.arange(size), size, 5)
    assert abs(np.corrcoef(np.arange(size), moved)[0, 1]) < 6 / np.sqrt(size)
    assert abs(np.corrcoef(moved[:-1], moved[1:])[0, 1]) < 6 / np.sqrt(size)
    assert (np.abs(np.diff(moved)) == 1).sum() < 20


def test_indices_outside_are_an_error():
    with pytest.raises(IndexError):
        permute([10], 10, 0)
    with pytest.raises(IndexError):
        permute([-1], 10, 0)
    with pytest.raises(ConfigError):
        permute([0], 0, 0)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 20_000), st.integers(1, 6000))
@settings(deadline=None, max_examples=30)
def test_every_stretch_has_the_mixture_s_proportions(weights, first, count):
    schedule = Schedule(weights)
    source, drawn = schedule.at(np.arange(first, first + count))
    share = np.array(weights) / np.sum(weights)
    seen = np.bincount(source, minlength=len(weights))
    drift = (2 + count / len(schedule.source_P)) * len(weights)  # rounding: one a source and period
    assert (np.abs(seen - share * count) <= drift).all()
    for one in range(len(weights)):
        mine = drawn[source == one]
        assert (np.diff(mine) == 1).all()  # no draw of a source is left out or repeated


def test_largest_deficit_spreads_the_sources_evenly():
    source, _ = Schedule([3, 1]).at(np.arange(16))
    assert source.tolist() == [0, 0, 1, 0] * 4 or source.tolist() == [0, 1, 0, 0] * 4


def test_weights_that_cannot_work():
    for weights in ([], [1, 0], [1, -1], [1, float("nan")], [1, 1e-9]):
        with pytest.raises(ConfigError):
            Schedule(weights)
    with pytest.raises(ConfigError, match="2 weights for 3"):
        Order([1, 2, 3], [1, 1], 0)


@pytest.mark.parametrize("weights", [None, [0.7, 0.2, 0.1]])
def test_every_item_once_an_epoch_and_a_new_order_each_time(weights):
    sizes = [500, 300, 7]
    order = Order(sizes, weights, seed=1)
    source, item, epoch = order.at(np.arange(3 * order.epoch_samples))
    assert set(zip(source[: order.epoch_samples], item[: order.epoch_samples], strict=True)) == {
        (one, number) for one, size in enumerate(sizes) for number in range(size)
    }
    before = set(zip(source[: order.epoch_samples - 1], item[: order.epoch_samples - 1], strict=True))
    assert len(before) == sum(sizes) - 1  # the last sample of the epoch is needed
    for one, size in enumerate(sizes):
        runs = [item[(source == one) & (epoch == turn)] for turn in range(2)]
        assert sorted(runs[0].tolist()) == sorted(runs[1].tolist()) == list(range(size))
        assert runs[0].tolist() != runs[1].tolist()
    other = Order(sizes, weights, seed=2).at(np.arange(500))[1]
    assert other.tolist() != item[:500].tolist()


@given(st.integers(0, 10**12), st.integers(1, 5), st.integers(1, 64))
@settings(deadline=None, max_examples=50)
def test_any_place_any_world_the_same_samples(start, world, batch):
    sizes, weights = [1000, 17], [0.9, 0.1]
    whole = np.stack(draw(np.arange(start, start + batch), sizes, weights, 3), axis=1)
    for rank in range(world):
        share = np.arange(start + rank, start + batch, world)
        assert (np.stack(draw(share, sizes, weights, 3), axis=1) == whole[rank::world]).all()


def test_the_order_is_what_it_was():
    """Another order under the same seed would make every run's resume read other samples."""
    assert permute(np.arange(8), 1000, 7).tolist() == PINNED_FEISTEL
    assert permute(np.arange(8), 8, 7).tolist() == PINNED_SMALL
    assert [part.tolist() for part in draw(np.arange(6), [500, 20], [3, 1], 0)] == PINNED_DRAW


PINNED_FEISTEL = [721, 488, 39, 695, 41, 12, 781, 260]
PINNED_SMALL = [7, 1, 4, 2, 3, 0, 6, 5]
PINNED_DRAW = [[0, 0, 1, 0, 0, 0], [155, 75, 7, 394, 441, 97]]
