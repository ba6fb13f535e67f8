"""The scale `paper`: the shipped configs, on the paper's datasets."""

import dataclasses
import itertools
import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax import convert
from must_jax.importers.datasets import DATASETS
from must_jax.lab.paper_tables import Pretraining, Setting, Transfer
from must_jax.lab.scales import ImageSplits, Prerequisite
from must_jax.lab.stages import Stages

_JFT_IMAGES = 300_000_000  # paper, Table 1
_CLASSES = {
  "imagenet": 1000,
  "objects365": 365,
  "coco_panoptic": 133,
  "jft": 18_291,  # ref JFT-300M; paper: 18k
  "cifar100": 100,
  "voc_detection": 20,
  "voc_segmentation": 21,
  "ade20k": 150,
}


@dataclasses.dataclass(frozen=True)
class _Setup:
  """How a pre-training runs.

  Attributes:
    config: name of a shipped config.
    arg: its argument.
    jft_epochs: of 300 million images; None for the config's steps.
  """

  config: str
  arg: str = ""
  jft_epochs: float | None = None


_SETUPS = {
  "teacher-classification": _Setup("teacher_classification"),
  "teacher-detection": _Setup("teacher_detection"),
  "teacher-segmentation": _Setup("teacher_segmentation"),
  "supervised": _Setup("teacher_classification"),
  "simclr": _Setup("simclr"),
  "must-depth": _Setup("student_imagenet"),
  "must-depth-seg": _Setup("student_imagenet"),
  "must": _Setup("student_imagenet"),
  "must-again": _Setup("student_imagenet"),
  "simclr-jft-1": _Setup("simclr", f"epochs=1,num_images={_JFT_IMAGES}"),
  "simclr-jft-2": _Setup("simclr", f"epochs=2,num_images={_JFT_IMAGES}"),
  "simclr-jft": _Setup("simclr", f"epochs=5,num_images={_JFT_IMAGES}"),
  "supervised-jft-3": _Setup("teacher_classification", jft_epochs=3),
  "supervised-jft-5": _Setup("teacher_classification", jft_epochs=5),
  "supervised-jft": _Setup("teacher_classification", jft_epochs=10),
  "must-jft": _Setup("student_jft"),
  "must-jft-supervised": _Setup("student_jft", jft_epochs=2),
  "checkpoint": _Setup("student_align_b7"),
  "checkpoint-imagenet": _Setup("student"),
  "checkpoint-teacher-classification": _Setup(
    "teacher_classification_align_b7"
  ),
  "checkpoint-teacher-detection": _Setup("teacher_detection_align_b7"),
  "checkpoint-teacher-segmentation": _Setup("teacher_segmentation_align_b7"),
  "must-checkpoint": _Setup("student_align_b7"),
}
_STUDENT = _Setup("student")
# One architecture for all networks that start from scratch.
_BACKBONE = "resnet152"  # ours: the depth is not published
_BACKBONES = {"checkpoint-imagenet": "efficientnet_b7"}
_CHECKPOINTS = {
  "teacher-depth": "midas",
  "checkpoint": "align_b7",
  "checkpoint-imagenet": "imagenet_b7",
}


def _make_transfer(
  name: str,
  kind: str,
  images: str,
  title: str,
  metric: str,
  lrs: tuple[float, ...],
  steps: tuple[int, ...],
  options: Mapping[str, Any],
) -> Transfer:
  # ours: the paper's grid is not published
  grid = itertools.starmap(Setting, itertools.product(lrs, steps))
  # That of configs/finetune.py comes first.
  sweep = tuple(dict.fromkeys((Setting(0.02, 10_000), *grid)))
  return Transfer(name, kind, images, title, metric, sweep, options)


