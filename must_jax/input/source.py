"""Where images and their labels come from."""

import dataclasses
from collections.abc import Mapping, Sequence

SUPERVISED = "supervised"
Origins = str | Sequence[str] | None


@dataclasses.dataclass(frozen=True)
class Source:
  """A split of an image set and where its labels come from.

  Attributes:
    directory: of the image set.
    split: of the image set.
    labels: {task: origins}: "supervised" for the image set's own labels, the
      directory of a label set, or both in this order: then the label set serves
      the images that have no labels of their own. A task that is missing has no
      labels here.
  """

  directory: str
  split: str
  labels: Mapping[str, Origins] = dataclasses.field(default_factory=dict)

  def origins(self, task: str) -> tuple[bool, str | None]:
    """Whether a task reads the set's own labels, and its label set.

    Raises:
      ValueError: more than one label set, or another order.
    """
    given = self.labels.get(task) or ()
    origins = (given,) if isinstance(given, str) else tuple(given)
    own = origins[:1] == (SUPERVISED,)
    rest = origins[own:]
    if len(rest) > 1 or SUPERVISED in rest:
      raise ValueError(
        f"Task {task!r} takes its labels on {self.directory} from"
        f" {list(origins)}; expected {SUPERVISED!r}, the directory of a label"
        f" set, or both in this order."
      )
    return own, rest[0] if rest else None
