"""A PNG of class ids for each image.

  masks/NAME.png        ids in the order of classes.txt, 255 unknown, in colours
  confidence/NAME.png   of each pixel, round(255 p), where it is known
  classes.txt           a name a line
  images/NAME

What comes back is a folder of PNGs, or one with a folder `masks`; an image was
looked at if its PNG is there.
"""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from must_jax import pictures
from must_jax.annotations import exchange
from must_jax.annotations.exchange import Returned, Shown, Target
from must_jax.fields.class_map import ClassMap
from must_jax.fields.maps import encode_png
from must_jax.importers import files, lists
from must_jax.importers.items import Labels
from must_jax.importers.names import nfc
from must_jax.storage.image_files import Picture, Rejected
from must_jax.storage.path import Path, is_file
from must_jax.types import IGNORE_LABEL

FIELDS = ("mask",)
IMAGES = "images"
_MASKS, _CONFIDENCE, _CLASSES = "masks", "confidence", "classes.txt"


def write(folder: Path, target: Target, images: Iterable[Shown]) -> Path:
  """Writes labels; returns their folder."""
  classes = target.classes["mask"]
  colors = pictures.palette(len(classes))
  exchange.write_file(
    folder / _CLASSES, "".join(f"{name}\n" for name in classes).encode()
  )
  for image in images:
    if "mask" not in image.labels:
      continue
    arrays, name = image.labels["mask"], f"{image.name.rpartition('.')[0]}.png"
    png = ClassMap(len(classes)).to_png(arrays, colors)
    assert png is not None
    exchange.write_file(folder / _MASKS / name, png[0])
    if "confidence" in arrays:
      codes = np.rint(255 * arrays["confidence"]).astype(np.uint8)
      exchange.write_file(folder / _CONFIDENCE / name, encode_png(codes))
  return folder / _MASKS


def recognizes(path: Path, value: Any) -> bool:
  """Whether a folder is of the format."""
  del value
  return (path / _MASKS).is_dir()


def read(path: Path, target: Target) -> Returned:
  """Finds PNGs.

  Raises:
    ValueError: there are none, or their classes are others.
  """
  listed = [f / _CLASSES for f in (path, path.parent) if is_file(f / _CLASSES)]
  classes = target.classes["mask"]
  if listed:
    classes = tuple(lists.load_classes(str(listed[0])))
  root = path / _MASKS if (path / _MASKS).is_dir() else path
  found, _ = files.find_files(root, (".png",))
  if not found:
    raise ValueError(f"{root} holds no PNG; expected a mask for each image.")
  keys = exchange.keys_of(found, target.keys)
  table = np.full(1 << 16, -1)
  table[IGNORE_LABEL] = IGNORE_LABEL
  known = {
    nfc(name).strip(): k for k, name in enumerate(target.classes["mask"])
  }
  for i, name in enumerate(classes):
    table[i] = known.get(name, -1)
  return Returned(
    {key: root / name for name, key in keys.items()},
    functools.partial(_read, table, classes),
  )


def _read(
  table: np.ndarray, classes: tuple[str, ...], path: Path, picture: Picture
) -> Labels:
  """The class map of an image.

  Args:
    table: ids of the label set by those of PNGs, -1 of what it lacks.
    classes: names of the ids of PNGs.
    path: of the PNG.
    picture: the image.
  """
  ids, _ = files.read_ids(path, picture)
  mapped = table[ids]
  if wrong := np.unique(ids[mapped < 0]).tolist():
    named = [f"{i} ({classes[i]!r})" if i < len(classes) else i for i in wrong]
    raise Rejected(
      f"{path.name} has class ids {named[:5]}; the label set has"
      f" {len(classes)} classes, from 0, and {IGNORE_LABEL} for unknown"
    )
  return Labels({"mask": {"classes": mapped.astype(np.uint8)}})
