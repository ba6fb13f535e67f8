"""The kinds of objects: each draws its parts from a few random proportions.

Parts stand on z = 0 of the object's frame and are about 1 high; their centre
is the z axis. `slot` chooses among the object's materials. Parts touch or
overlap, but no two faces lie in one plane where both are seen: which one is in
front would be up to rounding.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from must_jax.lab.world import shapes
from must_jax.lab.world.scene import Rotation
from must_jax.lab.world.shapes import Shape, Vector

T = TypeVar("T")


class Draw:
  """Random choices that are the same on every machine and Python.

  Only `random.Random.random` is promised to stay the same across versions.
  """

  def __init__(self, seed: str):
    self._random = random.Random(seed).random

  def uniform(self, low: float, high: float) -> float:
    """A number between two."""
    return low + (high - low) * self._random()

  def integer(self, low: int, high: int) -> int:
    """An integer between two, both included."""
    return low + int(self._random() * (high - low + 1))

  def chance(self, probability: float) -> bool:
    """True with a probability."""
    return self._random() < probability

  def choice(self, options: Sequence[T]) -> T:
    """One of several."""
    return options[int(self._random() * len(options))]

  def turn(self, limit: float = 1.0) -> tuple[float, float]:
    """(cos, sin) of an angle within +-90 degrees, or less if limit < 1."""
    t = self.uniform(-limit, limit)
    return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)

  def full_turn(self, limit: float = 1.0) -> tuple[float, float]:
    """Like `turn`, or half a turn from there: any angle if limit is 1."""
    cos, sin = self.turn(limit)
    return (cos, sin) if self.chance(0.5) else (-cos, -sin)


@dataclasses.dataclass(frozen=True)
class Part:
  """A shape within an object; see `scene.Solid` for the attributes."""

  shape: Shape
  position: Vector
  scale: Vector
  slot: int = 0
  rotation: Rotation = shapes.AXES


# Rotations that lay a standing shape (along z) down along x or y.
ALONG_X: Rotation = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0))
ALONG_Y: Rotation = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))


def box(center: Vector, half: Vector, slot: int = 0) -> Part:
  """A cuboid."""
  return Part(shapes.BOX, center, half, slot)


def ball(center: Vector, radius: float, slot: int = 0) -> Part:
  """A ball."""
  return Part(shapes.BALL, center, (radius, radius, radius), slot)


def rod(
  base: Vector,
  radius: float,
  length: float,
  slot: int = 0,
  top: float = 1.0,
  rotation: Rotation = shapes.AXES,
) -> Part:
  """A cylinder, or a cone that narrows to `top` of its radius."""
  scale = (radius, radius, length)
  return Part(shapes.frustum(top), base, scale, slot, rotation)


def _legs(x: float, y: float, height: float, thick: float, slot: int):
  return [
    box(
      (sx * (x - thick), sy * (y - thick), height / 2),
      (thick, thick, height / 2),
      slot,
    )
    for sx in (-1, 1)
    for sy in (-1, 1)
  ]


def _ball(d: Draw):
  return [ball((0, 0, 0.5), 0.5)]


def _box(d: Draw):
  x, y, z = d.uniform(0.34, 0.5), d.uniform(0.34, 0.5), d.uniform(0.34, 0.5)
  return [box((0, 0, z), (x, y, z))]


def _barrel(d: Draw):
  radius = d.uniform(0.3, 0.36)
  return [
    rod((0, 0, 0), radius, 1.0),
    rod((0, 0, 0.22), radius + 0.03, 0.07, 1),
    rod((0, 0, 0.71), radius + 0.03, 0.07, 1),
  ]


def _cone(d: Draw):
  base = d.uniform(0.4, 0.48)
  return [
    box((0, 0, 0.04), (base, base, 0.04), 1),
    rod((0, 0, 0.08), base * 0.82, 0.92, top=0.12),
  ]


def _table(d: Draw):
  x, y, z = d.uniform(0.5, 0.7), d.uniform(0.4, 0.5), d.uniform(0.65, 0.8)
  top = box((0, 0, z - 0.05), (x, y, 0.05))
  return [top, *_legs(x, y, z - 0.1, 0.05, 1)]


def _mushroom(d: Draw):
  cap, stem = d.uniform(0.42, 0.55), d.uniform(0.13, 0.18)
  rise = d.uniform(0.5, 0.6)
  return [
    rod((0, 0, 0), stem, rise, 1, top=0.8),
    Part(shapes.DOME, (0, 0, rise), (cap, cap, 1 - rise)),
  ]


def _arch(d: Draw):
  x, y = d.uniform(0.45, 0.6), d.uniform(0.14, 0.2)
  post = d.uniform(0.11, 0.16)
  lintel = d.uniform(0.1, 0.14)
  high = 1 - 2 * lintel
  return [
    box((post - x, 0, high / 2), (post, y, high / 2)),
    box((x - post, 0, high / 2), (post, y, high / 2)),
    box((0, 0, 1 - lintel), (x + 0.06, y + 0.04, lintel), 1),
  ]


def _house(d: Draw):
  x, y, z = d.uniform(0.36, 0.45), d.uniform(0.4, 0.6), d.uniform(0.5, 0.6)
  return [
    box((0, 0, z / 2), (x, y, z / 2)),
    Part(shapes.ROOF, (0, 0, z), (x + 0.1, y + 0.06, 1 - z), 1),
    box((0, -y, 0.18), (0.1, 0.012, 0.18), 1),
    box((0.5 * x, y, 0.3), (0.1, 0.012, 0.1), 1),
    box((-0.5 * x, y, 0.3), (0.1, 0.012, 0.1), 1),
  ]


def _pyramid(d: Draw):
  base = d.uniform(0.5, 0.6)
  return [Part(shapes.PYRAMID, (0, 0, 0), (base, base, 0.9))]


def _gem(d: Draw):
  wide = d.uniform(0.38, 0.46)
  return [
    rod((0, 0, 0), 0.22, 0.1, 1, top=0.7),
    Part(shapes.OCTAHEDRON, (0, 0, 0.55), (wide, wide, 0.5)),
  ]


def _dumbbell(d: Draw):
  radius, reach = d.uniform(0.26, 0.32), d.uniform(0.42, 0.5)
  return [
    ball((-reach, 0, radius), radius),
    ball((reach, 0, radius), radius),
    rod((-reach, 0, radius), 0.09, 2 * reach, 1, rotation=ALONG_X),
  ]


def _lamp(d: Draw):
  shade, foot = d.uniform(0.26, 0.34), d.uniform(0.2, 0.26)
  return [
    rod((0, 0, 0), foot, 0.06, 1),
    rod((0, 0, 0.05), 0.035, 0.65, 1),
    rod((0, 0, 0.62), shade, 0.38, top=0.5),
  ]


def _tower(d: Draw):
  base = d.uniform(0.2, 0.26)
  return [
    rod((0, 0, 0), base, 0.66, top=0.85),
    rod((0, 0, 0.62), base + 0.05, 0.1),
    rod((0, 0, 0.72), base + 0.02, 0.4, 1, top=0.0),
  ]


def _chair(d: Draw):
  x, y = d.uniform(0.24, 0.3), d.uniform(0.24, 0.28)
  seat = d.uniform(0.42, 0.48)
  return [
    box((0, 0, seat), (x, y, 0.045)),
    box((0, y - 0.04, seat + 0.315), (x, 0.04, 0.27)),
    *_legs(x, y, seat - 0.045, 0.035, 1),
  ]


def _tree(d: Draw):
  wide = d.uniform(0.3, 0.38)
  return [
    rod((0, 0, 0), 0.07, 0.24, 1),
    rod((0, 0, 0.2), wide, 0.5, top=0.1),
    rod((0, 0, 0.48), wide * 0.78, 0.42, top=0.08),
    rod((0, 0, 0.74), wide * 0.55, 0.36, top=0.0),
  ]


def _snowman(d: Draw):
  low, mid, top = d.uniform(0.27, 0.31), d.uniform(0.19, 0.22), 0.15
  return [
    ball((0, 0, low), low),
    ball((0, 0, 1.75 * low + mid * 0.8), mid),
    ball((0, 0, 1.75 * low + 1.6 * mid + 0.8 * top), top, 1),
  ]


def _rocket(d: Draw):
  radius, fin = d.uniform(0.15, 0.19), d.uniform(0.16, 0.22)
  flip: Rotation = ((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
  quarter: Rotation = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
  back: Rotation = ((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
  out = 0.9 * radius
  scale = (fin, 0.03, 0.4)
  return [
    rod((0, 0, 0.08), radius, 0.62),
    rod((0, 0, 0.7), radius, 0.36, 1, top=0.05),
    Part(shapes.WEDGE, (out, 0, 0), scale, 1),
    Part(shapes.WEDGE, (-out, 0, 0), scale, 1, flip),
    Part(shapes.WEDGE, (0, out, 0), scale, 1, quarter),
    Part(shapes.WEDGE, (0, -out, 0), scale, 1, back),
  ]


def _bottle(d: Draw):
  radius = d.uniform(0.19, 0.24)
  return [
    rod((0, 0, 0), radius, 0.55),
    rod((0, 0, 0.55), radius, 0.2, top=0.36),
    rod((0, 0, 0.75), radius * 0.36, 0.2),
    rod((0, 0, 0.92), radius * 0.45, 0.08, 1),
  ]


def _sign(d: Draw):
  wide, high = d.uniform(0.32, 0.42), d.uniform(0.2, 0.26)
  return [
    box((0, 0, 0.5), (0.035, 0.035, 0.5), 1),
    box((0, -0.05, 1 - high), (wide, 0.025, high)),
    box((0, 0, 0.02), (0.16, 0.16, 0.02), 1),
  ]


def _stairs(d: Draw):
  wide, steps = d.uniform(0.32, 0.42), 4
  return [
    box((0, 0.1 * k, (k + 0.5) * 0.22), (wide, 0.44 - 0.1 * k, 0.11))
    for k in range(steps)
  ]


def _hourglass(d: Draw):
  radius = d.uniform(0.26, 0.32)
  upside: Rotation = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
  return [
    rod((0, 0, 0), radius + 0.05, 0.07, 1),
    rod((0, 0, 0.07), radius, 0.45, top=0.14),
    rod((0, 0, 0.93), radius, 0.45, top=0.14, rotation=upside),
    rod((0, 0, 0.93), radius + 0.05, 0.07, 1),
  ]


def _column(d: Draw):
  radius = d.uniform(0.16, 0.2)
  return [
    box((0, 0, 0.06), (radius + 0.1, radius + 0.1, 0.06), 1),
    rod((0, 0, 0.12), radius, 0.76, top=0.85),
    box((0, 0, 0.94), (radius + 0.08, radius + 0.08, 0.06), 1),
  ]


def _stool(d: Draw):
  radius = d.uniform(0.3, 0.36)
  reach = 0.62 * radius
  return [
    rod((0, 0, 0.6), radius, 0.1),
    *(
      rod((reach * x, reach * y, 0), 0.045, 0.6, 1)
      for x, y in ((1.0, 0.0), (-0.5, 0.866), (-0.5, -0.866))
    ),
  ]


def _sofa(d: Draw):
  x, y = d.uniform(0.7, 0.9), d.uniform(0.34, 0.4)
  return [
    box((0, 0, 0.18), (x, y, 0.18)),
    box((0, y - 0.12, 0.54), (x, 0.1, 0.18)),
    box((-x - 0.09, 0, 0.28), (0.09, 0.97 * y, 0.28), 1),
    box((x + 0.09, 0, 0.28), (0.09, 0.97 * y, 0.28), 1),
  ]


def _shelf(d: Draw):
  x, y = d.uniform(0.32, 0.42), d.uniform(0.16, 0.2)
  return [
    box((-x - 0.03, 0, 0.5), (0.03, y, 0.5)),
    box((x + 0.03, 0, 0.5), (0.03, y, 0.5)),
    box((0, y + 0.02, 0.5), (x + 0.06, 0.02, 0.5)),
    *(
      box((0, 0, z), (x, 0.95 * y, 0.025), 1) for z in (0.03, 0.34, 0.66, 0.97)
    ),
  ]


def _nut(d: Draw):
  wide = d.uniform(0.42, 0.5)
  return [Part(shapes.HEXAGON, (0, 0, 0), (wide, wide, d.uniform(0.5, 0.8)))]


KINDS: dict[str, Callable[[Draw], list[Part]]] = {
  "ball": _ball,
  "box": _box,
  "barrel": _barrel,
  "cone": _cone,
  "table": _table,
  "mushroom": _mushroom,
  "arch": _arch,
  "house": _house,
  "pyramid": _pyramid,
  "gem": _gem,
  "dumbbell": _dumbbell,
  "lamp": _lamp,
  "tower": _tower,
  "chair": _chair,
  "tree": _tree,
  "snowman": _snowman,
  "rocket": _rocket,
  "bottle": _bottle,
  "sign": _sign,
  "stairs": _stairs,
  "hourglass": _hourglass,
  "column": _column,
  "stool": _stool,
  "sofa": _sofa,
  "shelf": _shelf,
  "nut": _nut,
}

# Height range in metres where it differs from the usual: depth in metres can
# be learned only if sizes tell something.
SIZES: dict[str, tuple[float, float]] = {
  "table": (0.9, 1.1),
  "chair": (0.9, 1.05),
  "stool": (0.6, 0.8),
  "sofa": (0.95, 1.1),
  "shelf": (1.3, 1.8),
  "lamp": (1.2, 1.6),
}

# Hard to tell from their narrow side, so they show it less.
BROAD = ("arch", "dumbbell", "sign")
