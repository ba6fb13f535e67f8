"""EfficientNet backbones (Tan and Le 2019), B0 to B8, L2, and Lite 0 to 4.

Three rules for the padding of convolutions of kernel k are in use, and weights
are exact with the rule that they were trained with:

  "same"   TensorFlow's: it depends on the size of the input. A level of stride
           s has ceil(size / s) cells.
  "torch"  (k - 1) // 2 on both sides. As many cells.
  "align"  (k // 2 - 1, k // 2) at stride 2, which is "same" of even sizes, also
           where the size is odd. Levels have floor(size / s) cells.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from must_jax.models.conv import Conv
from must_jax.models.resnet import conv_init

# Stages of B0: blocks, kernel, stride, expansion, channels.
_STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)
_STEM = 32
_HEAD = 1280
_SE_RATIO = 0.25
PADDINGS = ("same", "torch", "align")


@dataclasses.dataclass(frozen=True)
class Scaling:
  """How a variant differs from B0.

  Attributes:
    width: factor of the channels.
    depth: factor of the stages' blocks.
    image_size: it was published for.
    lite: without squeeze and excitation, ReLU6 for swish; stem, head and the
      number of blocks of the outer stages stay those of B0.
  """

  width: float
  depth: float
  image_size: int
  lite: bool = False


VARIANTS = {
  "b0": Scaling(1.0, 1.0, 224),
  "b1": Scaling(1.0, 1.1, 240),
  "b2": Scaling(1.1, 1.2, 260),
  "b3": Scaling(1.2, 1.4, 300),
  "b4": Scaling(1.4, 1.8, 380),
  "b5": Scaling(1.6, 2.2, 456),
  "b6": Scaling(1.8, 2.6, 528),
  "b7": Scaling(2.0, 3.1, 600),
  "b8": Scaling(2.2, 3.6, 672),
  "l2": Scaling(4.3, 5.3, 800),
  "lite0": Scaling(1.0, 1.0, 224, lite=True),
  "lite1": Scaling(1.0, 1.1, 240, lite=True),
  "lite2": Scaling(1.1, 1.2, 260, lite=True),
  "lite3": Scaling(1.2, 1.4, 280, lite=True),
  "lite4": Scaling(1.4, 1.8, 300, lite=True),
}


def round_channels(channels: int, factor: float) -> int:
  """Scales to the nearest multiple of 8 that is not below 90 %."""
  scaled = channels * factor
  rounded = max(8, int(scaled + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * scaled else rounded


def stage_blocks(variant: str) -> tuple[int, ...]:
  """Number of blocks of each of the seven stages.

  Raises:
    ValueError: there is no such variant.
  """
  if variant not in VARIANTS:
    raise ValueError(
      f"EfficientNet variant is {variant!r}; choose one of {sorted(VARIANTS)}."
    )
  scale = VARIANTS[variant]
  repeats = [math.ceil(blocks * scale.depth) for blocks, *_ in _STAGES]
  if scale.lite:
    repeats[0], repeats[-1] = _STAGES[0][0], _STAGES[-1][0]
  return tuple(repeats)


def _conv(
  channels: int, kernel: int, stride: int = 1, *, rule: str, **options: Any
) -> nn.Module:
  """A square convolution with one of the three rules of padding."""
  padding: Any = (kernel - 1) // 2
  if rule == "same":
    padding = "SAME"
  elif rule == "align" and stride == 2:
    padding = [(kernel // 2 - 1, kernel // 2)] * 2
  return Conv(
    channels,
    (kernel, kernel),
    strides=stride,
    padding=padding,
    kernel_init=conv_init,
    **options,
  )


class Block(nn.Module):
  """Inverted residual block: expand, depthwise, squeeze-excite, project.

  Attributes:
    channels: of the output.
    kernel: size of the depthwise convolution.
    stride: of the depthwise convolution.
    expansion: channels of the depthwise convolution, over those of the input.
    squeeze_excite: whether channels are gated by their means.
    survival_prob: of the residual branch, in training.
    activation: of the hidden layers.
    conv: makes a convolution of (channels, kernel, stride).
    norm: `nn.BatchNorm` with everything common to the network filled in.
  """

  channels: int
  kernel: int
  stride: int
  expansion: int
  squeeze_excite: bool
  survival_prob: float
  activation: Callable[[jax.Array], jax.Array]
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Maps [B, h, w, C] to [B, h / stride, w / stride, channels]."""
    shortcut = x
    inputs = x.shape[-1]
    hidden = inputs * self.expansion
    if self.expansion > 1:
      x = self.conv(hidden, 1, name="expand_conv")(x)
      x = self.activation(self.norm(name="expand_norm")(x))
    x = self.conv(
      hidden,
      self.kernel,
      self.stride,
      feature_group_count=hidden,
      name="depthwise_conv",
    )(x)
    x = self.activation(self.norm(name="depthwise_norm")(x))
    if self.squeeze_excite:
      gate = x.mean((1, 2), keepdims=True)
      squeezed = max(1, int(inputs * _SE_RATIO))
      gate = self.conv(squeezed, 1, use_bias=True, name="se_reduce")(gate)
      gate = self.activation(gate)
      gate = self.conv(hidden, 1, use_bias=True, name="se_expand")(gate)
      x = x * nn.sigmoid(gate)
    x = self.conv(self.channels, 1, name="project_conv")(x)
    x = self.norm(name="project_norm")(x)
    if shortcut.shape != x.shape:
      return x
    # Stochastic depth: whole examples, and survivors make up for the others.
    x = nn.Dropout(
      1.0 - self.survival_prob,
      broadcast_dims=(1, 2, 3),
      deterministic=not train,
    )(x)
    return x + shortcut


