"""Boxes, polygons, masks and tags in CVAT's own format, for images 1.1.

ANNOTATIONS.xml lists images by name with their size, and the labels of its
task, project or job in `meta`, in whose order classes are numbered. Boxes,
polygons, ellipses and masks become objects; all but boxes become masks, of
which those with a higher `z_order` lie on top, then later ones. Tags become
classes of the image. Boxes and ellipses may be turned; the box around them is
taken. What is no object or no area (polylines, points, cuboids, skeletons) is
counted and left out.

An image without shapes is one without objects; one without tags has no label.
"""

import argparse
import collections
import dataclasses
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import numpy as np

from must_jax.importers import (
  drawn_shapes,
  files,
  lists,
  polygons,
  xml_files,
)
from must_jax.importers.drawn_shapes import DrawnShape, ShapeFields
from must_jax.importers.items import Item, Labels, Plan, ReadFiles
from must_jax.storage import image_files
from must_jax.storage.image_files import Picture, Rejected
from must_jax.storage.path import Path
from must_jax.types import MAX_PIXELS

HELP = "boxes, polygons, masks and tags from CVAT for images 1.1"

_MAX_BYTES = 1 << 31
TAG = "tag"
FIELDS = {  # of elements
  "box": ("objects",),
  "polygon": ("objects", "mask"),
  "ellipse": ("objects", "mask"),
  "mask": ("objects", "mask"),
  TAG: ("label",),
}
# Types of labels in `meta` that cannot be of an object. Others, and labels
# without a type, can.
_NO_OBJECTS = (TAG, "polyline", "points", "skeleton", "cuboid")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  add = parser.add_argument
  add(
    "--annotations",
    type=Path,
    required=True,
    metavar="FILE",
    help="annotations.xml of an export as 'CVAT for images 1.1'",
  )
  add(
    "--images",
    type=Path,
    required=True,
    metavar="DIR",
    help="where the names of images begin",
  )
  add(
    "--subset",
    metavar="NAME",
    help="only images of this subset of a project, such as Train",
  )
  add(
    "--classes",
    metavar="FILE[:KEY]",
    help="names in order, a JSON list or one a line; default: the labels of the"
    " file",
  )
  drawn_shapes.add_arguments(parser)


def load(path: Path) -> ElementTree.Element:
  """The root of an export.

  Raises:
    ValueError: the file is missing or has another format.
  """
  try:
    return xml_files.parse(path, "annotations", _MAX_BYTES)
  except Rejected as error:
    raise ValueError(
      f"{path}: {error}. Export as 'CVAT for images 1.1'."
    ) from None


def plan(args: argparse.Namespace) -> Plan:
  """Reads the XML file.

  Raises:
    ValueError: the file or directory is missing or has another format.
  """
  root = load(args.annotations)
  images = root.findall("image")
  if not images:
    what = "tracks" if root.find("track") is not None else "no images"
    raise ValueError(
      f"{args.annotations} has {what}; expected images. Export as 'CVAT for"
      " images 1.1'."
    )
  notes = []
  subsets = collections.Counter(i.get("subset", "default") for i in images)
  if args.subset:
    images = [i for i in images if i.get("subset", "default") == args.subset]
    if not images:
      raise ValueError(
        f"{args.annotations} has no image of subset {args.subset!r}; it has"
        f" {dict(subsets)}."
      )
  elif len(subsets) > 1:
    notes.append(f"images of all subsets, {dict(subsets)}; see --subset")
  found = collections.Counter(e.tag for e in root.findall("image/*"))
  if left_out := {k: n for k, n in found.items() if k not in FIELDS}:
    notes.append(f"elements left out: {left_out}")
  fields = drawn_shapes.choose_fields(
    args.fields,
    {f for e in found for f in FIELDS.get(e, ())},
    args.annotations,
  )
  shape_classes, tag_classes = _classes(args, root)
  reader = _ReadElements(
    ShapeFields(
      shape_classes, tuple(f for f in fields if f != "label"), args.outside
    ),
    drawn_shapes.choose_image_classes(fields, tag_classes, args.annotations),
  )
  items, more = _items(args, images)
  return Plan(
    reader.shapes.describe(reader.tags),
    items,
    ReadFiles(reader),
    summarize=drawn_shapes.summarize,
    warn=drawn_shapes.warn,
    notes=[*notes, *more],
  )


