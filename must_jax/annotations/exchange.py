"""What formats of annotations share: which labels, of which images.

Three roles of labels can be mended in tools, under the names that importers
give them: "objects" (boxes), "mask" (a class for each pixel) and "label"
(classes of the image as a whole). A class map is a mask for each of its
classes; a pixel of none is unknown, going and coming.
"""

import collections
import dataclasses
import itertools
import pathlib
import string
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np

from must_jax.fields import Description, make_field
from must_jax.fields.class_vector import told_classes
from must_jax.importers import drawn_shapes, files
from must_jax.importers.drawn_shapes import DrawnShape, ShapeFields
from must_jax.importers.items import Labels
from must_jax.importers.objects import size_of
from must_jax.storage.image_files import Picture, Rejected
from must_jax.storage.path import Path, make_directory, publish
from must_jax.types import IGNORE_LABEL

ROLES = {"Boxes": "objects", "ClassMap": "mask", "ClassVector": "label"}
_FOLDERS = ("images", "labels")  # that readers of YOLO exchange in paths
_PLAIN = frozenset(string.ascii_letters + string.digits + " -_.,;=+@()[]{}!^&'")


@dataclasses.dataclass(frozen=True)
class Target:
  """The labels that are exchanged.

  Attributes:
    name: of the images, for people.
    teacher: digest of who made the labels.
    fields: {role: name of the field in the label set}.
    classes: {role: names of its classes in order}.
    keys: of all images.
    image_url: what tools that ask for images by their address put before
      their names; None for the format's own.
  """

  name: str
  teacher: str
  fields: Mapping[str, str]
  classes: Mapping[str, tuple[str, ...]]
  keys: Collection[str]
  image_url: str | None = None

  @property
  def all_classes(self) -> tuple[str, ...]:
    """Of all roles; equal names are one class."""
    names = (name for role in self.classes for name in self.classes[role])
    return tuple(dict.fromkeys(names))


class Shown(NamedTuple):
  """An image with the labels that are exported.

  Attributes:
    key: of the image.
    name: path of its file below the folder of images.
    size: height and width.
    labels: {role: arrays}, as `Field.at_size` gives them.
  """

  key: str
  name: str
  size: tuple[int, int]
  labels: Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Returned:
  """What came back in a file.

  Attributes:
    elements: {key: what `read` takes} of images that were looked at.
    read: gets these, and the image; gives labels by role, or raises `Rejected`.
    by: who made it, as far as the file says.
    when: last change in ISO 8601, if the file says it.
    notes: lines to print.
  """

  elements: Mapping[str, Any]
  read: Callable[[Any, Picture], Labels]
  by: Sequence[str] = ()
  when: str = ""
  notes: Sequence[str] = ()


def choose_target(
  name: str,
  teacher: str,
  descriptions: Mapping[str, Description],
  keys: Collection[str],
  possible: Collection[str],
  wanted: Collection[str] | None,
  image_url: str | None = None,
) -> Target:
  """The fields of a label set that are exchanged.

  Args:
    name: see `Target`.
    teacher: see `Target`.
    descriptions: of the fields, as its manifest lists them.
    keys: see `Target`.
    possible: roles that a format can hold.
    wanted: names of fields; all that are possible by default.
    image_url: see `Target`.

  Raises:
    ValueError: there is none, or several of one role.
  """
  roles = {
    field: ROLES[description["kind"]]
    for field, description in descriptions.items()
    if make_field(description).can_be_mended
  }
  chosen = collections.defaultdict(list)
  for field in wanted or roles:
    if field not in roles or (wanted and roles[field] not in possible):
      kinds = {n: d["kind"] for n, d in descriptions.items()}
      raise ValueError(
        f"Field {field!r} cannot be mended in this format, which has"
        f" {', '.join(possible)}; the label set has {kinds}."
      )
    if roles[field] in possible:
      chosen[roles[field]].append(field)
  if not chosen:
    kinds = {n: d["kind"] for n, d in descriptions.items()}
    held = " and ".join(k for k, role in ROLES.items() if role in possible)
    raise ValueError(
      f"The label set has {kinds}; this format can hold {held}."
      + (" Choose another --format." if roles else " None can hold others.")
    )
  for fields in chosen.values():
    if len(fields) > 1:
      raise ValueError(
        f"The label set has several fields of one kind, {fields}, which a file"
        " cannot tell apart. Choose one with --fields."
      )
  return Target(
    name,
    teacher,
    {role: fields[0] for role, fields in chosen.items()},
    {r: tuple(descriptions[f[0]]["classes"]) for r, f in chosen.items()},
    keys,
    image_url,
  )


