"""What a model sees in a photo: arrays, results of COCO, pictures."""

import dataclasses
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from must_jax import pictures
from must_jax.tasks import Task
from must_jax.types import Labels


@dataclasses.dataclass(frozen=True)
class ClassTable:
  """The classes of a model's tasks; equal names are one class.

  Attributes:
    tasks: of the model.
  """

  tasks: Mapping[str, Task]

  @functools.cached_property
  def category_ids(self) -> dict[str, int]:
    """COCO's ids of the classes that objects have, from 1."""
    return {
      name: i
      for i, name in enumerate(
        _names([task for task in self._all if task.has_objects]), 1
      )
    }

  def colors(self, task: str) -> np.ndarray:
    """Colours of a task's classes, uint8 [K, 3]."""
    places = {name: i for i, name in enumerate(_names(self._all))}
    table = pictures.palette(len(places))
    return table[[places[name] for name in self.tasks[task].classes]]

  @property
  def _all(self) -> Sequence[Task]:
    return list(self.tasks.values())


def _names(tasks: Sequence[Task]) -> list[str]:
  return list(dict.fromkeys(name for task in tasks for name in task.classes))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TaskPrediction(Mapping[str, np.ndarray]):
  """What one task says of a photo: a mapping from names to arrays.

  Attributes:
    task: with `name` and `classes`.
    labels: {field of the task: its arrays, in the photo's pixels}.
    size: height and width of the photo.
    table: of all classes of the model.
    data: the photo, encoded.
  """

  task: Task
  labels: Labels
  size: tuple[int, int]
  table: ClassTable
  data: bytes

  @property
  def arrays(self) -> dict[str, np.ndarray]:
    """All arrays."""
    return {k: v for label in self.labels.values() for k, v in label.items()}

  @property
  def classes(self) -> tuple[str, ...]:
    """Names of the classes in order of their ids; none of maps of values."""
    return self.task.classes

  def __getitem__(self, name: str) -> np.ndarray:
    return self.arrays[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self.arrays)

  def __len__(self) -> int:
    return len(self.arrays)

  def __repr__(self) -> str:
    shapes = {name: list(array.shape) for name, array in self.items()}
    return f"{type(self).__name__}({self.task.name!r}, {shapes})"

  def at_least(self, min_score: float) -> "TaskPrediction":
    """What has a score of at least this; other pixels are unknown."""
    fields = self.task.fields
    labels = {
      name: fields[name].at_least(arrays, min_score)
      for name, arrays in self.labels.items()
    }
    task = self.task.with_min_score(min_score)
    return dataclasses.replace(self, labels=labels, task=task)

  def to_json(self, min_score: float | None = None) -> dict[str, Any]:
    """What it says in few words, as values of JSON: see `Field.to_json`.

    Args:
      min_score: threshold of scores, where there are any.

    Returns:
      What the task's field says; of several fields, by their names.
    """
    fields = self.task.fields
    if min_score is not None:
      labels = self.at_least(min_score).labels
    else:
      labels = self.labels
    told = {
      name: fields[name].to_json(arrays, self.classes, min_score)
      for name, arrays in labels.items()
    }
    return next(iter(told.values())) if len(told) == 1 else told

  def to_coco(
    self, image_id: int = 1, category_ids: Mapping[str, int] | None = None
  ) -> list[dict[str, Any]]:
    """Detected objects as COCO's results; [] of what detects none.

    Args:
      image_id: of the photo.
      category_ids: by name of the class; 1, 2, ... by default.

    Returns:
      {"image_id", "category_id", "bbox" (x, y, width, height), "area",
      "iscrowd", "score", "task"} of each.

    Raises:
      ValueError: a class has no category.
    """
    known = self.table.category_ids if category_ids is None else category_ids
    found: list[dict[str, Any]] = []
    for name, arrays in self.labels.items():
      field = self.task.fields[name]
      if not field.has_objects:
        continue
      if missing := [c for c in self.classes if c not in known]:
        raise ValueError(
          f"category_ids has no {missing}; expected an id for each class of"
          f" {self.task.name!r}: {list(self.classes)}."
        )
      ids = [known[c] for c in self.classes]
      found += [
        {"image_id": image_id, **entry, "task": self.task.name}
        for entry in field.to_coco(arrays, ids)
      ]
    return found

  def draw(
    self, min_score: float | None = None, max_side: int = 0
  ) -> np.ndarray:
    """The photo with what was found, names, scores, and a legend below.

    Args:
      min_score: threshold of scores; by default the task's own.
      max_side: larger photos are reduced to it; 0 for their own size.

    Returns:
      uint8 [h, w, 3]; the photo is its upper left part.
    """
    photo = decode(self.data, max_side)
    scale = np.divide(photo.shape[:2], self.size)
    arrays: dict[str, np.ndarray] = {}
    for name, label in self.labels.items():
      arrays |= self.task.fields[name].scaled(label, scale)
    task = self.task
    if min_score is not None:
      task = task.with_min_score(min_score)
    colors = self.table.colors(task.name)
    picture = task.illustrate(photo, arrays, colors)
    return pictures.add_legend(picture, task.name, task.legend(arrays, colors))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PhotoPrediction(Mapping[str, TaskPrediction]):
  """What a model says of a photo: a mapping from names of tasks.

  Attributes:
    tasks: {name: its prediction}.
    size: height and width of the photo.
    data: the photo as the model got it, upright; a JPEG or PNG.
  """

  tasks: dict[str, TaskPrediction]
  size: tuple[int, int]
  data: bytes

  @property
  def image(self) -> np.ndarray:
    """The photo, uint8 [h, w, 3]."""
    return decode(self.data)

  def __getitem__(self, name: str) -> TaskPrediction:
    return self.tasks[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self.tasks)

  def __len__(self) -> int:
    return len(self.tasks)

  def __repr__(self) -> str:
    return (
      f"{type(self).__name__}({self.size[0]} x {self.size[1]} pixels,"
      f" {list(self.tasks.values())})"
    )

  def at_least(self, min_score: float) -> "PhotoPrediction":
    """Of each task what has a score of at least this."""
    tasks = {name: found.at_least(min_score) for name, found in self.items()}
    return dataclasses.replace(self, tasks=tasks)

  def to_json(self, min_score: float | None = None) -> dict[str, Any]:
    """{task: `TaskPrediction.to_json`}."""
    return {name: found.to_json(min_score) for name, found in self.items()}

  def to_coco(
    self, image_id: int = 1, category_ids: Mapping[str, int] | None = None
  ) -> list[dict[str, Any]]:
    """Objects of all tasks, see `TaskPrediction.to_coco`."""
    return [
      entry
      for found in self.values()
      for entry in found.to_coco(image_id, category_ids)
    ]

  def draw(
    self, min_score: float | None = None, max_side: int = 0
  ) -> np.ndarray:
    """The pictures of all tasks side by side, see `TaskPrediction.draw`.

    Args:
      min_score: threshold of scores; by default each task's own.
      max_side: larger photos are reduced to it; 0 for their own size.

    Returns:
      uint8 [h, w, 3].
    """
    drawn = [found.draw(min_score, max_side) for found in self.values()]
    cell = np.max([picture.shape[:2] for picture in drawn], axis=0)
    return pictures.gallery([drawn], (int(cell[0]), int(cell[1])))


def decode(data: bytes, max_side: int = 0) -> np.ndarray:
  """The pixels of a photo, uint8 [h, w, 3].

  Args:
    data: JPEG or PNG.
    max_side: larger ones are reduced to it; 0 for none.
  """
  from PIL import Image

  with Image.open(io.BytesIO(data)) as file:
    photo = file.convert("RGB")
  if max_side:
    photo.thumbnail((max_side, max_side))
  return np.asarray(photo)
