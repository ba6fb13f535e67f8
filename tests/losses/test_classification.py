import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.losses import classification


def log_softmax(x):
  x = x.astype(np.float64)
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def reference_softmax(logits, probs, present, smoothing):
  total = 0.0
  for x, p, here in zip(logits, probs, present, strict=True):
    if here:
      target = (1 - smoothing) * p.astype(np.float64) + smoothing / len(p)
      total -= np.sum(target * log_softmax(x))
  return total


def reference_sigmoid(logits, targets, present):
  total = 0.0
  for x, t, here in zip(
    logits.astype(np.float64), targets.astype(np.float64), present, strict=True
  ):
    if here:
      p = 1 / (1 + np.exp(-x))
      total -= np.sum(t * np.log(p) + (1 - t) * np.log(1 - p))
  return total


def example(seed=0, b=5, k=7):
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(b, k)).astype(np.float32) * 3
  probs = rng.dirichlet(np.ones(k), b).astype(np.float32)
  present = np.arange(b) != 2
  return logits, probs, present


LITERAL = [
  # logits, probs, smoothing, loss
  ([0.0, 0.0], [1.0, 0.0], 0.0, 0.6931471806),
  ([0.0, 0.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4], 0.3, 1.3862943611),
  ([1.0, 0.0], [1.0, 0.0], 0.0, 0.3132616875),
  ([1.0, 0.0], [1.0, 0.0], 0.2, 0.4132616875),  # 0.9 and 0.1
  ([1.0, 0.0], [0.25, 0.75], 0.0, 1.0632616875),
  ([1000.0, 0.0], [0.0, 1.0], 0.0, 1000.0),  # no overflow
]


@pytest.mark.parametrize(("logits", "probs", "smoothing", "expected"), LITERAL)
def test_softmax_literal(logits, probs, smoothing, expected):
  loss = classification.softmax_cross_entropy(
    jnp.array([logits]), jnp.array([probs]), jnp.array([True]), smoothing
  )
  np.testing.assert_allclose(loss.total, expected, rtol=1e-6)
  assert loss.count == 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_matches_float64(smoothing):
  logits, probs, present = example()
  loss = classification.softmax_cross_entropy(logits, probs, present, smoothing)
  expected = reference_softmax(logits, probs, present, smoothing)
  np.testing.assert_allclose(loss.total, expected, rtol=1e-6)
  assert loss.count == 4
  np.testing.assert_allclose(loss.compute(), expected / 4, rtol=1e-6)


def test_softmax_gradient(numeric_gradient):
  logits, probs, present = example()
  gradient = jax.grad(
    lambda x: classification.softmax_cross_entropy(x, probs, present, 0.1).total
  )(logits)
  expected = numeric_gradient(
    lambda x: reference_softmax(x, probs, present, 0.1),
    logits.astype(np.float64),
  )
  np.testing.assert_allclose(gradient, expected, atol=2e-6)


SIGMOID_LITERAL = [
  ([0.0, 0.0], [1.0, 0.0], 2 * 0.6931471806),  # a sum over the classes
  ([1.0], [1.0], 0.3132616875),
  ([1.0], [0.0], 1.3132616875),
  ([-1000.0, 1000.0], [1.0, 0.0], 2000.0),
]


@pytest.mark.parametrize(("logits", "targets", "expected"), SIGMOID_LITERAL)
def test_sigmoid_literal(logits, targets, expected):
  loss = classification.sigmoid_cross_entropy(
    jnp.array([logits]), jnp.array([targets]), jnp.array([True])
  )
  np.testing.assert_allclose(loss.total, expected, rtol=1e-6)
  assert loss.count == 1


def test_sigmoid_matches_float64_with_its_gradient(numeric_gradient):
  logits, targets, present = example(1)
  loss, gradient = jax.value_and_grad(
    lambda x: classification.sigmoid_cross_entropy(x, targets, present).total
  )(logits)
  np.testing.assert_allclose(
    loss, reference_sigmoid(logits, targets, present), rtol=1e-6
  )
  expected = numeric_gradient(
    lambda x: reference_sigmoid(x, targets, present), logits.astype(np.float64)
  )
  np.testing.assert_allclose(gradient, expected, atol=2e-6)


def test_cross_entropy_picks_the_class():
  logits = np.random.default_rng(2).normal(size=(3, 4, 5)).astype(np.float32)
  classes = np.random.default_rng(3).integers(0, 5, (3, 4))
  losses = classification.cross_entropy(logits, classes)
  expected = -np.take_along_axis(log_softmax(logits), classes[..., None], -1)
  np.testing.assert_allclose(losses, expected[..., 0], rtol=1e-5)


def test_the_most_probable_class_is_the_first_of_the_best():
  probs = jnp.asarray([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4], [0, 0, 0], [0, 1, 0]])
  expected = [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]
  found = classification.most_probable(probs)
  np.testing.assert_array_equal(found, np.asarray(expected, bool))
