"""What the detection metrics share: boxes collected image by image."""

from typing import NamedTuple

import numpy as np

from must_jax.metrics import metric


class ImageBoxes(NamedTuple):
  """Ground truth and detections of one image, in pixels as it is stored.

  G boxes of the ground truth, D detections, best first is not assumed.
  """

  position: int  # of the image in the data set
  size: np.ndarray  # [2], height and width
  gt_boxes: np.ndarray  # float64 [G, 4], yxyx
  gt_classes: np.ndarray  # int [G]
  gt_ignore: np.ndarray  # bool [G]
  boxes: np.ndarray  # float64 [D, 4], yxyx
  scores: np.ndarray  # float64 [D]
  classes: np.ndarray  # int [D]


class DetectionMetric(metric.Metric):
  """Collects boxes; subclasses compute.

  Boxes are brought from network pixels to those of the stored image, and
  detections clipped to it; one that lies on padding only is dropped, as it is
  when labels are stored. So is one of a class that the image was not labelled
  for: nobody knows whether it is right (as in LVIS, Gupta et al., CVPR 2019).

  Args:
    class_names: name of each class, in order of the ids.
  """

  def __init__(self, class_names: tuple[str, ...]):
    self.class_names = tuple(class_names)
    self._images: list[ImageBoxes] = []

  def update(self, prediction, label, batch):
    truth = {k: np.asarray(v) for k, v in label.items()}
    pred = {k: np.asarray(v) for k, v in prediction.items()}
    for i in metric.counted(label, batch):
      size = np.asarray(batch["original_size"][i], np.float64)
      scale = np.tile(size / np.asarray(batch["content_size"][i]), 2)
      limit = np.tile(size, 2)
      boxes = np.clip(pred["boxes"][i] * scale, 0, limit)
      keep = pred["valid"][i] & (boxes[:, 2:] > boxes[:, :2]).all(1)
      if "known" in truth:
        keep &= truth["known"][i][pred["classes"][i]]
      gt = truth["valid"][i]
      self._images.append(
        ImageBoxes(
          position=int(batch["position"][i]),
          size=size,
          gt_boxes=truth["boxes"][i][gt] * scale,
          gt_classes=truth["classes"][i][gt],
          gt_ignore=truth["ignore"][i][gt],
          boxes=boxes[keep],
          scores=pred["scores"][i][keep].astype(np.float64),
          classes=pred["classes"][i][keep],
        )
      )

  def merge(self, other):
    self._images += other._images

  def images(self) -> list[ImageBoxes]:
    """What was collected, in the order of the data set.

    Detections of equal score count in this order, so it must not depend on
    the order in which hosts saw the images.
    """
    return sorted(self._images, key=lambda image: image.position)
