"""Polygons become pixels, by one rule.

A pixel belongs to a polygon if its centre lies inside by the even-odd rule:
where a polygon crosses itself, what it encloses twice is a hole, as in
pycocotools and OpenCV. None of the formats that are imported names another
rule. Centres on an edge belong to the polygon below or to the right of it, so
that neighbours with a common edge share no pixel and leave none out.
"""

import numpy as np

_ELLIPSE_CORNERS = 360


def fill(
  points: np.ndarray, size: tuple[int, int]
) -> tuple[tuple[slice, slice], np.ndarray]:
  """Draws a polygon.

  Args:
    points: float64 [n, 2], corners yx in pixels, continuous; pixel (0, 0)
      covers 0 to 1. May lie outside the image.
    size: height and width of the image.

  Returns:
    The rows and columns of the image that it may reach, and which of these
    pixels belong to it, bool.
  """
  top, left = low = _first(points.min(0), np.zeros(2), np.array(size))
  bottom, right = _first(points.max(0), low, np.array(size))
  height, width = bottom - top, right - left
  # Edges from their upper end, so that polygons that share one agree on it.
  pairs = np.stack([points, np.roll(points, -1, 0)], 1)
  order = np.argsort(pairs[:, :, 0], 1, kind="stable")
  pairs = np.take_along_axis(pairs, order[..., None], 1)
  (y0, x0), (y1, x1) = pairs[:, 0].T, pairs[:, 1].T
  # One crossing for each edge and each row whose centres it passes.
  first, last = _first(y0, top, bottom), _first(y1, top, bottom)
  counts = last - first
  edge = np.repeat(np.arange(len(points)), counts)
  row = np.arange(counts.sum()) - (np.cumsum(counts) - counts - first)[edge]
  slope = (x1 - x0)[edge] / (y1 - y0)[edge]
  x = x0[edge] + (row + 0.5 - y0[edge]) * slope
  column = _first(x, left, right) - left
  crossings = np.bincount(
    (row - top) * (width + 1) + column, minlength=height * (width + 1)
  ).reshape(height, width + 1)
  inside = np.cumsum(crossings, 1)[:, :-1] % 2 == 1
  return (slice(top, bottom), slice(left, right)), inside


def _first(place, low, high) -> np.ndarray:
  """The first pixels whose centres lie at a place or beyond, within limits."""
  return np.clip(np.ceil(place - 0.5), low, high).astype(int)


def area(points: np.ndarray) -> float:
  """Area of a polygon [n, 2] that does not cross itself."""
  y, x = points.T
  return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def rectangle(corners: np.ndarray) -> np.ndarray:
  """The polygon [4, 2] of a box yxyx."""
  return corners[[[0, 1], [0, 3], [2, 3], [2, 1]]]


def ellipse(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
  """A polygon [n, 2] that differs from an ellipse by 1/25000 of its size.

  Args:
    centre: yx.
    radii: along y and x.
  """
  angles = np.arange(_ELLIPSE_CORNERS) * (2 * np.pi / _ELLIPSE_CORNERS)
  return centre + radii * np.stack([np.sin(angles), np.cos(angles)], 1)


def rotate(points: np.ndarray, degrees: float, pivot: np.ndarray) -> np.ndarray:
  """Turns points [n, 2] yx clockwise, as seen on the image.

  Args:
    points: to turn.
    degrees: any number.
    pivot: yx of the point that stays.
  """
  angle = np.deg2rad(degrees)
  cos, sin = np.cos(angle), np.sin(angle)
  return pivot + (points - pivot) @ np.array([[cos, -sin], [sin, cos]])
