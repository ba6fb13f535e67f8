"""Angular error of surface normals."""

import numpy as np

from must_jax.metrics import metric

THRESHOLDS = (11.25, 22.5, 30.0)  # degrees
_BIN = 0.01  # degrees, width of the bins the median is read from


class AngularError(metric.Metric):
  """Angle between predicted and true normals, over all valid pixels.

  Predictions may have any length; one without a direction (zero or not
  finite) is wrong by 180 degrees.

  `compute` gives "within_11.25", "within_22.5" and "within_30", fractions of
  pixels with a smaller error, and "mean" and "median" in degrees. The median
  comes from a histogram and is right to 0.005 degrees. Without pixels the
  fractions are 0 and the errors 180.
  """

  headline = "within_11.25"
  errors = ("mean", "median")

  def __init__(self):
    self._within = np.zeros(len(THRESHOLDS), np.int64)
    self._histogram = np.zeros(round(180 / _BIN), np.int64)
    self._sum = 0.0

  def update(self, prediction, label, batch):
    rows = metric.counted(label, batch)
    valid = np.asarray(label["valid"])[rows]
    truth = np.asarray(label["vectors"])[rows][valid]
    pred = np.asarray(prediction["vectors"])[rows]
    error = angle(pred[valid], truth)
    self._within += [int((error < t).sum()) for t in THRESHOLDS]
    bins = np.minimum((error / _BIN).astype(int), len(self._histogram) - 1)
    self._histogram += np.bincount(bins, minlength=len(self._histogram))
    self._sum += float(error.sum())

  def merge(self, other):
    self._within += other._within
    self._histogram += other._histogram
    self._sum += other._sum

  def compute(self):
    count = int(self._histogram.sum())
    if not count:
      return {
        **{f"within_{t:g}": 0.0 for t in THRESHOLDS},
        "mean": 180.0,
        "median": 180.0,
      }
    below = np.cumsum(self._histogram)
    # The two middle pixels; they are one and the same if the count is odd.
    middle = np.searchsorted(below, [(count - 1) // 2, count // 2], "right")
    return {
      **{
        f"within_{t:g}": float(n / count)
        for t, n in zip(THRESHOLDS, self._within, strict=True)
      },
      "mean": self._sum / count,
      "median": float((middle.mean() + 0.5) * _BIN),
    }


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Angles float64 [N] in degrees between vectors [N, 3] of any length.

  By the arc tangent, because the arc cosine loses small angles.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  usable = np.isfinite(a).all(-1) & (np.abs(a).max(-1, initial=0) > 0)
  a = np.where(usable[:, None], a, -b)
  sine = np.linalg.norm(np.cross(a, b), axis=-1)
  return np.degrees(np.arctan2(sine, np.sum(a * b, -1)))
