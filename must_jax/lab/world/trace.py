"""What the rays of a picture meet: depth, surfaces, normals, shadows.

Camera frame: x right, y down, z forward. Rays are (u, v, 1) in it, so that the
ray parameter is the depth along z.

Only +, -, *, / and sqrt touch the arrays, one operation at a time: these are
exact under IEEE 754, so that a scene gives the same bytes on every machine
(`exp`, `sin`, `power` and `matmul` differ between processors).
"""

import numpy as np

from must_jax.lab.world import shapes
from must_jax.lab.world.scene import (
  FLOOR,
  PLANES,
  SKY,
  Patch,
  Points,
  Scene,
  Solid,
)
from must_jax.lab.world.shapes import Vector

# Farther than this the ground counts as sky (metres).
HORIZON = 400.0
Window = tuple[slice, slice]


class View:
  """The rays of a square grid, and what they meet.

  Legend: N samples a side, P some of the samples.

  Attributes:
    u, v: [N] image coordinates at depth 1 of columns and rows.
    ray_y, ray_z: [N] world components of the rays by row; x is `u`.
  """

  def __init__(self, scene: Scene, grid: np.ndarray):
    """Takes positions [N] in the picture, -1 and 1 being its edges."""
    self.scene = scene
    self.u = self.v = grid * scene.camera.tan_half_view
    fy, fz = scene.camera.forward
    self.ray_y = self.v * fz + fy
    self.ray_z = fz - self.v * fy
    self._corners = _corners(scene.solids)  # [solids, 8, 3]

  def trace(self) -> tuple[np.ndarray, np.ndarray]:
    """Depth float64 [N, N], inf in the sky; surface ids int16 [N, N]."""
    scene, num, height = self.scene, len(self.u), self.scene.camera.height
    fall = np.where(self.ray_z < 0, -height / self.ray_z, np.inf)
    fall[fall > HORIZON] = np.inf
    ground = np.where(fall < np.inf, FLOOR, SKY).astype(np.int16)
    depth = np.repeat(fall[:, None], num, axis=1)
    surface = np.repeat(ground[:, None], num, axis=1)
    for k, plane in enumerate(scene.planes):
      nx, ny, nz = plane.normal
      rows = (ny * self.ray_y + nz * self.ray_z)[:, None]
      towards = (nx * self.u)[None, :] + rows
      reach = (plane.distance - nz * height) / towards
      hit = (towards > 0) & (reach < depth)
      np.copyto(depth, reach, where=hit)
      np.copyto(surface, PLANES + k, where=hit)
    for k, patch in enumerate(scene.patches):
      self._lay(patch, scene.first_patch + k, depth, surface)
    windows = self._windows(self._corners)
    for k, (solid, window) in enumerate(
      zip(scene.solids, windows, strict=True)
    ):
      enter, leave = self._interval(solid, window)
      near = depth[window]
      hit = (enter < leave) & (enter > 0) & (enter < near)
      np.copyto(near, enter, where=hit)
      np.copyto(surface[window], scene.first_solid + k, where=hit)
    return depth, surface

  def _windows(self, points: np.ndarray) -> list[Window]:
    """Rows and columns that see the hulls of world points [hulls, P, 3]."""
    fy, fz = self.scene.camera.forward
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    z = z - self.scene.camera.height
    depth = y * fy + z * fz
    # Hulls that reach behind the camera may be seen anywhere.
    near = depth.min(1) <= 0.05
    spans = []
    for values, axis in ((y * fz - z * fy, self.v), (x, self.u)):
      values = values / depth
      start = np.searchsorted(axis, values.min(1) - 1e-9)
      stop = np.searchsorted(axis, values.max(1) + 1e-9)
      start, stop = np.where(near, 0, start), np.where(near, len(axis), stop)
      spans.append(map(slice, start.tolist(), stop.tolist()))
    return list(zip(*spans, strict=True))

  def _interval(
    self, solid: Solid, window: Window
  ) -> tuple[np.ndarray, np.ndarray]:
    """Depths between which the rays of a window are inside a solid."""
    u = self.u[window[1]]
    ray_y, ray_z = self.ray_y[window[0]], self.ray_z[window[0]]
    px, py, pz = solid.position
    pz = pz - self.scene.camera.height

    def rays(direction: Vector) -> tuple[float, np.ndarray]:
      x, y, z = solid.world_gradient(direction)
      towards = (x * u)[None, :] + (y * ray_y + z * ray_z)[:, None]
      return -(x * px + y * py + z * pz), towards

    return shapes.meet(solid.shape, rays)

  def _lay(
    self, patch: Patch, number: int, depth: np.ndarray, surface: np.ndarray
  ) -> None:
    """Gives the samples of a surface that lie in a patch its number."""
    rows, columns = np.nonzero(surface == patch.surface)
    points = self.points(depth[rows, columns], rows, columns)
    a, b = self.scene.flat_axes(patch.surface, points)
    a, b = a - patch.center[0], b - patch.center[1]
    cos, sin = patch.turn
    a, b = cos * a + sin * b, cos * b - sin * a
    a, b = a / patch.half[0], b / patch.half[1]
    if patch.round:
      inside = a * a + b * b < 1
    else:
      inside = np.maximum(np.abs(a), np.abs(b)) < 1
    surface[rows[inside], columns[inside]] = number

  def shadows(self, depth: np.ndarray) -> np.ndarray:
    """Where objects hide the light: bool [N, N]."""
    light = self.scene.light.direction
    near = np.where(depth < HORIZON, depth, 0.0).astype(np.float32)
    points = (
      near * self.u.astype(np.float32)[None, :],
      near * self.ray_y.astype(np.float32)[:, None],
      near * self.ray_z.astype(np.float32)[:, None]
      + np.float32(self.scene.camera.height),
    )
    shadow = np.zeros(depth.shape, bool)
    # A shadow's volume lies between the solid and its image on the floor.
    slide = self._corners[..., 2:] * (np.array(light) / light[2])
    hulls = np.concatenate([self._corners, self._corners - slide], axis=1)
    for solid, window in zip(
      self.scene.solids, self._windows(hulls), strict=True
    ):
      if solid.owner >= 0:
        enter, leave = _towards_light(
          solid, light, tuple(p[window] for p in points)
        )
        # On its lit side a solid's own interval ends where the ray starts, on
        # its dark side it begins there.
        shadow[window] |= (enter < leave) & (leave > 2e-3)
    return shadow

  def points(
    self, depth: np.ndarray, rows: np.ndarray, columns: np.ndarray
  ) -> Points:
    """World points of samples at a depth.

    Args:
      depth: float [n], along the optical axis.
      rows: int [n] of the samples.
      columns: int [n].

    Returns:
      x, y and z, [n] each.
    """
    return (
      depth * self.u[columns],
      depth * self.ray_y[rows],
      depth * self.ray_z[rows] + self.scene.camera.height,
    )


