"""Files of a dataset: finding them, and reading them with suspicion."""

import codecs
import collections
import dataclasses
import fnmatch
import io
import json
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any
from unicodedata import normalize

import numpy as np
from PIL import Image, ImageOps

from must_jax.importers.names import nfc
from must_jax.storage.path import Path, is_file, is_local, list_tree, read_file
from must_jax.types import MAX_PIXELS

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".npy")
MAP_SUFFIXES = (".png", ".npy")


class Rejected(ValueError):
  """What cannot be imported; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image as it is stored.

  Attributes:
    data: JPEG or PNG of 8 bits, grey or RGB, upright.
    size: height and width.
    turned: the file's EXIF asked for a rotation or flip, which was carried out.
  """

  data: bytes
  size: tuple[int, int]
  turned: bool = False


def key_of(path: str) -> str:
  """Key of an image: its relative path without the extension, composed."""
  return nfc(pathlib.PurePosixPath(path).with_suffix("").as_posix())


def inside(root: Path, name: str) -> Path:
  """The path of a name out of a file, which cannot lead out of its root.

  Of the two ways in which Unicode writes a name, the one that is there.

  Args:
    root: directory that the name is relative to.
    name: such as "a/b.jpg".

  Raises:
    Rejected: no text, empty, absolute, with "..", a backslash (which parts
      folders elsewhere), a NUL or "://" in it.
  """
  path = pathlib.PurePosixPath(name) if isinstance(name, str) else None
  if (
    path is None
    or not path.name
    or path.is_absolute()
    or ".." in path.parts
    or any(text in str(name) for text in ("\\", "\0", "://"))
  ):
    raise Rejected(f"{name!r} is no path below {root}")
  composed, decomposed = (normalize(form, name) for form in ("NFC", "NFD"))
  if composed != decomposed:  # a name may be written in two ways
    for other in (name, composed, decomposed):
      if is_file(root / other):
        return root / other
  return root / path


def find_files(
  directory: Path, suffixes: Collection[str], glob: str = "*"
) -> tuple[list[str], list[str]]:
  """Lists a directory with all below it; hidden files are passed over.

  Args:
    directory: where to look.
    suffixes: lower-case extensions of the files wanted.
    glob: pattern of the relative paths wanted; `*` matches `/` too.

  Returns:
    Relative posix paths of the files wanted and of the others, both sorted.

  Raises:
    ValueError: the directory is none or cannot be read.
  """
  try:
    paths = list_tree(directory)
  except OSError as error:
    raise ValueError(
      f"{error.filename or directory} cannot be read"
      f" ({error.strerror or error}); expected a directory of files."
    ) from None
  wanted: list[str] = []
  others: list[str] = []
  for path in paths:
    fits = fnmatch.fnmatchcase(nfc(path), nfc(glob))
    fits &= os.path.splitext(path)[1].lower() in suffixes
    (wanted if fits else others).append(path)
  return sorted(wanted), sorted(others)


def find_images(
  directory: Path, glob: str = "*"
) -> tuple[dict[str, Path], list[str]]:
  """Images of a directory by key, and a note on the files passed over.

  Raises:
    ValueError: there are none, two have the same key, or a name is no UTF-8.
  """
  paths, others = find_files(directory, IMAGE_SUFFIXES, glob)
  if not paths:
    raise ValueError(
      f"{directory} holds no image ({len(others)} other files, such as"
      f" {others[:3]}); expected names that match {glob!r} and end in"
      f" {IMAGE_SUFFIXES}."
    )
  images: dict[str, Path] = {}
  for path in paths:
    key = key_of(path)
    if not key.isascii() and key.encode(errors="replace").decode() != key:
      raise ValueError(
        f"{os.fsencode(directory / path)!r} is no UTF-8 name; rename the file."
      )
    if key in images:
      raise ValueError(
        f"{images[key]} and {directory / path} have the same key {key!r}; keys"
        " are paths without extension and must differ. Rename one, or choose"
        " with --image-glob."
      )
    images[key] = directory / path
  kinds = collections.Counter(pathlib.PurePosixPath(p).suffix for p in others)
  named = ", ".join(f"{n} {kind or '(none)'}" for kind, n in kinds.items())
  return images, [f"files that are no images: {named}"] if others else []


def load_json(text: str | os.PathLike[str]) -> Any:
  """Reads FILE, or FILE:KEY for the value of a key of a JSON object.

  Raises:
    ValueError: the file is missing, no JSON, or has no such key.
  """
  path, key = file_and_key(text)
  value = _parse_json(path)
  if key is None:
    return value
  if not isinstance(value, dict) or key not in value:
    keys = sorted(value) if isinstance(value, dict) else "no object"
    raise ValueError(f"{path} has no key {key!r}; it has {keys}.")
  return value[key]


def file_and_key(
  text: str | os.PathLike[str],
) -> tuple[Path, str | None]:
  """What FILE or FILE:KEY names."""
  path, colon, key = os.fspath(text).rpartition(":")
  if not colon or key.startswith("//") or Path(text).exists():
    return Path(text), None
  return Path(path), key


def read_text(path: Path) -> str:
  """A text file in UTF-8, or in UTF-16 if its first bytes say so.

  Raises:
    ValueError: it cannot be read, or is of another encoding.
  """
  try:
    data = read_file(path)
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if is_utf16 else "utf-8")
  except OSError as error:
    raise ValueError(
      f"{path} cannot be read ({error.strerror or error}); expected a text"
      " file."
    ) from None
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is no UTF-8 text ({error}).") from None
  if "\0" in text:
    raise ValueError(f"{path} is no UTF-8 text (it has zero bytes).")
  # Also where files that begin with it were joined.
  return text.replace("\ufeff", "")


