"""The scale `mini`: the embedded world, at a size that a CPU trains."""

import dataclasses
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax.lab.recipes import Column, Recipe, Setting
from must_jax.lab.scales import Images, Need
from must_jax.lab.stages import Pipeline

IMAGE_SIZE = 64
_SELECT_IMAGES = 100


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
_LR = {source.kind: source.lr for source in SOURCES}
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


def column(
  name: str,
  kind: str,
  images: str,
  title: str,
  metric: str,
  lr: float,
  steps: int,
  options: Mapping[str, Any] = MappingProxyType({}),
) -> Column:
  """A transfer that is tried at a rate, and in a sweep at half of it, too."""
  sweep = (Setting(lr, steps), Setting(lr / 2, steps))
  return Column(name, kind, images, title, metric, sweep, options)


# Rates of AdamW, found with supervised pre-training.
COLUMNS = (
  column("cls", "classification", "down_cls", "Classif.", "top1", 1e-3, 300),
  column(
    *("det", "detection", "down_det", "Detection", "AP50"),
    lr=3e-3,
    steps=400,
    options={"metric": "voc"},
  ),
  column("seg", "segmentation", "down_seg", "Segm.", "mIoU", 1e-2, 600),
  column(
    *("depth", "depth", "down_depth", "Depth", "delta1"),
    lr=3e-3,
    steps=200,
    options={"unit": "metres", "objective": "berhu", "max_depth": 20.0},
  ),
  column("ade", "segmentation", "down_ade", "ADE segm.", "mIoU", 5e-3, 600),
  column(
    *("normals", "normals", "down_normals", "Normals", "within_11.25"),
    lr=3e-3,
    steps=200,
  ),
)


@dataclasses.dataclass(frozen=True)
class Mini:
  """How long everything trains.

  Attributes:
    counts: images by set and split, see `data.synthetic`.
    steps: of a recipe, by its name.
    student_steps: of the other recipes.
    columns: the transfers.
    sweep: whether the transfers' sets get a split to choose settings on.
  """

  counts: dict[str, dict[str, int]]
  steps: dict[str, int]
  student_steps: int
  columns: tuple[Column, ...] = COLUMNS
  sweep: bool = False

  name = "mini"

  def images(self, name: str, pipeline: Pipeline) -> Images:
    """See `Scale`."""
    set_name, train = _IMAGES.get(name, (name, "train"))
    counts = self.counts[set_name]
    world = pipeline.workdir / "world"
    truth = "pile_truth" if set_name == "pile" else ""
    rendered, *others = (
      pipeline.add(f"render-{n}", render, str(world), n, self.counts[n])
      for n in (set_name, truth)
      if n
    )
    select = ""
    if self.sweep and set_name.startswith("down_"):
      select = "select"
      rendered = pipeline.add(
        f"render-{set_name}-{select}",
        render,
        str(world),
        set_name,
        {select: _SELECT_IMAGES},
        after=(rendered,),  # they write the same index
      )
    return Images(
      str(world / set_name),
      train,
      "validation" if "validation" in counts else "",
      select,
      str(world / truth) if truth else "",
      (rendered, *others),
    )

  def checkpoint(self, recipe: Recipe) -> Need | None:
    """See `Scale`; everything is trained here."""
    return None

  def pretraining(self, recipe: Recipe, config: ConfigDict) -> ConfigDict:
    """See `Scale`."""
    config = config_lib.small(config)
    if recipe.tasks == ("contrastive",):
      _make_contrastive(config)
    elif len(recipe.tasks) == 1:
      config.optimizer.lr = _LR[config.tasks[recipe.tasks[0]].kind]
    else:
      config.optimizer.lr = 0.05  # only its ratio to the teachers' counts
    config.train.steps = self.steps.get(recipe.name, self.student_steps)
    return config

  def labelling(self, recipe: Recipe, config: ConfigDict) -> ConfigDict:
    """See `Scale`."""
    config.label.batch_size = 32
    return config

  def transfer(self, column: Column, config: ConfigDict) -> ConfigDict:
    """See `Scale`."""
    config = config_lib.small(config)
    config.data.batch_size = 8
    # In so few steps SGD leaves most tasks half trained, whatever a network
    # has learned before.
    config.optimizer.update({"name": "adamw", "warmup_lr": 0.0})
    return config


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
MINI = Mini(
  counts=COUNTS | {"pile_truth": {"x1": 400, "x4": 1600, "x16": 6400}},
  steps=_TEACHER_STEPS | {"checkpoint": 2000},
  student_steps=1200,
)


def render(
  directory: pathlib.Path, world: str, name: str, counts: dict[str, int]
) -> None:
  """Stage: writes an image set of the world."""
  from must_jax.lab.world import build

  build(world, IMAGE_SIZE, {name: counts}, workers=1)
