import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.models import rcnn
from must_jax.models.rcnn import FasterRCNNHead, FastRCNNHead, RCNNOptions

SIZE = (64, 96)
NUM_CLASSES = 3

detect = jax.jit(
  rcnn.detect, static_argnames=("max_detections", "pre_nms_topk")
)
propose = jax.jit(rcnn.propose, static_argnums=(3, 4, 5, 6, 7))


def iou(a, b):
  top, left = np.maximum(a[:2], b[:2])
  bottom, right = np.minimum(a[2:], b[2:])
  both = max(bottom - top, 0) * max(right - left, 0)
  areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
  return both / (sum(areas) - both)


def decode(anchor, delta, weights, size):
  (top, left, bottom, right), d = anchor, np.asarray(delta) / weights
  h, w = bottom - top, right - left
  y, x = (top + bottom) / 2 + d[0] * h, (left + right) / 2 + d[1] * w
  h, w = (
    side * np.exp(min(s, np.log(1000 / 16)))
    for side, s in ((h, d[2]), (w, d[3]))
  )
  box = np.array([y - h / 2, x - w / 2, y + h / 2, x + w / 2])
  return np.clip(box, 0, [size[0], size[1], size[0], size[1]])


def greedy_nms(boxes, scores, threshold):
  """Indices kept, best first."""
  keep = []
  for i in np.argsort(-np.asarray(scores), kind="stable"):
    if all(iou(boxes[i], boxes[j]) <= threshold for j in keep):
      keep.append(i)
  return keep


def random_boxes(rng, n, size=SIZE, smallest=4):
  center = rng.uniform(0, 1, (n, 2)) * size
  side = rng.uniform(smallest, 40, (n, 2))
  boxes = np.concatenate([center - side / 2, center + side / 2], 1)
  boxes[:, :2] = np.clip(boxes[:, :2], 0, np.array(size) - smallest)
  boxes[:, 2:] = np.clip(boxes[:, 2:], boxes[:, :2] + smallest, size)
  return boxes.astype(np.float32)


# --- proposals ---------------------------------------------------------------


def test_propose_matches_slow_numpy():
  rng = np.random.default_rng(0)
  counts, pre, post, threshold = (60, 17, 3), 20, 25, 0.5
  anchors = random_boxes(rng, sum(counts))
  logits = rng.normal(size=sum(counts)).astype(np.float32)
  deltas = (0.3 * rng.normal(size=(sum(counts), 4))).astype(np.float32)
  boxes, valid = propose(
    logits, deltas, anchors, counts, SIZE, pre, post, threshold
  )

  expected = []
  for level in np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1]):
    best = level[np.argsort(-logits[level])][:pre]
    found = [decode(anchors[i], deltas[i], np.ones(4), SIZE) for i in best]
    for k in greedy_nms(found, logits[best], threshold):
      expected.append((logits[best[k]], found[k]))
  expected = sorted(expected, key=lambda x: -x[0])[:post]
  assert 20 < len(expected) <= post
  assert valid.sum() == len(expected)
  np.testing.assert_allclose(
    boxes[: len(expected)], [box for _, box in expected], atol=1e-3
  )
  np.testing.assert_array_equal(boxes[len(expected) :], 0)


def test_propose_drops_boxes_outside_the_image():
  anchors = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
  deltas = np.array([[-2, 0, 0, 0], [0, 0, 0, 0]], np.float32)
  boxes, valid = propose(
    jnp.array([5.0, 1.0]), jnp.array(deltas), anchors, (2,), SIZE, 9, 9, 0.7
  )
  np.testing.assert_array_equal(valid, [True, False])
  np.testing.assert_array_equal(boxes, [[20, 20, 30, 30], [0, 0, 0, 0]])


def test_propose_drops_slivers():
  # Of the first 0.5 pixels are left at the border.
  anchors = np.array([[-9.5, 0, 0.5, 10], [20, 20, 30, 30]], np.float32)
  args = jnp.array([5.0, 1.0]), np.zeros((2, 4), np.float32), anchors
  for min_side, kept in ((0.4, 2), (0.6, 1)):
    _, valid = rcnn.propose(*args, (2,), SIZE, 9, 9, 0.7, min_side)
    assert valid.sum() == kept


# --- detections --------------------------------------------------------------


