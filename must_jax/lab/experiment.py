"""From the rows and transfers of tables to stages, and back to results."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax.config import base_config, dataset, task
from must_jax.lab.floors import floor
from must_jax.lab.paper_tables import (
  KINDS,
  NO_LABELS,
  SUPERVISED,
  Pretraining,
  Setting,
  Table,
  Transfer,
)
from must_jax.lab.result_table import ResultColumn, ResultRow, ResultTable
from must_jax.lab.scales import ImageSplits, Prerequisite, Scale
from must_jax.lab.stages import Stages
from must_jax.lab.train_and_label import label, train
from must_jax.storage.path import Path

_HAVE_CLASSES = ("classification", "detection", "segmentation")
# What a fine-tuning takes over from the network that it starts from.
_ARCHITECTURE = (
  "backbone",
  "width",
  "channels",
  "min_level",
  "max_level",
  "image_mean",
  "image_std",
  "fpn_norm",
  "fpn_top",
  "norm_epsilon",
)


@dataclasses.dataclass(frozen=True)
class PretrainedNetwork:
  """What a stage can start from.

  Attributes:
    path: of the checkpoint; empty for a network that is not trained.
    model: its `config.model`, None for a network that is not trained.
    after: the stage that makes it, if one does.
    prerequisites: what must be there, if no stage makes it.
  """

  path: str = ""
  model: ConfigDict | None = None
  after: tuple[Path, ...] = ()
  prerequisites: tuple[Prerequisite, ...] = ()


@dataclasses.dataclass(frozen=True)
class TransferRuns:
  """A transfer with one setting.

  Attributes:
    setting: of all seeds.
    stages: one a seed.
    values: on the reported split, of the finished stages; None without any.
    selection: the same on the split that settings are selected on.
  """

  setting: Setting
  stages: tuple[Path, ...]
  values: tuple[float, ...] | None
  selection: tuple[float, ...] | None

  @property
  def score(self) -> float:
    """What a sweep selects by: the mean over the seeds."""
    if not self.selection:
      return -1.0
    return sum(self.selection) / len(self.selection)


class Experiment:
  """The stages of tables. Those that tables share are there once.

  Attributes:
    scale: what stands for the image sets, and how long all trains.
    seeds: of pre-training and fine-tuning.
    stages: of all tables.
    prerequisites: by stage, what it reads that no stage makes.
    classes: by stage, the number of classes of its tasks, where the scale
      knows them.
    counts: by stage that labels, the number of images, likewise.
  """

  def __init__(
    self,
    stages: Stages,
    scale: Scale,
    seeds: tuple[int, ...],
    sweep: bool = False,
  ):
    """Makes an experiment without tables.

    Args:
      stages: gets those of the tables.
      scale: what stands for the image sets, and how long all trains.
      seeds: of pre-training and fine-tuning.
      sweep: whether transfers try all their settings, or the first.
    """
    self.stages, self.scale, self.seeds = stages, scale, seeds
    self._sweep = sweep
    self.prerequisites: dict[Path, tuple[Prerequisite, ...]] = {}
    self.classes: dict[Path, Mapping[str, int]] = {}
    self.counts: dict[Path, int | None] = {}
    self._floors: dict[str, Path] = {}
    # Rows share networks: each is worked out once.
    self._networks: dict[tuple[str, int], PretrainedNetwork] = {}
    self._transfers: dict[tuple[str, str, Setting, int], Path] = {}
    self._blocked: dict[Path, bool] = {}
    # Looking may be slow, and many stages read the same.
    self._met = functools.cache(lambda prerequisite: prerequisite.is_met)

  def add(self, table: Table) -> None:
    """Adds all stages of a table."""
    for row in table.at(self.scale.name):
      for seed in self.seeds:
        self.network(row.pretraining, seed)
        for transfer in self.scale.transfers:
          for setting in self.settings(transfer):
            self.fine_tune(row.pretraining, transfer, setting, seed)
    for transfer in self.scale.transfers:
      self.floor(transfer)

  def settings(self, transfer: Transfer) -> tuple[Setting, ...]:
    """What a transfer tries."""
    return transfer.sweep if self._sweep else transfer.sweep[:1]

  def images(self, name: str) -> ImageSplits:
    """What stands for an image set."""
    return self.scale.images(name, self.stages)

  def network(self, pretraining: Pretraining, seed: int) -> PretrainedNetwork:
    """A pre-trained network; adds the stages that make it."""
    key = pretraining.name, 0 if pretraining.once else seed
    if key not in self._networks:
      self._networks[key] = self._pretrain(pretraining, seed)
    return self._networks[key]

  def _pretrain(self, pretraining: Pretraining, seed: int) -> PretrainedNetwork:
    if prerequisite := self.scale.checkpoint(pretraining):
      model = self.scale.pretraining(pretraining, base_config()).model
      return PretrainedNetwork(
        prerequisite.path, model, prerequisites=(prerequisite,)
      )
    if not pretraining.labels:
      return PretrainedNetwork()
    config = base_config()
    # Teachers have the base seed, so that all students see the same labels.
    config.seed = 0 if pretraining.once else 100 + seed
    config.sampling = pretraining.sampling
    sets = {name: self.images(name) for name in pretraining.labels}
    after = [stage for images in sets.values() for stage in images.after]
    prerequisites = [
      p for images in sets.values() for p in images.prerequisites
    ]
    for name, images in sets.items():
      config.datasets[name] = dataset(images.directory, images.train)
    config.train_on = tuple(sets)
    labels, made = self._sources(pretraining)
    after += made
    if pretraining.measured_on:
      measured = self.images(pretraining.measured_on)
      after += measured.after
      prerequisites += measured.prerequisites
      config.datasets.validation = dataset(
        measured.directory, measured.validation
      )
      config.evaluate_on = ("validation",)
      for sources in labels.values():
        sources["validation"] = SUPERVISED
    for task_name, sources in labels.items():
      kind = KINDS.get(task_name, task_name)
      options = pretraining.options.get(task_name, {})
      config.tasks[task_name] = task(kind, labels=sources, **options)
    start = PretrainedNetwork()
    if pretraining.start:
      start = self.network(pretraining.start, seed)
      config.init_from = start.path
      config.init_parts = ("backbone", "fpn")
    config = self.scale.pretraining(pretraining, config)
    if pretraining.balancing:
      config.balancing.method = pretraining.balancing
    suffix = "" if pretraining.once else f"-{seed}"
    stage = self._add(
      f"pretrain-{pretraining.name}{suffix}",
      train,
      config,
      after=(*after, *start.after),
      prerequisites=(*prerequisites, *start.prerequisites),
      classes=self._classes(pretraining),
    )
    return PretrainedNetwork(str(stage), config.model, (stage,))

  def _sources(
    self, pretraining: Pretraining
  ) -> tuple[dict[str, dict[str, str]], list[Path]]:
    """As `config.tasks.NAME.labels` by task, and the stages that make them."""
    sources: dict[str, dict[str, str]] = {t: {} for t in pretraining.tasks}
    stages = []
    for name, by_task in pretraining.labels.items():
      for task_name, source in by_task.items():
        if isinstance(source, Pretraining):
          stages.append(self.labels(source, name, task_name))
          sources[task_name][name] = str(stages[-1])
        elif source != NO_LABELS:
          sources[task_name][name] = source
    return sources, stages

  def labels(
    self, teacher: Pretraining, name: str, task_name: str = ""
  ) -> Path:
    """The stage in which a teacher labels the image set of that name.

    Args:
      teacher: a specialist, or a student that has the task among others.
      name: of the image set.
      task_name: of the task; by default the teacher has one only.
    """
    network = self.network(teacher, 0)
    images = self.images(name)
    config = base_config()
    config.stage = "label"
    config.datasets.images = dataset(images.directory, images.train)
    config.label.update({"teacher": network.path, "dataset": "images"})
    suffix = ""
    if len(teacher.tasks) > 1:
      config.label.task = task_name
      suffix = f"-{task_name}"
    stage = self._add(
      f"label-{name}-{teacher.name}{suffix}",
      label,
      self.scale.labelling(teacher, config),
      images.truth,
      after=(*network.after, *images.after),
      prerequisites=(*network.prerequisites, *images.prerequisites),
    )
    self.counts[stage] = images.count
    return stage

  def fine_tune(
    self,
    pretraining: Pretraining,
    transfer: Transfer,
    setting: Setting,
    seed: int,
  ) -> Path:
    """The stage that fine-tunes a network."""
    key = pretraining.name, transfer.name, setting, seed
    if key not in self._transfers:
      self._transfers[key] = self._fine_tune(
        pretraining, transfer, setting, seed
      )
    return self._transfers[key]

  def _fine_tune(
    self,
    pretraining: Pretraining,
    transfer: Transfer,
    setting: Setting,
    seed: int,
  ) -> Path:
    network = self.network(pretraining, seed)
    images = self.images(transfer.images)
    splits = self._splits(images)
    if self._sweep and images.select:
      directory = images.select_directory or images.directory
      splits["select"] = dataset(directory, images.select)
    config = self._transfer_config(transfer, splits)
    config.seed = 200 + seed
    config.init_from = network.path
    config.init_parts = ("backbone", "fpn")  # paper 3.3: fresh heads
    config.optimizer.lr = setting.lr
    config.train.steps = setting.steps
    if network.model is not None:
      config.model.update({key: network.model[key] for key in _ARCHITECTURE})
    suffix = ""
    if self._sweep:
      suffix = f"-lr{setting.lr:g}-steps{setting.steps}"
    return self._add(
      f"transfer-{pretraining.name}-{transfer.name}-{seed}{suffix}",
      train,
      config,
      after=(*images.after, *network.after),
      prerequisites=(*network.prerequisites, *images.prerequisites),
      classes={transfer.name: images.classes} if images.classes else {},
    )

  def floor(self, transfer: Transfer) -> Path:
    """The stage that measures what a transfer reaches without its images."""
    if transfer.name not in self._floors:
      images = self.images(transfer.images)
      self._floors[transfer.name] = self._add(
        f"floor-{transfer.name}",
        floor,
        self._transfer_config(transfer, self._splits(images)),
        after=images.after,
        prerequisites=images.prerequisites,
        classes={transfer.name: images.classes} if images.classes else {},
      )
    return self._floors[transfer.name]

  def _splits(self, images: ImageSplits) -> dict[str, ConfigDict]:
    """What a transfer learns from and is measured on, by name."""
    return {
      "train": dataset(images.directory, images.train),
      "validation": dataset(images.directory, images.validation),
    }

  def _transfer_config(
    self, transfer: Transfer, splits: Mapping[str, ConfigDict]
  ) -> ConfigDict:
    """What is the same whatever network is fine-tuned, and how."""
    config = base_config()
    config.datasets.update(splits)
    config.train_on = ("train",)
    config.evaluate_on = tuple(name for name in splits if name != "train")
    config.tasks[transfer.name] = task(
      transfer.kind,
      labels=dict.fromkeys(splits, SUPERVISED),
      **transfer.options,
    )
    return self.scale.fine_tuning(transfer, config)

  def state(self, directory: Path) -> str:
    """Whether a stage is "done", "to do" or "blocked".

    Blocked are those that need, or that wait for one that needs, what is not
    there and no stage makes.
    """
    stage = self.stages[directory]
    if stage.is_done:
      return "done"
    if directory not in self._blocked:
      self._blocked[directory] = bool(self.unmet(directory)) or any(
        self.state(path) == "blocked" for path in stage.after
      )
    return "blocked" if self._blocked[directory] else "to do"

  def unmet(self, directory: Path) -> tuple[Prerequisite, ...]:
    """What a stage itself reads that is not there."""
    return tuple(
      p for p in self.prerequisites.get(directory, ()) if not self._met(p)
    )

  def results(self, table: Table) -> ResultTable:
    """The results of a table; what is not there is not run."""
    before = table.before_transfer
    columns = [ResultColumn(t.title, t.metric) for t in self.scale.transfers]
    floors = [self.floor_value(transfer) for transfer in self.scale.transfers]
    if before:
      columns.insert(0, ResultColumn(before.title, before.metric))
      floors.insert(0, None)
    rows = []
    for row in table.at(self.scale.name):
      values = [
        self.runs(row.pretraining, transfer).values
        for transfer in self.scale.transfers
      ]
      paper = list(row.paper)
      if before:
        stages = self.pretraining_stages(row.pretraining)
        values.insert(0, self._values(stages, before.key))
        paper.insert(0, row.paper_before)
      rows.append(
        ResultRow(row.title, tuple(values), tuple(map(_fraction, paper)))
      )
    titles = {row.pretraining.name: row.title for row in table.rows}
    results = ResultTable(
      tuple(columns),
      tuple(rows),
      baseline=titles[table.baseline.name],
      highlight=titles[table.highlight.name],
      reference=rows[0].name if table.relative else None,
      floors=tuple(floors),
      remarks=(*table.remarks, *self._selection()),
      quote=table.quote,
    )
    remarks = (*results.remarks, *agreements(results))
    return dataclasses.replace(results, remarks=remarks)

  def runs(self, pretraining: Pretraining, transfer: Transfer) -> TransferRuns:
    """The runs of a table's cell: with the setting that the sweep selects."""
    images = self.images(transfer.images)
    split = "select" if self._sweep and images.select else "validation"
    best: TransferRuns | None = None
    for setting in self.settings(transfer):
      stages = tuple(
        self.fine_tune(pretraining, transfer, setting, seed)
        for seed in self.seeds
      )
      runs = TransferRuns(
        setting,
        stages,
        self._values(stages, f"validation/{transfer.key}"),
        self._values(stages, f"{split}/{transfer.key}"),
      )
      if best is None or runs.score > best.score:
        best = runs
    assert best is not None  # a sweep has a setting
    return best

  def floor_value(self, transfer: Transfer) -> float | None:
    """What a transfer reaches without its images, None if it was not run."""
    values = self._values([self.floor(transfer)], f"validation/{transfer.key}")
    return values[0] if values else None

  def pretraining_stages(self, pretraining: Pretraining) -> tuple[Path, ...]:
    """The stages that make a network, one a seed."""
    seeds = self.seeds[:1] if pretraining.once else self.seeds
    return tuple(
      stage for seed in seeds for stage in self.network(pretraining, seed).after
    )

  def _values(
    self, stages: Iterable[Path], key: str
  ) -> tuple[float, ...] | None:
    values = tuple(
      self.stages[stage].result[key]
      for stage in stages
      if self.stages[stage].is_done
    )
    return values or None

  def _selection(self) -> tuple[str, ...]:
    """Says on which splits the settings were selected."""
    if not self._sweep:
      return ("One setting of each transfer; nothing was selected.",)
    on: dict[str, list[str]] = {}
    for transfer in self.scale.transfers:
      split = self.images(transfer.images).select
      where = f"the split {split!r}" if split else "the reported split itself"
      on.setdefault(where, []).append(transfer.title)
    return tuple(
      f"Learning rate and steps were selected on {where}: {', '.join(titles)}."
      for where, titles in on.items()
    )

  def _classes(self, pretraining: Pretraining) -> dict[str, int]:
    """Number of classes by task, which the labels' first source has."""
    counts: dict[str, int] = {}
    for name, by_task in pretraining.labels.items():
      for task_name, source in by_task.items():
        if KINDS.get(task_name, task_name) not in _HAVE_CLASSES:
          continue
        if isinstance(source, Pretraining):
          counts |= self._classes(source)
        elif found := self.images(name).classes:
          counts[task_name] = found
    return counts

  def _add(
    self,
    name: str,
    function: Any,
    config: ConfigDict,
    *args: Any,
    after: Iterable[Path],
    prerequisites: Iterable[Prerequisite],
    classes: Mapping[str, int] = MappingProxyType({}),
  ) -> Path:
    try:
      config_lib.validate(config)
    except ValueError as error:
      raise ValueError(f"Stage {name}: {error}") from None
    stage = self.stages.add(
      name,
      function,
      config_lib.to_json(config),
      *args,
      after=tuple(dict.fromkeys(after)),
    )
    self.prerequisites[stage] = tuple(dict.fromkeys(prerequisites))
    self.classes[stage] = classes
    return stage


def agreements(table: ResultTable) -> tuple[str, ...]:
  """Says in a sentence how often differences point the published way."""

  def has_deviations(row: ResultRow) -> bool:
    return any(len(seeds) > 1 for seeds in row.values if seeds)

  base_has_deviations = has_deviations(table.row(table.baseline))
  parts = []
  for row in table.rows:
    same, known = table.agreement(row.name)
    if not known:
      continue
    part = f"{row.name} in {same} of {known} columns"
    if base_has_deviations and has_deviations(row):
      same, known = table.agreement(row.name, clear=True)
      part += f", {same} of {known} beyond the seeds' deviations"
    parts.append(part)
  if not parts:
    return ()
  return (
    f"The difference from {table.baseline} has the published direction:"
    f" {'; '.join(parts)}.",
  )


def _fraction(percent: float | None) -> float | None:
  return None if percent is None else round(percent / 100, 6)
