"""Object detection with Faster R-CNN (paper 3.2: Mask R-CNN's box head)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import numpy as np

from must_jax import pictures
from must_jax.fields import Boxes
from must_jax.fields.field import NamedScores, Scores, scores_by_id, scores_of
from must_jax.fields.kept import threshold_text
from must_jax.losses import detection as losses
from must_jax.metrics.coco import CocoAP
from must_jax.metrics.voc import VocAP
from must_jax.models import rcnn
from must_jax.ranges import AT_LEAST_1, FRACTION, NOT_NEGATIVE, POSITIVE
from must_jax.tasks.task import HeadOptions, Task

_MAX_TOLD = 3  # scores of a class in a legend
METRICS = {"coco": CocoAP, "voc": VocAP}


@dataclasses.dataclass(frozen=True)
class Detection(rcnn.RCNNOptions, Task):
  """RPN with 2 hidden convs, Fast R-CNN with 4 convs + 1 FC on P3..P7.

  Attributes:
    max_boxes: true boxes of an image that training reads at most.
    min_score: pseudo boxes below it are not read; a number, {class: number} or
      a file of `must-jax thresholds`.
    score_threshold: boxes below it are neither predicted nor stored.
    pre_nms: best pairs of box and class of an image that go into NMS.
    nms_iou: overlap (IoU) above which NMS drops the box with the lower score.
    max_detections: boxes of an image that are predicted at most.
    min_side: predicted boxes have sides of so many pixels at least.
    metric: "coco" for COCO's AP, "voc" for Pascal VOC's AP50.
    weight_by_score: pseudo boxes count by their score in the second stage's
      losses (ours; "certainty" in Li et al., "Rethinking pseudo labels for
      semi-supervised object detection", AAAI 2022, is learned).

  `convert/torchvision_detection.py` has the values of torchvision's detector.
  """

  max_boxes: int = 100
  min_score: NamedScores = 0.5  # paper 3.1
  score_threshold: float = 0.05
  pre_nms: int = 1000
  nms_iou: float = 0.5
  max_detections: int = 100
  min_side: float = 0.0
  metric: str = "coco"
  weight_by_score: bool = False

  by_class = ("min_score",)
  measurement = ("metric",)
  post_processing = (
    *("score_threshold", "pre_nms", "nms_iou", "max_detections", "min_side"),
  )
  hub_task = "object-detection"
  ranges: ClassVar = {
    "min_score": FRACTION,
    "score_threshold": FRACTION,
    "nms_iou": FRACTION,
    **dict.fromkeys(("anchor_scale", "aspect_ratios"), POSITIVE),
    **dict.fromkeys(("rpn_convs", "head_convs"), NOT_NEGATIVE),
    **dict.fromkeys(("rpn_min_side", "min_side"), NOT_NEGATIVE),
    **dict.fromkeys(("max_boxes", "max_detections", "pre_nms"), AT_LEAST_1),
    **dict.fromkeys(("rpn_pre_nms", "rpn_post_nms"), AT_LEAST_1),
    **dict.fromkeys(("rpn_samples", "num_rois", "fc_dims"), AT_LEAST_1),
    **dict.fromkeys(("roi_samples_per_bin", "roi_max_level"), AT_LEAST_1),
    "roi_canonical_size": POSITIVE,
  }
  choices: ClassVar = {"metric": METRICS}

  @property
  def fields(self):
    return {
      "objects": Boxes(self.num_classes, self.max_boxes, self._min_scores)
    }

  @property
  def _min_scores(self) -> Scores:
    return scores_by_id(self.min_score, self.classes)

  def make_head(self, options: HeadOptions) -> nn.Module:
    names = [field.name for field in dataclasses.fields(rcnn.RCNNOptions)]
    chosen = {name: getattr(self, name) for name in names}
    # A config that was JSON has lists.
    chosen["aspect_ratios"] = tuple(self.aspect_ratios)
    return rcnn.FasterRCNNHead(
      num_classes=self.num_classes,
      options=rcnn.RCNNOptions(**chosen),
      **dataclasses.asdict(options),
    )

  def loss(self, outputs, batch):
    objects = batch["labels"][self.name]["objects"]
    return {
      **losses.rpn_losses(outputs, objects["present"]),
      **losses.rcnn_losses(
        outputs,
        objects["present"],
        objects.get("known"),
        outputs["roi_scores"] if self.weight_by_score else None,
      ),
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
    shown = self._shown(arrays)
    colors = pictures.palette(self.num_classes)[arrays["classes"][shown]]
    return pictures.draw_boxes(image, arrays["boxes"][shown], colors)

  def illustrate(self, image, arrays, colors):
    shown = self._shown(arrays)
    shown = shown[np.argsort(arrays["scores"][shown], kind="stable")]
    classes, scores = arrays["classes"][shown], arrays["scores"][shown]
    texts = [
      f"{self.classes[k]} {score:.2f}"
      for k, score in zip(classes, scores, strict=True)
    ]
    boxes = arrays["boxes"][shown]
    return pictures.draw_boxes(image, boxes, colors[classes], texts)

  def legend(self, arrays, colors):
    shown = self._shown(arrays)
    scores: dict[int, list[float]] = {}
    for i in shown[np.argsort(-arrays["scores"][shown], kind="stable")]:
      scores.setdefault(int(arrays["classes"][i]), []).append(
        arrays["scores"][i]
      )
    words: list[pictures.Word] = []
    for k, found in scores.items():
      told = " ".join(f"{score:.2f}" for score in found[:_MAX_TOLD])
      rest = f" +{len(found) - _MAX_TOLD}" if len(found) > _MAX_TOLD else ""
      words.append((f"{self.classes[k]} {told}{rest}", tuple(colors[k])))
    if not words:
      least = threshold_text(self._min_scores)
      words.append((f"nothing of score {least} or more", None))
    return words

  def _shown(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which boxes reach the threshold, int [n]."""
    count = len(arrays["classes"])
    shown = arrays.get("valid", np.ones(count, bool))
    wanted = scores_of(self._min_scores, arrays["classes"])
    sure = arrays.get("scores", np.ones(count)) >= wanted
    return np.flatnonzero(shown & sure)
