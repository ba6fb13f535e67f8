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
  counts: np.ndarray | None = None,
  elements: int = 0,
  constant: bool = False,
  **more: Any,
) -> dict[str, Any]:
  """The sums of one label.

  Args:
    classes: ids of its elements, int [n], if they have classes.
    scores: of its elements, [n], if they have scores, too.
    counts: how many elements of that class and score there are, int [n]; by
      default one.
    elements: their number, where they have no classes.
    constant: whether the label says the same everywhere.
    **more: what a kind adds.
  """
  sums: dict[str, Any] = {"classes": {}}
  if classes is not None:
    classes = np.asarray(classes, int)
    if counts is None:
      counts = np.ones(len(classes), int)
    ids = np.flatnonzero(np.bincount(classes))
    places = np.searchsorted(ids, classes)
    by_class = _count(places, counts, len(ids))
    elements = int(by_class.sum())
    names = [str(k) for k in ids]  # JSON has text keys only
    sums["classes"] = dict(zip(names, by_class.tolist(), strict=True))
    if scores is not None:
      edges = _edges(_CLASS_BINS)
      bins = np.searchsorted(edges, np.asarray(scores, np.float32), "right")
      size = len(ids) * _CLASS_BINS
      histograms = _count(places * _CLASS_BINS + bins, counts, size)
      lists = histograms.reshape(-1, _CLASS_BINS).tolist()
      sums["class_scores"] = dict(zip(names, lists, strict=True))
      scores = np.asarray(scores, np.float64)
      bins = np.clip((scores * _BINS).astype(int), 0, _BINS - 1)
      sums["scores"] = _count(bins, counts, _BINS).tolist()
      sums["score_sum"] = int(np.rint(scores * 255).astype(int) @ counts)
  return {
    "examples": 1,
    "elements": elements,
    "empty": int(elements == 0),
    "constant": int(constant),
    **sums,
    **more,
  }


def _count(bins: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
  """How many there are in each bin, int [size]."""
  # Weighed in float64, which is exact up to 2**53.
  return np.bincount(bins, counts, size).astype(int)


def _edges(num_bins: int) -> np.ndarray:
  """Scores at which bins begin, but for the first."""
  return (np.arange(1, num_bins) / num_bins).astype(np.float32)


def count_octaves(values: np.ndarray) -> dict[str, int]:
  """{floor(8 log2): how many} of values [n] above 0; bins are 9% wide."""
  if not len(values):
    return {}
  places = np.log2(np.asarray(values, np.float64)) * PER_OCTAVE
  places = np.floor(places).astype(int)
  lowest = int(places.min())
  counts = np.bincount(places - lowest)
  return {str(lowest + k): int(counts[k]) for k in counts.nonzero()[0]}


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
