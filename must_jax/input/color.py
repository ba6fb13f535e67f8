"""How the colours of training images vary.

An image is float32 [h, w, 3] in 0..255: the content alone, before padding.
Each operation keeps that range and takes any size from 1 x 1. Chance comes in
as uniform numbers, so that an example follows from seed and position. What is
off adds nothing to the graph.

Brightness, contrast, saturation and sharpness mix an image with black, its
mean grey, its own grey and a smoothed copy, as Pillow's ImageEnhance and
torchvision's ColorJitter do. (SimCLR's contrast keeps the mean of each channel
and its saturation is that of HSV.)
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

from must_jax.quiet_tensorflow import tf

Operation = Callable[[tf.Tensor], tf.Tensor]

MAX_OPS = 4
NUM_RANDOM = 9 + 2 * MAX_OPS  # uniform numbers an image consumes
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
_MAX_RADIUS = 8  # four times the largest sigma; the rest weighs nothing


@dataclasses.dataclass(frozen=True)
class ColorOptions:
  """What varies, in the order in which it is applied. The default is nothing.

  SimCLR (Chen et al. 2020, appendix A, strength 1) is brightness, contrast and
  saturation 0.8, hue 0.2, and the probabilities 0.8, 0.2 and 0.5.

  Attributes:
    num_ops: operations of RandAugment on an image.
    magnitude: of them, from 0 (none) to 10; see `rand_augment`.
    brightness: strength s; the factor is uniform in [1 - s, 1 + s].
    contrast: the same.
    saturation: the same.
    hue: the largest turn of the colour circle, 0.5 being all of it.
    jitter_probability: that these four are applied, in random order.
    grey_probability: that colour is taken away.
    blur_probability: that the image is blurred, by sigma uniform in [0.1, 2]
      pixels with a kernel of a tenth of its shorter side.
  """

  num_ops: int = 0
  magnitude: float = 0.0
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0
  jitter_probability: float = 1.0
  grey_probability: float = 0.0
  blur_probability: float = 0.0

  def __post_init__(self):
    limits = {"num_ops": MAX_OPS, "magnitude": 10, "hue": 0.5}
    for name, value in dataclasses.asdict(self).items():
      limit = limits.get(name, 1)
      if not 0 <= value <= limit:
        raise ValueError(
          f"{name} is {value}; expected at least 0 and at most {limit}."
        )
    if self.num_ops != int(self.num_ops):
      raise ValueError(
        f"num_ops is {self.num_ops}; expected a whole number, such as 2."
      )


def distort(
  pixels: tf.Tensor, options: ColorOptions, random: tf.Tensor
) -> tf.Tensor:
  """An image with other colours.

  Args:
    pixels: float32 [h, w, 3] in 0..255.
    options: bounds of the chance.
    random: float32 [`NUM_RANDOM`], uniform in [0, 1).

  Returns:
    The same shape and range.
  """
  if options.num_ops:
    numbers = random[9 : 9 + 2 * options.num_ops]
    pixels = rand_augment(pixels, options.magnitude, numbers)
  if any(_strengths(options)):
    pixels = tf.cond(
      random[4] < options.jitter_probability,
      lambda pixels=pixels: _jitter(pixels, options, random),
      lambda pixels=pixels: pixels,
    )
  if options.grey_probability:
    pixels = tf.cond(
      random[6] < options.grey_probability,
      lambda pixels=pixels: saturation(pixels, 0.0),
      lambda pixels=pixels: pixels,
    )
  if options.blur_probability:
    pixels = tf.cond(
      random[7] < options.blur_probability,
      lambda pixels=pixels: gaussian_blur(pixels, 0.1 + 1.9 * random[8]),
      lambda pixels=pixels: pixels,
    )
  return pixels


def rand_augment(
  pixels: tf.Tensor, magnitude: float, random: tf.Tensor
) -> tf.Tensor:
  """Operations of RandAugment (Cubuk et al. 2020) that move no pixel.

  Each is drawn uniformly, with repetition. The ranges are those of AutoAugment
  (Cubuk et al. 2019, table 6), travelled from no effect at magnitude 0 to the
  strongest at 10, as in torchvision:

    nothing, AutoContrast, Equalize, Invert   (as they are)
    Posterize     8 .. 4 bits
    Solarize      from 256 .. 0
    SolarizeAdd   0 .. 110 to what is below 128 (EfficientNet)
    Color, Contrast, Brightness, Sharpness   factor 1 .. 1.9 or 1 .. 0.1

  EfficientNet's autoaugment.py has the same operations and bounds, but there
  Posterize and Solarize weaken as the magnitude grows, and the factor goes from
  0.1 to 1.9, with no effect at 5.

  Args:
    pixels: float32 [h, w, 3] in 0..255; rounded.
    magnitude: 0 to 10.
    random: float32 [2 n], two uniform numbers for each of n operations.
  """
  strength = magnitude / 10
  numbers = tf.unstack(random)
  for number, sign in zip(numbers[::2], numbers[1::2], strict=True):
    # Thresholds and histograms are about whole levels.
    pixels = tf.round(pixels)
    factor = 1 + 0.9 * strength * tf.where(sign < 0.5, -1.0, 1.0)
    operations: list[Operation] = [
      tf.identity,
      autocontrast,
      equalize,
      invert,
      functools.partial(posterize, bits=8 - round(4 * strength)),
      functools.partial(solarize, threshold=round(256 * (1 - strength))),
      functools.partial(solarize_add, addition=round(110 * strength)),
      functools.partial(saturation, factor=factor),
      functools.partial(contrast, factor=factor),
      functools.partial(brightness, factor=factor),
      functools.partial(sharpness, factor=factor),
    ]
    pixels = _apply(operations, _choice(number, len(operations)), pixels)
  return pixels


def brightness(pixels: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
  """Mixes with black; a factor of 1 changes nothing, here and below."""
  return tf.minimum(pixels * factor, 255)


def contrast(pixels: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
  """Mixes with the mean of the grey image."""
  return _mix(tf.reduce_mean(_grey(pixels)), pixels, factor)


def saturation(pixels: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
  """Mixes with the grey image."""
  return _mix(_grey(pixels), pixels, factor)


def sharpness(pixels: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
  """Mixes with a smoothed image; the outermost pixels stay as they are."""
  box = tf.pad(pixels, [[1, 1], [1, 1], [0, 0]])
  box = box[:-2] + box[1:-1] + box[2:]
  box = box[:, :-2] + box[:, 1:-1] + box[:, 2:]
  smooth = (box + 4 * pixels) / 13
  rows, cols = (
    tf.pad(tf.ones([tf.maximum(side - 2, 0)], tf.bool), [[1, 1]])[:side]
    for side in tf.unstack(tf.shape(pixels)[:2])
  )
  inside = (rows[:, None] & cols)[..., None]
  return _mix(tf.where(inside, smooth, pixels), pixels, factor)


def hue(pixels: tf.Tensor, by: tf.Tensor | float) -> tf.Tensor:
  """Turns the hue of HSV by a part of the colour circle."""
  return tf.image.adjust_hue(pixels, by)


def gaussian_blur(pixels: tf.Tensor, sigma: tf.Tensor | float) -> tf.Tensor:
  """Blurs by sigma pixels; at the border only what exists is averaged.

  The kernel is a tenth of the shorter side wide (SimCLR), but not wider than
  its weights are visible.
  """
  shortest = tf.reduce_min(tf.shape(pixels)[:2])
  radius = tf.minimum(shortest // 10 // 2, _MAX_RADIUS)
  offset = tf.cast(tf.range(-radius, radius + 1), tf.float32)
  kernel = tf.tile(tf.exp(-0.5 * (offset / sigma) ** 2)[:, None], [1, 3])
  for axis in (0, 1):
    weights = tf.expand_dims(tf.expand_dims(kernel, 1 - axis), -1)
    ones = tf.ones_like(pixels[:, :1] if axis == 0 else pixels[:1])
    sums, total = (
      tf.nn.depthwise_conv2d(x[None], weights, [1, 1, 1, 1], "SAME")[0]
      for x in (pixels, ones)
    )
    pixels = sums / total
  return tf.minimum(pixels, 255)  # rounding may exceed it


def autocontrast(pixels: tf.Tensor) -> tf.Tensor:
  """Stretches each channel to 0..255; one of a single level stays."""
  low = tf.reduce_min(pixels, [0, 1])
  extent = tf.reduce_max(pixels, [0, 1]) - low
  stretched = (pixels - low) * (255 / tf.maximum(extent, 1))
  stretched = tf.minimum(stretched, 255)  # rounding may exceed it
  return tf.where(extent > 0, stretched, pixels)


def equalize(pixels: tf.Tensor) -> tf.Tensor:
  """Makes all levels of a channel equally frequent; takes whole levels.

  Integer arithmetic of Pillow's ImageOps.equalize.
  """
  levels = tf.cast(pixels, tf.int32)
  places = levels + [0, 256, 512]  # of the levels in the channels' tables
  counts = tf.math.bincount(places, minlength=768, maxlength=768)
  counts = tf.reshape(counts, [3, 256])
  highest = tf.reduce_max(levels, [0, 1])
  step = tf.reduce_sum(counts, 1) - tf.gather(counts, highest, batch_dims=1)
  step = (step // 255)[:, None]
  below = tf.cumsum(counts, 1, exclusive=True)
  table = (below + step // 2) // tf.maximum(step, 1)
  table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
  table = tf.cast(tf.reshape(table, [-1]), tf.float32)
  return tf.gather(table, places)


def invert(pixels: tf.Tensor) -> tf.Tensor:
  """The negative."""
  return 255 - pixels


def posterize(pixels: tf.Tensor, bits: int) -> tf.Tensor:
  """Keeps the highest bits of whole levels."""
  step = 2.0 ** (8 - bits)
  return tf.floor(pixels / step) * step


def solarize(pixels: tf.Tensor, threshold: int) -> tf.Tensor:
  """Inverts what is not below the threshold."""
  return tf.where(pixels < threshold, pixels, 255 - pixels)


def solarize_add(pixels: tf.Tensor, addition: int) -> tf.Tensor:
  """Brightens what is below 128."""
  return tf.where(pixels < 128, tf.minimum(pixels + addition, 255), pixels)


def _jitter(
  pixels: tf.Tensor, options: ColorOptions, random: tf.Tensor
) -> tf.Tensor:
  """Brightness, contrast, saturation and hue by chance, in random order."""
  operations: list[Operation] = []
  for strength, number, change in zip(
    _strengths(options),
    tf.unstack(random[:4]),
    (
      lambda pixels, by: brightness(pixels, 1 + by),
      lambda pixels, by: contrast(pixels, 1 + by),
      lambda pixels, by: saturation(pixels, 1 + by),
      hue,
    ),
    strict=True,
  ):
    if strength:
      by = strength * (2 * number - 1)
      operations.append(functools.partial(change, by=by))
  orders = list(itertools.permutations(range(len(operations))))
  order = tf.constant(orders)[_choice(random[5], len(orders))]
  for index in tf.unstack(order):
    pixels = _apply(operations, index, pixels)
  return pixels


def _strengths(options: ColorOptions) -> tuple[float, float, float, float]:
  return (
    options.brightness,
    options.contrast,
    options.saturation,
    options.hue,
  )


def _choice(number: tf.Tensor, count: int) -> tf.Tensor:
  """An index below `count`, from a number uniform in [0, 1)."""
  return tf.cast(number * count, tf.int32)


def _apply(
  operations: list[Operation], index: tf.Tensor, pixels: tf.Tensor
) -> tf.Tensor:
  return tf.switch_case(
    index, [functools.partial(operation, pixels) for operation in operations]
  )


def _grey(pixels: tf.Tensor) -> tf.Tensor:
  return tf.linalg.matvec(pixels, _GREY)[..., None]


def _mix(
  origin: tf.Tensor, pixels: tf.Tensor, factor: tf.Tensor | float
) -> tf.Tensor:
  """From the origin (at 0) through the image (at 1) and beyond."""
  return tf.clip_by_value(origin + factor * (pixels - origin), 0, 255)
