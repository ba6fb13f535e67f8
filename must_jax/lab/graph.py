"""From recipes and columns to stages, and from their results to tables."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax.config import base_config, dataset, task
from must_jax.lab import tables
from must_jax.lab.recipes import (
  KINDS,
  NO_LABELS,
  SUPERVISED,
  Column,
  Recipe,
  Setting,
  Spec,
)
from must_jax.lab.scales import Images, Need, Scale
from must_jax.lab.stages import Pipeline

_HAVE_CLASSES = ("classification", "detection", "segmentation")
# What a fine-tuning takes over from the network that it starts from.
_ARCHITECTURE = (
  *("backbone", "width", "channels", "min_level", "max_level"),
  *("image_mean", "image_std", "fpn_norm", "fpn_top", "norm_epsilon"),
)


@dataclasses.dataclass(frozen=True)
class Network:
  """What a stage can start from.

  Attributes:
    path: of the checkpoint; empty for a network that is not trained.
    model: its `config.model`, None for a network that is not trained.
    after: the stage that makes it, if one does.
    needs: what must be there, if no stage makes it.
  """

  path: str = ""
  model: ConfigDict | None = None
  after: tuple[pathlib.Path, ...] = ()
  needs: tuple[Need, ...] = ()


@dataclasses.dataclass(frozen=True)
class CellRuns:
  """A transfer with one setting.

  Attributes:
    setting: of all seeds.
    stages: one a seed.
    values: on the reported split, of the finished stages; None without any.
    selection: the same on the split that settings are selected on.
  """

  setting: Setting
  stages: tuple[pathlib.Path, ...]
  values: tuple[float, ...] | None
  selection: tuple[float, ...] | None

  @property
  def score(self) -> float:
    """What a sweep selects by: the mean over the seeds."""
    if not self.selection:
      return -1.0
    return sum(self.selection) / len(self.selection)


class Graph:
  """The stages of tables. Those that tables share are there once.

  Attributes:
    scale: what stands for the image sets, and how long all trains.
    seeds: of pre-training and fine-tuning.
    pipeline: gets the stages.
    needs: by stage, what it reads that no stage makes.
    classes: by stage, the number of classes of its tasks, where the scale
      knows them.
    counts: by stage that labels, the number of images, likewise.
  """

  def __init__(
    self,
    pipeline: Pipeline,
    scale: Scale,
    seeds: tuple[int, ...],
    sweep: bool = False,
  ):
    """Makes a graph without stages.

    Args:
      pipeline: gets the stages.
      scale: what stands for the image sets, and how long all trains.
      seeds: of pre-training and fine-tuning.
      sweep: whether transfers try all their settings, or the first.
    """
    self.pipeline, self.scale, self.seeds = pipeline, scale, seeds
    self._sweep = sweep
    self.needs: dict[pathlib.Path, tuple[Need, ...]] = {}
    self.classes: dict[pathlib.Path, Mapping[str, int]] = {}
    self.counts: dict[pathlib.Path, int | None] = {}
    # Recipes share networks: each is worked out once.
    self._networks: dict[tuple[str, int], Network] = {}
    self._transfers: dict[tuple[str, str, Setting, int], pathlib.Path] = {}
    self._blocked: dict[pathlib.Path, bool] = {}
    # Looking may be slow, and many stages read the same.
    self._met = functools.cache(lambda need: need.is_met)

  def add(self, spec: Spec) -> None:
    """Adds all stages of a table."""
    for row in spec.at(self.scale.name):
      for seed in self.seeds:
        self.network(row.recipe, seed)
        for column in self.scale.columns:
          for setting in self.settings(column):
            self.transfer(row.recipe, column, setting, seed)

  def settings(self, column: Column) -> tuple[Setting, ...]:
    """What a transfer tries."""
    return column.sweep if self._sweep else column.sweep[:1]

  def images(self, name: str) -> Images:
    """What stands for an image set."""
    return self.scale.images(name, self.pipeline)

  def network(self, recipe: Recipe, seed: int) -> Network:
    """A pre-trained network; adds the stages that make it."""
    key = recipe.name, 0 if recipe.once else seed
    if key not in self._networks:
      self._networks[key] = self._pretrain(recipe, seed)
    return self._networks[key]

  def _pretrain(self, recipe: Recipe, seed: int) -> Network:
    if need := self.scale.checkpoint(recipe):
      model = self.scale.pretraining(recipe, base_config()).model
      return Network(need.path, model, needs=(need,))
    if not recipe.labels:
      return Network()
    config = base_config()
    # Teachers have the base seed, so that all students see the same labels.
    config.seed = 0 if recipe.once else 100 + seed
    config.sampling = recipe.sampling
    sets = {name: self.images(name) for name in recipe.labels}
    after = [stage for images in sets.values() for stage in images.after]
    needs = [need for images in sets.values() for need in images.needs]
    for name, images in sets.items():
      config.datasets[name] = dataset(images.directory, images.train)
    config.train_on = tuple(sets)
    labels, made = self._sources(recipe)
    after += made
    if recipe.measured_on:
      measured = self.images(recipe.measured_on)
      after += measured.after
      needs += measured.needs
      config.datasets.validation = dataset(
        measured.directory, measured.validation
      )
      config.evaluate_on = ("validation",)
      for sources in labels.values():
        sources["validation"] = SUPERVISED
    for task_name, sources in labels.items():
      kind = KINDS.get(task_name, task_name)
      config.tasks[task_name] = task(kind, labels=sources)
    start = Network()
    if recipe.start:
      start = self.network(recipe.start, seed)
      config.init_from = start.path
      config.init_parts = ("backbone", "fpn")
    config = self.scale.pretraining(recipe, config)
    if recipe.balancing:
      config.balancing.method = recipe.balancing
    suffix = "" if recipe.once else f"-{seed}"
    stage = self._add(
      f"pretrain-{recipe.name}{suffix}",
      train,
      config,
      after=(*after, *start.after),
      needs=(*needs, *start.needs),
      classes=self._classes(recipe),
    )
    return Network(str(stage), config.model, (stage,))

  def _sources(
    self, recipe: Recipe
  ) -> tuple[dict[str, dict[str, str]], list[pathlib.Path]]:
    """As `config.tasks.NAME.labels` by task, and the stages that make them."""
    sources: dict[str, dict[str, str]] = {t: {} for t in recipe.tasks}
    stages = []
    for name, own in recipe.labels.items():
      for task_name, source in own.items():
        if isinstance(source, Recipe):
          stages.append(self.labels(source, name, task_name))
          sources[task_name][name] = str(stages[-1])
        elif source != NO_LABELS:
          sources[task_name][name] = source
    return sources, stages

  def labels(
    self, teacher: Recipe, name: str, task_name: str = ""
  ) -> pathlib.Path:
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
      needs=(*network.needs, *images.needs),
    )
    self.counts[stage] = images.count
    return stage

  def transfer(
    self, recipe: Recipe, column: Column, setting: Setting, seed: int
  ) -> pathlib.Path:
    """The stage that fine-tunes a network."""
    key = recipe.name, column.name, setting, seed
    if key not in self._transfers:
      self._transfers[key] = self._fine_tune(recipe, column, setting, seed)
    return self._transfers[key]

  def _fine_tune(
    self, recipe: Recipe, column: Column, setting: Setting, seed: int
  ) -> pathlib.Path:
    network = self.network(recipe, seed)
    images = self.images(column.images)
    config = base_config()
    config.seed = 200 + seed
    config.init_from = network.path
    config.init_parts = ("backbone", "fpn")  # paper 3.3: fresh heads
    splits = {"train": images.train, "validation": images.validation}
    if self._sweep and images.select:
      splits["select"] = images.select
    for name, split in splits.items():
      config.datasets[name] = dataset(images.directory, split)
    config.train_on = ("train",)
    config.evaluate_on = tuple(name for name in splits if name != "train")
    config.tasks[column.name] = task(
      column.kind, labels=dict.fromkeys(splits, SUPERVISED), **column.options
    )
    config = self.scale.transfer(column, config)
    config.optimizer.lr = setting.lr
    config.train.steps = setting.steps
    if network.model is not None:
      config.model.update({key: network.model[key] for key in _ARCHITECTURE})
    suffix = ""
    if self._sweep:
      suffix = f"-lr{setting.lr:g}-steps{setting.steps}"
    return self._add(
      f"transfer-{recipe.name}-{column.name}-{seed}{suffix}",
      train,
      config,
      after=(*images.after, *network.after),
      needs=(*network.needs, *images.needs),
      classes={column.name: images.classes} if images.classes else {},
    )

  def state(self, directory: pathlib.Path) -> str:
    """Whether a stage is "done", "to do", or "blocked" by an unmet need."""
    stage = self.pipeline.stages[directory]
    if stage.is_done:
      return "done"
    if directory not in self._blocked:
      self._blocked[directory] = bool(self.unmet(directory)) or any(
        self.state(path) == "blocked" for path in stage.after
      )
    return "blocked" if self._blocked[directory] else "to do"

  def unmet(self, directory: pathlib.Path) -> tuple[Need, ...]:
    """What a stage itself reads that is not there."""
    return tuple(n for n in self.needs.get(directory, ()) if not self._met(n))

  def table(self, spec: Spec) -> tables.Table:
    """The results of a table; what is not there is not run."""
    own = spec.own
    columns = [tables.Column(c.title, c.metric) for c in self.scale.columns]
    if own:
      columns.insert(0, tables.Column(own.title, own.metric))
    rows = []
    for row in spec.at(self.scale.name):
      cells = [self.cell(row.recipe, column) for column in self.scale.columns]
      values = [cell.values for cell in cells]
      paper = list(row.paper)
      if own:
        values.insert(0, self._own(spec, row.recipe))
        paper.insert(0, row.own)
      rows.append(
        tables.Row(row.title, tuple(values), tuple(map(_fraction, paper)))
      )
    titles = {row.recipe.name: row.title for row in spec.rows}
    table = tables.Table(
      tuple(columns),
      tuple(rows),
      baseline=titles[spec.baseline.name],
      highlight=titles[spec.highlight.name],
      reference=rows[0].name if spec.relative else None,
      remarks=(*spec.remarks, *self._selection()),
    )
    remarks = (*table.remarks, *agreements(table))
    return dataclasses.replace(table, remarks=remarks)

  def cell(self, recipe: Recipe, column: Column) -> CellRuns:
    """The runs of a cell: with the setting that the sweep selects."""
    images = self.images(column.images)
    split = "select" if self._sweep and images.select else "validation"
    best: CellRuns | None = None
    for setting in self.settings(column):
      stages = tuple(
        self.transfer(recipe, column, setting, seed) for seed in self.seeds
      )
      runs = CellRuns(
        setting,
        stages,
        self._values(stages, f"validation/{column.key}"),
        self._values(stages, f"{split}/{column.key}"),
      )
      if best is None or runs.score > best.score:
        best = runs
    assert best is not None  # a sweep has a setting
    return best

  def own_stages(self, recipe: Recipe) -> tuple[pathlib.Path, ...]:
    """The stages whose networks an own column measures, one a seed."""
    seeds = self.seeds[:1] if recipe.once else self.seeds
    return tuple(s for seed in seeds for s in self.network(recipe, seed).after)

  def _own(self, spec: Spec, recipe: Recipe) -> tuple[float, ...] | None:
    assert spec.own
    return self._values(self.own_stages(recipe), spec.own.key)

  def _values(
    self, stages: Iterable[pathlib.Path], key: str
  ) -> tuple[float, ...] | None:
    values = tuple(
      self.pipeline.stages[stage].result[key]
      for stage in stages
      if self.pipeline.stages[stage].is_done
    )
    return values or None

  def _selection(self) -> tuple[str, ...]:
    """Says on which splits the settings were selected."""
    if not self._sweep:
      return ("One setting of each transfer; nothing was selected.",)
    on: dict[str, list[str]] = {}
    for column in self.scale.columns:
      split = self.images(column.images).select
      where = f"the split {split!r}" if split else "the reported split itself"
      on.setdefault(where, []).append(column.title)
    return tuple(
      f"Learning rate and steps were selected on {where}: {', '.join(titles)}."
      for where, titles in on.items()
    )

  def _classes(self, recipe: Recipe) -> dict[str, int]:
    """Number of classes by task, which the labels' first source has."""
    counts: dict[str, int] = {}
    for name, own in recipe.labels.items():
      for task_name, source in own.items():
        if KINDS.get(task_name, task_name) not in _HAVE_CLASSES:
          continue
        if isinstance(source, Recipe):
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
    after: Iterable[pathlib.Path],
    needs: Iterable[Need],
    classes: Mapping[str, int] = MappingProxyType({}),
  ) -> pathlib.Path:
    try:
      config_lib.validate(config)
    except ValueError as error:
      raise ValueError(f"Stage {name}: {error}") from None
    stage = self.pipeline.add(
      name,
      function,
      config_lib.to_json(config),
      *args,
      after=tuple(dict.fromkeys(after)),
    )
    self.needs[stage] = tuple(dict.fromkeys(needs))
    self.classes[stage] = classes
    return stage


def agreements(table: tables.Table) -> tuple[str, ...]:
  """Says in a sentence how often differences point the published way."""

  def has_deviations(row: tables.Row) -> bool:
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


def train(directory: pathlib.Path, config: str) -> dict[str, float]:
  """Stage: trains; returns the final evaluation."""
  from must_jax.main import run_stage

  return run_stage(config_lib.from_json(config), str(directory))


def label(
  directory: pathlib.Path, config: str, truth: str = ""
) -> dict[str, Any]:
  """Stage: labels images; returns the labels' quality where truth is known."""
  from must_jax.main import run_stage
  from must_jax.pseudo_label import inspect

  run_stage(config_lib.from_json(config), str(directory))
  if not truth:
    return {}
  return inspect.record_quality(directory, pathlib.Path(truth))


def _fraction(percent: float | None) -> float | None:
  return None if percent is None else round(percent / 100, 6)
