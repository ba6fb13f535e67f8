"""Faster R-CNN of torchvision, "v2": COCO detections without training one.

Images are resized as torchvision does (`data.eval_resize`): shorter side to
800, or less where the longer one would pass 1333, then padded to multiples of
32. The coarsest anchors depend on that size. A fixed canvas for portraits and
landscapes, 1344 x 1344, would also cost about twice the pixels.
"""

import functools
import importlib.resources
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from must_jax.config import base_config, task
from must_jax.convert.conversion import Kind, Path, Tensor, torch_tensor
from must_jax.convert.torchvision import find_resnet

_TASK = "detection"
_POOLED = 7  # cells a side
# Where torchvision's detector differs from our default: its own are in the
# arguments of `torchvision.models.detection.FasterRCNN`.
OPTIONS: dict[str, Any] = {
  "anchor_scale": 8.0,  # 32 pixels at stride 4
  # Its ratios .5, 1, 2 are height / width; the order is that of the weights.
  "aspect_ratios": (2.0, 1.0, 0.5),
  "round_anchors": True,
  "half_pixel": False,
  "rpn_norm": False,
  "fc_norm": False,
  "rpn_min_side": 1e-3,
  "roi_samples_per_bin": 2,
  "roi_max_level": 5,
  # It takes all pairs above the threshold, at most 19 for each proposal.
  "pre_nms": 5000,
  "min_side": 1e-2,
}


def class_names(num_classes: int) -> tuple[str, ...]:
  """COCO's names if there are 90 classes, else numbered ones.

  COCO numbers 80 categories from 1 to 90. The numbers it left out are
  "unused_12" and the like, and are never predicted.
  """
  if num_classes != 90:
    return tuple(f"class_{i}" for i in range(1, num_classes + 1))
  package = importlib.resources.files("must_jax.convert")
  return tuple((package / "classes/coco91.txt").read_text().splitlines())


def detector_config(
  weights: Mapping[str, np.ndarray], *, backbone: str
) -> ConfigDict:
  """Config of a detector; the weights tell its classes and widths.

  Args:
    weights: by published name.
    backbone: key of `BACKBONES`.
  """

  def outputs(module: str, default: int) -> int:
    name = f"{module}.weight"
    return len(weights[name]) if name in weights else default

  num_classes = outputs("roi_heads.box_predictor.cls_score", 91) - 1
  config = base_config()
  config.model.update(
    {
      "backbone": backbone,
      "channels": outputs("rpn.head.conv.0.0", 256),
      "min_level": 2,
      "max_level": 6,
      "fpn_norm": "convs",
      "fpn_top": "pool",
      "dtype": "float32",
      "norm_epsilon": 1e-5,
    }
  )
  config.data.update(
    {"eval_resize": "shortest_side", "image_size": (800, 1333)}
  )
  config.tasks[_TASK] = task(
    "detection",
    labels={},
    classes=class_names(num_classes),
    fc_dims=outputs("roi_heads.box_head.5", 1024),
    **OPTIONS,
  )
  return config


def find_detector(path: Path) -> Tensor:
  """The tensor for an array of our detector."""
  part, *scope, leaf = path[1:]
  if part == "backbone":
    return Tensor(f"backbone.body.{find_resnet(path).name}")
  if part == "fpn":
    return torch_tensor(_fpn_module(scope[0]), leaf)
  stage, layer = scope
  if stage == "rpn":
    return _rpn_tensor(layer, leaf)
  return _fast_rcnn_tensor(layer, leaf)


def _fpn_module(layer: str) -> str:
  """Published module of lateral2, norm_lateral2, p2 or norm2 (and so on)."""
  blocks = "inner_blocks" if "lateral" in layer else "layer_blocks"
  place = 1 if layer.startswith("norm") else 0
  return f"backbone.fpn.{blocks}.{int(layer[-1]) - 2}.{place}"


def _rpn_tensor(layer: str, leaf: str) -> Tensor:
  if layer.startswith("conv"):
    return torch_tensor(f"rpn.head.conv.{int(layer[-1]) - 1}.0", leaf)
  if layer == "objectness":
    return Tensor(torch_tensor("rpn.head.cls_logits", leaf).name, _to_dense)
  return Tensor(
    torch_tensor("rpn.head.bbox_pred", leaf).name,
    lambda value: _to_dense(_to_yx(value)),
  )


def _fast_rcnn_tensor(layer: str, leaf: str) -> Tensor:
  head = "roi_heads.box_head"
  predictor = "roi_heads.box_predictor"
  if layer == "class_logits":
    return torch_tensor(f"{predictor}.cls_score", leaf)
  if layer == "box_deltas":
    # The first box is the background's, which nobody reads.
    return Tensor(
      torch_tensor(f"{predictor}.bbox_pred", leaf).name,
      lambda value: _to_dense(_to_yx(value)[4:]),
    )
  if layer == "fc":
    return Tensor(torch_tensor(f"{head}.5", leaf).name, _pooled_to_dense)
  place = 1 if layer.startswith("norm") else 0
  return torch_tensor(f"{head}.{int(layer[-1]) - 1}.{place}", leaf)


def _to_dense(value: np.ndarray) -> np.ndarray:
  """Kernel [out, in] or [out, in, 1, 1] to [in, out]; a bias stays."""
  return value.reshape(len(value), -1).T if value.ndim > 1 else value


def _to_yx(value: np.ndarray) -> np.ndarray:
  """Rows (dx, dy, log dw, log dh) of every box to (dy, dx, log dh, log dw)."""
  boxes = value.reshape(-1, 4, *value.shape[1:])
  return boxes[:, [1, 0, 3, 2]].reshape(value.shape)


def _pooled_to_dense(value: np.ndarray) -> np.ndarray:
  """Kernel [out, channel row column] to [row column channel, out]."""
  if value.ndim == 1:
    return value
  pooled = value.reshape(len(value), -1, _POOLED, _POOLED)
  return _to_dense(pooled.transpose(0, 2, 3, 1))


KINDS = (
  Kind(
    name="torchvision_fasterrcnn_resnet50_fpn_v2",
    title="Faster R-CNN ResNet-50 FPN v2, COCO (46.7 box AP as published)",
    source="https://docs.pytorch.org/vision/stable/models.html",
    licence="BSD-3-Clause (torchvision); trained on COCO",
    make_config=functools.partial(detector_config, backbone="resnet50"),
    find=find_detector,
  ),
)
