import jax
import numpy as np
import pytest

from must_jax.ops import topk


@pytest.mark.parametrize(("count", "k"), [(1, 1), (10, 10), (5000, 256)])
def test_is_exact(count, k):
  x = np.random.default_rng(0).permutation(2 * count).astype(np.float32)
  x = x.reshape(2, count)
  values, index = topk.top_k(x, k)
  expected = np.argsort(-x, axis=1)[:, :k]
  np.testing.assert_array_equal(index, expected)
  np.testing.assert_array_equal(values, np.take_along_axis(x, expected, 1))


def test_minus_infinity_comes_last():
  x = np.float32([-np.inf, 3, -np.inf, 5])
  values, index = jax.jit(topk.top_k, static_argnums=1)(x, 3)
  np.testing.assert_array_equal(values, [5, 3, -np.inf])
  np.testing.assert_array_equal(index[:2], [3, 1])
