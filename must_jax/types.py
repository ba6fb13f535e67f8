"""Glossary of the project: what a batch holds and how labels are shaped.

A batch is a dict of arrays with leading dimension B (examples):

  image          uint8 [B, H, W, 3], padding has the mean colour; with several
                 views of each image [B, V, H, W, 3]
  valid          bool [B], False for the filler of a last partial batch
  content_size   float32 [B, 2], height and width of the image content inside
                 [H, W]; the content sits at the top left
  original_size  float32 [B, 2], height and width of it in the stored image
  position       int32 [B], place of the example in the global order
  labels         {task: {field: {array: ...}}}, arrays by kind of field
                 (`must_jax.fields`)

Boxes are `yxyx` in pixels of the network input with continuous coordinates;
on disk they are normalised by the image size. Normals are unit vectors in the
camera frame: x right, y down, z forward, so that facing surfaces have z < 0.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
PyTree: TypeAlias = Any
Labels: TypeAlias = dict[str, dict[str, Any]]  # field -> array name -> array

# Padding of images, about the mean of ImageNet.
MEAN_COLOR = (124, 116, 104)
# Larger images are refused before they are decoded: a PNG of 1 MB can ask for
# 1 GB.
MAX_PIXELS = 1 << 26
# Pixels of a class map with this value take part in no loss and no metric.
IGNORE_LABEL = 255


class Mean(NamedTuple):
  """A weighted mean kept as its two sums, so that it adds up over devices."""

  total: Array
  count: Array  # type: ignore[assignment]  # hides `tuple.count`

  def compute(self) -> Array:
    """The mean, a scalar float32; 0 where nothing was counted."""
    return self.total / jax.numpy.maximum(self.count, 1)
