"""Teachers: what labels images (paper 3.1).

Any object that meets `Teacher` can label, whatever it is made of; see
docs/your-own-teacher.md. Checkpoints are teachers already.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from must_jax import config as config_lib
from must_jax.tasks import Task
from must_jax.train import checkpoint
from must_jax.train.load import LoadedModel
from must_jax.types import Labels


class Teacher(Protocol):
  """Labels images of any size."""

  @property
  def fields(self) -> Mapping[str, Mapping[str, Any]]:
    """Label fields that it gives, as the index of an image set lists them.

    {name: {"kind": "Boxes", "classes": [...]}}: kinds are those of
    `must_jax.fields`; those of classes need "classes", a `ValueMap` may have a
    "unit".
    """

  @property
  def description(self) -> Mapping[str, Any]:
    """JSON for the manifest.

    "digest" identifies the teacher: it must change whenever the labels may.
    With "batch_size" and "lr", of its training, the student can weigh its task
    by the paper's rule.
    """

  def __call__(self, images: Sequence[np.ndarray]) -> Sequence[Labels]:
    """Labels a batch.

    Args:
      images: uint8 [h, w, 3] RGB each, in their stored size.

    Returns:
      For each image its fields in the form they are stored: the arrays that
      `must_jax.fields` says of each kind, pseudo labels with their scores. Maps
      cover the whole image at any resolution.
    """


def describe_fields(task: Task) -> dict[str, dict[str, Any]]:
  """The label fields a task writes, as an index or manifest lists them."""
  return {
    name: field.describe(task.classes) for name, field in task.fields.items()
  }


def describe_teacher(model: LoadedModel, task: Task) -> dict[str, Any]:
  """What a manifest says of a checkpoint.

  `batch_size` and `lr` give the student's loss weights (paper 3.2); how a
  published network was trained is not known.
  """
  meta = checkpoint.read_meta(model.path)
  described = {
    "digest": checkpoint.fingerprint(model.path),
    "task": task.name,
    "config": json.loads(config_lib.to_json(model.config)),
    # Of a folder for a hub, which knows what its data were.
    **({"lineage": meta["lineage"]} if "lineage" in meta else {}),
  }
  if origin := meta.get("origin"):
    return described | {"origin": origin}
  return described | {
    "batch_size": model.config.data.batch_size,
    "lr": model.config.optimizer.lr,
  }


def choose_task(model: LoadedModel, name: str) -> Task:
  """The task of a teacher that labels.

  Args:
    model: the teacher.
    name: of the task; empty if the model has one only.

  Raises:
    ValueError: the model has no such task, or several and none is named.
  """
  if not name and len(model.tasks) == 1:
    return next(iter(model.tasks.values()))
  if name not in model.tasks:
    raise ValueError(
      f"label.task is {name!r}; the teacher {model.path} has the tasks"
      f" {sorted(model.tasks)}. Choose one: --config.label.task=..."
    )
  return model.tasks[name]
