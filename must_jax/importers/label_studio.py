"""Boxes, polygons, brush masks and choices from Label Studio's JSON export.

A list of tasks, each with the place of its image in `data` and what people made
of it in `annotations`. Of several annotations of a task the ground truth is
taken, else the one that was updated last. Skipped ones (`was_cancelled`),
drafts and predictions are not read; a task that has nothing else is left out,
one with an empty annotation is an image without objects or classes.

Coordinates are percent of the image. Rectangles, also turned ones, become the
box around them; polygons, ellipses and brushed regions become masks as well, of
which later ones lie on top. Choices of the whole image become its classes.

An image is found below `--images` by the end of its place: "/data/upload/
3/1b2c3d4e-a.jpg" is 3/1b2c3d4e-a.jpg, 1b2c3d4e-a.jpg or a.jpg, whichever is
there first.
"""

import argparse
import collections
import contextlib
import dataclasses
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from must_jax.importers import drawn_shapes, files, lists, polygons
from must_jax.importers.drawn_shapes import DrawnShape, ShapeFields
from must_jax.importers.items import Item, Labels, Plan, ReadFiles
from must_jax.storage import image_files
from must_jax.storage.image_files import Picture, Rejected
from must_jax.storage.path import Path

HELP = "boxes, polygons, brush masks and choices from Label Studio's JSON"

CHOICES = "choices"
# By what a region's value has, the fields that it is good for.
_FIELDS = {
  "rle": ("objects", "mask"),
  "points": ("objects", "mask"),
  "radiusX": ("objects", "mask"),
  "width": ("objects",),
}
_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")  # what an upload's name begins with
_RGBA = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  add = parser.add_argument
  add(
    "--annotations",
    type=Path,
    required=True,
    metavar="FILE",
    help="an export as JSON (not JSON-MIN)",
  )
  add(
    "--images",
    type=Path,
    required=True,
    metavar="DIR",
    help="where the images are",
  )
  add(
    "--image-key",
    metavar="KEY",
    help="entry of a task's data that is the image; default: its only one that"
    " names an image",
  )
  add(
    "--from-name",
    nargs="+",
    metavar="NAME",
    help="only what was made with these controls of the labelling interface",
  )
  add(
    "--classes",
    metavar="FILE[:KEY]",
    help="names of regions in order, a JSON list or one a line; default: all"
    " that occur, sorted. Needed where a split lacks a class",
  )
  add(
    "--choices",
    metavar="FILE[:KEY]",
    help="the same for choices",
  )
  drawn_shapes.add_arguments(parser)


def plan(args: argparse.Namespace) -> Plan:
  """Reads the JSON file.

  Raises:
    ValueError: the file or directory is missing or has another format, or two
      tasks have one image.
  """
  tasks = files.load_json(args.annotations)
  if not isinstance(tasks, list) or not all(map(is_task, tasks)):
    raise ValueError(
      f"{args.annotations} is no list of tasks with data and annotations."
      " Export as JSON, not as JSON-MIN."
    )
  _check_controls(args, tasks)
  counts: collections.Counter[str] = collections.Counter()
  left_out: collections.Counter[str] = collections.Counter()
  names: dict[str, set[str]] = {"objects": set(), "mask": set(), "label": set()}
  labelled = []
  for task in tasks:
    annotation = choose(task["annotations"], counts)
    counts["predictions"] += len(task.get("predictions") or ())
    if annotation is None:
      continue
    found = []
    for result in results_of(annotation["result"], args.from_name):
      kind = kind_of(result)
      if kind is None:
        left_out[str(result.get("type"))] += 1
        continue
      for field in ("label",) if kind == CHOICES else _FIELDS[kind]:
        names[field].update(names_of(result))
      found.append(result)
    labelled.append((task, tuple(found)))
  if not labelled:
    raise ValueError(
      f"{args.annotations} has {len(tasks)} tasks and no annotation of one that"
      " was not skipped."
    )
  fields = drawn_shapes.choose_fields(
    args.fields, {f for f, found in names.items() if found}, args.annotations
  )
  reader = _ReadResults(
    ShapeFields(
      _classes(args.classes, names["objects"]),
      tuple(f for f in fields if f != "label"),
      args.outside,
    ),
    drawn_shapes.choose_image_classes(
      fields, _classes(args.choices, names["label"]), args.annotations
    ),
  )
  items, notes = _items(args, labelled)
  lines = [
    ("tasks without an annotation, left out", counts["none"]),
    ("annotations that were skipped, left out", counts["cancelled"]),
    (
      "tasks with several annotations, of which one is taken",
      counts["several"],
    ),
    ("predictions, left out", counts["predictions"]),
    ("results left out", dict(left_out)),
  ]
  notes += [f"{what}: {number}" for what, number in lines if number]
  return Plan(
    reader.shapes.describe(reader.choices),
    items,
    ReadFiles(reader),
    summarize=drawn_shapes.summarize,
    warn=drawn_shapes.warn,
    notes=notes,
  )


