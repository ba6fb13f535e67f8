"""Glossary of the project: what a batch holds and how labels are shaped.

A batch is a dict of arrays with leading dimension B (examples):

  image          uint8 [B, H, W, 3], padding has the mean colour; with several
                 views of each image [B, V, H, W, 3]
  valid          bool [B], False for the filler of a last partial batch
  content_size   float32 [B, 2], height and width of the image content inside
                 [H, W]; the content sits at the top left
  original_size  float32 [B, 2], height and width of it in the stored image
  position       int32 [B], place of the example in the global order
  labels         {task: {field: {array: ...}}}, arrays by kind of field (below)

Boxes are `yxyx` in pixels of the network input with continuous coordinates;
on disk they are normalised by the image size. Normals are unit vectors in the
camera frame: x right, y down, z forward, so that facing surfaces have z < 0.
"""

import dataclasses
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
PyTree: TypeAlias = Any
Labels: TypeAlias = dict[str, dict[str, Any]]  # field -> array name -> array

# Padding of images, about the mean of ImageNet.
MEAN_COLOR = (124, 116, 104)
# Pixels of a class map with this value take part in no loss and no metric.
IGNORE_LABEL = 255


class Mean(NamedTuple):
  """A weighted mean kept as its two sums, so that it adds up over devices."""

  total: Array
  count: Array  # type: ignore[assignment]  # hides `tuple.count`

  def compute(self) -> Array:
    """The mean; 0 where nothing was counted."""
    return self.total / jax.numpy.maximum(self.count, 1)


# Kinds of label field. The data layer crops, scales, flips, stores and reads a
# field by its kind alone. Every field also carries `present` [B] bool: False
# where an example has no such label.


@dataclasses.dataclass(frozen=True)
class ClassVector:
  """Image-level classes: `probs` float32 [B, K] (one-hot, soft, multi-hot)."""

  num_classes: int


@dataclasses.dataclass(frozen=True)
class Boxes:
  """Objects: `boxes` [B, G, 4], `classes`, `scores`, `valid`, `ignore` [B, G].

  `ignore` marks crowds and difficult objects: neither a target nor a mistake.

  Attributes:
    num_classes: number of classes; ids are 0..K-1, there is no background id.
    max_boxes: G, boxes beyond it are dropped (lowest scores first).
    min_score: pseudo boxes with a lower score are dropped when read.
  """

  num_classes: int
  max_boxes: int = 100
  min_score: float = 0.5


@dataclasses.dataclass(frozen=True)
class ClassMap:
  """Class per pixel: `classes` int32 [B, h, w], `IGNORE_LABEL` where unknown.

  Attributes:
    num_classes: number of classes, at most 255.
    min_score: pseudo pixels of lower confidence become `IGNORE_LABEL` when
      read.
  """

  num_classes: int
  min_score: float = 0.5


@dataclasses.dataclass(frozen=True)
class ValueMap:
  """Scalar per pixel: `values` float32 [B, h, w], `valid` bool [B, h, w].

  Attributes:
    unit: "" for whatever is stored; of depth, "metres" or "inverse" (1 over
      the distance up to scale and shift). Stored metres are read as inverse
      depth where that is asked for; the other way there is none.
  """

  unit: str = ""


@dataclasses.dataclass(frozen=True)
class VectorMap:
  """Unit vector per pixel: `vectors` float32 [B, h, w, 3], `valid` bool."""


Field: TypeAlias = ClassVector | Boxes | ClassMap | ValueMap | VectorMap
