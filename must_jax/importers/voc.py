"""Objects from XML files in the format of PASCAL VOC.

ANNOTATIONS/NAME.xml describes the image NAME below IMAGES; `<filename>` and
`<path>` are not looked at. A box takes in its edge pixels and these count from
1, so it covers x from xmin - 1 to xmax. `difficult` objects count neither way.
Parts of objects and their poses are left out.

VOC2007 has 5,011 images in trainval and 4,952 in test, VOC2012 has 11,540 in
trainval, of 20 classes. The paper trains on both and tests on VOC2007 test.
"""

import argparse
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from concurrent import futures
from xml.etree import ElementTree

import numpy as np

from must_jax.importers import files, lists, objects, xml_files
from must_jax.importers.items import Item, Labels, Plan, ReadFiles
from must_jax.importers.names import nfc
from must_jax.storage.image_files import Picture, Rejected
from must_jax.storage.path import Path

HELP = "objects from XML files in the format of PASCAL VOC"

_MAX_BYTES = 1 << 24  # an annotation of 50,000 objects has as many
_THREADS = 16  # files may be far away


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  add = parser.add_argument
  add(
    "--images",
    type=Path,
    required=True,
    metavar="DIR",
    help="JPEGImages",
  )
  add(
    "--annotations",
    type=Path,
    required=True,
    metavar="DIR",
    help="Annotations, of XML files named like the images",
  )
  add(
    "--ids",
    type=Path,
    nargs="+",
    default=[],
    metavar="FILE",
    help="only images that these lists name, such as"
    " ImageSets/Main/trainval.txt; default: all with an annotation",
  )
  add(
    "--classes",
    metavar="FILE[:KEY]",
    help="names in order: text, JSON, YAML or CSV; default: the names in all"
    " XML files, also of images that --ids leaves out, sorted",
  )


def plan(args: argparse.Namespace) -> Plan:
  """Pairs images and annotations.

  Raises:
    ValueError: a directory or list is missing, empty or has another format.
  """
  images, notes = files.find_images(args.images)
  found, _ = files.find_files(args.annotations, (".xml",))
  annotations = {files.key_of(path): args.annotations / path for path in found}
  if not annotations:
    raise ValueError(
      f"{args.annotations} holds no .xml file; expected annotations in the"
      " format of PASCAL VOC."
    )
  if args.classes:
    classes = lists.load_classes(args.classes)
  else:
    classes = _class_names(args.annotations, annotations.values())
  if args.ids:
    known = images.keys() | annotations.keys()
    keys = {key for path in args.ids for key in lists.read_ids(path, known)}
  else:
    keys = set(annotations)
    others = len(images.keys() - keys)
    if others:
      notes = [*notes, f"images without an annotation: {others}"]
  items = [
    Item(
      key,
      images.get(key, args.images / f"{key}.jpg"),
      annotations.get(key),
    )
    for key in sorted(keys)
  ]
  fields = {"objects": {"kind": "Boxes", "classes": classes}}
  read_objects = _ReadObjects({name: i for i, name in enumerate(classes)})
  return Plan(
    fields,
    items,
    ReadFiles(read_objects),
    summarize=objects.summarize,
    warn=objects.warn,
    notes=notes,
  )


@dataclasses.dataclass(frozen=True)
class _ReadObjects:
  """Reads the objects of an image from the XML file that is its label.

  Attributes:
    class_of: class ids by name.
  """

  class_of: Mapping[str, int]

  def __call__(self, item: Item, picture: Picture) -> Labels:
    if item.label is None:
      raise Rejected("has no annotation")
    root = _parse(item.label)
    given = [_text(root, f"size/{side}") for side in ("height", "width")]
    named = [
      (f"object {number}", element)
      for number, element in enumerate(root.findall("object"), start=1)
    ]
    return objects.read_objects(
      named, self._read, picture, given, "the XML gives"
    )

  def _read(self, element: ElementTree.Element) -> objects.Object:
    name = _name(element)
    if name not in self.class_of:
      raise Rejected(f"class {name!r} is none of {sorted(self.class_of)[:10]}")
    difficult = objects.read_flag("difficult", _text(element, "difficult"))
    return objects.Object(_corners(element), self.class_of[name], difficult)


def _class_names(directory: Path, paths: Collection[Path]) -> list[str]:
  """The names in all files.

  Raises:
    ValueError: there are none.
  """
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    found = list(pool.map(_names_in, paths))
  names = sorted(set().union(*(names for names, _ in found)))
  if names:
    return names
  # Else that a file cannot be read is told when its image is, if it is.
  reasons = [reason for _, reason in found if reason]
  raise ValueError(
    f"The XML files of {directory} name no object"
    + (
      f"; {len(reasons)} of {len(paths)} cannot be read, such as {reasons[0]}"
      if reasons
      else ""
    )
    + ". Expected some names, or --classes."
  )


def _names_in(path: Path) -> tuple[set[str], str | None]:
  """The names in a file, or why it cannot be read."""
  try:
    found = _parse(path).findall("object")
  except Rejected as error:
    return set(), str(error)
  return {_name(element) for element in found} - {""}, None


def _parse(path: Path) -> ElementTree.Element:
  """Reads an annotation."""
  return xml_files.parse(path, "annotation", _MAX_BYTES)


def _text(element: ElementTree.Element, path: str) -> str:
  return (element.findtext(path) or "").strip()


def _name(element: ElementTree.Element) -> str:
  return nfc(_text(element, "name"))


def _corners(element: ElementTree.Element) -> np.ndarray:
  """Absolute yxyx of an object, continuous."""
  given = _numbers(element, [f"bndbox/{name}" for name in _CORNERS])
  if given is None:
    raise Rejected(f"has no bndbox with numbers {list(_CORNERS)}")
  ymin, xmin, ymax, xmax = given
  # By the letter xmin = xmax is one pixel wide; what is drawn so is a slip.
  if xmax <= xmin or ymax <= ymin:
    raise Rejected(f"bndbox {given} (yxyx) has no area")
  return np.array([ymin - 1, xmin - 1, ymax, xmax])


_CORNERS = ("ymin", "xmin", "ymax", "xmax")


def _numbers(
  element: ElementTree.Element, paths: Sequence[str]
) -> list[float] | None:
  try:
    values = [float(_text(element, path)) for path in paths]
  except ValueError:
    return None
  return values if all(map(math.isfinite, values)) else None
