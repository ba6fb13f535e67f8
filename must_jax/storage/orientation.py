"""Turns labels as EXIF's orientation turns their image.

Numbers are those of the tag 0x0112 in EXIF 2.3: 1 is upright, 2 to 4 mirror the
rows or columns or both, 5 to 8 swap the two first.
"""

import numpy as np


def stored_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
  """Height and width of an image before it is turned upright.

  Args:
    size: of the upright image.
    orientation: EXIF's number.
  """
  return size[::-1] if orientation > 4 else size


def turn_map(array: np.ndarray, orientation: int) -> np.ndarray:
  """A map [h, w, ...] of an image as it is stored, turned upright.

  Args:
    array: the map.
    orientation: EXIF's number.
  """
  swap, down, right = _parts(orientation)
  array = array.swapaxes(0, 1) if swap else array
  return array[::down, ::right]


def turn_vectors(vectors: np.ndarray, orientation: int) -> np.ndarray:
  """Components x (right), y (down) and more [..., n] of a turned map.

  Args:
    vectors: in the frame of the image as it is stored.
    orientation: EXIF's number.
  """
  swap, down, right = _parts(orientation)
  x, y = (1, 0) if swap else (0, 1)
  turned = vectors.copy()
  turned[..., 0], turned[..., 1] = (
    right * vectors[..., x],
    down * vectors[..., y],
  )
  return turned


def turn_box(
  corners: np.ndarray, orientation: int, size: tuple[int, int]
) -> np.ndarray:
  """A box yxyx [4] of an image as it is stored, turned upright.

  Args:
    corners: in pixels.
    orientation: EXIF's number.
    size: height and width of the upright image.
  """
  swap, *signs = _parts(orientation)
  corners = np.reshape(corners, (2, 2))
  corners = corners[:, ::-1] if swap else corners
  turned = np.where(np.array(signs) < 0, (size - corners)[::-1], corners)
  return turned.reshape(4)


def _parts(orientation: int) -> tuple[bool, int, int]:
  """Whether axes are swapped, then the steps along rows and columns."""
  down = -1 if orientation in (3, 4, 7, 8) else 1
  right = -1 if orientation in (2, 3, 6, 7) else 1
  return orientation > 4, down, right
