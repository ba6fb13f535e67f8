"""CVAT's own format, "CVAT for images 1.1".

  annotations.xml   to upload to a task of these images
  labels.json       the labels of that task, for the tab "Raw"
  images/NAME

Boxes are boxes, class maps masks, classes of images tags. Scores are texts of
an attribute "score". CVAT keeps two digits after the point; places that differ
by no more are those that were exported.

Every image that the file lists was looked at: CVAT's XML does not tell which of
a job's images were opened. Shapes with a higher `z_order` lie on top, then
later ones.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np

from must_jax import pictures
from must_jax.annotations import exchange
from must_jax.annotations.exchange import Returned, ReturnedShape, Shown, Target
from must_jax.importers import cvat
from must_jax.importers.drawn_shapes import DrawnShape
from must_jax.importers.items import Labels
from must_jax.storage.image_files import Picture
from must_jax.storage.path import Path, is_file, json_text

FIELDS = ("objects", "mask", "label")
IMAGES = "images"
_FILE, _LABELS, _SCORE = "annotations.xml", "labels.json", "score"


def write(folder: Path, target: Target, images: Iterable[Shown]) -> Path:
  """Writes labels; returns the file to upload."""
  root = ElementTree.Element("annotations")
  ElementTree.SubElement(root, "version").text = "1.1"
  task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
  ElementTree.SubElement(task, "name").text = target.name
  ElementTree.SubElement(task, "mode").text = "annotation"
  listed = ElementTree.SubElement(task, "labels")
  labels = labels_of(target)
  for label in labels:
    _add_label(listed, label)
  for number, image in enumerate(images):
    element = ElementTree.SubElement(
      root,
      "image",
      id=str(number),
      name=image.name,
      width=str(image.size[1]),
      height=str(image.size[0]),
    )
    for role in image.labels:
      for tag, k, score, values in _elements(role, image):
        name = {"label": target.classes[role][k], "source": "auto"}
        shape = ElementTree.SubElement(element, tag, name | values)
        if score is not None:
          attribute = ElementTree.SubElement(shape, "attribute", name=_SCORE)
          attribute.text = repr(score)
  ElementTree.indent(root)
  data = ElementTree.tostring(root, "utf-8", xml_declaration=True)
  exchange.write_file(folder / _LABELS, json_text(labels).encode())
  exchange.write_file(folder / _FILE, data)
  return folder / _FILE


def labels_of(target: Target) -> list[dict[str, Any]]:
  """The labels of a task, as CVAT's tab "Raw" and its command line take."""
  names = target.all_classes
  attribute = {
    "name": _SCORE,
    "input_type": "text",
    "mutable": False,
    "values": [""],
    "default_value": "",
  }
  return [
    {
      "name": name,
      "color": f"#{bytes(color.tolist()).hex()}",
      "type": "any",
      "attributes": [attribute],
    }
    for name, color in zip(names, pictures.palette(len(names)), strict=True)
  ]


def _add_label(listed: ElementTree.Element, label: Mapping[str, Any]) -> None:
  """A label in `meta`."""
  element = ElementTree.SubElement(listed, "label")
  for name in ("name", "color", "type"):
    ElementTree.SubElement(element, name).text = label[name]
  attributes = ElementTree.SubElement(element, "attributes")
  for given in label["attributes"]:
    attribute = ElementTree.SubElement(attributes, "attribute")
    ElementTree.SubElement(attribute, "name").text = given["name"]
    ElementTree.SubElement(attribute, "mutable").text = str(given["mutable"])
    ElementTree.SubElement(attribute, "input_type").text = given["input_type"]
    ElementTree.SubElement(attribute, "default_value")
    ElementTree.SubElement(attribute, "values")


