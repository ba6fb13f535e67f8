"""Objects of an image, checked one by one."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from must_jax.importers.items import Labels
from must_jax.storage import orientation
from must_jax.storage.image_files import Picture, Rejected

_SLACK = 1.0  # pixels that a box may lie outside without being counted
_MAX_CLIPPED = 0.1  # of the boxes, else something is wrong


class Object(NamedTuple):
  """An object as a dataset has it.

  Attributes:
    corners: float64 [4], yxyx in pixels of the image, continuous.
    class_id: of the object.
    ignore: whether it counts neither way, as crowds and difficult objects.
    in_pixels: whether it cannot have been given in parts of the image.
  """

  corners: np.ndarray
  class_id: int
  ignore: bool
  in_pixels: bool = False


def read_objects(
  elements: Iterable[tuple[str, Any]],
  read: Callable[[Any], Object],
  picture: Picture,
  given: Sequence[Any] | None = None,
  source: str = "",
) -> Labels:
  """The labels of an image; boxes are turned with it and clipped to it.

  Args:
    elements: what each object is called in messages, and what `read` takes.
    read: raises `Rejected` for an object that has to be left out.
    picture: the image.
    given: height and width that the annotations give for their image, which
      tell whether they are of the picture as the file has it or as viewers
      show it. Some tools write none, 0 or -1.
    source: of the size, for messages, such as "the JSON gives".

  Raises:
    Rejected: the size is another one, or the image is turned and its size does
      not tell.
  """
  elements = list(elements)
  if not elements:  # they are of either picture
    picture = dataclasses.replace(picture, labels_of_turned="upright")
  turn = picture.turn_of_labels(size_of(given), source)
  size = picture.size
  objects, rejected = [], []
  counts: collections.Counter[str] = collections.Counter()
  limit = np.array([*size, *size], np.float64)
  for name, element in elements:
    try:
      found = read(element)
      if not found.in_pixels and found.corners.max() <= 1 < limit.max():
        raise Rejected(
          f"box {found.corners.tolist()} (yxyx) lies within the first pixel;"
          " expected pixels, not parts of the image"
        )
      corners = orientation.turn_box(found.corners, turn, size)
      clipped = np.clip(corners, 0, limit)
      box = (clipped / limit).astype(np.float32)
      if not (box[2:] > box[:2]).all():
        raise Rejected(
          f"box {found.corners.tolist()} (yxyx) lies outside the image, height"
          f" x width {size[0]} x {size[1]}"
        )
    except Rejected as error:
      rejected.append(f"{name}: {error}")
      continue
    objects.append(found._replace(corners=box))
    if np.abs(clipped - corners).max() > _SLACK:
      counts["clipped"] += 1
      far = found.corners[2:] - found.corners[:2]
      inside = far <= np.add(orientation.stored_size(size, turn), _SLACK)
      counts["corners"] += bool((inside & (far > found.corners[:2])).all())
  counts["objects"] = len(objects)
  counts["turned"] = len(objects) * (turn != 1)
  counts["ignored"] = sum(found.ignore for found in objects)
  arrays = {
    "boxes": np.array([o.corners for o in objects], np.float32).reshape(-1, 4),
    "classes": np.array([o.class_id for o in objects], np.int64),
    "ignore": np.array([o.ignore for o in objects], bool),
  }
  return Labels({"objects": arrays}, rejected, counts)


def read_flag(name: str, value: Any) -> bool:
  """A flag as files have it: true, 1, "1" or "true"; nothing is false.

  Args:
    name: of the flag, for messages.
    value: as it was read.

  Raises:
    Rejected: it is something else.
  """
  text = "" if value is None else str(value).strip().lower()
  if text not in _FLAGS:
    raise Rejected(f"{name} is {value!r}; expected 0 or 1")
  return _FLAGS[text]


_FLAGS = dict.fromkeys(("", "0", "0.0", "false", "no"), False) | dict.fromkeys(
  ("1", "1.0", "true", "yes"), True
)


def size_of(given: Sequence[Any] | None) -> tuple[float, float] | None:
  """A size if there is one."""
  try:
    height, width = (float(value) for value in given or ())
  except (TypeError, ValueError):
    return None
  if not (0 < height < math.inf and 0 < width < math.inf):
    return None
  return height, width


def summarize(counts: Mapping[str, float]) -> list[str]:
  """What to print of the counts of `read_objects`."""
  return [
    f"objects: {counts['objects']}, of these to be ignored:"
    f" {counts['ignored']}, clipped to the image: {counts['clipped']}"
    + (f", turned with it: {counts['turned']}" if counts["turned"] else "")
  ]


def warn(counts: Mapping[str, float], *, have_sizes: bool = False) -> list[str]:
  """What looks wrong in the counts of `read_objects`.

  Args:
    counts: summed over all images.
    have_sizes: whether the file has a corner and a size of each box.
  """
  objects, clipped = counts["objects"], counts["clipped"]
  if clipped <= _MAX_CLIPPED * objects:
    return []
  text = f"{clipped:.0f} of {objects:.0f} boxes leave their image"
  as_corners = counts["corners"] / clipped
  if have_sizes and as_corners > 0.9:
    text += (
      f"; {as_corners:.0%} of these would not if the file had corners, x0 y0 x1"
      " y1, in place of x y width height"
    )
  return [f"{text}."]
