"""Mean intersection over union of semantic segmentation."""

import numpy as np

from must_jax.metrics import metric


class MeanIoU(metric.Metric):
  """Intersection over union from one confusion matrix over all pixels.

  Pixels with a label outside 0..K-1 (`IGNORE_LABEL` among them) do not count;
  a prediction outside 0..K-1 is wrong wherever it is made. So is one of a
  class that the image was not labelled for, but it does not count against that
  class, which is not measured there.

  `compute` gives "mIoU", the mean over the classes that occur in the ground
  truth or the predictions, "pixel_accuracy", both in 0..1 and 0 without
  labelled pixels, and "IoU/NAME" for each class that occurs.

  Args:
    class_names: name of each class, in order of the ids.
  """

  headline = "mIoU"

  def __init__(self, class_names: tuple[str, ...]):
    self.class_names = tuple(class_names)
    size = len(self.class_names)
    # Rows are true classes; the last column is any prediction outside 0..K-1.
    self._confusion = np.zeros((size, size + 1), np.int64)

  def update(self, prediction, label, batch):
    size = len(self.class_names)
    rows = metric.counted(label, batch)
    truth = np.asarray(label["classes"])[rows].astype(np.int64)
    pred = np.asarray(prediction["classes"])[rows].astype(np.int64)
    if truth.shape != pred.shape:
      raise ValueError(
        f"Predicted class maps are {pred.shape}, labels {truth.shape}; expected"
        " equal shapes. Resize predictions to the labels (`map_stride=1`)."
      )
    valid = (truth >= 0) & (truth < size)
    pred = np.where((pred >= 0) & (pred < size), pred, size)
    if "known" in label:
      known = np.pad(np.asarray(label["known"])[rows], [(0, 0), (0, 1)])
      image = np.arange(len(known))[:, None, None]
      pred = np.where(known[image, pred], pred, size)
    cells = truth[valid] * (size + 1) + pred[valid]
    counts = np.bincount(cells, minlength=self._confusion.size)
    self._confusion += counts.reshape(self._confusion.shape)

  def merge(self, other):
    self._confusion += other._confusion

  def compute(self):
    size = len(self.class_names)
    right = np.diagonal(self._confusion)
    union = self._confusion.sum(1) + self._confusion.sum(0)[:size] - right
    ious = {
      name: float(right[k] / union[k])
      for k, name in enumerate(self.class_names)
      if union[k]
    }
    return {
      "mIoU": sum(ious.values()) / max(len(ious), 1),
      "pixel_accuracy": float(right.sum() / max(self._confusion.sum(), 1)),
      **{f"IoU/{name}": iou for name, iou in ious.items()},
    }
