"""Files of a dataset: finding them, and reading them with suspicion."""

import codecs
import collections
import fnmatch
import json
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np

from must_jax.importers.names import nfc
from must_jax.storage import image_files, orientation
from must_jax.storage.image_files import IMAGE_SUFFIXES, Picture, Rejected
from must_jax.storage.path import Path, is_file, list_tree, read_file

MAP_SUFFIXES = (".png", ".npy")


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


def in_system_folder(path: str) -> bool:
  """Whether a relative path leads into a folder that is no user's."""
  return any(part in _SYSTEM_FOLDERS for part in path.split("/"))


# Of NAS, archives, wastebaskets and disks; thumbnails in them look like images.
_SYSTEM_FOLDERS = frozenset(
  {
    *("@eaDir", "#recycle", "#snapshot", "__MACOSX", "$RECYCLE.BIN"),
    *("System Volume Information", "lost+found", "__pycache__"),
  }
)


def find_files(
  directory: Path, suffixes: Collection[str], glob: str = "*"
) -> tuple[list[str], list[str]]:
  """Lists a directory with all below it; hidden files are passed over.

  Files in folders that operating systems and programs make (`in_system_folder`)
  are among the others, whatever their names.

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
    fits &= not in_system_folder(path)
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
  system = [path for path in others if in_system_folder(path)]
  others = sorted(set(others) - set(system))
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
  notes = [f"files that are no images: {named}"] if others else []
  if system:
    notes.append(f"files in folders of programs: {len(system)}, as {system[0]}")
  return images, notes


def load_json(text: str | os.PathLike[str]) -> Any:
  """Reads FILE, or FILE:KEY for the value of a key of a JSON object.

  Raises:
    ValueError: the file is missing, no JSON, or has no such key.
  """
  path, key = file_and_key(text)
  return value_at(_parse_json(path), path, key)


def value_at(value: Any, path: Path, key: str | None) -> Any:
  """What FILE:KEY names in the contents of the file; all of them without a key.

  Raises:
    ValueError: there is no such key.
  """
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


def read_map(path: Path, picture: Picture) -> np.ndarray:
  """Reads a label map: PNG codes (indices of a palette) or an .npy array.

  It is turned upright like its image, if it is of the image as it is stored.

  Returns:
    [h, w] or [h, w, channels]: uint8 or uint16 from a PNG, as stored in .npy.

  Raises:
    Rejected: broken, of another size than its image, or of an image of which
      nobody knows whether the map is turned with it.
  """
  return read_label_map(path, picture).codes


class LabelMap(NamedTuple):
  """A map as `read_map` reads it.

  Attributes:
    codes: [h, w] or [h, w, channels].
    orientation: that it was turned by.
    palette: colours of the indices, [n, 3]; empty where codes are none.
  """

  codes: np.ndarray
  orientation: int
  palette: np.ndarray


def read_label_map(path: Path, picture: Picture) -> LabelMap:
  """Reads a label map like `read_map`, with what else is known of it.

  Raises:
    Rejected: see `read_map`.
  """
  from must_jax.storage import records

  try:
    if path.suffix.lower() == ".npy":
      array = image_files.open_array(path)
      if array.ndim < 2:
        raise Rejected(
          f"{path.name} is {array.dtype} {array.shape}; expected [h, w] or"
          " [h, w, channels]"
        )
      if array.ndim == 3 and array.shape[0] <= 4 < array.shape[2]:
        array = np.moveaxis(array, 0, -1)  # channels came first
      array = array[..., 0] if array.shape[2:] == (1,) else array
      size = array.shape[:2]
    else:
      data = read_file(path)
      if data[:2] == b"\xff\xd8":
        raise Rejected(
          f"{path.name} is a JPEG, whose pixels are not exact; expected a PNG"
        )
      size = records.read_image_size(data)
    turn = picture.turn_of_labels(size, f"{path.name} is")
    palette = b""
    if path.suffix.lower() != ".npy":
      array = image_files.decode_png(data)
      palette = (
        image_files.png_chunk(data, b"PLTE")
        if image_files.png_depth(data)[1] == 3
        else b""
      )
    return LabelMap(
      np.array(orientation.turn_map(array, turn)),
      turn,
      np.frombuffer(palette, np.uint8).reshape(-1, 3),
    )
  except Rejected:
    raise
  except Exception as error:  # decoders raise of all kinds on broken files
    raise Rejected(f"{path.name} cannot be decoded: {error}") from None


def read_ids(path: Path, picture: Picture) -> tuple[np.ndarray, dict[str, int]]:
  """Reads a map of class ids like `read_map`.

  Returns:
    Integers [h, w], and counts for `warn_of_palettes`.

  Raises:
    Rejected: as `read_map`, or it has colours instead of ids.
  """
  ids, _, palette = read_label_map(path, picture)
  if ids.ndim != 2:
    raise Rejected(
      f"{path.name} has {ids.shape[2]} channels; expected ids, a grey or"
      " palette PNG"
    )
  if not len(palette):
    return ids, {}
  used = np.flatnonzero(np.bincount(ids.reshape(-1))[: len(palette)])
  return ids, {f"{_COLOUR}{k} {bytes(palette[k]).hex()}": 1 for k in used}


_COLOUR = "palette colour of id "


def warn_of_palettes(counts: Mapping[str, float]) -> list[str]:
  """Tells of ids that have not the same colour in all palettes.

  Programs that save a few colours number them anew in each file.

  Args:
    counts: sums of those of `read_ids`.
  """
  colours: dict[int, dict[str, float]] = collections.defaultdict(dict)
  for name, count in counts.items():
    if name.startswith(_COLOUR):
      number, colour = name.removeprefix(_COLOUR).split()
      colours[int(number)][colour] = count
  warnings = []
  for k, found in sorted(colours.items()):
    if len(found) > 1:
      most = sorted(found, key=lambda colour: -found[colour])[:3]
      listed = ", ".join(f"#{colour} in {found[colour]:.0f}" for colour in most)
      warnings.append(f"{k} ({listed})")
  if not warnings:
    return []
  more = f" and {len(warnings) - 3} more" if len(warnings) > 3 else ""
  return [
    "palettes differ from file to file, so ids may not mean the same classes:"
    f" id {'; '.join(warnings[:3])}{more}."
  ]


def describe(values: np.ndarray) -> str:
  """The values of a map of any shape in few words, for a message."""
  finite = values[np.isfinite(values)]
  if not finite.size:
    return "no finite number"
  share = finite.size / values.size
  return f"{finite.min():.4g} to {finite.max():.4g}" + (
    f" where they are finite ({share:.1%})" * (share < 1)
  )
