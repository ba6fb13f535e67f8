"""Evaluation: every example once, the last partial batch included."""

import functools
import itertools
import json
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from must_jax.config import PREEMPTED, differences
from must_jax.input import sources
from must_jax.input.quarantine import Quarantine
from must_jax.input.union import Union
from must_jax.metrics.metric import Metric
from must_jax.models.must import MustModel
from must_jax.storage.path import Path, PathLike, make_directory, publish_json
from must_jax.storage.sets import content_digest, read_index
from must_jax.tasks import TASKS, Task
from must_jax.train import checkpoint, runtime
from must_jax.train import mesh as mesh_lib
from must_jax.train.build import build_model, build_tasks
from must_jax.train.inference import Batch, Outputs, Predictor, take
from must_jax.train.runtime import Preemption
from must_jax.types import PyTree

RESULT_FILE, EVALUATION_FILE = "result.json", "evaluation.json"


def evaluate_checkpoint(
  config: ConfigDict, workdir: PathLike
) -> dict[str, float]:
  """The stage `evaluate`: a checkpoint on `config.evaluate_on`.

  Args:
    config: says where labels are, on which devices and in which batches it is
      measured, and how (`Task.measurement`); all else is the checkpoint's.
    workdir: gets `result.json`, `evaluation.json` (of what, on what) and
      `quarantine/`. Its latest checkpoint is evaluated unless
      `config.evaluate_from` names one.

  Returns:
    {"dataset/task/metric": value}.

  Raises:
    FileNotFoundError: there is no checkpoint.
    CorruptCheckpointError: it is not what was saved.
    ValueError: the config does not fit the checkpoint, the data or the devices.
    SystemExit: with code 42 on SIGTERM, Ctrl-C or a notice of preemption.
  """
  step_dir = checkpoint.find(config.evaluate_from or workdir)
  config = _of_checkpoint(config, checkpoint.read_config(step_dir), step_dir)
  tasks = build_tasks(config)
  mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp)
  quarantine = runtime.open_quarantine(workdir)
  evaluator = Evaluator(
    config, build_model(config, tasks), tasks, mesh, quarantine
  )
  logging.info("Evaluating %s", step_dir)
  variables = jax.device_put(
    checkpoint.load_variables(step_dir), mesh_lib.replicated(mesh)
  )
  with Preemption() as preemption:
    metrics = evaluator(variables, lambda _: preemption.reached())
  if metrics is None:
    sys.exit(PREEMPTED)
  logging.info("Result\n%s", runtime.metric_table(metrics))
  write_result(workdir, metrics)
  _write_evaluation(workdir, config, step_dir, metrics)
  return metrics


def write_result(workdir: PathLike, metrics: Mapping[str, float]) -> None:
  """Writes `result.json`, by the first process."""
  if jax.process_index() == 0:
    make_directory(workdir)
    publish_json(Path(workdir) / RESULT_FILE, metrics)


def _write_evaluation(
  workdir: PathLike,
  config: ConfigDict,
  step_dir: Path,
  metrics: Mapping[str, float],
) -> None:
  """Writes `evaluation.json`, by the first process: what was measured."""
  if jax.process_index():
    return
  measured = {}
  for name in config.evaluate_on:
    entry = config.datasets[name]
    index = read_index(entry.dir)
    listed = index["splits"][entry.split]
    measured[name] = {
      "name": index["name"],
      "split": entry.split,
      "licence": index["licence"],
      "num_records": listed["num_records"],
      "digest": content_digest(listed["shards"]),
    }
  record = {
    "checkpoint": str(step_dir),
    "digest": checkpoint.fingerprint(step_dir),
    "datasets": measured,
    "metrics": dict(metrics),
  }
  publish_json(Path(workdir) / EVALUATION_FILE, record)


