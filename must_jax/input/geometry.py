"""Joint geometry of an image and its labels, by kind of field.

One affine map takes image to network pixels: a window of the image is scaled
to the content at the top left of the network input, each axis by its own
factor, and may be mirrored. Everything else derives from it. Pixel i of an
array covers [i, i + 1) of its own extent (half-pixel centres), so cell i of a
map with stride s covers [s i, s (i + 1)) of the network input and takes the
label at its centre.

  class maps   nearest
  value maps   bilinear among valid pixels; the nearest decides what is valid
  vector maps  the same, normalised anew

Crops and scales, unequal ones too, leave normals as they are: a stretched
image is the same surface seen by a camera of other focal lengths. A mirrored
image is another surface, whose normals have the opposite x.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from must_jax.input import color
from must_jax.input.color import ColorOptions
from must_jax.types import (
  IGNORE_LABEL,
  MEAN_COLOR,
  Boxes,
  ClassMap,
  ClassVector,
  Field,
  ValueMap,
  VectorMap,
)

Tensors = dict[str, tf.Tensor]

RESIZE = ("pad", "stretch", "center_crop", "inception_crop")
_MIN_BOX = 1.0  # pixels of the network input
_TRIES = 10  # at a random crop, as in torchvision

# What the uniform numbers of an example are for: 0 scale, 1 and 2 place of the
# window, 3 flip, then
_COLOR = slice(4, 4 + color.NUM_RANDOM)
_CROP = slice(_COLOR.stop, _COLOR.stop + 2 * _TRIES)
_NUM_RANDOM = _CROP.stop
_BLOCK = 64  # positions whose chance is drawn together
_STREAM = 4  # apart from those of `order`


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
  """How images reach the network, and how they vary in training.

  The default does nothing but fit them in.

  Attributes:
    scale_jitter: bounds of the scale, relative to the image that just fits;
      for "pad". (0.1, 2.0) is large-scale jitter (Ghiasi et al. 2021,
      Copy-Paste).
    resize: "pad" fits the image in, times the scale jitter, crops what is too
      large and pads what is too small. The others fill the input: "stretch"
      with the whole image; "center_crop" with the middle of it, unstretched;
      "inception_crop" with a random part, stretched. What a crop leaves out is
      not there for labels and metrics either.
    crop_fraction: side of the centre crop, relative to the largest that the
      image has. 0.875 is the shorter side resized to 256, cropped to 224.
    crop_area: bounds of the area of an Inception crop, relative to the image.
    crop_aspect: bounds of its width over height, relative to the network
      input (Szegedy et al. 2015; log-uniform, as in torchvision).
    flip: mirror every second image.
    antialias_below: scale below which the image is averaged as it shrinks,
      which costs time; 0 never, 1 always (as Pillow does). Otherwise each
      pixel interpolates its four nearest.
    color: how colours vary.
  """

  scale_jitter: tuple[float, float] = (1.0, 1.0)
  resize: str = "pad"
  crop_fraction: float = 0.875
  crop_area: tuple[float, float] = (0.08, 1.0)
  crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
  flip: bool = False
  antialias_below: float = 0.0
  color: ColorOptions = dataclasses.field(default_factory=ColorOptions)

  def __post_init__(self):
    if self.resize not in RESIZE:
      raise ValueError(
        f"resize is {self.resize!r}; expected one of {sorted(RESIZE)}."
      )
    for name, example in (
      ("scale_jitter", (0.5, 2.0)),
      ("crop_area", (0.08, 1.0)),
      ("crop_aspect", (0.75, 1.33)),
    ):
      bounds = getattr(self, name)
      if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
        raise ValueError(
          f"{name} is {bounds}; expected two positive numbers, the lower one"
          f" first, such as {example}."
        )
    if self.crop_area[1] > 1:
      raise ValueError(
        f"crop_area is {self.crop_area}; expected fractions of the image, at"
        " most 1."
      )
    if not 0 < self.crop_fraction <= 1:
      raise ValueError(
        f"crop_fraction is {self.crop_fraction}; expected more than 0 and at"
        " most 1 (the largest crop)."
      )
    if not 0 <= self.antialias_below <= 1:
      raise ValueError(
        f"antialias_below is {self.antialias_below}; expected 0 (never) to 1"
        " (whenever an image shrinks)."
      )
    if self.resize != "pad" and tuple(self.scale_jitter) != (1, 1):
      raise ValueError(
        f"scale_jitter is {self.scale_jitter}, but resize {self.resize!r}"
        " chooses the scale itself; set scale_jitter to (1.0, 1.0), or resize"
        " to 'pad'."
      )


class Geometry(NamedTuple):
  """From image pixels to network pixels.

  Attributes:
    size: int32 [2], height and width of the image.
    window: int32 [4], y, x, height, width of what is seen of the image.
    content: int32 [2], height and width of it in the network input.
    flip: bool, whether it is mirrored.
    reduction: int32, 1, 2, 4 or 8, a divisor of the window: squares of so many
      pixels a side are averaged before it is scaled.
  """

  size: tf.Tensor
  window: tf.Tensor
  content: tf.Tensor
  flip: tf.Tensor
  reduction: tf.Tensor | int = 1


def random_numbers(seed: int, position: tf.Tensor, view: int = 0) -> tf.Tensor:
  """All chance in examples: float32 [..., n], uniform in [0, 1).

  Args:
    seed: of the run.
    position: int64 [...], of the examples.
    view: which of several independent views of the images it is.
  """

  def draw(position: np.ndarray) -> np.ndarray:
    block, place = np.divmod(position, _BLOCK)
    random = np.empty((*position.shape, _NUM_RANDOM), np.float32)
    for number in set(block.ravel().tolist()):
      here = block == number
      random[here] = _random_block(seed, view, number)[place[here]]
    return random

  random = tf.numpy_function(draw, [position], tf.float32, stateful=False)
  return tf.ensure_shape(random, [*position.shape, _NUM_RANDOM])


@functools.lru_cache(64)
def _random_block(seed: int, view: int, block: int) -> np.ndarray:
  """The chance of `_BLOCK` positions; no version of numpy may change it."""
  words = [word % 2**64 for word in (seed, view, _STREAM, block)]
  bits = np.random.Philox(np.random.SeedSequence(words)).random_raw(
    _BLOCK * _NUM_RANDOM
  )
  return (bits >> 40).astype(np.float32).reshape(_BLOCK, -1) / 2**24


def make_geometry(
  size: tf.Tensor,
  image_size: tuple[int, int],
  options: AugmentOptions,
  random: tf.Tensor,
) -> Geometry:
  """Chooses scale, crop and flip of an image.

  Windows have whole image pixels, so that only the window needs to be decoded;
  an aspect that is kept is kept up to rounding. (`pad` is RECIPE's
  `resize_and_crop_image`.)

  Args:
    size: int32 [2], height and width of the image.
    image_size: (H, W) of the network input.
    options: bounds of the chance.
    random: from `random_numbers`.
  """
  source = tf.cast(size, tf.float32)
  target = tf.constant(image_size, tf.float32)
  content = tf.broadcast_to(image_size, tf.shape(size))
  place = random[..., 1:3]
  match options.resize:
    case "pad":
      low, high = options.scale_jitter
      jitter = low + (high - low) * random[..., :1]
      scale = jitter * tf.reduce_min(target / source, -1, keepdims=True)
      # With scale (1, 1) this is exactly 1 along the side that fits.
      visible = tf.clip_by_value(tf.round(target / scale), 1, source)
      scaled = tf.clip_by_value(tf.round(source * scale), 1, target)
      content = tf.where(visible < source, content, tf.cast(scaled, tf.int32))
    case "stretch":
      visible = source
    case "center_crop":
      side = options.crop_fraction * tf.reduce_min(
        source / target, -1, keepdims=True
      )
      visible = tf.clip_by_value(tf.round(side * target), 1, source)
    case _:
      visible, place = _inception_crop(source, target, options, random)
  # An image that shrinks to less than half would alias, and decoding it at half
  # the size takes less time. Pixels of the window that fill no square are cut
  # off.
  shrink = visible / tf.cast(content, tf.float32)
  shrink = tf.reduce_min(shrink, -1, keepdims=True)
  halvings = tf.cast(shrink >= [2.0, 4.0, 8.0], tf.float32)
  reduction = 2.0 ** tf.reduce_sum(halvings, -1, keepdims=True)
  visible = tf.floor(visible / reduction) * reduction
  room = source - visible
  if options.resize == "center_crop":
    offset = tf.floor(room / 2)
  else:
    offset = tf.minimum(tf.floor(place * (room + 1)), room)
  offset = tf.floor(offset / reduction) * reduction
  return Geometry(
    size=size,
    window=tf.cast(tf.concat([offset, visible], -1), tf.int32),
    content=content,
    flip=tf.constant(options.flip) & (random[..., 3] < 0.5),
    reduction=tf.cast(reduction[..., 0], tf.int32),
  )


def _inception_crop(
  source: tf.Tensor,
  target: tf.Tensor,
  options: AugmentOptions,
  random: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Sides float32 [2] of a random window, and its place in [0, 1).

  It is the first of ten tries that the image has room for, or else the largest
  window of an allowed aspect, in the middle.
  """
  areas, aspects = tf.split(random[..., _CROP], 2, -1)
  low, high = options.crop_area
  whole = tf.reduce_prod(source, -1, keepdims=True)
  areas = (low + (high - low) * areas) * whole
  low, high = options.crop_aspect
  square = target[1] / target[0]  # width over height that is not stretched
  aspects = square * low * (high / low) ** aspects
  tries = tf.round(tf.sqrt(tf.stack([areas / aspects, areas * aspects], -1)))
  height, width = tf.unstack(source, axis=-1)
  aspect = tf.clip_by_value(width / height, square * low, square * high)
  largest = tf.stack([width / aspect, height * aspect], -1)
  largest = tf.maximum(tf.round(tf.minimum(source, largest)), 1)
  # The last window always fits.
  sides = tf.concat([tries, largest[..., None, :]], -2)
  fits = tf.reduce_all((sides >= 1) & (sides <= source[..., None, :]), -1)
  chosen = tf.argmax(fits, -1)
  sides = tf.gather(sides, chosen, batch_dims=chosen.shape.rank)
  has_room = (chosen < _TRIES)[..., None]
  return sides, tf.where(has_room, random[..., 1:3], 0.5)


