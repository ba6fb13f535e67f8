"""Stages: what a prediction reaches that ignores the image."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from must_jax import config as config_lib
from must_jax.storage.path import Path

# Enough to know what is usual, few enough for memory. Importers write records
# in the order of a hash, so the first ones are any.
_MAX_LABELS = 1000


def floor(directory: Path, text: str) -> dict[str, float]:
  """Measures the constant prediction of a run that is not trained.

  It is `Field.constant` of the labels to learn from, at the size of the
  network input; data and metrics are those of the run's evaluation.

  Args:
    directory: of the stage.
    text: the run's config, of one task and one image set to learn from.

  Returns:
    {"dataset/task/metric": value}, as of the run.

  Raises:
    ValueError: no image has a label to learn from.
  """
  # These import TensorFlow, which has no place in the process that waits.
  from must_jax.input import sources
  from must_jax.train import runtime
  from must_jax.train.build import build_tasks
  from must_jax.train.evaluate import measure

  runtime.keep_tensorflow_off_accelerators()
  config = sources.resolve(config_lib.from_json(text))
  tasks = build_tasks(config)
  ((name, task),), (learned,) = tasks.items(), config.train_on
  # One constant fits inputs of one size.
  assert not sources.eval_geometry(config).varies_size
  quarantine = runtime.open_quarantine(directory)

  def labels() -> Iterator[dict[str, np.ndarray]]:
    for batch in sources.eval_batches(config, learned, quarantine):
      label = batch["labels"][name][task.measured]
      for i in np.flatnonzero(batch["valid"] & label["present"]):
        yield {key: array[i] for key, array in label.items()}

  found = itertools.islice(labels(), _MAX_LABELS)
  first = next(found, None)
  if first is None:
    raise ValueError(f"No image of {learned!r} has a label of {name!r}.")
  constant = task.fields[task.measured].constant(
    itertools.chain([first], found)
  )

  def predict(batch: Any) -> Iterator[tuple[np.ndarray, Any]]:
    count = len(batch["valid"])
    yield (
      np.arange(count),
      {name: {k: np.stack([v] * count) for k, v in constant.items()}},
    )

  result: dict[str, float] = {}
  for dataset in config.evaluate_on:
    batches = sources.eval_batches(config, dataset, quarantine)
    metrics = measure(predict, batches, tasks, lambda: False)
    assert metrics is not None  # nobody stops it
    result |= {f"{dataset}/{key}": value for key, value in metrics.items()}
  return result
