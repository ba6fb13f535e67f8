"""What maps share: they are stored as PNGs of integer codes."""

import abc
import struct
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from must_jax.fields.field import Arrays, Field, Tensors, require
from must_jax.types import MAX_PIXELS

if TYPE_CHECKING:
  import tensorflow as tf

_MANY = 10  # maps, by which can be told whether most are constant
MAX_CODE = 65535  # of 16 bits; 0 is kept for invalid pixels

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_UP = 2  # number of the filter that subtracts the row above
_PNG_COLORS = {1: 0, 3: 2, 4: 6}  # type by number of channels


class MapField(Field):
  """A map over the extent of its image, at any resolution.

  Attributes:
    map_array: name of the array that is the map.
  """

  map_array: ClassVar[str]
  element = "pixels"
  is_map = True

  def check_extent(self, arrays: Arrays, size: tuple[int, int]) -> None:
    height, width = np.shape(arrays[self.map_array])[:2]
    if abs(height * size[1] - width * size[0]) > sum(size):
      raise ValueError(
        f"{self.map_array} are {height} x {width} pixels; expected the"
        f" proportions of the image, {size[0]} x {size[1]}"
      )

  @abc.abstractmethod
  def sample(self, arrays: Arrays, grid: "Grid") -> dict[str, np.ndarray]:
    """A map on another grid; unknown where that is not inside.

    Args:
      arrays: as `encode` takes them.
      grid: where to sample.
    """

  def of_window(
    self, arrays: Arrays, window: np.ndarray, size: tuple[int, int]
  ) -> dict[str, np.ndarray]:
    cells = np.shape(arrays[self.map_array])[:2]
    # About as fine as the map is.
    wanted = np.maximum(1, np.rint(np.divide(cells, window[2:]) * size))
    offset, extent = np.divide(window.reshape(2, 2), size)
    rows, cols = (
      ((np.arange(int(n)) + 0.5) / n - start) / length
      for n, start, length in zip(wanted, offset, extent, strict=True)
    )
    return self.sample(arrays, Grid(rows, cols))

  def at_size(
    self, arrays: Arrays, size: tuple[int, int]
  ) -> dict[str, np.ndarray]:
    rows, cols = ((np.arange(side) + 0.5) / side for side in size)
    return self.sample(arrays, Grid(rows, cols))

  def at_finest(self, first: Arrays, second: Arrays) -> list[dict]:
    """Two maps of an image as maps of one size, that of the finer one."""
    height, width = np.maximum(
      *(np.shape(arrays[self.map_array])[:2] for arrays in (first, second))
    ).tolist()
    return [self.at_size(arrays, (height, width)) for arrays in (first, second)]

  def reduced(self, arrays: Arrays, size: tuple[int, int]) -> Arrays:
    cells = np.shape(arrays[self.map_array])[:2]
    is_larger = cells[0] * cells[1] > size[0] * size[1]
    return self.at_size(arrays, size) if is_larger else arrays

  def num_elements(self, cells: float) -> float:
    return cells


