from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrsam_lit.data.order import GlobalOrder

ORDERS = st.builds(
    GlobalOrder,
    st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
    block=st.integers(1, 9),
    pool=st.integers(1, 5),
)


@settings(max_examples=50, deadline=None)
@given(ORDERS)
def test_every_sample_comes_once(order):
    assert sorted(order.indices(0, len(order))) == list(range(len(order)))


@settings(max_examples=50, deadline=None)
@given(ORDERS, st.integers(0, 500), st.integers(1, 100))
def test_any_stretch_is_a_part_of_the_whole(order, start, length):
    whole = order.indices(0, len(order))
    np.testing.assert_array_equal(
        order.indices(start, start + length), whole[np.arange(start, start + length) % len(order)]
    )


@settings(max_examples=50, deadline=None)
@given(ORDERS, st.integers(1, 4), st.integers(1, 4))
def test_ranks_share_a_global_batch_and_have_as_many(order, world_size, each):
    size = world_size * each
    whole = order.indices(0, len(order))
    met = []
    for number in range(order.batches(size)):
        parts = [order.batch(number, size, rank, world_size) for rank in range(world_size)]
        assert {len(part) for part in parts} == {each}
        np.testing.assert_array_equal(np.concatenate(parts), order.batch(number, size))
        met.extend(np.concatenate(parts))
    repeats = order.repeats(size)
    assert len(met) == len(order) + repeats
    assert 0 <= repeats < size
    np.testing.assert_array_equal(met[: len(order)], whole)
    np.testing.assert_array_equal(met[len(order) :], whole[np.arange(repeats) % len(order)])


def test_epochs_and_seeds_differ_and_repeat():
    sizes = [50, 70, 30]
    rows = {
        (seed, epoch): GlobalOrder(sizes, seed, epoch, 8, 4).indices(0, 150).tolist()
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(row) for row in rows.values()}) == 4
    assert rows[1, 1] == GlobalOrder(sizes, 1, 1, 8, 4).indices(0, 150).tolist()


def test_batches_mix_places_while_a_pool_touches_few():
    order = GlobalOrder([1000] * 100, 0, 0, block=64, pool=16)
    batch = order.batch(3, 32)
    assert len(set(batch // 64)) > 12  # neighbours in the files are not neighbours in a batch
    pool = order.indices(0, 64 * 16)
    assert len(set(pool // 1000)) < 40


def test_small_sets_are_mixed_as_a_whole():
    row = GlobalOrder([300, 300], 0, 0).indices(0, 600)
    assert abs(np.corrcoef(row, np.arange(600))[0, 1]) < 0.15
    assert row[:100].min() < 60
    assert row[:100].max() > 540


def test_millions_of_samples_need_no_full_permutation():
    order = GlobalOrder([1000] * 11000, 0, 0)
    middle = order.batch(171_000, 64)
    assert len(set(middle.tolist())) == 64
    assert middle.max() < 11_000_000
    assert sum(len(pool) for pool in order._pools.values()) <= 2 * 64 * 64


@pytest.mark.parametrize(("start", "stop"), [(3, 3), (-1, 4)])
def test_empty_stretches_are_a_mistake_of_the_caller(start, stop):
    with pytest.raises(AssertionError):
        GlobalOrder([5], 0, 0).indices(start, stop)
