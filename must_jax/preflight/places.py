"""The places that a config reads, and what makes those that are not there.

Commands follow the names of the shipped configs: data/NAME is an image set,
labels/NAME has the labels of its images by kind of task, runs/NAME is the run
of the config NAME, and checkpoints/NAME is a converted one.
"""

import dataclasses
import os
import re
import shlex
from collections.abc import Sequence
from typing import Protocol

from ml_collections import ConfigDict

from must_jax import convert
from must_jax.importers.datasets import import_command
from must_jax.input.origins import SUPERVISED, Source
from must_jax.storage.commits import JOB_FILE
from must_jax.storage.label_sets import read_job
from must_jax.storage.path import Path, is_file, is_local
from must_jax.storage.sets import (
  INDEX_FILE,
  MANIFEST_FILE,
  ImageSet,
  LabelSet,
  read_index,
  read_manifest,
)

# What is not trained here labels by a config of its own, as in the paper.
_PUBLISHED_TEACHERS = {"depth": ("label_midas", "checkpoints/midas")}
# Shipped configs that train without arguments.
RUNS = (
  *("teacher_classification", "teacher_classification_align_b7"),
  *("teacher_detection", "teacher_detection_align_b7"),
  *("teacher_segmentation", "teacher_segmentation_align_b7"),
  *("teacher_depth", "simclr"),
  *("student", "student_imagenet", "student_jft"),
  *("student_align_b7", "student_noisy_l2"),
)
_LABELS = re.compile(r"(?P<root>(?:.*/)?)labels/(?P<name>[^/]+)/[^/]+")
_RUN = re.compile(r"(?:(?P<root>.*)/)?runs/(?P<name>[^/]+)")
_IN_A_RUN = re.compile(r"/checkpoints(/\d+)?$")


class Place(Protocol):
  """What a config reads at a place; as text, its path and what it shall be."""

  @property
  def path(self) -> str:
    """Directory or URL."""

  def read(self) -> None:
    """Reads what says that all is there.

    Raises:
      ValueError: it is not.
      OSError: its storage does not answer.
    """

  def open(self) -> ImageSet | LabelSet | Path:
    """The same, and looks for every file."""

  def command(self) -> str:
    """Makes it, or goes on with it."""


@dataclasses.dataclass(frozen=True)
class ImagesPlace:
  """A split of an image set.

  Attributes:
    path: of the image set.
    split: of it.
    kinds: of tasks that read its own labels.
  """

  path: str
  split: str
  kinds: tuple[str, ...] = ()

  def __str__(self) -> str:
    return f"{self.path}, split {self.split!r}"

  def read(self) -> None:
    """See `Place`."""
    if not is_file(Path(self.path) / INDEX_FILE):
      raise ValueError("no image set there")
    splits = read_index(self.path)["splits"]
    if self.split not in splits:
      raise ValueError(f"no split {self.split!r}, it has {sorted(splits)}")

  def open(self) -> ImageSet:
    """See `Place`."""
    return ImageSet.open(self.path, self.split)

  def command(self) -> str:
    """See `Place`."""
    return import_command(self.path, self.split, self.kinds)


@dataclasses.dataclass(frozen=True)
class LabelsPlace:
  """A label set.

  Attributes:
    path: of the label set.
    task: that reads it.
    kind: of the task.
    images: path of the image set.
    split: of the image set.
  """

  path: str
  task: str
  kind: str
  images: str
  split: str

  def __str__(self) -> str:
    return f"{self.path}, labels of task {self.task!r}"

  def read(self) -> None:
    """See `Place`."""
    if is_file(Path(self.path) / MANIFEST_FILE):
      read_manifest(self.path)
    elif self._is_begun():
      raise ValueError("labelling is not at its end; it goes on by")
    else:
      raise ValueError("no label set there")

  def _is_begun(self) -> bool:
    return is_file(Path(self.path) / JOB_FILE)

  def open(self) -> LabelSet:
    """See `Place`."""
    return LabelSet.open(self.path)

  def command(self) -> str:
    """See `Place`."""
    found = _LABELS.fullmatch(self.path.rstrip("/"))
    root, name = found.group("root", "name") if found else ("", "")
    # labels/jft_align_b7 are the labels of data/jft by teacher_*_align_b7.
    images = _last(self.images)
    start = name.removeprefix(images) if name.startswith(f"{images}_") else ""
    config, teacher = _PUBLISHED_TEACHERS.get(
      self.kind, ("label", f"runs/teacher_{self.kind}{start}")
    )
    args = [f"teacher={root}{teacher}", f"images={self.images}"]
    if self.split != "train":
      args.append(f"split={self.split}")
    if self._is_begun():
      batch_size = read_job(self.path)["settings"].get("batch_size")
      args += [f"batch_size={batch_size}"] if batch_size else []
    return _run_command("label", config, args, self.path)


