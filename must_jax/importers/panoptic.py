"""Class maps from COCO's panoptic segmentation.

  panoptic_train2017.json                images, annotations and categories
  panoptic_train2017/000000000009.png    ids of segments, R + 256 G + 65536 B
  train2017/000000000009.jpg

The JSON file gives the category of each segment. Classes are the categories
sorted by id: COCO's 80 kinds of things and 53 of stuff become 0 to 132. Pixels
of no segment (VOID, id 0) become unknown. A crowd is a region of its class and
keeps it, since a class map does not tell instances apart. Any JSON file of this
format with at most 255 categories will do. COCO 2017 has 118,287 images in
train and 5,000 in val (cocodataset.org).
"""

import argparse
import dataclasses
from collections.abc import Mapping

import numpy as np

from must_jax.importers import files, names
from must_jax.importers.items import Item, Labels, Plan, ReadFiles
from must_jax.importers.names import nfc
from must_jax.importers.voc_segmentation import class_map
from must_jax.storage.image_files import Picture, Rejected
from must_jax.storage.path import Path
from must_jax.types import IGNORE_LABEL

HELP = "class maps from COCO's panoptic segmentation"

_VOID = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  for option, metavar, text in (
    ("--annotations", "FILE", "panoptic_SPLIT.json"),
    ("--masks", "DIR", "panoptic_SPLIT, where the PNGs are"),
    ("--images", "DIR", "where the images are"),
  ):
    parser.add_argument(
      option, type=Path, required=True, metavar=metavar, help=text
    )


def plan(args: argparse.Namespace) -> Plan:
  """Reads the JSON file.

  Raises:
    ValueError: the file or a directory is missing or has another format.
  """
  for directory in (args.images, args.masks):
    if not directory.is_dir():
      raise ValueError(f"{directory} is no directory of images.")
  images, masks, classes, warnings = _load(args.annotations, args.max_rejected)
  items: dict[str, Item] = {}
  for number, name in images.items():
    label = None
    if number in masks:
      mask, segments = masks[number]
      label = (files.inside(args.masks, mask), segments)
    path = files.inside(args.images, name)
    key = files.key_of(name)
    if key in items:
      raise ValueError(
        f"{args.annotations} has two images with key {key!r} (file_name"
        " without extension); expected different ones."
      )
    items[key] = Item(key, path, label)
  return Plan(
    {"mask": {"kind": "ClassMap", "classes": list(classes.values())}},
    list(items.values()),
    ReadFiles(_ReadSegments({number: i for i, number in enumerate(classes)})),
    warnings=warnings,
  )


@dataclasses.dataclass(frozen=True)
class _ReadSegments:
  """Reads a panoptic PNG; a label is its path and {segment: category}.

  Attributes:
    class_of: classes by category.
  """

  class_of: Mapping[int, int]

  def __call__(self, item: Item, picture: Picture) -> Labels:
    if item.label is None:
      raise Rejected("has no annotation")
    path, segments = item.label
    codes = files.read_map(path, picture)
    if codes.shape[2:] != (3,) or codes.dtype != np.uint8:
      raise Rejected(
        f"{path.name} is {codes.dtype} {codes.shape}; expected an RGB PNG of 8"
        " bits"
      )
    strange = sorted(set(segments.values()) - set(self.class_of))
    if strange:
      raise Rejected(f"has segments of categories {strange[:5]}, not listed")
    class_of = {i: self.class_of[number] for i, number in segments.items()}
    class_of[_VOID] = IGNORE_LABEL
    ids = codes.astype(np.int64) @ [1, 1 << 8, 1 << 16]
    return class_map(path, ids, class_of)


def _load(
  path: Path, max_strays: float
) -> tuple[
  dict[str, str],
  dict[str, tuple[str, dict[int, int]]],
  dict[int, str],
  list[str],
]:
  """Images, masks with {segment: category}, categories, and warnings.

  Images and masks by the id of the image.
  """
  value = files.load_json(path)
  try:
    images = [(_checked(i["id"]), i["file_name"]) for i in value["images"]]
    masks = [
      (
        _checked(mask["image_id"]),
        mask["file_name"],
        {
          int(_checked(s["id"])): int(_checked(s["category_id"]))
          for s in mask["segments_info"]
        },
      )
      for mask in value["annotations"]
    ]
    classes = [
      (int(_checked(c["id"])), nfc(c["name"])) for c in value["categories"]
    ]
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} is not in COCO's panoptic format ({error!r}); expected images,"
      " annotations with segments_info, and categories."
    ) from None
  for name, ids in (
    ("images", [entry[0] for entry in images]),
    ("annotations", [entry[0] for entry in masks]),
    ("categories", [entry[0] for entry in classes]),
  ):
    names.check_ids(ids, f"{path}, {name!r}")
  ids = [number for number, _ in images]
  form = names.id_form(ids)
  warnings = names.check_references(
    f"annotations of {path}", [mask[0] for mask in masks], ids, form, max_strays
  )
  return (
    {form(number): name for number, name in images},
    {form(number): (name, segments) for number, name, segments in masks},
    dict(sorted(classes)),
    warnings,
  )


def _checked(value: names.Id) -> names.Id:
  if not names.is_id(value):
    raise ValueError(f"{value!r} is no id")
  return value