def is_task(task: Any) -> bool:
  """Whether a value of JSON is a task of an export."""
  return (
    isinstance(task, dict)
    and isinstance(task.get("data"), dict)
    and isinstance(task.get("annotations"), list)
    and isinstance(task.get("predictions") or [], list)
    and all(
      isinstance(a, dict)
      and isinstance(a.get("result"), list)
      and all(isinstance(r, dict) for r in a["result"])
      for a in task["annotations"]
    )
  )


def _check_controls(
  args: argparse.Namespace, tasks: Sequence[Mapping[str, Any]]
) -> None:
  found = {
    str(result.get("from_name"))
    for task in tasks
    for annotation in task["annotations"]
    for result in annotation["result"]
  }
  if missing := sorted(set(args.from_name or ()) - found):
    raise ValueError(
      f"{args.annotations} has nothing made with --from-name {missing}; it has"
      f" {sorted(found)}."
    )


def choose(
  annotations: Sequence[Mapping[str, Any]], counts: collections.Counter
) -> Mapping[str, Any] | None:
  """The annotation of a task that counts, if there is one.

  Args:
    annotations: of the task.
    counts: of what was passed over, which are added to.
  """
  valid = [a for a in annotations if not a.get("was_cancelled")]
  counts["cancelled"] += len(annotations) - len(valid)
  counts["none"] += not valid
  counts["several"] += len(valid) > 1
  if not valid:
    return None
  # Times are in ISO 8601; of equal ones the last is taken.
  return max(
    enumerate(valid),
    key=lambda pair: (
      bool(pair[1].get("ground_truth")),
      str(pair[1].get("updated_at") or pair[1].get("created_at") or ""),
      pair[0],
    ),
  )[1]


def results_of(
  results: Sequence[Mapping[str, Any]], controls: Sequence[str] | None
) -> Iterator[Mapping[str, Any]]:
  """Results of the controls that are wanted.

  A region that was drawn and labelled by two controls comes twice, with its
  labels and without; both have its id.

  Args:
    results: of an annotation.
    controls: names of those wanted; of all by default.
  """
  found = [r for r in results if not controls or r.get("from_name") in controls]
  named = {str(r.get("id")) for r in found if kind_of(r) not in (None, CHOICES)}
  for result in found:
    if kind_of(result) is not None or str(result.get("id")) not in named:
      yield result


def kind_of(result: Mapping[str, Any]) -> str | None:
  """By what its shape is known, or "choices"; None for what is no label."""
  value, kind = result.get("value"), str(result.get("type"))
  if not isinstance(value, dict):
    return None
  shape = next((key for key in _FIELDS if key in value), None)
  if kind == CHOICES:
    return CHOICES if shape is None else None  # else of a region
  if kind.endswith("labels") and shape and names_of(result):
    return shape
  return None


def names_of(result: Mapping[str, Any]) -> list[str]:
  """The classes that a result names."""
  names = result["value"].get(str(result.get("type")))
  return [str(name) for name in names] if isinstance(names, list) else []


def _classes(given: str | None, found: Iterable[str]) -> tuple[str, ...]:
  return tuple(lists.load_classes(given) if given else sorted(found))


