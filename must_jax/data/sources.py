"""From the names in a config to data: sources, classes, teachers, batches."""

from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from must_jax.config import task_kwargs
from must_jax.data import pipeline
from must_jax.data.pipeline import SUPERVISED, AugmentOptions, Source
from must_jax.data.sets import read_manifest
from must_jax.tasks import Task, make_task


def resolve(config: ConfigDict) -> ConfigDict:
  """A copy of the config in which every task knows its classes.

  Raises:
    ValueError: sources of a task disagree with each other or with the config,
      or a directory cannot be read.
  """
  config = config.copy_and_resolve_references()
  for name, entry in config.tasks.items():
    sources = [_source(config, dataset) for dataset in entry.labels]
    given = tuple(entry.classes)
    for field in _task(name, entry).fields:
      found = pipeline.class_names(sources, name, field)
      if given and found and given != found:
        raise ValueError(
          f"Task {name!r} has the classes {list(given)[:10]} ({len(given)});"
          f" its labels have {list(found)[:10]} ({len(found)}). Leave"
          f" tasks.{name}.classes empty, or make both the same."
        )
      entry.classes = given or found
  return config


def tasks_of(config: ConfigDict, dataset: str) -> tuple[str, ...]:
  """Names of the tasks that have labels on a dataset."""
  return tuple(
    sorted(name for name, e in config.tasks.items() if dataset in e.labels)
  )


def train_batches(
  config: ConfigDict, start_step: int
) -> Iterator[dict[str, Any]]:
  """This process's part of the training batches from a step on."""
  data = config.data
  return pipeline.train_batches(
    [_source(config, name) for name in config.train_on],
    _fields(config, tuple(config.tasks)),
    batch_size=data.batch_size,
    image_size=tuple(data.image_size),
    label_stride=data.label_stride,
    augment=AugmentOptions(
      scale_jitter=tuple(data.scale_jitter),
      flip=data.flip,
      color_jitter=data.color_jitter,
    ),
    seed=config.seed,
    start_step=start_step,
    block_size=data.block_size,
    window_blocks=data.window_blocks,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    options=_read_options(config),
  )


def eval_batches(config: ConfigDict, dataset: str) -> Iterator[dict[str, Any]]:
  """This process's part of a dataset, every example once."""
  return pipeline.eval_batches(
    [_source(config, dataset)],
    _fields(config, tasks_of(config, dataset)),
    batch_size=config.data.eval_batch_size,
    image_size=tuple(config.data.image_size),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    options=_read_options(config),
  )


def teacher_settings(config: ConfigDict) -> dict[str, tuple[int, float]]:
  """(batch size, learning rate) of the teacher, by task that has one.

  Raises:
    ValueError: a task's label sets come from teachers with different settings.
  """
  settings: dict[str, tuple[int, float]] = {}
  for name, entry in config.tasks.items():
    for dataset, origin in entry.labels.items():
      if origin == SUPERVISED or dataset not in config.train_on:
        continue
      teacher = read_manifest(origin)["teacher"]
      if "batch_size" not in teacher:
        continue  # an imported teacher: how it was trained is not known
      found = teacher["batch_size"], teacher["lr"]
      if settings.setdefault(name, found) != found:
        raise ValueError(
          f"Task {name!r}: its label sets come from teachers with (batch size,"
          f" learning rate) {settings[name]} and {found}, so the paper's rule"
          f" gives no one weight. Set config.tasks.{name}.weight."
        )
  return settings


def _source(config: ConfigDict, dataset: str) -> Source:
  entry = config.datasets[dataset]
  labels = {
    name: task.labels[dataset]
    for name, task in config.tasks.items()
    if dataset in task.labels
  }
  return Source(entry.dir, entry.split, labels)


def _task(name: str, entry: ConfigDict) -> Task:
  return make_task(entry.kind, name, tuple(entry.classes), task_kwargs(entry))


def _fields(config: ConfigDict, names: tuple[str, ...]):
  return {name: _task(name, config.tasks[name]).fields for name in names}


def _read_options(config: ConfigDict) -> pipeline.ReadOptions:
  return pipeline.ReadOptions(
    num_threads=config.data.num_threads, max_bad=config.data.max_bad
  )
