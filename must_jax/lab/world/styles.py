"""Scenes drawn at random in a style: what sets of images differ in."""

import dataclasses
import math

from must_jax.lab.world import shapes
from must_jax.lab.world.object_kinds import BROAD, KINDS, SIZES, Draw, Part
from must_jax.lab.world.scene import (
  FLOOR,
  PLANES,
  Camera,
  Light,
  Material,
  Patch,
  Plane,
  Rotation,
  Scene,
  Sky,
  Solid,
)
from must_jax.lab.world.shapes import Vector

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Style:
  """What scenes are like.

  Attributes:
    kinds: object kinds that are labelled.
    strangers: object kinds that are not; each object is one with probability
      `stranger_share`.
    stranger_share: see above.
    dominant: one large object near the centre; the others stand behind it.
    num_objects: least and most.
    indoor: share of rooms among the scenes.
    distance: of objects from the camera, metres.
    camera_height: metres.
    view: tangent of half the field of view.
    size: object heights in metres, where their kind does not say.
    patterns: of objects.
    floors: patterns of floors.
    saturation, value: of object colours.
    hue_spread: objects of a kind have about the same hue, as in nature; this
      is how far they stray from it, of the 6 sectors of the circle. Kinds are
      less than that apart, so that their shapes have to be seen as well.
    sun: height of the light, z of its direction.
    fill: share of ambient light.
    patches: rugs, windows, doors and pictures on floors and walls.
    hills: hills at the horizon.
  """

  kinds: tuple[str, ...]
  strangers: tuple[str, ...] = ()
  stranger_share: float = 0.0
  dominant: bool = False
  num_objects: tuple[int, int] = (1, 6)
  indoor: float = 0.5
  distance: Range = (2.5, 7.0)
  camera_height: Range = (0.8, 2.2)
  view: Range = (0.4, 0.6)
  size: Range = (0.6, 1.2)
  patterns: tuple[str, ...] = (
    "plain",
    "checker",
    "stripes",
    "dots",
    "gradient",
  )
  floors: tuple[str, ...] = ("plain", "checker", "planks", "clouds")
  saturation: Range = (0.45, 0.95)
  value: Range = (0.45, 0.95)
  hue_spread: float = 0.5
  sun: Range = (0.55, 0.85)
  fill: Range = (0.4, 0.6)
  patches: bool = False
  hills: float = 0.5


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A scene and the kinds of its objects, by owner index."""

  scene: Scene
  kinds: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Object:
  """A placed object: yaw as (cos, sin), radius of its footprint."""

  kind: str
  parts: tuple[Part, ...]
  size: float
  turn: tuple[float, float]
  radius: float
  x: float = 0.0
  y: float = 0.0


# Of the hue circle's 6 sectors, the step that spreads any number of hues.
_GOLDEN = 6 * 0.618034


def draw_scene(draw: Draw, style: Style) -> Drawn:
  """Draws a scene."""
  indoor = draw.chance(style.indoor)
  tan = draw.uniform(*style.view)
  objects = _place_objects(draw, style, tan)
  camera = _aim(draw, style, tan, objects)
  turn = draw.turn(0.42)
  light = _light(draw, style, indoor)
  floor_color = _color(draw, (0.1, 0.45), (0.35, 0.75))
  planes: tuple[Plane, ...] = ()
  patches: tuple[Patch, ...] = ()
  solids: list[Solid] = []
  if indoor:
    planes = _room(draw, style, objects, turn)
    floor = _surface(draw, floor_color, style.floors, (0.8, 2.0))
    sky = Sky((0.0, 0.0, 0.0), (0.5, 0.5, 0.5), 0.0, 60.0)
    if style.patches:
      patches = _furnish(draw, planes, objects, turn)
  else:
    ground = draw.choice(_GROUNDS)
    red, green, blue = (c * draw.uniform(0.85, 1.15) for c in ground)
    floor_color = (red, green, blue)
    floor = _surface(draw, floor_color, (*style.floors, "clouds"), (0.4, 1.2))
    horizon, zenith = draw.choice(_SKIES)
    sky = Sky(zenith, horizon, draw.uniform(0.2, 0.75), draw.uniform(45, 110))
    if style.patches and draw.chance(0.6):
      patches = (_path(draw),)
    if draw.chance(style.hills):
      solids += _hills(draw)
  names = []
  for owner, thing in enumerate(objects):
    names.append(thing.kind)
    solids += _solids(draw, style, thing, owner, floor_color)
  return Drawn(
    Scene(
      camera=camera,
      light=light,
      sky=sky,
      floor=floor,
      floor_name="floor" if indoor else "ground",
      turn=turn,
      planes=planes,
      patches=patches,
      solids=tuple(solids),
      contacts=tuple((o.x, o.y, 0.95 * o.radius) for o in objects),
    ),
    tuple(names),
  )


def _draw_object(draw: Draw, style: Style, kind: str) -> _Object:
  parts = tuple(KINDS[kind](draw))
  size = draw.uniform(*SIZES.get(kind, style.size))
  turn = draw.full_turn(0.5 if kind in BROAD else 1.0)
  return _Object(kind, parts, size, turn, size * _reach(parts))


def _reach(parts: tuple[Part, ...]) -> float:
  """Radius of the footprint at unit size."""
  square = 0.0
  for part in parts:
    corners = [
      [s * c for s, c in zip(part.scale, corner, strict=True)]
      for corner in _corners(part.shape)
    ]
    for a, b, c in corners:
      x, y = (
        p + r[0] * a + r[1] * b + r[2] * c
        for p, r in zip(part.position[:2], part.rotation[:2], strict=True)
      )
      square = max(square, x * x + y * y)
  return math.sqrt(square)


def _corners(shape: shapes.Shape) -> list[Vector]:
  (x0, y0, z0), (x1, y1, z1) = shape.low, shape.high
  # A round footprint fills the middle of its box's sides, not its corners.
  inset = 1.0 if shape.quadric is None else 0.7072
  return [
    (inset * x, inset * y, z)
    for x in (x0, x1)
    for y in (y0, y1)
    for z in (z0, z1)
  ]


def _place_objects(draw: Draw, style: Style, tan: float) -> list[_Object]:
  """Objects on the floor that do not touch each other."""
  placed: list[_Object] = []
  for number in range(draw.integer(*style.num_objects)):
    main = style.dominant and not placed
    # A labelled one comes first: hardly a picture is without labels.
    stranger = placed and draw.chance(style.stranger_share)
    pool = style.strangers if stranger else style.kinds
    thing = _draw_object(draw, style, draw.choice(pool))
    for _ in range(12):
      if main:
        share = draw.uniform(0.42, 0.62)  # of the picture's height
        y = thing.size / (2 * tan * share) + thing.radius
        x = draw.uniform(-0.22, 0.22) * tan * y
      else:
        y = draw.uniform(*style.distance)
        if style.dominant:
          y = placed[0].y + draw.uniform(0.3, 1.2) * style.distance[1]
        x = draw.uniform(-0.9, 0.9) * tan * y
      candidate = dataclasses.replace(thing, x=x, y=y)
      if all(_apart(candidate, other) for other in placed):
        placed.append(candidate)
        break
    else:
      assert placed, number  # the first one always finds its place
  return placed


def _apart(a: _Object, b: _Object) -> bool:
  dx, dy, gap = a.x - b.x, a.y - b.y, a.radius + b.radius + 0.05
  return dx * dx + dy * dy > gap * gap


def _aim(
  draw: Draw, style: Style, tan: float, objects: list[_Object]
) -> Camera:
  """A camera that looks at the objects."""
  focus = objects[:1] if style.dominant else objects
  y = sum(o.y for o in focus) / len(focus)
  z = sum(o.size for o in focus) / len(focus)
  height = draw.uniform(*style.camera_height)
  if style.dominant:
    # Seen from a like angle however near it is.
    height = z * 0.5 + y * draw.uniform(0.02, 0.45)
  aim = z * draw.uniform(0.3, 0.6) + draw.uniform(-0.12, 0.2) * tan * y
  dz = aim - height
  length = math.sqrt(y * y + dz * dz)
  return Camera(height, (y / length, dz / length), tan)


def _light(draw: Draw, style: Style, indoor: bool) -> Light:
  up = draw.uniform(*style.sun)
  cos, sin = draw.full_turn()
  if sin > 0.35:  # not from behind the objects: they would be all shade
    sin = -sin
  flat = math.sqrt(1 - up * up)
  warm = draw.uniform(0.0, 0.22)
  fill = draw.uniform(*style.fill) * (1.2 if indoor else 1.0)
  power = draw.uniform(0.85, 1.1) * (0.85 if indoor else 1.0)
  cool = 0.1 if indoor else 0.2
  return Light(
    (cos * flat, sin * flat, up),
    (power, power * (1 - 0.5 * warm), power * (1 - warm)),
    (fill * (1 - cool), fill * (1 - 0.4 * cool), fill * (1 + 0.5 * cool)),
  )


def _color(
  draw: Draw, saturation: Range, value: Range, hues: Range = (0.0, 6.0)
) -> Vector:
  """A colour, of any hue by default, as linear light."""
  hue = draw.uniform(*hues) % 6
  s, v = draw.uniform(*saturation), draw.uniform(*value)
  shown = []
  for offset in (5, 3, 1):
    k = (offset + hue) % 6
    shown.append(v - v * s * max(0.0, min(k, 4 - k, 1.0)))
  red, green, blue = shown
  return red * red, green * green, blue * blue


def _hues(kind: str, spread: float) -> Range:
  """The hues of a kind; those of kinds in a row are far apart."""
  hue = tuple(KINDS).index(kind) * _GOLDEN % 6
  return hue - spread, hue + spread


def _unlike(draw: Draw, style: Style, hues: Range, other: Vector) -> Vector:
  """An object colour that differs from another colour."""
  for _ in range(6):
    color = _color(draw, style.saturation, style.value, hues)
    if _difference(color, other) > 0.12:
      break
  return color


def _times(x: Vector, factor: float, plus: float = 0.0) -> Vector:
  return (x[0] * factor + plus, x[1] * factor + plus, x[2] * factor + plus)


def _difference(a: Vector, b: Vector) -> float:
  """Squared distance as shown on a screen."""
  steps = (math.sqrt(x) - math.sqrt(y) for x, y in zip(a, b, strict=True))
  return sum(step * step for step in steps)


def _surface(
  draw: Draw, color: Vector, patterns: tuple[str, ...], scale: Range
) -> Material:
  tone = draw.uniform(0.55, 0.8)
  other = _times(color, tone)
  return Material((color, other), draw.choice(patterns), draw.uniform(*scale))


def _solids(
  draw: Draw, style: Style, thing: _Object, owner: int, floor: Vector
) -> list[Solid]:
  """The placed parts of an object with its materials."""
  hues = _hues(thing.kind, style.hue_spread)
  first = _unlike(draw, style, hues, floor)
  second = draw.choice(
    (
      (0.85, 0.82, 0.74),
      _times(first, 0.3),
      _times(first, 0.5, plus=0.5),
      _unlike(draw, style, (0.0, 6.0), first),
    )
  )
  scale = draw.uniform(2.0, 4.5) / thing.size
  gloss = draw.uniform(0.0, 0.5)
  materials = (
    Material((first, second), draw.choice(style.patterns), scale, gloss),
    Material((second, second), "plain", scale, gloss),
  )
  cos, sin = thing.turn
  out = []
  for part in thing.parts:
    px, py, pz = (thing.size * p for p in part.position)
    (xx, xy, xz), (yx, yy, yz), rz = part.rotation
    rotation: Rotation = (
      (cos * xx - sin * yx, cos * xy - sin * yy, cos * xz - sin * yz),
      (sin * xx + cos * yx, sin * xy + cos * yy, sin * xz + cos * yz),
      rz,
    )
    position = (
      thing.x + cos * px - sin * py,
      thing.y + sin * px + cos * py,
      pz,
    )
    size = _times(part.scale, thing.size)
    material = materials[part.slot]
    out.append(
      Solid(part.shape, position, rotation, size, material, owner, thing.kind)
    )
  return out


def _room(
  draw: Draw, style: Style, objects: list[_Object], turn: tuple[float, float]
) -> tuple[Plane, ...]:
  """Four walls and a ceiling around the camera and all objects."""
  cos, sin = turn
  walls = []
  color = _color(draw, (0.05, 0.4), (0.6, 0.95))
  pattern = draw.choice(("plain", "plain", "stripes", "brick", "clouds"))
  paint = _surface(draw, color, (pattern,), (0.8, 1.6))
  if pattern == "stripes":
    other = _times(color, 0.85)
    paint = dataclasses.replace(paint, colors=(color, other))
  for nx, ny in ((cos, sin), (-sin, cos), (-cos, -sin), (sin, -cos)):
    far = max(nx * o.x + ny * o.y + o.radius for o in objects)
    distance = max(far + draw.uniform(0.05, 1.2), draw.uniform(0.8, 1.6))
    walls.append(Plane((nx, ny, 0.0), distance, paint, "wall"))
  white = draw.uniform(0.7, 0.9)
  ceiling = Material(((white, white, 0.97 * white),) * 2)
  height = max(draw.uniform(2.4, 3.2), style.camera_height[1] + 0.3)
  return (*walls, Plane((0.0, 0.0, 1.0), height, ceiling, "ceiling"))


def _furnish(
  draw: Draw,
  planes: tuple[Plane, ...],
  objects: list[_Object],
  turn: tuple[float, float],
) -> tuple[Patch, ...]:
  """A rug, windows, doors and pictures."""
  out = []
  cos, sin = turn
  straight = (1.0, 0.0)
  if draw.chance(0.6):
    thing = draw.choice(objects)
    center = (cos * thing.x + sin * thing.y, cos * thing.y - sin * thing.x)
    half = (draw.uniform(0.8, 1.5), draw.uniform(0.7, 1.2))
    colors = (
      _color(draw, (0.3, 0.8), (0.4, 0.9)),
      _color(draw, (0.1, 0.5), (0.6, 0.9)),
    )
    pattern = draw.choice(("plain", "stripes", "dots", "zigzag", "checker"))
    rug = Material(colors, pattern, draw.uniform(1.5, 3.5))
    out.append(
      Patch(FLOOR, center, half, straight, draw.chance(0.4), rug, "rug")
    )
  for k, plane in enumerate(planes[:2]):
    # Where the view's axis meets the wall, in the wall's own coordinates.
    nx, ny, _ = plane.normal
    reach = plane.distance / ny if abs(ny) > 0.3 else 2.0
    middle = -nx * reach
    side = -1.0 if draw.chance(0.5) else 1.0
    for _ in range(2):
      along = middle + side * draw.uniform(0.3, 1.3)
      side = -side
      out.append(_hang(draw, PLANES + k, along))
  return tuple(out)


def _hang(draw: Draw, surface: int, along: float) -> Patch:
  """A window, a door or a picture on a wall."""
  straight = (1.0, 0.0)
  name = draw.choice(("window", "door", "picture"))
  if name == "window":
    bright = draw.choice(_SKIES)
    glass = Material(bright, "gradient", 1.2, glow=0.8)
    half = (draw.uniform(0.35, 0.55), draw.uniform(0.4, 0.55))
    return Patch(surface, (along, 1.6), half, straight, False, glass, name)
  if name == "door":
    wood = _color(draw, (0.4, 0.7), (0.3, 0.6))
    panel = Material((wood, _times(wood, 0.6)), "planks", 2.0)
    half = (draw.uniform(0.4, 0.5), 1.0)
    return Patch(surface, (along, 1.0), half, straight, False, panel, name)
  colors = (
    _color(draw, (0.6, 1.0), (0.5, 1.0)),
    _color(draw, (0.6, 1.0), (0.3, 0.9)),
  )
  pattern = draw.choice(("zigzag", "dots", "marble", "checker"))
  paint = Material(colors, pattern, draw.uniform(3.0, 6.0))
  half = (draw.uniform(0.25, 0.45), draw.uniform(0.22, 0.4))
  round_ = draw.chance(0.25)
  return Patch(surface, (along, 1.65), half, straight, round_, paint, name)


def _path(draw: Draw) -> Patch:
  """A long strip on the ground."""
  stone = draw.uniform(0.25, 0.5)
  gray = (stone, 0.97 * stone, 0.9 * stone)
  dark = _times(gray, 0.75)
  material = Material(
    (gray, dark), draw.choice(("clouds", "checker", "marble")), 1.5
  )
  center = (draw.uniform(-1.5, 1.5), draw.uniform(4.0, 8.0))
  half = (draw.uniform(0.5, 1.1), 300.0)
  return Patch(FLOOR, center, half, draw.turn(0.8), False, material, "path")


def _hills(draw: Draw) -> list[Solid]:
  out = []
  base = draw.choice(
    ((0.13, 0.22, 0.08), (0.25, 0.22, 0.12), (0.16, 0.2, 0.22))
  )
  for _ in range(draw.integer(1, 3)):
    y = draw.uniform(60, 120)
    x = draw.uniform(-0.8, 0.8) * y
    scale = (draw.uniform(20, 45), draw.uniform(15, 25), draw.uniform(5, 14))
    red, green, blue = (c * draw.uniform(0.7, 1.3) for c in base)
    color = (red, green, blue)
    other = _times(color, 0.7)
    material = Material((color, other), "clouds", 0.12)
    position = (x, y, -0.5)
    out.append(
      Solid(shapes.BALL, position, shapes.AXES, scale, material, -1, "hill")
    )
  return out


_GROUNDS: tuple[Vector, ...] = (
  (0.16, 0.3, 0.08),
  (0.22, 0.34, 0.12),
  (0.45, 0.36, 0.2),
  (0.3, 0.24, 0.16),
  (0.42, 0.42, 0.4),
)
# At the horizon and overhead.
_SKIES: tuple[tuple[Vector, Vector], ...] = (
  ((0.62, 0.78, 0.92), (0.1, 0.3, 0.75)),
  ((0.75, 0.82, 0.88), (0.2, 0.42, 0.72)),
  ((0.95, 0.68, 0.42), (0.2, 0.24, 0.5)),
  ((0.9, 0.75, 0.68), (0.22, 0.36, 0.62)),
  ((0.68, 0.7, 0.72), (0.42, 0.48, 0.55)),
)
