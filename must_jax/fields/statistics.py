"""Sums over labels that tell whether a teacher worked at all.

All are integers, so that they add up to the same in any order:

  examples   labels
  elements   boxes, valid pixels, or classes of an image: the most probable
             one, and those of probability 0.5 or more
  empty      labels without elements
  constant   maps with one value, class vectors that say nothing
  scores     histogram of scores or confidences over 10 bins of [0, 1]
  score_sum  sum of scores in units of 1/255
  classes    {class id: elements}
  ...        what a kind adds, numbers or lists or dicts of them
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

_BINS = 10


def make_sums(
  *,
  classes: np.ndarray | None = None,
  scores: np.ndarray | None = None,
  elements: int = 0,
  constant: bool = False,
  **more: Any,
) -> dict[str, Any]:
  """The sums of one label.

  Args:
    classes: ids of its elements, if they have classes.
    scores: of its elements, if they have scores.
    elements: their number, where they have no classes.
    constant: whether the label says the same everywhere.
    **more: what a kind adds.
  """
  sums: dict[str, Any] = {"classes": {}}
  if classes is not None:
    ids, counts = np.unique(np.asarray(classes), return_counts=True)
    elements = int(counts.sum())
    # JSON has text keys only.
    sums["classes"] = {str(k): int(n) for k, n in zip(ids, counts, strict=True)}
  if scores is not None:
    scores = np.asarray(scores, np.float64).ravel()
    bins = np.clip((scores * _BINS).astype(int), 0, _BINS - 1)
    sums["scores"] = np.bincount(bins, minlength=_BINS).tolist()
    sums["score_sum"] = int(np.rint(scores * 255).sum())
  return {
    "examples": 1,
    "elements": elements,
    "empty": int(elements == 0),
    "constant": int(constant),
    **sums,
    **more,
  }


def add(a: Any, b: Any) -> Any:
  """Adds two sums, or two dicts of sums; a missing one is zero."""
  if isinstance(a, Mapping):
    return {
      key: add(a[key], b[key])
      if key in a and key in b
      else a.get(key, b.get(key))
      for key in {**a, **b}
    }
  if isinstance(a, list):
    return [x + y for x, y in zip(a, b, strict=True)]
  return a + b
