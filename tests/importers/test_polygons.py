"""Polygons against exact arithmetic, pixel by pixel."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from must_jax.importers import polygons

SIZE = (7, 9)
# Quarters of a pixel: many lie on centres of pixels.
POINT = st.tuples(st.integers(-12, 40), st.integers(-12, 48)).map(
  lambda p: (Fraction(p[0], 4), Fraction(p[1], 4))
)


def draw(points, size=SIZE):
  pixels = np.zeros(size, bool)
  window, inside = polygons.fill(np.array(points, np.float64), size)
  pixels[window] = inside
  return pixels


def is_inside(points, y, x):
  """Even-odd rule: edges left of a point, half-open at their lower ends."""
  inside = False
  for (y0, x0), (y1, x1) in zip(points, points[1:] + points[:1], strict=True):
    if (y0 <= y) != (y1 <= y):
      inside ^= x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x
  return inside


@given(st.lists(POINT, min_size=3, max_size=7))
def test_pixels_are_those_whose_centres_lie_inside(points):
  half = Fraction(1, 2)
  expected = [
    [is_inside(points, r + half, c + half) for c in range(SIZE[1])]
    for r in range(SIZE[0])
  ]
  np.testing.assert_array_equal(draw(points), expected)


@given(st.lists(POINT, min_size=4, max_size=4), st.booleans())
def test_neighbours_share_no_pixel_and_leave_none_out(points, turn):
  a, b, c, d = points
  # Drawn in opposite directions, as two people would.
  halves = draw([a, b, c]), draw([d, c, a] if turn else [a, c, d])
  np.testing.assert_array_equal(halves[0] ^ halves[1], draw(points))
  whole = [(0, 0), (0, SIZE[1]), (SIZE[0], SIZE[1]), (SIZE[0], 0)]
  cut = draw([whole[0], whole[1], whole[2]]), draw([*whole[2:], whole[0]])
  assert not (cut[0] & cut[1]).any()
  assert (cut[0] | cut[1]).all()


def test_what_is_enclosed_twice_is_a_hole():
  outer = [(0, 0), (0, 6), (6, 6), (6, 0), (0, 0)]
  inner = [(2, 2), (2, 4), (4, 4), (4, 2), (2, 2)]
  pixels = draw(outer + inner)
  assert not pixels[2:4, 2:4].any()
  assert pixels.sum() == 36 - 4


def test_large_polygons_cost_no_more_than_their_pixels():
  far = 1e9
  assert draw([(-far, -far), (-far, far), (far, far), (far, -far)]).all()
  assert not draw([(far, far), (far, 2 * far), (2 * far, far)]).any()


def test_areas_and_turns():
  box = polygons.rectangle(np.array([1.0, 2.0, 4.0, 8.0]))
  assert polygons.area(box) == 18
  turned = polygons.rotate(box, 90, box[0])
  # Clockwise about the top left corner: what was right of it is below it.
  np.testing.assert_allclose(turned[1], [1 + 6, 2], atol=1e-12)
  np.testing.assert_allclose(turned[3], [1, 2 - 3], atol=1e-12)
  centre, radii = np.array([30.0, 50.0]), np.array([20.0, 40.0])
  pixels = draw(polygons.ellipse(centre, radii), (60, 100))
  y, x = np.mgrid[:60, :100] + 0.5
  exact = ((y - 30) / 20) ** 2 + ((x - 50) / 40) ** 2
  assert pixels[exact < 0.999].all()
  assert not pixels[exact > 1].any()
