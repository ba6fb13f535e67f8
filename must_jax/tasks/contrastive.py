"""Contrastive pre-training without labels: SimCLR (paper 4.1, Table 2)."""

import dataclasses
from typing import ClassVar

import flax.linen as nn

from must_jax.losses import contrastive as losses
from must_jax.models.heads import ProjectionHead
from must_jax.ranges import AT_LEAST_1, POSITIVE
from must_jax.tasks.task import HeadOptions, Task


@dataclasses.dataclass(frozen=True)
class Contrastive(Task):
  """Two views of an image shall be nearer than views of two images.

  It has no labels and predicts nothing; what it makes is the backbone.

  Attributes:
    temperature: what similarities are divided by in the loss.
    projection_layers: layers of the projection head.
    projection_channels: channels of an embedding.
  """

  temperature: float = 0.1  # ref SimCLR
  projection_layers: int = 3  # ref SimCLR, its second code
  projection_channels: int = 128  # ref SimCLR

  views: ClassVar[int] = 2
  hub_task = "image-feature-extraction"
  ranges: ClassVar = {
    "temperature": POSITIVE,
    "projection_layers": AT_LEAST_1,
    "projection_channels": AT_LEAST_1,
  }

  @property
  def fields(self):
    return {}

  def make_head(self, options: HeadOptions) -> nn.Module:
    return ProjectionHead(
      num_layers=self.projection_layers,
      channels=self.projection_channels,
      dtype=options.dtype,
      norm_momentum=options.norm_momentum,
      norm_epsilon=options.norm_epsilon,
    )

  def loss(self, outputs, batch):
    embeddings = outputs["embedding"].reshape(len(batch["valid"]), 2, -1)
    loss = losses.nt_xent(embeddings, batch["valid"], self.temperature)
    return {"contrast": loss}

  def predict(self, outputs, map_size=None):
    return {"embedding": outputs["embedding"]}

  def to_labels(self, prediction, content_size, image_size):
    raise ValueError(f"Task {self.name!r} has no labels to write.")

  def make_metrics(self):
    raise ValueError(f"Task {self.name!r} has no labels to be measured with.")

  def draw(self, image, arrays):
    return image
