"""Losses of Faster R-CNN.

Legend: B images, A anchors, S sampled regions of interest (ROIs), K classes.

The head samples anchors and ROIs and hands their targets over in its outputs,
because sampling needs random numbers. Sums run over the whole batch, so that
an image with few objects weighs as much per object as one with many.
"""

import jax
import jax.numpy as jnp
import optax

from must_jax.losses.classification import cross_entropy
from must_jax.models.rcnn import BOX_WEIGHTS
from must_jax.ops import boxes as box_ops
from must_jax.types import Array, Mean

RPN_HUBER_DELTA = 1 / 9  # TPU detection repository
ROI_HUBER_DELTA = 1.0  # TPU detection repository


def rpn_losses(outputs: dict[str, Array], present: Array) -> dict[str, Mean]:
  """Losses of the region proposal network.

  `rpn_score` is the mean over sampled anchors of the sigmoid cross entropy of
  object against background. `rpn_box` is the mean Huber loss over the four
  deltas of sampled positive anchors. The TPU detection repository takes all
  positive anchors, skips deltas that are exactly zero, and sums the means of
  the levels; one mean over all levels does not depend on how many levels see
  an object, and gives rare levels no extra weight.

  Args:
    outputs: with rpn_logits [B, A], rpn_deltas [B, A, 4], anchors [A, 4],
      anchor_labels int [B, A] (1 positive, 0 negative, -1 neither),
      anchor_sampled bool [B, A], anchor_gt_boxes [B, A, 4].
    present: bool [B], images that have labels.

  Returns:
    {"rpn_score", "rpn_box"}.
  """
  sampled = outputs["anchor_sampled"] & present[:, None]
  positive = sampled & (outputs["anchor_labels"] == 1)
  logits = jnp.where(sampled, outputs["rpn_logits"].astype(jnp.float32), 0)
  losses = optax.sigmoid_binary_cross_entropy(
    logits, positive.astype(jnp.float32)
  )
  return {
    "rpn_score": Mean(
      jnp.sum(jnp.where(sampled, losses, 0)),
      jnp.sum(sampled, dtype=jnp.float32),
    ),
    "rpn_box": _box_loss(
      outputs["rpn_deltas"],
      outputs["anchor_gt_boxes"],
      outputs["anchors"],
      positive,
      box_weights=(1.0, 1.0, 1.0, 1.0),
      huber_delta=RPN_HUBER_DELTA,
    ),
  }


def rcnn_losses(
  outputs: dict[str, Array],
  present: Array,
  known: Array | None = None,
  weights: Array | None = None,
) -> dict[str, Mean]:
  """Losses of the Fast R-CNN head.

  `roi_class` is the mean softmax cross entropy over sampled ROIs, background
  included; `roi_box` the mean Huber loss over the four deltas of positive
  ROIs, each with the deltas of its own class.

  A background ROI may be an object of a class that whoever made the labels did
  not know: such classes are out of its softmax, so that nothing is learned of
  them. That of an object has all classes, for it is none of the others. (Yao et
  al., "Cross-dataset training for class increasing object detection", 2020,
  leave classes of other data sets out of their sigmoids alike.) The RPN knows
  no classes, and learns that such an object is background.

  Args:
    outputs: with rois [B, S, 4], roi_valid bool [B, S], roi_positive bool
      [B, S], roi_classes int [B, S] (0..K-1), roi_gt_boxes [B, S, 4],
      class_logits [B, S, K+1] (0 is background, class c is c+1), box_deltas
      [B, S, K, 4], or [B, S, 1, 4] when all classes share them.
    present: bool [B], images that have labels.
    known: bool [B, K], classes that could have been labelled; all by default.
    weights: [B, S], how much a ROI counts; all alike by default.

  Returns:
    {"roi_class", "roi_box"}.
  """
  valid = outputs["roi_valid"] & present[:, None]
  positive = valid & outputs["roi_positive"]
  classes = jnp.where(positive, outputs["roi_classes"], 0)
  logits = outputs["class_logits"].astype(jnp.float32)
  logits = jnp.where(valid[..., None], logits, 0)
  if known is not None:
    # Background itself, class 0, is always known.
    known = jnp.pad(known, [(0, 0), (1, 0)], constant_values=True)
    logits = jnp.where(known[:, None] | positive[..., None], logits, -jnp.inf)
  losses = cross_entropy(logits, jnp.where(positive, classes + 1, 0))
  counted = jnp.where(valid, 1.0 if weights is None else weights, 0.0)
  deltas = outputs["box_deltas"].astype(jnp.float32)
  if deltas.shape[2] == 1:
    deltas = deltas[:, :, 0]
  else:
    own = classes[..., None] == jnp.arange(deltas.shape[2])
    # A sum with one term: exact, unlike a matrix product on TPUs.
    deltas = jnp.sum(jnp.where(own[..., None], deltas, 0), 2)
  return {
    "roi_class": Mean(jnp.sum(counted * losses), jnp.sum(counted)),
    "roi_box": _box_loss(
      deltas,
      outputs["roi_gt_boxes"],
      outputs["rois"],
      positive,
      box_weights=BOX_WEIGHTS,
      huber_delta=ROI_HUBER_DELTA,
      weights=weights,
    ),
  }


def _box_loss(
  deltas: Array,
  gt_boxes: Array,
  anchors: Array,
  selected: Array,
  *,
  box_weights: tuple[float, float, float, float],
  huber_delta: float,
  weights: Array | None = None,
) -> Mean:
  """Mean Huber loss over the deltas of selected boxes.

  Args:
    deltas: predicted [B, N, 4].
    gt_boxes: boxes to regress to [B, N, 4], filler where not selected.
    anchors: boxes to start from, [N, 4] or [B, N, 4].
    selected: bool [B, N].
    box_weights: factors of the four deltas.
    huber_delta: where the loss turns from square to linear.
    weights: [B, N], how much each box counts; all alike by default.
  """
  mask = selected[..., None]
  anywhere = jnp.array([0.0, 0.0, 1.0, 1.0], jnp.float32)
  targets = box_ops.encode(
    jnp.where(mask, gt_boxes.astype(jnp.float32), anywhere),
    jnp.where(mask, anchors.astype(jnp.float32), anywhere),
    box_weights,
  )
  losses = optax.huber_loss(
    jnp.where(mask, deltas.astype(jnp.float32), 0),
    jax.lax.stop_gradient(targets),
    delta=huber_delta,
  )
  counted = jnp.where(selected, 1.0 if weights is None else weights, 0.0)
  return Mean(jnp.sum(counted[..., None] * losses), 4 * jnp.sum(counted))
