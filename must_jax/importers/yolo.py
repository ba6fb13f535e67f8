"""Boxes and polygons in the format of YOLO.

  data.yaml                 path, train, val, test, names
  images/train/a.jpg
  labels/train/a.txt        a line for each object, parts of width and height:
    0 0.5 0.5 0.2 0.4         class, and x and y of the middle, width, height
    1 0.1 0.1 0.4 0.1 0.3 0.5 class, and x and y of three or more corners

An image's labels lie where the last `images` of its path is `labels`, or beside
it where its path has none. An empty file, or none, means an image without
objects. `path` begins at the working directory or beside the YAML file; a split
is a directory, a text file with an image on each line, or a list of these.

Polygons give boxes and masks; of overlapping ones the smaller lies on top, as
in Ultralytics' own reader, since the order of lines means nothing. Lines with
keypoints (`kpt_shape`) give their boxes. Boxes that are turned (OBB) are
polygons of four corners. No size tells of which picture the labels are where
EXIF turns an image: `--labels-of-turned` does (Ultralytics reads them upright).
"""

import argparse
import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from must_jax.importers import drawn_shapes, files, lists, objects, polygons
from must_jax.importers.drawn_shapes import DrawnShape, ShapeFields
from must_jax.importers.items import Item, Labels, Plan, ReadFiles
from must_jax.storage.image_files import Picture, Rejected
from must_jax.storage.path import Path, list_names, read_files, read_range

HELP = "boxes and polygons in the format of YOLO"

_FIELDS = ("objects", "mask")
_SPLITS = {"validation": "val", "valid": "val"}
_SLACK = 0.01  # of the image: what is rounded, or dragged over an edge
_NAMES_FILE = "classes.txt"  # exported among the labels
_MAX_BYTES = 1 << 24
_FILES_AT_A_TIME = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  add = parser.add_argument
  add(
    "--data",
    type=Path,
    metavar="FILE",
    help="data.yaml; --split says which of its splits",
  )
  add(
    "--root",
    type=Path,
    metavar="DIR",
    help="where the paths of --data begin, instead of its `path`",
  )
  add(
    "--images",
    type=Path,
    metavar="DIR",
    help="without --data: the images, with folders below",
  )
  add(
    "--labels",
    type=Path,
    metavar="DIR",
    help="the .txt files, laid out like --images; default: as for --data",
  )
  add(
    "--classes",
    metavar="FILE[:KEY]",
    help="names in order of their ids, a JSON list or one a line; default:"
    " those of --data",
  )
  drawn_shapes.add_arguments(parser, _FIELDS)


def plan(args: argparse.Namespace) -> Plan:
  """Finds the images of a split and their label files.

  Raises:
    ValueError: a file or directory is missing or has another format, or no
      image has labels.
  """
  images, classes, keypoints, notes = _find(args)
  wanted = {
    key: args.labels / f"{key}.txt" if args.labels else label_path(path)
    for key, path in images.items()
  }
  names = _names_in(path.parent for path in wanted.values())
  items = [
    Item(
      key,
      path,
      wanted[key]
      if wanted[key].name in names[str(wanted[key].parent)]
      else None,
    )
    for key, path in images.items()
  ]
  missing = [item for item in items if item.label is None]
  if len(missing) == len(items):
    raise ValueError(
      f"None of {len(items)} images has a label file; for {items[0].image}"
      f" expected is {wanted[items[0].key]}."
    )
  if missing:
    notes.append(
      f"images without a label file, taken to have no objects: {len(missing)}"
      f" of {len(items)}, such as {missing[0].image.name}"
    )
  notes += _strays(wanted.values(), names)
  source = args.data or args.images
  found = _FIELDS[:1] if keypoints or args.fields else _fields_found(items)
  fields = ShapeFields(
    tuple(classes),
    drawn_shapes.choose_fields(args.fields, found, source),
    args.outside,
  )
  return Plan(
    fields.describe(),
    items,
    ReadFiles(_ReadLines(fields, keypoints)),
    summarize=_summarize,
    warn=objects.warn,
    notes=notes,
  )


