"""Surface normals, a task that no teacher was trained for (paper 3.3)."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from must_jax import pictures
from must_jax.fields import VectorMap
from must_jax.losses import dense as losses
from must_jax.metrics.normals import AngularError
from must_jax.models.heads import PixelHead
from must_jax.ops.resize import resize_bilinear
from must_jax.ranges import NOT_NEGATIVE
from must_jax.tasks.task import HeadOptions, Task, crop_to_content


@dataclasses.dataclass(frozen=True)
class Normals(Task):
  """Unit vector per pixel: 3 convs + linear on the fused P2, cosine loss.

  Attributes:
    num_convs: hidden convolutions of the head.
  """

  num_convs: int = 3  # paper 3.2

  ranges: ClassVar = {"num_convs": NOT_NEGATIVE}

  @property
  def fields(self):
    return {"normals": VectorMap()}

  def make_head(self, options: HeadOptions) -> nn.Module:
    return PixelHead(
      num_outputs=3,
      num_convs=self.num_convs,
      channels=options.channels,
      dtype=options.dtype,
      norm_momentum=options.norm_momentum,
      norm_epsilon=options.norm_epsilon,
    )

  def loss(self, outputs, batch):
    normals = batch["labels"][self.name]["normals"]
    vectors = resize_bilinear(outputs["map"], normals["vectors"].shape[1:3])
    return {
      "cosine": losses.cosine_loss(
        vectors, normals["vectors"], normals["valid"], normals["present"]
      )
    }

  def predict(self, outputs, map_size=None):
    vectors = outputs["map"]
    if map_size is not None:
      vectors = resize_bilinear(vectors, map_size)
    norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return {"vectors": vectors / jnp.maximum(norm, 1e-6)}

  def to_labels(self, prediction, content_size, image_size):
    vectors = crop_to_content(
      prediction["vectors"], content_size, image_size, nearest=False
    )
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    valid = norm[..., 0] > 1e-6
    return {
      "normals": {"vectors": vectors / np.maximum(norm, 1e-6), "valid": valid}
    }

  def make_metrics(self):
    return AngularError()

  def draw(self, image, arrays):
    vectors = pictures.resize_map(arrays["vectors"], image.shape[:2])
    valid = np.ones(image.shape[:2], bool)
    if "valid" in arrays:
      valid = pictures.resize_map(arrays["valid"], image.shape[:2])
    return pictures.draw_normals(vectors, valid)

  def legend(self, arrays, colors):
    return pictures.explain_normals()
