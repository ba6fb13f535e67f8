"""Objects of an image, checked one by one."""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from must_jax.importers.files import Picture, Rejected
from must_jax.importers.items import Labels

_SLACK = 1.0  # pixels that a box may lie outside without being counted


class Object(NamedTuple):
  """An object as a dataset has it.

  Attributes:
    corners: float64 [4], yxyx in pixels of the image, continuous.
    class_id: of the object.
    ignore: whether it counts neither way, as crowds and difficult objects.
  """

  corners: np.ndarray
  class_id: int
  ignore: bool


def read_objects(
  elements: Iterable[tuple[str, Any]],
  read: Callable[[Any], Object],
  size: tuple[int, int],
) -> Labels:
  """The labels of an image; boxes are clipped to it.

  Args:
    elements: what each object is called in messages, and what `read` takes.
    read: raises `Rejected` for an object that has to be left out.
    size: height and width of the image.
  """
  objects, rejected = [], []
  counts: collections.Counter[str] = collections.Counter()
  limit = np.array([*size, *size], np.float64)
  for name, element in elements:
    try:
      found = read(element)
      clipped = np.clip(found.corners, 0, limit)
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
    counts["clipped"] += bool(np.abs(clipped - found.corners).max() > _SLACK)
  counts["objects"] = len(objects)
  counts["ignored"] = sum(found.ignore for found in objects)
  arrays = {
    "boxes": np.array([o.corners for o in objects], np.float32).reshape(-1, 4),
    "classes": np.array([o.class_id for o in objects], np.int64),
    "ignore": np.array([o.ignore for o in objects], bool),
  }
  return Labels({"objects": arrays}, rejected, counts)


def check_size(given: Sequence[Any], picture: Picture, source: str) -> None:
  """Checks the size that annotations give for their image.

  Tools that do not have the image at hand write none, 0, -1 or null.

  Args:
    given: height and width, numbers or text.
    picture: the image.
    source: of the size, for the message.

  Raises:
    Rejected: it is another one; or there is none, and the image was turned.
  """
  sizes = list(map(_positive, given))
  if not any(sizes) and picture.turned:
    raise Rejected(
      f"its EXIF asks for a rotation and the {source} gives no size, which"
      " would tell if the boxes are rotated"
    )
  if any(
    size and size != true
    for size, true in zip(sizes, picture.size, strict=True)
  ):
    turned = " once turned as its EXIF tells" if picture.turned else ""
    raise Rejected(
      f"the {source} gives {given[0]} x {given[1]} (height x width); the image"
      f" is {picture.size[0]} x {picture.size[1]}{turned}"
    )


def _positive(value: Any) -> float | None:
  try:
    number = float(value)
  except (TypeError, ValueError):
    return None
  return number if number > 0 else None


def summarize(counts: Mapping[str, float]) -> list[str]:
  """What to print of the counts of `read_objects`."""
  return [
    f"objects: {counts['objects']}, of these to be ignored:"
    f" {counts['ignored']}, clipped to the image: {counts['clipped']}"
  ]
