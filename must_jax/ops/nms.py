"""Greedy non-maximum suppression without a loop over boxes.

  N boxes, T tiles

Boxes are sorted by score and cut into tiles of 32, one for each bit of a word.
A tile decides which of its boxes live by a fixed recurrence on 32 words, which
compiles into one kernel, and then suppresses the tiles behind it. The result is
that of the greedy algorithm, exactly. The number of steps does not depend on
the data: a loop until convergence, as TPU detectors have it, would make all
devices of a sharded batch agree on its end at every step.

One image at a time, fixed shapes; callers vmap.
"""

import jax
import jax.numpy as jnp

from must_jax.ops.topk import top_k
from must_jax.types import Array

_TILE = 32


def nms(
  boxes: Array,
  scores: Array,
  valid: Array,
  iou_threshold: float,
  max_outputs: int,
) -> tuple[jax.Array, jax.Array]:
  """Drops boxes that overlap a kept box of higher score.

  Args:
    boxes: [N, 4].
    scores: [N]; of equal scores the lower index goes first.
    valid: bool [N]; padding neither suppresses nor is kept.
    iou_threshold: a box is dropped if the IoU is greater than this.
    max_outputs: D, number of kept boxes, at most.

  Returns:
    Indices int32 [D] of the kept boxes by falling score, and bool [D] which of
    them are there; the indices of the others are 0.
  """
  return batched_nms(
    boxes, scores, jnp.zeros(len(scores)), valid, iou_threshold, max_outputs
  )


def batched_nms(
  boxes: Array,
  scores: Array,
  classes: Array,
  valid: Array,
  iou_threshold: float,
  max_outputs: int,
) -> tuple[jax.Array, jax.Array]:
  """As `nms`, but boxes only drop boxes of their own class.

  Args:
    boxes: [N, 4].
    scores: [N].
    classes: int32 [N].
    valid: bool [N].
    iou_threshold: see `nms`.
    max_outputs: D, number of kept boxes of all classes, at most.

  Returns:
    Indices int32 [D] and bool [D], see `nms`.
  """
  count = len(scores)
  order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
  # Coordinates first, so that boxes fill the lanes; classes as a fifth one.
  columns = jnp.concatenate([boxes, classes[:, None]], axis=1)[order].T
  padding = -count % _TILE
  columns = jnp.pad(columns, ((0, 0), (0, padding)))
  alive = jnp.pad(valid[order], (0, padding))
  tiles = columns.reshape(5, -1, _TILE).swapaxes(0, 1)  # [T, 5, 32]
  bit = jnp.arange(_TILE, dtype=jnp.uint32)

  def step(
    alive: jax.Array, inputs: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    """Settles one tile; `alive` [N] are the boxes nobody suppressed so far."""
    start, tile = inputs
    overlaps = _overlaps(tile, columns, iou_threshold)  # [32, N]
    inside = jax.lax.dynamic_slice_in_dim(overlaps, start, _TILE, 1)
    # Not a `where` of words, which ONNX Runtime has in few of its builds.
    later = inside & (bit > bit[:, None])
    words = jnp.sum(later.astype(jnp.uint32) << bit, 1, dtype=jnp.uint32)
    living = jax.lax.dynamic_slice_in_dim(alive, start, _TILE)
    state = jnp.sum(living.astype(jnp.uint32) << bit, dtype=jnp.uint32)
    # Bit i is final once the boxes before it had their turn.
    for i in range(_TILE - 1):
      state &= ~(words[i] * ((state >> i) & 1))
    kept = ((state >> bit) & 1).astype(bool)
    return alive & ~jnp.any(overlaps & kept[:, None], axis=0), kept

  starts = jnp.arange(0, count + padding, _TILE)
  _, kept = jax.lax.scan(step, alive, (starts, tiles))
  kept = kept.reshape(-1)[:count]

  place = jnp.where(kept, -jnp.arange(count, dtype=jnp.float32), -jnp.inf)
  place, index = top_k(place, min(max_outputs, count))
  found = place > -jnp.inf
  index = jnp.where(found, order[index], 0)
  padding = max(max_outputs - count, 0)
  return jnp.pad(index, (0, padding)), jnp.pad(found, (0, padding))


def _overlaps(a: jax.Array, b: jax.Array, threshold: float) -> jax.Array:
  """Whether boxes of one class overlap, bool [N, M], of columns [5, N], [5, M].

  Without a division: of empty boxes 0 > 0 is false.
  """
  a, b = a[:, :, None], b[:, None, :]
  height = jnp.minimum(a[2], b[2]) - jnp.maximum(a[0], b[0])
  width = jnp.minimum(a[3], b[3]) - jnp.maximum(a[1], b[1])
  shared = jnp.maximum(height, 0) * jnp.maximum(width, 0)
  area_a = jnp.maximum(a[2] - a[0], 0) * jnp.maximum(a[3] - a[1], 0)
  area_b = jnp.maximum(b[2] - b[0], 0) * jnp.maximum(b[3] - b[1], 0)
  return (shared > threshold * (area_a + area_b - shared)) & (a[4] == b[4])
