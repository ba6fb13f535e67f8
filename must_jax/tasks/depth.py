"""Depth: relative inverse depth for pre-training, metres for fine-tuning."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import numpy as np

from must_jax import pictures
from must_jax.fields import ValueMap
from must_jax.losses import dense as losses
from must_jax.metrics.depth import CROPS, UNITS, DepthError
from must_jax.models.heads import PixelHead
from must_jax.models.midas import DECODERS
from must_jax.ops.resize import resize_bilinear
from must_jax.ranges import NOT_NEGATIVE, POSITIVE
from must_jax.tasks.task import HeadOptions, Task, crop_to_content

LOSSES = {
  "scale_shift_invariant": losses.scale_shift_invariant,
  "l1": losses.l1,
  "berhu": losses.berhu,
  "silog": losses.silog,
}


@dataclasses.dataclass(frozen=True)
class Depth(Task):
  """Value per pixel: 3 convs + linear on the fused P2, or a MiDaS decoder.

  Attributes:
    unit: "inverse" (unitless inverse depth, known up to scale and shift, as
      MiDaS predicts) or "metres".
    objective: the loss. Inverse depth wants the scale-and-shift invariant one
      (as MiDaS), metres one of the others.
    min_depth: metres; pixels that are nearer are not evaluated.
    max_depth: metres; pixels that are farther are not evaluated.
    crop: part of the images that is evaluated; empty: all of it.
    decoder: "pixel" for the head of the paper, or that of a published depth
      network, whose layers are fixed.
    num_convs: hidden convolutions of the "pixel" decoder.
  """

  unit: str = "inverse"
  objective: str = "scale_shift_invariant"
  min_depth: float = 1e-3
  max_depth: float = 10.0
  crop: str = ""
  decoder: str = "pixel"
  num_convs: int = 3  # paper 3.2

  measurement = ("min_depth", "max_depth", "crop")
  hub_task = "depth-estimation"
  ranges: ClassVar = {
    "min_depth": NOT_NEGATIVE,
    "max_depth": POSITIVE,
    "num_convs": NOT_NEGATIVE,
  }
  choices: ClassVar = {
    "unit": UNITS,
    "objective": LOSSES,
    "crop": ("", *CROPS),
    "decoder": ("pixel", *DECODERS),
  }

  @property
  def fields(self):
    return {"depth": ValueMap(self.unit)}

  def make_head(self, options: HeadOptions) -> nn.Module:
    if self.decoder != "pixel":
      return DECODERS[self.decoder](dtype=options.dtype)
    return PixelHead(
      num_outputs=1,
      num_convs=self.num_convs,
      channels=options.channels,
      dtype=options.dtype,
      norm_momentum=options.norm_momentum,
      norm_epsilon=options.norm_epsilon,
    )

  def loss(self, outputs, batch):
    depth = batch["labels"][self.name]["depth"]
    values = resize_bilinear(outputs["map"], depth["values"].shape[1:3])[..., 0]
    return {
      "depth": LOSSES[self.objective](
        values, depth["values"], depth["valid"], depth["present"]
      )
    }

  def predict(self, outputs, map_size=None):
    values = outputs["map"]
    if map_size is not None:
      values = resize_bilinear(values, map_size)
    return {"values": values[..., 0]}

  def to_labels(self, prediction, content_size, image_size):
    values = crop_to_content(
      prediction["values"], content_size, image_size, nearest=False
    )
    return {"depth": {"values": values, "valid": np.isfinite(values)}}

  def make_metrics(self):
    return DepthError(
      unit=self.unit,
      min_depth=self.min_depth,
      max_depth=self.max_depth,
      crop=self.crop,
    )

  def draw(self, image, arrays):
    values = pictures.resize_map(arrays["values"], image.shape[:2])
    valid = _known(arrays)
    return pictures.draw_nearness(
      values,
      pictures.resize_map(valid, image.shape[:2]),
      is_distance=self.unit == "metres",
    )

  def legend(self, arrays, colors):
    marks = pictures.explain_nearness(
      arrays["values"], _known(arrays), is_distance=self.unit == "metres"
    )
    unit = {"inverse": "inverse, of unknown scale"}.get(self.unit, self.unit)
    return [("near", None), *marks, (f"far ({unit})", None)]


def _known(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
  valid = np.isfinite(arrays["values"])
  return valid & arrays["valid"] if "valid" in arrays else valid
