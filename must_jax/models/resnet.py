"""ResNet v1.5 backbone: post-activation, stride in the 3x3 convolution.

Spatial padding is explicit and symmetric, `(k - 1) // 2` on both sides of
every convolution and of the max pool, whatever the stride. This is the "fixed"
padding of the TPU detection code (Ghiasi et al. 2021 build on it) and of
torchvision, and unlike "SAME" it does not move with the parity of the input.
The TPU code's max pool is "SAME" instead; one rule throughout keeps every
level's cell `i` centred on input pixel `stride * i`, and imported torchvision
weights exact. A level of stride s has `ceil(size / s)` cells.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from must_jax.models.conv import Conv
from must_jax.ops.pooling import max_pool

# Kernel initialiser of the TPU code (variance_scaling with its defaults).
conv_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")

# depth -> (blocks of stage 2..5, whether blocks are bottlenecks)
STAGES: dict[int, tuple[tuple[int, ...], bool]] = {
  18: ((2, 2, 2, 2), False),
  34: ((3, 4, 6, 3), False),
  50: ((3, 4, 6, 3), True),
  101: ((3, 4, 23, 3), True),
  152: ((3, 8, 36, 3), True),
}

_EXPANSION = 4


class Block(nn.Module):
  """One residual block, basic (two 3x3) or bottleneck (1x1, 3x3, 1x1).

  Attributes:
    width: channels of the 3x3 convolutions of the plain network.
    stride: of the first 3x3 convolution and of the projection shortcut.
    bottleneck: kind of block; a bottleneck's output has 4 * width channels.
    groups: of a bottleneck's 3x3 convolution.
    group_width: channels of a group where `width` is 64.
    conv: `Conv` with everything common to the network filled in.
    norm: `nn.BatchNorm`, likewise.
  """

  width: int
  stride: int
  bottleneck: bool
  groups: int
  group_width: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, h, w, C] to [B, ceil(h / stride), ceil(w / stride), C']."""
    layers: tuple[tuple[int, int, int, int], ...]
    if self.bottleneck:
      inner = self.width * self.group_width // 64 * self.groups
      layers = (
        (inner, 1, 1, 1),
        (inner, 3, self.stride, self.groups),
        (_EXPANSION * self.width, 1, 1, 1),
      )
    else:
      layers = ((self.width, 3, self.stride, 1), (self.width, 3, 1, 1))

    shortcut = x
    for i, (channels, kernel, stride, groups) in enumerate(layers, start=1):
      x = self.conv(
        channels,
        (kernel, kernel),
        strides=stride,
        padding=(kernel - 1) // 2,
        feature_group_count=groups,
        name=f"conv{i}",
      )(x)
      x = self.norm(name=f"norm{i}")(x)
      if i < len(layers):
        x = nn.relu(x)
    if shortcut.shape != x.shape:
      shortcut = self.conv(
        x.shape[-1], (1, 1), strides=self.stride, padding=0, name="conv_skip"
      )(shortcut)
      shortcut = self.norm(name="norm_skip")(shortcut)
    return nn.relu(x + shortcut)


class ResNet(nn.Module):
  """ResNet trunk without its classifier (He et al. 2016, v1.5 strides).

  With groups it is a ResNeXt (Xie et al. 2017): "32x8d" has 32 groups of 8
  channels in stage 2, twice as many channels in each later stage.

  Attributes:
    depth: 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks).
    width: channels of the stem and of stage 2; 0 for the published 64.
    groups: of the bottlenecks' 3x3 convolutions.
    group_width: channels of a group in stage 2, at the published width.
    remat: levels whose blocks keep only their inputs for the backward pass and
      are computed again there: less memory, a third more time.
    dtype: of activations. Parameters and norm statistics are float32.
    norm_momentum: decay of the running statistics.
    norm_epsilon: added to the variance.
  """

  depth: int = 50
  width: int = 0
  groups: int = 1
  group_width: int = 64
  remat: tuple[int, ...] = ()
  dtype: Any = jnp.float32
  norm_momentum: float = 0.99
  norm_epsilon: float = 1e-3

  @property
  def layers(self) -> tuple[tuple[str, ...], ...]:
    """Names of the modules after the stem, layer by layer."""
    blocks, _ = STAGES[self.depth]
    return tuple(
      (f"c{level}_block{i + 1}",)
      for level, num_blocks in enumerate(blocks, start=2)
      for i in range(num_blocks)
    )

  @property
  def last_block(self) -> tuple[str, ...]:
    """The last layer that all tasks learn through."""
    return self.layers[-1]

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool = False
  ) -> dict[int, jax.Array]:
    """Extracts features.

    Args:
      image: normalised images [B, H, W, 3].
      train: normalise with the statistics of the batch and update the running
        ones (collection `batch_stats`).

    Returns:
      {level: [B, ceil(H / 2**level), ceil(W / 2**level), C]}, level 2 to 5.

    Raises:
      ValueError: the depth is not one of the five published ones.
    """
    if self.depth not in STAGES:
      raise ValueError(
        f"ResNet depth is {self.depth}; choose one of {sorted(STAGES)}."
      )
    blocks, bottleneck = STAGES[self.depth]
    conv = functools.partial(
      Conv, use_bias=False, dtype=self.dtype, kernel_init=conv_init
    )
    norm = functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=self.norm_momentum,
      epsilon=self.norm_epsilon,
      dtype=self.dtype,
    )

    width = self.width or 64
    x = conv(width, (7, 7), strides=2, padding=3, name="conv1")(image)
    x = nn.relu(norm(name="norm1")(x))
    x = max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    features = {}
    for level, num_blocks in enumerate(blocks, start=2):
      make_block = nn.remat(Block) if level in self.remat else Block
      for i in range(num_blocks):
        x = make_block(
          width=width * 2 ** (level - 2),
          stride=2 if i == 0 and level > 2 else 1,
          bottleneck=bottleneck,
          groups=self.groups,
          group_width=self.group_width,
          conv=conv,
          norm=norm,
          name=f"c{level}_block{i + 1}",
        )(x)
      features[level] = x
    return features
