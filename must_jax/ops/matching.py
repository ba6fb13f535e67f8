"""Assigns ground truth to anchors and rois, and samples them for the losses.

  A anchors, R proposals, C = R + G candidates, S samples, G padded ground-truth
  boxes

One image at a time, fixed shapes; callers vmap. Ground truth is `valid` or
padding, and a valid box may be an `ignore` box (crowd, difficult): such a box
is matched by nothing, and what it covers is not background. Thresholds follow
Faster R-CNN (Ren et al. 2015, section 3.1.2) as in the TPU detection
repository.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from must_jax.ops import boxes as box_ops
from must_jax.ops.topk import top_k
from must_jax.types import Array

# Share of an anchor that an ignore box must cover to keep it from being
# background.
IGNORE_COVERAGE = 0.5


class Matches(NamedTuple):
  """What every anchor is matched to.

  Attributes:
    gt_index: int32 [A], meaningful where `labels` is 1, else any valid index.
    labels: int32 [A], 1 object, 0 background, -1 neither.
  """

  gt_index: jax.Array
  labels: jax.Array


def match_anchors(
  anchors: Array,
  gt_boxes: Array,
  gt_valid: Array,
  gt_ignore: Array | None = None,
  positive_iou: float = 0.7,
  negative_iou: float = 0.3,
  force_best: bool = True,
) -> Matches:
  """Matches each anchor to the ground-truth box that it overlaps most.

  An anchor is an object from an IoU of `positive_iou` on, background below
  `negative_iou` unless an ignore box covers half of it, and neither otherwise.

  Args:
    anchors: [A, 4].
    gt_boxes: [G, 4].
    gt_valid: bool [G].
    gt_ignore: bool [G], or None for no ignore boxes.
    positive_iou: see above.
    negative_iou: see above.
    force_best: the anchor that overlaps a ground-truth box most is matched to
      it at any IoU above 0. Of several best anchors the first is taken, and of
      several boxes with the same best anchor the first.
  """
  num_gt = len(gt_boxes)
  targets = gt_valid if gt_ignore is None else gt_valid & ~gt_ignore
  # [G, A]: anchors are the many, so they are last.
  iou = jnp.where(targets[:, None], box_ops.iou(gt_boxes, anchors), 0)
  gt_index = jnp.argmax(iou, axis=0).astype(jnp.int32)
  best_iou = jnp.max(iou, axis=0)
  labels = jnp.where(
    best_iou >= positive_iou, 1, jnp.where(best_iou < negative_iou, 0, -1)
  )
  if gt_ignore is not None:
    crowds = gt_valid & gt_ignore
    coverage = jnp.where(crowds, box_ops.ioa(anchors, gt_boxes), 0)
    covered = jnp.any(coverage >= IGNORE_COVERAGE, axis=1)
    labels = jnp.where((labels == 0) & covered, -1, labels)
  if force_best:
    best_anchor = jnp.argmax(iou, axis=1)
    overlaps = jnp.max(iou, axis=1) > 0
    forced = jnp.where(overlaps, jnp.arange(num_gt, dtype=jnp.int32), num_gt)
    forced = (
      jnp.full(len(anchors), num_gt, jnp.int32).at[best_anchor].min(forced)
    )
    labels = jnp.where(forced < num_gt, 1, labels)
    gt_index = jnp.where(forced < num_gt, forced, gt_index)
  return Matches(gt_index, labels.astype(jnp.int32))


def sample(
  labels: Array, key: jax.Array, num_samples: int, positive_fraction: float
) -> jax.Array:
  """Samples anchors at random, objects first and then background.

  Args:
    labels: int32 [A], 1 object, 0 background, -1 never sampled.
    key: random key.
    num_samples: number of anchors, at most.
    positive_fraction: at most so much of `num_samples` are objects; background
      fills what they leave.

  Returns:
    Which anchors are sampled, bool [A].
  """
  index, valid = _sample_index(labels, key, num_samples, positive_fraction)
  # What is not valid is sent out of bounds and dropped.
  index = jnp.where(valid, index, len(labels))
  return jnp.zeros(len(labels), bool).at[index].set(True, mode="drop")


def sample_rois(
  rois: Array,
  roi_valid: Array,
  gt_boxes: Array,
  gt_classes: Array,
  gt_valid: Array,
  gt_ignore: Array,
  key: jax.Array,
  num_samples: int = 512,
  positive_fraction: float = 0.25,
  positive_iou: float = 0.5,
) -> dict[str, jax.Array]:
  """Samples the rois that the second stage is trained on.

  Candidates are the proposals and the ground-truth boxes themselves. One with
  an IoU of `positive_iou` or more is positive; any other is background, unless
  an ignore box covers half of it.

  Args:
    rois: proposals [R, 4].
    roi_valid: bool [R].
    gt_boxes: [G, 4].
    gt_classes: int32 [G], 0..K-1.
    gt_valid: bool [G].
    gt_ignore: bool [G].
    key: random key.
    num_samples: S.
    positive_fraction: at most so much of S are positive.
    positive_iou: see above.

  Returns:
    {"rois" [S, 4], "valid" bool [S], "classes" int32 [S] (0..K-1),
    "is_positive" bool [S], "gt_boxes" [S, 4], "gt_index" int32 [S]}: positives,
    then background, then padding. Classes and ground-truth boxes are 0 where
    not positive, rois where not valid; there the index is any.
  """
  targets = gt_valid & ~gt_ignore
  candidates = jnp.concatenate([rois, gt_boxes])
  candidate_valid = jnp.concatenate([roi_valid, targets])
  matches = match_anchors(
    candidates,
    gt_boxes,
    gt_valid,
    gt_ignore,
    positive_iou=positive_iou,
    negative_iou=positive_iou,
    force_best=False,
  )
  labels = jnp.where(candidate_valid, matches.labels, -1)
  index, valid = _sample_index(labels, key, num_samples, positive_fraction)
  positive = valid & (labels[index] == 1)
  gt_index = matches.gt_index[index]
  return {
    "rois": jnp.where(valid[:, None], candidates[index], 0),
    "valid": valid,
    "classes": jnp.where(positive, gt_classes[gt_index], 0),
    "is_positive": positive,
    "gt_boxes": jnp.where(positive[:, None], gt_boxes[gt_index], 0),
    "gt_index": gt_index,
  }


def _sample_index(
  labels: Array, key: jax.Array, num_samples: int, positive_fraction: float
) -> tuple[jax.Array, jax.Array]:
  """Indices of sampled objects, then of background: int32 and bool [S]."""
  order = jax.random.uniform(key, labels.shape)

  def draw(label: int, count: int) -> tuple[jax.Array, jax.Array]:
    """A random `count` of those with the label: indices, how many exist."""
    wanted = labels == label
    scores = jnp.where(wanted, order, -1.0)
    index = top_k(scores, min(count, len(labels)))[1]
    return jnp.pad(index, (0, count - len(index))), jnp.sum(wanted)

  max_positives = int(num_samples * positive_fraction)
  positives, num_positives = draw(1, max_positives)
  negatives, num_negatives = draw(0, num_samples)
  num_positives = jnp.minimum(num_positives, max_positives)
  # Background starts where the objects end.
  slot = jnp.arange(num_samples)
  is_positive = slot < num_positives
  positives = jnp.pad(positives, (0, num_samples - max_positives))
  negatives = negatives[jnp.maximum(slot - num_positives, 0)]
  index = jnp.where(is_positive, positives, negatives)
  return index, slot < num_positives + num_negatives
