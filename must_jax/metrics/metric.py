"""What a metric is: it takes batches, merges with its like, gives numbers."""

import abc
from typing import Any, ClassVar

import numpy as np


class Metric(abc.ABC):
  """A streaming metric on the host.

  Its result depends neither on the order of batches and merges nor on how the
  examples were spread over hosts. It pickles, so that hosts can exchange it.
  No result is ever nan; each metric says what stands for "nothing to measure".

  Attributes:
    headline: the name, in `compute`'s result, of the number to compare runs by.
    errors: how names of numbers end that are better when smaller.
  """

  headline: str
  errors: ClassVar[tuple[str, ...]] = ()

  @abc.abstractmethod
  def update(
    self,
    prediction: dict[str, np.ndarray],
    label: dict[str, np.ndarray],
    batch: dict,
  ) -> None:
    """Takes in one batch.

    Args:
      prediction: the task's predictions, arrays with leading dimension B.
      label: arrays of the label field that is measured, whatever it is called;
        examples without a label are skipped.
      batch: the batch (`must_jax.types`); the filler of a last partial batch
        is skipped.

    Raises:
      ValueError: maps of predictions and labels differ in size.
    """

  @abc.abstractmethod
  def merge(self, other: "Metric") -> None:
    """Takes in what another metric of the same kind has seen."""

  @abc.abstractmethod
  def compute(self) -> dict[str, float]:
    """The numbers by name."""


def counted(label: dict[str, Any], batch: dict) -> np.ndarray:
  """Indices [n] of the examples that have a label and are no filler."""
  return np.flatnonzero(
    np.asarray(batch["valid"]) & np.asarray(label["present"])
  )
