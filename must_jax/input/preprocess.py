"""How published networks want whole images resized, on the host.

Our own networks take a fixed canvas, which the input pipeline makes. Published
ones were trained on images of many sizes; each rule below is one of theirs
(RECIPE 4), down to the interpolation.
"""

import dataclasses
import math

import numpy as np

PAD = "pad"  # fit into `image_size` and pad: what the input pipeline does


@dataclasses.dataclass(frozen=True)
class Rule:
  """How an image becomes a network input.

  Attributes:
    fit: which scale is chosen, see `resized_size`.
    multiple: sides are multiples of it: by stretching the image a little, or
      by padding.
    stretch: see above.
    cubic: interpolation, else bilinear. Neither averages when shrinking.
  """

  fit: str
  multiple: int
  stretch: bool
  cubic: bool


RULES: dict[str, Rule] = {
  # MiDaS v2.1: both sides within `image_size`.
  "midas_upper_bound": Rule("upper_bound", 32, stretch=True, cubic=True),
  # DPT: whichever side needs the smaller change meets `image_size`.
  "midas_minimal": Rule("minimal", 32, stretch=True, cubic=True),
  # torchvision's detectors: `image_size` is (shorter, longest) side.
  "shortest_side": Rule("shortest_side", 32, stretch=False, cubic=False),
}


def resized_size(
  size: tuple[int, int], rule: Rule, image_size: tuple[int, int]
) -> tuple[int, int]:
  """Height and width to which a rule resizes an image, before padding."""
  ratios = image_size[0] / size[0], image_size[1] / size[1]
  if rule.fit == "shortest_side":
    short, longest = image_size
    scale = min(short / min(size), longest / max(size))
    height, width = (max(1, math.floor(side * scale)) for side in size)
    return height, width
  if rule.fit == "upper_bound":
    scale, bounds = min(ratios), image_size
  else:
    scale = min(ratios, key=lambda ratio: abs(1 - ratio))
    bounds = (math.inf, math.inf)  # type: ignore[assignment]
  height, width = (
    _to_multiple(side * scale, rule.multiple, bound)
    for side, bound in zip(size, bounds, strict=True)
  )
  return height, width


def prepare(
  image: np.ndarray, rule: Rule, image_size: tuple[int, int], fill: np.ndarray
) -> tuple[np.ndarray, tuple[int, int]]:
  """Resizes, and pads at the bottom and right.

  Args:
    image: uint8 [h, w, 3].
    rule: one of `RULES`.
    image_size: what the rule refers to.
    fill: float [3], colour of the padding, in 0..255.

  Returns:
    float32 [H, W, 3] in 0..255 (cubic interpolation may overshoot), and the
    height and width of the image in it.
  """
  size = resized_size(image.shape[:2], rule, image_size)
  resized = resample(image, size, cubic=rule.cubic)
  padded = [-(-side // rule.multiple) * rule.multiple for side in size]
  if tuple(padded) == size:
    return resized, size
  canvas = np.empty((*padded, 3), np.float32)
  canvas[:] = fill
  canvas[: size[0], : size[1]] = resized
  return canvas, size


def resample(
  image: np.ndarray, size: tuple[int, int], *, cubic: bool
) -> np.ndarray:
  """Interpolates at half-pixel centres, edges repeated, without averaging.

  The same as OpenCV's INTER_CUBIC (a = -0.75) and PyTorch's `interpolate`
  without align_corners, bicubic and bilinear.

  Args:
    image: [h, w, C].
    size: new height and width.
    cubic: four taps an axis instead of two.

  Returns:
    float32 [*size, C].
  """
  out = image.astype(np.float32)
  for axis in (0, 1):
    if out.shape[axis] == size[axis]:
      continue
    index, weight = _taps(out.shape[axis], size[axis], cubic)
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
