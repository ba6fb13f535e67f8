"""Pictures and per-pixel labels of scenes.

Samples lie half a pixel apart, on the centres and the edges of pixels. Labels
are the samples at centres; colours are a tent filter over all of them, so that
one pass gives both exact labels and smooth pictures.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from must_jax.lab.world.patterns import PATTERNS, clouds
from must_jax.lab.world.scene import SKY, Material, Points, Scene
from must_jax.lab.world.trace import View

_CHUNK = 8192  # samples shaded at a time


@dataclasses.dataclass(frozen=True)
class Rendering:
  """A picture with what is known of its pixels' centres.

  Attributes:
    image: uint8 [S, S, 3].
    surface: int16 [S, S], surface ids of the scene.
    depth: float64 [S, S], metres along z; inf in the sky.
    normals: float32 [S, S, 3], camera frame; 0 in the sky.
  """

  image: np.ndarray
  surface: np.ndarray
  depth: np.ndarray
  normals: np.ndarray


def render(scene: Scene, size: int) -> Rendering:
  """Renders a square picture of `size` pixels with its labels."""
  with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
    view = View(scene, np.arange(2 * size + 1) / size - 1.0)
    depth, surface = view.trace()
    normals, color = _shade(view, depth, surface)
  return Rendering(
    image=_develop(color),
    surface=surface[1::2, 1::2],
    depth=depth[1::2, 1::2],
    normals=normals[1::2, 1::2],
  )


def surfaces(scene: Scene, size: int) -> np.ndarray:
  """Only the surface ids [S, S] of pixels."""
  with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
    return View(scene, (2 * np.arange(size) + 1) / size - 1.0).trace()[1]


def _shade(
  view: View, depth: np.ndarray, surface: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Normals float32 [N, N, 3] and linear colours float32 [N, N, 3]."""
  num = len(view.u)
  normals = np.zeros((num * num, 3), np.float32)
  colors = np.empty((num * num, 3), np.float32)
  lit = ~view.shadows(depth).ravel()
  depth = depth.ravel()
  order = np.argsort(surface, axis=None, kind="stable")
  stops = np.cumsum(np.bincount(surface.ravel()))
  for number in range(len(stops)):
    start = stops[number - 1] if number else 0
    # In chunks whose temporaries fit the cache and the allocator's free list.
    for first in range(start, stops[number], _CHUNK):
      chosen = order[first : min(first + _CHUNK, stops[number])]
      rows, columns = np.divmod(chosen, num)
      if number == SKY:
        colors[chosen] = _sky(view, rows, columns)
      else:
        normals[chosen], colors[chosen] = _paint(
          view, number, depth[chosen], rows, columns, lit[chosen]
        )
  shape = (num, num, 3)
  return normals.reshape(shape), colors.reshape(shape)