def _parse_json(path: Path) -> Any:
  try:
    return json.loads(read_text(path))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not valid JSON ({error}).") from None


def read_image(path: Path) -> Picture:
  """Reads an image file, see `picture_of`, or a uint8 .npy as a PNG.

  Raises:
    Rejected: no file, not JPEG, PNG or uint8 .npy, broken, or too large.
  """
  try:
    if path.suffix.lower() == ".npy":
      return _encode(_image_of_array(path), "PNG")
    data = read_file(path)
  except Rejected:
    raise
  except FileNotFoundError:
    raise Rejected(f"there is no file {path}") from None
  except Exception as error:  # of many kinds on broken files
    raise Rejected(f"cannot be decoded: {error}") from None
  return picture_of(data)


def picture_of(data: bytes) -> Picture:
  """An image as it is stored; all of it is decoded, so that a broken one shows.

  The bytes are kept where every reader gets the same pixels from them: 8 bit,
  grey or RGB, upright. Others are encoded anew: EXIF rotation is carried out,
  transparent pixels become white, 16 bits become 8.

  Args:
    data: of a JPEG or PNG.

  Raises:
    Rejected: not JPEG or PNG, broken, or too large.
  """
  from must_jax.storage import records

  try:
    size = records.read_image_size(data)  # before a decompression bomb goes off
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
      is_png = image.format == "PNG"
      if is_png:
        image.load()  # EXIF may come after the pixels
      turned = image.getexif().get(0x0112, 1) in range(2, 9)
      plain = image.mode in ("L", "RGB") and not image.has_transparency_data
      if plain and not turned and not (is_png and _png_depth(data)[0] != 8):
        _check_readable(data, size, is_png)
        return Picture(data, size)
      upright = ImageOps.exif_transpose(image)
    return _encode(upright, "PNG" if is_png else "JPEG", turned)
  except Rejected:
    raise
  except Exception as error:  # decoders raise of all kinds on broken files
    raise Rejected(f"cannot be decoded: {error}") from None


def _check_readable(data: bytes, size: tuple[int, int], is_png: bool) -> None:
  """Decodes all of an image as its readers will, see `records.decode_image`.

  TensorFlow refuses some broken files that Pillow reads. Of JPEGs it refuses
  all that Pillow does, so that one decoding is enough.
  """
  import tensorflow as tf

  try:
    if is_png:
      tf.io.decode_png(data, channels=3)
    else:
      tf.io.decode_and_crop_jpeg(data, (0, 0, *size), channels=3)
  except tf.errors.InvalidArgumentError:
    raise Rejected("cannot be decoded: broken JPEG or PNG data") from None


def _image_of_array(path: Path) -> Image.Image:
  array = _open_array(path)
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


def _open_array(path: Path) -> np.ndarray:
  """An .npy array, of which a local file is only mapped into memory."""
  if is_local(path):
    return np.lib.format.open_memmap(path, mode="r")
  return np.lib.format.read_array(io.BytesIO(read_file(path)))


def _encode(image: Image.Image, form: str, turned: bool = False) -> Picture:
  if image.mode.startswith("I"):  # 16 bits
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  if image.mode != "L":
    image = image.convert("RGB")
  buffer = io.BytesIO()
  options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
  # Nothing of the old file's EXIF, profile or comments stays.
  Image.fromarray(np.asarray(image)).save(buffer, form, **options)
  return Picture(buffer.getvalue(), (image.height, image.width), turned)


def read_map(path: Path, picture: Picture) -> np.ndarray:
  """Reads a label map: PNG codes (indices of a palette) or an .npy array.

  Returns:
    [h, w] or [h, w, channels]: uint8 or uint16 from a PNG, as stored in .npy.

  Raises:
    Rejected: broken, or of another size than its image.
  """
  from must_jax.storage import records

  try:
    if path.suffix.lower() == ".npy":
      array = _open_array(path)
      _check_size(path, array.shape[:2], picture)
      return np.array(array[..., 0] if array.shape[2:] == (1,) else array)
    data = read_file(path)
    if data.startswith(b"\xff\xd8"):
      raise Rejected(
        f"{path.name} is a JPEG, whose pixels are not exact; expected a PNG"
      )
    _check_size(path, records.read_image_size(data), picture)
    return _decode_png(data)
  except Rejected:
    raise
  except Exception as error:  # decoders raise of all kinds on broken files
    raise Rejected(f"{path.name} cannot be decoded: {error}") from None


def read_ids(path: Path, picture: Picture) -> np.ndarray:
  """Reads a map of class ids like `read_map`: integers [h, w].

  Raises:
    Rejected: as `read_map`, or it has colours instead of ids.
  """
  ids = read_map(path, picture)
  if ids.ndim != 2:
    raise Rejected(
      f"{path.name} has {ids.shape[2]} channels; expected ids, a grey or"
      " palette PNG"
    )
  return ids


def _check_size(path: Path, size: Sequence[int], picture: Picture) -> None:
  if tuple(size) != picture.size:
    turned = " once turned as its EXIF tells" if picture.turned else ""
    raise Rejected(
      f"{path.name} is {' x '.join(map(str, size))} (height x width); expected"
      f" the size of its image, {picture.size[0]} x {picture.size[1]}{turned}"
    )


def _png_depth(data: bytes) -> tuple[int, int]:
  """Bits of a channel, and the colour type (0 grey, 2 RGB, 3 palette, ...)."""
  return data[24], data[25]


def _decode_png(data: bytes) -> np.ndarray:
  depth, colour = _png_depth(data)
  if depth == 16 and colour != 0:  # Pillow keeps 8 bits of these
    import tensorflow as tf

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