def _items(
  args: argparse.Namespace, labelled: Sequence[tuple[Mapping, tuple]]
) -> tuple[list[Item], list[str]]:
  """Tasks with their images, and notes."""
  images, notes = files.find_images(args.images)
  paths = {str(path): key for key, path in images.items()}
  items: dict[str, Item] = {}
  for task, results in labelled:
    place = _place(args, task)
    names = list(possible_names(place))
    found = [n for n in names if str(args.images / n) in paths]
    path = args.images / (found or names)[0]
    key = files.key_of((found or names)[0])
    if key in items:
      raise ValueError(
        f"{args.annotations} has two tasks with image {path}; expected one, or"
        " images in folders as in the tasks' data."
      )
    items[key] = Item(key, path, results)
  if not any(str(item.image) in paths for item in items.values()):
    raise ValueError(
      f"{args.images} has none of the {len(items)} images of"
      f" {args.annotations}; expected are names as {next(iter(items))!r}, there"
      f" are {sorted(images)[:3]}."
    )
  if others := len(images.keys() - items.keys()):
    notes = [*notes, f"images that are not annotated: {others}"]
  return list(items.values()), notes


def _place(args: argparse.Namespace, task: Mapping[str, Any]) -> str:
  """Where a task has its image."""
  data = task["data"]
  known = [
    key
    for key, value in data.items()
    if isinstance(value, str)
    and value.lower()
    .split("?d=")[-1]
    .split("?")[0]
    .endswith(image_files.IMAGE_SUFFIXES)
  ]
  key = args.image_key or (known[0] if len(known) == 1 else None)
  if not isinstance(data.get(key), str) or not list(possible_names(data[key])):
    raise ValueError(
      f"{args.annotations}, task {task.get('id')}: its data has {sorted(data)},"
      f" of which {known} name images; expected one, or --image-key."
    )
  return data[key]


def possible_names(place: str) -> Iterator[str]:
  """Paths of an image below `--images`, the longest first."""
  url = urllib.parse.urlsplit(place)
  query = urllib.parse.parse_qs(url.query).get("d")
  path = query[0] if query else urllib.parse.unquote(url.path or place)
  parts = [p for p in path.replace("\\", "/").split("/") if p not in ("", ".")]
  if ".." in parts or "\0" in path:
    return
  for i in range(len(parts)):
    yield "/".join(parts[i:])
  if parts and (match := _UPLOAD.fullmatch(parts[-1])):
    yield match[1]


@dataclasses.dataclass(frozen=True)
class _ReadResults:
  """Reads the results of an annotation.

  Attributes:
    shapes: what regions become.
    choices: classes of choices; none if they are not imported.
  """

  shapes: ShapeFields
  choices: tuple[str, ...]

  def __call__(self, item: Item, picture: Picture) -> Labels:
    regions: list[tuple[str, tuple[str, str, Mapping[str, Any]]]] = []
    chosen = []
    for result in item.label:
      kind = kind_of(result)
      for name in names_of(result):
        what = f"{result.get('type')} {result.get('id')}"
        if kind == CHOICES:
          chosen.append((what, name))
        elif kind is not None:
          regions.append((what, (kind, name, result)))
    labels = Labels({})
    if self.shapes.fields:
      labels = self.shapes.read(
        regions,
        self._read,
        picture,
        _size_of(regions),
        "the JSON gives",
      )
    if not self.choices:
      return labels
    return drawn_shapes.add_classes(labels, chosen, self.choices)

  def _read(
    self, region: tuple[str, str, Mapping[str, Any]], size: tuple[int, int]
  ) -> DrawnShape:
    kind, name, result = region
    class_id = drawn_shapes.class_id(name, self.shapes.classes)
    return read_region(kind, class_id, result, size)


