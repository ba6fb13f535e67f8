"""Max pooling: its gradient against one that is written out, and XLA's."""

import collections
import functools
import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from must_jax.ops.pooling import max_pool

RESNET = {"window": (3, 3), "strides": (2, 2), "padding": ((1, 1), (1, 1))}
pair = st.tuples(st.integers(1, 4), st.integers(1, 4))


def written_out(x, g, window, strides, padding):
  """The gradient, window by window."""
  found = np.zeros(x.shape)
  for b, i, j, c in np.ndindex(g.shape):
    best, place = -np.inf, None
    for m, n in itertools.product(*map(range, window)):
      row = i * strides[0] + m - padding[0][0]
      column = j * strides[1] + n - padding[1][0]
      inside = 0 <= row < x.shape[1] and 0 <= column < x.shape[2]
      if inside and x[b, row, column, c] > best:
        best, place = x[b, row, column, c], (b, row, column, c)
    found[place] += g[b, i, j, c]
  return found


@settings(max_examples=40, deadline=None)
@given(
  size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
  window=pair,
  strides=pair,
  data=st.data(),
)
def test_the_first_of_equal_maxima_has_the_gradient(
  size, window, strides, data
):
  # A window with no pixel inside has no maximum.
  padding = tuple(
    (data.draw(st.integers(0, k - 1)), data.draw(st.integers(0, k - 1)))
    for k in window
  )
  rng = np.random.default_rng(0)
  x = rng.integers(-2, 3, (2, *size, 3)).astype(np.float32)  # often equal
  pool = functools.partial(
    max_pool, window=window, strides=strides, padding=padding
  )
  y, pull = jax.vjp(pool, x)
  np.testing.assert_array_equal(y, nn.max_pool(x, window, strides, padding))
  g = rng.integers(-9, 9, y.shape).astype(np.float32)  # sums are exact
  expected = written_out(x, g, window, strides, padding)
  np.testing.assert_array_equal(pull(g)[0], expected)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_padding_by_name(padding):
  x = np.random.default_rng(1).normal(size=(2, 11, 8, 5)).astype(np.float32)

  def gradient(pool):
    y, pull = jax.vjp(lambda x: pool(x, (3, 3), (2, 2), padding), x)
    return y, pull(jnp.cos(y))[0]

  for ours, xla in zip(gradient(max_pool), gradient(nn.max_pool), strict=True):
    np.testing.assert_allclose(ours, xla, atol=1e-6)


def test_half_precision_is_added_up_in_single():
  x = jnp.zeros((1, 3, 3, 1), jnp.bfloat16).at[0, 1, 1].set(1)
  y, pull = jax.vjp(lambda x: max_pool(x, **RESNET), x)
  g = jnp.array([256, 1, 1, 1], y.dtype).reshape(y.shape)
  (found,) = pull(g)
  assert found.dtype == x.dtype
  # 256 + 1 is 256 in bfloat16.
  assert float(found[0, 1, 1, 0]) == float(jnp.bfloat16(259))


def test_more_dimensions_by_vmap():
  x = np.random.default_rng(2).normal(size=(3, 2, 8, 8, 4)).astype(np.float32)

  def gradient(x):
    return jax.grad(lambda x: jnp.sum(jnp.sin(max_pool(x, **RESNET))))(x)

  np.testing.assert_allclose(
    jax.vmap(gradient)(x), np.stack([gradient(each) for each in x]), atol=1e-6
  )


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_programs_for_other_platforms_have_the_gradient_of_xla(platform):
  x = jnp.zeros((2, 8, 8, 4))

  def text(pool, grad=True):
    def loss(x):
      return jnp.sum(pool(x) ** 2)

    traced = jax.jit(jax.grad(loss) if grad else pool).trace(x)
    lowered = traced.lower(lowering_platforms=(platform,))
    return collections.Counter(re.findall(r"stablehlo\.\w+", lowered.as_text()))

  ours = text(lambda x: max_pool(x, **RESNET))
  xla = text(lambda x: nn.max_pool(x, *RESNET.values()))
  assert ours["stablehlo.select_and_scatter"] == 1
  # A pooling stands there once more, which nothing reads and XLA drops.
  pooling = text(lambda x: nn.max_pool(x, *RESNET.values()), grad=False)
  assert set(ours) == set(xla)
  assert ours - xla <= pooling
