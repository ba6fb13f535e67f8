"""Feature pyramid {P3..P7} and its parameter-free fusion to P2 (paper 3.2)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from must_jax.models.conv import Conv
from must_jax.models.resnet import conv_init
from must_jax.ops import resize

NORMS = ("levels", "convs")
TOPS = ("conv", "pool")


class FPN(nn.Module):
  """Feature pyramid network (Lin et al. 2017).

  Backbone levels get a 1x1 lateral, a nearest-neighbour top-down sum and a 3x3
  convolution. By default all else is as in the TPU detection code: levels past
  the backbone are 3x3 stride-2 convolutions of the level below, from the second
  one on after a ReLU, and last every level gets a BatchNorm without activation.

  Attributes:
    min_level: finest level, stride 2**min_level.
    max_level: coarsest level.
    channels: of every level.
    norm: where BatchNorm is, without activation: "levels", on every level last;
      "convs", in the place of the bias of every convolution, laterals included
      (torchvision's detectors "v2").
    top: levels past the backbone: "conv", see above; "pool", every second pixel
      of the level below (torchvision, Detectron).
    dtype: of activations. Parameters and norm statistics are float32.
    norm_momentum: decay of the running statistics.
    norm_epsilon: added to the variance.
  """

  min_level: int = 3
  max_level: int = 7
  channels: int = 256
  norm: str = "levels"
  top: str = "conv"
  dtype: Any = jnp.float32
  norm_momentum: float = 0.99
  norm_epsilon: float = 1e-3

  @nn.compact
  def __call__(
    self, features: Mapping[int, jax.Array], train: bool = False
  ) -> dict[int, jax.Array]:
    """Builds the pyramid.

    Args:
      features: of the backbone, {level: [B, h, w, C]}, without gaps and with
        `min_level` among them.
      train: normalise with the statistics of the batch and update the running
        ones.

    Returns:
      {level: [B, ceil(H / 2**level), ceil(W / 2**level), channels]} for
      `min_level` to `max_level`.

    Raises:
      ValueError: the backbone has no features at `min_level`, or `norm` or
        `top` is unknown.
    """
    for name, allowed in (("norm", NORMS), ("top", TOPS)):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f"FPN {name} is {getattr(self, name)!r}; expected one of {allowed}."
        )
    if self.min_level not in features:
      raise ValueError(
        f"FPN min_level is {self.min_level}, but the backbone gives levels"
        f" {sorted(features)}; set min_level to one of these."
      )
    top = min(self.max_level, max(features))
    norm_convs = self.norm == "convs"

    def norm(x: jax.Array, name: str) -> jax.Array:
      return nn.BatchNorm(
        use_running_average=not train,
        momentum=self.norm_momentum,
        epsilon=self.norm_epsilon,
        dtype=self.dtype,
        name=name,
      )(x)

    def conv(
      x: jax.Array, kernel: int, stride: int, name: str, norm_name: str
    ) -> jax.Array:
      x = Conv(
        self.channels,
        (kernel, kernel),
        strides=stride,
        padding=(kernel - 1) // 2,
        use_bias=not norm_convs,
        dtype=self.dtype,
        kernel_init=conv_init,
        name=name,
      )(x)
      return norm(x, norm_name) if norm_convs else x

    merged: dict[int, jax.Array] = {}
    for level in range(top, self.min_level - 1, -1):
      merged[level] = conv(
        features[level], 1, 1, f"lateral{level}", f"norm_lateral{level}"
      )
      if level < top:
        merged[level] += _upsample_to(merged[level + 1], merged[level].shape)
    pyramid = {
      level: conv(merged[level], 3, 1, f"p{level}", f"norm{level}")
      for level in range(self.min_level, top + 1)
    }
    for level in range(top + 1, self.max_level + 1):
      x = pyramid[level - 1]
      if self.top == "pool":
        pyramid[level] = x[:, ::2, ::2]
        continue
      if level > top + 1:
        x = nn.relu(x)
      pyramid[level] = conv(x, 3, 2, f"p{level}", f"norm{level}")
    if norm_convs:
      return pyramid
    return {level: norm(x, f"norm{level}") for level, x in pyramid.items()}


def _upsample_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Nearest x2 of [B, h, w, C]; an odd target drops the last row or column."""
  _, h, w, _ = shape
  return jax.vmap(lambda y: resize.upsample_nearest_2x(y, (h, w)))(x)


def fuse(pyramid: Mapping[int, jax.Array], size: tuple[int, int]) -> jax.Array:
  """Fuses a pyramid into one map: every level rescaled, then summed.

  Paper 3.2 ("simply rescales all feature maps into level 2 and sums them"),
  bilinear with half-pixel centres, no parameters. The sum is accumulated in
  float32.

  Args:
    pyramid: {level: [B, h, w, C]}, any number of levels.
    size: height and width of the fused map, `ceil(image size / 4)` for P2.

  Returns:
    The fused map [B, *size, C] in the dtype of the pyramid.
  """
  levels = list(pyramid.values())
  total = sum(
    resize.resize_bilinear(x.astype(jnp.float32), size) for x in levels
  )
  return jnp.asarray(total).astype(levels[0].dtype)
