"""`must-jax demo`: the paper's chain on the embedded world.

Four teachers, each on a dataset with one kind of label; pseudo labels of all
four on an unlabelled pile, and of three on the classification dataset, which
has labels of the fourth kind; three pre-trainings (none, supervised
classification, MuST on all these images); each fine-tuned on six small datasets
(paper's Table 2).
"""

import dataclasses
import pathlib
import time
from typing import Any

from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax.config import base_config, dataset, task
from must_jax.experiments import report
from must_jax.experiments.pipeline import Pipeline
from must_jax.experiments.tables import Column, Row, Table


@dataclasses.dataclass(frozen=True)
class Scale:
  """How long everything trains.

  Attributes:
    counts: images by set and split, see `data.synthetic`.
    teacher_steps: by kind of task.
    student_steps: of both pre-trainings.
    transfer_steps: by column.
    seeds: of pre-training and fine-tuning.
  """

  counts: dict[str, dict[str, int]]
  teacher_steps: dict[str, int]
  student_steps: int
  transfer_steps: dict[str, int]
  seeds: tuple[int, ...]


IMAGE_SIZE = 64
REPORT = "report.html"
QUICK = Scale(
  counts={
    "src_cls": {"train": 1200, "validation": 200},
    "src_det": {"train": 1200, "validation": 200},
    "src_seg": {"train": 1200, "validation": 200},
    "src_depth": {"train": 1200, "validation": 200},
    "pile": {"train": 2400},
    "pile_truth": {"train": 2400},
    "down_cls": {"train": 192, "validation": 240},
    "down_det": {"train": 128, "validation": 200},
    "down_seg": {"train": 96, "validation": 200},
    "down_depth": {"train": 96, "validation": 200},
    "down_ade": {"train": 128, "validation": 200},
    "down_normals": {"train": 96, "validation": 200},
  },
  teacher_steps={
    "classification": 600,
    "detection": 1000,
    "segmentation": 1000,
    "depth": 500,
  },
  student_steps=1000,
  transfer_steps={
    "cls": 300,
    "det": 400,
    "seg": 400,
    "depth": 200,
    "ade": 400,
    "normals": 200,
  },
  seeds=(0,),
)
FULL = dataclasses.replace(
  QUICK,
  teacher_steps={kind: 2 * n for kind, n in QUICK.teacher_steps.items()},
  student_steps=2500,
  seeds=(0, 1, 2),
)


@dataclasses.dataclass(frozen=True)
class Source:
  """A dataset with one kind of label and the teacher it makes."""

  kind: str
  set_name: str
  role: str
  metric: str
  lr: float
  options: dict[str, Any] = dataclasses.field(default_factory=dict)


SOURCES = (
  Source("classification", "src_cls", "ImageNet", "top1", 0.02),
  Source("detection", "src_det", "Objects365", "AP50", 0.03),
  Source("segmentation", "src_seg", "COCO", "mIoU", 0.05),
  Source("depth", "src_depth", "MiDaS", "aligned_delta1", 0.05),
)


@dataclasses.dataclass(frozen=True)
class Transfer:
  """A column of the table: a dataset to fine-tune on."""

  name: str
  kind: str
  set_name: str
  title: str
  metric: str
  lr: float
  options: dict[str, Any] = dataclasses.field(default_factory=dict)


TRANSFERS = (
  Transfer("cls", "classification", "down_cls", "Classif.", "top1", 0.02),
  Transfer(
    "det", "detection", "down_det", "Detection", "AP50", 0.03, {"metric": "voc"}
  ),
  Transfer("seg", "segmentation", "down_seg", "Segm.", "mIoU", 0.05),
  Transfer(
    "depth",
    "depth",
    "down_depth",
    "Depth",
    "delta1",
    0.03,
    {"unit": "metres", "objective": "berhu", "max_depth": 20.0},
  ),
  Transfer("ade", "segmentation", "down_ade", "ADE segm.", "mIoU", 0.05),
  Transfer(
    "normals", "normals", "down_normals", "Normals", "within_11.25", 0.05
  ),
)
LABELLED = SOURCES[0]  # its images and true labels serve the student, too
# Rows of the table: none is the initialisation at random.
PRETRAININGS = {
  "none": "No pre-training",
  "supervised": "Supervised classification",
  "must": "MuST",
}
# The paper's figures in the same columns (Table 2), for the eye only: other
# data, other sizes.
PAPER = {
  "supervised": (85.4, 79.3, 70.6, 81.0, 39.8, 48.9),
  "must": (86.3, 85.1, 80.6, 87.8, 43.5, 52.7),
}