def head_outputs(rng, batch, num_rois, class_agnostic=False):
  num_boxes = 1 if class_agnostic else NUM_CLASSES
  rois = [random_boxes(rng, num_rois) for _ in range(batch)]
  outputs = {
    "rois": np.stack(rois),
    "roi_valid": rng.random((batch, num_rois)) < 0.9,
    "class_logits": 2 * rng.normal(size=(batch, num_rois, NUM_CLASSES + 1)),
    "box_deltas": rng.normal(size=(batch, num_rois, num_boxes, 4)),
    "image_size": np.tile(np.float32(SIZE), (batch, 1)),
  }
  return {
    k: v if v.dtype == bool else v.astype(np.float32)
    for k, v in outputs.items()
  }


def slow_detect(outputs, b, score_threshold, iou_threshold, max_detections):
  logits = outputs["class_logits"][b].astype(np.float64)
  probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  deltas = outputs["box_deltas"][b].astype(np.float64)
  detections = []
  for c in range(NUM_CLASSES):
    rois = [
      r
      for r in np.flatnonzero(outputs["roi_valid"][b])
      if probs[r, c + 1] > score_threshold
    ]
    boxes = [
      decode(
        outputs["rois"][b, r],
        deltas[r, min(c, deltas.shape[1] - 1)],
        np.array([10, 10, 5, 5]),
        SIZE,
      )
      for r in rois
    ]
    scores = [probs[r, c + 1] for r in rois]
    for k in greedy_nms(boxes, scores, iou_threshold):
      detections.append((scores[k], c, boxes[k]))
  return sorted(detections, key=lambda d: -d[0])[:max_detections]


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("max_detections", [10, 100])
def test_detect_matches_slow_numpy(class_agnostic, max_detections):
  outputs = head_outputs(np.random.default_rng(1), 2, 40, class_agnostic)
  found = detect(
    outputs,
    score_threshold=0.1,
    iou_threshold=0.4,
    max_detections=max_detections,
  )
  for b in range(2):
    expected = slow_detect(outputs, b, 0.1, 0.4, max_detections)
    n = len(expected)
    assert n == 10 if max_detections == 10 else 10 < n < 100
    np.testing.assert_array_equal(
      found["valid"][b], np.arange(max_detections) < n
    )
    scores, classes, boxes = (list(x) for x in zip(*expected, strict=True))
    np.testing.assert_allclose(found["scores"][b, :n], scores, rtol=1e-5)
    np.testing.assert_array_equal(found["classes"][b, :n], classes)
    np.testing.assert_allclose(found["boxes"][b, :n], boxes, atol=1e-3)
    for key in ("boxes", "scores", "classes"):
      np.testing.assert_array_equal(found[key][b, n:], 0)


def test_detect_takes_the_best_pairs_only():
  outputs = head_outputs(np.random.default_rng(2), 1, 30)
  found = detect(
    outputs, score_threshold=0.0, iou_threshold=1.0, pre_nms_topk=5
  )
  probs = jax.nn.softmax(outputs["class_logits"][0])[:, 1:]
  probs = np.where(outputs["roi_valid"][0][:, None], probs, 0)
  assert found["valid"].sum() == 5
  np.testing.assert_allclose(
    found["scores"][0, :5], np.sort(probs.ravel())[::-1][:5], rtol=1e-6
  )


def test_detect_drops_slivers():
  outputs = head_outputs(np.random.default_rng(4), 1, 30)
  every = detect(outputs, iou_threshold=1.0)
  shortest = np.ptp(every["boxes"][0].reshape(-1, 2, 2), axis=1).min(1)
  found = detect(outputs, iou_threshold=1.0, min_side=12.0)
  assert 0 < found["valid"].sum() < every["valid"].sum() < 100
  np.testing.assert_array_equal(
    found["boxes"][found["valid"]], every["boxes"][0][shortest >= 12]
  )


def test_detect_finds_nothing_without_valid_rois():
  outputs = head_outputs(np.random.default_rng(3), 1, 30)
  outputs["roi_valid"][:] = False
  found = detect(outputs, score_threshold=0.0)
  assert not found["valid"].any()
  assert all(np.isfinite(x).all() for x in found.values())


# --- the head ----------------------------------------------------------------


def tiny_head(**kwargs):
  options = RCNNOptions(
    fc_dims=16,
    head_convs=1,
    rpn_convs=1,
    rpn_pre_nms=40,
    rpn_post_nms=30,
    rpn_samples=32,
    num_rois=24,
    roi_canonical_size=64.0,
  )
  chosen = {name: kwargs.pop(name) for name in vars(options) if name in kwargs}
  return FasterRCNNHead(
    num_classes=NUM_CLASSES,
    options=dataclasses.replace(options, **chosen),
    channels=8,
    max_level=5,
    roi_output_size=3,
    **kwargs,
  )