def _towards_light(
  solid: Solid, light: Vector, points: Points
) -> tuple[np.ndarray, np.ndarray]:
  """Distances between which rays from points to the light are in a solid."""
  x, y, z = points
  px, py, pz = solid.position

  def rays(direction: Vector) -> tuple[np.ndarray, float]:
    gx, gy, gz = solid.world_gradient(direction)
    start = gx * x + gy * y + (gz * z - (gx * px + gy * py + gz * pz))
    return start, gx * light[0] + gy * light[1] + gz * light[2]

  return shapes.meet(solid.shape, rays)


def _corners(solids: tuple[Solid, ...]) -> np.ndarray:
  """World corners [solids, 8, 3] of the boxes around solids."""
  out = np.empty((len(solids), 8, 3))
  if not solids:
    return out
  bounds = np.array([(s.shape.low, s.shape.high) for s in solids])
  bounds = bounds * np.array([s.scale for s in solids])[:, None]
  rotation = np.array([s.rotation for s in solids])  # [solids, world, local]
  pick = np.array([(i & 1, i >> 1 & 1, i >> 2) for i in range(8)])
  local = np.stack([bounds[:, pick[:, c], c] for c in range(3)], -1)
  for c in range(3):
    r = rotation[:, None, c]
    out[..., c] = (
      r[..., 0] * local[..., 0]
      + r[..., 1] * local[..., 1]
      + r[..., 2] * local[..., 2]
    )
  return out + np.array([s.position for s in solids])[:, None]
