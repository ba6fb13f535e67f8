"""The guard against a plain loop in numpy."""

import math

import jax
import numpy as np
import pytest

from must_jax.train.guard import Guard


def by_hand(losses, norms, sigmas, window):
  """What OLMo's rule says of every step, in float64."""
  kept, answers = [], []
  for pair in zip(losses, norms, strict=True):
    good = all(map(math.isfinite, pair))
    if good and sigmas and len(kept) >= window:
      past = np.array(kept[-window:], np.float64)
      good = bool((pair <= past.mean(0) + sigmas * past.std(0)).all())
    if good:
      kept.append(pair)
    answers.append(good)
  return answers, kept


def by_guard(losses, norms, guard):
  judge, update = jax.jit(guard.judge), jax.jit(guard.update)
  state, answers, counts = guard.init(), [], []
  for loss, norm in zip(losses, norms, strict=True):
    good = judge(state, loss, norm)
    state = update(state, good, loss, norm)
    answers.append(bool(good))
    counts.append((int(state.skipped), int(state.in_a_row)))
  return answers, counts, state


def noise(seed, steps):
  rng = np.random.default_rng(seed)
  losses = 2 + 0.1 * rng.standard_normal(steps)
  norms = 5 + 0.5 * rng.standard_normal(steps)
  return losses.astype(np.float32), norms.astype(np.float32)


@pytest.mark.parametrize("sigmas", [0.0, 3.0, 6.0])
def test_judges_as_a_plain_loop_does(sigmas):
  window = 16
  losses, norms = noise(0, 200)
  rng = np.random.default_rng(1)
  losses[rng.choice(200, 12, replace=False)] *= 10
  norms[rng.choice(200, 12, replace=False)] *= 10
  losses[[3, 60, 61, 62, 130]] = np.nan
  norms[[90, 91, 92]] = np.inf
  answers, counts, state = by_guard(losses, norms, Guard(sigmas, window))
  expected, kept = by_hand(losses, norms, sigmas, window)
  assert answers == expected
  assert not all(answers[window:])
  skipped = streak = 0
  for good, count in zip(answers, counts, strict=True):
    skipped += not good
    streak = 0 if good else streak + 1
    assert count == (skipped, streak)
  # The windows hold the latest that counted, wherever each begins.
  assert int(state.counted) == len(kept)
  latest = np.array(kept[-window:], np.float32)
  np.testing.assert_array_equal(np.sort(state.losses), np.sort(latest[:, 0]))
  np.testing.assert_array_equal(np.sort(state.norms), np.sort(latest[:, 1]))


def test_only_full_windows_tell_a_spike():
  losses, norms = noise(0, 16)
  losses[7] = 1000
  assert all(by_guard(losses, norms, Guard(6.0, 8))[0])
  losses[7], losses[8] = 2, 1000
  answers = by_guard(losses, norms, Guard(6.0, 8))[0]
  assert [i for i, good in enumerate(answers) if not good] == [8]


def test_a_gradient_alone_can_be_a_spike_and_a_drop_is_none():
  losses, norms = noise(0, 20)
  norms[10] = 100
  losses[12] = norms[12] = 1e-3
  answers = by_guard(losses, norms, Guard(6.0, 8))[0]
  assert [i for i, good in enumerate(answers) if not good] == [10]


def test_spikes_in_a_row_do_not_become_the_norm():
  losses, norms = noise(0, 60)
  losses[20:50] = 50
  answers, counts, _ = by_guard(losses, norms, Guard(6.0, 8))
  assert not any(answers[20:50]) and all(answers[50:])
  assert counts[49] == (30, 30) and counts[50] == (30, 0)


def test_without_sigmas_only_what_is_not_finite_is_bad():
  losses, norms = noise(0, 200)
  losses[150] = 1e30
  losses[160] = -np.inf
  answers = by_guard(losses, norms, Guard())[0]
  assert [i for i, good in enumerate(answers) if not good] == [160]
