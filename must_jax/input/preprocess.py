"""How published networks want whole images resized, on the host.

Our own networks take a fixed canvas, which TensorFlow makes (`geometry`).
Published ones were trained on images of many sizes; each rule below is one of
theirs (RECIPE 4), down to the interpolation.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from must_jax.types import MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class Rule:
  """How an image becomes a network input.

  Attributes:
    fit: which scale is chosen, see `layout`.
    multiple: sides of the network input are multiples of it: by stretching the
      image a little, or by padding.
    stretch: see above.
    interpolation: "bilinear" and "bicubic" take the nearest pixels, whatever
      the scale, as OpenCV and PyTorch; "pillow_bilinear" and "pillow_bicubic"
      average when they shrink, as Pillow.
    fixed: of a rule whose network inputs vary in size, the one that comes next
      to it where they may not.
  """

  fit: str
  multiple: int = 1
  stretch: bool = False
  interpolation: str = "bilinear"
  fixed: str = ""

  @property
  def crops(self) -> bool:
    """Whether the network input is a part of the image, of a fixed size."""
    return self.fit == "center_crop"


RULES: dict[str, Rule] = {
  # MiDaS v2.1: both sides within `image_size`.
  "midas_upper_bound": Rule(
    "upper_bound", 32, True, "bicubic", fixed="bicubic_stretch"
  ),
  # DPT: whichever side needs the smaller change meets `image_size`.
  "midas_minimal": Rule(
    "minimal", 32, True, "bicubic", fixed="bicubic_stretch"
  ),
  # torchvision's detectors: `image_size` is (shorter, longest) side.
  "shortest_side": Rule("shortest_side", 32, fixed="bilinear_pad"),
  # For networks of these where all inputs must have one size, `image_size`: the
  # whole image stretched to it, or fitted in and padded.
  "bicubic_stretch": Rule("stretch", interpolation="bicubic"),
  "bilinear_pad": Rule("contain"),
  # Classifiers of torchvision, and of timm: the shorter side to that of
  # `image_size` / `crop_fraction`, then the centre.
  "pillow_bilinear_crop": Rule("center_crop", interpolation="pillow_bilinear"),
  "pillow_bicubic_crop": Rule("center_crop", interpolation="pillow_bicubic"),
}


def varies_size(resize: str) -> bool:
  """Whether network inputs have the sizes that a rule gives them.

  Args:
    resize: a key of `RULES`, or another way to the network.
  """
  return resize in RULES and bool(RULES[resize].fixed)


_PILLOW = {
  "pillow_bilinear": Image.Resampling.BILINEAR,
  "pillow_bicubic": Image.Resampling.BICUBIC,
}


class Layout(NamedTuple):
  """Sizes and places on the way from an image to the network input.

  Attributes:
    resized: height and width of the whole image once it is resized.
    offset: y and x of what is seen of that.
    content: height and width of it, at the top left of the network input.
    canvas: height and width of the network input.
  """

  resized: tuple[int, int]
  offset: tuple[int, int]
  content: tuple[int, int]
  canvas: tuple[int, int]

  def window(self, size: tuple[int, int]) -> tuple[float, ...]:
    """What is seen of an image of a size: y, x, height, width in its pixels."""
    scale = size[0] / self.resized[0], size[1] / self.resized[1]
    return (
      self.offset[0] * scale[0],
      self.offset[1] * scale[1],
      self.content[0] * scale[0],
      self.content[1] * scale[1],
    )


def layout(
  size: tuple[int, int],
  rule: Rule,
  image_size: tuple[int, int],
  crop_fraction: float = 1.0,
) -> Layout:
  """Where a rule puts an image of a size.

  Args:
    size: height and width of the image.
    rule: one of `RULES`.
    image_size: what the rule refers to.
    crop_fraction: of rules that crop.
  """
  resized = _resized_size(size, rule, image_size, crop_fraction)
  if rule.crops:
    offset = tuple(
      round((side - wanted) / 2)  # to the even one of two, as they do
      for side, wanted in zip(resized, image_size, strict=True)
    )
    return Layout(resized, offset, image_size, image_size)  # type: ignore[arg-type]
  if not rule.fixed:
    return Layout(resized, (0, 0), resized, image_size)
  height, width = (
    -(-side // rule.multiple) * rule.multiple for side in resized
  )
  return Layout(resized, (0, 0), resized, (height, width))


def _resized_size(
  size: tuple[int, int],
  rule: Rule,
  image_size: tuple[int, int],
  crop_fraction: float,
) -> tuple[int, int]:
  ratios = image_size[0] / size[0], image_size[1] / size[1]
  match rule.fit:
    case "center_crop":
      # The slack: 224 / .875 is 256, whatever floats make of it.
      first = 0 if ratios[0] >= ratios[1] else 1  # the shorter one, of squares
      side = math.floor(image_size[first] / crop_fraction + 1e-6)
      other = int(side * size[1 - first] / size[first])
      return (side, other) if first == 0 else (other, side)
    case "stretch":
      return image_size
    case "contain":
      scale = min(ratios)
      height, width = (
        min(max(1, round(side * scale)), bound)
        for side, bound in zip(size, image_size, strict=True)
      )
      return height, width
    case "shortest_side":
      short, longest = image_size
      scale = min(short / min(size), longest / max(size))
      height, width = (max(1, math.floor(side * scale)) for side in size)
      return height, width
    case "upper_bound":
      scale, bounds = min(ratios), image_size
    case _:
      scale = min(ratios, key=lambda ratio: abs(1 - ratio))
      bounds = (math.inf, math.inf)  # type: ignore[assignment]
  height, width = (
    _to_multiple(side * scale, rule.multiple, bound)
    for side, bound in zip(size, bounds, strict=True)
  )
  return height, width


def prepare(
  image: np.ndarray, rule: Rule, placed: Layout, fill: np.ndarray
) -> np.ndarray:
  """Resizes, crops, and pads at the bottom and right.

  Args:
    image: uint8 [h, w, 3].
    rule: one of `RULES`.
    placed: from `layout`, for the image.
    fill: float [3], colour of the padding, in 0..255.

  Returns:
    float32 [H, W, 3] in 0..255 (cubic interpolation may overshoot, unless it is
    Pillow's, which rounds).
  """
  (top, left), (height, width) = placed.offset, placed.content
  if rule.crops and math.prod(placed.resized) > MAX_PIXELS:
    # Of a streak of an image no more is made than is seen.
    y, x, h, w = placed.window(image.shape[:2])
    pixels = Image.fromarray(image).resize(
      (width, height), _PILLOW[rule.interpolation], (x, y, x + w, y + h)
    )
    return np.asarray(pixels, np.float32)
  resized = resample(image, placed.resized, rule.interpolation)
  seen = resized[top : top + height, left : left + width]
  if placed.canvas == placed.content:
    return np.ascontiguousarray(seen)
  canvas = np.empty((*placed.canvas, 3), np.float32)
  canvas[:] = fill
  canvas[:height, :width] = seen
  return canvas


def resample(
  image: np.ndarray, size: tuple[int, int], interpolation: str
) -> np.ndarray:
  """Interpolates at half-pixel centres, edges repeated.

  Without averaging it is the same as OpenCV's INTER_CUBIC (a = -0.75) and
  PyTorch's `interpolate` without align_corners, bicubic and bilinear.

  Args:
    image: uint8 [h, w, 3].
    size: new height and width.
    interpolation: see `Rule`.

  Returns:
    float32 [*size, 3].
  """
  if interpolation in _PILLOW:
    resized = Image.fromarray(image).resize(size[::-1], _PILLOW[interpolation])
    return np.asarray(resized, np.float32)
  out = image.astype(np.float32)
  for axis in (0, 1):
    if out.shape[axis] == size[axis]:
      continue
    index, weight = _taps(
      out.shape[axis], size[axis], interpolation == "bicubic"
    )
    shape = [1, 1, 1]
    shape[axis] = size[axis]
    out = np.sum(
      [
        np.take(out, i, axis) * w.reshape(shape)
        for i, w in zip(index, weight, strict=True)
      ],
      axis=0,
      dtype=np.float32,
    )
  return out


def _to_multiple(side: float, multiple: int, bound: float) -> int:
  rounded = round(side / multiple) * multiple
  if rounded > bound:
    rounded = math.floor(side / multiple) * multiple
  return max(multiple, rounded)


def _taps(old: int, new: int, cubic: bool) -> tuple[np.ndarray, np.ndarray]:
  """Sources [taps, new] of every new place, and their weights."""
  centre = (np.arange(new) + 0.5) * old / new - 0.5
  first = np.floor(centre)
  t = centre - first
  if cubic:
    offsets, a = np.arange(-1, 3), -0.75
    x = np.abs(t - offsets[:, None])
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    weight = np.where(x <= 1, near, far)
  else:
    offsets = np.arange(2)
    weight = np.stack([1 - t, t])
  index = np.clip(first + offsets[:, None], 0, old - 1).astype(int)
  return index, weight.astype(np.float32)
