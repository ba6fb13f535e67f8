"""The scale `photos`: small public sets of photographs, trained like `mini`."""

import dataclasses
import os
from typing import NamedTuple

from ml_collections import ConfigDict

from must_jax.lab.mini import Mini, column
from must_jax.lab.recipes import Column, Recipe
from must_jax.lab.scales import Images, Need
from must_jax.lab.stages import Pipeline


class _Set(NamedTuple):
  """An image set that is to be imported, see `Images`."""

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


COLUMNS = (
  column("raccoons", "detection", "raccoons", "Raccoons", "AP50", 3e-3, 400),
  column("cells", "detection", "cells", "Blood cells", "AP50", 3e-3, 400),
  column(
    *("fashion", "segmentation", "fashion", "Fashion segm.", "mIoU"),
    lr=1e-2,
    steps=600,
  ),
  column(
    *("office", "depth", "office", "Office depth", "delta1"),
    lr=3e-3,
    steps=200,
    options={"unit": "metres", "objective": "berhu"},
  ),
  column(
    *("normals", "normals", "normals", "Office normals", "within_11.25"),
    lr=3e-3,
    steps=200,
  ),
)
_LIKE_MINI = Mini(
  counts={},
  steps={"teacher-segmentation": 1000, "teacher-depth": 300},
  student_steps=1000,
)


@dataclasses.dataclass(frozen=True)
class Photos:
  """Image sets that docs/your-own-data.md imports.

  Attributes:
    data: their directory.
    columns: the transfers.
    sweep: whether settings are chosen, on splits of their own.
  """

  data: str
  columns: tuple[Column, ...] = COLUMNS
  sweep: bool = False

  name = "photos"

  def images(self, name: str, pipeline: Pipeline) -> Images:
    """See `Scale`."""
    known = _SETS[name]
    directory = os.path.join(self.data, known.name)
    select = known.select if self.sweep else ""
    splits = tuple(filter(None, (known.train, known.validation, select)))
    how = "docs/your-own-data.md, step 1, has the command"
    return Images(
      directory,
      known.train,
      known.validation,
      select,
      need=Need(directory, splits, how),
    )

  def checkpoint(self, recipe: Recipe) -> Need | None:
    """See `Scale`; everything is trained here."""
    return None

  def pretraining(self, recipe: Recipe, config: ConfigDict) -> ConfigDict:
    """See `Scale`."""
    return _LIKE_MINI.pretraining(recipe, config)

  def labelling(self, recipe: Recipe, config: ConfigDict) -> ConfigDict:
    """See `Scale`."""
    return _LIKE_MINI.labelling(recipe, config)

  def transfer(self, column: Column, config: ConfigDict) -> ConfigDict:
    """See `Scale`."""
    return _LIKE_MINI.transfer(column, config)
