"""Objects from a JSON file in the format of COCO."""

import argparse
import collections
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from must_jax.importers import files, names, objects
from must_jax.importers.items import Item, Labels, Plan, ReadFiles
from must_jax.storage.image_files import Picture, Rejected
from must_jax.storage.path import Path

HELP = "objects from a COCO JSON file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  parser.add_argument(
    "--annotations",
    type=Path,
    required=True,
    metavar="FILE",
    help="JSON with images, annotations and categories",
  )
  parser.add_argument(
    "--images",
    type=Path,
    required=True,
    metavar="DIR",
    help="where the file names of the JSON begin",
  )
  parser.add_argument(
    "--strip-folders",
    type=int,
    default=0,
    metavar="N",
    help="leave out the first N folders of the file names; 2 for Objects365,"
    " whose images/v1/patch8/a.jpg lies in patch8/a.jpg",
  )


def plan(args: argparse.Namespace) -> Plan:
  """Reads the JSON file.

  Categories become classes 0, 1, ... in the order of the file; `iscrowd` or
  `ignore` marks objects that count neither way. Images without annotations
  are images without objects.

  Raises:
    ValueError: the file is missing or has another format.
  """
  if args.strip_folders < 0:
    raise ValueError(
      f"--strip-folders is {args.strip_folders}; expected 0 or more."
    )
  if not args.images.is_dir():
    raise ValueError(f"{args.images} is no directory of images.")
  images, annotations, categories = load(args.annotations)
  ids = [image["id"] for image in images]
  form = names.id_form(ids)
  warnings = names.check_references(
    f"annotations of {args.annotations}",
    [annotation["image_id"] for annotation in annotations],
    ids,
    form,
    args.max_rejected,
  )
  found = collections.defaultdict(list)
  for annotation in annotations:
    found[form(annotation["image_id"])].append(annotation)
  items: dict[str, Item] = {}
  for image in images:
    parts = pathlib.PurePosixPath(image["file_name"]).parts
    name = "/".join(parts[args.strip_folders :])
    try:
      path = files.inside(args.images, name)
    except Rejected:
      raise ValueError(
        f"{args.annotations} has file_name {image['file_name']!r}; expected a"
        f" path below --images after --strip-folders {args.strip_folders}."
      ) from None
    key = files.key_of(name)
    if key in items:
      raise ValueError(
        f"{args.annotations} has two images with key {key!r} (file_name"
        " without extension); expected different ones."
      )
    label = (image, found.get(form(image["id"]), []))
    items[key] = Item(key, path, label)
  form = names.id_form([category["id"] for category in categories])
  class_of = {form(c["id"]): i for i, c in enumerate(categories)}
  read = ReadFiles(_ReadObjects(class_of, form))
  fields = {
    "objects": {"kind": "Boxes", "classes": [c["name"] for c in categories]}
  }
  scored = sum("score" in annotation for annotation in annotations)
  return Plan(
    fields,
    list(items.values()),
    read,
    notes=[f"scores, which are not read: {scored}"] if scored else [],
    summarize=objects.summarize,
    warn=functools.partial(objects.warn, have_sizes=True),
    warnings=warnings,
  )


@dataclasses.dataclass(frozen=True)
class _ReadObjects:
  """Reads the objects of an image.

  Attributes:
    class_of: {id of a category: class}.
    form: of these ids, see `names.id_form`.
  """

  class_of: Mapping[str, int]
  form: Callable[[names.Id], str]

  def __call__(self, item: Item, picture: Picture) -> Labels:
    image, annotations = item.label
    given = [image.get(name) for name in ("height", "width")]
    named = [(f"annotation {a.get('id')}", a) for a in annotations]
    return objects.read_objects(
      named, self._read, picture, given, "the JSON gives"
    )

  def _read(self, annotation: Mapping[str, Any]) -> objects.Object:
    category = annotation["category_id"]
    box = corners(annotation)
    class_id = self.class_of.get(self.form(category))
    if class_id is None:
      raise Rejected(
        f"category {category!r} is none of the {len(self.class_of)} listed,"
        f" such as {', '.join([*self.class_of][:10])}"
      )
    ignored = [
      objects.read_flag(name, annotation.get(name))
      for name in ("iscrowd", "ignore")
    ]
    return objects.Object(box, class_id, any(ignored))


_NEEDED = {
  "images": ("id", "file_name"),
  "annotations": ("image_id", "category_id"),
  "categories": ("id", "name"),
}


def load(path: Path) -> tuple[list, list, list]:
  """Images, annotations and categories of a file.

  Raises:
    ValueError: it is missing or has another format.
  """
  value = files.load_json(path)
  lists = []
  for name, needed in _NEEDED.items():
    entries = value.get(name) if isinstance(value, dict) else None
    if not isinstance(entries, list):
      raise ValueError(
        f"{path} has no list {name!r}; expected a COCO JSON object with"
        f" {list(_NEEDED)}."
      )
    for entry in entries:
      for field in needed:
        is_id = field.endswith("id")
        given = entry.get(field) if isinstance(entry, dict) else None
        if not (names.is_id(given) if is_id else isinstance(given, str)):
          raise ValueError(
            f"{path}, {name!r}: {str(entry)[:80]} lacks {field!r}, "
            f"{'a whole number or text' if is_id else 'a text'}; expected the"
            " COCO format."
          )
    if name != "annotations":
      names.check_ids([entry["id"] for entry in entries], f"{path}, {name!r}")
    lists.append(entries)
  images, annotations, categories = lists
  return images, annotations, categories


def corners(annotation: Mapping[str, Any]) -> np.ndarray:
  """Corners yxyx [4] of a bbox xywh, in pixels.

  Raises:
    Rejected: it has none, or one without area.
  """
  bbox: Any = annotation.get("bbox")
  try:
    x, y, width, height = (float(v) for v in bbox)
  except (TypeError, ValueError):
    raise Rejected(
      f"bbox is {bbox!r}; expected [x, y, width, height]"
    ) from None
  if not all(map(math.isfinite, (x, y, width, height))):
    raise Rejected(f"bbox {bbox} is not finite")
  if width <= 0 or height <= 0:
    raise Rejected(f"bbox {bbox} has no area")
  return np.array([y, x, y + height, x + width])
