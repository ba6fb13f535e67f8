"""Label Studio: tasks with predictions, whose scores are seen while correcting.

  tasks.json          to import into a project
  label_config.xml    its labelling interface
  images/NAME         below Label Studio's document root, or elsewhere, see
                      `--image-url`

Boxes are rectangles, class maps brushed regions, classes of images choices; the
teacher is the predictions' `model_version`. What comes back is an export as
JSON. A task was looked at if a person submitted an annotation of it, be it
empty; predictions, drafts and skipped annotations are not looked at. Later
regions lie on top.
"""

import collections
import functools
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np

from must_jax import pictures
from must_jax.annotations import exchange
from must_jax.annotations.exchange import Returned, ReturnedShape, Shown, Target
from must_jax.importers import files, label_studio
from must_jax.importers.items import Labels
from must_jax.storage.image_files import Picture
from must_jax.storage.path import Path, is_file, json_text

FIELDS = ("objects", "mask", "label")
IMAGES = "images"
_TASKS, _CONFIG = "tasks.json", "label_config.xml"
_LOCAL_FILES = f"/data/local-files/?d={IMAGES}/"
_CONTROLS = {  # tags that give results, and the type of these
  "objects": ("RectangleLabels", "rectanglelabels"),
  "mask": ("BrushLabels", "brushlabels"),
  "label": ("Choices", "choices"),
}
_LENGTHS = (3, 4, 8, 16)  # bits of the lengths of runs


def write(folder: Path, target: Target, images: Iterable[Shown]) -> Path:
  """Writes labels; returns the file of the tasks."""
  start = _LOCAL_FILES if target.image_url is None else target.image_url
  tasks = []
  for image in images:
    result: list[dict[str, Any]] = [
      {
        "id": f"{role}-{i}",
        "type": _CONTROLS[role][1],
        "from_name": target.fields[role],
        "to_name": "image",
        "original_height": image.size[0],
        "original_width": image.size[1],
        "image_rotation": 0,
        "value": {**value, _CONTROLS[role][1]: names},
        **({} if score is None else {"score": score}),
      }
      for role in image.labels
      for i, (names, value, score) in enumerate(
        _values(role, target.classes[role], image)
      )
    ]
    scores = [region["score"] for region in result if "score" in region]
    prediction: dict[str, Any]
    prediction = {"model_version": target.teacher, "result": result}
    if scores:
      prediction["score"] = float(np.mean(scores))
    address = start + urllib.parse.quote(image.name)
    tasks.append(
      {
        "data": {"image": address, "key": image.key},
        "predictions": [prediction],
      }
    )
  exchange.write_file(folder / _CONFIG, label_config(target).encode())
  exchange.write_file(folder / _TASKS, json_text(tasks).encode())
  return folder / _TASKS


def label_config(target: Target) -> str:
  """The labelling interface in which the labels are mended."""
  view = ElementTree.Element("View")
  ElementTree.SubElement(
    view, "Image", name="image", value="$image", zoom="true", zoomControl="true"
  )
  for role, field in target.fields.items():
    control = ElementTree.SubElement(
      view, _CONTROLS[role][0], name=field, toName="image"
    )
    if role == "label":
      control.set("choice", "multiple")
    names = target.classes[role]
    for name, color in zip(names, pictures.palette(len(names)), strict=True):
      if role == "label":
        ElementTree.SubElement(control, "Choice", value=name)
      else:
        background = f"#{bytes(color.tolist()).hex()}"
        ElementTree.SubElement(
          control, "Label", value=name, background=background
        )
  ElementTree.indent(view)
  return ElementTree.tostring(view, "unicode") + "\n"


def _values(
  role: str, classes: Sequence[str], image: Shown
) -> Iterable[tuple[list[str], dict[str, Any], float | None]]:
  """Classes, place and score of each result."""
  arrays = image.labels[role]
  if role == "objects":
    percent = np.divide(100, image.size)
    for i, k in enumerate(arrays["classes"]):
      low, high = arrays["boxes"][i].reshape(2, 2) * percent
      value = {
        "x": low[1],
        "y": low[0],
        "width": high[1] - low[1],
        "height": high[0] - low[0],
        "rotation": 0,
      }
      score = (
        exchange.number(arrays["scores"][i]) if "scores" in arrays else None
      )
      yield [classes[k]], {n: float(v) for n, v in value.items()}, score
  elif role == "mask":
    for k, mask, score in exchange.masks_of(arrays):
      yield [classes[k]], {"format": "rle", "rle": encode_rle(mask)}, score
  elif told := list(exchange.told(arrays)):
    yield [classes[k] for k, _ in told], {}, max(p for _, p in told)


