"""Faster R-CNN on a feature pyramid: RPN, proposals, Fast R-CNN, detections.

  B images, A anchors (all levels), R proposals, S sampled rois, K classes,
  G padded ground-truth boxes, L levels, D detections

Boxes are yxyx in pixels of the network input. Only the convolutions, and what
is pooled for them, are in the compute dtype; logits, deltas and boxes are
float32. Everything that handles boxes is written for one image and vmapped.
Architecture and constants: Mask R-CNN in tensorflow/tpu and tensorflow/models,
with two hidden RPN convolutions and a 4conv1fc box head (paper 3.2). Options
named after torchvision make it that library's detector of the same layers
(`convert/torchvision_detection.py` sets them).
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from must_jax.models.conv import Conv
from must_jax.models.heads import head_init
from must_jax.ops import anchors as anchor_ops
from must_jax.ops import boxes as box_ops
from must_jax.ops import matching, nms, roi_align
from must_jax.ops.topk import top_k
from must_jax.types import Labels

# Scales of the Fast R-CNN box code (dy, dx, log dh, log dw); the RPN's are 1.
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class RPNHead(nn.Module):
  """Region proposal network: objectness and box deltas for every anchor.

  Convolutions are shared by the levels, norms are not.
  """

  num_anchors: int
  num_convs: int
  channels: int
  use_norm: bool
  dtype: Any
  norm_momentum: float
  norm_epsilon: float

  @nn.compact
  def __call__(
    self, pyramid: dict[int, jax.Array], train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Maps {level: [B, h, w, C]} to logits [B, A] and deltas [B, A, 4]."""
    convs = [
      Conv(
        self.channels,
        (3, 3),
        padding=1,
        use_bias=not self.use_norm,
        dtype=self.dtype,
        kernel_init=head_init,
        name=f"conv{i}",
      )
      for i in range(1, self.num_convs + 1)
    ]
    hidden = []
    for level, x in pyramid.items():
      for i, conv in enumerate(convs, start=1):
        x = conv(x)
        if self.use_norm:
          x = nn.BatchNorm(
            use_running_average=not train,
            momentum=self.norm_momentum,
            epsilon=self.norm_epsilon,
            dtype=self.dtype,
            name=f"norm{i}_p{level}",
          )(x)
        x = nn.relu(x)
      hidden.append(x.reshape(x.shape[0], -1, x.shape[-1]))
    # The predicting 1x1 convolutions, on the cells of all levels at once.
    cells = jnp.concatenate(hidden, 1).astype(jnp.float32)
    logits, deltas = (
      nn.Dense(size * self.num_anchors, kernel_init=head_init, name=name)(cells)
      for name, size in (("objectness", 1), ("box_deltas", 4))
    )
    batch = cells.shape[0]
    return logits.reshape(batch, -1), deltas.reshape(batch, -1, 4)


