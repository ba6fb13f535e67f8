"""NT-Xent against its formula, written as loops in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.losses.contrastive import nt_xent


def reference(embeddings, valid, temperature):
  """Eq. 1 of SimCLR, both views of every image as anchor."""
  views = [
    (i, v, embeddings[i, v].astype(np.float64))
    for i in np.flatnonzero(valid)
    for v in (0, 1)
  ]

  def similarity(a, b):
    return a @ b / math.sqrt(a @ a) / math.sqrt(b @ b) / temperature

  total = 0.0
  for i, v, anchor in views:
    others = [(j, w, x) for j, w, x in views if (j, w) != (i, v)]
    (positive,) = [similarity(anchor, x) for j, _, x in others if j == i]
    exponentials = [math.exp(similarity(anchor, x)) for _, _, x in others]
    total -= positive - math.log(sum(exponentials))
  return total


def example(seed=0, num=6, channels=5):
  return np.random.default_rng(seed).normal(size=(num, 2, channels)) * 3


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("left_out", [(), (2,), (0, 1, 5)])
def test_equals_the_formula(temperature, left_out):
  embeddings = example()
  valid = ~np.isin(np.arange(6), left_out)
  loss = nt_xent(jnp.array(embeddings), jnp.array(valid), temperature)
  expected = reference(embeddings, valid, temperature)
  np.testing.assert_allclose(loss.total, expected, rtol=2e-5)
  assert loss.count == valid.sum()


def test_two_images_in_closed_form():
  """Views agree within an image and are orthogonal across images."""
  embeddings = jnp.array([[[1.0, 0], [1, 0]], [[0, 2], [0, 3]]])
  loss = nt_xent(embeddings, jnp.ones(2, bool), 0.5)
  # Each of four anchors: positive exp(2), two negatives exp(0).
  each = math.log(math.exp(2) + 2) - 2
  np.testing.assert_allclose(loss.total, 4 * each, rtol=1e-6)
  np.testing.assert_allclose(loss.compute(), 2 * each, rtol=1e-6)


def test_lengths_and_rotations_do_not_matter():
  embeddings, valid = example(), jnp.ones(6, bool)
  rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))
  lengths = np.random.default_rng(2).uniform(0.5, 2, (6, 2, 1))
  one = nt_xent(jnp.array(embeddings), valid, 0.2).total
  other = nt_xent(jnp.array(embeddings * lengths @ rotation), valid, 0.2).total
  np.testing.assert_allclose(one, other, rtol=1e-5)


def test_order_of_images_and_views_does_not_matter():
  embeddings, valid = example(), jnp.ones(6, bool)
  one = nt_xent(jnp.array(embeddings), valid, 0.2).total
  turned = embeddings[[3, 1, 0, 2, 5, 4]][:, ::-1]
  other = nt_xent(jnp.array(turned.copy()), valid, 0.2).total
  np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("left_out", [(1,), (0, 1, 2, 3, 4, 5)])
def test_what_is_not_valid_gives_no_gradient(left_out):
  embeddings = example()
  embeddings[list(left_out)] = np.inf
  valid = jnp.array(~np.isin(np.arange(6), left_out))
  grads = jax.grad(lambda x: nt_xent(x, valid, 0.1).compute())(
    jnp.array(embeddings)
  )
  assert bool(jnp.isfinite(grads).all())
  assert not grads[jnp.array(left_out)].any()