class EfficientNet(nn.Module):
  """EfficientNet trunk without its classifier.

  Attributes:
    variant: key of `VARIANTS`.
    padding: "same", "torch" or "align", see the top of this file.
    head_conv: whether there is a last 1x1 convolution, which only the
      classifier sees.
    width: channels of the stem; 0 as published, else all widths scale with it.
    remat: levels (from 1) whose blocks keep only their inputs for the backward
      pass and are computed again there: less memory, a third more time.
    dtype: of activations. Parameters and norm statistics are float32.
    norm_momentum: decay of the running statistics.
    norm_epsilon: added to the variance.
    survival_prob: stochastic depth's, of the branch after the last block; the
      first one's is 1 and those between are on a line. Training needs the rng
      stream "dropout" if it is below 1.
  """

  variant: str = "b0"
  padding: str = "same"
  head_conv: bool = False
  width: int = 0
  remat: tuple[int, ...] = ()
  dtype: Any = jnp.float32
  norm_momentum: float = 0.99
  norm_epsilon: float = 1e-3
  survival_prob: float = 0.8

  @property
  def layers(self) -> tuple[tuple[str, ...], ...]:
    """Names of the modules after the stem, layer by layer."""
    num_blocks = sum(stage_blocks(self.variant))
    blocks = tuple((f"block{i + 1}",) for i in range(num_blocks))
    return (*blocks, ("head_conv", "head_norm")) if self.head_conv else blocks

  @property
  def last_block(self) -> tuple[str, ...]:
    """The last layer that all tasks learn through."""
    return self.layers[-2 if self.head_conv else -1]

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool = False
  ) -> dict[int | str, jax.Array]:
    """Extracts features.

    Args:
      image: normalised images [B, H, W, 3].
      train: normalise with the statistics of the batch, update the running
        ones (collection `batch_stats`), and skip blocks at random.

    Returns:
      {level: [B, H / 2**level, W / 2**level, C]}, level 2 to 5: the last block
      before the next stride. With `head_conv` also {"top": [B, H / 32, W / 32,
      C']}.

    Raises:
      ValueError: there is no such variant or padding.
    """
    repeats = stage_blocks(self.variant)
    if self.padding not in PADDINGS:
      raise ValueError(
        f"EfficientNet padding is {self.padding!r}; choose one of {PADDINGS}."
      )
    scale = VARIANTS[self.variant]
    outer_width = 1.0 if scale.lite else scale.width
    stem_channels = round_channels(_STEM, outer_width)
    shrink = self.width / stem_channels if self.width else 1.0
    activation = nn.relu6 if scale.lite else nn.swish
    conv = functools.partial(
      _conv, rule=self.padding, use_bias=False, dtype=self.dtype
    )
    norm = functools.partial(
      nn.BatchNorm,
      use_running_average=not train,
      momentum=self.norm_momentum,
      epsilon=self.norm_epsilon,
      dtype=self.dtype,
    )

    x = conv(self.width or stem_channels, 3, 2, name="stem_conv")(image)
    x = activation(norm(name="stem_norm")(x))
    features: dict[int | str, jax.Array] = {}
    level, index = 1, 0
    for stage, num_blocks in zip(_STAGES, repeats, strict=True):
      _, kernel, stride, expansion, channels = stage
      level += stride == 2
      make_block = (
        nn.remat(Block, static_argnums=2) if level in self.remat else Block
      )
      for i in range(num_blocks):
        x = make_block(
          channels=round_channels(channels, scale.width * shrink),
          kernel=kernel,
          stride=stride if i == 0 else 1,
          expansion=expansion,
          squeeze_excite=not scale.lite,
          survival_prob=1 - (1 - self.survival_prob) * index / sum(repeats),
          activation=activation,
          conv=conv,
          norm=norm,
          name=f"block{index + 1}",
        )(x, train)
        index += 1
      if level > 1:
        features[level] = x
    if self.head_conv:
      channels = round_channels(_HEAD, outer_width * shrink)
      x = conv(channels, 1, name="head_conv")(x)
      features["top"] = activation(norm(name="head_norm")(x))
    return features
