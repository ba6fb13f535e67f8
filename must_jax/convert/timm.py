"""ResNet and EfficientNet classifiers of timm (PyTorch Image Models).

The EfficientNets are Google's, which timm publishes as `tf_efficientnet_*`:
Noisy Student (`ns_jft_in1k`), AutoAugment (`aa_in1k`), RandAugment
(`ra_in1k`), and AdvProp (`ap_in1k`, kinds `..._ap`: it has a normalisation of
its own, which the Lites share). As published, images are resized to size / crop
at the shorter side, bicubic, and the centre is taken (`data.eval_resize`).

`tf_efficientnet_l2.ns_jft_in1k_475` was published at 475 with crop .936. The
ResNets' recipes differ; most have 224 and crop .875 or .95:
`must-jax convert --crop-fraction`. (`ra4` recipes
have a mean and deviation of .5, which these kinds do not.)
"""

import functools
import re
from collections.abc import Callable

from must_jax.convert.conversion import Kind, Path, Tensor, torch_tensor
from must_jax.convert.torchvision import classifier_config, find_resnet
from must_jax.models.efficientnet import VARIANTS, stage_blocks
from must_jax.models.must import IMAGENET_MEAN, IMAGENET_STD

_HALF = (0.5, 0.5, 0.5)
# Side of the centre crop, relative to the shorter side of the image.
_CROPS = {
  "b0": 0.875,
  "b1": 0.882,
  "b2": 0.89,
  "b3": 0.904,
  "b4": 0.922,
  "b5": 0.934,
  "b6": 0.942,
  "b7": 0.949,
  "b8": 0.954,
  "l2": 0.96,
  "lite0": 0.875,
  "lite1": 0.882,
  "lite2": 0.89,
  "lite3": 0.904,
  "lite4": 0.92,
}
# Where timm evaluates at another size than the publisher, and bilinear.
_SIZES = {"lite3": 300, "lite4": 380}
_OUTER = {
  "stem_conv": "conv_stem",
  "stem_norm": "bn1",
  "head_conv": "conv_head",
  "head_norm": "bn2",
}
_BLOCK = {
  "expand_conv": "conv_pw",
  "expand_norm": "bn1",
  "depthwise_conv": "conv_dw",
  "depthwise_norm": "bn2",
  "se_reduce": "se.conv_reduce",
  "se_expand": "se.conv_expand",
  "project_conv": "conv_pwl",
  "project_norm": "bn3",
}
# Blocks of the first stage do not expand, so the names move up.
_FIRST_BLOCK = _BLOCK | {
  "depthwise_norm": "bn1",
  "project_conv": "conv_pw",
  "project_norm": "bn2",
}


def find_efficientnet(variant: str) -> Callable[[Path], Tensor]:
  """Finds tensors for arrays of our EfficientNet and its classifier.

  Args:
    variant: key of `VARIANTS`.
  """
  blocks = [
    (stage, index)
    for stage, count in enumerate(stage_blocks(variant))
    for index in range(count)
  ]

  def find(path: Path) -> Tensor:
    *scope, leaf = path[1:]
    if scope[0] == "head_classification":
      return torch_tensor("classifier", leaf)
    if block := re.fullmatch(r"block(\d+)", scope[1]):
      stage, index = blocks[int(block[1]) - 1]
      names = _BLOCK if stage else _FIRST_BLOCK
      return torch_tensor(f"blocks.{stage}.{index}.{names[scope[2]]}", leaf)
    return torch_tensor(_OUTER[scope[1]], leaf)

  return find


def _resnet(depth: int) -> Kind:
  return Kind(
    name=f"timm_resnet{depth}",
    title=f"ResNet-{depth}, ImageNet-1k (224 px, crop by recipe)",
    source=f"https://huggingface.co/models?search=timm/resnet{depth}",
    licence="by recipe, see the model card; trained on ImageNet",
    make_config=functools.partial(
      classifier_config,
      backbone=f"resnet{depth}",
      classifier="fc.weight",
      image_size=224,
      norm_epsilon=1e-5,
      interpolation="bicubic",
    ),
    find=find_resnet,
  )


def _efficientnet(variant: str, adv_prop: bool) -> Kind:
  size = _SIZES.get(variant, VARIANTS[variant].image_size)
  interpolation = "bilinear" if variant in _SIZES else "bicubic"
  recipe = "Noisy Student, AutoAugment or plain"
  if adv_prop:
    recipe = "AdvProp"
  elif VARIANTS[variant].lite:
    recipe = "plain"
  centred = adv_prop or VARIANTS[variant].lite
  return Kind(
    name=f"timm_efficientnet_{variant}" + ("_ap" if adv_prop else ""),
    title=f"EfficientNet-{variant.capitalize()}, ImageNet-1k, {recipe} ({size}"
    f" px, {interpolation}, centre crop)",
    source="https://huggingface.co/models?search=timm/"
    f"tf_efficientnet_{variant}",
    licence="Apache-2.0; trained on ImageNet",
    make_config=functools.partial(
      classifier_config,
      backbone=f"efficientnet_{variant}",
      classifier="classifier.weight",
      image_size=size,
      norm_epsilon=1e-3,
      crop_fraction=_CROPS[variant],
      interpolation=interpolation,
      image_mean=_HALF if centred else IMAGENET_MEAN,
      image_std=_HALF if centred else IMAGENET_STD,
    ),
    find=find_efficientnet(variant),
  )


KINDS = (
  *(_resnet(depth) for depth in (18, 34, 50, 101, 152)),
  *(
    _efficientnet(variant, adv_prop)
    for variant, scaling in VARIANTS.items()
    for adv_prop in (False, True)
    if not (adv_prop and (variant == "l2" or scaling.lite))
  ),
)
