"""How an image reaches the network: scale, crop and flip, and its labels too.

The choice is a `fields.placement.Placement`; each kind of field moves with it
in its own way.
"""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from must_jax.fields import Field
from must_jax.fields.field import Tensors
from must_jax.fields.placement import Cells, Placement
from must_jax.input import color, preprocess
from must_jax.input.color import ColorOptions
from must_jax.input.preprocess import RULES
from must_jax.quiet_tensorflow import tf
from must_jax.storage import records
from must_jax.types import MEAN_COLOR

RESIZE = ("pad", "stretch", "center_crop", "inception_crop")
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
      "inception_crop" with a random part, stretched. Or a published rule, a
      key of `preprocess.RULES`. What a crop leaves out is not there for labels
      and metrics either.
    crop_fraction: side of the centre crop, relative to the largest that the
      image has. 0.875 is the shorter side resized to 256, cropped to 224.
    crop_area: bounds of the area of an Inception crop, relative to the image.
    crop_aspect: bounds of its width over height, relative to the network
      input (Szegedy et al. 2015; log-uniform, as in torchvision).
    flip: mirror every second image.
    antialias_below: scale below which the image is averaged as it shrinks,
      which costs time; 0 never, 1 always (as Pillow does). Otherwise each
      pixel interpolates its four nearest.
    fill: colour in 0..255 of the padding of published rules.
    color: how colours vary.
  """

  scale_jitter: tuple[float, float] = (1.0, 1.0)
  resize: str = "pad"
  crop_fraction: float = 0.875
  crop_area: tuple[float, float] = (0.08, 1.0)
  crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
  flip: bool = False
  antialias_below: float = 0.0
  fill: tuple[float, float, float] = MEAN_COLOR
  color: ColorOptions = dataclasses.field(default_factory=ColorOptions)

  def __post_init__(self):
    if self.resize not in (*RESIZE, *RULES):
      raise ValueError(
        f"resize is {self.resize!r}; expected one of"
        f" {sorted((*RESIZE, *RULES))}."
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

  @property
  def varies_size(self) -> bool:
    """See `preprocess.varies_size`."""
    return preprocess.varies_size(self.resize)


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


def choose_placement(
  size: tf.Tensor,
  image_size: tuple[int, int],
  options: AugmentOptions,
  random: tf.Tensor,
) -> Placement:
  """Chooses scale, crop and flip of an image.

  Windows have whole image pixels, so that only the window needs to be decoded;
  an aspect that is kept is kept up to rounding. (`pad` is RECIPE's
  `resize_and_crop_image`.)

  Args:
    size: int32 [2], height and width of the image.
    image_size: (H, W) of the network input, or what a published rule refers
      to.
    options: bounds of the chance.
    random: from `random_numbers`.
  """
  if options.resize in RULES:
    return _place_by_rule(size, image_size, options)
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
  return Placement(
    size=size,
    window=tf.cast(tf.concat([offset, visible], -1), tf.int32),
    content=content,
    canvas=tf.broadcast_to(image_size, tf.shape(size)),
    flip=tf.constant(options.flip) & (random[..., 3] < 0.5),
    reduction=tf.cast(reduction[..., 0], tf.int32),
  )


def _place_by_rule(
  size: tf.Tensor, image_size: tuple[int, int], options: AugmentOptions
) -> Placement:
  rule = RULES[options.resize]

  def place(sizes: np.ndarray) -> tuple[np.ndarray, ...]:
    windows = np.empty((*sizes.shape[:-1], 4), np.float32)
    contents, canvases = np.empty_like(sizes), np.empty_like(sizes)
    for i in np.ndindex(sizes.shape[:-1]):
      given = int(sizes[i][0]), int(sizes[i][1])
      placed = preprocess.layout(given, rule, image_size, options.crop_fraction)
      windows[i], contents[i] = placed.window(given), placed.content
      canvases[i] = placed.canvas
    return windows, contents, canvases

  window, content, canvas = tf.numpy_function(
    place, [size], (tf.float32, tf.int32, tf.int32), stateful=False
  )
  zeros = tf.zeros_like(size[..., 0])
  return Placement(
    size=size,
    window=tf.ensure_shape(window, [*size.shape[:-1], 4]),
    content=tf.ensure_shape(content, size.shape),
    canvas=tf.ensure_shape(canvas, size.shape),
    flip=zeros > 0,
    reduction=zeros + 1,
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


def whole_image(size: tf.Tensor) -> Placement:
  """An image as it is: int32 [2], its height and width."""
  window = tf.concat([tf.zeros_like(size), size], -1)
  ones = tf.ones_like(size[..., 0])
  return Placement(size, window, size, size, ones < 1, ones)


def decode_image(
  image: tf.Tensor,
  placement: Placement,
  image_size: tuple[int, int],
  options: AugmentOptions,
  random: tf.Tensor,
) -> tf.Tensor:
  """Network input from an encoded image.

  Args:
    image: scalar string, JPEG or PNG; an empty one gives the mean colour.
    placement: of the image, from `choose_placement` with the same arguments.
    image_size: see there.
    options: bounds of the chance.
    random: from `random_numbers`.

  Returns:
    uint8 [H, W, 3]; float32 in 0..255 by a published rule.
  """
  if options.resize in RULES:
    whole = whole_image(placement.size).window
    pixels = records.decode_image(image, placement.size, whole)
    return _resize_by_rule(pixels, image_size, options)
  pixels = records.decode_image(
    image, placement.size, placement.window, placement.reduction
  )
  return transform_image(pixels, placement, image_size, options, random)


def _resize_by_rule(
  pixels: tf.Tensor, image_size: tuple[int, int], options: AugmentOptions
) -> tf.Tensor:
  rule = RULES[options.resize]

  def resize(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    placed = preprocess.layout(
      (height, width), rule, image_size, options.crop_fraction
    )
    return preprocess.prepare(image, rule, placed, np.array(options.fill))

  canvas = tf.numpy_function(resize, [pixels], tf.float32, stateful=False)
  shape = (None, None) if options.varies_size else image_size
  return tf.ensure_shape(canvas, [*shape, 3])


def transform_image(
  pixels: tf.Tensor,
  placement: Placement,
  image_size: tuple[int, int],
  options: AugmentOptions,
  random: tf.Tensor,
) -> tf.Tensor:
  """Network input from the window of an image, padded with the mean colour.

  Args:
    pixels: uint8 [h, w, 3] of `placement.window`, reduced.
    placement: of the image.
    image_size: (H, W) of the network input.
    options: bounds of the chance.
    random: from `random_numbers`.

  Returns:
    uint8 [H, W, 3]
  """

  def resized() -> tf.Tensor:
    # TensorFlow resizes floats twice as fast as bytes.
    floats = tf.cast(pixels, tf.float32)
    floats = _resize(floats, placement.content, options.antialias_below)
    floats = color.distort(floats, options.color, random[_COLOR])
    # Rounds and casts in one operation, which is twice as fast.
    quantized = tf.raw_ops.QuantizeV2(
      input=floats, min_range=0.0, max_range=255.0, T=tf.quint8
    )
    return tf.bitcast(quantized.output, tf.uint8)

  if options.color == ColorOptions():
    fits = tf.reduce_all(tf.shape(pixels)[:2] == placement.content)
    pixels = tf.cond(fits, lambda: pixels, resized)
  else:
    pixels = resized()
  pixels = tf.cond(
    placement.flip, lambda: tf.reverse(pixels, [1]), lambda: pixels
  )
  if options.resize != "pad":
    return tf.ensure_shape(pixels, [*image_size, 3])
  # Copying a constant is faster than tf.where and takes any colour.
  mean = tf.constant(np.full((*image_size, 3), MEAN_COLOR, np.uint8))
  height, width = tf.unstack(placement.content)
  pixels = tf.cond(
    width < image_size[1],
    lambda: tf.concat([pixels, mean[:height, width:]], 1),
    lambda: pixels,
  )
  pixels = tf.cond(
    height < image_size[0],
    lambda: tf.concat([pixels, mean[height:]], 0),
    lambda: pixels,
  )
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


def place_labels(
  labels: Mapping[str, Tensors],
  fields: Mapping[str, Field],
  placement: Placement,
  image_size: tuple[int, int] | list[tf.Tensor],
  label_stride: int,
) -> dict[str, Tensors]:
  """Labels in the form of a batch, without its leading dimension.

  Args:
    labels: from `records.parse_labels`.
    fields: what they are.
    placement: of the image.
    image_size: (H, W) of the network input, tensors where it varies.
    label_stride: network pixels per cell of a map.
  """
  cells = Cells(placement, image_size, label_stride)
  return {
    name: {
      **field.move(labels[name], placement, cells),
      "present": labels[name]["present"],
    }
    for name, field in fields.items()
  }
