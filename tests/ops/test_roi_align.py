import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.ops import roi_align as ops

METHODS = ("gather", "matmul")
IMAGE = (72, 104)

align = jax.jit(
  ops.multilevel_roi_align,
  static_argnames=(
    "output_size",
    "samples_per_bin",
    "canonical_size",
    "canonical_level",
    "half_pixel",
    "method",
  ),
)


def make_features(levels=(3, 4, 5), channels=3, seed=0):
  rng = np.random.default_rng(seed)
  return {
    level: rng.normal(
      size=(-(-IMAGE[0] // 2**level), -(-IMAGE[1] // 2**level), channels)
    ).astype(np.float32)
    for level in levels
  }


def make_rois(count, seed=0):
  rng = np.random.default_rng(seed)
  center = rng.uniform(0, 1, (count, 2)) * IMAGE
  half = np.exp(rng.uniform(np.log(2), np.log(50), (count, 2)))
  rois = np.concatenate([center - half, center + half], 1)
  return np.clip(rois, 0, IMAGE + IMAGE).astype(np.float32)


def naive_level(roi, levels, canonical_size, canonical_level):
  side = ((roi[2] - roi[0]) * (roi[3] - roi[1])) ** 0.5
  if side == 0:
    return min(levels)
  level = int(np.floor(np.log2(side / canonical_size))) + canonical_level
  return min(max(level, min(levels)), max(levels))


def naive_sample(feature, y, x):
  """Bilinear value of [h, w, C] at a position in units of its pixels."""
  h, w, _ = feature.shape
  y, x = min(max(y - 0.5, 0), h - 1), min(max(x - 0.5, 0), w - 1)
  y0, x0 = int(y), int(x)
  value = 0
  for i, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
    for j, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
      if wy > 0 and wx > 0:
        value = value + wy * wx * feature[i, j]
  return value


def naive_align(
  features, rois, size, samples, canonical_size=224.0, canonical_level=4
):
  """ROIAlign in float64, sample by sample."""
  channels = next(iter(features.values())).shape[-1]
  out = np.zeros((len(rois), size, size, channels))
  for r, roi in enumerate(rois.astype(np.float64)):
    level = naive_level(roi, features, canonical_size, canonical_level)
    feature = features[level].astype(np.float64)
    bin_h, bin_w = (roi[2:] - roi[:2]) / size
    for i, j, a, b in np.ndindex(size, size, samples, samples):
      y = roi[0] + (i + (a + 0.5) / samples) * bin_h
      x = roi[1] + (j + (b + 0.5) / samples) * bin_w
      value = naive_sample(feature, y / 2**level, x / 2**level)
      out[r, i, j] += value / samples**2
  return out


@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize(("size", "samples"), [(7, 1), (2, 2), (1, 3)])
def test_matches_float64(method, size, samples):
  features, rois = make_features(), make_rois(30)
  levels = {naive_level(roi, features, 32.0, 4) for roi in rois}
  assert levels == {3, 4, 5}
  out = align(features, rois, size, samples, canonical_size=32.0, method=method)
  expected = naive_align(features, rois, size, samples, canonical_size=32.0)
  np.testing.assert_allclose(out, expected, atol=1e-5)


def torchvision_sample(feature, y, x):
  """As `naive_sample`, with pixel i at i and 0 beyond a pixel's distance."""
  h, w, channels = feature.shape
  if not (-1 <= y <= h and -1 <= x <= w):
    return np.zeros(channels)
  return naive_sample(feature, y + 0.5, x + 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_torchvision_pixels_match_float64(method):
  features = make_features()
  # Rois of less than a cell are widened, at the border beyond the map.
  corner = [[71, 103, 72, 104], [40, 103.9, 41, 104], [70, 0, 70, 0]]
  rois = np.concatenate([make_rois(30), np.float32(corner)])
  size = samples = 2
  expected = np.zeros((len(rois), size, size, 3))
  for r, roi in enumerate(rois.astype(np.float64)):
    level = naive_level(roi, features, 32.0, 4)
    start = roi[:2] / 2**level
    sides = np.maximum((roi[2:] - roi[:2]) / 2**level, 1)
    for i, j, a, b in np.ndindex(size, size, samples, samples):
      place = np.array([i + (a + 0.5) / samples, j + (b + 0.5) / samples])
      value = torchvision_sample(
        features[level].astype(np.float64), *(start + sides * place / size)
      )
      expected[r, i, j] += value / samples**2
  # Some of the last roi's samples are off the map, and not all.
  assert (expected[-1, -1] == 0).all()
  assert (expected[-1, 0] != 0).all()
  out = align(
    features,
    rois,
    size,
    samples,
    canonical_size=32.0,
    half_pixel=False,
    method=method,
  )
  np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_known_ramp(method):
  # The map of stride 8 holds the x coordinate of its pixels' centres, so that
  # inside the outer centres a sample is its own x coordinate.
  ramp = np.broadcast_to((np.arange(13) * 8.0 + 4)[:, None], (9, 13, 1))
  features = {3: np.float32(ramp)}
  rois = np.float32([[8, 16, 40, 48], [8, 0, 40, 8]])
  out = align(features, rois, output_size=4, method=method)
  np.testing.assert_allclose(out[0, 0, :, 0], [20, 28, 36, 44], rtol=1e-6)
  # Samples at 1, 3, 5 and 7; left of the first centre lies the border's value.
  np.testing.assert_allclose(out[1, 2, :, 0], [4, 4, 5, 7], rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
  ("side", "level"),
  [(1, 2), (55.9, 2), (56, 2), (111.9, 2), (112, 3), (224, 4), (447.9, 4)]
  + [(448, 5), (896, 6), (4000, 6)],
)
def test_level_of_a_square(method, side, level):
  features = {lv: np.full((4, 4, 1), lv, np.float32) for lv in range(2, 7)}
  rois = np.float32([[0, 0, side, side], [8, 8, 8 + 2 * side, 8 + side / 2]])
  out = align(features, rois, output_size=1, method=method)
  np.testing.assert_allclose(out[:, 0, 0, 0], [level, level])


def test_canonical_level():
  features = {lv: np.full((4, 4, 1), lv, np.float32) for lv in range(2, 7)}
  roi = np.float32([[0, 0, 64, 64]])
  for canonical_level in (3, 4, 5):
    out = align(
      features,
      roi,
      canonical_size=64.0,
      canonical_level=canonical_level,
    )
    np.testing.assert_allclose(out, canonical_level)


@pytest.mark.parametrize("samples", [1, 2])
def test_methods_agree(samples):
  # More rois than "matmul" takes at once, and a remainder.
  features, rois = make_features(channels=8), make_rois(150, seed=1)
  one, other = (
    align(features, rois, 7, samples, canonical_size=32.0, method=method)
    for method in METHODS
  )
  np.testing.assert_allclose(one, other, atol=1e-5)


def test_methods_agree_in_bfloat16():
  features = {
    level: jnp.asarray(x, jnp.bfloat16) for level, x in make_features().items()
  }
  expected = naive_align(
    {level: np.asarray(x, np.float64) for level, x in features.items()},
    make_rois(20),
    7,
    1,
    canonical_size=32.0,
  )
  for method in METHODS:
    out = align(features, make_rois(20), canonical_size=32.0, method=method)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(out), expected, atol=0.04)


@pytest.mark.parametrize("method", METHODS)
def test_degenerate_rois_are_finite(method):
  rois = np.float32(
    [[0, 0, 0, 0], [5, 5, 5, 9], [9, 9, 3, 3], [-50, -50, 500, 500]]
  )
  out = align(make_features(), rois, canonical_size=32.0, method=method)
  assert np.isfinite(out).all()


@functools.partial(jax.jit, static_argnames=("method", "samples"))
def projection(features, rois, weights, method, samples):
  out = ops.multilevel_roi_align(
    features,
    rois,
    samples_per_bin=samples,
    canonical_size=32.0,
    method=method,
  )
  return jnp.sum(out * weights)


@pytest.mark.parametrize("samples", [1, 2])
def test_gradients(samples):
  features, rois = make_features(), make_rois(12)
  rng = np.random.default_rng(2)
  weights = rng.normal(size=(12, 7, 7, 3)).astype(np.float32)
  gradients = {
    method: jax.grad(projection, (0, 1))(
      features, rois, weights, method, samples
    )
    for method in (*METHODS, "auto")
  }
  reference, _ = gradients["gather"]
  for by_feature, by_roi in gradients.values():
    assert not by_roi.any()
    for level, gradient in by_feature.items():
      np.testing.assert_allclose(gradient, reference[level], atol=1e-4)
  # ROIAlign is linear in the features: differences are exact at any step.
  for level, feature in features.items():
    for _ in range(5):
      place = tuple(rng.integers(0, n) for n in feature.shape)
      moved = {lv: f.astype(np.float64) for lv, f in features.items()}
      moved[level] = np.zeros_like(moved[level])
      moved[level][place] = 1
      still = {lv: np.zeros_like(f) for lv, f in moved.items()}
      step = still | {level: moved[level]}
      change = naive_align(step, rois, 7, samples, canonical_size=32.0)
      np.testing.assert_allclose(
        reference[level][place], (change * weights).sum(), atol=1e-4
      )


def test_rejects_gaps_between_levels():
  features = make_features((3, 5))
  with pytest.raises(ValueError, match=r"levels \[3, 5\].*without gaps"):
    ops.multilevel_roi_align(features, make_rois(2))


def test_rejects_unknown_methods():
  with pytest.raises(ValueError, match=r"method='einsum'.*matmul"):
    ops.multilevel_roi_align(make_features(), make_rois(2), method="einsum")
