"""Torchvision's Faster R-CNN, for `train_step.py`, in an interpreter with it.

  PYTHON torchvision_step.py BATCH.npz SETTINGS

Answers each line of the standard input with a measurement of the training step
and its pieces, as JSON: {name: seconds}. The layers are those of
`fasterrcnn_resnet50_fpn_v2`, all of them trained; the numbers of proposals and
of samples are ours.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.models.detection import backbone_utils, faster_rcnn, roi_heads
from torchvision.models.detection.rpn import (
  RPNHead,
  concat_box_prediction_layers,
)

NUM_CLASSES = 365 + 1  # and background
LEAST_SECONDS = 0.05
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_model(settings: dict[str, Any]) -> faster_rcnn.FasterRCNN:
  """`fasterrcnn_resnet50_fpn_v2` on any ResNet, for images of one size."""
  backbone = backbone_utils._resnet_fpn_extractor(
    getattr(torchvision.models, settings["backbone"])(weights=None),
    5,
    norm_layer=torch.nn.BatchNorm2d,
  )
  channels, anchors = backbone.out_channels, faster_rcnn._default_anchorgen()
  return faster_rcnn.FasterRCNN(
    backbone,
    NUM_CLASSES,
    rpn_anchor_generator=anchors,
    rpn_head=RPNHead(
      channels, anchors.num_anchors_per_location()[0], conv_depth=2
    ),
    rpn_pre_nms_top_n_train=1000,
    rpn_post_nms_top_n_train=1000,
    box_head=faster_rcnn.FastRCNNConvFCHead(
      (channels, 7, 7), [256] * 4, [1024], norm_layer=torch.nn.BatchNorm2d
    ),
    box_batch_size_per_image=settings["rois"],
    _skip_resize=True,  # to the size that they have
  ).to(DEVICE)


def leaves(tree: Any) -> list[Tensor]:
  """The float tensors in nested lists, tuples and dicts."""
  if isinstance(tree, Tensor):
    return [tree] if tree.is_floating_point() else []
  parts = tree.values() if isinstance(tree, dict) else tree
  return [tensor for part in parts for tensor in leaves(part)]


def detach(tree: Any, grad: bool = False) -> Any:
  """The same without its history, with a gradient of its own or with none."""
  if isinstance(tree, Tensor):
    return tree.detach().requires_grad_(grad)
  if isinstance(tree, dict):
    return {key: detach(value, grad) for key, value in tree.items()}
  return [detach(value, grad) for value in tree]


class Steps:
  """The programs to time, by name."""

  def __init__(self, batch: Any, settings: dict[str, Any]) -> None:
    self.programs: dict[str, Callable[[], Any]] = {}
    self._bfloat16 = settings["dtype"] == "bfloat16"
    self._model = make_model(settings)
    self._optimizer = torch.optim.SGD(
      self._model.parameters(), lr=1e-4, momentum=0.9, weight_decay=4e-5
    )
    image = torch.tensor(batch["image"], device=DEVICE)
    self._images = list(image.permute(0, 3, 1, 2).float() / 255)
    boxes = torch.tensor(batch["boxes"], device=DEVICE)[..., [1, 0, 3, 2]]
    classes = torch.tensor(batch["classes"], device=DEVICE).long() + 1
    self._targets = [
      {"boxes": box, "labels": label}
      for box, label in zip(boxes, classes, strict=True)
    ]
    self.programs["whole step"] = self._whole
    self._add_pieces()

  def _autocast(self) -> torch.autocast:
    return torch.autocast(
      DEVICE.type, torch.bfloat16, enabled=self._bfloat16, cache_enabled=False
    )

  def _whole(self) -> None:
    self._optimizer.zero_grad()
    with self._autocast():
      losses = self._model(self._images, self._targets)
    sum(losses.values()).backward()
    self._optimizer.step()

  def _add(self, name: str, function: Callable[..., Any], *inputs: Any) -> Any:
    """Adds a piece.

    Args:
      name: of the piece.
      function: (*inputs) -> outputs, without history if nothing is trained.
      *inputs: that get a gradient.

    Returns:
      The outputs, without their history.
    """
    inputs = detach(inputs, grad=True)

    def forward() -> Any:
      with self._autocast():
        return function(*inputs)

    def both() -> None:
      self._optimizer.zero_grad()
      for tensor in leaves(inputs):
        tensor.grad = None
      outputs = leaves(forward())
      torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])

    outputs = forward()
    if any(tensor.requires_grad for tensor in leaves(outputs)):
      self.programs[f"{name}, forward"] = forward
      self.programs[name] = both
    else:
      self.programs[name] = forward
    return detach(outputs)

  def _add_pieces(self) -> None:
    """What `GeneralizedRCNN.forward` and its parts do, one after another."""
    model, rpn, heads = self._model, self._model.rpn, self._model.roi_heads
    images, targets = model.transform(self._images, self._targets)
    maps = self._add(
      "backbone",
      lambda: model.backbone.body(model.transform(self._images)[0].tensors),
    )
    pyramid = self._add("FPN", model.backbone.fpn, maps)
    logits, deltas = self._add(
      "RPN head", lambda maps: rpn.head(list(maps.values())), pyramid
    )
    anchors = rpn.anchor_generator(images, list(pyramid.values()))

    @torch.no_grad()
    def propose() -> list[Tensor]:
      counts = [math.prod(level[0].shape) for level in logits]
      scores, codes = concat_box_prediction_layers(logits, deltas)
      boxes = rpn.box_coder.decode(codes, anchors)
      boxes = boxes.view(len(anchors), -1, 4)
      return rpn.filter_proposals(boxes, scores, images.image_sizes, counts)[0]

    proposals = self._add("decoding, top k, NMS", propose)

    @torch.no_grad()
    def match() -> Any:
      labels, boxes = rpn.assign_targets_to_anchors(anchors, targets)
      codes = rpn.box_coder.encode(boxes, anchors)
      rois, _, *roi_targets = heads.select_training_samples(proposals, targets)
      return labels, list(codes), rois, *roi_targets

    labels, codes, rois, roi_labels, roi_codes = self._add(
      "matching, sampling", match
    )
    pooled = self._add(
      "ROIAlign",
      lambda maps: heads.box_roi_pool(maps, rois, images.image_sizes),
      pyramid,
    )
    class_logits, boxes = self._add(
      "box head", lambda x: heads.box_predictor(heads.box_head(x)), pooled
    )

    # It samples the anchors, too.
    def losses(logits: Any, deltas: Any, class_logits: Any, boxes: Any) -> Any:
      predictions = concat_box_prediction_layers(logits, deltas)
      first = rpn.compute_loss(*predictions, labels, codes)
      second = roi_heads.fastrcnn_loss(
        class_logits, boxes, roi_labels, roi_codes
      )
      return [sum(first) + sum(second)]

    self._add("losses", losses, logits, deltas, class_logits, boxes)
    self._whole()  # leaves gradients
    gradients = [p.grad.clone() for p in model.parameters()]

    def update() -> None:
      for parameter, gradient in zip(
        model.parameters(), gradients, strict=True
      ):
        parameter.grad = gradient
      self._optimizer.step()

    self.programs["optimizer"] = update

  def measure(self) -> dict[str, float]:
    """Seconds of a call of each program."""
    return {name: seconds(program) for name, program in self.programs.items()}


def seconds(program: Callable[[], Any]) -> float:
  """Time of a call; of short ones, a part of that of several."""
  program()  # as in `train_step.measure`
  calls, start = 0, time.perf_counter()
  while True:
    program()
    calls += 1
    if time.perf_counter() - start > LEAST_SECONDS:
      if DEVICE.type == "cuda":
        torch.cuda.synchronize()
      return (time.perf_counter() - start) / calls


def main() -> None:
  """Reads the arguments, then answers."""
  steps = Steps(np.load(sys.argv[1]), json.loads(sys.argv[2]))
  for _ in sys.stdin:
    print(json.dumps(steps.measure()), flush=True)


if __name__ == "__main__":
  main()