class FastRCNNHead(nn.Module):
  """Classifies and refines rois from their pooled features."""

  num_classes: int
  num_convs: int
  channels: int
  fc_dims: int
  class_agnostic_boxes: bool
  use_norm: bool
  dtype: Any
  norm_momentum: float
  norm_epsilon: float
  fc_norm: bool = True

  @nn.compact
  def __call__(
    self, pooled: jax.Array, valid: jax.Array, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Predicts for every roi.

    Args:
      pooled: [B, S, h, w, C].
      valid: bool [B, S]; padding rois take no part in norm statistics.
      train: whether norms use the statistics of these rois.

    Returns:
      class logits [B, S, K + 1] (0 is background) and box deltas
      [B, S, K or 1, 4].
    """
    # With not one valid roi the statistics would be 0 / 0 for good.
    mask = valid | ~valid.any()

    fc_norm = self.use_norm and self.fc_norm

    def norm_relu(x: jax.Array, use_norm: bool, name: str) -> jax.Array:
      if use_norm:
        x = nn.BatchNorm(
          use_running_average=not train,
          momentum=self.norm_momentum,
          epsilon=self.norm_epsilon,
          dtype=self.dtype,
          name=name,
        )(x, mask=mask.reshape(mask.shape + (1,) * (x.ndim - 2)))
      return nn.relu(x)

    x = pooled
    for i in range(1, self.num_convs + 1):
      x = Conv(
        self.channels,
        (3, 3),
        padding=1,
        use_bias=not self.use_norm,
        dtype=self.dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        name=f"conv{i}",
      )(x)
      x = norm_relu(x, self.use_norm, f"norm{i}")
    x = nn.Dense(
      self.fc_dims,
      use_bias=not fc_norm,
      dtype=self.dtype,
      kernel_init=nn.initializers.glorot_uniform(),
      name="fc",
    )(x.reshape(*valid.shape, -1))
    x = norm_relu(x, fc_norm, "norm_fc").astype(jnp.float32)
    num_boxes = 1 if self.class_agnostic_boxes else self.num_classes
    class_logits = nn.Dense(
      self.num_classes + 1, kernel_init=head_init, name="class_logits"
    )(x)
    box_deltas = nn.Dense(
      4 * num_boxes,
      kernel_init=nn.initializers.normal(0.001),
      name="box_deltas",
    )(x)
    return class_logits, box_deltas.reshape(*valid.shape, num_boxes, 4)


@dataclasses.dataclass(frozen=True)
class RCNNOptions:
  """What users choose of a detector; options of its task, too.

  Attributes:
    anchor_scale: an anchor of level l is anchor_scale * 2**l pixels large.
    aspect_ratios: width / height of the anchors of a cell.
    round_anchors: corners of the anchors, relative to the centre of their cell,
      are whole pixels (torchvision).
    half_pixel: cell i of a level is centred on pixel (i + 0.5) * stride; else
      on i * stride, for anchors and ROIAlign alike (torchvision).
    rpn_convs: hidden 3x3 convolutions of the RPN.
    head_convs: hidden 3x3 convolutions of the second stage.
    fc_dims: units of the second stage's fully connected layer.
    rpn_norm: false for a bias in the RPN, where others have BatchNorm
      (torchvision).
    fc_norm: likewise, of the fully connected layer.
    rpn_pre_nms: best anchors of a level that go into NMS.
    rpn_post_nms: proposals of an image.
    rpn_min_side: proposals have sides of so many pixels at least.
    rpn_samples: anchors of an image in the RPN's objectness loss.
    num_rois: S, rois of an image in the losses of the second stage.
    roi_samples_per_bin: bilinear samples per side of a bin.
    roi_canonical_size: side in pixels of a roi that belongs to level 4.
    roi_max_level: coarsest level that rois read (torchvision: 5 of 6).
  """

  anchor_scale: float = 3.0  # tfm r50fpn_640_coco_scratch
  aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
  round_anchors: bool = False
  half_pixel: bool = True
  rpn_convs: int = 2  # paper 3.2
  head_convs: int = 4  # paper 3.2
  fc_dims: int = 1024  # tfm
  rpn_norm: bool = True  # tfm
  fc_norm: bool = True  # tfm
  rpn_pre_nms: int = 1000
  rpn_post_nms: int = 1000
  rpn_min_side: float = 0.0
  rpn_samples: int = 256
  num_rois: int = 512
  roi_samples_per_bin: int = 1  # tpu
  roi_canonical_size: float = 224.0
  roi_max_level: int = 7


class FasterRCNNHead(nn.Module):
  """Two-stage detector over the pyramid.

  Attributes:
    num_classes: K, without background.
    options: what users choose.
    min_level: finest pyramid level in use.
    max_level: coarsest pyramid level in use.
    channels: of the hidden convolutions of both stages.
    use_norm: BatchNorm after every hidden layer, else a bias.
    class_agnostic_boxes: one box for each roi, not one for each class.
    rpn_nms_iou: a proposal that overlaps a better one by more is dropped.
    rpn_positive_fraction: at most so many of the RPN's samples are positive.
    roi_positive_fraction: likewise, of the rois.
    roi_positive_iou: a roi this close to an object is positive.
    roi_output_size: side of the pooled grid.
    dtype: of the hidden activations.
    norm_momentum: decay of the running statistics.
    norm_epsilon: added to the variance.
  """

  num_classes: int
  options: RCNNOptions = RCNNOptions()
  min_level: int = 3
  max_level: int = 7
  channels: int = 256
  use_norm: bool = True
  class_agnostic_boxes: bool = False
  rpn_nms_iou: float = 0.7
  rpn_positive_fraction: float = 0.5
  roi_positive_fraction: float = 0.25
  roi_positive_iou: float = 0.5
  roi_output_size: int = 7
  dtype: Any = jnp.float32
  norm_momentum: float = 0.99
  norm_epsilon: float = 1e-3

  needs: ClassVar[str] = "pyramid"

  def setup(self) -> None:
    shared = {
      "channels": self.channels,
      "use_norm": self.use_norm,
      "dtype": self.dtype,
      "norm_momentum": self.norm_momentum,
      "norm_epsilon": self.norm_epsilon,
    }
    self.rpn = RPNHead(
      num_anchors=len(self.options.aspect_ratios),
      num_convs=self.options.rpn_convs,
      **shared | {"use_norm": self.use_norm and self.options.rpn_norm},
    )
    self.fast_rcnn = FastRCNNHead(
      num_classes=self.num_classes,
      num_convs=self.options.head_convs,
      fc_dims=self.options.fc_dims,
      class_agnostic_boxes=self.class_agnostic_boxes,
      fc_norm=self.options.fc_norm,
      **shared,
    )

  def __call__(
    self,
    features: dict[Any, Any],
    labels: Labels | None = None,
    train: bool = False,
  ) -> dict[str, jax.Array]:
    """Predicts, and in training also assigns targets.

    Examples without labels (`present` false) have neither sampled anchors nor
    valid rois, so that no loss sees them; their proposals do take part in the
    norm statistics, as their pixels do in the backbone's.

    Args:
      features: see `heads.py`; the levels `min_level` to `max_level` are read,
        and in evaluation "content_size" float32 [B, 2], if there.
      labels: {"objects": {"boxes" [B, G, 4], "classes" [B, G], "scores" [B, G],
        "valid" [B, G], "ignore" [B, G], "present" [B]}}, for training.
      train: sample rois by the labels (rng stream "sample") and return targets.

    Returns:
      In training,

      - of the first stage: rpn_logits [B, A], rpn_deltas [B, A, 4],
        anchors [A, 4], anchor_labels int32 [B, A] (1 object, 0 background, -1
        neither), anchor_sampled bool [B, A], anchor_gt_boxes [B, A, 4];
      - of the second stage: rois [B, S, 4], roi_valid bool [B, S],
        roi_classes int32 [B, S], roi_positive bool [B, S],
        roi_gt_boxes [B, S, 4], roi_scores [B, S] of the ground-truth box, 1
        where not positive, class_logits [B, S, K + 1] (0 is background),
        box_deltas [B, S, K, 4] ([B, S, 1, 4] if class agnostic).

      In evaluation rois, roi_valid, class_logits and box_deltas, with the R
      proposals for S, and image_size float32 [B, 2], the content's where that
      is known, for `detect`.

    Raises:
      ValueError: training without labels.
    """
    if train and labels is None:
      raise ValueError(
        "Faster R-CNN got no labels in training, but it samples its rois by"
        ' them; pass labels={"objects": {...}}.'
      )
    pyramid = {
      level: features[level]
      for level in range(self.min_level, self.max_level + 1)
    }
    image_size: tuple[int, int] = features["image_size"]
    rpn_logits, rpn_deltas = self.rpn(pyramid, train)
    limits = jnp.broadcast_to(
      jnp.asarray(image_size, jnp.float32), (rpn_logits.shape[0], 2)
    )
    if not train:
      limits = features.get("content_size", limits)
    rois, roi_valid = self.proposals(rpn_logits, rpn_deltas, image_size, limits)

    outputs = {}
    norm_valid = roi_valid
    if train:
      assert labels is not None  # or it raised above
      objects = labels["objects"]
      outputs = {
        "rpn_logits": rpn_logits,
        "rpn_deltas": rpn_deltas,
        **self.anchor_targets(image_size, objects),
      }
      sampled = self.sample_rois(rois, roi_valid, objects)
      rois, norm_valid = sampled["rois"], sampled["valid"]
      present = objects["present"][:, None]
      roi_valid = norm_valid & present
      outputs |= {
        "roi_classes": sampled["classes"],
        "roi_positive": sampled["is_positive"] & present,
        "roi_gt_boxes": sampled["gt_boxes"],
        "roi_scores": sampled["scores"],
      }
    else:
      outputs["image_size"] = limits

    class_logits, box_deltas = self.fast_rcnn(
      self.pool(pyramid, rois), norm_valid, train
    )
    return outputs | {
      "rois": rois,
      "roi_valid": roi_valid,
      "class_logits": class_logits,
      "box_deltas": box_deltas,
    }

  def proposals(
    self,
    rpn_logits: jax.Array,
    rpn_deltas: jax.Array,
    image_size: tuple[int, int],
    limits: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Proposals [B, R, 4] and valid bool [B, R], without a gradient.

    Args:
      rpn_logits: [B, A].
      rpn_deltas: [B, A, 4].
      image_size: height and width of the network input.
      limits: heights and widths to clip to [B, 2].
    """
    anchors = self._anchors(image_size)

    def propose_one(
      logits: jax.Array, deltas: jax.Array, limits: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
      return propose(
        logits,
        deltas,
        np.concatenate(anchors),
        tuple(map(len, anchors)),
        limits,
        self.options.rpn_pre_nms,
        self.options.rpn_post_nms,
        self.rpn_nms_iou,
        self.options.rpn_min_side,
      )

    # The second stage does not train the first through the proposals.
    return jax.vmap(propose_one)(
      jax.lax.stop_gradient(rpn_logits),
      jax.lax.stop_gradient(rpn_deltas),
      limits,
    )

  def anchor_targets(
    self, image_size: tuple[int, int], objects: dict[str, jax.Array]
  ) -> dict[str, jax.Array]:
    """Matches anchors to objects and samples those of the objectness loss.

    Args:
      image_size: height and width of the network input.
      objects: see `__call__`.

    Returns:
      "anchors", "anchor_labels", "anchor_sampled" and "anchor_gt_boxes" of the
      outputs.
    """
    anchors = np.concatenate(self._anchors(image_size))

    def assign(
      objects: dict[str, jax.Array], key: jax.Array
    ) -> dict[str, jax.Array]:
      matches = matching.match_anchors(
        anchors, objects["boxes"], objects["valid"], objects["ignore"]
      )
      labels = jnp.where(objects["present"], matches.labels, -1)
      return {
        "anchor_labels": labels,
        "anchor_sampled": matching.sample(
          labels, key, self.options.rpn_samples, self.rpn_positive_fraction
        ),
        "anchor_gt_boxes": objects["boxes"][matches.gt_index],
      }

    return {
      "anchors": jnp.asarray(anchors),
      **jax.vmap(assign)(objects, self._image_keys(objects)),
    }

  def sample_rois(
    self,
    rois: jax.Array,
    valid: jax.Array,
    objects: dict[str, jax.Array],
  ) -> dict[str, jax.Array]:
    """Samples the rois of the second stage, objects' own boxes included.

    Args:
      rois: proposals [B, R, 4].
      valid: bool [B, R].
      objects: see `__call__`.

    Returns:
      See `matching.sample_rois`, with a leading B; and "scores" [B, S] of the
      ground-truth boxes, 1 where not positive.
    """

    def sample(
      rois: jax.Array,
      valid: jax.Array,
      objects: dict[str, jax.Array],
      key: jax.Array,
    ) -> dict[str, jax.Array]:
      found = matching.sample_rois(
        rois,
        valid,
        objects["boxes"],
        objects["classes"],
        # The boxes of an example without labels are filler.
        objects["valid"] & objects["present"],
        objects["ignore"],
        key,
        num_samples=self.options.num_rois,
        positive_fraction=self.roi_positive_fraction,
        positive_iou=self.roi_positive_iou,
      )
      scores = objects["scores"][found["gt_index"]]
      return found | {"scores": jnp.where(found["is_positive"], scores, 1)}

    return jax.vmap(sample)(rois, valid, objects, self._image_keys(objects))

  def pool(self, pyramid: dict[int, jax.Array], rois: jax.Array) -> jax.Array:
    """Features of rois [B, S, 4], as [B, S, P, P, C], from {level: map}."""

    def pool_one(maps: dict[int, jax.Array], rois: jax.Array) -> jax.Array:
      return roi_align.multilevel_roi_align(
        maps,
        rois,
        output_size=self.roi_output_size,
        samples_per_bin=self.options.roi_samples_per_bin,
        canonical_size=self.options.roi_canonical_size,
        half_pixel=self.options.half_pixel,
      )

    maps = {
      level: x
      for level, x in pyramid.items()
      if level <= self.options.roi_max_level
    }
    return jax.vmap(pool_one)(maps, rois)

  def _anchors(self, image_size: tuple[int, int]) -> list[np.ndarray]:
    """Anchors of every level, [A_l, 4] each."""
    anchors = anchor_ops.generate(
      *image_size,
      range(self.min_level, self.max_level + 1),
      self.options.anchor_scale,
      self.options.aspect_ratios,
      half_pixel=self.options.half_pixel,
      round_corners=self.options.round_anchors,
    )
    return list(anchors.values())

  def _image_keys(self, objects: dict[str, jax.Array]) -> jax.Array:
    """One key for each image of the batch."""
    return jax.random.split(
      self.make_rng("sample"), objects["present"].shape[0]
    )


def propose(
  logits: jax.Array,
  deltas: jax.Array,
  anchors: jax.Array | np.ndarray,
  anchor_counts: tuple[int, ...],
  image_size: tuple[int, int] | jax.Array,
  pre_nms_topk: int,
  post_nms_topk: int,
  iou_threshold: float,
  min_side: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Proposals of one image: best anchors and NMS by level, then best of all.

  Levels with fewer than `pre_nms_topk` anchors are padded, so that one vmapped
  NMS serves all of them.

  Args:
    logits: objectness [A], ordered by level.
    deltas: [A, 4].
    anchors: [A, 4].
    anchor_counts: anchors of each level, with sum A.
    image_size: height and width to clip to.
    pre_nms_topk: anchors of a level that go into NMS, at most.
    post_nms_topk: proposals, at most.
    iou_threshold: of the NMS.
    min_side: proposals have sides of so many pixels at least.

  Returns:
    boxes [R, 4] by falling objectness and valid bool [R], where R is
    `post_nms_topk` or, if less, what the levels can give.
  """
  width = min(pre_nms_topk, max(anchor_counts))
  tops, places = [], []
  start = 0
  for count in anchor_counts:
    # Logits, since their sigmoids tie at 1 when large.
    top, i = top_k(logits[start : start + count], min(width, count))
    padding = (0, width - len(i))
    tops.append(jnp.pad(top, padding, constant_values=-jnp.inf))
    places.append(jnp.pad(i + start, padding))
    start += count
  scores, index = jnp.stack(tops), jnp.stack(places)  # [L, width]

  anchors = jnp.asarray(anchors)
  boxes = box_ops.decode(deltas[index], anchors[index])
  boxes = box_ops.clip(boxes, image_size[0], image_size[1])
  valid = (scores > -jnp.inf) & _is_solid(boxes, min_side)
  keep, valid = jax.vmap(
    lambda b, s, v: nms.nms(b, s, v, iou_threshold, min(post_nms_topk, width))
  )(boxes, scores, valid)
  boxes = jnp.take_along_axis(boxes, keep[..., None], 1).reshape(-1, 4)
  scores = jnp.take_along_axis(scores, keep, 1)
  scores = jnp.where(valid, scores, -jnp.inf).reshape(-1)
  scores, best = top_k(scores, min(post_nms_topk, scores.size))
  valid = scores > -jnp.inf
  return jnp.where(valid[:, None], boxes[best], 0.0), valid


def _is_solid(boxes: jax.Array, min_side: float) -> jax.Array:
  """Whether boxes [..., 4] have an area, and sides of `min_side` or more."""
  sides = boxes[..., 2:] - boxes[..., :2]
  return (box_ops.area(boxes) > 0) & jnp.all(sides >= min_side, axis=-1)


def detect(
  outputs: dict[str, jax.Array],
  score_threshold: float = 0.05,
  iou_threshold: float = 0.5,
  max_detections: int = 100,
  pre_nms_topk: int = 1000,
  min_side: float = 0.0,
) -> dict[str, jax.Array]:
  """Final detections from the head's outputs in evaluation.

  Args:
    outputs: rois [B, R, 4], roi_valid [B, R], class_logits [B, R, K + 1],
      box_deltas [B, R, K or 1, 4], image_size [B, 2].
    score_threshold: detections score more.
    iou_threshold: of the NMS among the detections of a class.
    max_detections: D, detections of an image, at most.
    pre_nms_topk: (roi, class) pairs of an image that go into NMS, at most.
    min_side: detections have sides of so many pixels at least.

  Returns:
    {"boxes" [B, D, 4], "scores" [B, D], "classes" int32 [B, D] (0..K-1),
    "valid" bool [B, D]} by falling score; zeros where not valid.
  """

  def detect_one(
    rois: jax.Array,
    roi_valid: jax.Array,
    class_logits: jax.Array,
    box_deltas: jax.Array,
    image_size: jax.Array,
  ) -> dict[str, jax.Array]:
    num_classes = class_logits.shape[1] - 1
    scores = jax.nn.softmax(class_logits)[:, 1:]
    scores = jnp.where(roi_valid[:, None], scores, 0.0).reshape(-1)
    scores, pair = top_k(scores, min(pre_nms_topk, scores.size))
    roi, classes = pair // num_classes, pair % num_classes
    box = pair if box_deltas.shape[1] == num_classes else roi
    boxes = box_ops.decode(
      box_deltas.reshape(-1, 4)[box], rois[roi], BOX_WEIGHTS
    )
    boxes = box_ops.clip(boxes, image_size[0], image_size[1])
    valid = (scores > score_threshold) & _is_solid(boxes, min_side)
    keep, valid = nms.batched_nms(
      boxes, scores, classes, valid, iou_threshold, max_detections
    )
    return {
      "boxes": jnp.where(valid[:, None], boxes[keep], 0.0),
      "scores": jnp.where(valid, scores[keep], 0.0),
      "classes": jnp.where(valid, classes[keep], 0),
      "valid": valid,
    }

  return jax.vmap(detect_one)(
    outputs["rois"],
    outputs["roi_valid"],
    outputs["class_logits"],
    outputs["box_deltas"],
    outputs["image_size"],
  )
