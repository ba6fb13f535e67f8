"""PASCAL VOC average precision at IoU 0.5."""

import numpy as np

from must_jax.metrics.detections import DetectionMetric, ImageBoxes


class VocAP(DetectionMetric):
  """AP50 as VOC's development kit defines it, in continuous coordinates.

  Detections are taken best first. Each looks at the box of its class that it
  overlaps most: from IoU 0.5 on it is right if that box is still free, else
  wrong. If that box is `ignore` (difficult), the detection counts in no way,
  nor does the box in recall.

  `compute` gives "AP50", the mean over classes of the area under the
  precision envelope (VOC 2010 and later), "AP50_11point", the mean of the
  envelope at 11 recalls (VOC 2007), both in 0..1 and 0 without ground truth,
  and "AP50/NAME" (area) for each class that has ground truth.

  Args:
    class_names: name of each class, in order of the ids.
  """

  headline = "AP50"

  def compute(self):
    images = self.images()
    areas, points = {}, []
    for k, name in enumerate(self.class_names):
      right, num_gt = _match(images, k)
      if num_gt:
        areas[f"AP50/{name}"] = average_precision(right, num_gt)
        points.append(eleven_point_precision(right, num_gt))
    count = max(len(points), 1)
    return {
      "AP50": sum(areas.values()) / count,
      "AP50_11point": sum(points) / count,
      **areas,
    }


def average_precision(right: np.ndarray, num_gt: int) -> float:
  """Area under the precision envelope.

  Args:
    right: bool [D], detections from best to worst.
    num_gt: boxes to be found, at least 1.
  """
  envelope = _envelope(right)
  # Recall rises by 1 / num_gt at each right detection and nowhere else.
  return float(envelope[right].sum() / num_gt)


def eleven_point_precision(right: np.ndarray, num_gt: int) -> float:
  """Mean of the precision envelope at recalls 0, 0.1, ..., 1.

  Args:
    right: bool [D], detections from best to worst.
    num_gt: boxes to be found, at least 1.
  """
  found, envelope = np.cumsum(right), _envelope(right)
  total = 0.0
  for tenth in range(11):
    # In integers: 3 of 10 must reach recall 0.3.
    reached = 10 * found >= tenth * num_gt
    total += envelope[reached.argmax()] if reached.any() else 0.0
  return float(total / 11)


def _envelope(right: np.ndarray) -> np.ndarray:
  """Best precision [D] at this or a higher recall."""
  precision = np.cumsum(right) / np.arange(1, len(right) + 1)
  return np.maximum.accumulate(precision[::-1])[::-1]


def _match(images: list[ImageBoxes], k: int) -> tuple[np.ndarray, int]:
  """Which detections of class k are right, best first, and how many could be.

  Returns:
    bool [D] without the detections that do not count, and the number of
    ground-truth boxes that are not `ignore`.
  """
  scores, right = [], []
  num_gt = 0
  # Only boxes of one image compete, so images may be matched one by one.
  for image in images:
    of_class = image.gt_classes == k
    gt_boxes, ignore = image.gt_boxes[of_class], image.gt_ignore[of_class]
    num_gt += int((~ignore).sum())
    of_class = image.classes == k
    boxes, box_scores = image.boxes[of_class], image.scores[of_class]
    iou = _iou(boxes, gt_boxes)
    free = np.ones(len(gt_boxes), bool)
    for i in np.argsort(-box_scores, kind="stable"):
      best = iou[i].argmax() if len(gt_boxes) else 0
      overlaps = len(gt_boxes) > 0 and iou[i, best] >= 0.5
      if overlaps and ignore[best]:
        continue
      scores.append(box_scores[i])
      right.append(overlaps and free[best])
      if overlaps:
        free[best] = False
  order = np.argsort(-np.array(scores), kind="stable")
  return np.array(right, bool)[order], num_gt


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Intersection over union [N, M] of yxyx boxes [N, 4] and [M, 4]."""
  low = np.maximum(a[:, None, :2], b[None, :, :2])
  high = np.minimum(a[:, None, 2:], b[None, :, 2:])
  common = np.prod(np.maximum(high - low, 0), -1)
  area_a = np.prod(a[:, 2:] - a[:, :2], -1)
  area_b = np.prod(b[:, 2:] - b[:, :2], -1)
  union = area_a[:, None] + area_b[None] - common
  return common / np.maximum(union, np.finfo(np.float64).tiny)
