"""Image classification: one class, soft labels, or several classes at once."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from must_jax import pictures
from must_jax.fields import ClassVector
from must_jax.losses import classification as losses
from must_jax.metrics.accuracy import Accuracy
from must_jax.models.heads import ClassificationHead
from must_jax.ranges import DECAY, NOT_NEGATIVE
from must_jax.tasks.task import HeadOptions, Task

_MAX_TOLD = 5  # classes in a legend


@dataclasses.dataclass(frozen=True)
class Classification(Task):
  """Average-pooled C5 + linear (paper 3.2), trained on hard or soft labels.

  Attributes:
    multi_label: any number of classes per image (sigmoid), as in JFT.
    soft_labels: whether classes are learned as probable as their labels say
      (paper 3.1: better for pseudo labels), or the most probable one as
      certain; of `multi_label` all those from 0.5 on.
    label_smoothing: mass moved to the uniform distribution.
    dropout: rate before the linear layer.
    top_k: classes kept per image in a label set; 0 keeps all. Soft labels of
      18k classes cost 73 kB an image when all are kept.
  """

  multi_label: bool = False
  soft_labels: bool = True
  label_smoothing: float = 0.0
  dropout: float = 0.0
  top_k: int = 0

  post_processing = ("top_k",)
  hub_task = "image-classification"
  ranges: ClassVar = {
    "label_smoothing": DECAY,
    "dropout": DECAY,
    "top_k": NOT_NEGATIVE,
  }

  @property
  def fields(self):
    return {"label": ClassVector(self.num_classes)}

  def make_head(self, options: HeadOptions) -> nn.Module:
    return ClassificationHead(self.num_classes, dropout=self.dropout)

  def loss(self, outputs, batch):
    label = batch["labels"][self.name]["label"]
    probs = label["probs"]
    if self.multi_label:
      loss = losses.sigmoid_cross_entropy(
        outputs["logits"],
        probs if self.soft_labels else probs >= 0.5,
        label["present"],
      )
    else:
      loss = losses.softmax_cross_entropy(
        outputs["logits"],
        probs if self.soft_labels else losses.most_probable(probs),
        label["present"],
        label_smoothing=self.label_smoothing,
      )
    return {"class": loss}

  def predict(self, outputs, map_size=None):
    logits = outputs["logits"].astype(jnp.float32)
    if self.multi_label:
      return {"probs": jax.nn.sigmoid(logits)}
    return {"probs": jax.nn.softmax(logits)}

  def to_labels(self, prediction, content_size, image_size):
    # Soft labels: the paper found them better than hard ones (3.1).
    probs = prediction["probs"]
    keep = self.top_k or self.num_classes
    classes = np.sort(np.argsort(-probs, kind="stable")[:keep])
    return {"label": {"classes": classes, "probs": probs[classes]}}

  def make_metrics(self):
    return Accuracy(self.classes)

  def draw(self, image, arrays):
    return pictures.draw_bars(image, arrays["probs"])

  def illustrate(self, image, arrays, colors):
    return image  # which bars would hide; the legend has them

  def legend(self, arrays, colors):
    top = np.argsort(-arrays["probs"], kind="stable")[:_MAX_TOLD]
    return [
      (f"{self.classes[k]} {arrays['probs'][k]:.2f}", tuple(colors[k]))
      for k in top
    ]
