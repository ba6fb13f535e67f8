"""Encoders of DPT (Ranftl et al. 2021): a ViT reassembled into a pyramid.

DPT-Large is ViT-L/16. DPT-Hybrid is ViT-B on the third stage of a ResNet with
standardised weights, whose first two stages are levels 2 and 3. All of the
ResNet pads "SAME", as the code that trained it. Both were trained at 384 x 384.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from must_jax.models.conv import Conv
from must_jax.models.resnet import conv_init
from must_jax.ops.convolution import conv_general_dilated
from must_jax.ops.pooling import max_pool
from must_jax.ops.resize import resize_bilinear

_STRIDE = 16  # of the tokens
_token_init = nn.initializers.normal(0.02)


class StdConv(nn.Module):
  """Convolution whose kernel is standardised per output (Qiao et al. 2019).

  Attributes:
    channels: of the output.
    kernel: side of the kernel.
    stride: in both directions.
    dtype: of the convolution; the kernel is standardised in float32.
  """

  channels: int
  kernel: int
  stride: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, h, w, C] to [B, ceil(h / stride), ceil(w / stride), C']."""
    kernel = self.param(
      "kernel",
      conv_init,
      (self.kernel, self.kernel, x.shape[-1], self.channels),
    )
    variance = jnp.var(kernel, axis=(0, 1, 2), keepdims=True)
    kernel = jax.nn.standardize(
      kernel, axis=(0, 1, 2), variance=variance, epsilon=1e-8
    )
    return conv_general_dilated(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      (self.stride, self.stride),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class StdBlock(nn.Module):
  """Bottleneck of standardised convolutions with GroupNorm.

  Attributes:
    width: channels of the 3x3 convolution; the output has four times as many.
    stride: of the 3x3 convolution and of the projection shortcut.
    dtype: of activations.
  """

  width: int
  stride: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, h, w, C] to [B, ceil(h / stride), ceil(w / stride), C']."""
    layer = functools.partial(_std_conv_norm, self.dtype)
    y = nn.relu(layer(x, self.width, 1, 1, "1"))
    y = nn.relu(layer(y, self.width, 3, self.stride, "2"))
    y = layer(y, 4 * self.width, 1, 1, "3")
    if x.shape != y.shape:
      x = layer(x, 4 * self.width, 1, self.stride, "_skip")
    return nn.relu(x + y)


def _std_conv_norm(
  dtype: Any, x: jax.Array, channels: int, kernel: int, stride: int, name: str
) -> jax.Array:
  x = StdConv(channels, kernel, stride, dtype, name=f"conv{name}")(x)
  return nn.GroupNorm(32, epsilon=1e-5, dtype=dtype, name=f"norm{name}")(x)


class TransformerBlock(nn.Module):
  """Pre-norm self-attention and MLP (Dosovitskiy et al. 2021).

  Attributes:
    num_heads: of the attention.
    dtype: of activations; norms and softmax compute in float32.
  """

  num_heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps tokens [B, N, D] to the same shape."""
    batch, num_tokens, dim = x.shape
    dense = functools.partial(nn.Dense, dtype=self.dtype)
    norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
    y = dense(3 * dim, name="qkv")(norm(name="norm1")(x))
    y = y.reshape(batch, num_tokens, 3, self.num_heads, dim // self.num_heads)
    y = jax.nn.dot_product_attention(y[:, :, 0], y[:, :, 1], y[:, :, 2])
    x = x + dense(dim, name="proj")(y.reshape(x.shape))
    y = dense(4 * dim, name="fc1")(norm(name="norm2")(x))
    y = nn.gelu(y, approximate=False)
    return x + dense(dim, name="fc2")(y)


class Reassemble(nn.Module):
  """Tokens of a block to the map of a level ("readout project").

  Attributes:
    level: of the map, stride 2**level.
    channels: of the map.
    dtype: of activations.
  """

  level: int
  channels: int
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Maps tokens [B, 1 + h * w, D] of a grid (h, w), class token first.

    Returns:
      [B, 4h, 4w, C] for level 2, down to [B, ceil(h / 2), ceil(w / 2), C] for
      level 5.
    """
    class_token, tokens = x[:, :1], x[:, 1:]
    x = jnp.concatenate(
      [tokens, jnp.broadcast_to(class_token, tokens.shape)], axis=-1
    )
    x = nn.Dense(tokens.shape[-1], dtype=self.dtype, name="readout")(x)
    x = nn.gelu(x, approximate=False)
    x = x.reshape(x.shape[0], *grid, x.shape[-1])
    x = Conv(self.channels, (1, 1), dtype=self.dtype, name="project")(x)
    if self.level < 4:
      factor = 2 ** (4 - self.level)
      return nn.ConvTranspose(
        self.channels,
        (factor, factor),
        strides=(factor, factor),
        padding="VALID",
        dtype=self.dtype,
        name="resample",
      )(x)
    if self.level == 5:
      return Conv(
        self.channels,
        (3, 3),
        strides=2,
        padding=1,
        dtype=self.dtype,
        name="resample",
      )(x)
    return x


class DptEncoder(nn.Module):
  """ViT, or ResNet and ViT, with the features of four levels.

  Attributes:
    conv_blocks: blocks of the three stages of the ResNet; empty for a plain
      ViT. Its first two stages are levels 2 and 3.
    dim: of tokens.
    num_heads: of the attention.
    taps: the transformer blocks after which tokens become the levels up to 5,
      counted from 1. The last one is the depth.
    channels: of the levels of `taps`.
    grid: side of the learned grid of position embeddings, in tokens. It is
      resized to that of the input.
    width: must be 0, there is one published width.
    remat: levels whose blocks keep only their inputs for the backward pass and
      are computed again there; transformer blocks are level 4.
    dtype: of activations. Parameters are float32.
    norm_momentum: not used, LayerNorm and GroupNorm have no running statistics.
    norm_epsilon: not used, theirs are fixed at the published 1e-6 and 1e-5.
  """

  conv_blocks: tuple[int, ...] = ()
  dim: int = 1024
  num_heads: int = 16
  taps: tuple[int, ...] = (6, 12, 18, 24)
  channels: tuple[int, ...] = (256, 512, 1024, 1024)
  grid: int = 24
  width: int = 0
  remat: tuple[int, ...] = ()
  dtype: Any = jnp.float32
  norm_momentum: float = 0.99
  norm_epsilon: float = 1e-3

  @property
  def layers(self) -> tuple[tuple[str, ...], ...]:
    """Names of the modules after the stem, layer by layer."""
    conv_blocks = tuple(
      (f"c{level}_block{i + 1}",)
      for level, num_blocks in enumerate(self.conv_blocks, start=2)
      for i in range(num_blocks)
    )
    blocks = tuple((f"block{i + 1}",) for i in range(self.taps[-1]))
    levels = range(6 - len(self.taps), 6)
    top = tuple(f"c{level}_reassemble" for level in levels)
    return (*conv_blocks, *blocks, top)

  @property
  def last_block(self) -> tuple[str, ...]:
    """The last layer that all tasks learn through."""
    return self.layers[-2]

  @nn.compact
  def __call__(
    self, image: jax.Array, train: bool = False
  ) -> dict[int, jax.Array]:
    """Extracts features.

    Args:
      image: normalised images [B, H, W, 3]; H and W are multiples of 16.
      train: not used, there are neither running statistics nor dropout.

    Returns:
      {level: [B, ceil(H / 2**level), ceil(W / 2**level), C]}, level 2 to 5.

    Raises:
      ValueError: `width` is not 0, or an image size is no multiple of 16.
    """
    if self.width:
      raise ValueError(
        f"The DPT backbone got width {self.width}; it has one width, set"
        " model.width to 0."
      )
    height, width = image.shape[1:3]
    if height % _STRIDE or width % _STRIDE:
      raise ValueError(
        f"The DPT backbone got images of {height} x {width}; expected multiples"
        f" of {_STRIDE} (data.image_size)."
      )
    features = {}
    x = image
    if self.conv_blocks:
      x = nn.relu(_std_conv_norm(self.dtype, x, 64, 7, 2, "1"))
      x = max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
      # The third stage is at level 4, which the transformer replaces.
      for level, num_blocks in enumerate(self.conv_blocks, start=2):
        conv_block = nn.remat(StdBlock) if level in self.remat else StdBlock
        for i in range(num_blocks):
          x = conv_block(
            width=64 * 2 ** (level - 2),
            stride=2 if i == 0 and level > 2 else 1,
            dtype=self.dtype,
            name=f"c{level}_block{i + 1}",
          )(x)
        features[level] = x

    grid = (height // _STRIDE, width // _STRIDE)
    patch = 1 if self.conv_blocks else _STRIDE
    x = Conv(
      self.dim,
      (patch, patch),
      strides=patch,
      padding="VALID",
      dtype=self.dtype,
      name="patch_embed",
    )(x)
    x = self._tokens(x)
    first_level = 6 - len(self.taps)
    block = nn.remat(TransformerBlock) if 4 in self.remat else TransformerBlock
    for i in range(1, self.taps[-1] + 1):
      x = block(self.num_heads, self.dtype, name=f"block{i}")(x)
      if i in self.taps:
        tap = self.taps.index(i)
        level = first_level + tap
        features[level] = Reassemble(
          level, self.channels[tap], self.dtype, name=f"c{level}_reassemble"
        )(x, grid)
    return features

  def _tokens(self, x: jax.Array) -> jax.Array:
    """Patches [B, h, w, D] to tokens with positions [B, 1 + h * w, D]."""
    batch, *grid, dim = x.shape
    class_token = self.param("class_token", _token_init, (dim,))
    class_position = self.param("class_position", _token_init, (dim,))
    positions = self.param(
      "grid_position", _token_init, (self.grid, self.grid, dim)
    )
    first = jnp.broadcast_to(class_token + class_position, (batch, 1, dim))
    x = x + resize_bilinear(positions, (grid[0], grid[1])).astype(x.dtype)
    return jnp.concatenate(
      [first.astype(x.dtype), x.reshape(batch, -1, dim)], axis=1
    )