def whole_image(size: tf.Tensor) -> Geometry:
  """An image as it is: int32 [2], its height and width."""
  window = tf.concat([tf.zeros_like(size), size], -1)
  ones = tf.ones_like(size[..., 0])
  return Geometry(size, window, content=size, flip=ones < 1, reduction=ones)


def transform_image(
  pixels: tf.Tensor,
  geometry: Geometry,
  image_size: tuple[int, int],
  options: AugmentOptions,
  random: tf.Tensor,
) -> tf.Tensor:
  """Network input from the window of an image, padded with the mean colour.

  Args:
    pixels: uint8 [h, w, 3] of `geometry.window`, reduced.
    geometry: of the example.
    image_size: (H, W) of the network input.
    options: bounds of the chance.
    random: from `random_numbers`.

  Returns:
    uint8 [H, W, 3]
  """
  # TensorFlow resizes floats twice as fast as bytes.
  pixels = tf.cast(pixels, tf.float32)
  pixels = _resize(pixels, geometry.content, options.antialias_below)
  pixels = color.distort(pixels, options.color, random[_COLOR])
  # Rounds and casts in one operation, which is twice as fast.
  pixels = tf.raw_ops.QuantizeV2(
    input=pixels, min_range=0.0, max_range=255.0, T=tf.quint8
  ).output
  pixels = tf.bitcast(pixels, tf.uint8)
  pixels = tf.cond(
    geometry.flip, lambda: tf.reverse(pixels, [1]), lambda: pixels
  )
  if options.resize != "pad":
    return tf.ensure_shape(pixels, [*image_size, 3])
  # Copying a constant is faster than tf.where and takes any colour.
  mean = tf.constant(np.full((*image_size, 3), MEAN_COLOR, np.uint8))
  height, width = tf.unstack(geometry.content)
  pixels = tf.concat([pixels, mean[:height, width:]], 1)
  pixels = tf.concat([pixels, mean[height:]], 0)
  return tf.ensure_shape(pixels, [*image_size, 3])