def _classes(
  args: argparse.Namespace, root: ElementTree.Element
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Classes of shapes and of tags."""
  if args.classes:
    names = tuple(lists.load_classes(args.classes))
    return names, names
  types: dict[str, str] = {}
  for label in root.findall("meta/*/labels/label"):
    name = (label.findtext("name") or "").strip()
    if label.find("parent") is not None:  # a point of a skeleton
      continue
    if not name or name in types:
      raise ValueError(
        f"{args.annotations} lists label {name!r} twice, or one without a name;"
        " expected different ones, or --classes."
      )
    types[name] = (label.findtext("type") or "").strip()
  if not types:
    raise ValueError(
      f"{args.annotations} lists no labels in its meta; give --classes."
    )
  return (
    tuple(name for name, kind in types.items() if kind not in _NO_OBJECTS),
    tuple(name for name, kind in types.items() if kind in ("", "any", TAG)),
  )


def _items(
  args: argparse.Namespace, images: Sequence[ElementTree.Element]
) -> tuple[list[Item], list[str]]:
  """Images with their elements as plain values, and notes."""
  paths, _ = files.find_files(args.images, image_files.IMAGE_SUFFIXES)
  there = set(paths)
  items: dict[str, Item] = {}
  for image in images:
    name = image.get("name", "")
    # Projects are exported with a folder for each subset.
    in_subset = f"{image.get('subset', '')}/{name}"
    name = in_subset if name not in there and in_subset in there else name
    try:
      path = files.inside(args.images, name)
    except Rejected as error:
      raise ValueError(
        f"{args.annotations} names an image: {error}; expected a path below"
        " --images."
      ) from None
    key = files.key_of(name)
    if key in items:
      raise ValueError(
        f"{args.annotations} has two images with key {key!r} (name without"
        " extension); expected different ones."
      )
    elements = tuple(
      (element.tag, tuple(element.attrib.items()))
      for element in image
      if element.tag in FIELDS
    )
    items[key] = Item(key, path, (tuple(image.attrib.items()), elements))
    there.discard(name)
  notes = [f"images that are not annotated: {len(there)}"] if there else []
  return list(items.values()), notes


@dataclasses.dataclass(frozen=True)
class _ReadElements:
  """Reads the elements of an image.

  Attributes:
    shapes: what shapes become.
    tags: classes of tags; none if they are not imported.
  """

  shapes: ShapeFields
  tags: tuple[str, ...]

  def __call__(self, item: Item, picture: Picture) -> Labels:
    attributes, elements = item.label
    image = dict(attributes)
    try:
      given = tuple(float(image[name]) for name in ("height", "width"))
    except (KeyError, ValueError):
      raise Rejected("its element has no numbers width and height") from None
    named = [
      (f"{tag} {number}", (tag, dict(values)))
      for number, (tag, values) in enumerate(elements, start=1)
    ]
    drawn = [pair for pair in named if pair[1][0] != TAG]
    if self.shapes.fields:
      labels = self.shapes.read(
        drawn, self._read, picture, given, "the XML gives"
      )
    else:
      labels = Labels({})
    if not self.tags:
      return labels
    return drawn_shapes.add_classes(
      labels,
      [(n, e[1].get("label")) for n, e in named if e[0] == TAG],
      self.tags,
    )

  def _read(
    self, element: tuple[str, Mapping[str, str]], size: tuple[int, int]
  ) -> DrawnShape:
    del size
    kind, values = element
    class_id = drawn_shapes.class_id(values.get("label"), self.shapes.classes)
    return read_element(kind, class_id, values)


def read_element(
  kind: str, class_id: int, values: Mapping[str, str]
) -> DrawnShape:
  """The shape of an element.

  Args:
    kind: its name.
    class_id: of its class.
    values: of its attributes.

  Raises:
    Rejected: it is none.
  """
  (order,) = _numbers(values, "z_order") if "z_order" in values else (0.0,)
  if kind == "mask":
    left, top, width, height = _numbers(
      values, "left", "top", "width", "height"
    )
    pixels = _decode_runs(values.get("rle", ""), int(height), int(width))
    if min(left, top) < 0:
      raise Rejected(f"begins at column {left} and row {top}, not in the image")
    return DrawnShape.of_pixels(
      class_id, pixels, place=(int(top), int(left)), order=order
    )
  if kind == "polygon":
    points = _points(values.get("points", ""))
  elif kind == "ellipse":
    x, y, rx, ry = _numbers(values, "cx", "cy", "rx", "ry")
    points = polygons.ellipse(np.array([y, x]), np.array([ry, rx]))
  else:
    corners = np.array(_numbers(values, "ytl", "xtl", "ybr", "xbr"))
    if not (corners[2:] > corners[:2]).all():
      raise Rejected(f"{corners.tolist()} (yxyx) has no area")
    points = polygons.rectangle(corners)
  if "rotation" in values:
    (degrees,) = _numbers(values, "rotation")
    centre = (points.min(0) + points.max(0)) / 2
    points = polygons.rotate(points, degrees, centre)
  return DrawnShape.of_polygon(
    class_id, points, is_box=kind == "box", order=order
  )


def _numbers(values: Mapping[str, str], *names: str) -> list[float]:
  try:
    numbers = [float(values[name]) for name in names]
  except (KeyError, ValueError):
    numbers = [np.nan]
  if not np.isfinite(numbers).all():
    given = {name: values.get(name) for name in names}
    raise Rejected(f"has {given}; expected numbers")
  return numbers


def _points(text: str) -> np.ndarray:
  """Corners yx of "x,y;x,y;..."."""
  try:
    pairs = [[float(v) for v in pair.split(",")] for pair in text.split(";")]
    return np.array(pairs, np.float64).reshape(len(pairs), 2)[:, ::-1]
  except ValueError:
    raise Rejected(
      f"has points {text[:40]!r}; expected 'x,y;x,y;...'"
    ) from None


def _decode_runs(text: str, height: int, width: int) -> np.ndarray:
  """Pixels bool [h, w] of lengths of runs, row by row, the first outside."""
  try:
    runs = [int(word) for word in text.split(",")]
  except ValueError:
    raise Rejected(f"has rle {text[:40]!r}; expected lengths of runs") from None
  if min(runs) < 0 or not 0 < sum(runs) == height * width <= MAX_PIXELS:
    raise Rejected(
      f"has runs of {sum(runs)} pixels together; expected {height} x {width}"
      f" and at most {MAX_PIXELS}"
    )
  return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
