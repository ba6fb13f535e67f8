"""MiDaS v2.1 and DPT: the `.pt` files of isl-org/MiDaS (Ranftl et al.).

Of a path these functions see what follows "backbone" or the head's name.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from must_jax.config import base_config, task
from must_jax.convert.base import Kind, Path, Tensor, torch_tensor
from must_jax.models.efficientnet import stage_blocks

_HALF = (0.5, 0.5, 0.5)


def _make_config(
  weights: Mapping[str, np.ndarray],
  *,
  backbone: str,
  decoder: str,
  image_side: int,
  resize: str,
  **model: Any,
) -> ConfigDict:
  del weights  # Their number and shapes follow from the kind.
  config = base_config()
  config.model.update({"backbone": backbone, "dtype": "float32", **model})
  image_size = (image_side, image_side)
  config.data.update({"image_size": image_size, "resize": resize})
  config.tasks.depth = task("depth", labels={}, decoder=decoder)
  return config


# Our name in the decoder -> the published one, of what is not made of levels.
_OUTPUT = {"conv1": "0", "conv2": "2", "map": "4"}


def _find_decoder(path: Path) -> Tensor:
  """Of ("lateral2", "kernel"), ("fusion2", "residual1", "conv1", "kernel")."""
  first, *inner, leaf = path
  if first in _OUTPUT:
    return torch_tensor(f"scratch.output_conv.{_OUTPUT[first]}", leaf)
  part, level = first[:-1], int(first[-1]) - 1
  if part == "lateral":
    return torch_tensor(f"scratch.layer{level}_rn", leaf)
  names = [
    {"project": "out_conv"}.get(x, x.replace("residual", "resConfUnit"))
    for x in inner
  ]
  return torch_tensor(".".join([f"scratch.refinenet{level}", *names]), leaf)


def _find_resnext(path: Path) -> Tensor:
  """Of ("norm1", "scale"), ("c2_block1", "conv1", "kernel")."""
  *inner, leaf = path
  if len(inner) == 1:
    index = {"conv1": 0, "norm1": 1}[inner[0]]
    return torch_tensor(f"pretrained.layer1.{index}", leaf)
  level, block = map(int, re.findall(r"\d+", inner[0]))
  # The stem, of four layers, is part of the first one.
  stage = (
    "pretrained.layer1.4" if level == 2 else f"pretrained.layer{level - 1}"
  )
  name = {"conv_skip": "downsample.0", "norm_skip": "downsample.1"}.get(
    inner[1], inner[1].replace("norm", "bn")
  )
  return torch_tensor(f"{stage}.{block - 1}.{name}", leaf)


# The published module that holds each stage of EfficientNet.
_LITE_STAGES = (
  *("layer1.3", "layer1.4"),
  *("layer2.0",),
  *("layer3.0", "layer3.1"),
  *("layer4.0", "layer4.1"),
)
_LITE_LAYERS = {
  "expand_conv": "conv_pw",
  "expand_norm": "bn1",
  "depthwise_conv": "conv_dw",
  "depthwise_norm": "bn2",
  "project_conv": "conv_pwl",
  "project_norm": "bn3",
}
# The first stage does not expand, which shifts the names.
_LITE_FIRST_LAYERS = {
  "depthwise_conv": "conv_dw",
  "depthwise_norm": "bn1",
  "project_conv": "conv_pw",
  "project_norm": "bn2",
}


def _find_lite(path: Path) -> Tensor:
  """Of ("stem_norm", "scale"), ("block1", "depthwise_conv", "kernel")."""
  first, *inner, leaf = path
  if not inner:
    index = {"stem_conv": 0, "stem_norm": 1}[first]
    return torch_tensor(f"pretrained.layer1.{index}", leaf)
  block = int(first.removeprefix("block")) - 1
  stage = 0
  for num_blocks in stage_blocks("lite3"):
    if block < num_blocks:
      break
    block -= num_blocks
    stage += 1
  layers = _LITE_LAYERS if stage else _LITE_FIRST_LAYERS
  name = f"pretrained.{_LITE_STAGES[stage]}.{block}.{layers[inner[0]]}"
  return torch_tensor(name, leaf)


def _grid(positions: np.ndarray) -> np.ndarray:
  """[1, 1 + n * n, D], the class token's first, to [n, n, D]."""
  side = math.isqrt(positions.shape[1] - 1)
  return positions[0, 1:].reshape(side, side, -1)


