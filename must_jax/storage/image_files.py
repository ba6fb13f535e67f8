"""Image files: reading them with suspicion, and as they will be stored.

What an import stores and what `must_jax.load(...).predict` sees of a file are
the same pixels, because both come from here.
"""

import dataclasses
import io
import struct
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, UnidentifiedImageError

from must_jax.storage import orientation
from must_jax.storage.path import Path, is_local, read_file
from must_jax.types import MAX_PIXELS

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".npy")


class Rejected(ValueError):
  """What cannot be imported; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class ImageOptions:
  """What image files do not say of themselves.

  Attributes:
    code_range: codes of images of 16 bits that become black and white; None
      goes by the file (a PNG's sBIT), or takes all 16 bits.
    labels_of_turned: "stored" or "upright", the picture that labels of a
      turned image are of where sizes do not tell; "" rejects such images.
  """

  code_range: tuple[int, int] | None = None
  labels_of_turned: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image as it is stored.

  Attributes:
    data: JPEG or PNG of 8 bits, grey or RGB, upright.
    size: height and width.
    orientation: EXIF's number of the rotation or flip that the file asked for,
      in its EXIF or XMP, and that was carried out; 1 is none.
    top: of an image of 16 bits that has few grey levels here, its greatest
      code; else None.
    labels_of_turned: see `ImageOptions`.
  """

  data: bytes
  size: tuple[int, int]
  orientation: int = 1
  top: int | None = None
  labels_of_turned: str = ""

  @property
  def turned(self) -> bool:
    """Whether the file asked for a rotation or flip."""
    return self.orientation != 1

  @property
  def counts(self) -> dict[str, int]:
    """What is summed up over all images, for `summarize` and `warn`."""
    counts = {_TURNED: 1} if self.turned else {}
    if self.top is not None:
      counts[f"{_FEW_LEVELS}{self.top.bit_length()}"] = 1
    return counts

  def turn_of_labels(self, size: Sequence[float] | None, source: str) -> int:
    """The orientation that labels are to be turned by, to be of this picture.

    Their size tells whether they are of the picture as the file stores it or
    as viewers show it, if these sizes differ.

    Args:
      size: height and width of the picture that they are of; None if nobody
        knows.
      source: of the size, as the beginning of a message: "a.png is".

    Raises:
      Rejected: the size is another one, or does not tell.
    """
    stored = orientation.stored_size(self.size, self.orientation)
    if size is not None and tuple(size) not in (self.size, stored):
      stored_as = "" if stored == self.size else " (turned by its EXIF or XMP)"
      raise Rejected(
        f"{source} {size[0]:g} x {size[1]:g} (height x width); expected the"
        f" size of its image, {self.size[0]} x {self.size[1]}{stored_as}"
      )
    if not self.turned:
      return 1
    if size is not None and stored != self.size:
      return 1 if tuple(size) == self.size else self.orientation
    if not self.labels_of_turned:
      raise Rejected(
        f"its EXIF or XMP asks for a turn (orientation {self.orientation}), and"
        " no size tells whether its labels are turned; give --labels-of-turned"
        " upright or stored"
      )
    return self.orientation if self.labels_of_turned == "stored" else 1


_TURNED = "images turned"
_FEW_LEVELS = "images of few levels, bits "


def summarize(counts: Mapping[str, float]) -> list[str]:
  """What to print of the sums of `Picture.counts`."""
  turned = counts.get(_TURNED)
  return [f"images turned as EXIF or XMP asks: {turned:.0f}"] if turned else []


def warn(counts: Mapping[str, float]) -> list[str]:
  """What looks wrong by the sums of `Picture.counts`."""
  found = {
    int(name.removeprefix(_FEW_LEVELS)): count
    for name, count in counts.items()
    if name.startswith(_FEW_LEVELS)
  }
  if not found:
    return []
  most = max(found, key=lambda bits: found[bits])
  tops = [f"{found[bits]:.0f} up to {2**bits - 1}" for bits in sorted(found)]
  return [
    f"{sum(found.values()):.0f} images of 16 bits have at most"
    f" {_MAX_FEW_LEVELS} of 256 grey levels if these are for all codes to"
    f" {MAX_CODE}; they have codes {', '.join(tops)}. Give --code-range LOW"
    f" HIGH, the codes of black and white, such as 0 {2**most - 1}."
  ]


def check_code_range(codes: Sequence[int] | None) -> tuple[int, int] | None:
  """`ImageOptions.code_range` of the option --code-range.

  Raises:
    ValueError: they are no two codes in order.
  """
  if codes is None:
    return None
  low, high = codes
  if not 0 <= low < high <= MAX_CODE:
    raise ValueError(
      f"--code-range is {low} {high}; expected two codes in order, from 0 to"
      f" {MAX_CODE}."
    )
  return low, high


def read_image(path: Path, options: ImageOptions = ImageOptions()) -> Picture:
  """Reads an image file, see `picture_of`, or a uint8 .npy as a PNG.

  Args:
    path: of the file.
    options: what it does not say of itself.

  Raises:
    Rejected: no file, not JPEG, PNG or uint8 .npy, broken, or too large.
  """
  try:
    if path.suffix.lower() == ".npy":
      image = _image_of_array(path)
      return Picture(_encode(image, "PNG"), (image.height, image.width))
    data = read_file(path)
  except Rejected:
    raise
  except FileNotFoundError:
    raise Rejected(f"there is no file {path}") from None
  except Exception as error:  # of many kinds on broken files
    raise Rejected(f"cannot be decoded: {error}") from None
  return picture_of(data, options)


def picture_of(data: bytes, options: ImageOptions = ImageOptions()) -> Picture:
  """An image as it is stored; all of it is decoded, so that a broken one shows.

  The bytes are kept where every reader gets the same pixels from them: 8 bit,
  grey or RGB, upright. Others are encoded anew: the rotation or flip that EXIF,
  or else XMP, asks for is carried out, transparent pixels become white, 16 bits
  become 8.

  Args:
    data: of a JPEG or PNG.
    options: what it does not say of itself.

  Raises:
    Rejected: not JPEG or PNG, broken, or too large.
  """
  from must_jax.storage import records

  try:
    size = records.read_image_size(data)  # before a decompression bomb goes off
    image: Image.Image
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
      is_png = image.format == "PNG"
      if is_png:
        image.load()  # EXIF may come after the pixels
      # Pillow looks into XMP where EXIF has none.
      turn = image.getexif().get(0x0112, 1)
      turn = turn if turn in range(2, 9) else 1
      depth = png_depth(data)[0] if is_png else 8
      plain = image.mode in ("L", "RGB") and not image.has_transparency_data
      if plain and turn == 1 and depth == 8:
        _check_readable(data, size, is_png)
        return Picture(data, size)
      top = None
      if depth == 16:
        image, top = _of_16_bits(data, image, options.code_range)
      upright = Image.fromarray(
        orientation.turn_map(np.asarray(_flat(image)), turn)
      )
    return Picture(
      _encode(upright, "PNG" if is_png else "JPEG"),
      (upright.height, upright.width),
      turn,
      top,
      options.labels_of_turned,
    )
  except Rejected:
    raise
  except UnidentifiedImageError:  # whose words are an address in memory
    raise Rejected("cannot be decoded: broken JPEG or PNG data") from None
  except Exception as error:  # decoders raise of all kinds on broken files
    raise Rejected(f"cannot be decoded: {error}") from None


def _check_readable(data: bytes, size: tuple[int, int], is_png: bool) -> None:
  """Decodes all of an image as its readers will, see `records.decode_image`.

  TensorFlow refuses some broken files that Pillow reads. Of JPEGs it refuses
  all that Pillow does, so that one decoding is enough.
  """
  from must_jax.quiet_tensorflow import tf

  try:
    if is_png:
      tf.io.decode_png(data, channels=3)
    else:
      tf.io.decode_and_crop_jpeg(data, (0, 0, *size), channels=3)
  except tf.errors.InvalidArgumentError:
    raise Rejected("cannot be decoded: broken JPEG or PNG data") from None


def _image_of_array(path: Path) -> Image.Image:
  array = open_array(path)
  if array.dtype != np.uint8 or not (
    array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
  ):
    raise Rejected(
      f"is an array of {array.dtype} {array.shape}; expected uint8 [h, w] or"
      " [h, w, 3]"
    )
  if array.shape[0] * array.shape[1] > MAX_PIXELS:
    raise Rejected(f"has more than {MAX_PIXELS} pixels: {array.shape}")
  return Image.fromarray(np.array(array))


def open_array(path: Path) -> np.ndarray:
  """An .npy array of any shape; a local file is only mapped into memory.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no .npy file.
  """
  if is_local(path):
    return np.lib.format.open_memmap(path, mode="r")
  return np.lib.format.read_array(io.BytesIO(read_file(path)))


def _of_16_bits(
  data: bytes, image: Image.Image, code_range: tuple[int, int] | None
) -> tuple[Image.Image, int | None]:
  """A PNG of 16 bits with 8, and its greatest code if it has few grey levels.

  By the standard, codes of fewer significant bits (sBIT) are spread over all
  16, and their last bits repeat the first. Many cameras leave them as they are.
  """
  codes = decode_png(data)
  colours = codes[..., :3] if codes.shape[2:] in ((3,), (4,)) else codes
  colours = colours[..., 0] if codes.shape[2:] == (2,) else colours
  top = int(colours.max())
  bits = _significant_bits(data)
  last = colours & ((1 << 16 - bits) - 1)
  spread = top >> bits > 0 or (last <= (colours >> bits) + 1).all()
  low, high = code_range or (0, MAX_CODE if spread else (1 << bits) - 1)
  levels = (colours.astype(np.int64) - low) * 256 // (high - low + 1)
  eight = levels.clip(0, 255).astype(np.uint8)
  few = np.ptp(eight) < _MAX_FEW_LEVELS
  if image.has_transparency_data:
    if codes.shape[2:] in ((2,), (4,)):
      alpha = codes[..., -1] >> 8
    else:  # one colour is transparent
      clear = colours == np.array(image.info["transparency"])
      alpha = np.where(clear.reshape(*clear.shape[:2], -1).all(-1), 0, 255)
    rgb = np.broadcast_to(eight.reshape(*alpha.shape, -1), (*alpha.shape, 3))
    eight = np.dstack([rgb, alpha.astype(np.uint8)])
  told = code_range is not None or bits < 16
  return Image.fromarray(eight), top if few and not told else None


MAX_CODE = 65535
_MAX_FEW_LEVELS = 64  # grey levels of an image that uses 14 of 16 bits


def _significant_bits(data: bytes) -> int:
  """Of the channel that has most, as a PNG says in its sBIT; else 16."""
  bits = max(png_chunk(data, b"sBIT"), default=16)
  return bits if 8 <= bits <= 16 else 16


def _flat(image: Image.Image) -> Image.Image:
  """Grey or RGB, transparent pixels white."""
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  return image if image.mode == "L" else image.convert("RGB")


def _encode(image: Image.Image, form: str) -> bytes:
  buffer = io.BytesIO()
  options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
  # Nothing of the old file's EXIF, profile or comments stays.
  Image.fromarray(np.asarray(image)).save(buffer, form, **options)
  return buffer.getvalue()


def png_chunk(data: bytes, wanted: bytes) -> bytes:
  """A chunk that stands before the pixels of a PNG; empty if there is none."""
  place = 8
  while place + 8 <= len(data):
    length, name = struct.unpack_from(">I4s", data, place)
    if name == wanted:
      return data[place + 8 : place + 8 + length]
    if name == b"IDAT":
      break
    place += 12 + length
  return b""


def png_depth(data: bytes) -> tuple[int, int]:
  """Bits of a channel, and the colour type (0 grey, 2 RGB, 3 palette, ...)."""
  return data[24], data[25]


def decode_png(data: bytes) -> np.ndarray:
  """Codes uint8 or uint16 [h, w] or [h, w, channels]; indices of a palette.

  Raises:
    ValueError: the data are broken; also other exceptions of the decoder.
  """
  depth, colour = png_depth(data)
  if depth == 16 and colour != 0:  # Pillow keeps 8 bits of these
    from must_jax.quiet_tensorflow import tf

    try:
      return tf.io.decode_png(data, dtype=tf.uint16).numpy()
    except tf.errors.InvalidArgumentError:
      raise ValueError("broken PNG data") from None
  with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
    image.load()
    array = np.asarray(image)
  if array.dtype == bool:
    return array.astype(np.uint8)
  if colour == 0 and depth in (2, 4):  # Pillow spreads these over 0..255
    return array // (255 // (2**depth - 1))
  return array