def tiny_features(batch, levels=(3, 4, 5), channels=8, dtype=np.float32):
  rng = np.random.default_rng(0)
  features = {
    level: jnp.asarray(
      rng.normal(
        size=(batch, -(-SIZE[0] // 2**level), -(-SIZE[1] // 2**level), channels)
      ),
      dtype,
    )
    for level in levels
  }
  return features | {"image_size": SIZE}


def some_objects(batch, padded=6):
  rng = np.random.default_rng(1)
  return {
    "boxes": np.stack([random_boxes(rng, padded) for _ in range(batch)]),
    "classes": rng.integers(0, NUM_CLASSES, (batch, padded)).astype(np.int32),
    "valid": np.tile(np.arange(padded) < 4, (batch, 1)),
    "ignore": np.zeros((batch, padded), bool),
    "scores": np.float32(np.tile(np.linspace(0.5, 1, padded), (batch, 1))),
    "present": np.ones(batch, bool),
  }


@functools.partial(jax.jit, static_argnums=0)
def apply_training(head, variables, features, objects, key):
  outputs, _ = head.apply(
    variables,
    features | {"image_size": SIZE},
    labels={"objects": objects},
    train=True,
    rngs={"sample": key},
    mutable=["batch_stats"],
  )
  return outputs


@pytest.fixture
def train_outputs(draw_variables):
  def run(head, features, objects, seed=1):
    variables = draw_variables(head.init, features)
    arrays = {k: v for k, v in features.items() if k != "image_size"}
    return apply_training(
      head, variables, arrays, objects, jax.random.key(seed)
    )

  return run


def test_training_outputs_are_as_documented(train_outputs):
  outputs = train_outputs(tiny_head(), tiny_features(2), some_objects(2))
  num_anchors = 3 * (8 * 12 + 4 * 6 + 2 * 3)
  f32, i32, boolean = (jnp.dtype(x) for x in ("float32", "int32", "bool"))
  assert {k: (v.shape, v.dtype) for k, v in outputs.items()} == {
    "rpn_logits": ((2, num_anchors), f32),
    "rpn_deltas": ((2, num_anchors, 4), f32),
    "anchors": ((num_anchors, 4), f32),
    "anchor_labels": ((2, num_anchors), i32),
    "anchor_sampled": ((2, num_anchors), boolean),
    "anchor_gt_boxes": ((2, num_anchors, 4), f32),
    "rois": ((2, 24, 4), f32),
    "roi_valid": ((2, 24), boolean),
    "roi_classes": ((2, 24), i32),
    "roi_positive": ((2, 24), boolean),
    "roi_gt_boxes": ((2, 24, 4), f32),
    "roi_scores": ((2, 24), f32),
    "class_logits": ((2, 24, NUM_CLASSES + 1), f32),
    "box_deltas": ((2, 24, NUM_CLASSES, 4), f32),
  }


def test_targets_are_those_of_the_objects(train_outputs):
  objects = some_objects(2)
  outputs = jax.device_get(
    train_outputs(tiny_head(), tiny_features(2), objects)
  )
  for b in range(2):
    gt = objects["boxes"][b, objects["valid"][b]]
    classes = objects["classes"][b, objects["valid"][b]]
    scores = objects["scores"][b, objects["valid"][b]]
    positive = outputs["roi_positive"][b]
    # The objects' own boxes are mixed in, 24 / 4 places are for positives.
    assert 4 <= positive.sum() <= 6
    assert outputs["roi_valid"][b][positive].all()
    for r in np.flatnonzero(outputs["roi_valid"][b]):
      overlaps = [iou(outputs["rois"][b, r], box) for box in gt]
      assert positive[r] == (max(overlaps) >= 0.5)
      if positive[r]:
        best = int(np.argmax(overlaps))
        assert outputs["roi_classes"][b, r] == classes[best]
        np.testing.assert_array_equal(outputs["roi_gt_boxes"][b, r], gt[best])
      score = scores[best] if positive[r] else 1
      assert outputs["roi_scores"][b, r] == score
    labels = outputs["anchor_labels"][b]
    assert (labels == 1).sum() >= 4  # each object has its best anchor
    sampled = outputs["anchor_sampled"][b]
    assert sampled.sum() == 32
    assert (labels[sampled] >= 0).all()
    for a in np.flatnonzero(labels == 1):
      assert any((outputs["anchor_gt_boxes"][b, a] == box).all() for box in gt)


@pytest.mark.parametrize("case", ["no objects", "ignored"])
def test_images_without_objects_give_background_only(case, train_outputs):
  objects = some_objects(2)
  if case == "ignored":
    objects["ignore"][:] = True
  else:
    objects["valid"][:] = False
  outputs = train_outputs(tiny_head(), tiny_features(2), objects)
  assert not (outputs["anchor_labels"] == 1).any()
  assert not outputs["roi_positive"].any()
  assert (outputs["anchor_sampled"].sum(1) == 32).all()
  assert outputs["roi_valid"].any(1).all()
  assert all(np.isfinite(x).all() for x in outputs.values())


def test_examples_without_labels_are_not_sampled_and_filler_is_not_read(
  train_outputs,
):
  objects = some_objects(2)
  objects["present"][1] = False
  outputs = train_outputs(tiny_head(), tiny_features(2), objects)
  for key in ("roi_valid", "roi_positive", "anchor_sampled"):
    np.testing.assert_array_equal(outputs[key].any(1), [True, False])
  np.testing.assert_array_equal(outputs["anchor_labels"][1], -1)
  filled = jax.tree.map(np.copy, objects)
  filled["boxes"][1] = filled["boxes"][0]
  filled["classes"][1] = 2
  filled["valid"][1] = True
  again = train_outputs(tiny_head(), tiny_features(2), filled)
  for key in ("rois", "class_logits", "box_deltas"):
    np.testing.assert_array_equal(again[key], outputs[key])


def test_sampling_depends_on_the_key_and_on_nothing_else(train_outputs):
  head, features, objects = tiny_head(), tiny_features(2), some_objects(2)
  first, same, other = (
    train_outputs(head, features, objects, seed) for seed in (1, 1, 2)
  )
  for key in ("anchor_sampled", "rois"):
    np.testing.assert_array_equal(first[key], same[key])
    assert (first[key] != other[key]).any()


def test_evaluation_outputs_are_as_documented():
  outputs = jax.eval_shape(
    lambda: tiny_head().init_with_output(jax.random.key(0), tiny_features(2))[0]
  )
  f32, boolean = jnp.dtype("float32"), jnp.dtype("bool")
  assert {k: (v.shape, v.dtype) for k, v in outputs.items()} == {
    "rois": ((2, 30, 4), f32),
    "roi_valid": ((2, 30), boolean),
    "class_logits": ((2, 30, NUM_CLASSES + 1), f32),
    "box_deltas": ((2, 30, NUM_CLASSES, 4), f32),
    "image_size": ((2, 2), f32),
  }


def test_class_agnostic_boxes_and_no_norm():
  head = tiny_head(class_agnostic_boxes=True, use_norm=False)
  outputs, variables = jax.eval_shape(
    lambda: head.init_with_output(jax.random.key(0), tiny_features(1))
  )
  assert outputs["box_deltas"].shape == (1, 30, 1, 4)
  assert set(variables) == {"params"}
  assert "bias" in variables["params"]["fast_rcnn"]["conv1"]


def test_norms_can_be_left_out_in_rpn_and_fc():
  head = tiny_head(rpn_norm=False, fc_norm=False)
  params = jax.eval_shape(
    lambda: head.init(jax.random.key(0), tiny_features(1))
  )["params"]
  layers = {
    f"{stage}/{layer}": set(arrays)
    for stage, part in params.items()
    for layer, arrays in part.items()
  }
  assert layers.pop("fast_rcnn/norm1") == {"scale", "bias"}
  assert layers.pop("fast_rcnn/conv1") == {"kernel"}
  assert set(layers) == {
    "rpn/conv1", "rpn/objectness", "rpn/box_deltas",
    "fast_rcnn/fc", "fast_rcnn/class_logits", "fast_rcnn/box_deltas",
  }  # fmt: skip
  assert all(arrays == {"kernel", "bias"} for arrays in layers.values())


def test_rois_do_not_read_levels_past_the_last(draw_variables):
  features = tiny_features(1)
  # Every roi belongs to the coarsest level there is.
  limited = tiny_head(roi_canonical_size=1.0, roi_max_level=4)
  variables = draw_variables(limited.init, features)
  apply = jax.jit(
    lambda head, variables, features: head.apply(
      variables, features | {"image_size": SIZE}
    ),
    static_argnums=0,
  )
  arrays = {level: features[level] for level in (3, 4, 5)}
  outputs = apply(limited, variables, arrays)
  options = dataclasses.replace(limited.options, roi_max_level=7)
  everything = apply(limited.copy(options=options), variables, arrays)
  np.testing.assert_array_equal(outputs["rois"], everything["rois"])
  differs = outputs["class_logits"] != everything["class_logits"]
  assert differs.any(-1)[outputs["roi_valid"]].all()


def test_boxes_are_kept_to_the_content(draw_variables):
  features = tiny_features(2)
  head = tiny_head()
  variables = draw_variables(head.init, features)
  content = np.float32([[40, 96], [64, 50]])
  arrays = {level: features[level] for level in (3, 4, 5)}
  outputs = jax.jit(
    lambda variables, arrays, content: head.apply(
      variables, arrays | {"image_size": SIZE, "content_size": content}
    )
  )(variables, arrays, content)
  np.testing.assert_array_equal(outputs["image_size"], content)
  ends = outputs["rois"][..., 2:].max(1)
  np.testing.assert_array_equal(ends, content)
  found = detect(outputs, score_threshold=0.0)
  assert (found["boxes"][..., 2:] <= content[:, None]).all()


def test_levels_have_norms_of_their_own_and_share_convolutions():
  shapes = jax.eval_shape(
    lambda: tiny_head().init(jax.random.key(0), tiny_features(1))
  )
  assert set(shapes["params"]["rpn"]) == {
    "conv1", "norm1_p3", "norm1_p4", "norm1_p5", "objectness", "box_deltas"
  }  # fmt: skip


def test_bfloat16_hides_inside(draw_variables):
  def run(variables, dtype):
    head, features = tiny_head(dtype=dtype), tiny_features(2, dtype=dtype)
    return head.apply(
      variables,
      features,
      labels={"objects": some_objects(2)},
      train=True,
      rngs={"sample": jax.random.key(0)},
      mutable=["batch_stats"],
    )[0]

  variables = draw_variables(tiny_head().init, tiny_features(2))
  shapes = jax.eval_shape(lambda v: run(v, jnp.bfloat16), variables)
  assert jnp.bfloat16 not in {x.dtype for x in shapes.values()}

  def logits(variables, dtype):
    return run(variables, dtype)["rpn_logits"]

  logits = jax.jit(logits, static_argnums=1)
  exact = logits(variables, jnp.float32)
  error = np.abs(logits(variables, jnp.bfloat16) - exact)
  assert 0 < error.max() < 0.05 * np.abs(exact).max()


def second_stage(draw_variables, pooled, valid):
  head = FastRCNNHead(
    num_classes=NUM_CLASSES,
    num_convs=1,
    channels=4,
    fc_dims=8,
    class_agnostic_boxes=False,
    use_norm=True,
    dtype=jnp.float32,
    norm_momentum=0.9,
    norm_epsilon=1e-3,
  )
  variables = draw_variables(head.init, pooled, valid, train=False)
  return jax.jit(
    lambda *args: head.apply(*args, train=True, mutable=["batch_stats"])
  )(variables, pooled, valid)


def test_padding_rois_take_no_part_in_norm_statistics(draw_variables):
  rng = np.random.default_rng(0)
  pooled = rng.normal(size=(2, 5, 3, 3, 4)).astype(np.float32)
  valid = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool)
  outputs, stats = second_stage(draw_variables, pooled, valid)
  # Another array: JAX may still be reading the first.
  changed = np.where(valid[..., None, None, None], pooled, np.float32(1000))
  others, same_stats = second_stage(draw_variables, changed, valid)
  for x, y in zip(outputs, others, strict=True):
    np.testing.assert_allclose(x[valid], y[valid], rtol=1e-5, atol=1e-5)
    assert (x[~valid] != y[~valid]).any()
  jax.tree.map(np.testing.assert_allclose, stats, same_stats)


def test_a_batch_without_a_valid_roi_leaves_norm_statistics_finite(
  draw_variables,
):
  pooled = np.ones((2, 5, 3, 3, 4), np.float32)
  results = second_stage(draw_variables, pooled, np.zeros((2, 5), bool))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))


def test_training_without_labels_is_refused():
  with pytest.raises(ValueError, match="no labels in training"):
    tiny_head().init(jax.random.key(0), tiny_features(1), train=True)