def _resize(
  pixels: tf.Tensor, size: tf.Tensor, antialias_below: float
) -> tf.Tensor:
  def resize(antialias: bool) -> tf.Tensor:
    return tf.image.resize(pixels, size, antialias=antialias)

  if not antialias_below:
    return resize(False)
  scale = size / tf.shape(pixels)[:2]
  return tf.cond(
    tf.reduce_min(scale) < antialias_below,
    lambda: resize(True),
    lambda: resize(False),
  )


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
  # One table is moved with fewer operations than many arrays; ids of classes
  # are small enough to be exact.
  columns = [
    tf.cast(arrays[name], tf.float32) for name in ("classes", "ignore")
  ]
  rows = tf.stack([*columns, arrays["scores"], tf.cast(keep, tf.float32)], 1)
  rows = tf.concat([boxes, rows], 1)
  ranks = tf.where(keep, arrays["scores"], -1.0)
  best = tf.argsort(ranks, direction="DESCENDING", stable=True)[:max_boxes]
  rows = tf.gather(rows, best)
  rows = tf.where(rows[:, 7:] > 0, rows, 0.0)
  rows = tf.pad(rows, [[0, max_boxes - tf.shape(rows)[0]], [0, 0]])
  rows = tf.ensure_shape(rows, [max_boxes, 8])
  return {
    "boxes": rows[:, :4],
    "classes": tf.cast(rows[:, 4], tf.int32),
    "scores": rows[:, 6],
    "ignore": rows[:, 5] > 0,
    "valid": rows[:, 7] > 0,
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
    for place in (self.rows, self.cols):
      cells = tf.shape(array)[0]
      index = tf.cast(tf.floor(place * tf.cast(cells, tf.float32)), tf.int32)
      array = tf.gather(array, tf.clip_by_value(index, 0, cells - 1))
      array = _swap(array)
    return array

  def bilinear(self, array: tf.Tensor) -> tf.Tensor:
    """Samples float [mh, mw, c] between its centres: [h, w, c]."""
    # Edges are repeated: the operation knows nothing beyond them.
    padded = tf.pad(array, [[1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    low, high = [], []
    for place, cells in zip(
      (self.rows, self.cols), tf.unstack(tf.shape(array))[:2], strict=True
    ):
      # Its coordinates are 0 at the first centre and 1 at the last.
      cells = tf.cast(cells, tf.float32)
      low.append((place[0] * cells + 0.5) / (cells + 1))
      high.append((place[-1] * cells + 0.5) / (cells + 1))
    size = [self.rows.shape[0], self.cols.shape[0]]
    return tf.image.crop_and_resize(
      padded[None], tf.stack([low + high]), [0], size
    )[0]


def _swap(array: tf.Tensor) -> tf.Tensor:
  """Exchanges rows and columns; gathering columns themselves takes longer."""
  return tf.transpose(array, [1, 0, *range(2, array.shape.rank)])


def _move_class_map(arrays: Tensors, grid: _Grid) -> Tensors:
  classes = grid.nearest(arrays["classes"])
  return {"classes": tf.where(grid.inside, classes, IGNORE_LABEL)}


def _move_map(
  values: tf.Tensor, valid: tf.Tensor, grid: _Grid
) -> tuple[tf.Tensor, tf.Tensor]:
  """Values float [mh, mw, c] and what is valid of them, at the cells."""

  def sparse() -> tuple[tf.Tensor, tf.Tensor]:
    weight = tf.cast(valid, tf.float32)[..., None]
    sums = grid.bilinear(tf.concat([values * weight, weight], -1))
    # The nearest pixel has a weight of a quarter at least.
    means = sums[..., :-1] / tf.maximum(sums[..., -1:], 0.1)
    return means, grid.nearest(valid) & grid.inside

  def dense() -> tuple[tf.Tensor, tf.Tensor]:
    return grid.bilinear(values), grid.inside

  # A teacher's maps are valid everywhere, which takes half the time.
  means, known = tf.cond(tf.reduce_all(valid), dense, sparse)
  return tf.where(known[..., None], means, 0), known


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
