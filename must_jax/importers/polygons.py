"""Polygons become pixels, by one rule, and pixels polygons.

A pixel belongs to a polygon if its centre lies inside by the even-odd rule:
where a polygon crosses itself, what it encloses twice is a hole, as in
pycocotools and OpenCV. None of the formats that are imported names another
rule. Centres on an edge belong to the polygon below or to the right of it, so
that neighbours with a common edge share no pixel and leave none out.
"""

from collections.abc import Iterator

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


def outlines(pixels: np.ndarray) -> Iterator[np.ndarray]:
  """The polygons that `fill` makes these pixels of.

  They follow the edges of pixels, so that any rule of centres gives the same.
  Holes are joined by a line that goes there and back.

  Args:
    pixels: bool [h, w].

  Returns:
    For each part whose pixels share sides: its corners [n, 2], yx in pixels.
  """
  from scipy import ndimage

  parts, _ = ndimage.label(pixels)
  for k, window in enumerate(ndimage.find_objects(parts), start=1):
    corner = [side.start for side in window]
    yield np.array(_outline(parts[window] == k)) + corner


# Sides of a pixel, clockwise: what lies beyond, and its ends.
_SIDES = (
  ((-1, 0), (0, 0), (0, 1)),
  ((0, 1), (0, 1), (1, 1)),
  ((1, 0), (1, 1), (1, 0)),
  ((0, -1), (1, 0), (0, 0)),
)


def _outline(part: np.ndarray) -> list[tuple[int, int]]:
  """Corners of the rings around a part, which meet in the first corner."""
  padded = np.pad(part, 1)
  ends: dict[tuple[int, int], list[tuple[int, int]]] = {}
  for beyond, start, end in _SIDES:
    inside = np.roll(padded, np.negative(beyond), (0, 1))[1:-1, 1:-1]
    for row, column in np.argwhere(part & ~inside).tolist():
      place = row + start[0], column + start[1]
      ends.setdefault(place, []).append((row + end[0], column + end[1]))
  corners: list[tuple[int, int]] = []
  while ends:
    place = next(iter(ends))
    ring = [place]
    while place in ends:
      after = ends[place].pop()
      if not ends[place]:
        del ends[place]
      if len(ring) > 1 and _in_line(*ring[-2:], after):
        ring.pop()
      ring.append(after)
      place = after
    corners += ring + corners[:1]
  return corners


def _in_line(*places: tuple[int, int]) -> bool:
  return any(len({place[axis] for place in places}) == 1 for axis in (0, 1))


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
