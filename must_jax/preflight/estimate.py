"""From operations, bytes and rates to time, cores and disks: arithmetic."""

import math
from collections.abc import Callable, Iterable

from must_jax.fields import Field
from must_jax.preflight.chips import Chip

# Part of the peak that convolutional networks reach: ResNet-50 and Mask R-CNN
# of MLPerf Training v0.7 to v3.0 on TPU v3 and v4, A100 and H100.
HOPED_MFU = (0.17, 0.35)
# Bytes of a photo: ImageNet's training set, 147.9 GB of 1,281,167 images.
IMAGE_BYTES = 115_000

# Of a core of an AMD EPYC, seconds (docs/speed.md, "Input: ..."). Read, decode
# and augment: 957 images a second of 500 x 375 to 224 x 224, and 370 of
# 640 x 480 to 640 x 640, both with classes.
_SMALL, _LARGE = (224**2, 1 / 957), (640**2, 1 / 370)


def bounds(
  chip: Chip, flops: float, num_bytes: float, sent: float
) -> dict[str, float]:
  """Seconds below which no step can be, by what would limit it.

  Args:
    chip: that does the work.
    flops: operations of a chip.
    num_bytes: that cross its memory's interface.
    sent: bytes that it sends to others.
  """
  return {
    "operations": flops / chip.flops,
    "memory": num_bytes / chip.hbm_bandwidth,
    "links": sent / chip.ici_bandwidth,
  }


def hoped_seconds(
  chip: Chip, flops: float, bound: float
) -> tuple[float, float]:
  """Seconds of a step at the worse and the better of `HOPED_MFU`.

  Args:
    chip: that does the work.
    flops: operations of the model for the images of a chip.
    bound: seconds that it takes at least.
  """
  worse, better = (max(bound, flops / (mfu * chip.flops)) for mfu in HOPED_MFU)
  return worse, better


def input_seconds(
  image_size: tuple[int, int], fields: Iterable[Field]
) -> float:
  """Core-seconds to make one training example, or the input of a teacher.

  Args:
    image_size: (H, W) of the network input.
    fields: labels that are read.
  """
  pixels = math.prod(image_size)
  slope = (_LARGE[1] - _SMALL[1]) / (_LARGE[0] - _SMALL[0])
  labels = sum(field.read_seconds for field in fields)
  return _LARGE[1] + slope * (pixels - _LARGE[0]) + labels * pixels / _LARGE[0]


def stored(field: Field, cells: float) -> tuple[float, float]:
  """Core-seconds to encode a pseudo label, and its bytes.

  Args:
    field: of the label.
    cells: of a map, those of the image's content.
  """
  seconds, num_bytes = field.store_cost
  count = field.num_elements(cells)
  return count * seconds, count * num_bytes


def largest(fits: Callable[[int], bool], start: int) -> int:
  """The largest number that fits, 0 if none does; what fits less, fits more.

  Args:
    fits: asked as few times as bisection allows, for it takes minutes.
    start: where to begin, about the answer.
  """
  low, high = 0, start
  while fits(high):
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    if fits(middle):
      low = middle
    else:
      high = middle
  return low
