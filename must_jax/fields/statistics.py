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
  class_scores  {class id: histogram of their scores over 20 bins of [0, 1]}
  ...        what a kind adds, numbers or lists or dicts of them

A bin begins with its lower edge, as float32, which is how labels are read. So
how many scores are at least 0.05, 0.1, ..., 0.95 is known exactly.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NO_LABELS = {"examples": 0, "elements": 0}
_BINS = 10
_CLASS_BINS = 20
PER_OCTAVE = 8  # bins of `count_octaves`


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
    classes: ids of its elements, [n] or [h, w], if they have classes.
    scores: of its elements, of that shape, if they have scores.
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
    if classes is not None:
      sums["class_scores"] = _histograms(np.asarray(classes), scores)
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


def _edges(num_bins: int) -> np.ndarray:
  """Scores at which bins begin, but for the first."""
  return (np.arange(1, num_bins) / num_bins).astype(np.float32)


def _histograms(classes: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
  """Histograms of scores by class."""
  edges = _edges(_CLASS_BINS)
  bins = np.searchsorted(edges, scores.ravel().astype(np.float32), "right")
  ids, places = np.unique(classes.ravel(), return_inverse=True)
  counts = np.bincount(
    places * _CLASS_BINS + bins, minlength=len(ids) * _CLASS_BINS
  ).reshape(-1, _CLASS_BINS)
  return {str(k): n.tolist() for k, n in zip(ids, counts, strict=True)}


def count_octaves(values: np.ndarray) -> dict[str, int]:
  """{floor(8 log2): how many} of values [n] above 0; bins are 9% wide."""
  places = np.log2(np.asarray(values, np.float64)) * PER_OCTAVE
  found, counts = np.unique(np.floor(places).astype(int), return_counts=True)
  return {str(k): int(n) for k, n in zip(found, counts, strict=True)}


def count_below(histogram: Sequence[int], score: float) -> tuple[int, int]:
  """The least and the most that is below a score.

  Args:
    histogram: over bins of [0, 1]; empty for none.
    score: 0 for all. At an edge of a bin both counts are the same.
  """
  if not score or not histogram:
    return 0, 0
  edges = _edges(len(histogram))
  number = int(np.searchsorted(edges, np.float32(score), "left"))
  least = most = sum(histogram[:number])
  most += histogram[number]
  if number < len(edges) and edges[number] == np.float32(score):
    least = most
  return least, most


def accumulate(total: dict[str, Any], sums: Mapping[str, Any]) -> None:
  """Adds sums, or a dict of sums, to a total; a missing one is zero."""
  for key, value in sums.items():
    if isinstance(value, Mapping):
      accumulate(total.setdefault(key, {}), value)
    elif isinstance(value, list):
      before = total.get(key, [0] * len(value))
      total[key] = [x + y for x, y in zip(before, value, strict=True)]
    else:
      total[key] = total.get(key, 0) + value