def _elements(
  role: str, image: Shown
) -> Iterable[tuple[str, int, float | None, dict[str, str]]]:
  """Name, class, score and attributes of each element."""
  arrays = image.labels[role]
  shape = {"occluded": "0", "z_order": "0"}
  if role == "objects":
    for i, k in enumerate(arrays["classes"]):
      places = zip(
        ("ytl", "xtl", "ybr", "xbr"), arrays["boxes"][i], strict=True
      )
      values = {name: repr(float(place)) for name, place in places}
      score = (
        exchange.number(arrays["scores"][i]) if "scores" in arrays else None
      )
      yield "box", k, score, shape | values
  elif role == "mask":
    for k, mask, score in exchange.masks_of(arrays):
      rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
      window = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
      values = {
        "left": columns[0],
        "top": rows[0],
        "width": window.shape[1],
        "height": window.shape[0],
      }
      yield (
        "mask",
        k,
        None if score is None else exchange.number(score),
        shape
        | {"rle": ", ".join(map(str, encode_runs(window)))}
        | {name: str(value) for name, value in values.items()},
      )
  else:
    for k, probability in exchange.told(arrays):
      yield "tag", k, probability, {}


def encode_runs(mask: np.ndarray) -> list[int]:
  """Lengths of runs of a mask bool [h, w], row by row, the first outside."""
  flat = np.concatenate([[False], mask.reshape(-1)])
  ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), mask.size)
  return np.diff(ends, prepend=0).tolist()


def recognizes(path: Path, value: Any) -> bool:
  """Whether a folder, or a file of it, is of the format."""
  del value
  return is_file(path / _FILE) or path.suffix == ".xml"


def read(path: Path, target: Target) -> Returned:
  """Reads the XML file of an export, or that of a folder.

  Raises:
    ValueError: it has another format, or an image twice.
  """
  path = path / _FILE if path.is_dir() else path
  root = cvat.load(path)
  images = root.findall("image")
  if not images:
    raise ValueError(
      f"{path} has no images; export as 'CVAT for images 1.1', not for video."
    )
  keys = exchange.keys_of([i.get("name", "") for i in images], target.keys)
  elements: dict[str, Any] = {}
  for image in images:
    key = keys[image.get("name", "")]
    if key in elements:
      raise ValueError(f"{path} has image {key!r} twice; expected it once.")
    elements[key] = image
  meta = root.find("meta")
  people = [] if meta is None else meta.findall("./*/assignee/username")
  dates = [] if meta is None else meta.findall("./*/updated")
  return Returned(
    elements,
    functools.partial(_read, target),
    sorted({e.text for e in people if e.text}),
    max((e.text for e in dates if e.text), default=""),
  )


def _read(
  target: Target, image: ElementTree.Element, picture: Picture
) -> Labels:
  """Labels of an image."""
  shapes, tags, unread = [], [], []
  for number, element in enumerate(image, start=1):
    what, name = f"{element.tag} {number}", element.get("label")
    score = _score(element)
    if element.tag == cvat.TAG:
      tags.append((what, name, score))
    elif element.tag in cvat.FIELDS:
      draw = functools.partial(_draw, element)
      shapes.append(
        ReturnedShape(what, name, element.tag == "box", score, draw)
      )
    else:  # without it the image might seem to have nothing
      kinds = ", ".join(sorted(cvat.FIELDS))
      unread.append(f"{what}: expected one of {kinds}")
  given = image.get("height"), image.get("width")
  labels = [
    exchange.read_shapes(shapes, target, picture, given, "the XML gives"),
    Labels({}, unread),
  ]
  if "label" in target.fields:
    labels.append(exchange.read_classes(tags, target))
  return exchange.join(*labels)


def _score(element: ElementTree.Element) -> str | None:
  return next(
    (a.text for a in element.findall("attribute") if a.get("name") == _SCORE),
    None,
  )


def _draw(
  element: ElementTree.Element, class_id: int, size: tuple[int, int]
) -> DrawnShape:
  del size
  return cvat.read_element(element.tag, class_id, dict(element.attrib))
