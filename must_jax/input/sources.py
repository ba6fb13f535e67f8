"""From the names in a config to data: sources, classes, teachers, batches."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from must_jax.config import task_kwargs
from must_jax.fields.field import OTHERS
from must_jax.fields.statistics import NO_LABELS
from must_jax.input import batches, origins
from must_jax.input.color import ColorOptions
from must_jax.input.geometry import AugmentOptions
from must_jax.input.loader import ReadOptions
from must_jax.input.origins import SUPERVISED, Source
from must_jax.input.quarantine import BadRecord
from must_jax.input.union import Union
from must_jax.storage.label_sets import is_corrections
from must_jax.storage.sets import read_index, read_manifest
from must_jax.tasks import TASKS, Task, make_task

OnBad = Callable[[BadRecord], None]
_MAX_SHOWN = 10


def resolve(config: ConfigDict) -> ConfigDict:
  """A copy of the config in which every task knows its classes.

  Raises:
    ValueError: sources of a task disagree with each other or with the config,
      or a directory cannot be read.
  """
  config = config.copy_and_resolve_references()
  for name, entry in config.tasks.items():
    describe = origins.Describer(
      [_source(config, dataset) for dataset in entry.labels]
    )
    for field in _task(name, entry).fields:
      entry.classes = origins.class_names(
        describe(name, field), name, field, tuple(entry.classes)
      )
    _check_named_classes(name, entry)
  return config


def _check_named_classes(name: str, entry: ConfigDict) -> None:
  """Raises `ValueError` where an option names classes that are not there."""
  options = task_kwargs(entry)
  for option in TASKS[entry.kind].by_class:
    named = options[option] if isinstance(options[option], Mapping) else {}
    for unknown in sorted({*named} - {*entry.classes, OTHERS}):
      near = difflib.get_close_matches(unknown, entry.classes, 1)
      raise ValueError(
        f"tasks.{name}.{option} names the class {unknown!r}; expected some of"
        f" the task's {len(entry.classes)} classes,"
        f" {_some(list(entry.classes))}, or {OTHERS!r} for all others."
        + (f" Did you mean {near[0]!r}?" if near else "")
      )


def check_classes(config: ConfigDict, place: str) -> None:
  """Compares a model's classes with those of labels, which may be fewer.

  Args:
    config: with the model's classes, and the labels that it is measured on.
    place: of the model, for messages.

  Raises:
    ValueError: labels have classes that the model lacks.
  """
  for name, entry in config.tasks.items():
    names = list(entry.labels)
    describe = origins.Describer([_source(config, d) for d in names])
    for field in _task(name, entry).fields:
      for origin in describe(name, field):
        classes = set(origin.description.get("classes", entry.classes))
        surplus = sorted(classes - set(entry.classes))
        lacking = sorted(set(entry.classes) - classes)
        if surplus:
          raise ValueError(
            f"Task {name!r}: {origin.directory} has {len(surplus)} classes that"
            f" {place} does not know, {_some(surplus)}; it has"
            f" {len(entry.classes)}, {_some(list(entry.classes))}. Classes are"
            " matched by name: import the labels with the model's names, or"
            " leave these classes out."
          )
        if lacking:
          logging.warning(
            "Task %r: %s has no labels of %d of the %d classes of %s, %s;"
            " these are not measured there.",
            name,
            origin.directory,
            len(lacking),
            len(entry.classes),
            place,
            _some(lacking),
          )


def _some(names: Sequence[str]) -> str:
  shown = ", ".join(map(repr, names[:_MAX_SHOWN]))
  return shown + (", ..." if len(names) > _MAX_SHOWN else "")


def tasks_of(config: ConfigDict, dataset: str) -> tuple[str, ...]:
  """Names of the tasks that have labels on a dataset."""
  return tuple(
    sorted(name for name, e in config.tasks.items() if dataset in e.labels)
  )


def train_union(config: ConfigDict) -> Union:
  """All that a run trains on, opened.

  Raises:
    ValueError: files are missing, or labels do not fit images or tasks.
  """
  return _union(config, config.train_on, tuple(config.tasks))


def check_labels(union: Union) -> None:
  """Tells how much of their label sets tasks read.

  Args:
    union: what is learned from.

  Raises:
    ValueError: of a label set nothing is left at the threshold of scores.
  """
  for task, labels in union.label_sets():
    where = f"Task {task!r}, labels in {labels.directory}"
    for alarm in labels.manifest.get("alarms", ()):
      logging.warning("%s: THEY LOOK WRONG: %s", where, alarm)
    for name, field in union.tasks[task].items():
      statistics = labels.manifest.get("statistics")
      if statistics is None:
        logging.warning("%s: what is in them is not known.", where)
        continue
      if is_corrections(labels.manifest):
        # Of few images, and "nothing here" and "not this one" are said, too.
        kept = field.unfiltered().kept(statistics.get(name, NO_LABELS))
        logging.info("%s: %s.", where, kept)
        continue
      kept = field.kept(statistics.get(name, NO_LABELS))
      if kept.is_nothing:
        mend = "Take labels from another place, or train the teacher longer"
        if kept.stored:
          mend = (
            f"Lower the threshold, tasks.{task}.min_score, or train the teacher"
            f" longer; `must-jax inspect {labels.directory} --min-score=SCORE`"
            " tells what is left at others"
          )
        raise ValueError(
          f"{where}: {kept}, so there is nothing to learn from. {mend}."
        )
      lost = kept.lost(labels.fields[name].get("classes", ()))
      logging.log(
        logging.WARNING if kept.is_little or lost else logging.INFO,
        "%s: %s%s.%s",
        where,
        "FEW ARE LEFT: " if kept.is_little else "",
        kept,
        f" Nothing is left of {len(lost):,} classes: {_some(lost)}."
        if lost
        else "",
      )


def eval_union(config: ConfigDict, dataset: str) -> Union:
  """The same for a dataset that the run is evaluated on."""
  return _union(config, (dataset,), tasks_of(config, dataset))


def train_batches(
  config: ConfigDict,
  start_step: int,
  on_bad: OnBad,
  union: Union | None = None,
) -> batches.TrainBatches:
  """This process's part of the training batches from a step on.

  Args:
    config: from `resolve`.
    start_step: the first batch is that of this step.
    on_bad: called with each record that cannot be used.
    union: from `train_union`, if it is open already.
  """
  data, fields = config.data, _fields(config, tuple(config.tasks))
  (views,) = {_task(name, entry).views for name, entry in config.tasks.items()}
  return batches.train_batches(
    union or train_union(config),
    fields,
    views=views,
    shares=_shares(config),
    batch_size=data.batch_size,
    image_size=tuple(data.image_size),
    label_stride=data.label_stride,
    augment=_augment(
      config,
      data.train_resize,
      # The others choose the scale themselves.
      scale_jitter=(
        tuple(data.scale_jitter) if data.train_resize == "pad" else (1.0, 1.0)
      ),
      flip=data.flip,
      color=ColorOptions(**data.color),
    ),
    seed=config.seed,
    start_step=start_step,
    block_size=data.block_size,
    window_blocks=data.window_blocks,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    options=_read_options(config, on_bad),
  )


def eval_batches(
  config: ConfigDict,
  dataset: str,
  on_bad: OnBad,
  union: Union | None = None,
) -> Iterator[dict[str, Any]]:
  """This process's part of a dataset, every example once.

  Args:
    config: from `resolve`.
    dataset: its name.
    on_bad: called with each record that cannot be used.
    union: from `eval_union`, if it is open already.
  """
  return batches.eval_batches(
    union or eval_union(config, dataset),
    _fields(config, tasks_of(config, dataset)),
    batch_size=config.data.eval_batch_size,
    image_size=tuple(config.data.image_size),
    augment=eval_geometry(config),
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    options=_read_options(config, on_bad),
  )


def eval_geometry(config: ConfigDict) -> AugmentOptions:
  """How images reach the network where it does not learn."""
  mean = (255 * float(value) for value in config.model.image_mean)
  return _augment(
    config,
    config.data.eval_resize,
    fill=tuple(mean),  # is 0 to the network, as in what was published
  )


def teacher_settings(config: ConfigDict) -> dict[str, tuple[int, float]]:
  """(batch size, learning rate) of the teacher, by task that has one.

  Raises:
    ValueError: a task's label sets come from teachers with different settings.
  """
  settings: dict[str, tuple[int, float]] = {}
  for name, entry in config.tasks.items():
    for dataset in entry.labels:
      if dataset not in config.train_on:
        continue
      for origin in _source(config, dataset).origins(name):
        if origin == SUPERVISED:
          continue
        teacher = read_manifest(origin)["teacher"]
        if "batch_size" not in teacher:
          continue  # people, or an imported teacher: nobody knows
        found = teacher["batch_size"], teacher["lr"]
        if settings.setdefault(name, found) != found:
          raise ValueError(
            f"Task {name!r}: its label sets come from teachers with (batch"
            f" size, learning rate) {settings[name]} and {found}, so the"
            " paper's rule gives no one weight. Set"
            f" config.tasks.{name}.weight."
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
  """The fields of those tasks that have labels."""
  fields = {name: _task(name, config.tasks[name]).fields for name in names}
  return {name: value for name, value in fields.items() if value}


def _augment(config: ConfigDict, resize: str, **options: Any) -> AugmentOptions:
  return AugmentOptions(
    resize=resize,
    crop_fraction=config.data.crop_fraction,
    crop_area=tuple(config.data.crop_area),
    antialias_below=config.data.antialias_below,
    **options,
  )


def _union(
  config: ConfigDict, datasets: Iterable[str], names: tuple[str, ...]
) -> Union:
  fields = _fields(config, names)
  return Union(
    [_source(config, dataset) for dataset in datasets],
    fields,
    {name: tuple(config.tasks[name].classes) for name in fields},
  )


def _shares(config: ConfigDict) -> list[float] | None:
  """Part of each dataset in the examples; None for uniform over the union."""
  entries = [config.datasets[name] for name in config.train_on]
  shares = [entry.share for entry in entries]
  if config.sampling == "equal":
    return shares
  if len(set(shares)) == 1:
    return None
  return [
    share * read_index(entry.dir)["splits"][entry.split]["num_records"]
    for share, entry in zip(shares, entries, strict=True)
  ]


def _read_options(config: ConfigDict, on_bad: OnBad) -> ReadOptions:
  return ReadOptions(
    num_threads=config.data.num_threads,
    max_bad=config.data.max_bad,
    on_bad=on_bad,
  )
