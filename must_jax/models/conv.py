"""The convolution of all networks."""

import functools

import flax.linen as nn

from must_jax.ops import convolution

# `nn.Conv` that is fast on a CPU, too.
Conv = functools.partial(
  nn.Conv, conv_general_dilated=convolution.conv_general_dilated
)