_LONG = (5_000, 10_000, 20_000)
TRANSFERS = (
  _make_transfer(
    "cls",
    "classification",
    "cifar100",
    "CIFAR-100",
    "top1",
    (0.003, 0.01, 0.03, 0.1),
    (5_000, 20_000),
    {},
  ),
  _make_transfer(
    "det",
    "detection",
    "voc_detection",
    "Pascal detection",
    "AP50",
    (0.005, 0.01, 0.02, 0.04, 0.08),
    _LONG,
    {"metric": "voc"},
  ),
  _make_transfer(
    "seg",
    "segmentation",
    "voc_segmentation",
    "Pascal segm.",
    "mIoU",
    (0.01, 0.02, 0.04, 0.08),
    _LONG,
    {},
  ),
  _make_transfer(
    "depth",
    "depth",
    "nyu_depth",
    "NYU depth",
    "delta1",
    (0.01, 0.03, 0.1),
    (10_000, 20_000),
    {"unit": "metres", "objective": "berhu", "crop": "eigen"},  # ref BYOL D.6
  ),
  _make_transfer(
    "ade",
    "segmentation",
    "ade20k",
    "ADE segm.",
    "mIoU",
    (0.01, 0.02, 0.04, 0.08),
    _LONG,
    {},
  ),
  _make_transfer(
    "normals",
    "normals",
    "diode_normals",
    "DIODE normals",
    "within_11.25",
    (0.01, 0.03, 0.1),
    (10_000, 20_000),
    {},
  ),
)


@dataclasses.dataclass(frozen=True)
class PaperScale:
  """The configs, and datasets that were imported under one directory.

  Attributes:
    data: the directory; a dataset is in its `imagenet`, ...
    transfers: the columns of all tables.
  """

  data: str
  transfers: tuple[Transfer, ...] = TRANSFERS

  name = "paper"

  def images(self, name: str, stages: Stages) -> ImageSplits:
    """See `Scale`."""
    known = DATASETS[name]
    directory = os.path.join(self.data, name)
    splits = tuple(known.splits)[:2]
    how = [
      *(known.command(split, directory) for split in splits),
      f"files: {known.source}",
    ]
    return ImageSplits(
      directory,
      train=splits[0],
      validation=splits[1] if len(splits) > 1 else "",
      prerequisite=Prerequisite(directory, splits, "\n".join(how)),
      classes=_CLASSES.get(name),
      count=_JFT_IMAGES
      if name == "jft"
      else known.splits[splits[0]].num_images,
    )

  def checkpoint(self, pretraining: Pretraining) -> Prerequisite | None:
    """See `Scale`."""
    name = _CHECKPOINTS.get(pretraining.name)
    if name is None:
      return None
    place, (kind, *_) = f"checkpoints/{name}", convert.CHECKPOINTS[name]
    return Prerequisite(place, (), convert.command(name, place), kind)

  def pretraining(
    self, pretraining: Pretraining, config: ConfigDict
  ) -> ConfigDict:
    """See `Scale`."""
    setup = _SETUPS.get(pretraining.name, _STUDENT)
    real = _load(setup.config, setup.arg)
    for key in ("model", "data", "optimizer", "balancing", "train"):
      config[key] = real[key]
    if config.model.backbone == "resnet50":
      config.model.backbone = _BACKBONES.get(pretraining.name, _BACKBONE)
    if real.init_from:
      config.init_from, config.init_parts = real.init_from, real.init_parts
    if setup.jft_epochs:
      examples = setup.jft_epochs * _JFT_IMAGES
      config.train.steps = round(examples / config.data.batch_size)
    if "depth" in pretraining.teachers:
      config.tasks.depth.weight = 1.0  # configs/student.py; paper: swept
    return config

  def labelling(self, teacher: Pretraining, config: ConfigDict) -> ConfigDict:
    """See `Scale`."""
    name = "label_midas" if teacher.name == "teacher-depth" else "label"
    real = _load(name).label
    for key in ("batch_size", "map_stride"):
      config.label[key] = real[key]
    return config

  def fine_tuning(self, transfer: Transfer, config: ConfigDict) -> ConfigDict:
    """See `Scale`."""
    real = _load("finetune", f"kind={transfer.kind}")
    for key in ("data", "optimizer", "train"):
      config[key] = real[key]
    return config


def _load(name: str, arg: str = "") -> ConfigDict:
  """The shipped config `NAME:ARG`."""
  return config_lib.load(f"{name}:{arg}")
