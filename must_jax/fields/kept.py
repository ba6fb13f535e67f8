"""How much of stored labels is left at the score from which they are read.

A task reads boxes and pixels of pseudo labels from a score on, `min_score`. How
many that are follows from the sums over a label set (`statistics`), without a
look at its records.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from must_jax.fields.statistics import count_below

_MAX_LISTED = 20  # classes
_FEW_A_LABEL, _FEW_OF_STORED = 0.1, 0.01


@dataclasses.dataclass(frozen=True)
class Kept:
  """What a field reads out of the labels of a set.

  Counts are of elements: boxes, pixels, or classes of whole images. Between two
  scores of the grid on which they were counted (`statistics`) only bounds are
  known.

  Attributes:
    name: of elements, "boxes".
    min_score: from which they are read, one for all or for each class; None for
      a kind without scores.
    labels, stored: labels in the set, and elements in them.
    bounds: least and most that is left.
    stored_by_class: elements in the set, by class id.
    by_class: `bounds` by class id; None where scores were not counted by class,
      as by earlier versions.
  """

  name: str
  min_score: float | tuple[float, ...] | None
  labels: int
  stored: int
  bounds: tuple[int, int]
  stored_by_class: Mapping[int, int]
  by_class: Mapping[int, tuple[int, int]] | None

  @property
  def has_threshold(self) -> bool:
    """Whether the kind of field has scores below which it is not read."""
    return self.min_score is not None

  @property
  def is_nothing(self) -> bool:
    """Whether there is nothing to learn from."""
    return self.bounds[1] == 0

  @property
  def is_little(self) -> bool:
    """Less than one in ten labels, or of what was stored than one in 100."""
    few = max(_FEW_A_LABEL * self.labels, _FEW_OF_STORED * self.stored)
    return self.bounds[1] < few

  def __str__(self) -> str:
    stored = f"{self.stored:,} {self.name} in {self.labels:,} labels"
    if not self.stored:
      return stored
    if not np.any(self.min_score or 0):
      return f"{stored}, all of which are read"
    return (
      f"{stored}, of which {share_text(self.bounds, self.stored)} have a score"
      f" of {threshold_text(self.min_score)} or more and are read"
    )

  def lines(self, classes: Sequence[str]) -> Iterator[str]:
    """What is left of each class, the most frequent first.

    Args:
      classes: names in order of their ids; empty for a field without.
    """
    if not classes:
      return
    if self.by_class is None:
      yield "  (left by class: not known, an earlier version counted)"
    order = sorted(
      self.stored_by_class, key=lambda k: (-self.stored_by_class[k], k)
    )
    yield f"  {'class':<24} {'stored':>12}" + (
      f" {'left':>24}" if self.by_class else ""
    )
    for k in order[:_MAX_LISTED]:
      yield f"  {classes[k]:<24} {self.stored_by_class[k]:>12,}" + (
        f" {self.left_of(k):>24}" if self.by_class else ""
      )
    if len(order) > _MAX_LISTED:
      yield f"  ... and {len(order) - _MAX_LISTED:,} classes more"
    if absent := len(classes) - len(order):
      yield f"  {absent:,} of the {len(classes):,} classes do not occur"
    if lost := self.lost(classes):
      yield f"  nothing is left of {_names(lost)}"

  def left_of(self, k: int) -> str:
    """How much is left of a class, as a number and a share of it.

    Args:
      k: its id.
    """
    if self.by_class is None:
      return "not known"
    return share_text(
      self.by_class.get(k, (0, 0)), self.stored_by_class.get(k, 0)
    )

  def lost(self, classes: Sequence[str]) -> list[str]:
    """Classes of which something is stored, and nothing left."""
    return [
      classes[k]
      for k, (_, most) in sorted((self.by_class or {}).items())
      if self.stored_by_class[k] and not most
    ]

  def describe(self, classes: Sequence[str]) -> dict[str, Any]:
    """For a manifest: what is left at least, of all and of each class."""
    by_class = self.by_class or {}
    min_score: Any = self.min_score
    if isinstance(min_score, tuple):
      min_score = dict(zip(classes, min_score, strict=True))
    return {
      "min_score": min_score,
      "elements": self.bounds[0],
      "classes": {classes[k]: n for k, (n, _) in sorted(by_class.items())},
    }


def count_kept(
  sums: Mapping[str, Any],
  name: str,
  min_score: float | tuple[float, ...] | None,
) -> Kept:
  """Counts what is left.

  Args:
    sums: over a set, see `statistics`.
    name: of elements.
    min_score: from which they are read, one for all or for each class; None for
      a kind without scores.
  """
  stored = {int(k): n for k, n in sums.get("classes", {}).items()}
  histograms = {int(k): h for k, h in sums.get("class_scores", {}).items()}
  scores, elements = sums.get("scores", []), sums["elements"]
  by_class = None
  wanted = np.atleast_1d(min_score or 0.0)
  least = count_below(scores, wanted.min())[0]
  most = count_below(scores, wanted.max())[1]
  # Where an earlier version counted, be it a part of the shards, there are no
  # scores by class, and they matter unless all is read.
  if not wanted.any() or sum(map(sum, histograms.values())) == sum(scores):
    # What has no score is read whatever the threshold.
    below = {
      k: count_below(histograms.get(k, []), wanted[min(k, len(wanted) - 1)])
      for k in stored
    }
    by_class = {
      k: (stored[k] - high, stored[k] - low) for k, (low, high) in below.items()
    }
    least = sum(low for low, _ in below.values())
    most = sum(high for _, high in below.values())
  return Kept(
    name=name,
    min_score=min_score,
    labels=sums["examples"],
    stored=elements,
    bounds=(elements - most, elements - least),
    stored_by_class=stored,
    by_class=by_class,
  )


def threshold_text(min_score: float | Sequence[float] | None) -> str:
  """A threshold of scores, of all classes or of each, for people."""
  scores = np.atleast_1d(min_score or 0.0)
  low, high = f"{scores.min():g}", f"{scores.max():g}"
  return low if low == high else f"{low} to {high} (by class)"


def share_text(bounds: Sequence[int], stored: int) -> str:
  """How much is left of what is stored, as a number and in percent.

  Args:
    bounds: the least and the most that is left.
    stored: of it.
  """
  counts = [f"{count:,}" for count in bounds]
  parts = [f"{count / max(stored, 1):.1%}" for count in bounds]
  number, part = (
    low if low == high else f"{low} to {high}" for low, high in (counts, parts)
  )
  return f"{number} ({part})"


def _names(names: Sequence[str]) -> str:
  shown = ", ".join(names[:_MAX_LISTED])
  more = len(names) - _MAX_LISTED
  return shown + (f" and {more:,} more" if more > 0 else "")
