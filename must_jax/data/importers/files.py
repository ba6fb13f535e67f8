"""Files of a dataset: finding them, and reading them with suspicion."""

import collections
import dataclasses
import fnmatch
import io
import json
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".npy")
MAP_SUFFIXES = (".png", ".npy")


class Rejected(Exception):
  """An image that cannot be imported; the message is the reason."""


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
  """Key of an image: its relative path without the extension."""
  return pathlib.PurePosixPath(path).with_suffix("").as_posix()


def find(
  directory: pathlib.Path, suffixes: Collection[str], glob: str = "*"
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

  def fail(error: OSError) -> None:
    raise ValueError(
      f"{error.filename} cannot be read ({error.strerror}); expected a"
      " directory of files."
    )

  wanted: list[str] = []
  others: list[str] = []
  for folder, folders, names in os.walk(
    directory, onerror=fail, followlinks=True
  ):
    folders[:] = [name for name in folders if not name.startswith(".")]
    for name in names:
      path = (pathlib.Path(folder) / name).relative_to(directory).as_posix()
      if name.startswith("."):
        continue
      fits = fnmatch.fnmatchcase(path, glob)
      fits &= pathlib.PurePosixPath(path).suffix.lower() in suffixes
      (wanted if fits else others).append(path)
  return sorted(wanted), sorted(others)


def find_images(
  directory: pathlib.Path, glob: str = "*"
) -> tuple[dict[str, pathlib.Path], list[str]]:
  """Images of a directory by key, and a note on the files passed over.

  Raises:
    ValueError: there are none, or two have the same key.
  """
  paths, others = find(directory, IMAGE_SUFFIXES, glob)
  if not paths:
    raise ValueError(
      f"{directory} holds no image ({len(others)} other files, such as"
      f" {others[:3]}); expected names that match {glob!r} and end in"
      f" {IMAGE_SUFFIXES}."
    )
  images: dict[str, pathlib.Path] = {}
  for path in paths:
    key = key_of(path)
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
  path, key = _file_and_key(text)
  value = _parse_json(path)
  if key is None:
    return value
  if not isinstance(value, dict) or key not in value:
    keys = sorted(value) if isinstance(value, dict) else "no object"
    raise ValueError(f"{path} has no key {key!r}; it has {keys}.")
  return value[key]


def load_classes(text: str) -> list[str]:
  """Class names: a JSON list in FILE or FILE:KEY, or text with a name a line.

  Raises:
    ValueError: the file is missing or holds something else.
  """
  path, _ = _file_and_key(text)
  if path.suffix.lower() == ".json":
    names = load_json(text)
  else:
    names = [line.strip() for line in _read_text(path).rstrip().split("\n")]
  if (
    not isinstance(names, list)
    or not all(isinstance(name, str) and name for name in names)
    or len(set(names)) != len(names)
    or not names
  ):
    raise ValueError(
      f"{text} lists no classes: {str(names)[:80]}; expected different names,"
      " as a JSON list (FILE.json or FILE.json:KEY) or one on each line."
    )
  return names


def _file_and_key(
  text: str | os.PathLike[str],
) -> tuple[pathlib.Path, str | None]:
  path, colon, key = os.fspath(text).rpartition(":")
  if not colon or os.path.exists(text):
    return pathlib.Path(text), None
  return pathlib.Path(path), key


def _read_text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except OSError as error:
    raise ValueError(
      f"{path} cannot be read ({error.strerror}); expected a text file."
    ) from None
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is no UTF-8 text ({error}).") from None


def _parse_json(path: pathlib.Path) -> Any:
  try:
    return json.loads(_read_text(path))
  except json.JSONDecodeError as error:
    raise ValueError(f"{path} is not valid JSON ({error}).") from None


def read_image(path: pathlib.Path) -> Picture:
  """Reads an image and decodes all of it, so that a broken one shows.

  The bytes of a file are kept where every reader gets the same pixels from
  them: 8 bit, grey or RGB, upright. Others are encoded anew: EXIF rotation is
  carried out, transparent pixels become white, 16 bits become 8.

  Raises:
    Rejected: no file, not JPEG, PNG or uint8 .npy, broken, or too large.
  """
  from must_jax.data import schema

  try:
    if path.suffix.lower() == ".npy":
      return _encode(_image_of_array(path), "PNG")
    data = path.read_bytes()
    size = schema.image_size(data)  # before a decompression bomb goes off
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
      image.load()
      upright = ImageOps.exif_transpose(image)
      turned = image.getexif().get(0x0112, 1) in range(2, 9)
      plain = image.mode in ("L", "RGB") and not image.has_transparency_data
      is_png = image.format == "PNG"
    if plain and not turned and not (is_png and _png_depth(data)[0] != 8):
      _check_readable(data, size)
      return Picture(data, size)
    return _encode(upright, "PNG" if is_png else "JPEG", turned)
  except Rejected:
    raise
  except FileNotFoundError:
    raise Rejected(f"there is no file {path}") from None
  except Exception as error:  # decoders raise of all kinds on broken files
    raise Rejected(f"cannot be decoded: {error}") from None


def _check_readable(data: bytes, size: tuple[int, int]) -> None:
  """TensorFlow refuses some broken files that Pillow reads."""
  import tensorflow as tf

  from must_jax.data import parsing

  try:
    parsing.decode_image(tf.constant(data), tf.constant(size), (0, 0, *size))
  except tf.errors.InvalidArgumentError:
    raise Rejected("cannot be decoded: broken JPEG or PNG data") from None


def _image_of_array(path: pathlib.Path) -> Image.Image:
  from must_jax.data import schema

  array = np.lib.format.open_memmap(path, mode="r")
  if array.dtype != np.uint8 or not (
    array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
  ):
    raise Rejected(
      f"is an array of {array.dtype} {array.shape}; expected uint8 [h, w] or"
      " [h, w, 3]"
    )
  if array.shape[0] * array.shape[1] > schema.MAX_PIXELS:
    raise Rejected(f"has more than {schema.MAX_PIXELS} pixels: {array.shape}")
  return Image.fromarray(np.array(array))


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


def read_map(path: pathlib.Path, picture: Picture) -> np.ndarray:
  """Reads a label map: PNG codes (indices of a palette) or an .npy array.

  Returns:
    [h, w] or [h, w, channels]: uint8 or uint16 from a PNG, as stored in .npy.

  Raises:
    Rejected: broken, or of another size than its image.
  """
  from must_jax.data import schema

  try:
    if path.suffix.lower() == ".npy":
      array = np.lib.format.open_memmap(path, mode="r")
      _check_size(path, array.shape[:2], picture)
      return np.array(array[..., 0] if array.shape[2:] == (1,) else array)
    data = path.read_bytes()
    _check_size(path, schema.image_size(data), picture)
    return _decode_png(data)
  except Rejected:
    raise
  except Exception as error:  # decoders raise of all kinds on broken files
    raise Rejected(f"{path.name} cannot be decoded: {error}") from None


def _check_size(
  path: pathlib.Path, size: Sequence[int], picture: Picture
) -> None:
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
