"""Teachers: what labels images (paper 3.1).

Any object that meets `Teacher` can label, whatever it is made of; see
docs/your-own-teacher.md. Checkpoints are teachers already.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from must_jax import config as config_lib
from must_jax.input.preprocess import RULES, prepare
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


class PublishedTeacher:
  """A checkpoint whose network takes images resized by a published rule.

  Images of a batch that come to the same size run together.
  """

  def __init__(self, model: LoadedModel, task: Task, map_stride: int = 0):
    """Makes a teacher of one task of a model.

    Args:
      model: with a `config.data.resize` out of `input.preprocess.RULES`.
      task: one of the model's.
      map_stride: pixels that the network sees for each of a map; by default
        maps have the head's own size.
    """
    self.fields = describe_fields(task)
    self.description = describe_teacher(model, task)
    self._task = task
    self._rule = RULES[model.config.data.resize]
    self._image_size = model.image_size
    # Colour that is zero for the network.
    self._fill = 255 * np.array(model.config.model.image_mean)
    self._predict = model.predictor((task.name,), map_stride)

  def __call__(self, images: Sequence[np.ndarray]) -> Sequence[Labels]:
    """See `Teacher`."""
    prepared = [
      prepare(image, self._rule, self._image_size, self._fill)
      for image in images
    ]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, (canvas, _) in enumerate(prepared):
      groups.setdefault(canvas.shape, []).append(i)
    labels: list[Labels] = [{}] * len(images)
    for shape, members in groups.items():
      # Batches of few sizes only, since each is compiled.
      count = 1 << (len(members) - 1).bit_length()
      count = -(-count // jax.local_device_count()) * jax.local_device_count()
      rows = [*members, *[members[0]] * (count - len(members))]
      contents = np.array([prepared[i][1] for i in rows], np.float32)
      predictions = self._predict(
        np.stack([prepared[i][0] for i in rows]), contents
      )[self._task.name]
      for row, i in enumerate(members):
        labels[i] = self._task.to_labels(
          {name: array[row] for name, array in predictions.items()},
          contents[row],
          (shape[0], shape[1]),
        )
    return labels


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
  described = {
    "digest": checkpoint.fingerprint(model.path),
    "task": task.name,
    "config": json.loads(config_lib.to_json(model.config)),
  }
  if origin := checkpoint.read_origin(model.path):
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
