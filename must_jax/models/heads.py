"""Heads for image classes and for pixel-wise tasks (paper 3.2, figure 3).

Every head is called as `head(features, labels=None, train=False)` and returns
a dict of float32 arrays. `features` is what `MustModel` offers:

  "c5"          [B, H/32, W/32, C], always; of networks with a last
                convolution for classification only, what that gives
  "backbone"    {2: [B, H/4, W/4, C], ..., 5: [B, H/32, W/32, C]}, always
  3, 4, ..., 7  pyramid levels [B, H/2**l, W/2**l, C], if a head needs them
  "p2"          fused map [B, H/4, W/4, C], if a head needs it
  "image_size"  (H, W), ints
  "content_size"  float32 [B, 2], if the caller knows it

The class attribute `needs` names the features a head reads: "c5", "backbone",
"pyramid" or "fused". Predictions are computed in float32 whatever the compute
dtype.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from must_jax.models.conv import Conv
from must_jax.models.resnet import conv_init
from must_jax.types import Labels

# Of predictions and of the RPN's hidden layers, as in the TPU detection code.
# That has it in the pixel heads' hidden layers too; ours use `conv_init`, which
# keeps variances well above `norm_epsilon` at any width.
head_init = nn.initializers.normal(0.01)


class ClassificationHead(nn.Module):
  """Linear classifier on average-pooled C5.

  Attributes:
    num_classes: K.
    dropout: rate on the pooled features (rng stream "dropout").
  """

  num_classes: int
  dropout: float = 0.0

  needs: ClassVar[str] = "c5"

  @nn.compact
  def __call__(
    self,
    features: dict[Any, Any],
    labels: Labels | None = None,
    train: bool = False,
  ) -> dict[str, jax.Array]:
    """Returns {"logits": float32 [B, K]}; `labels` are not used."""
    pooled = features["c5"].astype(jnp.float32).mean((1, 2))
    pooled = nn.Dropout(self.dropout, deterministic=not train)(pooled)
    logits = nn.Dense(self.num_classes, kernel_init=head_init, name="logits")
    return {"logits": logits(pooled)}


class PixelHead(nn.Module):
  """Convolutions, then a linear prediction per pixel of the fused P2.

  Attributes:
    num_outputs: channels of the prediction (classes; 1 depth; 3 normal).
    num_convs: hidden 3x3 convolutions, each with BatchNorm and ReLU.
    channels: of the hidden convolutions.
    dtype: of the hidden activations. Parameters and norm statistics are
      float32.
    norm_momentum: decay of the running statistics.
    norm_epsilon: added to the variance.
  """

  num_outputs: int
  num_convs: int = 3
  channels: int = 256
  dtype: Any = jnp.float32
  norm_momentum: float = 0.99
  norm_epsilon: float = 1e-3

  needs: ClassVar[str] = "fused"

  @nn.compact
  def __call__(
    self,
    features: dict[Any, Any],
    labels: Labels | None = None,
    train: bool = False,
  ) -> dict[str, jax.Array]:
    """Returns {"map": float32 [B, H/4, W/4, O]}; `labels` are not used."""
    x = features["p2"]
    for i in range(1, self.num_convs + 1):
      x = Conv(
        self.channels,
        (3, 3),
        padding=1,
        use_bias=False,
        dtype=self.dtype,
        kernel_init=conv_init,
        name=f"conv{i}",
      )(x)
      x = nn.BatchNorm(
        use_running_average=not train,
        momentum=self.norm_momentum,
        epsilon=self.norm_epsilon,
        dtype=self.dtype,
        name=f"norm{i}",
      )(x)
      x = nn.relu(x)
    predict = Conv(self.num_outputs, (1, 1), kernel_init=head_init, name="map")
    return {"map": predict(x.astype(jnp.float32))}


class ProjectionHead(nn.Module):
  """Hidden layers and a projection on average-pooled C5 (SimCLR).

  Every layer is without bias and has BatchNorm, the hidden ones ReLU.

  Attributes:
    num_layers: with the projection; SimCLR's second code has 3, its paper 2.
    channels: of the projection; the hidden layers have those of C5.
    dtype: of the hidden activations. Parameters and norm statistics are
      float32.
    norm_momentum: decay of the running statistics.
    norm_epsilon: added to the variance.
  """

  num_layers: int = 3
  channels: int = 128
  dtype: Any = jnp.float32
  norm_momentum: float = 0.99
  norm_epsilon: float = 1e-3

  needs: ClassVar[str] = "c5"

  @nn.compact
  def __call__(
    self,
    features: dict[Any, Any],
    labels: Labels | None = None,
    train: bool = False,
  ) -> dict[str, jax.Array]:
    """Returns {"embedding": float32 [B, channels]}; `labels` are not used."""
    x = features["c5"].astype(jnp.float32).mean((1, 2))
    hidden = x.shape[-1]
    for i in range(1, self.num_layers + 1):
      is_last = i == self.num_layers
      x = nn.Dense(
        self.channels if is_last else hidden,
        use_bias=False,
        dtype=self.dtype,
        name=f"dense{i}",
      )(x)
      x = nn.BatchNorm(
        use_running_average=not train,
        momentum=self.norm_momentum,
        epsilon=self.norm_epsilon,
        use_bias=not is_last,
        dtype=self.dtype,
        name=f"norm{i}",
      )(x)
      if not is_last:
        x = nn.relu(x)
    return {"embedding": x.astype(jnp.float32)}
