"""Writes golden/torchvision_detector.npz: what torchvision's detector gives.

It runs with weights drawn from the names of its tensors (`weights.py`), on a
ResNet-18 and with few channels, so that a comparison needs neither published
weights nor PyTorch. Only its last layers are stored: they are scaled to what
they meet, or every score would be 0 or 1. It takes an environment of its own:

  python -m venv /tmp/oracle
  /tmp/oracle/bin/pip install torch torchvision
  /tmp/oracle/bin/python tests/convert/make_golden_detector.py

`--full DIR` writes the same of the network as published to DIR, see
docs/parity.md.

Boxes are (top, left, bottom, right); classes count from 0, without background.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models.detection import faster_rcnn, rpn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from weights import make_weights

GOLDEN = pathlib.Path(__file__).parent / "golden" / "torchvision_detector.npz"
SIZES = ((160, 224), (193, 257), (257, 150))
FULL_SIZES = ((320, 480), (427, 640), (640, 427))
# Last layer: (deviation and mean of its outputs, mean of the background's).
LAST = {
  "rpn.head.cls_logits": (2.0, 0.0),
  "rpn.head.bbox_pred": (0.3, 0.0),
  "roi_heads.box_predictor.cls_score": (2.0, 7.0),
  "roi_heads.box_predictor.bbox_pred": (1.0, 0.0),
}


def published():
  """The published network."""
  return faster_rcnn.fasterrcnn_resnet50_fpn_v2(
    weights=None, weights_backbone=None
  )


def reduced(channels=32, fc_dims=64, num_classes=12):
  """The same on a ResNet-18, with few channels."""
  backbone = BackboneWithFPN(
    torchvision.models.resnet18(weights=None),
    {f"layer{i}": str(i - 1) for i in range(1, 5)},
    [64, 128, 256, 512],
    channels,
    norm_layer=nn.BatchNorm2d,
  )
  return faster_rcnn.FasterRCNN(
    backbone,
    rpn_anchor_generator=faster_rcnn._default_anchorgen(),
    rpn_head=rpn.RPNHead(channels, 3, conv_depth=2),
    box_head=faster_rcnn.FastRCNNConvFCHead(
      (channels, 7, 7), [channels] * 4, [fc_dims], norm_layer=nn.BatchNorm2d
    ),
    box_predictor=faster_rcnn.FastRCNNPredictor(fc_dims, num_classes + 1),
  )


def draw_image(size, seed):
  """Rectangles of all sizes in random colours, uint8 [H, W, 3]."""
  rng = np.random.default_rng(seed)
  image = np.empty((*size, 3), np.uint8)
  image[:] = rng.integers(0, 256, 3)
  for _ in range(30):
    top, left = rng.integers(0, size)
    height, width = rng.integers(8, np.array(size) // 2)
    color = rng.integers(0, 256, 3)
    image[top : top + height, left : left + width] = color
  return image


def detect(network, image):
  """Runs the network without resizing; arrays by name."""
  found = {}
  hooks = [
    network.backbone.register_forward_hook(
      lambda module, args, levels: found.update(levels)
    ),
    network.rpn.register_forward_hook(
      lambda module, args, output: found.update(proposals=output[0][0])
    ),
  ]
  network.transform.min_size = (min(image.shape[:2]),)
  network.transform.max_size = max(image.shape[:2])
  x = torch.tensor(image).permute(2, 0, 1).float() / 255
  with torch.no_grad():
    found |= network([x])[0]
  for hook in hooks:
    hook.remove()
  arrays = {key: value.numpy() for key, value in found.items()}
  names = dict(zip(("0", "1", "2", "3", "pool"), range(2, 7), strict=True))
  levels = {
    f"p{level}": arrays[name][0].transpose(1, 2, 0)
    for name, level in names.items()
  }
  yx = [1, 0, 3, 2]
  return {
    # Every fourth cell and channel, for the size of the file.
    **{name: x[::4, ::4, ::4] for name, x in levels.items()},
    "proposals": arrays["proposals"][:, yx],
    "boxes": arrays["boxes"][:, yx],
    "scores": arrays["scores"],
    "classes": arrays["labels"] - 1,
  }


def scale_last_layers(network, image):
  """Scales the outputs of the last layers as `LAST` says; their tensors."""
  for name, (std, background) in LAST.items():
    layer = network.get_submodule(name)
    seen = []
    hook = layer.register_forward_hook(
      lambda module, args, output, seen=seen: seen.append(
        output.movedim(1, -1).flatten(0, -2)
      )
    )
    detect(network, image)
    hook.remove()
    outputs = torch.cat(seen)
    with torch.no_grad():
      scale = std / outputs.std(0)
      layer.weight *= scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
      layer.bias.copy_(scale * (layer.bias - outputs.mean(0)))
      layer.bias[0] += background
  state = network.state_dict()
  return {
    f"{name}.{leaf}": state[f"{name}.{leaf}"].numpy()
    for name in LAST
    for leaf in ("weight", "bias")
  }


def make(network, sizes):
  """Everything a comparison needs, for `np.savez`."""
  network.eval()
  shapes = {k: tuple(v.shape) for k, v in network.state_dict().items()}
  weights = make_weights(shapes)
  network.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
  last = scale_last_layers(network, draw_image(sizes[0], 0))
  arrays = {f"last/{name}": value for name, value in last.items()}
  for i, size in enumerate(sizes):
    image = draw_image(size, i)
    arrays[f"{i}/image"] = image
    found = detect(network, image)
    arrays |= {f"{i}/{name}": value for name, value in found.items()}
    print(
      f"{size}: {len(found['proposals'])} proposals,"
      f" {len(found['boxes'])} detections of"
      f" {len(set(found['classes']))} classes, scores"
      f" {found['scores'].min():.3f} to {found['scores'].max():.3f}"
    )
  return arrays | {"shapes": json.dumps(shapes)}


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--full", type=pathlib.Path)
  args = parser.parse_args()
  if args.full:
    args.full.mkdir(exist_ok=True)
    path = args.full / "torchvision_fasterrcnn_resnet50_fpn_v2.npz"
    np.savez_compressed(path, **make(published(), FULL_SIZES))
    return
  shapes = {k: tuple(v.shape) for k, v in published().state_dict().items()}
  arrays = make(reduced(), SIZES)
  np.savez_compressed(GOLDEN, full_shapes=json.dumps(shapes), **arrays)


if __name__ == "__main__":
  main()