def _find(
  args: argparse.Namespace,
) -> tuple[dict[str, Path], list[str], int, list[str]]:
  """Images by key, class names, numbers of keypoints, and notes."""
  if (args.data is None) == (args.images is None):
    raise ValueError("Give --data data.yaml, or --images and --classes.")
  if args.images:
    if args.root or not args.classes:
      raise ValueError("--images needs --classes, and takes no --root.")
    images, notes = files.find_images(args.images)
    return images, lists.load_classes(args.classes), 0, [*notes]
  if args.labels:
    raise ValueError(
      "--labels goes with --images; those of --data lie beside its images."
    )
  config = load_data(args.data)
  if args.classes:
    classes = lists.load_classes(args.classes)
  else:
    classes = names_of(args.data, config)
  images, notes = _split_images(args, config)
  return images, classes, _keypoints(args.data, config), notes


@dataclasses.dataclass(frozen=True)
class _ReadLines:
  """Reads the objects of an image from the text file that is its label.

  Attributes:
    fields: what they become.
    keypoints: numbers that follow a box; with none a line may be a polygon.
  """

  fields: ShapeFields
  keypoints: int

  def __call__(self, item: Item, picture: Picture) -> Labels:
    lines = read_lines(item.label) if item.label else []
    seen: dict[tuple[str, ...], str] = {}
    for number, line in enumerate(lines, start=1):
      if words := tuple(line.split()):
        seen.setdefault(words, f"line {number}")
    labels = self.fields.read(
      [(name, words) for words, name in seen.items()],
      self._read,
      picture,
    )
    counts = {
      **labels.counts,
      "repeated": sum(bool(line.split()) for line in lines) - len(seen),
    }
    return dataclasses.replace(labels, counts=counts)

  def _read(self, words: Sequence[str], size: tuple[int, int]) -> DrawnShape:
    return read_line(words, size, len(self.fields.classes), self.keypoints)


def read_line(
  words: Sequence[str],
  size: tuple[int, int],
  num_classes: int,
  keypoints: int = 0,
) -> DrawnShape:
  """The shape of a line.

  Args:
    words: of the line.
    size: height and width of the image.
    num_classes: that there are.
    keypoints: numbers that follow a box; with none a line may be a polygon.

  Raises:
    Rejected: it is none.
  """
  text = " ".join(words[:6]) + (" ..." if len(words) > 6 else "")
  try:
    number, *values = map(float, words)
  except ValueError:
    raise Rejected(f"{text!r} has words that are no numbers") from None
  if not (0 <= number < num_classes and number == int(number)):
    raise Rejected(
      f"class {words[0]} of {num_classes}, which are 0 to {num_classes - 1}"
    )
  num_expected = 4 + keypoints
  is_box = len(values) == num_expected
  if not is_box and (keypoints or len(values) < 6 or len(values) % 2):
    expected = f"{num_expected} (x, y, width, height" + (
      f" and {keypoints} of keypoints)"
      if keypoints
      else ") or three or more pairs (x, y)"
    )
    raise Rejected(
      f"{text!r} has {len(values)} numbers after the class; expected {expected}"
    )
  values = values[:4] if is_box else values
  if not all(-_SLACK <= v <= 1 + _SLACK for v in values):  # no nan is
    pixels = " These look like pixels." if max(values) > 2 else ""
    raise Rejected(
      f"{text!r} is not within 0 and 1; expected parts of the image's width"
      f" and height.{pixels}"
    )
  places = np.reshape(values, (-1, 2))[:, ::-1] * size
  if not is_box:
    order = -polygons.area(places)
    return DrawnShape.of_polygon(
      int(number), places, order=order, in_pixels=True
    )
  middle, extent = places
  if not (extent > 0).all():
    raise Rejected(f"{text!r} has no area")
  corners = np.concatenate([middle - extent / 2, middle + extent / 2])
  points = polygons.rectangle(corners)
  return DrawnShape.of_polygon(int(number), points, is_box=True, in_pixels=True)


