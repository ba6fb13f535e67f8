"""Times NMS and ROIAlign against the alternatives that were not taken.

    python -m benchmarks.ops

The work of one 640 x 640 image: NMS of 2000 proposals to 1000, and ROIAlign of
512 rois from P3..P7 with 256 channels, forward and with its gradient. Both
sides of a ratio are measured in the same run, on whatever device JAX finds. It
needs jax and numpy.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from must_jax.ops import boxes as box_ops
from must_jax.ops import nms, roi_align

NUM_IMAGES = 4
IMAGE_SIZE = 640
NUM_BOXES, NUM_KEPT, IOU_THRESHOLD = 2000, 1000, 0.7
NUM_ROIS, CHANNELS, LEVELS = 512, 256, (3, 4, 5, 6, 7)


def sequential_nms(
  boxes: jax.Array, scores: jax.Array, iou_threshold: float, max_outputs: int
) -> tuple[jax.Array, jax.Array]:
  """The textbook algorithm: one step for each kept box."""

  def step(
    scores: jax.Array, _: None
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    best = jnp.argmax(scores)
    found = scores[best] > -jnp.inf
    overlaps = box_ops.iou(boxes[best][None], boxes)[0] > iou_threshold
    drop = overlaps.at[best].set(True)
    return jnp.where(drop, -jnp.inf, scores), (jnp.where(found, best, 0), found)

  return jax.lax.scan(step, scores, length=max_outputs)[1]


def time_ms(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
  """Milliseconds per image, the least of five runs, and the result."""
  compiled = jax.jit(jax.vmap(function)).lower(*args).compile()
  result = jax.block_until_ready(compiled(*args))
  durations = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    durations.append(time.perf_counter() - start)
  return min(durations) * 1000 / len(args[0]), result


def random_boxes(
  rng: np.random.Generator, shape: tuple[int, ...], side: float
) -> jax.Array:
  """Boxes [*shape, 4] in the image with sides around `side`."""
  center = rng.uniform(0, IMAGE_SIZE, (*shape, 2))
  half = side / 2 * np.exp(rng.normal(0, 0.8, (*shape, 2)))
  boxes = np.concatenate([center - half, center + half], -1)
  return jnp.asarray(np.clip(boxes, 0, IMAGE_SIZE), jnp.float32)


def run() -> list[tuple[str, float, str]]:
  """Measures, and checks that both sides agree.

  Returns:
    (name, value, unit or note) for each line of the report.
  """
  rng = np.random.default_rng(0)
  boxes = random_boxes(rng, (NUM_IMAGES, NUM_BOXES), 40)
  scores = jnp.asarray(rng.normal(size=(NUM_IMAGES, NUM_BOXES)), jnp.float32)
  tiled_ms, tiled = time_ms(
    lambda b, s: nms.nms(b, s, s > -jnp.inf, IOU_THRESHOLD, NUM_KEPT),
    boxes,
    scores,
  )
  sequential_ms, sequential = time_ms(
    lambda b, s: sequential_nms(b, s, IOU_THRESHOLD, NUM_KEPT), boxes, scores
  )
  jax.tree.map(np.testing.assert_array_equal, tiled, sequential)

  sizes = [IMAGE_SIZE >> level for level in LEVELS]
  pyramid = {
    level: jnp.asarray(rng.normal(size=(1, n, n, CHANNELS)), jnp.float32)
    for level, n in zip(LEVELS, sizes, strict=True)
  }
  rois = random_boxes(rng, (1, NUM_ROIS), 100)
  pooled: dict[str, list[jax.Array]] = {}
  align_ms: dict[str, list[float]] = {}
  for method in ("gather", "matmul"):
    align = functools.partial(roi_align.multilevel_roi_align, method=method)

    def gradient(
      rois: jax.Array, maps: dict[int, jax.Array], align: Any = align
    ) -> Any:
      return jax.grad(lambda maps: jnp.sum(align(maps, rois) ** 2))(maps)

    found = [
      time_ms(lambda rois, maps, align=align: align(maps, rois), rois, pyramid),
      time_ms(gradient, rois, pyramid),
    ]
    align_ms[method] = [ms for ms, _ in found]
    pooled[method] = [result for _, result in found]
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3),
    pooled["gather"],
    pooled["matmul"],
  )
  chosen = "matmul" if jax.default_backend() == "tpu" else "gather"
  other = "gather" if chosen == "matmul" else "matmul"

  device = jax.devices()[0].device_kind
  figures = [
    (
      f"nms {NUM_BOXES} to {NUM_KEPT}",
      tiled_ms,
      f"ms/image in a batch of {NUM_IMAGES}, {device}",
    ),
    (
      "nms speed over sequential nms",
      sequential_ms / tiled_ms,
      f"x, sequential {sequential_ms:.2f} ms/image, the same boxes",
    ),
  ]
  for i, what in enumerate(("forward", "forward and backward")):
    mine, its = align_ms[chosen][i], align_ms[other][i]
    figures += [
      (
        f"roi_align {NUM_ROIS} rois, {chosen}, {what}",
        mine,
        f"ms/image, {device}",
      ),
      (
        f"roi_align speed over {other}, {what}",
        its / mine,
        f"x, {other} {its:.2f} ms/image",
      ),
    ]
  return figures


if __name__ == "__main__":
  for name, value, note in run():
    print(f"{name}: {value:.2f} {note}")
