"""The labelling stage: a trained model labels an image set (paper 3.1)."""

import functools
import json
import sys
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax.config import PREEMPTED
from must_jax.data import pipeline
from must_jax.data.sets import ImageSet
from must_jax.pseudo_label import job as job_lib
from must_jax.tasks import Task
from must_jax.train import checkpoint
from must_jax.train.load import LoadedModel, load
from must_jax.train.preemption import Sigterm


def label(config: ConfigDict, workdir: epath.PathLike) -> dict[str, Any]:
  """Runs one worker of a labelling job, to the end of the job.

  Args:
    config: with `stage = "label"`.
    workdir: the label set, unless `config.label.output` names another place.

  Returns:
    What the label set's manifest says of all its labels.

  Raises:
    ValueError: the teacher has several tasks and none was chosen, or the
      output belongs to another job.
    SystemExit: code 42 on SIGTERM, with finished shards kept; `job.ALARM` if
      the labels cannot be right.
  """
  options = config.label
  model = load(options.teacher)
  task = _choose_task(model, options.task)
  entry = config.datasets[options.dataset]
  image_set = ImageSet.open(entry.dir, entry.split)
  predict = model.predictor((task.name,))
  size = model.image_size
  job = job_lib.LabelJob(
    image_set=image_set,
    output=options.output or workdir,
    fields=describe_fields(task),
    teacher=describe_teacher(model, task),
    settings={
      "batch_size": options.batch_size,
      "image_size": list(size),
      "task": _options(task),
    },
    max_undecodable=options.max_undecodable,
    lease_seconds=options.lease_seconds,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )

  def batches(shard: int) -> Iterator[dict[str, Any]]:
    return pipeline.eval_batches(
      [pipeline.Source(entry.dir, entry.split)],
      {},
      batch_size=options.batch_size,
      image_size=size,
      shard=shard,
      options=pipeline.ReadOptions(
        num_threads=config.data.num_threads, max_bad=None
      ),
    )

  with Sigterm() as sigterm:
    summary = job_lib.run(
      job,
      batches,
      lambda batch: predict(batch["image"])[task.name],
      functools.partial(task.to_labels, image_size=size),
      stop=lambda: sigterm.received,
    )
  if summary.manifest is None:
    logging.info("Told to end: finished shards are kept.")
    sys.exit(PREEMPTED)
  if summary.alarms:
    sys.exit(summary.exit_code)
  return summary.manifest["statistics"]


def describe_fields(task: Task) -> dict[str, dict[str, Any]]:
  """The label fields a task writes, as an index or manifest lists them."""
  described = {}
  for name, field in task.fields.items():
    spec: dict[str, Any] = {"kind": type(field).__name__}
    if task.classes:
      spec["classes"] = list(task.classes)
    if unit := getattr(field, "unit", ""):
      spec["unit"] = unit
    described[name] = spec
  return described


def describe_teacher(model: LoadedModel, task: Task) -> dict[str, Any]:
  """What a manifest says of the teacher.

  `batch_size` and `lr` give the student's loss weights (paper 3.2).
  """
  return {
    "digest": checkpoint.fingerprint(model.path),
    "task": task.name,
    "batch_size": model.config.data.batch_size,
    "lr": model.config.optimizer.lr,
    "config": json.loads(config_lib.to_json(model.config)),
  }


def _choose_task(model: LoadedModel, name: str) -> Task:
  if not name and len(model.tasks) == 1:
    return next(iter(model.tasks.values()))
  if name not in model.tasks:
    raise ValueError(
      f"label.task is {name!r}; the teacher {model.path} has the tasks"
      f" {sorted(model.tasks)}. Choose one: --config.label.task=..."
    )
  return model.tasks[name]


def _options(task: Task) -> dict[str, Any]:
  """The task's options, on which its labels depend."""
  return {
    key: list(value) if isinstance(value, tuple) else value
    for key, value in vars(task).items()
    if key not in ("name", "classes")
  }
