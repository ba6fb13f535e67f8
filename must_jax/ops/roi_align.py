"""ROIAlign over a feature pyramid (He et al. 2017), in two implementations.

  R rois, P bins per side, s samples per side of a bin, L levels

A roi reads one level, chosen by its area (Lin et al. 2017, equation 1). Maps
have half-pixel centres: the pixel coordinate y lies at y / stride - 0.5 in a
map. Coordinates beyond the outer pixel centres read the border. The older
convention of imported detectors is `half_pixel=False`.

One image at a time, fixed shapes; callers vmap.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from must_jax.ops import boxes as box_ops
from must_jax.types import Array

# Bounds the temporaries of "matmul".
_ROIS_AT_ONCE = 64

METHODS = ("auto", "gather", "matmul")


def multilevel_roi_align(
  features: Mapping[int, Array],
  rois: Array,
  output_size: int = 7,
  samples_per_bin: int = 1,
  canonical_size: float = 224.0,
  canonical_level: int = 4,
  half_pixel: bool = True,
  method: str = "auto",
) -> jax.Array:
  """Pools every roi to a grid from the pyramid level that fits its size.

  Differentiable in the features, not in the rois.

  Args:
    features: {level: [h, w, C]}, without gaps between levels; level l has
      stride 2**l.
    rois: [R, 4] yxyx in pixels of the network input.
    output_size: P.
    samples_per_bin: s; the value of a bin is the mean of s * s bilinear
      samples. 1 is the TPU detectors' choice, 2 torchvision's.
    canonical_size: a roi with an area of canonical_size**2 belongs to
      `canonical_level`, twice the side to the level above. Levels that are not
      there are replaced by the nearest one.
    canonical_level: see above.
    half_pixel: torchvision's `aligned`. False is what its detectors have: y
      lies at y / stride in a map, a roi is at least one cell high and wide, and
      samples more than a cell off the map are 0.
    method: "gather" reads the pixels, good on CPU and GPU. "matmul" multiplies
      the maps by interpolation matrices: many times the arithmetic, but in the
      form that TPUs are fast at. "auto" decides by the platform that the
      program is compiled for.

  Returns:
    [R, P, P, C] in the dtype of the features.

  Raises:
    ValueError: unknown method, or gaps between levels.
  """
  levels = sorted(features)
  if levels != list(range(levels[0], levels[-1] + 1)):
    raise ValueError(
      f"multilevel_roi_align got the levels {levels}; expected levels without"
      " gaps: pass every level between the first and the last."
    )
  if method not in METHODS:
    raise ValueError(
      f"multilevel_roi_align got method={method!r}; expected one of {METHODS}."
    )
  rois = jax.lax.stop_gradient(jnp.asarray(rois, jnp.float32))
  # Comparing areas is exact at the bounds, floor(log2(...)) is not.
  bounds = [
    (canonical_size * 2.0 ** (level - canonical_level)) ** 2
    for level in levels[1:]
  ]
  level = jnp.sum(
    box_ops.area(rois)[:, None] >= jnp.asarray(bounds, jnp.float32), axis=1
  )
  # Sampling positions along each side, in pixels: [R, P * s].
  offsets = jnp.arange(output_size * samples_per_bin) + 0.5
  offsets = offsets / (output_size * samples_per_bin)
  height, width = rois[:, 2:3] - rois[:, 0:1], rois[:, 3:4] - rois[:, 1:2]
  if not half_pixel:
    stride = 2.0 ** (levels[0] + level[:, None])
    height, width = jnp.maximum(height, stride), jnp.maximum(width, stride)
  y = rois[:, 0:1] + height * offsets
  x = rois[:, 1:2] + width * offsets

  maps = tuple(features[lv] for lv in levels)
  arguments = (maps, level, y / 2.0 ** levels[0], x / 2.0 ** levels[0])
  by_matmul, by_gather = (
    functools.partial(pool, samples=samples_per_bin, half_pixel=half_pixel)
    for pool in (_matmul, _gather)
  )
  if method == "matmul":
    return by_matmul(*arguments)
  if method == "gather":
    return by_gather(*arguments)
  return jax.lax.platform_dependent(
    *arguments, tpu=by_matmul, default=by_gather
  )


def _place(
  position: jax.Array, size: int | jax.Array, half_pixel: bool
) -> tuple[jax.Array, jax.Array]:
  """Where samples lie among the centres of `size` cells, and their weights."""
  if half_pixel:
    return jnp.clip(position - 0.5, 0, size - 1), jnp.ones_like(position)
  weight = (position >= -1) & (position <= size)
  return jnp.clip(position, 0, size - 1), weight.astype(jnp.float32)


def _gather(
  maps: tuple[Array, ...],
  level: jax.Array,
  y: jax.Array,
  x: jax.Array,
  samples: int,
  half_pixel: bool,
) -> jax.Array:
  """Reads the four pixels around each sample from the roi's own level.

  Args:
    maps: L of [h, w, C], strides 1, 2, 4, ... in the unit of y and x.
    level: int32 [R], which of the maps.
    y: positions of the samples [R, P * s].
    x: positions of the samples [R, P * s].
    samples: s.
    half_pixel: see `multilevel_roi_align`.

  Returns:
    [R, P, P, C].
  """
  heights, widths = (
    jnp.asarray([m.shape[axis] for m in maps])[level] for axis in (0, 1)
  )
  sizes = [m.shape[0] * m.shape[1] for m in maps]
  starts = jnp.asarray([sum(sizes[:i]) for i in range(len(maps))])[level]
  flat = jnp.concatenate([m.reshape(-1, m.shape[-1]) for m in maps])

  def corners(
    position: jax.Array, size: jax.Array
  ) -> list[tuple[jax.Array, jax.Array]]:
    """Pixels around the samples of a bin and their weights, 2 s of [R, P]."""
    position, weight = _place(
      position / 2.0 ** level[:, None], size[:, None], half_pixel
    )
    weight /= samples
    before = jnp.floor(position).astype(jnp.int32)
    after = jnp.minimum(before + 1, size[:, None] - 1)
    fraction = position - before
    return [
      (pixel[:, i::samples], weight[:, i::samples])
      for pixel, weight in (
        (before, weight * (1 - fraction)),
        (after, weight * fraction),
      )
      for i in range(samples)
    ]

  places, weights = [], []
  for row, row_weight in corners(y, heights):
    start = starts[:, None] + row * widths[:, None]
    for column, column_weight in corners(x, widths):
      places.append(start[:, :, None] + column[:, None, :])
      weights.append(row_weight[:, :, None] * column_weight[:, None, :])
  return _weighted_sum(flat, places, weights)


@jax.custom_vjp
def _weighted_sum(
  flat: jax.Array, places: list[jax.Array], weights: list[jax.Array]
) -> jax.Array:
  """Sum of pixels of flat [N, C] at places int32 [R, P, P], times weights.

  The sum is that of gathers that fuse into it; XLA fuses neither one gather of
  all places nor, well, a mean over samples.
  """
  total = jnp.float32(0)
  for place, weight in zip(places, weights, strict=True):
    total += flat[place] * weight[..., None]
  return total.astype(flat.dtype)


def _weighted_sum_forward(
  flat: jax.Array, places: list[jax.Array], weights: list[jax.Array]
) -> tuple[jax.Array, tuple[jax.Array, list[jax.Array], list[jax.Array]]]:
  # Of `flat` nothing but the shape is used, so no memory is held.
  return _weighted_sum(flat, places, weights), (flat, places, weights)


def _weighted_sum_backward(
  kept: tuple[jax.Array, list[jax.Array], list[jax.Array]], grad: jax.Array
) -> tuple[jax.Array, None, None]:
  """Adds to one float32 map in place; JAX would make and add one per gather."""
  flat, places, weights = kept
  total = jnp.zeros(flat.shape, jnp.float32)
  for place, weight in zip(places, weights, strict=True):
    total = total.at[place].add(grad * weight[..., None])
  return total.astype(flat.dtype), None, None


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)


def _matmul(
  maps: tuple[Array, ...],
  level: jax.Array,
  y: jax.Array,
  x: jax.Array,
  samples: int,
  half_pixel: bool,
) -> jax.Array:
  """Sums, over the levels, products of maps and interpolation matrices.

  Arguments and result are those of `_gather`.
  """

  def matrix(position: jax.Array, stride: int, size: int) -> jax.Array:
    """Weights of the `size` pixels in each bin, [P, size]."""
    position, weight = _place(position / stride, size, half_pixel)
    distance = jnp.abs(position[:, None] - jnp.arange(size))
    weights = weight[:, None] * jnp.maximum(0, 1 - distance)
    return weights.reshape(-1, samples, size).mean(1)

  def pool(roi: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """[P, P, C] of one roi."""
    level, y, x = roi
    total = jnp.float32(0)
    for i, m in enumerate(maps):
      rows = jnp.where(level == i, matrix(y, 2**i, m.shape[0]), 0)
      columns = matrix(x, 2**i, m.shape[1])
      rows, columns = rows.astype(m.dtype), columns.astype(m.dtype)
      product = jnp.einsum("ph,hwc->pwc", rows, m, precision="highest")
      product = jnp.einsum("pwc,qw->pqc", product, columns, precision="highest")
      total += product.astype(jnp.float32)
    return total.astype(maps[0].dtype)

  return jax.lax.map(pool, (level, y, x), batch_size=_ROIS_AT_ONCE)
