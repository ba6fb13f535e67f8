"""Depth decoders of MiDaS v2.1 (Ranftl et al. 2020) and DPT (2021).

Lateral 3x3 convolutions, then fusion from the coarsest level to the finest,
then three convolutions to the map. The published decoders differ in four
things only, see `DECODERS`. DPT's encoders are in `vit.py`.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from must_jax.models.conv import Conv
from must_jax.models.heads import head_init
from must_jax.models.resnet import conv_init
from must_jax.ops.resize import resize_bilinear
from must_jax.types import Labels

_LEVELS = (2, 3, 4, 5)


class ResidualUnit(nn.Module):
  """Two pre-activated 3x3 convolutions around a skip.

  Attributes:
    relu_skip: skip relu(x) instead of x. The published v2.1 large network is
      trained so: its first ReLU works in place and changes the skip as well.
    dtype: of activations.
  """

  relu_skip: bool
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, h, w, C] to the same shape."""
    channels = x.shape[-1]
    y = nn.relu(x)
    skip = y if self.relu_skip else x
    y = _conv3(channels, self.dtype, "conv1")(y)
    y = _conv3(channels, self.dtype, "conv2")(nn.relu(y))
    return skip + y


class Fusion(nn.Module):
  """Adds a lateral map to the coarser path and takes it one level down.

  Attributes:
    project: channels of a last 1x1 convolution; 0 for none.
    relu_skip: of the residual units.
    dtype: of activations.
  """

  project: int
  relu_skip: bool
  dtype: Any

  @nn.compact
  def __call__(
    self, lateral: jax.Array, path: jax.Array | None, size: tuple[int, int]
  ) -> jax.Array:
    """Fuses.

    Args:
      lateral: [B, h, w, C].
      path: [B, h, w, C] from the coarser level; None at the coarsest.
      size: of the output.

    Returns:
      [B, *size, C], or `project` channels.
    """
    unit = functools.partial(ResidualUnit, self.relu_skip, self.dtype)
    x = lateral
    if path is not None:
      x = path + unit(name="residual1")(lateral)
    x = unit(name="residual2")(x)
    x = resize_bilinear(x, size, align_corners=True)
    if self.project:
      x = Conv(
        self.project,
        (1, 1),
        dtype=self.dtype,
        kernel_init=conv_init,
        name="project",
      )(x)
    return x


class MidasHead(nn.Module):
  """Depth decoder that reads the levels of the backbone itself.

  Attributes:
    channels: of the path at levels 2, 3, 4, 5.
    relu_skip: skips of the residual units are relu(x).
    project: fusions end with a 1x1 convolution.
    align_corners: of the last doubling. Fusions always align corners.
    dtype: of the hidden activations. Parameters are float32.
  """

  channels: tuple[int, int, int, int] = (256, 256, 256, 256)
  relu_skip: bool = False
  project: bool = True
  align_corners: bool = False
  dtype: Any = jnp.float32

  needs: ClassVar[str] = "backbone"

  @nn.compact
  def __call__(
    self,
    features: dict[Any, Any],
    labels: Labels | None = None,
    train: bool = False,
  ) -> dict[str, jax.Array]:
    """Decodes depth.

    Args:
      features: of `MustModel`, see `heads.py`.
      labels: not used.
      train: not used; there are no norms.

    Returns:
      {"map": float32 [B, 4h, 4w, 1]} for h, w of level 2: relative inverse
      depth, not negative.
    """
    width = dict(zip(_LEVELS, self.channels, strict=True))
    laterals = {
      level: _conv3(
        width[level], self.dtype, f"lateral{level}", use_bias=False
      )(features["backbone"][level])
      for level in _LEVELS
    }
    x = None
    for level in reversed(_LEVELS):
      if level > 2:
        # Not twice as large where the image is no multiple of 32.
        size = _size(laterals[level - 1])
      else:
        size = _size(laterals[level], 2)
      x = Fusion(
        project=width[max(level - 1, 2)] if self.project else 0,
        relu_skip=self.relu_skip,
        dtype=self.dtype,
        name=f"fusion{level}",
      )(laterals[level], x, size)
    x = _conv3(width[2] // 2, self.dtype, "conv1")(x)
    x = resize_bilinear(x, _size(x, 2), align_corners=self.align_corners)
    x = nn.relu(_conv3(32, self.dtype, "conv2")(x))
    predict = Conv(1, (1, 1), kernel_init=head_init, name="map")
    return {"map": nn.relu(predict(x.astype(jnp.float32)))}


# The published decoders. DPT-Large and DPT-Hybrid share one.
DECODERS: dict[str, Callable[..., MidasHead]] = {
  "midas_v21": functools.partial(MidasHead, relu_skip=True, project=False),
  "midas_v21_small": functools.partial(MidasHead, channels=(64, 128, 256, 512)),
  "dpt": functools.partial(MidasHead, align_corners=True),
}


def _conv3(
  channels: int, dtype: Any, name: str, use_bias: bool = True
) -> nn.Conv:
  return Conv(
    channels,
    (3, 3),
    padding=1,
    use_bias=use_bias,
    dtype=dtype,
    kernel_init=conv_init,
    name=name,
  )


def _size(x: jax.Array, factor: int = 1) -> tuple[int, int]:
  return factor * x.shape[1], factor * x.shape[2]
