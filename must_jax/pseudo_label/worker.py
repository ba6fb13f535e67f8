"""Workers of labelling jobs: the stage "label", and one for any teacher."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from must_jax.config import PREEMPTED
from must_jax.input.batches import eval_batches
from must_jax.input.loader import ReadOptions
from must_jax.input.origins import Source
from must_jax.input.sources import eval_geometry
from must_jax.input.union import Union
from must_jax.pseudo_label import job as job_lib
from must_jax.pseudo_label.job import LabelJob
from must_jax.pseudo_label.labeller import (
  Batch,
  Labeller,
  Predictions,
  ToLabels,
)
from must_jax.pseudo_label.teacher import (
  Teacher,
  choose_task,
  describe_fields,
  describe_teacher,
)
from must_jax.signals import EndSignals
from must_jax.storage import label_sets
from must_jax.storage.path import PathLike
from must_jax.storage.sets import ImageSet
from must_jax.storage.work_queue import Worker
from must_jax.tasks import Task
from must_jax.train.inference import labels_of, take
from must_jax.train.launcher import find_worker
from must_jax.train.load import LoadedModel, load
from must_jax.train.runtime import keep_tensorflow_off_accelerators
from must_jax.types import Labels


@dataclasses.dataclass(frozen=True)
class Labelling:
  """A labelling job with its teacher.

  Attributes:
    job: what to label.
    batches: see `job.run`.
    predict: see `job.run`.
    to_labels: see `job.run`.
  """

  job: LabelJob
  batches: Callable[[int], Iterable[Batch]]
  predict: Callable[[Batch], Predictions]
  to_labels: ToLabels

  def labeller(self) -> Labeller:
    """Makes label records; a context."""
    return Labeller(
      self.job.image_set,
      self.job.fields,
      self.batches,
      self.predict,
      self.to_labels,
    )


def label(config: ConfigDict, workdir: PathLike) -> dict[str, str]:
  """Runs one worker of a labelling job, to the end of the job.

  Args:
    config: with `stage = "label"`.
    workdir: the label set, unless `config.label.output` names another place.

  Returns:
    What is in the label set, by field.

  Raises:
    ValueError: the teacher has several tasks and none was chosen, or the
      output belongs to another job.
    SystemExit: code 42 on SIGTERM or Ctrl-C, with finished shards kept;
      `job.ALARM` if the labels cannot be right.
  """
  return _run(prepare(config, workdir))


def prepare(config: ConfigDict, workdir: PathLike) -> Labelling:
  """Loads the teacher of a labelling job; see `label`."""
  options = config.label
  model = load(options.teacher)
  task = choose_task(model, options.task)
  entry = config.datasets[options.dataset]
  predictor = model.batch_predictor((task.name,), options.map_stride)

  def predict(batch: Batch) -> Predictions:
    rows: list[Any] = [None] * len(batch["valid"])
    for members, outputs in predictor(batch):
      for i, row in enumerate(members.tolist()):
        rows[row] = take(outputs[task.name], i)
    return {"rows": rows}

  def to_labels(prediction: Predictions, batch: Batch, row: int) -> Labels:
    example = {key: batch[key] for key in ("content_size", "placement")}
    return labels_of(task, prediction["rows"], take(example, row))

  return _labelling(
    ImageSet.open(entry.dir, entry.split),
    options.output or workdir,
    describe_fields(task),
    describe_teacher(model, task),
    _settings(model, task, options.map_stride),
    {
      "image_size": model.image_size,
      "augment": eval_geometry(model.config),
    },
    predict,
    to_labels,
    batch_size=options.batch_size,
    num_threads=config.data.num_threads,
    max_undecodable=options.max_undecodable,
    lease_seconds=options.lease_seconds,
  )


def label_images(
  teacher: Teacher,
  images: PathLike,
  split: str,
  output: PathLike,
  *,
  settings: Mapping[str, Any] | None = None,
  batch_size: int = 16,
  num_threads: int = 0,
  max_undecodable: float = 0.01,
  lease_seconds: float = 600.0,
) -> dict[str, str]:
  """Labels an image set with any teacher; a worker like those of `label`.

  Start it in as many processes as you like: they share the shards.

  Args:
    teacher: see `Teacher`.
    images: directory of the image set.
    split: of the image set.
    output: directory of the label set.
    settings: JSON for the manifest: options on which the labels depend.
    batch_size: images that the teacher gets at a time.
    num_threads: that decode; 0 for one per core.
    max_undecodable: fraction of the records; beyond it the job stops.
    lease_seconds: a shard whose worker is silent for so long is taken over.

  Returns:
    What is in the label set, by field.

  Raises:
    ValueError: the output belongs to another job, or labels do not fit the
      teacher's fields.
    SystemExit: as `label`.
  """

  def predict(batch: Batch) -> Predictions:
    rows = np.flatnonzero(batch["valid"])
    sizes = batch["content_size"].astype(int)
    given = teacher(
      [batch["image"][i, : sizes[i, 0], : sizes[i, 1]] for i in rows]
    )
    if len(given) != len(rows):
      raise ValueError(
        f"The teacher got {len(rows)} images and gave labels for {len(given)};"
        " expected one set of labels for each image, in order."
      )
    labels: list[Labels] = [{}] * len(batch["valid"])
    for row, value in zip(rows, given, strict=True):
      labels[row] = value
    return {"labels": labels}

  return _run(
    _labelling(
      ImageSet.open(images, split),
      output,
      teacher.fields,
      teacher.description,
      settings or {},
      {"image_size": None},  # the stored one
      predict,
      lambda prediction, batch, row: prediction["labels"],
      batch_size=batch_size,
      num_threads=num_threads,
      max_undecodable=max_undecodable,
      lease_seconds=lease_seconds,
    )
  )


def _labelling(
  image_set: ImageSet,
  output: PathLike,
  fields: Mapping[str, Mapping[str, Any]],
  description: Mapping[str, Any],
  settings: Mapping[str, Any],
  geometry: Mapping[str, Any],
  predict: Callable[[Batch], Predictions],
  to_labels: ToLabels,
  *,
  batch_size: int,
  num_threads: int,
  max_undecodable: float,
  lease_seconds: float,
) -> Labelling:
  keep_tensorflow_off_accelerators()  # before it reads anything
  launch = find_worker(os.environ)
  job = LabelJob(
    image_set=image_set,
    output=output,
    fields=fields,
    teacher=description,
    settings={"batch_size": batch_size} | dict(settings),
    max_undecodable=max_undecodable,
    lease_seconds=lease_seconds,
    worker=Worker(launch.process_id, launch.num_processes),
  )

  images = Union([Source(str(image_set.directory), image_set.split)], {})

  def batches(shard: int) -> Iterable[Batch]:
    return eval_batches(
      images,
      {},
      batch_size=batch_size,
      shard=shard,
      **geometry,
      options=ReadOptions(num_threads=num_threads, max_bad=None),
    )

  return Labelling(job, batches, predict, to_labels)


def _run(labelling: Labelling) -> dict[str, str]:
  with EndSignals() as signals:
    summary = job_lib.run(
      labelling.job,
      labelling.batches,
      labelling.predict,
      labelling.to_labels,
      stop=lambda: signals.received,
    )
  if summary.manifest is None:
    logging.info("Told to end: finished shards are kept.")
    sys.exit(PREEMPTED)
  logging.info(
    "Finished: %s. must-jax inspect shows what the labels are.",
    labelling.job.output,
  )
  if summary.alarms:
    sys.exit(summary.exit_code)
  return label_sets.summary(summary.manifest)


def _settings(
  model: LoadedModel, task: Task, map_stride: int
) -> dict[str, Any]:
  """All that a checkpoint's labels depend on besides its parameters."""
  options = {
    key: list(value) if isinstance(value, tuple) else value
    for key, value in vars(task).items()
    if key not in ("name", "classes")
  }
  data, resize = model.config.data, model.config.data.eval_resize
  return {
    "image_size": list(model.image_size),
    "resize": resize,
    "image_mean": list(model.config.model.image_mean),
    "image_std": list(model.config.model.image_std),
    "task": options,
    # Only if given, so that label sets without the key go on.
    **({"map_stride": map_stride} if map_stride else {}),
    **({"crop_fraction": data.crop_fraction} if "crop" in resize else {}),
    **(
      {"antialias_below": data.antialias_below} if data.antialias_below else {}
    ),
  }
