import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from must_jax.input.order import Mixture, Order

sizes = st.integers(1, 3000)
seeds = st.integers(-(2**62), 2**62)


def records(order, start, stop):
  return order(np.arange(start, stop))


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
  got = order(np.array(some))
  np.testing.assert_array_equal(got, whole[some])


def test_seeds_give_other_orders():
  orders = {tuple(records(Order(50, seed, 4, 4), 0, 50)) for seed in range(20)}
  assert len(orders) == 20


def test_golden_order():
  # A change here changes every run that is resumed.
  got = records(Order(10, 7, 3, 2), 0, 20).tolist()
  assert got == [0, 8, 9, 7, 6, 5, 4, 1, 2, 3, 2, 5, 6, 4, 1, 0, 8, 7, 3, 9]


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


@pytest.mark.parametrize("name", ["num_records", "block_size", "window_blocks"])
def test_sizes_are_positive(name):
  kwargs = {"num_records": 5, "block_size": 1, "window_blocks": 1, name: 0}
  with pytest.raises(ValueError, match=name):
    Order(seed=0, **kwargs)


# Mixtures.


def draws(mixture, start, stop):
  sets, numbers = mixture(np.arange(start, stop))
  return np.stack([sets, numbers], 1)


several = st.lists(st.integers(1, 400), min_size=2, max_size=5)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(several, seeds, st.integers(1, 64), st.integers(0, 1000))
def test_every_epoch_of_a_union_is_a_permutation(sizes, seed, block, epoch):
  mixture = Mixture(sizes, seed=seed, block_size=block, window_blocks=3)
  total = sum(sizes)
  got = draws(mixture, epoch * total, (epoch + 1) * total)
  everything = [(k, i) for k, size in enumerate(sizes) for i in range(size)]
  assert sorted(map(tuple, got.tolist())) == everything


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(several, seeds, st.data())
def test_shares_are_kept_and_records_come_in_turn(sizes, seed, data):
  shares = data.draw(
    st.lists(st.floats(0.05, 5), min_size=len(sizes), max_size=len(sizes))
  )
  mixture = Mixture(sizes, shares, seed=seed, block_size=8, window_blocks=2)
  end = 16 * data.draw(st.integers(1, 60))
  got = draws(mixture, 0, end)
  counts = np.bincount(got[:, 0], minlength=len(sizes))
  parts = np.array(shares) / sum(shares)
  # Each set rounds by a half; together they shift all by half their number.
  assert (np.abs(counts - end * parts) <= 0.51 + parts * len(sizes) / 2).all()
  for k, size in enumerate(sizes):
    seen = np.bincount(got[got[:, 0] == k, 1], minlength=size)
    assert seen.max() - seen.min() <= 1  # one more round has begun


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(several, seeds, st.booleans(), st.data())
def test_counts_are_those_of_the_draws(sizes, seed, equal, data):
  shares = [1] * len(sizes) if equal else None
  mixture = Mixture(sizes, shares, seed=seed, block_size=8, window_blocks=2)
  end = data.draw(st.integers(0, 2000))
  counts = np.bincount(draws(mixture, 0, end)[:, 0], minlength=len(sizes))
  np.testing.assert_array_equal(mixture.counts(end), counts)


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(several, seeds, st.data())
def test_a_position_knows_its_draw_by_itself(sizes, seed, data):
  mixture = Mixture(sizes, seed=seed, block_size=8, window_blocks=2)
  whole = draws(mixture, 0, 2000)
  some = data.draw(st.lists(st.integers(0, 1999), min_size=1))
  fresh = Mixture(sizes, seed=seed, block_size=8, window_blocks=2)
  np.testing.assert_array_equal(np.stack(fresh(np.array(some)), 1), whole[some])


def test_a_mixture_of_one_is_its_order():
  sets, numbers = Mixture([50], seed=3)(np.arange(200))
  assert not sets.any()
  np.testing.assert_array_equal(numbers, Order(50, 3)(np.arange(200)))
  assert Mixture([50], seed=3).counts(77).tolist() == [77]


def test_golden_mixture():
  # A change here changes every run that is resumed.
  mixture = Mixture([6, 3], seed=7, block_size=2, window_blocks=2)
  got = [f"{'ab'[k]}{i}" for k, i in draws(mixture, 0, 18).tolist()]
  assert " ".join(got) == (
    "a0 a1 b1 a2 a4 b2 a5 b0 a3 a5 b0 a3 a4 b1 a1 a2 b2 a0"
  )


def spread(attribute, batch_size):
  """Variance of batch means over that of a perfect shuffle: 1 is perfect."""
  batches = attribute[: len(attribute) // batch_size * batch_size]
  means = batches.reshape(-1, batch_size).mean(1)
  return means.var() / (attribute.var() / batch_size)


def test_how_well_the_block_shuffle_mixes():
  """An attribute that grows from the first record to the last is the worst.

  A batch then has as many independent values as a window has blocks. Imports
  write records in the order of a hash, which is the best case.
  """
  order = Order(200_000, 0, block_size=128, window_blocks=16)
  sequence = order(np.arange(199_680))
  worst = spread(sequence / 200_000, 256)
  assert 0.7 * 256 / 16 < worst < 1.3 * 256 / 16
  hashed = np.random.default_rng(0).permutation(200_000)[sequence]
  assert 0.8 < spread(hashed / 200_000, 256) < 1.2
  perfect = np.random.default_rng(1).permutation(199_680)
  assert 0.8 < spread(perfect / 200_000, 256) < 1.2


def test_sets_are_mixed_as_well_as_by_a_perfect_shuffle():
  sizes = [128_000, 60_000, 11_800]
  sets, _ = Mixture(sizes, seed=0)(np.arange(199_680))
  for k in range(3):
    # Exact shares in every window leave a little less than chance would.
    assert 0.7 < spread((sets == k).astype(float), 256) < 1.05
