"""Shapes drawn by people: boxes, polygons and brushed masks of one image.

Each is an object with a box around it. Together they make a class map: shapes
lie on each other in an order that the format gives. Of what is known as a box
only, the pixels are unknown unless an outline covers them; a pixel of no shape
is background, a class of its own, or unknown (`--outside`).
"""

import argparse
import collections
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Self, TypeAlias

import numpy as np

from must_jax.importers import names, objects, polygons
from must_jax.importers.items import Labels
from must_jax.storage import orientation
from must_jax.storage.image_files import Picture, Rejected
from must_jax.types import IGNORE_LABEL

BACKGROUND = "background"
_FAR = 1e9  # pixels
FIELDS = ("objects", "mask", "label")

Pixels: TypeAlias = tuple[tuple[slice, slice], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class DrawnShape:
  """An object that was drawn.

  Attributes:
    class_id: of the object.
    corners: float64 [4], the box around it, yxyx in pixels, continuous.
    draw: size of the image -> a window of it, and which of its pixels belong
      to the shape.
    is_box: whether the object only lies within the shape.
    order: shapes with a higher one lie on top; of equal ones the later.
    in_pixels: see `objects.Object`.
  """

  class_id: int
  corners: np.ndarray
  draw: Callable[[tuple[int, int]], Pixels]
  is_box: bool = False
  order: float = 0.0
  in_pixels: bool = False

  @classmethod
  def of_polygon(
    cls,
    class_id: int,
    points: Sequence | np.ndarray,
    *,
    is_box: bool = False,
    order: float = 0.0,
    in_pixels: bool = False,
  ) -> Self:
    """A shape with corners [n, 2], yx in pixels.

    Raises:
      Rejected: they are fewer than three, far from any image, or enclose
        nothing.
    """
    points = np.asarray(points, np.float64).reshape(-1, 2)
    if len(points) < 3 or not (np.abs(points) < _FAR).all():  # no nan is
      raise Rejected(
        f"has {len(points)} corners {points[:4].tolist()} (yx); expected three"
        " or more, near the image"
      )
    corners = np.concatenate([points.min(0), points.max(0)])
    if not (corners[2:] > corners[:2]).all():
      raise Rejected(f"has no area: it lies within {corners.tolist()} (yxyx)")
    draw = functools.partial(polygons.fill, points)
    return cls(class_id, corners, draw, is_box, order, in_pixels)

  @classmethod
  def of_pixels(
    cls,
    class_id: int,
    pixels: np.ndarray,
    *,
    place: tuple[int, int] = (0, 0),
    order: float = 0.0,
  ) -> Self:
    """A shape of pixels.

    Args:
      class_id: of the object.
      pixels: bool [h, w], which belong to it.
      place: row and column of the first, at least 0.
      order: see `DrawnShape`.

    Raises:
      Rejected: there is none.
    """
    rows, columns = (np.flatnonzero(pixels.any(1 - axis)) for axis in (0, 1))
    if not rows.size:
      raise Rejected("has no pixel")
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    low = np.array([window[0].start, window[1].start]) + place
    high = np.array([window[0].stop, window[1].stop]) + place
    draw = functools.partial(_crop, pixels[window], low)
    corners = np.concatenate([low, high]) * 1.0
    return cls(class_id, corners, draw, order=order, in_pixels=True)


def _crop(
  pixels: np.ndarray, place: np.ndarray, size: tuple[int, int]
) -> Pixels:
  """The part of pixels at a place that lies in an image."""
  end = np.minimum(place + pixels.shape, size)
  height, width = np.maximum(end - place, 0)
  window = slice(place[0], place[0] + height), slice(place[1], end[1])
  return window, pixels[:height, :width]


def add_arguments(
  parser: argparse.ArgumentParser, fields: Sequence[str] = FIELDS
) -> None:
  """Adds the options of importers of shapes.

  Args:
    parser: gets the options.
    fields: that there may be.
  """
  parser.add_argument(
    "--fields",
    nargs="+",
    choices=fields,
    metavar="FIELD",
    help=f"what to import, some of {', '.join(fields)}; default: all that the"
    " annotations have. Name them where splits of one set differ",
  )
  parser.add_argument(
    "--outside",
    choices=(BACKGROUND, "unknown"),
    default=BACKGROUND,
    help="what pixels of no shape are in masks; background becomes class 0,"
    " unless the classes have one of this name; default %(default)s",
  )


@dataclasses.dataclass(frozen=True)
class ShapeFields:
  """Which labels become of shapes.

  Attributes:
    classes: of objects.
    fields: "objects", "mask" or both.
    outside: "background" or "unknown", see `add_arguments`.
  """

  classes: tuple[str, ...]
  fields: tuple[str, ...]
  outside: str

  @property
  def mask_classes(self) -> tuple[str, ...]:
    """Of the class map."""
    if self.outside != BACKGROUND or BACKGROUND in self.classes:
      return self.classes
    return (BACKGROUND, *self.classes)

  def describe(self, image_classes: Sequence[str] = ()) -> dict[str, Any]:
    """As in `index.json`.

    Args:
      image_classes: those of images as a whole, if they are imported, too.
    """
    kinds = {
      "objects": {"kind": "Boxes", "classes": list(self.classes)},
      "mask": {"kind": "ClassMap", "classes": list(self.mask_classes)},
    }
    fields = {name: kinds[name] for name in self.fields}
    if image_classes:
      fields["label"] = {"kind": "ClassVector", "classes": list(image_classes)}
    return fields

  def read(
    self,
    elements: Iterable[tuple[str, Any]],
    read: Callable[[Any, tuple[int, int]], DrawnShape],
    picture: Picture,
    given: Sequence[float] | None = None,
    source: str = "",
  ) -> Labels:
    """The labels of an image.

    One whose shapes are not all understood has no mask: it would say of the
    others' pixels what is not so.

    Args:
      elements: what each shape is called in messages, and what `read` takes.
      read: gets an element, and height and width of the picture that it is
        drawn on; raises `Rejected` for a shape that has to be left out.
      picture: the image.
      given: see `objects.read_objects`.
      source: see `objects.read_objects`.

    Raises:
      Rejected: see `objects.read_objects`.
    """
    elements = list(elements)
    turn = picture.turn_of_labels(given, source) if elements else 1
    size = orientation.stored_size(picture.size, turn)
    shapes: list[DrawnShape] = []

    def read_one(element: Any) -> objects.Object:
      shapes.append(shape := read(element, size))
      return objects.Object(
        shape.corners, shape.class_id, False, shape.in_pixels
      )

    labels = objects.read_objects(elements, read_one, picture, given, source)
    arrays = {k: v for k, v in labels.arrays.items() if k in self.fields}
    counts: collections.Counter[str] = collections.Counter(labels.counts)
    if "mask" in self.fields:
      counts["boxes_in_masks"] = sum(shape.is_box for shape in shapes)
      if labels.rejected:
        counts["no_mask"] = 1
      else:
        classes = orientation.turn_map(self._draw(shapes, size), turn)
        arrays["mask"] = {"classes": classes}
    return dataclasses.replace(labels, arrays=arrays, counts=counts)

  def _draw(
    self, shapes: Sequence[DrawnShape], size: tuple[int, int]
  ) -> np.ndarray:
    """The class map uint8 of some shapes."""
    names = self.mask_classes
    ids = [names.index(name) for name in self.classes]
    outside = self.outside == BACKGROUND
    classes = np.full(
      size, names.index(BACKGROUND) if outside else IGNORE_LABEL, np.uint8
    )
    for shape in sorted(shapes, key=lambda s: (not s.is_box, s.order)):
      window, inside = shape.draw(size)
      class_id = IGNORE_LABEL if shape.is_box else ids[shape.class_id]
      classes[window][inside] = class_id
    return classes


def choose_fields(
  wanted: Collection[str] | None, found: Collection[str], source: Any
) -> tuple[str, ...]:
  """The fields to import, in order.

  Args:
    wanted: `--fields`.
    found: those that the annotations have.
    source: of the annotations, for the message.

  Raises:
    ValueError: there are none.
  """
  if not (wanted or found):
    raise ValueError(
      f"{source} has no annotation that can be imported; expected some, or"
      " --fields for what to make of images without any."
    )
  return tuple(name for name in FIELDS if name in (wanted or found))


def choose_image_classes(
  fields: Collection[str], classes: Sequence[str], source: Any
) -> tuple[str, ...]:
  """The classes of images as a whole; none if they are not imported.

  Args:
    fields: to import.
    classes: that there are.
    source: of the annotations, for the message.

  Raises:
    ValueError: they are to be imported, and there are none.
  """
  if "label" not in fields:
    return ()
  if not classes:
    raise ValueError(
      f"{source} lists no classes of images for the field 'label'. Leave it out"
      " of --fields, or give a list of them (see --help)."
    )
  return tuple(classes)


def summarize(counts: Mapping[str, float]) -> list[str]:
  """What to print of the counts of `ShapeFields.read` and `add_classes`."""
  lines = objects.summarize(counts) if "objects" in counts else []
  if counts.get("boxes_in_masks"):
    lines.append(
      f"objects without an outline, unknown in masks:"
      f" {counts['boxes_in_masks']}"
    )
  if counts.get("no_mask"):
    lines.append(
      "images without a mask, because of shapes that were rejected:"
      f" {counts['no_mask']}"
    )
  if "classified" in counts:
    lines.append(
      f"images with classes: {counts['classified']}, without:"
      f" {counts['unclassified']}"
    )
  return lines


def warn(counts: Mapping[str, float]) -> list[str]:
  """What looks wrong in the same counts."""
  return objects.warn(counts) if "objects" in counts else []


def class_id(name: str | None, classes: Sequence[str]) -> int:
  """The id of a class.

  Raises:
    Rejected: there is no such class.
  """
  if name not in classes:
    raise Rejected(
      f"class {name!r} is none of {sorted(classes)[:10]}"
      f"{names.meant(str(name), classes)}"
    )
  return classes.index(name)


def add_classes(
  labels: Labels,
  named: Iterable[tuple[str, str | None]],
  classes: Sequence[str],
) -> Labels:
  """Labels with classes of the image as a whole; without any, no label.

  Args:
    labels: of the image so far.
    named: what each is called in messages, and its class.
    classes: that there are.
  """
  found, rejected = set(), [*labels.rejected]
  for what, name in named:
    try:
      found.add(class_id(name, classes))
    except Rejected as error:
      rejected.append(f"{what}: {error}")
  arrays = {**labels.arrays}
  if found:
    arrays["label"] = {"classes": np.array(sorted(found), np.int64)}
  counts = {"classified": int(bool(found)), "unclassified": int(not found)}
  return Labels(arrays, rejected, {**labels.counts, **counts})
