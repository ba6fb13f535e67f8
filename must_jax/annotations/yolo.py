"""YOLO: a line for each box, or for each part of a mask.

  data.yaml               as Ultralytics reads it
  images/train/NAME
  labels/train/NAME.txt   class, and x and y of the middle, width, height; or
                          x and y of corners

Masks become polygons along the edges of their pixels. Training programs refuse
lines with a sixth number, so that scores stay here:
boxes that come back as they were have theirs again. A sixth number that a tool
adds is read as a score and left.

An image was looked at if it has a label file, be it empty.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from must_jax.annotations import exchange
from must_jax.annotations.exchange import Returned, ReturnedShape, Shown, Target
from must_jax.importers import files, lists, polygons, yolo
from must_jax.importers.drawn_shapes import DrawnShape
from must_jax.importers.items import Labels
from must_jax.storage.image_files import Picture, Rejected
from must_jax.storage.path import Path, is_file

FIELDS = ("objects", "mask")
IMAGES = "images/train"  # one of the names that YOLO knows
_DATA, _LABELS = "data.yaml", "labels"


def write(folder: Path, target: Target, images: Iterable[Shown]) -> Path:
  """Writes labels; returns the file that describes them."""
  ids = {name: i for i, name in enumerate(target.all_classes)}
  for image in images:
    lines = []
    for role in image.labels:
      classes = [ids[name] for name in target.classes[role]]
      for k, numbers in _NUMBERS[role](image.labels[role], image.size):
        words = (f"{number:.10g}" for number in numbers.reshape(-1))
        lines.append(" ".join([str(classes[k]), *words]) + "\n")
    path = yolo.label_path(folder / IMAGES / image.name)
    exchange.write_file(path, "".join(lines).encode())
  data = {
    "path": ".",
    "train": IMAGES,
    "val": IMAGES,
    "names": dict(enumerate(target.all_classes)),
  }
  text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
  exchange.write_file(folder / _DATA, text.encode())
  return folder / _DATA


def _boxes(
  arrays: Mapping[str, np.ndarray], size: tuple[int, int]
) -> Iterator[tuple[int, np.ndarray]]:
  """Class of each box, and its middle and extent as shares of the image."""
  corners = (arrays["boxes"] / np.tile(size, 2)).reshape(-1, 2, 2)[:, :, ::-1]
  middle, extent = corners.mean(1), np.diff(corners, axis=1)[:, 0]
  yield from zip(
    arrays["classes"].tolist(), np.hstack([middle, extent]), strict=True
  )


def _polygons(
  arrays: Mapping[str, np.ndarray], size: tuple[int, int]
) -> Iterator[tuple[int, np.ndarray]]:
  """Class of each part of a mask, and its corners as shares of the image."""
  for k, mask, _ in exchange.masks_of(arrays):
    for corners in polygons.outlines(mask):
      yield k, (corners / size)[:, ::-1]


_NUMBERS = {"objects": _boxes, "mask": _polygons}


def recognizes(path: Path, value: Any) -> bool:
  """Whether a folder, or a file of it, is of the format."""
  del value
  return is_file(path / _DATA) or path.suffix in (".yaml", ".yml")


def read(path: Path, target: Target) -> Returned:
  """Finds label files below a folder, or that of a data.yaml.

  Raises:
    ValueError: there are none, or nothing names their classes.
  """
  folder = path if path.is_dir() else path.parent
  given = path if not path.is_dir() else folder / _DATA
  for listed in (given, folder / _DATA, folder.parent / _DATA):
    if is_file(listed):
      classes = tuple(yolo.names_of(listed, yolo.load_data(listed)))
      break
  else:
    for listed in (folder / "classes.txt", folder / "obj.names"):
      if is_file(listed):
        classes = tuple(lists.load_classes(str(listed)))
        break
    else:
      raise ValueError(
        f"{folder} has no {_DATA} that names the classes; expected one as an"
        " export has it."
      )
  root = folder / _LABELS if (folder / _LABELS).is_dir() else folder
  found, _ = files.find_files(root, (".txt",))
  found = [name for name in found if name not in ("classes.txt", "train.txt")]
  if not found:
    raise ValueError(f"{root} holds no label file; expected NAME.txt in it.")
  keys = exchange.keys_of(found, target.keys)
  return Returned(
    {key: root / name for name, key in keys.items()},
    functools.partial(_read, target, classes),
  )


def _read(
  target: Target, classes: Sequence[str], path: Path, picture: Picture
) -> Labels:
  """The boxes of an image."""
  shapes = []
  for number, line in enumerate(yolo.read_lines(path), start=1):
    if not (words := line.split()):
      continue
    score = words.pop() if len(words) == 6 else None
    if not words[0].isdecimal():
      raise Rejected(
        f"line {number}: class {words[0][:40]!r}; expected a number, 0 to"
        f" {len(classes) - 1}"
      )
    try:
      name = classes[int(words[0])]
    except IndexError:
      raise Rejected(
        f"line {number}: class {words[0]} of {len(classes)}"
      ) from None
    draw = functools.partial(_draw, words)
    is_box = len(words) == 5
    shapes.append(ReturnedShape(f"line {number}", name, is_box, score, draw))
  return exchange.read_shapes(shapes, target, picture)


def _draw(
  words: Sequence[str], class_id: int, size: tuple[int, int]
) -> DrawnShape:
  return yolo.read_line([str(class_id), *words[1:]], size, class_id + 1)
