"""Golden features of published backbones, from their original code.

  pip install torch torchvision timm transformers efficientnet_lite_pytorch
  python tests/convert/make_golden_backbones.py

The weights are drawn from their names (`weights.py`), so no file holds them;
`golden/NAME.npz` has the image, the names and shapes of the weights, parts of
the features, and logits. `--full DIR` writes the same of larger networks and
images to DIR, see docs/parity.md.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
import timm
import torch
import torchvision
import transformers
from efficientnet_lite_pytorch import EfficientNet
from weights import make_weights, sample

GOLDEN = pathlib.Path(__file__).with_name("golden")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Of the EfficientNets' weights, see `make_weights`.
GAIN = 1.0
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LITE = ((127 / 255,) * 3, (128 / 255,) * 3)
RESNET = {"2": "layer1", "3": "layer2", "4": "layer3", "5": "layer4"}
EFFICIENTNET = {
  "2": "blocks.1",
  "3": "blocks.2",
  "4": "blocks.4",
  "5": "blocks.6",
  "top": "bn2",
}
# Of Lite1's 21 blocks the last before the next stride; the activation is one
# module, last used behind the last convolution.
LITE1 = {
  "2": "_blocks.3",
  "3": "_blocks.6",
  "4": "_blocks.14",
  "5": "_blocks.20",
  "top": "_swish",
}
# Of ALIGN's 55 blocks the last before the next stride.
ALIGN = {
  level: f"vision_model.encoder.blocks.{index}"
  for level, index in (("2", 10), ("3", 17), ("4", 37), ("5", 54))
}


@dataclasses.dataclass(frozen=True)
class Original:
  """A published model.

  Attributes:
    make: builds it with weights of any values.
    levels: level -> name of the module whose output it is.
    normalisation: mean and deviation of the channels, in units of 0..1.
    size: (H, W) of the golden file's image.
    gain: of the weights.
  """

  make: Callable[[], torch.nn.Module]
  levels: Mapping[str, str]
  normalisation: tuple[tuple[float, ...], tuple[float, ...]]
  size: tuple[int, int]
  gain: float = 2.0


class Align(torch.nn.Module):
  """The image tower under the names that it has in the whole model."""

  def __init__(self):
    super().__init__()
    config = transformers.AlignVisionConfig(hidden_dim=640)
    self.vision_model = transformers.AlignVisionModel(config)

  def forward(self, image):
    self.vision_model(image)


def resnet(make: Callable[[], torch.nn.Module], size) -> Original:
  """A ResNet or ResNeXt of torchvision or timm."""
  return Original(make, RESNET, IMAGENET, size)


def efficientnet(name: str, normalisation, size) -> Original:
  """An EfficientNet of timm."""
  make = functools.partial(timm.create_model, name)
  return Original(make, EFFICIENTNET, normalisation, size, GAIN)


ORIGINALS = {
  "torchvision_resnet18": resnet(torchvision.models.resnet18, (65, 97)),
  "torchvision_resnext101_32x8d": resnet(
    torchvision.models.resnext101_32x8d, (64, 64)
  ),
  "timm_resnet50": resnet(
    functools.partial(timm.create_model, "resnet50"), (64, 96)
  ),
  "timm_efficientnet_b0": efficientnet(
    "tf_efficientnet_b0", IMAGENET, (65, 97)
  ),
  "timm_efficientnet_b0_ap": efficientnet(
    "tf_efficientnet_b0.ap_in1k", HALF, (64, 96)
  ),
  "timm_efficientnet_b0_torch": efficientnet(
    "efficientnet_b0", IMAGENET, (96, 64)
  ),
  "timm_efficientnet_lite3": efficientnet(
    "tf_efficientnet_lite3", HALF, (64, 97)
  ),
  "efficientnet_lite1": Original(
    # Without a size it pads by the size of its input.
    functools.partial(
      EfficientNet.from_name, "efficientnet-lite1", image_size=None
    ),
    LITE1,
    LITE,
    (65, 96),
    GAIN,
  ),
  "align_efficientnet_b7": Original(Align, ALIGN, HALF, (97, 65), GAIN),
}

FULL = {
  "torchvision_resnet50": resnet(torchvision.models.resnet50, (224, 224)),
  "torchvision_resnet152": resnet(torchvision.models.resnet152, (224, 224)),
  "torchvision_resnext101_32x8d": resnet(
    torchvision.models.resnext101_32x8d, (224, 224)
  ),
  "timm_efficientnet_b0": efficientnet(
    "tf_efficientnet_b0", IMAGENET, (224, 224)
  ),
  "timm_efficientnet_b7": efficientnet(
    "tf_efficientnet_b7", IMAGENET, (300, 300)
  ),
  "timm_efficientnet_l2": efficientnet(
    "tf_efficientnet_l2", IMAGENET, (128, 128)
  ),
  "align_efficientnet_b7": Original(Align, ALIGN, HALF, (289, 289), GAIN),
}


def run(
  original: Original, size: tuple[int, int]
) -> tuple[
  np.ndarray, dict[str, tuple[int, ...]], dict[str, np.ndarray], np.ndarray
]:
  """Runs a model with drawn weights on a random image.

  Returns:
    image uint8 [1, H, W, 3], name -> shape of the weights, level -> features
    [1, h, w, C], and logits [K] (none if the model has no classifier).
  """
  model = original.make().eval()
  shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
  weights = make_weights(shapes, original.gain)
  model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
  features = {}

  def keep(level):
    def hook(module, inputs, output):
      features[level] = output.permute(0, 2, 3, 1).numpy().copy()

    return hook

  for level, name in original.levels.items():
    model.get_submodule(name).register_forward_hook(keep(level))
  image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
  mean, std = (np.array(x, np.float32) for x in original.normalisation)
  inputs = (image.astype(np.float32) / 255 - mean) / std
  with torch.no_grad():
    logits = model(torch.from_numpy(inputs).permute(0, 3, 1, 2))
  no_logits = np.zeros(0, np.float32)
  return (
    image,
    shapes,
    features,
    no_logits if logits is None else logits[0].numpy(),
  )


def make_golden(name: str, original: Original, directory: pathlib.Path) -> None:
  """Writes `NAME.npz`."""
  image, shapes, features, logits = run(original, original.size)
  arrays = {
    "image": image,
    "shapes": np.array(json.dumps(shapes)),
    "gain": np.array(original.gain),
  }
  for level, x in features.items():
    arrays[f"sample_{level}"] = sample(level, x)
    arrays[f"mean_std_{level}"] = np.array([x.mean(), x.std()])
  arrays["logits"] = logits[:16]
  np.savez_compressed(directory / f"{name}.npz", **arrays)
  print(name, {level: x.shape for level, x in features.items()})


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("--full", type=pathlib.Path)
  args = parser.parse_args()
  directory = args.full or GOLDEN
  directory.mkdir(exist_ok=True)
  for name, original in (FULL if args.full else ORIGINALS).items():
    make_golden(name, original, directory)