def file_name(key: str, data: bytes = b"") -> str:
  """The path of an image's file: its key, in signs that every tool takes.

  Letters, digits and most signs stay as they are; others become %XX, as in
  URLs, and so do slashes that part no folders.

  Args:
    key: of the image.
    data: its bytes, which tell its extension.
  """
  parts = [_quote(part) for part in key.split("/")]
  name = parts[0]
  for before, part in itertools.pairwise(parts):
    name += ("/" if before and part else "%2F") + part
  return name + (".png" if data[:4] == b"\x89PNG" else ".jpg")


def _quote(part: str) -> str:
  """One part of a path, without signs that mean something somewhere."""
  is_composed = normalize("NFC", part) == part
  quoted = "".join(
    c
    if c in _PLAIN or (c > "\x7f" and c.isalnum() and is_composed)
    else urllib.parse.quote(c, safe="", errors="surrogateescape")
    for c in part
  )
  # Hidden, or `..`; and where YOLO's readers exchange a folder for another.
  if quoted[:1] in (".", " ") or quoted in _FOLDERS:
    quoted = f"%{ord(quoted[0]):02X}" + quoted[1:]
  if quoted[-1:] in (".", " "):  # lost on Windows
    quoted = quoted[:-1] + f"%{ord(quoted[-1]):02X}"
  return quoted


def key_of_name(name: str) -> str:
  """The reverse of `file_name`, of any extension."""
  return urllib.parse.unquote(files.key_of(name), errors="surrogateescape")


def keys_of(names: Sequence[str], keys: Collection[str]) -> dict[str, str]:
  """The keys of images by the names that a file has for them.

  Folders that all names begin with, such as `images/`, are left out if more of
  them are known then.

  Args:
    names: as in the file.
    keys: that there are.
  """
  parts = [
    pathlib.PurePosixPath(name.replace("\\", "/")).parts for name in names
  ]
  best: list[str] = []
  for start in range(min(map(len, parts), default=0)):
    if start and len({part[start - 1] for part in parts}) > 1:
      break
    found = [key_of_name("/".join(part[start:])) for part in parts]
    if not best or sum(k in keys for k in found) > sum(k in keys for k in best):
      best = found
  return dict(zip(names, best, strict=True))


def write_file(path: Path, data: bytes) -> None:
  """Writes a file, and the folders that it lies in."""
  make_directory(path.parent)
  with publish(path) as file:
    file.write(data)


def masks_of(
  arrays: Mapping[str, np.ndarray],
) -> Iterable[tuple[int, np.ndarray, float | None]]:
  """The masks of a class map.

  Returns:
    For each class that occurs: its id, which pixels are of it, bool [h, w], and
    the mean confidence there, None where nobody knows.
  """
  classes = arrays["classes"]
  for k in np.unique(classes[classes != IGNORE_LABEL]).tolist():
    mask = classes == k
    score = None
    if "confidence" in arrays:
      score = float(arrays["confidence"][mask].mean(dtype=np.float64))
    yield k, mask, score


