"""Accuracy of image classification."""

import numpy as np

from must_jax.metrics import metric


class Accuracy(metric.Metric):
  """Fraction of examples whose top prediction is right.

  Right is a class of the highest label probability: the class of a one-hot
  label, any class of a multi-hot label, the likeliest class of a soft label.
  Examples whose label names no class do not count. Of equal predictions the
  lower class comes first.

  `compute` gives "top1" and, for more than five classes, "top5" (a right class
  is among the five likeliest), in 0..1; 0 without examples.

  Args:
    num_classes: K.
  """

  headline = "top1"

  def __init__(self, num_classes: int):
    self._ks = (1, 5) if num_classes > 5 else (1,)
    self._right = np.zeros(len(self._ks), np.int64)
    self._count = 0

  def update(self, prediction, label, batch):
    rows = metric.counted(label, batch)
    truth = np.asarray(label["probs"])[rows]
    probs = np.asarray(prediction["probs"])[rows]
    best = truth.max(1, keepdims=True)
    right = (truth == best) & (best > 0)
    order = np.argsort(-probs, axis=1, kind="stable")
    hits = np.take_along_axis(right, order, 1)
    self._right += [int(hits[:, :k].any(1).sum()) for k in self._ks]
    self._count += int(right.any(1).sum())

  def merge(self, other):
    self._right += other._right
    self._count += other._count

  def compute(self):
    return {
      f"top{k}": float(right) / max(self._count, 1)
      for k, right in zip(self._ks, self._right, strict=True)
    }