def _summarize(counts: Any) -> list[str]:
  lines = drawn_shapes.summarize(counts)
  if counts.get("repeated"):
    lines.append(f"lines that say the same again: {counts['repeated']}")
  return lines


def load_data(path: Path) -> dict[str, Any]:
  """What a data.yaml says.

  Raises:
    ValueError: it is missing or no such file.
  """
  value = lists.load_yaml(path)
  if not isinstance(value, dict):
    raise ValueError(
      f"{path} holds {str(value)[:80]!r}; expected a data.yaml with path,"
      " train, val and names."
    )
  return value


def names_of(path: Path, config: dict[str, Any]) -> list[str]:
  """Class names by id.

  Args:
    path: of the data.yaml.
    config: what it says.

  Raises:
    ValueError: it names no classes.
  """
  names = lists.load_classes(f"{path}:names")
  if config.get("nc") not in (None, "", str(len(names))):
    raise ValueError(
      f"{path} has nc: {config['nc']} and {len(names)} names; expected as many."
    )
  return names


def _keypoints(path: Path, config: dict[str, Any]) -> int:
  """How many numbers of keypoints follow a box."""
  shape = config.get("kpt_shape")
  if not shape:
    return 0
  try:
    number, dims = map(int, shape)
  except (TypeError, ValueError):
    raise ValueError(
      f"{path} has kpt_shape: {shape!r}; expected [keypoints, 2 or 3]."
    ) from None
  return number * dims


def _split_images(
  args: argparse.Namespace, config: dict[str, Any]
) -> tuple[dict[str, Path], list[str]]:
  """Images of a split by key, and notes.

  Keys are paths below the directory of the split, or below what several have
  in common; of a list of images, as it has them.
  """
  known = {_SPLITS.get(k, k): k for k in config if config[k]}
  key = known.get(_SPLITS.get(args.split, args.split))
  entries = config.get(key) if key else None
  entries = [entries] if isinstance(entries, str) else entries
  if (
    not isinstance(entries, list)
    or key in ("names", "path", "nc")
    or not all(isinstance(entry, str) and entry for entry in entries)
  ):
    splits = [k for k in ("train", "val", "test") if k in known]
    raise ValueError(
      f"{args.data} has no split {args.split!r}; it has {splits}. Give one as"
      " --split, or a directory as --images."
    )
  root, places = _resolve(args.data, _roots(args, config), entries)
  directories = [place for place in places if place.is_dir()]
  base = "/".join(_common([str(place).split("/") for place in directories]))
  found: list[tuple[str, Path]] = []
  notes: list[str] = []
  for place in places:
    if place in directories:
      below, lines = files.find_images(place)
      notes += lines
      start = str(place).removeprefix(base).strip("/")
      found += [
        (f"{start}/{key}".lstrip("/"), path) for key, path in below.items()
      ]
    else:
      found += _read_list(place, root)
  images: dict[str, Path] = {}
  for image_key, path in found:
    if images.setdefault(image_key, path) != path:
      raise ValueError(
        f"{images[image_key]} and {path} have the same key {image_key!r}; keys"
        " are paths without extension and must differ."
      )
  if len(images) < len(found):
    repeated = len(found) - len(images)
    notes.append(f"images that {args.data.name} lists again: {repeated}")
  return images, notes


def _common(paths: Sequence[Sequence[str]]) -> list[str]:
  """The first parts that all paths have in common."""
  same = itertools.takewhile(
    lambda parts: len(set(parts)) == 1, zip(*paths, strict=False)
  )
  return [parts[0] for parts in same]


