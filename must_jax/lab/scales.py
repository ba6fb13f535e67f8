"""What a scale has to say: image sets, columns, and how long all trains."""

import dataclasses
import pathlib
from typing import Protocol

from etils import epath
from ml_collections import ConfigDict

from must_jax.lab.recipes import Column, Recipe
from must_jax.lab.stages import Pipeline
from must_jax.storage.sets import INDEX_FILE, read_index


@dataclasses.dataclass(frozen=True)
class Need:
  """Something from elsewhere that a stage reads.

  Attributes:
    path: of the directory.
    splits: of an image set; empty for a checkpoint.
    how: to get it.
    kind: of a checkpoint, as `must-jax convert` knows it.
  """

  path: str
  splits: tuple[str, ...]
  how: str
  kind: str = ""

  @property
  def is_met(self) -> bool:
    """Whether it is there."""
    path = epath.Path(self.path)
    if not self.splits:
      return path.exists()
    if not (path / INDEX_FILE).exists():
      return False
    return set(self.splits) <= set(read_index(path)["splits"])


@dataclasses.dataclass(frozen=True)
class Images:
  """An image set and its splits.

  Attributes:
    directory: of the set.
    train: split to learn from and to label.
    validation: split to measure on; empty if there is none.
    select: split to choose settings of a sweep on; empty if there is none.
    truth: directory of a set with the same pictures and true labels, to
      measure pseudo labels with; empty if there is none.
    after: stages that make it.
    need: what must be there beforehand.
    classes: number of its labels' classes, None where only the data tell.
    count: images of `train`, None where only the data tell.
  """

  directory: str
  train: str
  validation: str = ""
  select: str = ""
  truth: str = ""
  after: tuple[pathlib.Path, ...] = ()
  need: Need | None = None
  classes: int | None = None
  count: int | None = None

  @property
  def needs(self) -> tuple[Need, ...]:
    """`need`, if there is one."""
    return (self.need,) if self.need else ()


class Scale(Protocol):
  """What stands for the paper's image sets, and how long all trains."""

  @property
  def name(self) -> str:
    """Out of `recipes.SCALES`."""

  @property
  def columns(self) -> tuple[Column, ...]:
    """The transfers."""

  def images(self, name: str, pipeline: Pipeline) -> Images:
    """What stands for an image set; adds the stages that make it."""

  def checkpoint(self, recipe: Recipe) -> Need | None:
    """Where the network of a recipe is that is not trained here."""

  def pretraining(self, recipe: Recipe, config: ConfigDict) -> ConfigDict:
    """Says how to train a config that says on what."""

  def labelling(self, recipe: Recipe, config: ConfigDict) -> ConfigDict:
    """The same for a labelling job of that teacher."""

  def transfer(self, column: Column, config: ConfigDict) -> ConfigDict:
    """The same for a fine-tuning; its rate and steps are set later."""