def encode_rle(mask: np.ndarray) -> list[int]:
  """Packs a mask bool [h, w] as `importers.label_studio.decode_rle` reads it.

  Four equal bytes for each pixel, 255 within the mask.
  """
  flat = mask.reshape(-1)
  ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), flat.size - 1)
  lengths = 4 * np.diff(ends, prepend=-1)
  text = f"{4 * flat.size:032b}{8 - 1:05b}"
  text += "".join(f"{bits - 1:04b}" for bits in _LENGTHS)
  pieces = [text]
  longest = 1 << _LENGTHS[-1]
  for value, length in zip(flat[ends].tolist(), lengths.tolist(), strict=True):
    while length:
      run = min(length, longest)
      which = next(i for i, b in enumerate(_LENGTHS) if run <= 1 << b)
      size = f"{run - 1:0{_LENGTHS[which]}b}"
      pieces.append(f"1{which:02b}{size}" + ("1" if value else "0") * 8)
      length -= run
  bits = np.frombuffer("".join(pieces).encode(), np.uint8) == ord("1")
  return np.packbits(bits).tolist()


def recognizes(path: Path, value: Any) -> bool:
  """Whether a folder, or a file with this JSON, is of the format."""
  return is_file(path / _TASKS) or isinstance(value, list)


def read(path: Path, target: Target) -> Returned:
  """Reads an export as JSON, or that of a folder.

  Raises:
    ValueError: it has another format, or an image twice.
  """
  path = path / _TASKS if path.is_dir() else path
  tasks = files.load_json(path)
  tasks = [
    {"annotations": [], **task} if isinstance(task, dict) else task
    for task in (tasks if isinstance(tasks, list) else [tasks])
  ]
  if not all(map(label_studio.is_task, tasks)):
    raise ValueError(
      f"{path} is no list of tasks with data and annotations. Export as JSON,"
      " not as JSON-MIN."
    )
  counts: collections.Counter[str] = collections.Counter()
  elements: dict[str, Any] = {}
  by, when = set(), []
  for task in tasks:
    annotation = label_studio.choose(task["annotations"], counts)
    if annotation is None:
      continue
    key = _key_of(task, target)
    if key in elements:
      raise ValueError(f"{path} has image {key!r} twice; expected it once.")
    elements[key] = tuple(label_studio.results_of(annotation["result"], None))
    by.add(_name_of(annotation.get("completed_by")))
    when.append(str(annotation.get("updated_at") or ""))
  lines = [
    ("tasks that nobody has looked at", counts["none"]),
    ("annotations that were skipped, left out", counts["cancelled"]),
    (
      "tasks with several annotations, of which one is taken",
      counts["several"],
    ),
  ]
  return Returned(
    elements,
    functools.partial(_read, target),
    sorted(by - {""}),
    max(when, default=""),
    [f"{what}: {number}" for what, number in lines if number],
  )


def _name_of(person: Any) -> str:
  if isinstance(person, dict):
    person = person.get("email") or person.get("username") or person.get("id")
  if isinstance(person, int):
    return f"Label Studio's user {person}"
  return person if isinstance(person, str) else ""


def _key_of(task: Mapping[str, Any], target: Target) -> str:
  data = task["data"]
  if isinstance(data.get("key"), str):
    return data["key"]
  names = list(label_studio.possible_names(str(data.get("image", ""))))
  keys = [exchange.key_of_name(name) for name in names]
  return next((k for k in keys if k in target.keys), (*keys, "")[0])


def _read(
  target: Target, results: Sequence[Mapping[str, Any]], picture: Picture
) -> Labels:
  """Labels of an image out of the results of its annotation."""
  shapes, chosen, unread = [], [], []
  for result in results:
    kind = label_studio.kind_of(result)
    what = f"{result.get('type')} {result.get('id')}"
    score = result.get("score")
    if kind is None:
      if str(result.get("type")).endswith("labels"):
        unread.append(
          f"{what}: expected a class, and a rectangle, polygon, ellipse or"
          " brush"
        )
      continue
    for name in label_studio.names_of(result):
      if kind == label_studio.CHOICES:
        chosen.append((what, name, score))
      else:
        draw = functools.partial(_draw, kind, result)
        shapes.append(ReturnedShape(what, name, kind == "width", score, draw))
  labels = [exchange.read_shapes(shapes, target, picture), Labels({}, unread)]
  if "label" in target.fields:
    labels.append(exchange.read_classes(chosen, target))
  return exchange.join(*labels)


def _draw(
  kind: str, result: Mapping[str, Any], class_id: int, size: tuple[int, int]
) -> Any:
  return label_studio.read_region(kind, class_id, result, size)
