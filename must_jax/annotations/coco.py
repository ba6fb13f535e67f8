"""COCO's JSON: boxes, and class maps as compressed RLE.

  annotations/instances_default.json
  images/NAME

An annotation has its `score`, an image its `key`; tools that drop these drop
nothing that is needed, for images are known by their names and scores by their
objects. Annotations with a mask are of the class map, where both are exported.
Going, masks do not overlap; coming, later annotations lie on top.

Every image that the file lists was looked at: without annotations it has no
objects, and all its pixels are unknown.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from must_jax.annotations import exchange
from must_jax.annotations.exchange import Returned, ReturnedShape, Shown, Target
from must_jax.fields.boxes import Boxes
from must_jax.importers import coco_json, names, objects, polygons
from must_jax.importers.drawn_shapes import DrawnShape
from must_jax.importers.items import Labels
from must_jax.storage.image_files import Picture, Rejected
from must_jax.storage.path import Path, is_file, json_text

FIELDS = ("objects", "mask")
IMAGES = "images"
_FILE = "annotations/instances_default.json"


def write(folder: Path, target: Target, images: Iterable[Shown]) -> Path:
  """Writes labels; returns the file to open."""
  from faster_coco_eval.core import mask as rle

  ids = {name: i for i, name in enumerate(target.all_classes, 1)}
  value: dict[str, Any] = {
    "info": {"description": f"labels of {target.name} by {target.teacher}"},
    "images": [],
    "annotations": [],
    "categories": [{"id": i, "name": name} for name, i in ids.items()],
  }
  for number, image in enumerate(images, 1):
    height, width = image.size
    entry = {"id": number, "file_name": image.name, "key": image.key}
    value["images"].append(entry | {"height": height, "width": width})
    found = []
    if "objects" in image.labels:
      arrays, classes = image.labels["objects"], target.classes["objects"]
      category_ids = [ids[name] for name in classes]
      found += Boxes(len(classes)).to_coco(arrays, category_ids)
      for annotation, ignore in zip(found, arrays["ignore"], strict=True):
        annotation |= {"segmentation": [], "iscrowd": int(ignore)}
        if "scores" not in arrays:
          del annotation["score"]
    if "mask" in image.labels:
      for k, mask, score in exchange.masks_of(image.labels["mask"]):
        encoded = rle.encode(np.asfortranarray(mask, np.uint8))
        counts = encoded["counts"].decode()
        found.append(
          {
            "category_id": ids[target.classes["mask"][k]],
            "segmentation": {"size": [height, width], "counts": counts},
            "bbox": rle.toBbox(encoded).tolist(),
            "area": int(mask.sum()),
            "iscrowd": 0,
            **({} if score is None else {"score": exchange.number(score)}),
          }
        )
    for annotation in found:
      annotation["id"] = len(value["annotations"]) + 1
      annotation["image_id"] = number
      value["annotations"].append(annotation)
  exchange.write_file(folder / _FILE, json_text(value).encode())
  return folder / _FILE


def recognizes(path: Path, value: Any) -> bool:
  """Whether a folder, or a file with this JSON, is of the format."""
  return is_file(path / _FILE) or (
    isinstance(value, dict) and "categories" in value
  )


def read(path: Path, target: Target) -> Returned:
  """Reads a JSON file, or that of a folder as `write` makes it.

  Raises:
    ValueError: it has another format, or annotations of no image.
  """
  path = path / _FILE if path.is_dir() else path
  images, annotations, categories = coco_json.load(path)
  ids = [image["id"] for image in images]
  form = names.id_form(ids)
  names.check_references(
    f"annotations of {path}",
    [annotation["image_id"] for annotation in annotations],
    ids,
    form,
    None,
  )
  found = collections.defaultdict(list)
  for annotation in annotations:
    found[form(annotation["image_id"])].append(annotation)
  keys = exchange.keys_of([i["file_name"] for i in images], target.keys)
  elements = {}
  for image in images:
    key = image.get("key")
    key = key if isinstance(key, str) else keys[image["file_name"]]
    if key in elements:
      raise ValueError(f"{path} has image {key!r} twice; expected it once.")
    elements[key] = image, found[form(image["id"])]
  form = names.id_form([category["id"] for category in categories])
  classes = {form(c["id"]): c["name"] for c in categories}
  return Returned(elements, functools.partial(_read, target, classes, form))


def _read(
  target: Target,
  classes: Mapping[str, str],
  form: Callable[[names.Id], str],
  element: tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]],
  picture: Picture,
) -> Labels:
  """Labels of an image.

  Args:
    target: what is exchanged.
    classes: names of categories by their ids.
    form: of these, see `names.id_form`.
    element: the image of the file, and its annotations.
    picture: the image.
  """
  image, annotations = element
  shapes = []
  for annotation in annotations:
    name = f"annotation {annotation.get('id')}"
    category = form(annotation["category_id"])
    if category not in classes:
      raise Rejected(
        f"{name}: category {annotation['category_id']!r} is none of"
        f" {sorted(classes)[:10]}"
      )
    try:
      flags = [
        objects.read_flag(flag, annotation.get(flag))
        for flag in ("iscrowd", "ignore")
      ]
    except Rejected as error:
      raise Rejected(f"{name}: {error}") from None
    shapes.append(
      ReturnedShape(
        name,
        classes[category],
        not annotation.get("segmentation"),
        _score(annotation),
        functools.partial(_draw, annotation, "mask" in target.fields),
        any(flags),
      )
    )
  given = image.get("height"), image.get("width")
  return exchange.read_shapes(shapes, target, picture, given, "the JSON gives")


def _score(annotation: Mapping[str, Any]) -> Any:
  """Some tools keep what they do not know among attributes."""
  attributes = annotation.get("attributes")
  others = attributes if isinstance(attributes, dict) else {}
  return annotation.get("score", others.get("score"))


def _draw(
  annotation: Mapping[str, Any],
  as_pixels: bool,
  class_id: int,
  size: tuple[int, int],
) -> DrawnShape:
  """The shape of an annotation.

  Args:
    annotation: of the file.
    as_pixels: whether its mask is wanted, or the box around it.
    class_id: of its class.
    size: height and width of the image.
  """
  segmentation = annotation.get("segmentation")
  if segmentation and (as_pixels or not annotation.get("bbox")):
    return DrawnShape.of_pixels(class_id, pixels_of(segmentation, size))
  points = polygons.rectangle(coco_json.corners(annotation))
  return DrawnShape.of_polygon(class_id, points, is_box=True)


def pixels_of(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
  """Pixels bool [h, w] of polygons, or of either RLE.

  Args:
    segmentation: of an annotation: polygons [[x, y, ...], ...], or a run-length
      encoding with counts as a list or as COCO's text.
    size: (h, w) of the image.

  Raises:
    Rejected: it cannot be read, or is of another size.
  """
  from faster_coco_eval.core import mask as rle

  pixels = np.zeros(size, bool)
  try:
    if isinstance(segmentation, list):
      for corners in segmentation:
        points = np.array(corners, np.float64).reshape(-1, 2)[:, ::-1]
        window, inside = DrawnShape.of_polygon(0, points).draw(size)
        pixels[window] |= inside
      return pixels
    if [*map(int, segmentation["size"])] != [*size]:
      raise ValueError(f"it is of {segmentation['size']}, not {list(size)}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
      if min(counts) < 0 or sum(counts) != pixels.size:
        raise ValueError(f"its runs have {sum(counts)} pixels")
      return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(
        size, order="F"
      )
    encoded = {"size": [*size], "counts": str(counts).encode()}
    return rle.decode(encoded).astype(bool)
  except (ValueError, TypeError, KeyError, OverflowError) as error:
    raise Rejected(f"has a segmentation that cannot be read: {error}") from None
