import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.ops import resize


def naive_bilinear(x, size, align_corners=False):
  """[H, W, C] in float64, pixel by pixel; centres beyond the border clamp."""
  h, w, _ = x.shape

  def place(i, old, new):
    if align_corners:
      return i * (old - 1) / (new - 1) if new > 1 else 0
    return min(max((i + 0.5) * old / new - 0.5, 0), old - 1)

  out = np.zeros((*size, x.shape[-1]))
  for i, j in np.ndindex(*size):
    y, z = place(i, h, size[0]), place(j, w, size[1])
    y0, z0 = int(y), int(z)
    y1, z1 = min(y0 + 1, h - 1), min(z0 + 1, w - 1)
    top = x[y0, z0] * (1 - (z - z0)) + x[y0, z1] * (z - z0)
    bottom = x[y1, z0] * (1 - (z - z0)) + x[y1, z1] * (z - z0)
    out[i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
  return out


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(10, 14), (5, 7), (9, 8), (2, 3), (1, 20)])
def test_bilinear_matches_float64(size, align_corners):
  x = np.random.default_rng(0).normal(size=(5, 7, 2))
  out = resize.resize_bilinear(
    x.astype(np.float32), size, align_corners=align_corners
  )
  expected = naive_bilinear(x, size, align_corners)
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_bilinear_known_row():
  x = np.float32([0, 4]).reshape(1, 2, 1)
  out = resize.resize_bilinear(x, (1, 4))
  np.testing.assert_allclose(out[0, :, 0], [0, 1, 3, 4], atol=1e-6)


def test_bilinear_with_aligned_corners_known_rows():
  def row(values, new):
    x = np.float32(values).reshape(1, -1, 1)
    out = resize.resize_bilinear(x, (1, new), align_corners=True)
    return np.asarray(out)[0, :, 0]

  np.testing.assert_allclose(row([0, 3], 4), [0, 1, 2, 3], atol=1e-6)
  np.testing.assert_allclose(row([5], 2), [5, 5])


@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear_takes_batches_and_keeps_the_dtype(align_corners):
  def resized(x):
    return resize.resize_bilinear(x, (8, 9), align_corners=align_corners)

  x = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 1)).astype(np.float32)
  np.testing.assert_allclose(resized(x)[1, 2], resized(x[1, 2]), atol=1e-6)
  assert resized(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


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


@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear_gradient_has_no_scatter(align_corners):
  def total(x):
    out = resize.resize_bilinear(x, (8, 8), align_corners=align_corners)
    return jnp.sum(out**2)

  lowered = jax.jit(jax.grad(total)).lower(jnp.zeros((4, 4, 2)))
  assert "scatter" not in lowered.as_text()
