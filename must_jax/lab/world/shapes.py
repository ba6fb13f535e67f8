"""Convex unit shapes, and the interval of a ray's parameter inside them.

A shape is at most one quadric cut by slabs, in its own frame. A ray's stay
inside a convex shape is one interval, so that one routine serves balls, cones
and houses.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

Vector = tuple[float, float, float]
Component = float | np.ndarray
INF = float("inf")


@dataclasses.dataclass(frozen=True)
class Shape:
  """A convex unit shape.

  Attributes:
    quadric: (a, b, c) of x^2 + y^2 + a z^2 + 2 b z + c <= 0, or None.
    slabs: (normal, low, high) of low <= normal . x <= high.
    low, high: corners of a box around the shape.
  """

  quadric: Vector | None
  slabs: tuple[tuple[Vector, float, float], ...]
  low: Vector
  high: Vector


AXES = _X, _Y, _Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
_CUBE = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
_STANDING = ((-1.0, -1.0, 0.0), (1.0, 1.0, 1.0))

BALL = Shape((1.0, 0.0, -1.0), (), *_CUBE)
DOME = Shape((1.0, 0.0, -1.0), ((_Z, 0.0, INF),), *_STANDING)
BOX = Shape(None, ((_X, -1.0, 1.0), (_Y, -1.0, 1.0), (_Z, -1.0, 1.0)), *_CUBE)
PYRAMID = Shape(
  None,
  (
    ((1.0, 0.0, 1.0), -INF, 1.0),
    ((-1.0, 0.0, 1.0), -INF, 1.0),
    ((0.0, 1.0, 1.0), -INF, 1.0),
    ((0.0, -1.0, 1.0), -INF, 1.0),
    (_Z, 0.0, INF),
  ),
  *_STANDING,
)
ROOF = Shape(  # a ridge along y
  None,
  (
    ((1.0, 0.0, 1.0), -INF, 1.0),
    ((-1.0, 0.0, 1.0), -INF, 1.0),
    (_Y, -1.0, 1.0),
    (_Z, 0.0, INF),
  ),
  *_STANDING,
)
WEDGE = Shape(  # a right triangle in x, z
  None,
  (
    (_X, 0.0, INF),
    (_Z, 0.0, INF),
    ((1.0, 0.0, 1.0), -INF, 1.0),
    (_Y, -1.0, 1.0),
  ),
  (0.0, -1.0, 0.0),
  (1.0, 1.0, 1.0),
)
OCTAHEDRON = Shape(
  None,
  (
    ((1.0, 1.0, 1.0), -1.0, 1.0),
    ((1.0, -1.0, 1.0), -1.0, 1.0),
    ((-1.0, 1.0, 1.0), -1.0, 1.0),
    ((-1.0, -1.0, 1.0), -1.0, 1.0),
  ),
  *_CUBE,
)
_S = 0.75**0.5
HEXAGON = Shape(  # a hexagonal prism of circumradius 1
  None,
  (
    (_Y, -_S, _S),
    ((_S, 0.5, 0.0), -_S, _S),
    ((_S, -0.5, 0.0), -_S, _S),
    (_Z, 0.0, 1.0),
  ),
  *_STANDING,
)


@functools.cache
def frustum(top: float) -> Shape:
  """A cylinder of radius 1 and height 1 that narrows to `top` <= 1."""
  k = 1.0 - top
  return Shape((-k * k, k, -1.0), ((_Z, 0.0, 1.0),), *_STANDING)


def meet(
  shape: Shape,
  rays: Callable[[Vector], tuple[Component, Component]],
) -> tuple[np.ndarray, np.ndarray]:
  """Ray parameters between which rays are inside a shape.

  Args:
    shape: the shape.
    rays: the rays' origins and directions along a vector of the shape's frame;
      a number where all rays have it in common.

  Returns:
    (enter, leave) [...], as the rays are; inside where enter < leave; NaN where
    a quadric is missed.
  """
  enter: Any = -INF  # numbers until the first surface is met
  leave: Any = INF
  if shape.quadric is not None:
    a, b, c = shape.quadric
    (ox, dx), (oy, dy), (oz, dz) = (rays(axis) for axis in AXES)
    # A t^2 + 2 B t + C <= 0.
    square, slope, offset = (
      dx * dx + dy * dy,
      ox * dx + oy * dy,
      ox * ox + oy * oy,
    )
    if a or b:
      square = square + a * (dz * dz)
      slope = slope + dz * (a * oz + b)
      offset = offset + oz * (a * oz + 2.0 * b)
    offset = offset + c
    square = square + 1e-30  # rays along a cylinder
    root = np.sqrt(slope * slope - square * offset)
    enter, leave = (-slope - root) / square, (root - slope) / square
    if a < 0:
      # A ray steeper than the cone's side passes through both of its halves,
      # mirrored at the tip; only the lower one, where it widens, is solid.
      steep, down = square < 0, dz < 0
      enter, leave = (
        np.where(steep, np.where(down, enter, -INF), enter),
        np.where(steep, np.where(down, INF, leave), leave),
      )
  for normal, low, high in shape.slabs:
    offset, slope = rays(normal)
    # Parallel rays: a huge number of the right sign instead of 0 / 0.
    inverse = 1.0 / (slope + 1e-30)
    first, second = (low - offset) * inverse, (high - offset) * inverse
    enter = np.maximum(enter, np.minimum(first, second))
    leave = np.minimum(leave, np.maximum(first, second))
  return enter, leave


def gradient(
  shape: Shape, x: np.ndarray, y: np.ndarray, z: np.ndarray
) -> np.ndarray:
  """Outward direction [3, P], of any length, at points on the surface."""
  directions: list[tuple[Component, ...]] = []
  excess = []
  if shape.quadric is not None:
    a, b, c = shape.quadric
    directions.append((x, y, a * z + b))
    excess.append(0.5 * (x * x + y * y + z * (a * z + 2.0 * b) + c))
  for normal, low, high in shape.slabs:
    along = normal[0] * x + normal[1] * y + normal[2] * z
    for sign, beyond in ((1.0, along - high), (-1.0, low - along)):
      directions.append(tuple(sign * n for n in normal))
      excess.append(beyond)
  # Points are inside all surfaces but the one they lie on.
  if len(excess) == 1:
    return np.stack(directions[0])
  on = np.argmax(np.stack(excess), axis=0)
  out = np.empty((3, len(x)))
  for c in range(3):
    if shape.quadric is None:
      out[c] = np.array([d[c] for d in directions])[on]
    else:
      flat = np.array([0.0] + [d[c] for d in directions[1:]])[on]
      out[c] = np.where(on == 0, directions[0][c], flat)
  return out
