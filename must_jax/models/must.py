"""The multi-task model: backbone, pyramid, and one head per task (paper 3.2).

Parameters form the tree {"backbone", "fpn", "head_<task>"...}; their names are
an interface (checkpoints, imported weights, warm starts by rule).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from must_jax.models.efficientnet import VARIANTS, EfficientNet
from must_jax.models.fpn import fuse
from must_jax.models.resnet import ResNet
from must_jax.models.vit import DptEncoder
from must_jax.types import Labels

# Statistics of ImageNet's channels, in units of 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

BACKBONES: dict[str, Callable[..., nn.Module]] = {
  "resnet18": functools.partial(ResNet, depth=18),
  "resnet34": functools.partial(ResNet, depth=34),
  "resnet50": functools.partial(ResNet, depth=50),
  "resnet101": functools.partial(ResNet, depth=101),
  "resnet152": functools.partial(ResNet, depth=152),
  "resnext101_32x8d": functools.partial(
    ResNet, depth=101, groups=32, group_width=8
  ),
  **{
    f"efficientnet_{variant}{suffix}": functools.partial(
      EfficientNet, variant=variant, padding=padding, head_conv=True
    )
    for variant in VARIANTS
    for suffix, padding in (("", "same"), ("_torch", "torch"))
  },
  "efficientnet_b7_align": functools.partial(
    EfficientNet, variant="b7", padding="align"
  ),
  "efficientnet_lite3_midas": functools.partial(EfficientNet, variant="lite3"),
  "dpt_large": DptEncoder,
  "dpt_hybrid": functools.partial(
    DptEncoder,
    conv_blocks=(3, 4, 9),
    dim=768,
    num_heads=12,
    taps=(9, 12),
    channels=(768, 768),
  ),
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


def normalise(
  image: jax.Array,
  mean: tuple[float, ...] = IMAGENET_MEAN,
  std: tuple[float, ...] = IMAGENET_STD,
) -> jax.Array:
  """uint8 [..., 3] to float32, less `mean` and divided by `std` (0..1).

  Done on the device, so that images cross to it as bytes.
  """
  scaled = image.astype(jnp.float32) / 255.0
  return (scaled - jnp.array(mean, jnp.float32)) / jnp.array(std, jnp.float32)


class Features(NamedTuple):
  """What the backbone and the pyramid give the heads; a pytree.

  Attributes:
    maps: of the backbone, {2: c2, ..., 5: c5}.
    top: what the classifier sees: C5, or the network's last convolution.
    pyramid: {level: [B, h, w, C]}; {} if no head needs it.
    fused: P2, the sum of the pyramid at stride 4; None if no head needs it.
  """

  maps: dict[int, jax.Array]
  top: jax.Array
  pyramid: dict[int, jax.Array]
  fused: jax.Array | None


class MustModel(nn.Module):
  """Shared backbone and pyramid with one head for each task.

  The pyramid is built, and has parameters, only if some head needs "pyramid" or
  "fused"; P2 is fused only if some head needs "fused". A teacher with nothing
  but a classification head therefore owns a backbone and that head.

  The three parts can be applied one by one (`method=MustModel.neck`), each with
  its own parameters alone, which is how training gets at the gradients of
  single tasks.

  Attributes:
    backbone: image [B, H, W, 3] -> {2: c2, ..., 5: c5}, and "top" if the
      network has a last convolution that only its classifier sees.
    fpn: backbone features -> {level: [B, h, w, C]}.
    heads: (task name, head) pairs; see `heads.py` for what a head is.
    image_mean: of the channels, in units of 0..1; it is what 0 means to the
      network.
    image_std: likewise, what 1 means.
    frozen: out of "backbone" and "fpn", those that behave in training as in
      evaluation and get no gradient.
  """

  backbone: nn.Module
  fpn: nn.Module
  heads: tuple[tuple[str, nn.Module], ...]
  image_mean: tuple[float, float, float] = IMAGENET_MEAN
  image_std: tuple[float, float, float] = IMAGENET_STD
  frozen: tuple[str, ...] = ()

  def setup(self) -> None:
    for task, head in self.heads:
      # A copy, because a module of a tuple can't be named by its task.
      setattr(self, f"head_{task}", head.copy())

  def __call__(
    self,
    image: jax.Array,
    labels: dict[str, Labels] | None = None,
    train: bool = False,
    content_size: jax.Array | None = None,
  ) -> dict[str, dict[str, jax.Array]]:
    """Runs every head.

    Args:
      image: uint8 [B, H, W, 3].
      labels: {task: {field: arrays}}. Heads with targets of their own (Faster
        R-CNN) need them in training, no head does otherwise.
      train: batch statistics in norms, dropout, and training outputs of heads.
      content_size: float32 [B, 2], height and width of the image's content, to
        which heads keep their predictions; the whole image by default.

    Returns:
      {task: outputs of its head}.
    """
    image_size = image.shape[1], image.shape[2]
    maps, top = self.trunk(image, train)
    features = self.neck(maps, top, image_size, train)
    return {
      task: self.head(
        task,
        features,
        image_size,
        (labels or {}).get(task),
        train,
        content_size,
      )
      for task, _ in self.heads
    }

  def trunk(
    self, image: jax.Array, train: bool = False
  ) -> tuple[dict[int, jax.Array], jax.Array | None]:
    """The backbone's maps {2: c2, ..., 5: c5}, and what only a classifier sees.

    Views of an image are rows of their own: [B, V, ...] becomes [B * V, ...].

    That is None where it sees C5: a map of all tasks must be one array, for
    their gradients to meet there.
    """
    features = dict(
      self._shared("backbone", train)(
        normalise(
          image.reshape(-1, *image.shape[-3:]), self.image_mean, self.image_std
        )
      )
    )
    return features, features.pop("top", None)

  def neck(
    self,
    maps: dict[int, jax.Array],
    top: jax.Array | None,
    image_size: tuple[int, int],
    train: bool = False,
  ) -> Features:
    """The pyramid on top of the backbone, as far as heads need it.

    Args:
      maps: of the backbone, {level: [B, h, w, C]}.
      top: [B, h, w, C], what the classifier sees, if it is not C5.
      image_size: (H, W) of the images.
      train: batch statistics in norms.
    """
    needs = {head.needs for _, head in self.heads}
    pyramid, fused = {}, None
    if needs & {"pyramid", "fused"}:
      pyramid = self._shared("fpn", train)(maps)
      if "fused" in needs:
        height, width = image_size
        fused = fuse(pyramid, (-(-height // 4), -(-width // 4)))
    return Features(maps, maps[5] if top is None else top, pyramid, fused)

  def head(
    self,
    task: str,
    features: Features,
    image_size: tuple[int, int],
    labels: Labels | None = None,
    train: bool = False,
    content_size: jax.Array | None = None,
  ) -> dict[str, jax.Array]:
    """Outputs of one task's head.

    Args:
      task: its name.
      features: of the images, from `neck`.
      image_size: (H, W) of the images.
      labels: {field: arrays} of the task; see `__call__`.
      train: see `__call__`.
      content_size: float32 [B, 2]; see `__call__`.
    """
    offered: dict[Any, Any] = {
      "c5": features.top,
      "backbone": features.maps,
      "image_size": image_size,
      **features.pyramid,
    }
    if features.fused is not None:
      offered["p2"] = features.fused
    if content_size is not None:
      offered["content_size"] = content_size
    return getattr(self, f"head_{task}")(offered, labels=labels, train=train)

  def _shared(self, name: str, train: bool) -> Callable[[Any], Any]:
    """The backbone or the pyramid, as it takes part in training."""
    module = getattr(self, name)
    if name not in self.frozen:
      return functools.partial(module, train=train)
    return lambda x: jax.lax.stop_gradient(module(x, train=False))
