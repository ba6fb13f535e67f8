"""Evaluation: every example once, the last partial batch included."""

import pickle
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from must_jax.metrics.metric import Metric
from must_jax.tasks import Task
from must_jax.train import mesh as mesh_lib
from must_jax.train import processes
from must_jax.types import PyTree


def evaluate(
  predict: Callable[[PyTree, Any, Any], dict[str, dict[str, Any]]],
  variables: PyTree,
  batches: Iterable[dict[str, Any]],
  tasks: dict[str, Task],
  mesh: Mesh,
  stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
  """Metrics of every task, over all processes' examples.

  Args:
    predict: from `make_predict_step`, for these tasks.
    variables: of the model.
    batches: this process's part, from the data pipeline.
    tasks: tasks to evaluate.
    mesh: devices of all processes.
    stop: asked between batches; if true, the evaluation is abandoned.

  Returns:
    {"task/metric": value}; empty if abandoned.
  """
  metrics = {name: task.make_metrics() for name, task in tasks.items()}
  for batch in batches:
    if stop():
      return {}
    inputs = batch["image"], batch["content_size"]
    outputs = predict(variables, *mesh_lib.to_device(inputs, mesh))
    outputs = jax.tree.map(_local_rows, outputs)
    for name, metric in metrics.items():
      metric.update(outputs[name], batch["labels"][name], batch)
  return {
    f"{name}/{key}": value
    for name, metric in metrics.items()
    for key, value in _merge_processes(metric).compute().items()
  }


def _local_rows(x: jax.Array) -> np.ndarray:
  """This process's rows of a global array, in order."""
  shards = sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)
  return np.concatenate([np.asarray(s.data) for s in shards])


def _merge_processes(metric: Metric) -> Metric:
  """Adds up what the processes counted."""
  if jax.process_count() == 1:
    return metric
  merged: Metric | None = None
  for payload in processes.gather(pickle.dumps(metric)):
    # The bytes come from the run's own processes.
    other = pickle.loads(payload)
    if merged is None:
      merged = other
    else:
      merged.merge(other)
  assert merged is not None
  return merged