def _of_checkpoint(
  config: ConfigDict, own: ConfigDict, step_dir: Path
) -> ConfigDict:
  """The checkpoint's config with what `config` says of the evaluation.

  Raises:
    ValueError: a task is measured that the checkpoint does not have, or labels
      have classes that it does not know.
  """
  merged = own.copy_and_resolve_references()
  for key in ("stage", "datasets", "evaluate_on", "mesh"):
    merged[key] = config[key]
  for key in ("eval_batch_size", "num_threads", "max_bad"):
    merged.data[key] = config.data[key]
  known = ", ".join(f"{name} ({e.kind})" for name, e in own.tasks.items())
  for name, entry in config.tasks.items():
    labels = {k: v for k, v in entry.labels.items() if k in config.evaluate_on}
    if labels and (name not in own.tasks or own.tasks[name].kind != entry.kind):
      raise ValueError(
        f"Task {name!r} ({entry.kind}) is to be measured on"
        f" {', '.join(labels)}; {step_dir} has the tasks {known}. Name the"
        " config's tasks as the checkpoint's."
      )
  for name, entry in merged.tasks.items():
    given = config.tasks.get(name, entry)
    entry.labels = ConfigDict(
      {k: given.labels[k] for k in config.evaluate_on if k in given.labels},
      convert_dict=False,
    )
    for option in TASKS[entry.kind].measurement:
      entry[option] = given[option]
  if not any(entry.labels for entry in merged.tasks.values()):
    raise ValueError(
      f"evaluate_on is {tuple(config.evaluate_on)}, where no task of"
      f" {step_dir} has labels; it has the tasks {known}. Set"
      " config.tasks.NAME.labels, and evaluate_on."
    )
  _warn_of_differences(config, merged, step_dir)
  sources.check_classes(merged, str(step_dir))
  return merged


def _warn_of_differences(
  config: ConfigDict, merged: ConfigDict, step_dir: Path
) -> None:
  """Names what the config says otherwise of what the checkpoint decides."""
  given, taken = (
    {
      "model": json.loads(c.model.to_json_best_effort()),
      "image_size": list(c.data.image_size),
      "eval_resize": c.data.eval_resize,
      "tasks": {
        name: json.loads(c.tasks[name].to_json_best_effort())
        | {"labels": None, "weight": None}
        | ({} if config.tasks[name].classes else {"classes": None})
        for name in config.tasks
        if name in merged.tasks
      },
    }
    for c in (config, merged)
  )
  if lines := differences(given, taken):
    logging.warning(
      "The config is not that of %s, which decides (config, checkpoint): %s",
      step_dir,
      "; ".join(lines),
    )


class Evaluator:
  """Evaluates a model on every dataset of `config.evaluate_on`.

  Attributes:
    pictures: {"dataset/task": uint8 [N, H, W, 3]} of the latest evaluation: the
      first images, what is true, and what was predicted, side by side.
  """

  def __init__(
    self,
    config: ConfigDict,
    model: MustModel,
    tasks: dict[str, Task],
    mesh: Mesh,
    quarantine: Quarantine,
    num_pictures: int = 0,
  ):
    """Opens the datasets and prepares the steps; nothing is compiled yet.

    Args:
      config: of the run, with class names filled in.
      model: with a head for each task.
      tasks: of the model. Each dataset is evaluated on those that it has
        labels for.
      mesh: devices of all processes.
      quarantine: gets the records that cannot be used.
      num_pictures: images of each dataset that are drawn, by the first process.

    Raises:
      ValueError: the devices cannot share a batch, a dataset cannot be read,
        or a task does not say what it is measured on.
    """
    self._config, self._mesh, self._quarantine = config, mesh, quarantine
    self.pictures: dict[str, np.ndarray] = {}
    self._num_pictures = 0 if jax.process_index() else num_pictures
    self._steps: dict[str, tuple[dict[str, Task], Predictor]] = {}
    self._data: dict[str, Union] = {}
    for dataset in config.evaluate_on:
      names = sources.tasks_of(config, dataset)
      chosen = {name: tasks[name] for name in names}
      for task in chosen.values():
        assert task.measured in task.fields  # or says so before training
      self._data[dataset] = sources.eval_union(config, dataset)
      predict = Predictor(model, chosen, mesh, map_stride=1)
      self._steps[dataset] = chosen, predict
    if self._steps:
      if mesh.is_multi_process and sources.eval_geometry(config).varies_size:
        raise ValueError(
          f"data.eval_resize is {config.data.eval_resize!r}, which gives images"
          " of many sizes; several processes cannot predict them together."
          " Choose 'pad', 'stretch' or 'center_crop', or leave evaluate_on"
          " empty and evaluate on one machine: --config.stage=evaluate."
        )
      mesh_lib.check_batch_size(
        "data.eval_batch_size", config.data.eval_batch_size, mesh
      )

  def metric_names(self) -> dict[str, bool]:
    """Names of what a call returns, and whether a smaller number is better.

    Those by class are not among them, since they follow from the labels.
    """
    names = {}
    for dataset, (tasks, _) in self._steps.items():
      for name, task in tasks.items():
        metric = task.make_metrics()
        for key in metric.compute():
          is_error = key.endswith(metric.errors) if metric.errors else False
          names[f"{dataset}/{name}/{key}"] = is_error
    return names

  def __call__(
    self, variables: PyTree, stop: Callable[[int], bool] = lambda _: False
  ) -> dict[str, float] | None:
    """Metrics on all datasets; {} if there are none to evaluate on.

    Args:
      variables: of the model.
      stop: asked before each batch, with its number from 1, counted over the
        datasets; if true, the evaluation is abandoned.

    Returns:
      {"dataset/task/metric": value}; None if abandoned.
    """
    numbers = itertools.count(1)
    life = runtime.SignOfLife()
    results: dict[str, float] = {}

    def asks() -> bool:
      number = next(numbers)
      life.say("Evaluating: batch %d.", number)
      return stop(number)

    for dataset, (tasks, predict) in self._steps.items():
      metrics = measure(
        functools.partial(predict, variables),
        sources.eval_batches(
          self._config, dataset, self._quarantine, self._data[dataset]
        ),
        tasks,
        asks,
        functools.partial(self._draw, dataset, tasks)
        if self._num_pictures
        else None,
      )
      if metrics is None:
        return None
      results |= {f"{dataset}/{key}": value for key, value in metrics.items()}
    return results

  def _draw(
    self,
    dataset: str,
    tasks: dict[str, Task],
    batch: Batch,
    labels: Outputs,
    outputs: Outputs,
  ) -> None:
    """Draws the first images of a dataset."""
    shown = np.flatnonzero(batch["valid"])[: self._num_pictures]
    images = np.clip(batch["image"][shown], 0, 255).astype(np.uint8)
    for name, task in tasks.items() if len(shown) else ():
      drawn = [
        [
          image,
          *(task.draw(image, take(a[name], i)) for a in (labels, outputs)),
        ]
        for i, image in zip(shown.tolist(), images, strict=True)
      ]
      self.pictures[f"{dataset}/{name}"] = np.stack(
        [np.concatenate(row, 1) for row in drawn]
      )


