"""COCO average precision. The only module that knows the COCO library."""

from typing import Any

import numpy as np

from must_jax.metrics.detections import DetectionMetric

NUMBERS = (
  "AP",
  "AP50",
  "AP75",
  "APs",
  "APm",
  "APl",
  "AR1",
  "AR10",
  "AR100",
  "ARs",
  "ARm",
  "ARl",
)


class CocoAP(DetectionMetric):
  """The 12 box numbers of COCO, and the AP of each class.

  An `ignore` box is a crowd: detections inside it are no mistakes. Small,
  medium and large go by the area of the box; COCO's own annotations carry the
  area of the mask, so APs, APm, APl (and ARs, ...) differ a little from those
  of the official server.

  `compute` is as `evaluate`.

  Args:
    class_names: name of each class, in order of the ids.
  """

  headline = "AP"

  def compute(self):
    ground_truth: dict[str, Any] = {
      "images": [],
      "annotations": [],
      "categories": [
        {"id": k, "name": name} for k, name in enumerate(self.class_names)
      ],
    }
    detections = []
    for image_id, image in enumerate(self.images()):
      height, width = image.size
      ground_truth["images"].append(
        {"id": image_id, "height": height, "width": width}
      )
      gt_boxes = _xywh(image.gt_boxes)
      for box, k, ignore in zip(
        gt_boxes.tolist(), image.gt_classes, image.gt_ignore, strict=True
      ):
        ground_truth["annotations"].append(
          {
            "image_id": image_id,
            "category_id": int(k),
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": int(ignore),
          }
        )
      for box, k, score in zip(
        _xywh(image.boxes).tolist(),
        image.classes.tolist(),
        image.scores.tolist(),
        strict=True,
      ):
        detections.append(
          {"image_id": image_id, "category_id": k, "bbox": box, "score": score}
        )
    return evaluate(ground_truth, detections)


def evaluate(
  ground_truth: dict[str, Any], detections: list[dict[str, Any]]
) -> dict[str, float]:
  """COCO box evaluation.

  Args:
    ground_truth: in COCO's JSON format: "images", "annotations" with "area"
      and "iscrowd", "categories".
    detections: in COCO's result format: "image_id", "category_id", "bbox"
      (x, y, width, height) and "score".

  Returns:
    `NUMBERS` in 0..1; 0 where no ground truth says otherwise (no box at all,
    or none of that size). And "AP/NAME" for each class that has ground truth.
  """
  # Importing it is slow, and only evaluation needs it.
  from faster_coco_eval import COCO, COCOeval_faster

  # The library writes into what it is given and takes 0 for "no annotation".
  coco_gt = COCO(
    {
      **ground_truth,
      "annotations": [
        {**annotation, "id": i}
        for i, annotation in enumerate(ground_truth["annotations"], 1)
      ],
    }
  )
  coco_dt = coco_gt.loadRes([dict(detection) for detection in detections])
  run = COCOeval_faster(
    coco_gt, coco_dt, iouType="bbox", print_function=lambda *_: None
  )
  run.evaluate()
  run.accumulate()
  run.summarize()
  # The library's -1 stands for "no ground truth".
  result = {
    name: max(float(value), 0.0)
    for name, value in zip(NUMBERS, run.stats, strict=True)
  }
  # [iou, recall, class, area, max detections]
  precision = run.eval["precision"][:, :, :, 0, -1]
  for k, category_id in enumerate(run.params.catIds):
    ap = float(precision[:, :, k].mean())
    if ap >= 0:
      result[f"AP/{coco_gt.cats[category_id]['name']}"] = ap
  return result


def _xywh(boxes: np.ndarray) -> np.ndarray:
  """COCO's boxes [N, 4] from yxyx."""
  y0, x0, y1, x1 = boxes.T
  return np.stack([x0, y0, x1 - x0, y1 - y0], -1)