@dataclasses.dataclass(frozen=True)
class CheckpointPlace:
  """A checkpoint, or a run's workdir.

  Attributes:
    path: of it.
    option: of the config that names it.
  """

  path: str
  option: str

  def __str__(self) -> str:
    return f"{self.path}, {self.option}"

  def read(self) -> None:
    """See `Place`."""
    try:
      self.open()
    except FileNotFoundError:
      raise ValueError("no checkpoint there") from None

  def open(self) -> Path:
    """See `Place`."""
    from must_jax.train import checkpoint

    return checkpoint.find(self.path)

  def command(self) -> str:
    """See `Place`."""
    place = _IN_A_RUN.sub("", self.path.rstrip("/"))
    name = _last(place)
    if name in convert.CHECKPOINTS:
      return convert.command(name, place)
    if name in RUNS:
      run = _RUN.fullmatch(place)
      root = run["root"] if run else ""
      args = [f"root={root}"] if root else []
      return _run_command("train", name, args, place)
    return self._unknown(shlex.quote(place))

  def _unknown(self, place: str) -> str:
    """The command of a place whose name says nothing."""
    return f"must-jax convert KIND FILE --out {place}"


class RunPlace(CheckpointPlace):
  """The workdir of a run."""

  def _unknown(self, place: str) -> str:
    return f"must-jax train CONFIG --workdir={place}"


def places(config: ConfigDict, workdir: str = "") -> list[Place]:
  """All that a stage reads, in the order in which it can be made.

  Args:
    config: a valid one.
    workdir: of the run; one that goes on reads no `init_from`.
  """
  if config.stage == "label":
    entry = config.datasets[config.label.dataset]
    return [
      ImagesPlace(entry.dir, entry.split),
      CheckpointPlace(config.label.teacher, "label.teacher"),
    ]
  images: list[str] = [*config.evaluate_on]
  read = set(config.datasets if config.stage == "train" else images)
  labels: dict[str, Place] = {}
  kinds: dict[str, list[str]] = {name: [] for name in config.datasets}
  if config.stage == "train":
    images = [*config.train_on, *images]
  for task, entry in config.tasks.items():
    for name in filter(read.__contains__, entry.labels):
      own, label_sets = _origins(config, task, name)
      if own:
        kinds[name].append(entry.kind)
        images.append(name)
      for label_set in label_sets:
        labels.setdefault(label_set.path, label_set)
  found: list[Place] = [
    ImagesPlace(entry.dir, entry.split, tuple(kinds[name]))
    for name in dict.fromkeys(images)
    for entry in [config.datasets[name]]
  ]
  if config.stage == "train" and config.init_from and not _goes_on(workdir):
    found.append(CheckpointPlace(config.init_from, "init_from"))
  if config.stage == "evaluate":
    found.append(
      CheckpointPlace(config.evaluate_from, "evaluate_from")
      if config.evaluate_from
      else RunPlace(workdir, "--workdir, the run to evaluate")
    )
  return [*found, *labels.values()]


def task_places(config: ConfigDict, task: str) -> list[Place]:
  """Those that a task has its labels from."""
  found: list[Place] = []
  for name in config.tasks[task].labels:
    own, label_sets = _origins(config, task, name)
    if own:
      entry = config.datasets[name]
      found.append(ImagesPlace(entry.dir, entry.split))
    found += label_sets
  return found


def _origins(
  config: ConfigDict, task: str, name: str
) -> tuple[bool, list[LabelsPlace]]:
  """Whether a task reads a dataset's own labels, and its label sets there."""
  entry, options = config.datasets[name], config.tasks[task]
  source = Source(entry.dir, entry.split, {task: options.labels[name]})
  origins = source.origins(task)
  return SUPERVISED in origins, [
    LabelsPlace(path, task, options.kind, entry.dir, entry.split)
    for path in origins
    if path != SUPERVISED
  ]


def missing(found: Sequence[Place]) -> list[tuple[Place, str]]:
  """Those that are not there or not finished, and what is wrong with them.

  Raises:
    OSError: storage does not answer.
  """
  problems = []
  for place in found:
    try:
      place.read()
    except ValueError as error:
      problems.append((place, str(error)))
  return problems


def text(problems: Sequence[tuple[Place, str]]) -> str:
  """Says what is missing, and how to mend it; a place and a command a line."""
  lines = ["The config reads what is not there. What is missing, and makes it:"]
  for place, problem in problems:
    lines += [f"{place}: {problem}", f"    {place.command()}"]
  kinds = {type(place) for place, _ in problems}
  if ImagesPlace in kinds:
    lines.append("Imports name files as published; give your own paths.")
  if LabelsPlace in kinds:
    lines.append(
      "A task can be left out, by tasks=KIND+KIND of student configs, or its"
      " labels taken from another place, by KIND=PLACE."
    )
  if any(is_local(p.path) and not p.path.startswith("/") for p, _ in problems):
    lines.append(
      f"Relative places are below {os.getcwd()}; the argument root=PLACE, which"
      " may be gs://..., says where else."
    )
  return "\n".join(lines)


def check(config: ConfigDict, workdir: str = "") -> None:
  """Checks that all that a stage reads is there.

  Args:
    config: a valid one.
    workdir: see `places`.

  Raises:
    ValueError: names all that is missing, with the commands that make it.
    OSError: storage does not answer.
  """
  if problems := missing(places(config, workdir)):
    raise ValueError(text(problems))


def _goes_on(workdir: str) -> bool:
  """Whether a run has a checkpoint of its own."""
  if not workdir:
    return False
  try:
    CheckpointPlace(workdir, "workdir").read()
  except ValueError:
    return False
  return True


def _last(path: str) -> str:
  return path.rstrip("/").rpartition("/")[2]


def _run_command(
  verb: str, config: str, args: Sequence[str], workdir: str
) -> str:
  arg = f":{','.join(args)}" if args else ""
  return shlex.join(
    ["must-jax", verb, f"{config}{arg}", f"--workdir={workdir}"]
  )