def measure(
  predict: Callable[[Batch], Iterable[tuple[np.ndarray, Outputs]]],
  batches: Iterable[dict[str, Any]],
  tasks: dict[str, Task],
  stop: Callable[[], bool],
  look: Callable[[Batch, Outputs, Outputs], None] | None = None,
) -> dict[str, float] | None:
  """Metrics of every task on one dataset, over all processes' examples.

  Args:
    predict: rows of a batch and what is predicted of them, for these tasks.
    batches: this process's part of the dataset.
    tasks: tasks to evaluate.
    stop: asked before each batch; if true, the evaluation is abandoned.
    look: gets the first batch, labels by task, and predictions.

  Returns:
    {"task/metric": value}; None if abandoned.
  """
  metrics = {name: task.make_metrics() for name, task in tasks.items()}
  for batch in batches:
    if stop():
      return None
    for rows, outputs in predict(batch):
      group = batch if len(rows) == len(batch["valid"]) else take(batch, rows)
      canvas = tuple(group["placement"]["canvas"][0].tolist())
      labels = {}
      for name, metric in metrics.items():
        measured = tasks[name].measured
        shapes = tasks[name].fields[measured].batch_arrays(canvas)
        labels[name] = _unpadded(group["labels"][name][measured], shapes)
        metric.update(outputs[name], labels[name], group)
      if look is not None:
        image = group["image"][:, : canvas[0], : canvas[1]]
        look(group | {"image": image}, labels, outputs)
        look = None
  return {
    f"{name}/{key}": value
    for name, metric in metrics.items()
    for key, value in _merge_processes(metric).compute().items()
  }


def _unpadded(
  label: dict[str, np.ndarray], shapes: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, np.ndarray]:
  """Labels without what larger images of their batch have made of them."""
  return label | {
    name: label[name][(slice(None), *map(slice, x.shape))]
    for name, x in shapes.items()
  }


def _merge_processes(metric: Metric) -> Metric:
  """Adds up what the processes counted."""
  if jax.process_count() == 1:
    return metric
  merged: Metric | None = None
  for payload in runtime.gather(pickle.dumps(metric)):
    # The bytes come from the run's own processes.
    other = pickle.loads(payload)
    if merged is None:
      merged = other
    else:
      merged.merge(other)
  assert merged is not None
  return merged