def read_region(
  kind: str,
  class_id: int,
  result: Mapping[str, Any],
  size: tuple[int, int],
) -> DrawnShape:
  """The shape of a result.

  Args:
    kind: see `kind_of`.
    class_id: of its class.
    result: of the annotation.
    size: height and width of the image.

  Raises:
    Rejected: it is none, or of an image of another size.
  """
  given = _numbers(result, "original_height", "original_width")
  if given != size:
    raise Rejected(
      "the JSON gives {:g} x {:g} (height x width); expected {} x {}".format(
        *given, *size
      )
    )
  if result.get("image_rotation"):
    raise Rejected(
      f"was drawn on the image turned by {result['image_rotation']} degrees"
      " in the editor, which is not understood; draw it upright"
    )
  value = result["value"]
  if kind == "rle":
    return DrawnShape.of_pixels(class_id, _brushed(value, size))
  percent = np.array(size) / 100
  if kind == "points":
    try:
      points = np.array(value["points"], np.float64).reshape(-1, 2)[:, ::-1]
    except (TypeError, ValueError, OverflowError):
      raise Rejected("has points that are no pairs of numbers") from None
    return DrawnShape.of_polygon(class_id, points * percent)
  x, y = _numbers(value, "x", "y")
  degrees = _numbers(value, "rotation")[0] if value.get("rotation") else 0.0
  pivot = np.array([y, x]) * percent
  if kind == "radiusX":
    radii = np.array(_numbers(value, "radiusY", "radiusX")) * percent
    points = polygons.ellipse(pivot, radii)
  else:
    height, width = _numbers(value, "height", "width")
    if min(height, width) <= 0:
      raise Rejected(f"is {height} % high and {width} % wide; expected an area")
    corners = np.array([y, x, y + height, x + width])
    points = polygons.rectangle(corners) * percent
  # Rectangles turn about their first corner, ellipses about their middle.
  points = polygons.rotate(points, degrees, pivot)
  return DrawnShape.of_polygon(class_id, points, is_box=kind == "width")


def _size_of(
  regions: Sequence[tuple[str, tuple[str, str, Mapping[str, Any]]]],
) -> tuple[float, ...] | None:
  """The size that the first region gives for its image; each is checked."""
  for _, (_, _, result) in regions:
    with contextlib.suppress(Rejected):
      return _numbers(result, "original_height", "original_width")
  return None


def _numbers(value: Mapping[str, Any], *names: str) -> tuple[float, ...]:
  try:
    numbers = tuple(float(value[name]) for name in names)
  except (KeyError, TypeError, ValueError, OverflowError):
    numbers = (np.nan,)
  if not np.isfinite(numbers).all():
    given = {name: value.get(name) for name in names}
    raise Rejected(f"has {given}; expected numbers")
  return numbers


def _brushed(value: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
  """Pixels bool [h, w] of a brushed region: those that are not transparent."""
  if value.get("format", "rle") != "rle":
    raise Rejected(f"has format {value['format']!r}; expected rle")
  try:
    data = np.array(value["rle"], np.uint8)
    if data.ndim != 1:
      raise ValueError
  except (TypeError, ValueError, OverflowError):
    raise Rejected("has an rle that is no list of bytes") from None
  rgba = decode_rle(data, _RGBA * size[0] * size[1])
  return rgba.reshape(*size, _RGBA)[..., -1] > 0


def decode_rle(data: np.ndarray, num_values: int) -> np.ndarray:
  """Unpacks bytes of the package rle-pack, which Label Studio's editor uses.

  A stream of bits, the highest of a byte first: 32 of the number of values, 5
  of their width - 1, 4 times 4 of the width - 1 of a length; then runs, each 1
  of whether its values are the same, 2 of which width its length has, its
  length - 1, and its value or values.

  Args:
    data: uint8 [n].
    num_values: that are expected.

  Returns:
    uint8 [num_values].

  Raises:
    Rejected: there are others, fewer or more.
  """
  bits = np.unpackbits(data)
  text = (bits + ord("0")).tobytes().decode()
  place = 0

  def skip(width: int) -> slice:
    nonlocal place
    place += width
    if place > len(bits):
      raise Rejected("has an rle that ends too early")
    return slice(place - width, place)

  def read(width: int) -> int:
    return int(text[skip(width)], 2)

  given, width = read(32), read(5) + 1
  lengths = [read(4) + 1 for _ in range(4)]
  if given != num_values or width != 8:
    raise Rejected(
      f"has an rle of {given} values of {width} bits; expected the {num_values}"
      " of an image with red, green, blue and alpha, of 8 bits"
    )
  values = np.zeros(num_values, np.uint8)
  start = 0
  while start < num_values:
    same = read(1)
    end = start + read(lengths[read(2)]) + 1
    if end > num_values:
      raise Rejected(f"has an rle of more than {num_values} values")
    if same:
      values[start:end] = read(width)
    else:
      values[start:end] = np.packbits(bits[skip(width * (end - start))])
    start = end
  return values
