"""What a task is: everything the rest of the system asks of it.

Teacher training, labelling, student training, evaluation and reports go
through this interface; nothing outside `tasks/` asks which task it has.
"""

import abc
import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from must_jax import pictures
from must_jax.fields import Field
from must_jax.fields.field import Arrays, NamedScores
from must_jax.metrics.metric import Metric
from must_jax.ranges import Interval, check
from must_jax.types import Array, Labels, Mean


@dataclasses.dataclass(frozen=True)
class HeadOptions:
  """What all heads of one model share (`config.model`)."""

  channels: int
  min_level: int
  max_level: int
  dtype: Any
  norm_momentum: float
  norm_epsilon: float


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
  """One task of a model. Subclasses add their options as fields.

  Attributes:
    name: name of the task in the config; names the head and its parameters.
    classes: class names in order of their ids; empty for maps of values.
  """

  name: str
  classes: tuple[str, ...] = ()

  # Views of each image that the task compares; labels are those of the first.
  views: ClassVar[int] = 1
  # Options of the metric alone: whoever evaluates a checkpoint chooses them.
  measurement: ClassVar[tuple[str, ...]] = ()
  # Options of predicting alone. Nothing that is learned depends on either, so a
  # run that goes on may change them.
  post_processing: ClassVar[tuple[str, ...]] = ()
  # Options that are a number, or one for each class by its name, "*" for all
  # others.
  by_class: ClassVar[tuple[str, ...]] = ()
  # What model hubs call it, "" if they have no name for it.
  hub_task: ClassVar[str] = ""
  # Which numbers options take; others need only be finite.
  ranges: ClassVar[Mapping[str, Interval]] = {}
  # Which words options take; others take any.
  choices: ClassVar[Mapping[str, Collection[str]]] = {}

  def __post_init__(self) -> None:
    """Checks the options.

    Raises:
      ValueError: one has a value that it does not take.
    """
    check(vars(self), self.ranges, f"Task {self.name!r}: ")
    for option, allowed in self.choices.items():
      if (value := getattr(self, option)) not in allowed:
        raise ValueError(
          f"Task {self.name!r}: {option} is {value!r}; expected one of"
          f" {sorted(allowed)}."
        )
    for option in self.by_class:
      if isinstance(value := getattr(self, option), list | tuple):
        raise ValueError(
          f"Task {self.name!r}: {option} is {value!r}; expected one number, or"
          " {class: number}."
        )

  @property
  def num_classes(self) -> int:
    """Number of classes, 0 for maps of values."""
    return len(self.classes)

  @property
  @abc.abstractmethod
  def fields(self) -> dict[str, Field]:
    """The label fields the task reads and writes, by name on disk.

    A task without any learns from every image.
    """

  @property
  def has_objects(self) -> bool:
    """Whether it finds objects, as COCO's annotations."""
    return any(field.has_objects for field in self.fields.values())

  @property
  def measured(self) -> str:
    """Name of the field that the metric compares predictions with.

    Raises:
      ValueError: there are several, and the task does not say which.
    """
    if len(self.fields) != 1:
      raise ValueError(
        f"Task {self.name!r} has the label fields {sorted(self.fields)}; with"
        " other than one, override `measured` to name the one that is"
        " evaluated."
      )
    return next(iter(self.fields))

  @abc.abstractmethod
  def make_head(self, options: HeadOptions) -> nn.Module:
    """The task's own head: `head(features, labels, train) -> outputs`."""

  @abc.abstractmethod
  def loss(
    self, outputs: dict[str, Array], batch: dict[str, Any]
  ) -> dict[str, Mean]:
    """The parts of the task's loss; the task's loss is the sum of their means.

    Args:
      outputs: what the task's head returned in training.
      batch: the whole batch (`must_jax.types`); labels of an example count
        only where they are `present`.
    """

  @abc.abstractmethod
  def predict(
    self,
    outputs: dict[str, Array],
    map_size: tuple[int, int] | None = None,
  ) -> dict[str, Array]:
    """Fixed-shape predictions, with the array names of the task's labels.

    Args:
      outputs: what the head returned with `train=False`.
      map_size: (h, w) to which per-pixel predictions are resized; by default
        they keep the head's resolution.
    """

  @abc.abstractmethod
  def to_labels(
    self,
    prediction: dict[str, np.ndarray],
    content_size: np.ndarray,
    image_size: tuple[int, int],
  ) -> Labels:
    """One example's prediction as label fields, in the form they are stored.

    Args:
      prediction: `predict`'s arrays of one example.
      content_size: float32 [2], height and width of the image content.
      image_size: (H, W) of the network input.

    Raises:
      ValueError: the task has no labels.
    """

  @abc.abstractmethod
  def make_metrics(self) -> Metric:
    """A fresh metric for evaluating `predict` against labels.

    Raises:
      ValueError: the task has no labels to measure with.
    """

  @abc.abstractmethod
  def draw(
    self, image: np.ndarray, arrays: dict[str, np.ndarray]
  ) -> np.ndarray:
    """A picture uint8 [H, W, 3] of one example's labels or predictions.

    Args:
      image: uint8 [H, W, 3].
      arrays: label or prediction arrays of one example.
    """

  def illustrate(
    self, image: np.ndarray, arrays: Arrays, colors: np.ndarray
  ) -> np.ndarray:
    """A picture uint8 [H, W, 3] of a prediction, for people.

    By default that of `draw`; others write on it what there is room for, and
    take their colours from `colors`.

    Args:
      image: uint8 [H, W, 3].
      arrays: of a photo, in its pixels (`Field.at_size`).
      colors: uint8 [K, 3] of the classes.
    """
    del colors
    return self.draw(image, dict(arrays))

  def legend(self, arrays: Arrays, colors: np.ndarray) -> list[pictures.Word]:
    """What is written below the picture of `illustrate`.

    Args:
      arrays: as `illustrate` takes them.
      colors: uint8 [K, 3], see there.

    Returns:
      Words, each with its colour or None.
    """
    del colors
    return [
      (field.caption(arrays, self.classes), None)
      for field in self.fields.values()
    ]

  def with_min_score(self, min_score: NamedScores) -> Self:
    """The same task with another threshold of scores, if it has one."""
    if "min_score" not in {option.name for option in dataclasses.fields(self)}:
      return self
    return dataclasses.replace(self, min_score=min_score)  # type: ignore[call-arg]