class Grid:
  """Where a map is sampled, on the host; `placement.Cells` does it in a graph.

  Args:
    rows: float [h], y of the samples as fractions of the map's height; outside
      of 0..1 they are not inside.
    cols: float [w], x as fractions of its width.

  Attributes:
    inside: bool [h, w].
  """

  def __init__(self, rows: np.ndarray, cols: np.ndarray):
    self._places = rows, cols
    self.inside = np.logical_and.outer(
      *((p >= 0) & (p < 1) for p in (rows, cols))
    )

  def nearest(self, array: np.ndarray) -> np.ndarray:
    """Samples [mh, mw, ...]: [h, w, ...]; edges are repeated."""
    rows, cols = (
      np.clip(np.floor(place * cells), 0, cells - 1).astype(int)
      for place, cells in zip(self._places, array.shape, strict=False)
    )
    return array[rows[:, None], cols]

  def linear(self, array: np.ndarray) -> np.ndarray:
    """Interpolates float [mh, mw, ...] between its centres, likewise."""
    for axis, place in enumerate(self._places):
      last = array.shape[axis] - 1
      centres = np.clip(place * array.shape[axis] - 0.5, 0, last)
      low = centres.astype(int)
      shape = [1] * array.ndim
      shape[axis] = -1
      fraction = (centres - low).astype(np.float32).reshape(shape)
      array = np.take(array, low, axis) * (1 - fraction) + fraction * np.take(
        array, np.minimum(low + 1, last), axis
      )
    return array

  def mean_of_valid(
    self, values: np.ndarray, valid: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """See `Cells.mean_of_valid`."""
    values = np.asarray(values, np.float32)
    known = self.nearest(valid) & self.inside
    if valid.all():
      means = self.linear(values)
    else:
      weight = valid[..., None].astype(np.float32)
      sums = self.linear(np.where(valid[..., None], values, 0))
      means = sums / np.maximum(self.linear(weight), 0.1)
    return np.where(known[..., None], means, 0), known


def check_map(name: str, array: np.ndarray, ndim: int) -> np.ndarray:
  """A map [h, w] or [h, w, channels] that is to be stored, as it is.

  Args:
    name: of the map, for messages.
    array: the map.
    ndim: expected number of dimensions.

  Raises:
    ValueError: it has another number of dimensions, or no pixel.
  """
  if array.ndim != ndim or 0 in array.shape:
    raise ValueError(
      f"{name} have shape {array.shape}; expected {ndim} dimensions and at"
      " least 1 pixel"
    )
  return array


def check_valid(arrays: Arrays, shape: tuple[int, ...]) -> np.ndarray:
  """Which pixels are valid, bool [h, w]; all where nothing is said.

  Raises:
    ValueError: its shape is another.
  """
  valid = arrays.get("valid", np.ones(shape, bool)).astype(bool)
  if valid.shape != shape:
    raise ValueError(f"valid has shape {valid.shape}; expected {shape}")
  return valid


def check_finite(name: str, values: np.ndarray) -> None:
  """Checks values that are to be stored, of any shape.

  Raises:
    ValueError: one is not finite.
  """
  if not np.isfinite(values).all():
    raise ValueError(f"{name} are not finite where they are valid")


def constant_alarm(sums: Mapping[str, Any]) -> str:
  """Why maps of values with these sums cannot be right; empty if they may be.

  A wall may fill an image, but not most images.
  """
  if sums["examples"] < _MANY or 2 * sums["constant"] <= sums["examples"]:
    return ""
  return (
    f"{sums['constant']:,} of the {sums['examples']:,} maps have one value all"
    " over."
  )


def encode_png(codes: np.ndarray) -> bytes:
  """PNG of codes uint8 or uint16, [h, w] or [h, w, 1, 3 or 4].

  Written here because of how maps are: neighbouring codes are alike, and of
  values hardly any string of bytes comes twice. So each row is stored as its
  difference to the one above, and only runs are sought in it. libpng tries all
  filters and seeks all repetitions: its files are a few percent smaller, for
  three to ten times the time (docs/speed.md).
  """
  height, width = codes.shape[:2]
  big_endian = codes.astype(codes.dtype.newbyteorder(">"), order="C")
  rows = big_endian.view(np.uint8).reshape(height, -1)
  filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
  filtered[:, 0] = _PNG_UP
  filtered[0, 1:] = rows[0]
  np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
  deflate = zlib.compressobj(strategy=zlib.Z_RLE)
  color = _PNG_COLORS[1 if codes.ndim == 2 else codes.shape[2]]
  depth = 8 * codes.dtype.itemsize
  header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
  return PNG_MAGIC + b"".join(
    struct.pack(">I", len(data)) + name + data + _checksum(name + data)
    for name, data in (
      (b"IHDR", header),
      (b"IDAT", deflate.compress(filtered.data) + deflate.flush()),
      (b"IEND", b""),
    )
  )


def _checksum(data: bytes) -> bytes:
  return struct.pack(">I", zlib.crc32(data))


def decode_codes(
  png: bytes, dtype: type = np.uint8, channels: int = 1
) -> np.ndarray:
  """The reverse of `encode_png`, [h, w], or [h, w, channels] of several.

  Raises:
    ValueError: it is no PNG.
  """
  import tensorflow as tf

  try:
    codes = tf.io.decode_png(png, channels, tf.as_dtype(dtype)).numpy()
  except tf.errors.InvalidArgumentError:
    raise ValueError("a map is no PNG that can be decoded") from None
  return codes[..., 0] if channels == 1 else codes


def decode_map(
  name: str, features: Tensors, channels: int, dtype: "tf.DType"
) -> "tf.Tensor":
  """The map [h, w, channels] of a field's features, which must have one."""
  import tensorflow as tf

  has_map = tf.strings.length(features["png"]) > 0
  require(has_map | ~features["present"], f"{name}/png")
  return decode_png(name, features["png"], channels, dtype)


def decode_png(
  name: str, png: "tf.Tensor", channels: int, dtype: "tf.DType"
) -> "tf.Tensor":
  """A map [h, w, channels]; one pixel of zeros where there is none."""
  import tensorflow as tf

  def decode() -> "tf.Tensor":
    pixels = tf.reduce_prod(tf.cast(png_size(png), tf.int64))
    fine = (pixels > 0) & (pixels <= MAX_PIXELS)
    with require(fine, f"{name}: size of the map"):
      return tf.io.decode_png(png, channels, dtype)

  codes = tf.cond(
    tf.strings.length(png) > 0,
    decode,
    lambda: tf.zeros([1, 1, channels], dtype),
  )
  return tf.ensure_shape(codes, [None, None, channels])


def png_size(png: "tf.Tensor") -> "tf.Tensor":
  """Height and width from the header, int32 [2]."""
  import tensorflow as tf

  magic = tf.strings.substr(png, 0, 8) == PNG_MAGIC
  with require(magic, "PNG"):
    header = tf.strings.substr(png, 16, 8)
  return tf.io.decode_raw(header, tf.int32, little_endian=False)[::-1]
