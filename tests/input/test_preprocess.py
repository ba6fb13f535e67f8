import numpy as np
import pytest

from must_jax.input.preprocess import RULES, layout, prepare, resample


@pytest.mark.parametrize(
  "rule, image_size, size, expected",
  [
    # What the published transforms give (RECIPE 4; run with the originals).
    ("midas_upper_bound", (384, 384), (480, 640), (288, 384)),
    ("midas_upper_bound", (384, 384), (640, 480), (384, 288)),
    ("midas_upper_bound", (384, 384), (375, 500), (288, 384)),
    ("midas_upper_bound", (256, 256), (100, 1000), (32, 256)),
    ("midas_minimal", (384, 384), (480, 640), (384, 512)),
    ("midas_minimal", (384, 384), (375, 500), (384, 512)),
    ("shortest_side", (800, 1333), (480, 640), (800, 1066)),
    ("shortest_side", (800, 1333), (427, 640), (800, 1199)),
    ("shortest_side", (800, 1333), (300, 1000), (399, 1333)),
  ],
)
def test_size(rule, image_size, size, expected):
  assert layout(size, RULES[rule], image_size).content == expected


def reference(line, new, cubic):
  """One line of numbers, in float64 and one output at a time."""
  out = []
  for j in range(new):
    x = (j + 0.5) * len(line) / new - 0.5
    total = 0.0
    for i in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
      d = abs(x - i)
      if not cubic:
        w = max(0.0, 1 - d)
      elif d <= 1:
        w = 1.25 * d**3 - 2.25 * d**2 + 1
      elif d < 2:
        w = -0.75 * d**3 + 3.75 * d**2 - 6 * d + 3
      else:
        w = 0.0
      total += w * line[min(max(i, 0), len(line) - 1)]
    out.append(total)
  return np.array(out)


@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize("new", [5, 9, 13, 30])
def test_interpolation(cubic, new):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (13, 4, 3), np.uint8)
  interpolation = "bicubic" if cubic else "bilinear"
  got = resample(image, (new, 4), interpolation)
  for column in range(4):
    for channel in range(3):
      np.testing.assert_allclose(
        got[:, column, channel],
        reference(image[:, column, channel].astype(float), new, cubic),
        rtol=1e-5,
        atol=1e-3,
      )
  turned = resample(image.transpose(1, 0, 2), (4, new), interpolation)
  np.testing.assert_allclose(turned.transpose(1, 0, 2), got, atol=1e-4)


def test_padding():
  rule = RULES["shortest_side"]
  image = np.full((50, 100, 3), 7, np.uint8)
  placed = layout((50, 100), rule, (40, 90))
  canvas = prepare(image, rule, placed, np.array([1.0, 2.0, 3.0]))
  assert placed.content == (40, 80)
  assert canvas.shape == (64, 96, 3)
  assert (canvas[:40, :80] == 7).all()
  assert (canvas[40:] == [1, 2, 3]).all()
  assert (canvas[:, 80:] == [1, 2, 3]).all()
