"""The image tower of ALIGN as Hugging Face publishes it.

`kakaobrain/align-base` is an EfficientNet-B7 without its last convolution,
trained with a BERT on the image-text pairs of COYO-700M. Evaluate as
published: resize to 346 bilinear, then the centre 289 x 289. Its image
embedding is the mean of C5.
"""

import re
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from must_jax.config import base_config
from must_jax.convert.conversion import Kind, Path, Tensor, torch_tensor

_STEM = {
  "stem_conv": "embeddings.convolution",
  "stem_norm": "embeddings.batchnorm",
}
_BLOCK = {
  "expand_conv": "expansion.expand_conv",
  "expand_norm": "expansion.expand_bn",
  "depthwise_conv": "depthwise_conv.depthwise_conv",
  "depthwise_norm": "depthwise_conv.depthwise_norm",
  "se_reduce": "squeeze_excite.reduce",
  "se_expand": "squeeze_excite.expand",
  "project_conv": "projection.project_conv",
  "project_norm": "projection.project_bn",
}


def find_align(path: Path) -> Tensor:
  """The tensor of the image tower for an array of our EfficientNet."""
  *scope, leaf = path[2:]
  if block := re.fullmatch(r"block(\d+)", scope[0]):
    number = int(block[1]) - 1
    name = f"encoder.blocks.{number}.{_BLOCK[scope[1]]}"
  else:
    name = _STEM[scope[0]]
  return torch_tensor(f"vision_model.{name}", leaf)


def _config(weights: Mapping[str, np.ndarray]) -> ConfigDict:
  config = base_config()
  config.model.update(
    {
      "backbone": "efficientnet_b7_align",
      "image_mean": (0.5, 0.5, 0.5),
      "image_std": (0.5, 0.5, 0.5),
      "dtype": "float32",
      "norm_epsilon": 1e-3,
    }
  )
  config.data.image_size = (289, 289)
  return config


KINDS = (
  Kind(
    name="align_efficientnet_b7",
    title="EfficientNet-B7, ALIGN on COYO-700M (289 px: resize 346, centre"
    " crop)",
    source="https://huggingface.co/kakaobrain/align-base",
    licence="Apache-2.0",
    make_config=_config,
    find=find_align,
    unused=(
      "*.num_batches_tracked",
      "text_model.*",
      "text_projection.*",
      "temperature",
    ),
  ),
)
