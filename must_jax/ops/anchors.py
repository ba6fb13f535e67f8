"""Anchor boxes of a feature pyramid: static, so plain numpy."""

from collections.abc import Sequence

import numpy as np


def level_sizes(
  height: int, width: int, levels: Sequence[int]
) -> tuple[tuple[int, int], ...]:
  """Heights and widths of the feature maps, ceil(size / 2**level)."""
  return tuple((-(-height >> lv), -(-width >> lv)) for lv in levels)


def generate(
  height: int,
  width: int,
  levels: Sequence[int],
  scale: float,
  aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
  half_pixel: bool = True,
  round_corners: bool = False,
) -> dict[int, np.ndarray]:
  """Anchors for every cell of every level (TPU detection repository).

  An anchor of level l has the area (scale * 2**l)**2 and is centred on its
  cell; it may reach out of the image.

  Args:
    height: of the network input, in pixels.
    width: of the network input, in pixels.
    levels: pyramid levels; level l has stride 2**l.
    scale: anchor size in strides.
    aspect_ratios: width / height of the A anchors of a cell.
    half_pixel: cell i has its centre at (i + 0.5) * stride; else, as in
      torchvision, at i * (side of the image // cells).
    round_corners: corners, relative to the centre, are whole pixels
      (torchvision).

  Returns:
    {level: float32 [h * w * A, 4]}, yxyx, ordered by row, column, ratio.
  """
  ratios = np.sqrt(np.asarray(aspect_ratios, np.float64))
  anchors = {}
  sizes = level_sizes(height, width, levels)
  for level, (rows, cols) in zip(levels, sizes, strict=True):
    stride = 2**level
    half_h, half_w = (
      (0.5 * scale * stride) / ratios,
      0.5 * scale * stride * ratios,
    )
    if round_corners:
      half_h, half_w = np.rint(half_h), np.rint(half_w)
    if half_pixel:
      y, x = ((np.arange(n) + 0.5) * stride for n in (rows, cols))
    else:
      y = np.arange(rows) * (height // rows)
      x = np.arange(cols) * (width // cols)
    y, x = y[:, None, None], x[None, :, None]
    sides = (y - half_h, x - half_w, y + half_h, x + half_w)
    shape = (rows, cols, len(ratios))
    boxes = np.stack([np.broadcast_to(side, shape) for side in sides], axis=-1)
    anchors[level] = boxes.reshape(-1, 4).astype(np.float32)
  return anchors
