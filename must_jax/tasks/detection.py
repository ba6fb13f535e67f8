"""Object detection with Faster R-CNN (paper 3.2: Mask R-CNN's box head)."""

import dataclasses

import flax.linen as nn
import numpy as np

from must_jax.losses import detection as losses
from must_jax.metrics.coco import CocoAP
from must_jax.metrics.voc import VocAP
from must_jax.models import rcnn
from must_jax.tasks import task
from must_jax.types import Boxes

METRICS = {"coco": CocoAP, "voc": VocAP}


@dataclasses.dataclass(frozen=True)
class Detection(task.Task):
  """RPN with 2 hidden convs, Fast R-CNN with 4 convs + 1 FC on P3..P7.

  Attributes:
    max_boxes: ground-truth boxes per image, padded.
    min_score: pseudo boxes below it are not read (paper 3.1: 0.5).
    anchor_scale: anchor side at a level is `anchor_scale * stride`.
    aspect_ratios: width over height of the anchors.
    round_anchors, half_pixel: grid of the anchors and of ROIAlign.
    rpn_convs, head_convs, fc_dims: hidden layers.
    rpn_norm, fc_norm: whether these have BatchNorm, as the head's convs do.
    rpn_samples, num_rois: anchors and ROIs a training image contributes.
    rpn_pre_nms, rpn_post_nms: proposals before and after NMS.
    rpn_min_side: sides of a proposal are this long at least, in pixels.
    roi_samples_per_bin: bilinear samples per side of a pooled bin.
    roi_canonical_size: box side that is pooled from level 4.
    roi_max_level: coarsest level that is pooled from.
    score_threshold: boxes below it are neither predicted nor stored.
    pre_nms, nms_iou, max_detections, min_side: post-processing.
    metric: key of `METRICS`.

  `convert/torchvision_detection.py` has the values of torchvision's detector;
  `models/rcnn.py` tells what they mean.
  """

  max_boxes: int = 100
  min_score: float = 0.5
  anchor_scale: float = 3.0  # tfm r50fpn_640_coco_scratch
  aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
  round_anchors: bool = False
  half_pixel: bool = True
  rpn_convs: int = 2  # paper 3.2
  head_convs: int = 4  # paper 3.2
  fc_dims: int = 1024  # tfm
  rpn_norm: bool = True  # tfm
  fc_norm: bool = True  # tfm
  rpn_samples: int = 256
  num_rois: int = 512
  rpn_pre_nms: int = 1000
  rpn_post_nms: int = 1000
  rpn_min_side: float = 0.0
  roi_samples_per_bin: int = 1  # tpu
  roi_canonical_size: float = 224.0
  roi_max_level: int = 7
  score_threshold: float = 0.05
  pre_nms: int = 1000
  nms_iou: float = 0.5
  max_detections: int = 100
  min_side: float = 0.0
  metric: str = "coco"

  def __post_init__(self):
    if self.metric not in METRICS:
      raise ValueError(
        f"Task {self.name!r}: metric is {self.metric!r}; expected one of"
        f" {sorted(METRICS)}."
      )

  @property
  def fields(self):
    return {"objects": Boxes(self.num_classes, self.max_boxes, self.min_score)}

  def make_head(self, options: task.HeadOptions) -> nn.Module:
    return rcnn.FasterRCNNHead(
      num_classes=self.num_classes,
      channels=options.channels,
      min_level=options.min_level,
      max_level=options.max_level,
      dtype=options.dtype,
      norm_momentum=options.norm_momentum,
      norm_epsilon=options.norm_epsilon,
      anchor_scale=self.anchor_scale,
      aspect_ratios=tuple(self.aspect_ratios),
      round_anchors=self.round_anchors,
      half_pixel=self.half_pixel,
      rpn_convs=self.rpn_convs,
      head_convs=self.head_convs,
      fc_dims=self.fc_dims,
      rpn_norm=self.rpn_norm,
      fc_norm=self.fc_norm,
      rpn_samples=self.rpn_samples,
      num_rois=self.num_rois,
      rpn_pre_nms_topk=self.rpn_pre_nms,
      rpn_post_nms_topk=self.rpn_post_nms,
      rpn_test_pre_nms_topk=self.rpn_pre_nms,
      rpn_test_post_nms_topk=self.rpn_post_nms,
      rpn_min_side=self.rpn_min_side,
      roi_samples_per_bin=self.roi_samples_per_bin,
      roi_canonical_size=self.roi_canonical_size,
      roi_max_level=self.roi_max_level,
    )

  def loss(self, outputs, batch):
    present = batch["labels"][self.name]["objects"]["present"]
    return {
      **losses.rpn_losses(outputs, present),
      **losses.rcnn_losses(outputs, present),
    }

  def predict(self, outputs, map_size=None):
    return rcnn.detect(
      outputs,
      score_threshold=self.score_threshold,
      iou_threshold=self.nms_iou,
      max_detections=self.max_detections,
      pre_nms_topk=self.pre_nms,
      min_side=self.min_side,
    )

  def to_labels(self, prediction, content_size, image_size):
    keep = prediction["valid"]
    boxes = prediction["boxes"][keep] / np.tile(content_size, 2)
    boxes = np.clip(boxes, 0, 1)
    # A box on the padding has nothing left after clipping to the content.
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return {
      "objects": {
        "boxes": boxes[solid],
        "classes": prediction["classes"][keep][solid],
        "scores": prediction["scores"][keep][solid],
      }
    }

  def make_metrics(self):
    return METRICS[self.metric](self.classes)

  def draw(self, image, arrays):
    image = image.copy()
    colors = task.palette(self.num_classes)
    width = max(1, min(image.shape[:2]) // 96)
    shown = arrays["valid"] & (
      arrays.get("scores", np.ones(len(arrays["valid"]))) >= self.min_score
    )
    limit = np.array(image.shape[:2]) - 1
    for box, k in zip(
      arrays["boxes"][shown], arrays["classes"][shown], strict=True
    ):
      (y0, x0), (y1, x1) = np.clip(np.rint(box.reshape(2, 2)), 0, limit).astype(
        int
      )
      frame = image[y0 : y1 + 1, x0 : x1 + 1]
      for side in (
        frame[:width],
        frame[-width:],
        frame[:, :width],
        frame[:, -width:],
      ):
        side[...] = colors[k]
    return image
