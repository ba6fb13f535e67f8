"""A contact sheet of an image set: random images, each beside its labels."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from must_jax import pictures
from must_jax.fields import Description
from must_jax.input.batches import train_batches
from must_jax.input.geometry import AugmentOptions
from must_jax.input.loader import ReadOptions
from must_jax.input.origins import SUPERVISED, Source
from must_jax.pictures import Panel
from must_jax.storage.sets import ImageSet
from must_jax.tasks import TASKS, Task, make_task, task_options

if TYPE_CHECKING:
  from PIL import Image


def find_task(name: str, description: Description) -> Task | None:
  """The task that draws a field, if there is one for its name and kind.

  Args:
    name: of the field.
    description: of the field, as in an index.
  """
  wanted = {"unit": description.get("unit"), "min_score": 0.0}
  for kind in TASKS:
    known = task_options(kind)
    options = {k: v for k, v in wanted.items() if k in known and v is not None}
    task = make_task(kind, name, tuple(description.get("classes", ())), options)
    if type(task.fields.get(name)).__name__ == description["kind"]:
      return task
  return None


def draw(images: ImageSet, count: int, seed: int = 0) -> "Image.Image":
  """A contact sheet: random images, each beside all labels that can be drawn.

  What looked wrong when they were imported is written above.

  Args:
    images: the split.
    count: images that are chosen; broken ones are left out.
    seed: of the choice.
  """
  tasks = {
    name: task
    for name, description in images.fields.items()
    if (task := find_task(name, description))
  }
  seen: dict[str, set[int]] = {name: set() for name in tasks}
  count = min(count, images.num_records)
  tiles = list(_tiles(images, tasks, count, seed, seen))
  title = (
    f"{images.name} {images.split}: {len(tiles)} of {images.num_records:,}"
    f" images (seed {seed})"
  )
  legends = {}
  for name, task in tasks.items():
    colors = pictures.palette(task.num_classes)
    if seen[name]:
      legends[name] = {
        task.classes[k]: tuple(colors[k]) for k in sorted(seen[name])
      }
  # Sets of earlier versions have none.
  warnings = images.index["splits"][images.split].get("warnings", ())
  return pictures.contact_sheet(title, tiles, legends, warnings)


def _tiles(
  images: ImageSet,
  tasks: Mapping[str, Task],
  count: int,
  seed: int,
  seen: Mapping[str, set[int]],
) -> Iterator[list[Panel]]:
  """Panels of each image: itself and one for each field.

  Args:
    images: the split.
    tasks: {field: what draws it}.
    count: of images.
    seed: of their choice.
    seen: {field: classes that occurred}, to be filled.
  """
  size = pictures.SIDE, pictures.SIDE
  source = Source(
    str(images.directory),
    images.split,
    dict.fromkeys(tasks, SUPERVISED),
  )
  batches = train_batches(
    [source],
    {name: task.fields for name, task in tasks.items()},
    batch_size=count,
    image_size=size,
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
      return array[:h, :w] if array.shape[:2] == size else array

    image = content(batch["image"][i])
    tile = [Panel(image, batch["key"][i].decode(errors="replace"))]
    for name, task in tasks.items():
      arrays = {
        k: content(v[i]) for k, v in batch["labels"][name][name].items()
      }
      if not arrays["present"]:
        tile.append(Panel(np.full_like(image, pictures.BLANK), f"no {name}"))
        continue
      field = task.fields[name]
      seen[name].update(np.flatnonzero(field.amounts(arrays)).tolist())
      caption = field.caption(arrays, task.classes)
      tile.append(Panel(task.draw(image, arrays), caption))
    yield tile
