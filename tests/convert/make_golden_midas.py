"""Writes golden/midas/*: what the original depth networks give.

They run with weights drawn from the names of their tensors (`weights.py`), so
that a comparison needs neither published weights nor PyTorch. It takes an
environment of its own:

  python -m venv /tmp/oracle
  /tmp/oracle/bin/pip install torch torchvision timm controlnet-aux
  /tmp/oracle/bin/python tests/convert/make_golden_midas.py

A file holds the image, the map that the original gives, and the shapes of the
original's state dict as JSON. DPT is shrunken there; `shapes.json` has the
shapes of all four as published. `--full DIR` writes the same of the networks as
published, at their own sizes and in float64, to DIR: see docs/parity.md.
"""

import argparse
import functools
import importlib.util
import json
import pathlib
import sys

import numpy as np
import timm
import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import HybridEmbed, _resnetv2
from weights import make_weights

GOLDEN = pathlib.Path(__file__).parent / "golden" / "midas"
SIZE = (64, 96)
FULL_SIZES = {
  "midas_v21_large": ((384, 384), (384, 224)),
  "midas_v21_small": ((256, 256), (256, 192)),
  "dpt_hybrid": ((384, 384), (384, 224)),
  "dpt_large": ((384, 384), (384, 224)),
}
MIDAS = ("midas_v21_large", "midas_v21_small")
DPT = ("dpt_hybrid", "dpt_large")
LAST = "scratch.output_conv.4.weight"
# The package around the original imports far more than it needs.
_PACKAGE = importlib.util.find_spec("controlnet_aux")
sys.path.insert(0, _PACKAGE.submodule_search_locations[0] + "/midas")

from midas import blocks, dpt_depth, midas_net, midas_net_custom, vit  # noqa: E402


def _load_encoder(repo, name, **_):
  """For `torch.hub.load`: the encoders without weights."""
  if name == "resnext101_32x8d_wsl":
    return torchvision.models.resnext101_32x8d(weights=None)
  encoder = timm.create_model("tf_efficientnet_lite3")
  # timm's norms activate; the original's stem has a layer for it.
  encoder.act1 = torch.nn.Identity()
  return encoder


torch.hub.load = _load_encoder


def published(kind):
  """The original network of a kind."""
  if kind == "midas_v21_large":
    return midas_net.MidasNet()
  if kind == "midas_v21_small":
    return midas_net_custom.MidasNet_small()
  backbone = {"dpt_hybrid": "vitb_rn50_384", "dpt_large": "vitl16_384"}[kind]
  return dpt_depth.DPTDepthModel(backbone=backbone)


def shrunken_dpt(kind):
  """DPT with 4 transformer blocks of 64 channels, 32 in the decoder."""
  transformer = {"embed_dim": 64, "depth": 4, "num_heads": 4}
  if kind == "dpt_hybrid":
    embed = functools.partial(HybridEmbed, backbone=_resnetv2((1, 2, 1)))
    model = VisionTransformer(
      img_size=384, patch_size=1, embed_layer=embed, **transformer
    )
    make, channels = vit._make_vit_b_rn50_backbone, (256, 512, 48, 64)
  else:
    model = VisionTransformer(img_size=384, patch_size=16, **transformer)
    make, channels = vit._make_vit_b16_backbone, (24, 32, 48, 64)
  encoder = make(
    model,
    features=channels,
    hooks=(0, 1, 2, 3),
    vit_features=64,
    use_readout="project",
  )
  parts = (encoder, blocks._make_scratch(channels, 32))
  dpt_depth._make_encoder = lambda *args, **kwargs: parts
  return dpt_depth.DPTDepthModel(features=32)


def draw_image(size):
  """A random image with structure of several scales, uint8 [H, W, 3]."""
  rng = np.random.default_rng(0)
  pixels = np.zeros((*size, 3))
  for cell in (4, 16, 32):
    coarse = rng.uniform(size=(-(-size[0] // cell), -(-size[1] // cell), 3))
    fine = coarse.repeat(cell, 0).repeat(cell, 1)
    pixels += fine[: size[0], : size[1]] / 3
  return (255 * pixels).astype(np.uint8)


def shapes_of(network):
  return {k: tuple(v.shape) for k, v in network.state_dict().items()}


def run(network, kind, pixels, dtype=torch.float32):
  """Draws the weights of a network and gives its map [H, W]."""
  weights = make_weights(shapes_of(network), gain=1.0)
  # Else the last ReLU would cut most of the map.
  weights[LAST] = np.abs(weights[LAST])
  network.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
  network.eval().to(dtype)
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  if kind in DPT:
    mean = std = (0.5, 0.5, 0.5)
  x = torch.tensor(pixels).to(dtype) / 255
  x = (x - torch.tensor(mean, dtype=dtype)) / torch.tensor(std, dtype=dtype)
  with torch.no_grad():
    return network(x.permute(2, 0, 1)[None])[0].numpy()


def write(path, network, kind, size, dtype=torch.float32):
  pixels = draw_image(size)
  np.savez_compressed(
    path,
    image=pixels,
    map=run(network, kind, pixels, dtype).astype(np.float32),
    shapes=json.dumps(shapes_of(network)),
  )
  print(path)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--full", type=pathlib.Path)
  args = parser.parse_args()
  if args.full:
    args.full.mkdir(exist_ok=True)
    for kind, sizes in FULL_SIZES.items():
      for size in sizes:
        path = args.full / f"{kind}_{size[0]}x{size[1]}.npz"
        # Rounding of the original's own float32 would be in the way.
        write(path, published(kind), kind, size, torch.float64)
    return
  all_shapes = {kind: shapes_of(published(kind)) for kind in (*MIDAS, *DPT)}
  path = GOLDEN / "shapes.json"
  path.write_text(json.dumps(all_shapes) + "\n")
  for kind in (*MIDAS, *DPT):
    network = shrunken_dpt(kind) if kind in DPT else published(kind)
    write(GOLDEN / f"{kind}.npz", network, kind, SIZE)


if __name__ == "__main__":
  main()
