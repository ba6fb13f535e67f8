"""The scale `photos`: small public sets of photographs, trained like `mini`."""

import dataclasses
import os
from typing import NamedTuple

from ml_collections import ConfigDict

from must_jax.lab.paper_tables import Pretraining, Transfer
from must_jax.lab.scale_mini import MiniScale, make_transfer
from must_jax.lab.scales import ImageSplits, Prerequisite
from must_jax.lab.stages import Stages


class _Set(NamedTuple):
  """An image set that is to be imported, see `ImageSplits`."""

  name: str
  train: str
  validation: str
  select: str = ""


_FASHION = _Set("fashion", "train", "test", "val")
_OFFICE = _Set("office", "train", "test")
_SETS = {
  "imagenet": _Set("clothing", "train", "test", "validation"),
  "coco_panoptic": _FASHION,
  "midas": _OFFICE,
  "fashion": _FASHION,
  "office": _OFFICE,
  "normals": _Set("normals", "train", "test"),
  "raccoons": _Set("raccoons", "train", "test"),
  "cells": _Set("cells", "train", "test", "val"),
}


TRANSFERS = (
  make_transfer(
    "raccoons", "detection", "raccoons", "Raccoons", "AP50", 3e-3, 400
  ),
  make_transfer(
    "cells", "detection", "cells", "Blood cells", "AP50", 3e-3, 400
  ),
  make_transfer(
    "fashion",
    "segmentation",
    "fashion",
    "Fashion segm.",
    "mIoU",
    1e-2,
    600,
  ),
  make_transfer(
    "office",
    "depth",
    "office",
    "Office depth",
    "delta1",
    3e-3,
    200,
    options={"unit": "metres", "objective": "berhu"},
  ),
  make_transfer(
    "normals",
    "normals",
    "normals",
    "Office normals",
    "within_11.25",
    3e-3,
    200,
  ),
)
_LIKE_MINI = MiniScale(
  counts={},
  steps={"teacher-segmentation": 1000, "teacher-depth": 300},
  student_steps=1000,
)


@dataclasses.dataclass(frozen=True)
class PhotosScale:
  """Image sets that docs/your-own-data.md imports.

  Attributes:
    data: their directory.
    transfers: the columns of all tables.
    sweep: whether settings are chosen, on splits of their own.
  """

  data: str
  transfers: tuple[Transfer, ...] = TRANSFERS
  sweep: bool = False

  name = "photos"

  def images(self, name: str, stages: Stages) -> ImageSplits:
    """See `Scale`."""
    known = _SETS[name]
    directory = os.path.join(self.data, known.name)
    select = known.select if self.sweep else ""
    splits = tuple(filter(None, (known.train, known.validation, select)))
    how = "docs/your-own-data.md, step 1, has the command"
    return ImageSplits(
      directory,
      known.train,
      known.validation,
      select,
      prerequisite=Prerequisite(directory, splits, how),
    )

  def checkpoint(self, pretraining: Pretraining) -> Prerequisite | None:
    """See `Scale`; everything is trained here."""
    return None

  def pretraining(
    self, pretraining: Pretraining, config: ConfigDict
  ) -> ConfigDict:
    """See `Scale`."""
    return _LIKE_MINI.pretraining(pretraining, config)

  def labelling(self, teacher: Pretraining, config: ConfigDict) -> ConfigDict:
    """See `Scale`."""
    return _LIKE_MINI.labelling(teacher, config)

  def fine_tuning(self, transfer: Transfer, config: ConfigDict) -> ConfigDict:
    """See `Scale`."""
    return _LIKE_MINI.fine_tuning(transfer, config)
