"""Semantic segmentation on the fused P2 (paper 3.2)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from must_jax import pictures
from must_jax.fields import ClassMap
from must_jax.fields.field import NamedScores, Scores, scores_by_id, scores_of
from must_jax.losses import dense as losses
from must_jax.metrics.miou import MeanIoU
from must_jax.models.heads import PixelHead
from must_jax.ops.resize import resize_bilinear
from must_jax.ranges import DECAY, FRACTION, NOT_NEGATIVE
from must_jax.tasks.task import HeadOptions, Task, crop_to_content
from must_jax.types import IGNORE_LABEL


@dataclasses.dataclass(frozen=True)
class Segmentation(Task):
  """Class per pixel: 3 convs + linear, softmax cross entropy.

  Attributes:
    min_score: pseudo pixels below it are ignored; a number, {class: number} or
      a file of `must-jax thresholds`.
    num_convs: hidden convolutions of the head.
    weight_by_score: pseudo pixels count by their confidence in the loss.
    soft_labels: the confidence of a pixel is the probability of its class, the
      rest is spread over the others.
    trim: part of each image's labelled pixels, those with the largest losses,
      that is left out of the loss.
  """

  min_score: NamedScores = 0.5  # paper 3.1
  num_convs: int = 3  # paper 3.2
  weight_by_score: bool = False
  soft_labels: bool = False
  trim: float = 0.0

  by_class = ("min_score",)
  hub_task = "image-segmentation"
  ranges: ClassVar = {
    "min_score": FRACTION,
    "num_convs": NOT_NEGATIVE,
    "trim": DECAY,
  }

  @property
  def fields(self):
    needs_scores = self.weight_by_score or self.soft_labels
    return {"mask": ClassMap(self.num_classes, self._min_scores, needs_scores)}

  @property
  def _min_scores(self) -> Scores:
    return scores_by_id(self.min_score, self.classes)

  def make_head(self, options: HeadOptions) -> nn.Module:
    return PixelHead(
      num_outputs=self.num_classes,
      num_convs=self.num_convs,
      channels=options.channels,
      dtype=options.dtype,
      norm_momentum=options.norm_momentum,
      norm_epsilon=options.norm_epsilon,
    )

  def loss(self, outputs, batch):
    mask = batch["labels"][self.name]["mask"]
    logits = resize_bilinear(outputs["map"], mask["classes"].shape[1:3])
    return {
      "pixel": losses.segmentation_cross_entropy(
        logits,
        mask["classes"],
        mask["present"],
        mask.get("known"),
        mask.get("confidence"),
        weigh=self.weight_by_score,
        soften=self.soft_labels,
        trim=self.trim,
      )
    }

  def predict(self, outputs, map_size=None):
    logits = outputs["map"]
    if map_size is not None:
      logits = resize_bilinear(logits, map_size)
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    return {
      "classes": jnp.argmax(probs, -1).astype(jnp.int32),
      "confidence": jnp.max(probs, -1),
    }

  def to_labels(self, prediction, content_size, image_size):
    return {
      "mask": {
        name: crop_to_content(
          prediction[name], content_size, image_size, nearest=True
        )
        for name in ("classes", "confidence")
      }
    }

  def make_metrics(self):
    return MeanIoU(self.classes)

  def draw(self, image, arrays):
    return pictures.draw_classes(image, self._sure(arrays, image.shape[:2]))

  def illustrate(self, image, arrays, colors):
    classes = self._sure(arrays, image.shape[:2])
    return pictures.draw_classes(image, classes, colors)

  def legend(self, arrays, colors):
    classes = self._sure(arrays, arrays["classes"].shape)
    counts = np.bincount(classes.ravel(), minlength=IGNORE_LABEL + 1)
    shares = counts / max(1, classes.size)
    names = dict(enumerate(self.classes)) | {IGNORE_LABEL: "unsure"}
    table = dict(enumerate(map(tuple, colors))) | {IGNORE_LABEL: (0, 0, 0)}
    return [
      (f"{names[k]} {shares[k]:.0%}", table[k])
      for k in np.argsort(-shares, kind="stable").tolist()
      if shares[k] >= 0.005  # or it would be 0%
    ]

  def _sure(
    self, arrays: Mapping[str, np.ndarray], size: tuple[int, ...]
  ) -> np.ndarray:
    """Classes at a picture's size, unknown below the threshold."""
    height, width = size
    classes = pictures.resize_map(arrays["classes"], (height, width))
    if "confidence" not in arrays:
      return classes
    sure = pictures.resize_map(arrays["confidence"], (height, width))
    wanted = scores_of(self._min_scores, classes)
    return np.where(sure >= wanted, classes, IGNORE_LABEL)