def _roots(args: argparse.Namespace, config: dict[str, Any]) -> list[Path]:
  """Where paths of the YAML file may begin, the best first."""
  if args.root:
    return [args.root]
  beside, given = args.data.parent, config.get("path")
  if not given or not isinstance(given, str):
    return [beside]
  # Files that were moved still have the `path` of another machine.
  return [beside / given, Path(given), beside]


def _resolve(
  data: Path, roots: Sequence[Path], entries: Sequence[str]
) -> tuple[Path, list[Path]]:
  """A root, and below it directories of images or lists of them."""
  for root in roots:
    # Exports write `../train/images` for what lies beside the YAML file.
    for up in ("", "../"):
      places = [root / entry.removeprefix(up) for entry in entries]
      if all(place.exists() for place in places):
        return root, places
  missing = [e for e in entries if not (roots[0] / e).exists()]
  raise ValueError(
    f"{data} names {missing[0]}, and {roots[0] / missing[0]} is not there. Mend"
    " its `path`, or give --root, the directory where its paths begin."
  )


def _read_list(path: Path, root: Path) -> list[tuple[str, Path]]:
  """Keys and paths of the images that a text file names, one a line."""
  images = []
  for line in _lines_of(path):
    name = line.strip()
    start = path.parent if name.startswith("./") else root
    name = name.removeprefix("./").removeprefix(f"{root}/")
    if not name:
      continue
    try:
      images.append((files.key_of(name), files.inside(start, name)))
    except Rejected as error:
      raise ValueError(
        f"{path}: {error}; expected paths of images below it. Give --root if"
        " they begin elsewhere."
      ) from None
  if not images:
    raise ValueError(f"{path} names no image; expected one on each line.")
  return images


def label_path(image: Path) -> Path:
  """Where the label file of an image lies."""
  head, found, tail = f"/{image}".rpartition("/images/")
  path = f"{head}/labels/{tail}"[1:] if found else str(image)
  return Path(path).with_suffix(".txt")


def _names_in(directories: Iterable[Path]) -> dict[str, set[str]]:
  """Names in directories, none of one that is not there."""
  names: dict[str, set[str]] = {}
  for directory in directories:
    if str(directory) not in names:
      there = directory.is_dir()
      names[str(directory)] = list_names(directory) if there else set()
  return names


def _strays(
  wanted: Collection[Path], names: Mapping[str, Collection[str]]
) -> list[str]:
  """A note on label files that no image has."""
  expected = {*map(str, wanted)}
  strays = [
    name
    for directory, found in sorted(names.items())
    for name in sorted(found)
    if name.endswith(".txt")
    and name != _NAMES_FILE
    and f"{directory}/{name}" not in expected
  ]
  if not strays:
    return []
  return [f"label files of no image here: {len(strays)}, such as {strays[0]}"]


def _fields_found(items: Sequence[Item]) -> tuple[str, ...]:
  """The fields that label files have."""
  paths = [item.label for item in items if item.label]
  for start in range(0, len(paths), _FILES_AT_A_TIME):
    for data in read_files(paths[start : start + _FILES_AT_A_TIME]):
      if any(len(line.split()) >= 7 for line in (data or b"").splitlines()):
        return _FIELDS
  return _FIELDS[:1]


def read_lines(path: Path) -> list[str]:
  """The lines of a label file.

  Raises:
    Rejected: it cannot be read.
  """
  try:
    return _lines_of(path)
  except ValueError as error:
    raise Rejected(str(error)) from None


def _lines_of(path: Path) -> list[str]:
  try:
    data = read_range(path, 0, _MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
      raise ValueError(f"{path.name} has more than {_MAX_BYTES} bytes")
    return data.decode("utf-8-sig").splitlines()
  except OSError as error:
    raise ValueError(f"{path.name} cannot be read: {error}") from None
  except UnicodeDecodeError as error:
    raise ValueError(f"{path.name} is no UTF-8 text: {error}") from None
