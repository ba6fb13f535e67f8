"""Joint geometry of an image and its labels, by kind of field.

One affine map takes image to network pixels: a window of the image is scaled
to the content at the top left of the network input, and may be mirrored.
Everything else derives from it. Pixel i of an array covers [i, i + 1) of its
own extent (half-pixel centres), so cell i of a map with stride s covers
[s i, s (i + 1)) of the network input and takes the label at its centre.

  class maps   nearest
  value maps   bilinear among valid pixels; the nearest decides what is valid
  vector maps  the same, normalised anew
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from must_jax.types import (
  IGNORE_LABEL,
  Boxes,
  ClassMap,
  ClassVector,
  Field,
  ValueMap,
  VectorMap,
)

Tensors = dict[str, tf.Tensor]

# Padding of images, about the mean of ImageNet.
MEAN_COLOR = (124, 116, 104)
_MIN_BOX = 1.0  # pixels of the network input
_NUM_RANDOM = 7  # uniform numbers an example consumes


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
  """How training images vary. The default does nothing but fit them in.

  Attributes:
    scale_jitter: bounds of the scale, relative to the image that just fits.
    flip: mirror every second image.
    color_jitter: strength of brightness, contrast and saturation; each factor
      is uniform in [1 - strength, 1 + strength].
  """

  scale_jitter: tuple[float, float] = (1.0, 1.0)
  flip: bool = False
  color_jitter: float = 0.0

  def __post_init__(self):
    low, high = self.scale_jitter
    if not 0 < low <= high:
      raise ValueError(
        f"scale_jitter is {self.scale_jitter}; expected two positive numbers,"
        " the lower one first, such as (0.5, 2.0)."
      )
    if not 0 <= self.color_jitter < 1:
      raise ValueError(
        f"color_jitter is {self.color_jitter}; expected 0 (off) or less than 1."
      )


class Geometry(NamedTuple):
  """From image pixels to network pixels.

  Attributes:
    size: int32 [2], height and width of the image.
    window: int32 [4], y, x, height, width of what is seen of the image.
    content: int32 [2], height and width of it in the network input.
    flip: bool, whether it is mirrored.
  """

  size: tf.Tensor
  window: tf.Tensor
  content: tf.Tensor
  flip: tf.Tensor


def random_numbers(seed: int, position: tf.Tensor) -> tf.Tensor:
  """All chance in an example, float32 [7] in [0, 1): seed and position."""
  position = tf.cast(position, tf.int64)
  return tf.random.stateless_uniform(
    [_NUM_RANDOM], seed=tf.stack([tf.constant(seed, tf.int64), position])
  )


def make_geometry(
  size: tf.Tensor,
  image_size: tuple[int, int],
  options: AugmentOptions,
  random: tf.Tensor,
) -> Geometry:
  """Chooses scale, crop and flip of an image.

  The scale keeps the aspect up to rounding; an image that becomes larger than
  the network input is cropped, a smaller one is padded (RECIPE:
  `resize_and_crop_image`; here the crop has whole image pixels, so that only
  the window needs to be decoded).

  Args:
    size: int32 [2], height and width of the image.
    image_size: (H, W) of the network input.
    options: bounds of the chance.
    random: float32 [7] from `random_numbers`.
  """
  low, high = options.scale_jitter
  source = tf.cast(size, tf.float32)
  target = tf.constant(image_size, tf.float32)
  jitter = low + (high - low) * random[0]
  scale = jitter * tf.reduce_min(target / source)
  # With scale (1, 1) this is exactly 1 along the side that fits.
  visible = tf.clip_by_value(tf.round(target / scale), 1, source)
  content = tf.clip_by_value(tf.round(source * scale), 1, target)
  content = tf.where(visible < source, target, content)
  room = source - visible
  offset = tf.minimum(tf.floor(random[1:3] * (room + 1)), room)
  return Geometry(
    size=size,
    window=tf.cast(tf.concat([offset, visible], 0), tf.int32),
    content=tf.cast(content, tf.int32),
    flip=tf.constant(options.flip) & (random[3] < 0.5),
  )


def whole_image(size: tf.Tensor) -> Geometry:
  """An image as it is: int32 [2], its height and width."""
  window = tf.concat([tf.zeros_like(size), size], 0)
  return Geometry(size, window, content=size, flip=tf.constant(False))


def transform_image(
  pixels: tf.Tensor,
  geometry: Geometry,
  image_size: tuple[int, int],
  options: AugmentOptions,
  random: tf.Tensor,
) -> tf.Tensor:
  """Network input from the window of an image, padded with the mean colour.

  Args:
    pixels: uint8 [height, width, 3] of `geometry.window`.
    geometry: of the example.
    image_size: (H, W) of the network input.
    options: bounds of the chance.
    random: float32 [7] from `random_numbers`.

  Returns:
    uint8 [H, W, 3]
  """
  pixels = tf.cond(
    geometry.flip, lambda: tf.reverse(pixels, [1]), lambda: pixels
  )
  pixels = tf.image.resize(pixels, geometry.content)
  if options.color_jitter:
    pixels = _color_jitter(pixels, options.color_jitter, random[4:7])
  pixels = tf.cast(pixels + 0.5, tf.uint8)
  # Copying a constant is faster than tf.where and takes any colour.
  mean = tf.constant(np.full((*image_size, 3), MEAN_COLOR, np.uint8))
  height, width = tf.unstack(geometry.content)
  pixels = tf.concat([pixels, mean[:height, width:]], 1)
  pixels = tf.concat([pixels, mean[height:]], 0)
  return tf.ensure_shape(pixels, [*image_size, 3])


def _color_jitter(
  pixels: tf.Tensor, strength: float, random: tf.Tensor
) -> tf.Tensor:
  brightness, contrast, saturation = tf.unstack(1 + strength * (2 * random - 1))
  pixels = pixels * brightness
  grey = tf.reduce_sum(pixels * [0.299, 0.587, 0.114], -1, keepdims=True)
  pixels = grey + saturation * (pixels - grey)
  mean = tf.reduce_mean(grey)
  return tf.clip_by_value(mean + contrast * (pixels - mean), 0, 255)


def transform_labels(
  labels: Mapping[str, Tensors],
  fields: Mapping[str, Field],
  geometry: Geometry,
  image_size: tuple[int, int],
  label_stride: int,
) -> dict[str, Tensors]:
  """Labels in the form of a batch, without its leading dimension.

  Args:
    labels: from `parsing.parse_labels`.
    fields: kinds of the labels.
    geometry: of the example.
    image_size: (H, W) of the network input.
    label_stride: network pixels per cell of a map.
  """
  grid = _Grid(geometry, image_size, label_stride)
  result = {}
  for name, field in fields.items():
    arrays = labels[name]
    match field:
      case ClassVector():
        moved = {"probs": arrays["probs"]}
      case Boxes():
        moved = _move_boxes(arrays, geometry, field.max_boxes)
      case ClassMap():
        moved = _move_class_map(arrays, grid)
      case ValueMap():
        values, valid = _move_map(
          arrays["values"][..., None], arrays["valid"], grid
        )
        moved = {"values": values[..., 0], "valid": valid}
      case VectorMap():
        moved = _move_vector_map(arrays, grid)
    result[name] = {**moved, "present": arrays["present"]}
  return result


def _move_boxes(arrays: Tensors, geometry: Geometry, max_boxes: int) -> Tensors:
  """Boxes [n] to network pixels, the best scored of them in `max_boxes`."""
  corners = tf.reshape(arrays["boxes"], [-1, 2, 2])
  content = tf.cast(geometry.content, tf.float32)
  offset, visible = tf.split(tf.cast(geometry.window, tf.float32), 2)
  corners = corners * tf.cast(geometry.size, tf.float32) - offset
  corners = corners * (content / visible)
  y0, x0, y1, x1 = tf.unstack(tf.reshape(corners, [-1, 4]), axis=1)
  x0, x1 = (
    tf.where(geometry.flip, content[1] - x1, x0),
    tf.where(geometry.flip, content[1] - x0, x1),
  )
  boxes = tf.stack([y0, x0, y1, x1], 1)
  boxes = tf.clip_by_value(boxes, 0.0, tf.tile(content, [2]))
  keep = tf.reduce_all(boxes[:, 2:] - boxes[:, :2] >= _MIN_BOX, 1)
  scores = tf.boolean_mask(arrays["scores"], keep)
  best = tf.argsort(scores, direction="DESCENDING", stable=True)[:max_boxes]

  def pad(values: tf.Tensor) -> tf.Tensor:
    values = tf.gather(tf.boolean_mask(values, keep), best)
    rows = [[0, max_boxes - tf.size(best)]]
    values = tf.pad(values, rows + [[0, 0]] * (values.shape.rank - 1))
    return tf.ensure_shape(values, [max_boxes, *values.shape[1:]])

  return {
    "boxes": pad(boxes),
    "classes": pad(arrays["classes"]),
    "scores": pad(arrays["scores"]),
    "ignore": pad(arrays["ignore"]),
    "valid": pad(tf.ones_like(arrays["ignore"])),
  }


class _Grid:
  """Where the centres of a map's cells lie in the image.

  Attributes:
    rows: float32 [h], y as a fraction of the image's height.
    cols: float32 [w], x as a fraction of the image's width.
    inside: bool [h, w], whether a centre lies on the content.
    flip: bool, whether the content is mirrored.
  """

  def __init__(
    self, geometry: Geometry, image_size: tuple[int, int], stride: int
  ):
    content = tf.cast(geometry.content, tf.float32)
    size = tf.cast(geometry.size, tf.float32)
    offset, visible = tf.split(tf.cast(geometry.window, tf.float32), 2)
    y, x = (
      (tf.range(side // stride, dtype=tf.float32) + 0.5) * stride
      for side in image_size
    )
    self.inside = (y < content[0])[:, None] & (x < content[1])[None]
    x = tf.where(geometry.flip, content[1] - x, x)
    self.rows = (offset[0] + y * visible[0] / content[0]) / size[0]
    self.cols = (offset[1] + x * visible[1] / content[1]) / size[1]
    self.flip = geometry.flip

  def nearest(self, array: tf.Tensor) -> tf.Tensor:
    """Samples [mh, mw, ...] at the centres: [h, w, ...]."""
    for axis, place in enumerate((self.rows, self.cols)):
      cells = tf.shape(array)[axis]
      index = tf.cast(tf.floor(place * tf.cast(cells, tf.float32)), tf.int32)
      array = tf.gather(array, tf.clip_by_value(index, 0, cells - 1), axis=axis)
    return array

  def bilinear(self, array: tf.Tensor) -> tf.Tensor:
    """Samples float [mh, mw, c] between its centres: [h, w, c]."""
    for axis, place in enumerate((self.rows, self.cols)):
      cells = tf.shape(array)[axis]
      centre = place * tf.cast(cells, tf.float32) - 0.5
      low = tf.floor(centre)
      weight = tf.reshape(centre - low, [-1, 1] if axis else [-1, 1, 1])
      index = tf.cast(low, tf.int32)
      below, above = (
        tf.gather(array, tf.clip_by_value(i, 0, cells - 1), axis=axis)
        for i in (index, index + 1)
      )
      array = below + weight * (above - below)
    return array


def _move_class_map(arrays: Tensors, grid: _Grid) -> Tensors:
  classes = grid.nearest(arrays["classes"])
  return {"classes": tf.where(grid.inside, classes, IGNORE_LABEL)}


def _move_map(
  values: tf.Tensor, valid: tf.Tensor, grid: _Grid
) -> tuple[tf.Tensor, tf.Tensor]:
  """Values float [mh, mw, c] and what is valid of them, at the cells."""
  weight = tf.cast(valid, tf.float32)[..., None]
  sums = grid.bilinear(tf.concat([values * weight, weight], -1))
  valid = grid.nearest(valid) & grid.inside
  # The nearest pixel has a weight of a quarter at least.
  values = sums[..., :-1] / tf.maximum(sums[..., -1:], 0.1)
  return tf.where(valid[..., None], values, 0), valid


def _move_vector_map(arrays: Tensors, grid: _Grid) -> Tensors:
  vectors, valid = _move_map(arrays["vectors"], arrays["valid"], grid)
  mirror = tf.where(grid.flip, [-1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
  # Opposite neighbours cancel; such a mean has no direction.
  valid &= tf.norm(vectors, axis=-1) > 0.1
  vectors = tf.math.l2_normalize(vectors * mirror, -1)
  return {
    "vectors": tf.where(valid[..., None], vectors, 0),
    "valid": valid,
  }
