"""From operations, bytes and rates to time, cores and disks: arithmetic."""

import math
from collections.abc import Callable, Iterable

from must_jax.preflight.chips import Chip
from must_jax.types import (
  Boxes,
  ClassMap,
  ClassVector,
  Field,
  ValueMap,
  VectorMap,
)

# Part of the peak that convolutional networks reach: ResNet-50 and Mask R-CNN
# of MLPerf Training v0.7 to v3.0 on TPU v3 and v4, A100 and H100.
HOPED_MFU = (0.17, 0.35)
# Bytes of a photo: ImageNet's training set, 147.9 GB of 1,281,167 images.
IMAGE_BYTES = 115_000

# Of a core of an AMD EPYC, seconds (docs/results.md, "Data and operations").
# Read, decode and augment: 934 images a second of 500 x 375 to 224 x 224, and
# 339 of 640 x 480 to 640 x 640, both with classes.
_SMALL, _LARGE = (224**2, 1 / 934), (640**2, 1 / 339)
_READ_SECONDS = {  # of labels, at 640 x 640: what they add
  Boxes: 0.0,  # less than the rates differ from run to run
  ClassMap: 1 / 310 - 1 / 339,
  ValueMap: 1 / 282 - 1 / 339,
  VectorMap: 1 / 177 - 1 / 339,
}
# Seconds and bytes to store a pseudo label, for each class of a vector, each
# box and each cell of a map (docs/scale.md, "Labels").
_STORE = {
  ClassVector: (3.6e-7, 6.0),
  Boxes: (1.6e-6, 24.6),
  ClassMap: (1.5e-7, 0.45),
  ValueMap: (2.4e-7, 1.44),
  VectorMap: (3.4e-7, 5.4),
}


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
  labels = sum(_READ_SECONDS.get(type(field), 0.0) for field in fields)
  return _LARGE[1] + slope * (pixels - _LARGE[0]) + labels * pixels / _LARGE[0]


def stored(field: Field, cells: float) -> tuple[float, float]:
  """Core-seconds to encode a pseudo label, and its bytes.

  Args:
    field: of the label.
    cells: of a map, those of the image's content.
  """
  match field:
    case ClassVector():
      count: float = field.num_classes
    case Boxes():
      count = field.max_boxes
    case _:
      count = cells
  seconds, num_bytes = _STORE[type(field)]
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