_TOKENS = {
  "class_token": Tensor("pretrained.model.cls_token", lambda x: x[0, 0]),
  "class_position": Tensor("pretrained.model.pos_embed", lambda x: x[0, 0]),
  "grid_position": Tensor("pretrained.model.pos_embed", _grid),
}
_INPUT = {
  "patch_embed": "proj",
  "conv1": "backbone.stem.conv",
  "norm1": "backbone.stem.norm",
}
_INPUT_STAGES = "pretrained.model.patch_embed.backbone.stages"
_VIT_LAYERS = {
  "qkv": "attn.qkv",
  "proj": "attn.proj",
  "fc1": "mlp.fc1",
  "fc2": "mlp.fc2",
}


def _transposed_kernel(kernel: np.ndarray) -> np.ndarray:
  """PyTorch's ConvTranspose2d [in, out, h, w] to flax's [h, w, in, out]."""
  return kernel[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)


def _find_dpt(path: Path) -> Tensor:
  """Of ("block1", "qkv", "kernel"), ("c2_reassemble", "readout", "kernel")."""
  if path[0] in _TOKENS:
    return _TOKENS[path[0]]
  first, *inner, leaf = path
  if not inner:
    return torch_tensor(f"pretrained.model.patch_embed.{_INPUT[first]}", leaf)
  layer = inner[0]
  if match := re.fullmatch(r"block(\d+)", first):
    block = f"pretrained.model.blocks.{int(match[1]) - 1}"
    return torch_tensor(f"{block}.{_VIT_LAYERS.get(layer, layer)}", leaf)
  if match := re.fullmatch(r"c(\d)_reassemble", first):
    level = int(match[1])
    index = {"readout": "0.project.0", "project": "3", "resample": "4"}[layer]
    tensor = torch_tensor(
      f"pretrained.act_postprocess{level - 1}.{index}", leaf
    )
    if layer == "resample" and level < 4 and leaf == "kernel":
      return Tensor(tensor.name, _transposed_kernel)
    return tensor
  level, number = map(int, re.findall(r"\d+", first))
  block = f"{_INPUT_STAGES}.{level - 2}.blocks.{number - 1}"
  name = layer.replace("conv_skip", "downsample.conv")
  name = name.replace("norm_skip", "downsample.norm")
  return torch_tensor(f"{block}.{name}", leaf)


def _find(find_encoder: Callable[[Path], Tensor], path: Path) -> Tensor:
  _, part, *rest = path
  return (find_encoder if part == "backbone" else _find_decoder)(tuple(rest))


def _kind(
  name: str,
  title: str,
  release: str,
  find_encoder: Callable[[Path], Tensor],
  **options: Any,
) -> Kind:
  return Kind(
    name=name,
    title=f"{title}; inverse depth, trained on 10 datasets",
    source=f"https://github.com/isl-org/MiDaS/releases/download/{release}",
    licence="MIT",
    make_config=functools.partial(_make_config, **options),
    find=functools.partial(_find, find_encoder),
    unused=(
      "*.num_batches_tracked",
      # The coarsest fusion has one input, so its first unit never runs.
      "scratch.refinenet4.resConfUnit1.*",
      # Of the ViT after its last block.
      "pretrained.model.norm.*",
      "pretrained.model.head.*",
    ),
  )


KINDS = (
  _kind(
    "midas_v21_large",
    "MiDaS v2.1, ResNeXt-101 32x8d",
    "v2_1/midas_v21_384.pt",
    _find_resnext,
    image_side=384,
    resize="midas_upper_bound",
    backbone="resnext101_32x8d",
    decoder="midas_v21",
    norm_epsilon=1e-5,
  ),
  _kind(
    "midas_v21_small",
    "MiDaS v2.1 small, EfficientNet-Lite3",
    "v2_1/midas_v21_small_256.pt",
    _find_lite,
    image_side=256,
    resize="midas_upper_bound",
    backbone="efficientnet_lite3",
    decoder="midas_v21_small",
    norm_epsilon=1e-3,
  ),
  _kind(
    "dpt_hybrid",
    "MiDaS v3 DPT-Hybrid, ResNet-50 and ViT-B",
    "v3/dpt_hybrid_384.pt",
    _find_dpt,
    image_side=384,
    resize="midas_minimal",
    backbone="dpt_hybrid",
    decoder="dpt",
    image_mean=_HALF,
    image_std=_HALF,
  ),
  _kind(
    "dpt_large",
    "MiDaS v3 DPT-Large, ViT-L/16",
    "v3/dpt_large_384.pt",
    _find_dpt,
    image_side=384,
    resize="midas_minimal",
    backbone="dpt_large",
    decoder="dpt",
    image_mean=_HALF,
    image_std=_HALF,
  ),
)
