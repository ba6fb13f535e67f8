"""Box arithmetic: areas, overlaps and the box code of R-CNN.

  N, M boxes

Boxes are yxyx with continuous coordinates: a box covers [y1, y2) x [x1, x2)
and its height is y2 - y1, without a +1. Everything is finite for degenerate
boxes (empty, inverted).
"""

import math

import jax
import jax.numpy as jnp

from must_jax.types import Array

# Largest growth of a side that `decode` allows (TPU detection repository).
MAX_LOG_SCALE = math.log(1000 / 16)
# Sides below it, in the unit of the boxes, are coded as if they were this long.
_MIN_SIDE = 1e-6


def area(boxes: Array) -> jax.Array:
  """Areas [...] of boxes [..., 4]; 0 for inverted ones."""
  sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
  return sides[..., 0] * sides[..., 1]


def intersection(a: Array, b: Array) -> jax.Array:
  """Areas shared by every pair of a [N, 4] and b [M, 4], as [N, M]."""

  def side(axis: int) -> jax.Array:
    low = jnp.maximum(a[:, None, axis], b[None, :, axis])
    high = jnp.minimum(a[:, None, axis + 2], b[None, :, axis + 2])
    return jnp.maximum(high - low, 0)

  return side(0) * side(1)


def iou(a: Array, b: Array) -> jax.Array:
  """Intersection over union of every pair of a [N, 4] and b [M, 4], as [N, M].

  0 for pairs of empty boxes.
  """
  shared = intersection(a, b)
  union = area(a)[:, None] + area(b)[None, :] - shared
  return shared / jnp.where(union > 0, union, 1)


def ioa(a: Array, b: Array) -> jax.Array:
  """Share of each a [N, 4] that each b [M, 4] covers, as [N, M].

  0 for an empty a.
  """
  area_a = area(a)[:, None]
  return intersection(a, b) / jnp.where(area_a > 0, area_a, 1)


def clip(
  boxes: Array, height: float | Array, width: float | Array
) -> jax.Array:
  """Clips boxes [..., 4] to an image of `height` x `width`."""
  limits = jnp.stack([height, width, height, width]).astype(jnp.float32)
  return jnp.clip(boxes, 0, limits)


def encode(
  boxes: Array,
  anchors: Array,
  weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> jax.Array:
  """Codes boxes relative to anchors (R-CNN, Girshick et al. 2014, appendix C).

  Args:
    boxes: [..., 4].
    anchors: [..., 4], one for each box.
    weights: factors of dy, dx, log dh, log dw.

  Returns:
    Deltas [..., 4]: centre offsets in sides of the anchor, then the logarithm
    of the ratio of sides.
  """
  center, sides = _center_and_sides(boxes)
  anchor_center, anchor_sides = _center_and_sides(anchors)
  sides = jnp.maximum(sides, _MIN_SIDE)
  anchor_sides = jnp.maximum(anchor_sides, _MIN_SIDE)
  deltas = jnp.concatenate(
    [
      (center - anchor_center) / anchor_sides,
      jnp.log(sides) - jnp.log(anchor_sides),
    ],
    axis=-1,
  )
  return deltas * jnp.asarray(weights, jnp.float32)


def decode(
  deltas: Array,
  anchors: Array,
  weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> jax.Array:
  """Inverse of `encode`; a side grows by at most 1000 / 16.

  Args:
    deltas: [..., 4], (dy, dx, log dh, log dw).
    anchors: [..., 4], one for each delta.
    weights: as given to `encode`.

  Returns:
    Boxes [..., 4], not clipped to any image.
  """
  deltas = deltas / jnp.asarray(weights, jnp.float32)
  anchor_center, anchor_sides = _center_and_sides(anchors)
  anchor_sides = jnp.maximum(anchor_sides, _MIN_SIDE)
  center = anchor_center + deltas[..., :2] * anchor_sides
  scale = jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE))
  half = 0.5 * scale * anchor_sides
  return jnp.concatenate([center - half, center + half], axis=-1)


def _center_and_sides(boxes: Array) -> tuple[Array, Array]:
  """Splits [..., 4] into centres (y, x) and sides (height, width)."""
  low, high = boxes[..., :2], boxes[..., 2:]
  return 0.5 * (low + high), high - low