def told(arrays: Mapping[str, np.ndarray]) -> Iterable[tuple[int, float]]:
  """The classes that an image is said to be of, with their probabilities."""
  probs = arrays["probs"]
  for k in np.flatnonzero(told_classes(probs) & (probs > 0)).tolist():
    yield k, number(probs[k])


def number(value: np.floating | float) -> float:
  """A score with no more digits than float32 has."""
  return float(str(np.float32(value)))


def check_score(value: Any) -> None:
  """Checks the score of a label in a file; empty is none.

  Raises:
    Rejected: it is no number from 0 to 1.
  """
  try:
    fine = value in (None, "") or 0 <= float(value) <= 1
  except (TypeError, ValueError):
    fine = False
  if not fine:
    raise Rejected(f"has score {value!r}; expected a number from 0 to 1")


class ReturnedShape(NamedTuple):
  """A shape in a file.

  Attributes:
    name: what it is called in messages.
    class_name: of its class.
    is_box: whether the object only lies within it.
    score: as the file has it.
    draw: gets the id of the class, and height and width of the image; gives
      the shape, or raises `Rejected`.
    ignore: whether the object counts neither way.
  """

  name: str
  class_name: str | None
  is_box: bool
  score: Any
  draw: Callable[[int, tuple[int, int]], DrawnShape]
  ignore: bool = False


def read_shapes(
  shapes: Iterable[ReturnedShape],
  target: Target,
  picture: Picture,
  given: Sequence[Any] | None = None,
  source: str = "",
) -> Labels:
  """Labels of an image by role.

  Where boxes and a class map are exchanged, boxes are of the first, and shapes
  with an outline of the second.

  Args:
    shapes: that the image has.
    target: what is exchanged.
    picture: the image.
    given: height and width that the file gives for it.
    source: of the size, for messages.

  Raises:
    Rejected: the size is another one.
  """
  picture.turn_of_labels(size_of(given), source)
  shapes = list(shapes)
  arrays: dict[str, Mapping[str, np.ndarray]] = {}
  rejected: list[str] = []
  counts: collections.Counter[str] = collections.Counter()
  both = {"objects", "mask"} <= {*target.fields}
  for role in ("objects", "mask"):
    if role not in target.fields:
      continue
    classes = target.classes[role]

    def draw(
      shape: ReturnedShape,
      size: tuple[int, int],
      classes: Sequence[str] = classes,
    ) -> DrawnShape:
      check_score(shape.score)
      class_id = drawn_shapes.class_id(shape.class_name, classes)
      return shape.draw(class_id, size)

    of_role = [s for s in shapes if not both or s.is_box == (role == "objects")]
    labels = ShapeFields(classes, (role,), "unknown").read(
      [(shape.name, shape) for shape in of_role], draw, picture
    )
    arrays |= labels.arrays
    rejected += labels.rejected
    counts.update(labels.counts)
    if role == "objects" and not labels.rejected:
      ignore = np.array([shape.ignore for shape in of_role], bool)
      arrays[role] = {**arrays[role], "ignore": ignore}
  return Labels(arrays, rejected, counts)


def read_classes(
  names: Iterable[tuple[str, str | None, Any]], target: Target
) -> Labels:
  """Classes of an image as a whole; none is a label, too.

  Args:
    names: what each is called in messages, its name, and the file's score.
    target: what is exchanged.
  """
  found, rejected = set(), []
  for what, name, score in names:
    try:
      check_score(score)
      found.add(drawn_shapes.class_id(name, target.classes["label"]))
    except Rejected as error:
      rejected.append(f"{what}: {error}")
  arrays = {"label": {"classes": np.array(sorted(found), np.int64)}}
  return Labels(arrays, rejected)


def join(*labels: Labels) -> Labels:
  """Labels of one image out of several."""
  counts: collections.Counter[str] = collections.Counter()
  for each in labels:
    counts.update(each.counts)
  return Labels(
    {role: array for each in labels for role, array in each.arrays.items()},
    [reason for each in labels for reason in each.rejected],
    counts,
  )
