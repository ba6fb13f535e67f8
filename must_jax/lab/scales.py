"""What a scale says: image sets, transfers, and how long all trains."""

import dataclasses
from typing import Protocol

from ml_collections import ConfigDict

from must_jax.lab.paper_tables import Pretraining, Transfer
from must_jax.lab.stages import Stages
from must_jax.storage.path import Path
from must_jax.storage.sets import INDEX_FILE, read_index


@dataclasses.dataclass(frozen=True)
class Prerequisite:
  """Something that a stage reads and no stage makes.

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
    path = Path(self.path)
    if not self.splits:
      return path.exists()
    if not (path / INDEX_FILE).exists():
      return False
    return set(self.splits) <= set(read_index(path)["splits"])


@dataclasses.dataclass(frozen=True)
class ImageSplits:
  """An image set and its splits.

  Attributes:
    directory: of the set.
    train: split to learn from and to label.
    validation: split to measure on; empty if there is none.
    select: split to choose settings of a sweep on; empty if there is none.
    select_directory: of the set that has that split; empty for `directory`.
    truth: directory of a set with the same pictures and true labels, to
      measure pseudo labels with; empty if there is none.
    after: stages that make it.
    prerequisite: what must be there beforehand.
    classes: number of its labels' classes, None where only the data tell.
    count: images of `train`, None where only the data tell.
  """

  directory: str
  train: str
  validation: str = ""
  select: str = ""
  select_directory: str = ""
  truth: str = ""
  after: tuple[Path, ...] = ()
  prerequisite: Prerequisite | None = None
  classes: int | None = None
  count: int | None = None

  @property
  def prerequisites(self) -> tuple[Prerequisite, ...]:
    """`prerequisite`, if there is one."""
    return (self.prerequisite,) if self.prerequisite else ()


class Scale(Protocol):
  """What stands for the paper's image sets, and how long all trains."""

  @property
  def name(self) -> str:
    """Out of `paper_tables.SCALES`."""

  @property
  def transfers(self) -> tuple[Transfer, ...]:
    """The columns of all tables."""

  def images(self, name: str, stages: Stages) -> ImageSplits:
    """What stands for an image set; adds the stages that make it."""

  def checkpoint(self, pretraining: Pretraining) -> Prerequisite | None:
    """Where a network is that is not trained here."""

  def pretraining(
    self, pretraining: Pretraining, config: ConfigDict
  ) -> ConfigDict:
    """Says how to train a config that says on what."""

  def labelling(self, teacher: Pretraining, config: ConfigDict) -> ConfigDict:
    """The same for a labelling job of that teacher."""

  def fine_tuning(self, transfer: Transfer, config: ConfigDict) -> ConfigDict:
    """The same for a transfer; its rate and steps are set later."""
