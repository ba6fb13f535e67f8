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
from must_jax.convert.conversion import Kind, Path, Tensor, torch_tensor
from must_jax.convert.timm import find_efficientnet
from must_jax.convert.torchvision import find_resnet

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
  config.data.update({"image_size": image_size, "eval_resize": resize})
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


# The published module of torchvision's layers and of timm's stages.
_RESNEXT_MODULES = {
  "conv1": "layer1.0",
  "bn1": "layer1.1",
  "layer1": "layer1.4",  # after the stem of four layers
}
_LITE_MODULES = {
  "conv_stem": "layer1.0",
  "bn1": "layer1.1",
  "blocks.0": "layer1.3",
  "blocks.1": "layer1.4",
  "blocks.2": "layer2.0",
  "blocks.3": "layer3.0",
  "blocks.4": "layer3.1",
  "blocks.5": "layer4.0",
  "blocks.6": "layer4.1",
}


def _find_resnext(path: Path) -> Tensor:
  """Torchvision's network, stage by stage in modules of MiDaS."""
  name = find_resnet(("params", "backbone", *path)).name
  module, rest = name.split(".", 1)
  return Tensor(f"pretrained.{_RESNEXT_MODULES.get(module, module)}.{rest}")


def _find_lite(path: Path) -> Tensor:
  """Timm's network, stage by stage in modules of MiDaS."""
  name = find_efficientnet("lite3")(("params", "backbone", *path)).name
  parts = name.split(".")
  cut = 2 if parts[0] == "blocks" else 1
  module, rest = ".".join(parts[:cut]), ".".join(parts[cut:])
  return Tensor(f"pretrained.{_LITE_MODULES[module]}.{rest}")


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
    backbone="efficientnet_lite3_midas",
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
