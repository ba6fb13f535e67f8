import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from must_jax.data import order as order_lib
from must_jax.data.order import Order

sizes = st.integers(1, 3000)
seeds = st.integers(-(2**62), 2**62)


def records(order, start, stop):
  return order(tf.range(start, stop, dtype=tf.int64)).numpy()


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  sizes, seeds, st.integers(1, 200), st.integers(1, 20), st.integers(0, 2**30)
)
def test_every_epoch_is_a_permutation(size, seed, block, window, epoch):
  order = Order(size, seed, block, window)
  got = records(order, epoch * size, (epoch + 2) * size).reshape(2, size)
  everything = np.arange(size)
  np.testing.assert_array_equal(np.sort(got[0]), everything)
  np.testing.assert_array_equal(np.sort(got[1]), everything)
  if size >= 20:
    assert not np.array_equal(got[0], got[1])


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(sizes, seeds, st.data())
def test_a_position_knows_its_record_by_itself(size, seed, data):
  order = Order(size, seed, 16, 4)
  whole = records(order, 0, 3 * size)
  some = data.draw(st.lists(st.integers(0, 3 * size - 1), min_size=1))
  got = order(tf.constant(some, tf.int64)).numpy()
  np.testing.assert_array_equal(got, whole[some])


def test_seeds_give_other_orders():
  orders = {tuple(records(Order(50, seed, 4, 4), 0, 50)) for seed in range(20)}
  assert len(orders) == 20


def test_golden_order():
  # A change here changes every run that is resumed.
  got = records(Order(10, 7, 3, 2), 0, 20).tolist()
  assert got == [2, 1, 5, 6, 3, 4, 8, 7, 9, 0, 7, 3, 9, 4, 5, 8, 6, 2, 0, 1]


def test_reads_stay_within_a_window_of_blocks():
  order = Order(10_000, 3, 50, 4)
  window = records(order, 0, 200)
  # 4 blocks of 50 neighbours, each a run of consecutive numbers.
  gaps = np.diff(np.sort(window))
  assert (gaps != 1).sum() == 3
  # And mixed within.
  assert (np.abs(np.diff(window)) != 1).mean() > 0.95


def test_the_tail_is_another_one_in_every_epoch():
  order = Order(109, 0, 10, 2)  # 9 records are left over
  tails = {
    tuple(sorted(records(order, e * 109 + 100, (e + 1) * 109)))
    for e in range(8)
  }
  assert len(tails) == 8


def test_every_record_is_as_likely_to_come_at_any_place():
  order = Order(50, 0, 5, 4)
  epochs = records(order, 0, 50 * 500).reshape(-1, 50)
  for place in (0, 17, 49):
    counts = np.bincount(epochs[:, place], minlength=50)
    # 10 expected of each; chi-square with 49 degrees of freedom, p = 1e-5.
    assert ((counts - 10) ** 2 / 10).sum() < 104


def test_all_orders_of_few_records_are_as_likely():
  order = Order(3, 0, 1, 3)
  epochs = records(order, 0, 3 * 600).reshape(-1, 3)
  _, counts = np.unique(epochs, axis=0, return_counts=True)
  assert len(counts) == 6
  # 100 expected of each; chi-square with 5 degrees of freedom, p = 1e-5.
  assert ((counts - 100) ** 2 / 100).sum() < 31


def test_mixing_is_splitmix64():
  # The first output of its reference implementation from state 0.
  mixed = int(order_lib._mix(tf.constant(0, tf.int64)))
  assert mixed % 2**64 == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("name", ["num_records", "block_size", "window_blocks"])
def test_sizes_are_positive(name):
  kwargs = {"num_records": 5, "block_size": 1, "window_blocks": 1, name: 0}
  with pytest.raises(ValueError, match=name):
    Order(seed=0, **kwargs)
