"""Accuracy of image classification."""

import numpy as np

from must_jax.metrics import metric

# Numbers of more classes would drown all others in logs.
MAX_BY_CLASS = 100


class Accuracy(metric.Metric):
  """Fraction of examples whose top prediction is right.

  Right is a class of the highest label probability: the class of a one-hot
  label, any class of a multi-hot label, the likeliest class of a soft label.
  Examples whose label names no class do not count. Of equal predictions the
  lower class comes first.

  `compute` gives "top1" and, for more than five classes, "top5" (a right class
  is among the five likeliest), in 0..1; 0 without examples. And "top1/NAME" for
  each class that examples have, if there are no more than `MAX_BY_CLASS`: part
  of these examples of which the top prediction is right.

  Args:
    class_names: name of each class, in order of the ids.
  """

  headline = "top1"

  def __init__(self, class_names: tuple[str, ...]):
    self.class_names = tuple(class_names)
    self._ks = (1, 5) if len(class_names) > 5 else (1,)
    self._right = np.zeros(len(self._ks), np.int64)
    self._count = 0
    # By class: examples that have it, and how many of them are right.
    self._of_class = np.zeros((2, len(class_names)), np.int64)

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
    self._of_class += [right.sum(0), right[hits[:, 0]].sum(0)]

  def merge(self, other):
    self._right += other._right
    self._count += other._count
    self._of_class += other._of_class

  def compute(self):
    overall = {
      f"top{k}": float(right) / max(self._count, 1)
      for k, right in zip(self._ks, self._right, strict=True)
    }
    if len(self.class_names) > MAX_BY_CLASS:
      return overall
    return overall | {
      f"top1/{name}": float(right) / float(count)
      for name, count, right in zip(
        self.class_names, *self._of_class, strict=True
      )
      if count
    }