@dataclasses.dataclass(frozen=True)
class Chain:
  """The directories of all stages."""

  world: pathlib.Path
  teachers: dict[str, pathlib.Path]
  labels: dict[str, pathlib.Path]
  pretrained: dict[tuple[str, int], pathlib.Path]
  transfers: dict[tuple[str, str, int], pathlib.Path]


def run(workdir: pathlib.Path, *, full: bool = False, jobs: int = 2) -> int:
  """Runs what is not done yet, prints the table and names the report.

  Args:
    workdir: keeps everything; the same call continues an interrupted one.
    full: longer training and three seeds.
    jobs: stages that run at a time.

  Returns:
    The exit status.
  """
  start = time.monotonic()
  workdir = pathlib.Path(workdir).absolute()
  workdir.mkdir(parents=True, exist_ok=True)
  scale = FULL if full else QUICK
  pipeline = Pipeline(workdir, jobs)
  chain = build(pipeline, scale)
  pipeline.add(
    "report",
    write_report,
    str(workdir),
    full,
    after=tuple(pipeline.stages),
  )
  pipeline.run()
  print("\nTeachers: validation on their own set, pseudo labels on the pile")
  for q in label_quality(pipeline, chain):
    print(f"  {q.teacher:<16}{q.metric:<16}{q.validation:.3f}  {q.pile:.3f}")
  print(f"\n{make_table(pipeline, chain, scale).to_text()}\n")
  minutes = (time.monotonic() - start) / 60
  print(f"Report: {workdir / REPORT}  ({minutes:.1f} minutes)")
  return 0


def build(pipeline: Pipeline, scale: Scale) -> Chain:
  """Adds all stages of the chain to a pipeline."""
  world = pipeline.workdir / "world"
  rendered = {
    name: pipeline.add(f"render-{name}", render, str(world), name, counts)
    for name, counts in scale.counts.items()
  }
  teachers, labels, labels_of_labelled = {}, {}, {}
  for source in SOURCES:
    teachers[source.kind] = pipeline.add(
      f"teach-{source.kind}",
      train,
      _json(_teacher_config(source, world, scale)),
      after=(rendered[source.set_name],),
    )
    labels[source.kind] = pipeline.add(
      f"label-{source.kind}",
      label,
      _json(_label_config(world / "pile", teachers[source.kind])),
      str(world / "pile_truth"),
      after=(
        teachers[source.kind],
        rendered["pile"],
        rendered["pile_truth"],
      ),
    )
    if source is not LABELLED:
      labels_of_labelled[source.kind] = pipeline.add(
        f"label-{LABELLED.set_name}-{source.kind}",
        label,
        _json(_label_config(world / LABELLED.set_name, teachers[source.kind])),
        after=(teachers[source.kind], rendered[LABELLED.set_name]),
      )
  pretrained, transfers = {}, {}
  for seed in scale.seeds:
    pretrained["supervised", seed] = pipeline.add(
      f"pretrain-supervised-{seed}",
      train,
      _json(_supervised_config(world, scale, seed)),
      after=(rendered[LABELLED.set_name],),
    )
    pretrained["must", seed] = pipeline.add(
      f"pretrain-must-{seed}",
      train,
      _json(_student_config(world, labels, labels_of_labelled, scale, seed)),
      after=(*labels.values(), *labels_of_labelled.values()),
    )
    for transfer in TRANSFERS:
      for row in PRETRAININGS:
        init = pretrained.get((row, seed))
        transfers[row, transfer.name, seed] = pipeline.add(
          f"transfer-{row}-{transfer.name}-{seed}",
          train,
          _json(_transfer_config(transfer, world, init, scale, seed)),
          after=(rendered[transfer.set_name], *filter(None, (init,))),
        )
  return Chain(world, teachers, labels, pretrained, transfers)


def render(
  directory: pathlib.Path, world: str, name: str, counts: dict[str, int]
) -> None:
  """Stage: writes an image set of the world."""
  from must_jax.data import synthetic

  synthetic.build(world, IMAGE_SIZE, {name: counts}, workers=1)


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


def write_report(directory: pathlib.Path, workdir: str, full: bool) -> None:
  """Stage: writes the report from what the others left."""
  from must_jax.experiments import showcase

  scale = FULL if full else QUICK
  pipeline = Pipeline(pathlib.Path(workdir), jobs=1)
  chain = build(pipeline, scale)
  showcase.write(
    pathlib.Path(workdir) / REPORT,
    pipeline,
    chain,
    make_table(pipeline, chain, scale),
    facts={
      "Command": f"must-jax demo{' --full' if full else ''}",
      "Seeds": ", ".join(map(str, scale.seeds)),
    },
    quality=label_quality(pipeline, chain),
  )


