"""The multi-task model: backbone, pyramid, and one head per task (paper 3.2).

Parameters form the tree {"backbone", "fpn", "head_<task>"...}; their names are
an interface (checkpoints, imported weights, warm starts by rule).
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from must_jax.models.fpn import fuse
from must_jax.models.resnet import ResNet
from must_jax.types import Labels

# ImageNet statistics of the channels, in units of 0..1.
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_STD = np.array((0.229, 0.224, 0.225), np.float32)

BACKBONES: dict[str, Callable[..., nn.Module]] = {
  "resnet18": functools.partial(ResNet, depth=18),
  "resnet34": functools.partial(ResNet, depth=34),
  "resnet50": functools.partial(ResNet, depth=50),
  "resnet101": functools.partial(ResNet, depth=101),
  "resnet152": functools.partial(ResNet, depth=152),
}


def build_backbone(name: str, **scalars: Any) -> nn.Module:
  """Makes a backbone by name.

  Args:
    name: a key of `BACKBONES`.
    **scalars: attributes of the module (width, dtype, ...).

  Raises:
    ValueError: no backbone has this name.
  """
  if name not in BACKBONES:
    raise ValueError(
      f"Unknown backbone {name!r}; choose one of {sorted(BACKBONES)}."
    )
  return BACKBONES[name](**scalars)


def normalise(image: jax.Array) -> jax.Array:
  """uint8 [..., 3] to float32 with ImageNet's channel mean 0 and deviation 1.

  Done on the device, so that images cross to it as bytes.
  """
  return (image.astype(jnp.float32) / 255.0 - _MEAN) / _STD


class MustModel(nn.Module):
  """Shared backbone and pyramid with one head for each task.

  The pyramid is built, and has parameters, only if some head needs "pyramid" or
  "fused"; P2 is fused only if some head needs "fused". A teacher with nothing
  but a classification head therefore owns a backbone and that head.

  Attributes:
    backbone: image [B, H, W, 3] -> {2: c2, ..., 5: c5}.
    fpn: backbone features -> {level: [B, h, w, C]}.
    heads: (task name, head) pairs; see `heads.py` for what a head is.
  """

  backbone: nn.Module
  fpn: nn.Module
  heads: tuple[tuple[str, nn.Module], ...]

  @nn.compact
  def __call__(
    self,
    image: jax.Array,
    labels: dict[str, Labels] | None = None,
    train: bool = False,
  ) -> dict[str, dict[str, jax.Array]]:
    """Runs every head.

    Args:
      image: uint8 [B, H, W, 3].
      labels: {task: {field: arrays}}. Heads with targets of their own (Faster
        R-CNN) need them in training, no head does otherwise.
      train: batch statistics in norms, dropout, and training outputs of heads.

    Returns:
      {task: outputs of its head}.
    """
    needs = {head.needs for _, head in self.heads}
    backbone_features = self.backbone(normalise(image), train=train)
    height, width = image.shape[1:3]
    features = {"c5": backbone_features[5], "image_size": (height, width)}
    if needs & {"pyramid", "fused"}:
      pyramid = self.fpn(backbone_features, train=train)
      features |= pyramid
      if "fused" in needs:
        features["p2"] = fuse(pyramid, (-(-height // 4), -(-width // 4)))
    return {
      # A copy, because a module of a tuple can't be named by its task.
      task: head.copy(name=f"head_{task}")(
        features, labels=(labels or {}).get(task), train=train
      )
      for task, head in self.heads
    }
