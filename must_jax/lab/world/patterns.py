"""Procedural patterns: weights in [0, 1] that mix two colours.

Coordinates are in periods; z is up on solids and walls, and away on floors.
Waves are parabolas and cubics, not sines: see `render` on exactness.
"""

from collections.abc import Callable

import numpy as np

Pattern = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def wave(x: np.ndarray) -> np.ndarray:
  """A smooth wave of period 1 between 0 (at integers) and 1 (between).

  Args:
    x: float, of any shape, which the wave has, too.
  """
  ramp = 1.0 - np.abs(2.0 * (x - np.floor(x)) - 1.0)
  return ramp * ramp * (3.0 - 2.0 * ramp)


def clouds(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
  """Soft irregular blotches: three warped waves.

  Args:
    x: float, of any shape; likewise y and z.
    y: see there.
    z: see there.

  Returns:
    Float 0..1 of that shape.
  """
  x, y = x + 0.43 * z, y - 0.61 * z
  first = wave(0.31 * x + 0.9 * wave(0.23 * y + 0.4))
  second = wave(0.47 * y + 0.8 * wave(0.37 * x))
  third = wave(0.83 * (x + y) + 1.2 * first)
  return 0.4 * first + 0.35 * second + 0.25 * third


def _plain(x, y, z):
  return np.zeros_like(x)


def _checker(x, y, z):
  cell = np.floor(x + 0.37) + np.floor(y + 0.41) + np.floor(z + 0.29)
  half = 0.5 * cell
  return 2.0 * (half - np.floor(half))


def _stripes(x, y, z):
  return _square(z + 0.3 * x)


def _rings(x, y, z):
  return _square(1.4 * z)


def _dots(x, y, z):
  square = np.zeros_like(x)
  for axis in (x + 0.37, y + 0.41, z + 0.29):
    offset = axis - np.floor(axis) - 0.5
    square = square + offset * offset
  return (square < 0.16).astype(x.dtype)


def _gradient(x, y, z):
  return wave(0.21 * z + 0.13 * x + 0.12)


def _brick(x, y, z):
  row = np.floor(2.0 * z)
  column = x + y + 0.5 * (row - 2.0 * np.floor(0.5 * row))
  mortar = (column - np.floor(column) < 0.08) | (2.0 * z - row < 0.14)
  tone = wave(0.37 * np.floor(column) + 0.61 * row)
  return np.where(mortar, 1.0, 0.3 * tone)


def _planks(x, y, z):
  column = np.floor(2.0 * (x + y))
  gap = 2.0 * (x + y) - column < 0.08
  grain = wave(2.2 * z + 0.71 * column + 0.5 * wave(3.0 * x))
  tone = wave(0.377 * column)
  return np.where(gap, 1.0, 0.3 * tone + 0.25 * grain)


def _zigzag(x, y, z):
  swing = x + y - np.floor(x + y) - 0.5
  return _square(z + 0.8 * np.abs(swing))


def _marble(x, y, z):
  vein = wave(0.5 * (x + z) + 1.6 * clouds(x, y, z))
  return vein * vein


def _square(x):
  return (x - np.floor(x) < 0.5).astype(x.dtype)


PATTERNS: dict[str, Pattern] = {
  "plain": _plain,
  "checker": _checker,
  "stripes": _stripes,
  "rings": _rings,
  "dots": _dots,
  "gradient": _gradient,
  "clouds": clouds,
  "brick": _brick,
  "planks": _planks,
  "zigzag": _zigzag,
  "marble": _marble,
}
