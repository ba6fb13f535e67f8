"""A contact sheet: random images of a set, each beside its labels."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from must_jax.input import pipeline
from must_jax.input.geometry import AugmentOptions
from must_jax.input.loader import ReadOptions
from must_jax.input.source import SUPERVISED, Source
from must_jax.storage.sets import ImageSet
from must_jax.tasks import TASKS, Task, make_task, task_options
from must_jax.tasks.task import palette
from must_jax.types import Boxes, ClassMap, ClassVector, Field, ValueMap

_SIDE = 256  # longest side of a picture, pixels
_PER_ROW = 6  # pictures
_GAP = 8
_LINE = 20  # height of a line of text
_FONT_SIZE = 14
_INK, _PAPER, _BLANK = (32, 32, 32), (255, 255, 255), (224, 224, 224)

Arrays = Mapping[str, np.ndarray]
Word = tuple[str, tuple[int, ...] | None]  # a word and its colour, if any


class _Panel(NamedTuple):
  """A picture uint8 [h, w, 3] and the line of text below it."""

  picture: np.ndarray
  caption: str


def find_task(name: str, spec: Mapping[str, Any]) -> Task | None:
  """The task that draws a field, if there is one for its name and kind.

  Args:
    name: of the field.
    spec: {"kind": ..., "classes": [...]}, as in an index.
  """
  wanted = {"unit": spec.get("unit"), "min_score": 0.0}
  for kind in TASKS:
    known = task_options(kind)
    options = {k: v for k, v in wanted.items() if k in known and v is not None}
    task = make_task(kind, name, tuple(spec.get("classes", ())), options)
    if type(task.fields.get(name)).__name__ == spec["kind"]:
      return task
  return None


def draw(images: ImageSet, count: int, seed: int = 0) -> Image.Image:
  """Draws random images of a split with all labels that a task can draw.

  Args:
    images: the split.
    count: images that are chosen; broken ones are left out.
    seed: of the choice.
  """
  tasks = {
    name: task
    for name, spec in images.fields.items()
    if (task := find_task(name, spec))
  }
  seen: dict[str, set[int]] = {name: set() for name in tasks}
  tiles = list(
    _tiles(images, tasks, min(count, images.num_records), seed, seen)
  )
  per_row = max(1, _PER_ROW // (1 + len(tasks)))
  width = _GAP + per_row * (len(tasks) + 1) * (_SIDE + _GAP)
  title = (
    f"{images.name} {images.split}: {len(tiles)} of {images.num_records:,}"
    f" images (seed {seed})"
  )
  strips = [_words([(title, None)], width)]
  for start in range(0, len(tiles), per_row):
    strips.append(_row(tiles[start : start + per_row], width))
  for name, task in tasks.items():
    colors = palette(task.num_classes)
    if seen[name]:
      legend: list[Word] = [(f"{name}:", None)]
      legend += [
        (task.classes[k], tuple(colors[k])) for k in sorted(seen[name])
      ]
      strips.append(_words(legend, width))
  sheet = Image.new("RGB", (width, sum(s.height for s in strips)), _PAPER)
  top = 0
  for strip in strips:
    sheet.paste(strip, (0, top))
    top += strip.height
  return sheet


def _tiles(
  images: ImageSet,
  tasks: Mapping[str, Task],
  count: int,
  seed: int,
  seen: Mapping[str, set[int]],
) -> Iterator[list[_Panel]]:
  """Panels of each image: itself and one for each field.

  Args:
    images: the split.
    tasks: {field: what draws it}.
    count: of images.
    seed: of their choice.
    seen: {field: classes that occurred}, to be filled.
  """
  source = Source(
    str(images.directory),
    images.split,
    dict.fromkeys(tasks, SUPERVISED),
  )
  batches = pipeline.train_batches(
    [source],
    {name: task.fields for name, task in tasks.items()},
    batch_size=count,
    image_size=(_SIDE, _SIDE),
    label_stride=1,
    augment=AugmentOptions(antialias_below=1.0),
    seed=seed,
    block_size=1,
    options=ReadOptions(max_bad=None),
  )
  batch = next(batches)
  for i in np.flatnonzero(batch["valid"]):
    height, width = batch["content_size"][i].astype(int)

    def content(array: np.ndarray, h: int = height, w: int = width):
      return array[:h, :w] if array.shape[:2] == (_SIDE, _SIDE) else array

    image = content(batch["image"][i])
    tile = [_Panel(image, batch["key"][i].decode(errors="replace"))]
    for name, task in tasks.items():
      arrays = {
        k: content(v[i]) for k, v in batch["labels"][name][name].items()
      }
      if not arrays["present"]:
        tile.append(_Panel(np.full_like(image, _BLANK), f"no {name}"))
        continue
      field = task.fields[name]
      amounts = _amounts(field, arrays)
      seen[name].update(np.flatnonzero(amounts).tolist())
      caption = _caption(field, arrays, amounts, task.classes)
      tile.append(_Panel(task.draw(image, arrays), caption))
    yield tile


def _amounts(field: Field, arrays: Arrays) -> np.ndarray:
  """How much there is of each class [K]: probability, boxes or pixels."""
  match field:
    case ClassVector():
      return arrays["probs"]
    case Boxes():
      classes = arrays["classes"][arrays["valid"]]
    case ClassMap():
      classes = arrays["classes"].reshape(-1)
    case _:
      return np.zeros(0)
  return np.bincount(classes, minlength=field.num_classes)[: field.num_classes]


def _caption(
  field: Field, arrays: Arrays, amounts: np.ndarray, classes: Sequence[str]
) -> str:
  order = [k for k in np.argsort(-amounts, kind="stable") if amounts[k]]
  match field:
    case ClassVector():
      form = "{0}" if set(amounts) <= {0, 1} else "{0} {1:.2f}"
    case Boxes():
      form = "{1} {0}"
    case ClassMap():
      form, amounts = "{0} {1:.0%}", amounts / arrays["classes"].size
    case ValueMap():
      values = arrays["values"][arrays["valid"]]
      if not values.size:
        return "nothing is known"
      return f"{values.min():.3g} to {values.max():.3g} {field.unit}"
    case _:
      return f"{arrays['valid'].mean():.0%} is known"
  return ", ".join(form.format(classes[k], amounts[k]) for k in order) or "none"


def _row(tiles: Sequence[Sequence[_Panel]], width: int) -> Image.Image:
  """Tiles side by side; pictures stand on their captions."""
  height = max(panel.picture.shape[0] for tile in tiles for panel in tile)
  strip = Image.new("RGB", (width, height + _LINE + _GAP), _PAPER)
  pen = ImageDraw.Draw(strip)
  left = _GAP
  for tile in tiles:
    for picture, caption in tile:
      strip.paste(Image.fromarray(picture), (left, height - len(picture)))
      pen.text((left, height), _clip(caption, _SIDE), _INK, _font())
      left += _SIDE + _GAP
  return strip


def _words(words: Sequence[Word], width: int) -> Image.Image:
  """Words in lines, each after a patch of its colour."""
  placed = []
  left = line = 0
  for word, color in words:
    word = _clip(word, width - _LINE - 3 * _GAP)
    room = int(_font().getlength(word)) + 2 * _GAP + (_LINE if color else 0)
    if left + room > width:
      left, line = 0, line + 1
    placed.append((left + _GAP, line * _LINE + _GAP, word, color))
    left += room
  strip = Image.new("RGB", (width, (line + 1) * _LINE + 2 * _GAP), _PAPER)
  pen = ImageDraw.Draw(strip)
  for left, top, word, color in placed:
    if color:
      pen.rectangle((left, top + 2, left + 13, top + 15), color)
      left += _LINE
    pen.text((left, top), word, _INK, _font())
  return strip


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
  return ImageFont.load_default(_FONT_SIZE)


def _clip(text: str, width: int) -> str:
  """As much of a text as fits into some pixels."""
  shown, keep = text, len(text)
  while _font().getlength(shown) > width:
    keep -= 1
    shown = text[:keep] + "..."
  return shown
