"""The scale `mini`: the embedded world, at a size that a CPU trains."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax.lab.paper_tables import Pretraining, Setting, Transfer
from must_jax.lab.render import render
from must_jax.lab.scales import ImageSplits, Prerequisite
from must_jax.lab.stages import Stages
from must_jax.storage.path import Path

_SELECT_IMAGES = 100


@dataclasses.dataclass(frozen=True)
class TeacherSet:
  """An image set with one kind of label and the teacher it makes."""

  kind: str
  set_name: str
  role: str
  metric: str
  lr: float
  options: dict[str, Any] = dataclasses.field(default_factory=dict)


TEACHER_SETS = (
  TeacherSet("classification", "src_cls", "ImageNet", "top1", 0.02),
  TeacherSet("detection", "src_det", "Objects365", "AP50", 0.03),
  TeacherSet("segmentation", "src_seg", "COCO", "mIoU", 0.05),
  TeacherSet("depth", "src_depth", "MiDaS", "aligned_delta1", 0.05),
)
_LR = {entry.kind: entry.lr for entry in TEACHER_SETS}
# (set, split) by name of the paper's. The pile's twin has the labels that only
# JFT's supervised rows read.
_IMAGES = {
  "imagenet": ("src_cls", "train"),
  "objects365": ("src_det", "train"),
  "coco_panoptic": ("src_seg", "train"),
  "midas": ("src_depth", "train"),
  "pile": ("pile", "train"),
  "jft_x1": ("pile_truth", "x1"),
  "jft_x4": ("pile_truth", "x4"),
  "jft": ("pile_truth", "x16"),
}
COUNTS = {
  "src_cls": {"train": 1200, "validation": 200},
  "src_det": {"train": 1200, "validation": 200},
  "src_seg": {"train": 1200, "validation": 200},
  "src_depth": {"train": 1200, "validation": 200},
  # So few that what a network has learned before can matter: pictures of the
  # world are drawn by rules that 100 of them teach (docs/results.md).
  "down_cls": {"train": 192, "validation": 240},
  "down_det": {"train": 64, "validation": 200},
  "down_seg": {"train": 24, "validation": 200},
  "down_depth": {"train": 24, "validation": 200},
  "down_ade": {"train": 48, "validation": 200},
  "down_normals": {"train": 24, "validation": 200},
}
TEACHER_STEPS = {
  "classification": 600,
  "detection": 1000,
  "segmentation": 1000,
  "depth": 500,
}


def make_transfer(
  name: str,
  kind: str,
  images: str,
  title: str,
  metric: str,
  lr: float,
  steps: int,
  options: Mapping[str, Any] = MappingProxyType({}),
) -> Transfer:
  """A transfer that is tried at a rate, and in a sweep at half of it, too."""
  sweep = (Setting(lr, steps), Setting(lr / 2, steps))
  return Transfer(name, kind, images, title, metric, sweep, options)


# Rates of AdamW, found with supervised pre-training.
TRANSFERS = (
  make_transfer(
    "cls", "classification", "down_cls", "Classif.", "top1", 1e-3, 300
  ),
  make_transfer(
    "det",
    "detection",
    "down_det",
    "Detection",
    "AP50",
    3e-3,
    400,
    options={"metric": "voc"},
  ),
  make_transfer("seg", "segmentation", "down_seg", "Segm.", "mIoU", 1e-2, 600),
  make_transfer(
    "depth",
    "depth",
    "down_depth",
    "Depth",
    "delta1",
    3e-3,
    200,
    options={"unit": "metres", "objective": "berhu", "max_depth": 20.0},
  ),
  make_transfer(
    "ade", "segmentation", "down_ade", "ADE segm.", "mIoU", 5e-3, 600
  ),
  make_transfer(
    "normals",
    "normals",
    "down_normals",
    "Normals",
    "within_11.25",
    3e-3,
    200,
  ),
)


@dataclasses.dataclass(frozen=True)
class MiniScale:
  """How long everything trains.

  Attributes:
    counts: images by set and split, see `must_jax.lab.world`.
    steps: of a pre-training, by its name.
    student_steps: of the other pre-trainings.
    transfers: the columns of all tables.
    sweep: whether the transfers' sets get a split to choose settings on.
  """

  counts: dict[str, dict[str, int]]
  steps: dict[str, int]
  student_steps: int
  transfers: tuple[Transfer, ...] = TRANSFERS
  sweep: bool = False

  name = "mini"

  def images(self, name: str, stages: Stages) -> ImageSplits:
    """See `Scale`."""
    set_name, train = _IMAGES.get(name, (name, "train"))
    counts = self.counts[set_name]
    rendered = _add_render(stages, set_name, counts)
    made = ImageSplits(
      str(rendered / set_name),
      train,
      "validation" if "validation" in counts else "",
      after=(rendered,),
    )
    if self.sweep and set_name.startswith("down_"):
      select = "select"
      rendered = _add_render(
        stages, set_name, {select: _SELECT_IMAGES}, f"-{select}"
      )
      made = dataclasses.replace(
        made,
        select=select,
        select_directory=str(rendered / set_name),
        after=(*made.after, rendered),
      )
    if set_name == "pile":
      truth = "pile_truth"
      rendered = _add_render(stages, truth, self.counts[truth])
      made = dataclasses.replace(
        made, truth=str(rendered / truth), after=(*made.after, rendered)
      )
    return made

  def checkpoint(self, pretraining: Pretraining) -> Prerequisite | None:
    """See `Scale`; everything is trained here."""
    return None

  def pretraining(
    self, pretraining: Pretraining, config: ConfigDict
  ) -> ConfigDict:
    """See `Scale`."""
    config = config_lib.small(config)
    if pretraining.tasks == ("contrastive",):
      _make_contrastive(config)
    elif len(pretraining.tasks) == 1:
      config.optimizer.lr = _LR[config.tasks[pretraining.tasks[0]].kind]
    else:
      config.optimizer.lr = 0.05  # only its ratio to the teachers' counts
    config.train.steps = self.steps.get(pretraining.name, self.student_steps)
    return config

  def labelling(self, teacher: Pretraining, config: ConfigDict) -> ConfigDict:
    """See `Scale`."""
    config.label.batch_size = 32
    return config

  def fine_tuning(self, transfer: Transfer, config: ConfigDict) -> ConfigDict:
    """See `Scale`."""
    config = config_lib.small(config)
    config.data.batch_size = 8
    # In so few steps SGD leaves most tasks half trained, whatever a network
    # has learned before.
    config.optimizer.update({"name": "adamw", "warmup_lr": 0.0})
    return config


def _add_render(
  stages: Stages, name: str, counts: Mapping[str, int], suffix: str = ""
) -> Path:
  return stages.add(f"render-{name}{suffix}", render, name, dict(counts))


def _make_contrastive(config: ConfigDict) -> None:
  """Views and optimizer of configs/simclr.py, milder for small images."""
  config.data.update(
    {"batch_size": 32, "train_resize": "inception_crop"}
    | {"crop_area": (0.2, 1.0)}
  )
  config.data.color.update(
    {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    | {"jitter_probability": 0.8, "grey_probability": 0.2}
  )
  # Three tries, one seed: SGD at .1 stays at the loss of chance for 500 steps;
  # AdamW leaves it, as LARS at 1 does a little slower (seen for 360 steps).
  config.optimizer.update({"name": "adamw", "lr": 1e-3, "warmup_lr": 0.0})


# Teachers, and their likes that start from a checkpoint, train alike.
_TEACHER_STEPS = {
  f"{prefix}-{kind}": steps
  for prefix in ("teacher", "checkpoint-teacher")
  for kind, steps in TEACHER_STEPS.items()
}
MINI = MiniScale(
  counts=COUNTS | {"pile_truth": {"x1": 400, "x4": 1600, "x16": 6400}},
  steps=_TEACHER_STEPS | {"checkpoint": 2000},
  student_steps=1200,
)
