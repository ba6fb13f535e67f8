"""The tasks, by kind. To add one, add its file and its line here."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from must_jax.tasks.classification import Classification
from must_jax.tasks.contrastive import Contrastive
from must_jax.tasks.depth import Depth
from must_jax.tasks.detection import Detection
from must_jax.tasks.normals import Normals
from must_jax.tasks.segmentation import Segmentation
from must_jax.tasks.task import HeadOptions, Task

TASKS: dict[str, type[Task]] = {
  "classification": Classification,
  "contrastive": Contrastive,
  "depth": Depth,
  "detection": Detection,
  "normals": Normals,
  "segmentation": Segmentation,
}

__all__ = [
  "TASKS",
  "HeadOptions",
  "Task",
  "make_task",
  "task_of_field",
  "task_options",
]


def task_options(kind: str) -> dict[str, Any]:
  """Every option of a kind of task with its default.

  Raises:
    ValueError: no such kind.
  """
  if kind not in TASKS:
    raise ValueError(
      f"Kind of task is {kind!r}; expected one of {sorted(TASKS)}. To add a"
      " kind, register it in must_jax.tasks.TASKS."
    )
  return {
    field.name: field.default
    for field in dataclasses.fields(TASKS[kind])
    if field.name not in ("name", "classes")
  }


def make_task(
  kind: str, name: str, classes: tuple[str, ...], options: dict[str, Any]
) -> Task:
  """A task from its config.

  Args:
    kind: key of `TASKS`.
    name: name of the task, names its head.
    classes: class names in order of their ids.
    options: values for the kind's own options.

  Raises:
    ValueError: no such kind, or an option the kind does not have.
  """
  known = task_options(kind)
  unknown = sorted(set(options) - set(known))
  if unknown:
    raise ValueError(
      f"Task {name!r} of kind {kind!r} has no option {unknown}; it has"
      f" {sorted(known)}."
    )
  return TASKS[kind](name=name, classes=tuple(classes), **options)


def task_of_field(name: str, description: Mapping[str, Any]) -> Task:
  """The task that reads a label field, whatever made the labels.

  Args:
    name: of the field.
    description: of it, as an index or manifest lists it.

  Raises:
    ValueError: no task reads such a field alone.
  """
  readers = {}
  for kind in TASKS:
    # What a field says of itself may be an option of the task, as a unit.
    known = task_options(kind)
    options = {k: v for k, v in description.items() if k in known}
    classes = tuple(description.get("classes", ()))
    try:
      task = make_task(kind, kind, classes, options)
    except ValueError:  # the task has another option of that name
      continue
    described = {n: f.describe(classes) for n, f in task.fields.items()}
    if len(described) == 1:
      ((field, own),) = described.items()
      if field == name and own.items() >= description.items():
        return task
      readers[field] = own["kind"]
  raise ValueError(
    f"No task reads the field {name!r} of kind {description['kind']};"
    f" expected one of {readers}."
  )