def make_table(pipeline: Pipeline, chain: Chain, scale: Scale) -> Table:
  """The paper's Table 2 in the small."""
  rows = []
  for row, title in PRETRAININGS.items():
    values = []
    for transfer in TRANSFERS:
      key = f"validation/{transfer.name}/{transfer.metric}"
      values.append(
        tuple(
          pipeline.stages[chain.transfers[row, transfer.name, s]].result[key]
          for s in scale.seeds
        )
      )
    paper = tuple(value / 100 for value in PAPER.get(row, ()))
    rows.append(Row(title, tuple(values), paper))
  return Table(
    tuple(Column(t.title, t.metric) for t in TRANSFERS),
    tuple(rows),
    baseline=PRETRAININGS["supervised"],
    highlight=PRETRAININGS["must"],
  )


def label_quality(
  pipeline: Pipeline, chain: Chain
) -> tuple[report.LabelQuality, ...]:
  """How good the teachers are at home, and their labels on the pile."""
  return tuple(
    report.LabelQuality(
      teacher=source.kind,
      dataset=f"{source.set_name} (in the role of {source.role})",
      metric=source.metric,
      validation=pipeline.stages[chain.teachers[source.kind]].result[
        f"validation/{source.kind}/{source.metric}"
      ],
      pile=pipeline.stages[chain.labels[source.kind]].result[source.metric],
    )
    for source in SOURCES
  )


def _json(config: ConfigDict) -> str:
  config_lib.validate(config)
  return config_lib.to_json(config)


def _teacher_config(
  source: Source, world: pathlib.Path, scale: Scale
) -> ConfigDict:
  config = base_config()
  for split in ("train", "validation"):
    config.datasets[split] = dataset(world / source.set_name, split)
  config.train_on, config.evaluate_on = ("train",), ("validation",)
  config.tasks[source.kind] = task(
    source.kind,
    labels={"train": "supervised", "validation": "supervised"},
    **source.options,
  )
  config = config_lib.small(config)
  config.optimizer.lr = source.lr
  config.train.steps = scale.teacher_steps[source.kind]
  return config


def _label_config(images: pathlib.Path, teacher: pathlib.Path) -> ConfigDict:
  config = base_config()
  config.stage = "label"
  config.datasets.images = dataset(images, "train")
  config.label.update({"teacher": str(teacher), "dataset": "images"})
  config.label.batch_size = 32
  return config


def _supervised_config(
  world: pathlib.Path, scale: Scale, seed: int
) -> ConfigDict:
  config = _teacher_config(LABELLED, world, scale)
  config.seed = 100 + seed
  config.train.steps = scale.student_steps
  return config


def _student_config(
  world: pathlib.Path,
  labels: dict[str, pathlib.Path],
  labels_of_labelled: dict[str, pathlib.Path],
  scale: Scale,
  seed: int,
) -> ConfigDict:
  config = base_config()
  config.seed = 100 + seed
  config.datasets.pile = dataset(world / "pile", "train")
  config.datasets.labelled = dataset(world / LABELLED.set_name, "train")
  config.train_on = ("labelled", "pile")
  for kind, directory in labels.items():
    # Supervised labels where there are some, else a teacher's (paper 3.2).
    other = str(labels_of_labelled.get(kind, "supervised"))
    config.tasks[kind] = task(
      kind, labels={"pile": str(directory), "labelled": other}
    )
  config = config_lib.small(config)
  config.optimizer.lr = 0.05  # only its ratio to the teachers' counts
  config.train.steps = scale.student_steps
  return config


def _transfer_config(
  transfer: Transfer,
  world: pathlib.Path,
  init: pathlib.Path | None,
  scale: Scale,
  seed: int,
) -> ConfigDict:
  config = base_config()
  config.seed = 200 + seed
  config.init_from = str(init or "")
  config.init_parts = ("backbone", "fpn")  # paper 3.3: fresh heads
  for split in ("train", "validation"):
    config.datasets[split] = dataset(world / transfer.set_name, split)
  config.train_on, config.evaluate_on = ("train",), ("validation",)
  config.tasks[transfer.name] = task(
    transfer.kind,
    labels={"train": "supervised", "validation": "supervised"},
    **transfer.options,
  )
  config = config_lib.small(config)
  config.data.batch_size = 8
  config.optimizer.lr = transfer.lr
  config.train.steps = scale.transfer_steps[transfer.name]
  return config