def _paint(
  view: View,
  number: int,
  depth: np.ndarray,
  rows: np.ndarray,
  columns: np.ndarray,
  lit: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Camera-frame normals and colours [P, 3] of samples of one surface."""
  scene = view.scene
  points = view.points(depth, rows, columns)
  material = scene.material(number)
  ambient: float | np.ndarray = 1.0
  normal: Sequence[float] | np.ndarray
  where: Points
  if number >= scene.first_solid:
    solid = scene.solids[number - scene.first_solid]
    local = solid.to_local(points)
    normal = solid.normals(local)
    where = tuple(s * c for s, c in zip(solid.scale, local, strict=True))
  else:
    base = number
    if number >= scene.first_patch:
      base = scene.patches[number - scene.first_patch].surface
    normal = scene.flat_normal(base)
    along, up = scene.flat_axes(base, points)
    where = (along, np.zeros_like(along), up)
    ambient = _openness(scene, base, points)
  weight = PATTERNS[material.pattern](
    *((material.scale * c).astype(np.float32) for c in where)
  )
  depth = depth.astype(np.float32)
  if number < scene.first_solid and material.pattern != "plain":
    # Finer than pixels, a pattern is its mean: no moire at the horizon.
    width = 6 * scene.camera.tan_half_view / len(view.u) * material.scale
    blur = depth * width
    weight = 0.4 + (weight - 0.4) / (1 + blur * blur)
  x, y, z = normal
  fy, fz = scene.camera.forward
  turned = np.empty((len(depth), 3), np.float32)
  turned[:, 0] = x
  turned[:, 1] = y * fz - z * fy
  turned[:, 2] = y * fy + z * fz
  return turned, _illuminate(
    scene, material, points, depth, normal, lit, weight, ambient
  )


def _openness(scene: Scene, base: int, points: Points) -> np.ndarray:
  """How much of the ambient light reaches points of the floor or a wall."""
  x, y, z = (p.astype(np.float32) for p in points)
  nz = scene.flat_normal(base)[2]
  share: np.ndarray = np.ones_like(x)
  if nz == 0:  # walls darken towards the floor
    return share - 0.3 / (1 + 6.0 * z)
  for plane in scene.planes:  # floors and ceilings darken towards the walls
    nx, ny, pz = plane.normal
    if pz == 0:
      gap = np.maximum(plane.distance - (nx * x + ny * y), 0)
      share = share - 0.25 / (1 + 5.0 * gap)
  if nz > 0:
    for cx, cy, radius in scene.contacts:
      dx, dy = (x - cx) * (1 / radius), (y - cy) * (1 / radius)
      square = dx * dx + dy * dy
      share = share * (1 - 0.55 / (1 + square * square))
  return share


def _sky(view: View, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
  """Colours [P, 3] of the sky."""
  sky, light = view.scene.sky, view.scene.light
  x, y, z = (
    ray.astype(np.float32)
    for ray in (view.u[columns], view.ray_y[rows], view.ray_z[rows])
  )
  length = np.sqrt(x * x + y * y + z * z)
  rise = np.maximum(z / length, 0)
  blend = 1 - 1 / (1 + 3.5 * rise)
  # Clouds are flat and far up: their pattern closes up towards the horizon.
  stretch = 1 / (np.maximum(z, 0) + 0.08)
  veil = clouds(x * stretch, y * stretch, rise)
  veil = np.maximum(veil - (1.0 - sky.clouds), 0)
  veil = np.minimum(2.5 * veil, 0.9) * rise / (rise + 0.06)
  lx, ly, lz = light.direction
  halo = _power(np.maximum((x * lx + y * ly + z * lz) / length, 0), 4)
  out = np.empty((len(rows), 3), np.float32)
  for c in range(3):
    low, high = sky.horizon[c], sky.zenith[c]
    tone = low + (high - low) * blend
    tone = tone + (1 - tone) * veil
    out[:, c] = tone + (0.35 * light.color[c]) * halo
  return out


def _illuminate(
  scene: Scene,
  material: Material,
  points: Points,
  depth: np.ndarray,
  normal: Sequence[float] | np.ndarray,
  lit: np.ndarray,
  weight: np.ndarray,
  ambient: float | np.ndarray,
) -> np.ndarray:
  """Colours [P, 3]: Lambert, a highlight, ambient light, glow and haze.

  Args:
    scene: the scene.
    material: of all points.
    points: in the world.
    depth: along the camera's axis.
    normal: of unit length, in the world; one for all, or [3, P].
    lit: whether the light is in sight.
    weight: of the material's second colour.
    ambient: share of the ambient light that arrives.
  """
  nx, ny, nz = normal
  lx, ly, lz = scene.light.direction
  direct = (np.maximum(nx * lx + ny * ly + nz * lz, 0) * lit).astype(np.float32)
  # More comes from above than from below.
  around = (ambient * (0.85 + 0.15 * nz)) + np.zeros_like(direct)
  around = around.astype(np.float32)
  shine = None
  if material.specular:
    # Blinn's half vector between the light and the eye.
    x, y, z = (p.astype(np.float32) for p in points)
    up = scene.camera.height - z
    inverse = 1 / np.sqrt(x * x + y * y + up * up)
    hx, hy, hz = lx - x * inverse, ly - y * inverse, lz + up * inverse
    length = np.sqrt(hx * hx + hy * hy + hz * hz)
    shine = np.maximum((nx * hx + ny * hy + nz * hz) / length, 0)
    shine = _power(shine, 5) * (material.specular * lit)
  haze = depth * (1 / scene.sky.haze)
  haze = haze * haze
  haze = haze / (1 + haze)
  out = np.empty((len(depth), 3), np.float32)
  for c in range(3):
    first, second = material.colors[0][c], material.colors[1][c]
    light = scene.light.color[c] * direct + scene.light.ambient[c] * around
    if material.glow:
      light = light + (1 - light) * material.glow
    tone = (first + (second - first) * weight) * light
    if shine is not None:
      tone = tone + scene.light.color[c] * shine
    out[:, c] = tone + (scene.sky.horizon[c] - tone) * haze
  return out


def _power(x: np.ndarray, doublings: int) -> np.ndarray:
  for _ in range(doublings):
    x = x * x
  return x


def _develop(color: np.ndarray) -> np.ndarray:
  """uint8 [S, S, 3] from linear samples [2 S + 1, 2 S + 1, 3]."""
  color = np.minimum(color, 1)
  color = color[:-2:2] + 2 * color[1::2] + color[2::2]
  color = color[:, :-2:2] + 2 * color[:, 1::2] + color[:, 2::2]
  # The square root stands for the display's gamma.
  return (255 * np.sqrt(color * (1 / 16)) + 0.5).astype(np.uint8)
