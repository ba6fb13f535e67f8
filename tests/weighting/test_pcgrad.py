import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.weighting import make_balancer
from must_jax.weighting.pcgrad import surgery


def algorithm(gradients, key):
  """The paper's loop in float64: gradients [T, N] -> [N]."""
  num = len(gradients)
  merged = np.zeros(gradients.shape[1])
  for i, key_i in enumerate(jax.random.split(key, num)):
    g = gradients[i].copy()
    for j in np.asarray(jax.random.permutation(key_i, num)):
      product = g @ gradients[j]
      if j != i and product < 0:
        g -= product / (gradients[j] @ gradients[j]) * gradients[j]
    merged += g
  return merged


def merge(gradients, trunk, key, method="pcgrad"):
  """Gradients [T, N], of which two are the neck's, to [N]."""
  tasks = [f"task{i}" for i in range(len(gradients))]
  balancer = make_balancer(method, dict.fromkeys(tasks, 1.0))
  cotangents = {
    task: {"backbone": jnp.float32(g[2:]), "neck": {"p": jnp.float32(g[:2])}}
    for task, g in zip(tasks, gradients, strict=True)
  }
  (backbone, neck), norms = balancer.merge(cotangents, trunk, key)
  assert norms == {}
  return np.concatenate([neck["p"], backbone])


@pytest.mark.parametrize("num", [2, 3, 6])
def test_merge_is_the_papers_loop(num, identity):
  rng = np.random.default_rng(num)
  for seed in range(5):
    gradients = rng.normal(size=(num, 5)) * rng.uniform(0.01, 10, (num, 1))
    key = jax.random.key(seed)
    np.testing.assert_allclose(
      merge(gradients, identity, key),
      algorithm(gradients, key),
      rtol=1e-4,
      atol=1e-5 * np.abs(gradients).max(),
    )


def test_two_gradients_that_conflict(identity):
  """g1 becomes (1, 0, 1) / 2 and g2 becomes (0, 0, 1)."""
  gradients = np.array([[1.0, 0, 0], [-1.0, 0, 1]])
  got = merge(gradients, identity, jax.random.key(0))
  np.testing.assert_allclose(got, [0.5, 0, 1.5], rtol=1e-6)


def test_two_quadratics_that_conflict():
  """Losses (x - 1)^2 and 2 (x + 1)^2 + y^2 at (0, 1), in closed form."""
  gradients = jnp.array([[-2.0, 0.0], [4.0, 2.0]])
  factors = surgery(gradients @ gradients.T, jax.random.key(0))
  # g1 + 8/20 g2 = (-0.4, 0.8); g2 + 8/4 g1 = (0, 2).
  np.testing.assert_allclose(factors @ gradients, [-0.4, 2.8], rtol=1e-6)


def test_gradients_that_agree_are_summed(identity):
  gradients = np.array([[1.0, 2, 3], [3.0, 0, 1], [0.0, 0, 2]])
  got = merge(gradients, identity, jax.random.key(0))
  np.testing.assert_array_equal(got, [4, 2, 6])


def test_opposite_gradients_cancel(identity):
  gradients = np.array([[1.0, 2, 3], [-2.0, -4, -6]])
  got = merge(gradients, identity, jax.random.key(0))
  np.testing.assert_allclose(got, 0, atol=1e-6)


def test_an_absent_task_changes_nothing(identity):
  gradients = np.array([[1.0, 0, 0], [-1.0, 0, 1], [0.0, 0, 0]])
  got = merge(gradients, identity, jax.random.key(0))
  np.testing.assert_allclose(got, [0.5, 0, 1.5], rtol=1e-6)


def test_order_is_drawn_and_matters_with_three_tasks():
  gradients = np.array([[1.0, 0.1], [-1.0, 1.0], [-0.5, -1.0]])
  products = jnp.float32(gradients @ gradients.T)
  keys = jax.random.split(jax.random.key(0), 64)
  factors = np.asarray(jax.vmap(lambda key: surgery(products, key))(keys))
  for key, row in zip(keys[:8], factors, strict=False):
    np.testing.assert_allclose(
      row @ gradients, algorithm(gradients, key), atol=1e-5
    )
  # Each of three gradients meets the two others in one of two orders.
  distinct = {tuple(np.round(row @ gradients, 4)) for row in factors}
  assert 2 < len(distinct) <= 8


def test_orders_do_not_matter_with_two_tasks():
  gradients = np.array([[1.0, 0.1], [-1.0, 1.0]])
  products = jnp.float32(gradients @ gradients.T)
  keys = jax.random.split(jax.random.key(0), 16)
  factors = jax.vmap(lambda key: surgery(products, key))(keys)
  np.testing.assert_array_equal(factors, np.tile(factors[0], (16, 1)))


def test_weights_count(toy):
  """Gradients are those of the weighted losses."""
  key = jax.random.key(0)
  weights = {"a": 2.0, "b": 0.5, "c": 1.0}
  got, _ = make_balancer("pcgrad", weights).merge(*toy.pieces(weights), key)
  rows = []
  for task, weight in weights.items():
    leaves, treedef = jax.tree.flatten(toy.plain({task: weight}))
    rows.append(np.concatenate(leaves).astype(np.float64))
  assert (np.array(rows) @ np.array(rows).T < 0).any()
  expected = algorithm(np.array(rows), key).reshape(3, 3)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
    got,
    jax.tree.unflatten(treedef, list(expected)),
  )
