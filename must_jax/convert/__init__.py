"""Published weights to checkpoints of ours: `must-jax convert`.

A kind of weights is a `conversion.Kind`, in `KINDS` of its publisher's module.
To add a module, name it here.
"""

import importlib
import shlex

from must_jax.convert.conversion import ConversionError, Kind

_MODULES = (
  "torchvision",
  "torchvision_detection",
  "timm",
  "efficientnet_lite",
  "align",
  "midas",
)

# Those that `configs/` and tables start from or label with, by the last part of
# their place: kind, and file as published.
CHECKPOINTS = {
  "align_b7": ("align_efficientnet_b7", "model.safetensors"),
  "faster_rcnn": (
    "torchvision_fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth",
  ),
  "efficientnet_lite0": ("efficientnet_lite0",),  # a package has the file
  "imagenet_b7": ("timm_efficientnet_b7", "model.safetensors"),
  "midas": ("midas_v21_large", "midas_v21_384.pt"),
  "noisy_l2": ("timm_efficientnet_l2", "model.safetensors"),
}


def command(name: str, out: str) -> str:
  """The command that makes one of `CHECKPOINTS`."""
  return shlex.join(["must-jax", "convert", *CHECKPOINTS[name], "--out", out])


def kinds() -> dict[str, Kind]:
  """All kinds by name."""
  modules = (
    importlib.import_module(f"must_jax.convert.{name}") for name in _MODULES
  )
  return {kind.name: kind for module in modules for kind in module.KINDS}


def get_kind(name: str) -> Kind:
  """The kind of that name.

  Raises:
    ConversionError: there is none.
  """
  known = kinds()
  if name not in known:
    raise ConversionError(
      f"Kind of weights is {name!r}; expected one of"
      f" {', '.join(['must_jax', *sorted(known)])}. `must-jax convert --list`"
      " says what they are."
    )
  return known[name]
