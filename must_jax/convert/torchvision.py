"""ResNet and ResNeXt classifiers of torchvision.

As published, images are resized to 256 at the shorter side, bilinear, and the
centre 224 x 224 is taken (`data.eval_resize`). Weights "V2" were published with
232: `must-jax convert --crop-fraction 0.9655`.
"""

import functools
import importlib.resources
import re
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from must_jax.config import base_config, task
from must_jax.convert.conversion import Kind, Path, Tensor, torch_tensor
from must_jax.models.must import IMAGENET_MEAN, IMAGENET_STD

_NAMES = {
  "torchvision_resnet18": ("resnet18", "ResNet-18"),
  "torchvision_resnet34": ("resnet34", "ResNet-34"),
  "torchvision_resnet50": ("resnet50", "ResNet-50"),
  "torchvision_resnet101": ("resnet101", "ResNet-101"),
  "torchvision_resnet152": ("resnet152", "ResNet-152"),
  "torchvision_resnext101_32x8d": ("resnext101_32x8d", "ResNeXt-101 32x8d"),
}


def class_names(num_classes: int) -> tuple[str, ...]:
  """ImageNet's names if there are 1000 classes, else numbered ones."""
  if num_classes != 1000:
    return tuple(f"class_{i}" for i in range(num_classes))
  package = importlib.resources.files("must_jax.convert")
  return tuple((package / "classes/imagenet.txt").read_text().splitlines())


def classifier_config(
  weights: Mapping[str, np.ndarray],
  *,
  backbone: str,
  classifier: str,
  image_size: int,
  norm_epsilon: float,
  crop_fraction: float = 224 / 256,
  interpolation: str = "bilinear",
  image_mean: tuple[float, ...] = IMAGENET_MEAN,
  image_std: tuple[float, ...] = IMAGENET_STD,
) -> ConfigDict:
  """Config of a backbone, with a classifier if the weights have one.

  Args:
    weights: by published name.
    backbone: key of `BACKBONES`.
    classifier: published name of the linear classifier's kernel.
    image_size: height and width of the published evaluation.
    norm_epsilon: of the published norms.
    crop_fraction: side of the centre crop, relative to the shorter side.
    interpolation: "bilinear" or "bicubic", of Pillow.
    image_mean: of the channels, in units of 0..1.
    image_std: likewise.
  """
  config = base_config()
  config.model.update(
    {
      "backbone": backbone,
      "image_mean": image_mean,
      "image_std": image_std,
      "dtype": "float32",
      "norm_epsilon": norm_epsilon,
    }
  )
  config.data.update(
    {
      "image_size": (image_size, image_size),
      "eval_resize": f"pillow_{interpolation}_crop",
      "crop_fraction": crop_fraction,
    }
  )
  if classifier in weights:
    config.tasks.classification = task(
      "classification",
      labels={},
      classes=class_names(len(weights[classifier])),
    )
  return config


def find_resnet(path: Path) -> Tensor:
  """The tensor for an array of our ResNet or its classifier."""
  *scope, leaf = path[1:]
  if scope[0] == "head_classification":
    return torch_tensor("fc", leaf)
  layer = re.sub(r"^norm(?=\d)", "bn", scope[-1])
  layer = {"conv_skip": "downsample.0", "norm_skip": "downsample.1"}.get(
    layer, layer
  )
  if block := re.fullmatch(r"c(\d)_block(\d+)", scope[1]):
    level, number = map(int, block.groups())
    layer = f"layer{level - 1}.{number - 1}.{layer}"
  return torch_tensor(layer, leaf)


KINDS = tuple(
  Kind(
    name=name,
    title=f"{title}, ImageNet-1k (224 px: resize 256 or 232, centre crop)",
    source="https://docs.pytorch.org/vision/stable/models.html",
    licence="BSD-3-Clause (torchvision); trained on ImageNet",
    make_config=functools.partial(
      classifier_config,
      backbone=backbone,
      classifier="fc.weight",
      image_size=224,
      norm_epsilon=1e-5,
    ),
    find=find_resnet,
  )
  for name, (backbone, title) in _NAMES.items()
)
