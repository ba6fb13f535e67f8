import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.ops import resize


def naive_bilinear(x, size):
  """[H, W, C] in float64, pixel by pixel; centres beyond the border clamp."""
  h, w, _ = x.shape
  out = np.zeros((*size, x.shape[-1]))
  for i, j in np.ndindex(*size):
    y = min(max((i + 0.5) * h / size[0] - 0.5, 0), h - 1)
    z = min(max((j + 0.5) * w / size[1] - 0.5, 0), w - 1)
    y0, z0 = int(y), int(z)
    y1, z1 = min(y0 + 1, h - 1), min(z0 + 1, w - 1)
    top = x[y0, z0] * (1 - (z - z0)) + x[y0, z1] * (z - z0)
    bottom = x[y1, z0] * (1 - (z - z0)) + x[y1, z1] * (z - z0)
    out[i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
  return out


@pytest.mark.parametrize("size", [(10, 14), (5, 7), (9, 8), (2, 3), (1, 20)])
def test_bilinear_matches_float64(size):
  x = np.random.default_rng(0).normal(size=(5, 7, 2))
  out = resize.resize_bilinear(x.astype(np.float32), size)
  np.testing.assert_allclose(out, naive_bilinear(x, size), atol=1e-5)


def test_bilinear_known_row():
  x = np.float32([0, 4]).reshape(1, 2, 1)
  out = resize.resize_bilinear(x, (1, 4))
  np.testing.assert_allclose(out[0, :, 0], [0, 1, 3, 4], atol=1e-6)


def test_bilinear_takes_batches_and_keeps_the_dtype():
  x = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 1)).astype(np.float32)
  out = resize.resize_bilinear(x, (8, 9))
  one = resize.resize_bilinear(x[1, 2], (8, 9))
  np.testing.assert_allclose(out[1, 2], one, atol=1e-6)
  low = resize.resize_bilinear(jnp.asarray(x, jnp.bfloat16), (8, 9))
  assert low.dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ("old", "new", "expected"),
  [
    (2, 4, [0, 0, 1, 1]),
    (4, 2, [1, 3]),  # equally near: the right one
    (3, 2, [0, 2]),
    (2, 3, [0, 1, 1]),
    (5, 5, [0, 1, 2, 3, 4]),
  ],
)
def test_nearest_known_rows(old, new, expected):
  x = np.arange(old, dtype=np.uint8)
  row = resize.resize_nearest(x.reshape(1, old, 1), (1, new))
  assert isinstance(row, np.ndarray)
  assert row.dtype == np.uint8
  np.testing.assert_array_equal(row[0, :, 0], expected)
  column = resize.resize_nearest(jnp.asarray(x).reshape(1, old, 1, 1), (new, 1))
  np.testing.assert_array_equal(column[0, :, 0, 0], expected)


@pytest.mark.parametrize("size", [(4, 6), (3, 6), (4, 5), (3, 5)])
def test_upsample_2x(size):
  x = np.random.default_rng(0).normal(size=(2, 3, 4))
  expected = x.repeat(2, 0).repeat(2, 1)[: size[0], : size[1]]
  out = resize.upsample_nearest_2x(x, size)
  np.testing.assert_array_equal(out, expected.astype(out.dtype))


@pytest.mark.parametrize("size", [(2, 6), (5, 6), (4, 4), (4, 7)])
def test_upsample_2x_rejects_sizes_of_no_pyramid(size):
  with pytest.raises(ValueError, match=r"expected 3 or 4 by 5 or 6"):
    resize.upsample_nearest_2x(np.zeros((2, 3, 1)), size)


def test_bilinear_gradient_has_no_scatter():
  def total(x):
    return jnp.sum(resize.resize_bilinear(x, (8, 8)) ** 2)

  lowered = jax.jit(jax.grad(total)).lower(jnp.zeros((4, 4, 2)))
  assert "scatter" not in lowered.as_text()