def crop_to_content(
  array: np.ndarray,
  content_size: np.ndarray,
  image_size: tuple[int, int],
  *,
  nearest: bool,
) -> np.ndarray:
  """Resamples a map so that it covers the image content and nothing else.

  The content rarely ends on a cell of the map; cutting there would shift the
  labels by part of a cell, so the map is sampled anew on a grid that spans the
  content exactly.

  Args:
    array: [h, w, ...] map over the whole network input.
    content_size: float32 [2], height and width of the content in pixels.
    image_size: (H, W) of the network input in pixels.
    nearest: sample the nearest cell, else bilinearly.

  Returns:
    [h', w', ...] with about the map's resolution.
  """
  for axis in (0, 1):
    cells = array.shape[axis]
    extent = float(content_size[axis]) * cells / image_size[axis]
    if extent == cells:
      continue  # the content fills the input
    size = max(1, round(extent))
    centres = (np.arange(size) + 0.5) * extent / size - 0.5
    if nearest:
      index = np.clip(np.rint(centres), 0, cells - 1).astype(int)
      array = np.take(array, index, axis)
      continue
    low = np.clip(np.floor(centres), 0, cells - 1).astype(int)
    high = np.minimum(low + 1, cells - 1)
    fraction = np.clip(centres - low, 0, 1).astype(array.dtype)
    shape = [1] * array.ndim
    shape[axis] = size
    fraction = fraction.reshape(shape)
    array = (
      np.take(array, low, axis) * (1 - fraction)
      + np.take(array, high, axis) * fraction
    )
  return array


def sum_of_means(parts: dict[str, Mean]) -> Array:
  """The task's scalar loss."""
  return jnp.sum(jnp.stack([part.compute() for part in parts.values()]))
