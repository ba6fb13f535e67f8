"""What a scene is made of.

World frame: x right, y away from the camera, z up, in metres. The camera
stands at (0, 0, height), pitched but neither turned nor rolled: scenes are
turned instead. Colours are linear RGB.

Every surface of a scene has an id: the sky, the floor, then planes (walls,
ceiling), patches (rug, window) and solids in order.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from must_jax.lab.world import shapes
from must_jax.lab.world.shapes import Shape, Vector

SKY, FLOOR, PLANES = 0, 1, 2

Rotation = tuple[Vector, Vector, Vector]
Points = Sequence[np.ndarray]  # x, y, z


@dataclasses.dataclass(frozen=True)
class Material:
  """What a surface looks like.

  Attributes:
    colors: two albedos that the pattern mixes.
    pattern: key of `patterns.PATTERNS`.
    scale: periods of the pattern per metre.
    specular: strength of the highlight.
    glow: share of light that it gives off instead of reflecting.
  """

  colors: tuple[Vector, Vector]
  pattern: str = "plain"
  scale: float = 1.0
  specular: float = 0.0
  glow: float = 0.0


@dataclasses.dataclass(frozen=True)
class Solid:
  """A placed shape: world = position + rotation @ (scale * local).

  Attributes:
    shape: the unit shape.
    position: world position of its origin.
    rotation: orthonormal, by rows.
    scale: sizes along its own axes.
    material: its look.
    owner: index of the object it is a part of; -1 for scenery.
    name: kind of the object or of the scenery.
  """

  shape: Shape
  position: Vector
  rotation: Rotation
  scale: Vector
  material: Material
  owner: int
  name: str

  def world_gradient(self, direction: Vector) -> Vector:
    """World gradient of a local coordinate's (or sum of them) value."""
    a, b, c = (d / s for d, s in zip(direction, self.scale, strict=True))
    x, y, z = self.rotation
    return (
      x[0] * a + x[1] * b + x[2] * c,
      y[0] * a + y[1] * b + y[2] * c,
      z[0] * a + z[1] * b + z[2] * c,
    )

  def to_local(self, points: Points) -> Points:
    """World points in the shape's own coordinates."""
    x, y, z = (p - o for p, o in zip(points, self.position, strict=True))
    gradients = (self.world_gradient(axis) for axis in shapes.AXES)
    return tuple(gx * x + gy * y + gz * z for gx, gy, gz in gradients)

  def normals(self, local: Points) -> np.ndarray:
    """Outward unit normals [3, P] in the world, at surface points."""
    x, y, z = shapes.gradient(self.shape, *local)
    out = np.empty((3, len(local[0])))
    columns = [self.world_gradient(axis) for axis in shapes.AXES]
    for c in range(3):
      out[c] = columns[0][c] * x + columns[1][c] * y + columns[2][c] * z
    length = np.sqrt(out[0] * out[0] + out[1] * out[1] + out[2] * out[2])
    return out / length


@dataclasses.dataclass(frozen=True)
class Plane:
  """A wall or ceiling: normal . x <= distance for all that is inside."""

  normal: Vector
  distance: float
  material: Material
  name: str


@dataclasses.dataclass(frozen=True)
class Patch:
  """A flat region on the floor or on a plane.

  Attributes:
    surface: id of what it lies on.
    center, half: in that surface's coordinates, see `Scene.flat_axes`.
    turn: (cos, sin) of its rotation within the surface.
    round: an ellipse instead of a rectangle.
    material, name: its look and class.
  """

  surface: int
  center: tuple[float, float]
  half: tuple[float, float]
  turn: tuple[float, float]
  round: bool
  material: Material
  name: str


@dataclasses.dataclass(frozen=True)
class Camera:
  """Height above the floor, forward (y, z), tangent of half the view."""

  height: float
  forward: tuple[float, float]
  tan_half_view: float


@dataclasses.dataclass(frozen=True)
class Light:
  """Unit direction towards a far light, its colour, the ambient colour."""

  direction: Vector
  color: Vector
  ambient: Vector


@dataclasses.dataclass(frozen=True)
class Sky:
  """Colours overhead and at the horizon, clouds 0..1, range of haze."""

  zenith: Vector
  horizon: Vector
  clouds: float
  haze: float


@dataclasses.dataclass(frozen=True)
class Scene:
  """Everything that a picture and its labels follow from.

  Attributes:
    camera, light, sky: see there.
    floor: material of z = 0.
    floor_name: its class.
    turn: (cos, sin) of the rotation of the floor's pattern and of the room.
    planes: walls and ceiling around the camera; none in the open.
    patches: later ones lie on top.
    solids: parts of the objects, and scenery.
    contacts: (x, y, radius) of soft dark spots under objects.
  """

  camera: Camera
  light: Light
  sky: Sky
  floor: Material
  floor_name: str
  turn: tuple[float, float]
  planes: tuple[Plane, ...] = ()
  patches: tuple[Patch, ...] = ()
  solids: tuple[Solid, ...] = ()
  contacts: tuple[Vector, ...] = ()

  @property
  def first_patch(self) -> int:
    """Surface id of the first patch."""
    return PLANES + len(self.planes)

  @property
  def first_solid(self) -> int:
    """Surface id of the first solid."""
    return self.first_patch + len(self.patches)

  @functools.cached_property
  def _parts(self) -> tuple[Plane | Patch | Solid, ...]:
    return (*self.planes, *self.patches, *self.solids)

  @functools.cached_property
  def names(self) -> tuple[str, ...]:
    """Class name by surface id."""
    return ("sky", self.floor_name, *(part.name for part in self._parts))

  @functools.cached_property
  def owners(self) -> np.ndarray:
    """Object index by surface id, int [surfaces]; -1 for what is no object."""
    return np.array([-1] * self.first_solid + [s.owner for s in self.solids])

  def material(self, surface: int) -> Material:
    """Look of a surface other than the sky."""
    if surface == FLOOR:
      return self.floor
    return self._parts[surface - PLANES].material

  def flat_normal(self, surface: int) -> Vector:
    """Unit normal of the floor or of a plane, towards the inside."""
    if surface == FLOOR:
      return (0.0, 0.0, 1.0)
    x, y, z = self.planes[surface - PLANES].normal
    return (-x, -y, -z)

  def flat_axes(
    self, surface: int, points: Points
  ) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [n] each within the floor or a plane; (right, up) on walls.

    Args:
      surface: its id.
      points: x, y and z, [n] each.
    """
    x, y, z = points
    nx, ny, nz = self.flat_normal(surface)
    if nz:
      cos, sin = self.turn
      return cos * x + sin * y, cos * y - sin * x
    return nx * y - ny * x, z
