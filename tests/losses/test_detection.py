import jax
import numpy as np
import pytest

from must_jax.losses import detection


def encode(box, anchor, weights):
  """Faster R-CNN's box code of one box, float64."""
  y0, x0, y1, x1 = (float(v) for v in box)
  ay0, ax0, ay1, ax1 = (float(v) for v in anchor)
  ah, aw = ay1 - ay0, ax1 - ax0
  code = (
    ((y0 + y1) / 2 - (ay0 + ay1) / 2) / ah,
    ((x0 + x1) / 2 - (ax0 + ax1) / 2) / aw,
    np.log((y1 - y0) / ah),
    np.log((x1 - x0) / aw),
  )
  return [w * c for w, c in zip(weights, code, strict=True)]


def huber(x, delta):
  return x * x / 2 if abs(x) <= delta else delta * (abs(x) - delta / 2)


def random_boxes(rng, shape):
  low = rng.uniform(0, 50, (*shape, 2))
  return np.concatenate(
    [low, low + rng.uniform(5, 60, (*shape, 2))], -1
  ).astype(np.float32)


def example(seed=0, b=3, a=12, s=8, k=4, class_specific=True):
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  return {
    "rpn_logits": normal(b, a),
    "rpn_deltas": normal(b, a, 4),
    "anchors": random_boxes(rng, (a,)),
    "anchor_labels": rng.integers(-1, 2, (b, a)),
    "anchor_sampled": rng.uniform(size=(b, a)) < 0.6,
    "anchor_gt_boxes": random_boxes(rng, (b, a)),
    "rois": random_boxes(rng, (b, s)),
    "roi_valid": rng.uniform(size=(b, s)) < 0.8,
    "roi_classes": rng.integers(0, k, (b, s)),
    "roi_positive": rng.uniform(size=(b, s)) < 0.5,
    "roi_gt_boxes": random_boxes(rng, (b, s)),
    "class_logits": normal(b, s, k + 1),
    "box_deltas": normal(b, s, k if class_specific else 1, 4),
  }


def test_unknown_classes_are_out_of_the_softmax_of_background():
  outputs, present = example(5), np.array([True, True, False])
  known = np.array([[True, False, True, False], [False] * 4, [True] * 4], bool)
  total, count = 0.0, 0
  for b, s in np.ndindex(outputs["roi_valid"].shape):
    if not (present[b] and outputs["roi_valid"][b, s]):
      continue
    logits = outputs["class_logits"][b, s].astype(np.float64)
    positive = outputs["roi_positive"][b, s]
    target = outputs["roi_classes"][b, s] + 1 if positive else 0
    # In closed form: the classes that compete.
    among = [0, *(k + 1 for k in range(4) if positive or known[b, k])]
    total += np.log(np.exp(logits[among]).sum()) - logits[target]
    count += 1

  def loss(logits, known):
    found = detection.rcnn_losses(
      outputs | {"class_logits": logits}, present, known
    )["roi_class"]
    return found.total, found.count

  found = loss(outputs["class_logits"], known)
  np.testing.assert_allclose(found, (total, count), rtol=1e-5)
  gradient, _ = jax.grad(loss, has_aux=True)(outputs["class_logits"], known)
  assert np.isfinite(gradient).all()
  # Background of an image teaches nothing of what the image may hold unseen.
  background = ~outputs["roi_positive"]
  unknown = np.pad(~known, [(0, 0), (1, 0)])[:, None] & background[..., None]
  assert unknown.any() and (np.asarray(gradient)[unknown] == 0).all()
  np.testing.assert_array_equal(
    loss(outputs["class_logits"], np.ones((3, 4), bool)),
    loss(outputs["class_logits"], None),
  )


def test_rois_count_by_their_weights():
  outputs, present = example(6), np.array([True, True, False])
  weights = np.random.default_rng(0).uniform(size=(3, 8)).astype(np.float32)
  found = detection.rcnn_losses(outputs, present, weights=weights)
  expected = {"roi_class": [0.0, 0.0], "roi_box": [0.0, 0.0]}
  for b, s in np.ndindex(3, 8):  # one ROI at a time
    alone = outputs | {"roi_valid": np.zeros((3, 8), bool)}
    alone["roi_valid"][b, s] = outputs["roi_valid"][b, s]
    for name, mean in detection.rcnn_losses(alone, present).items():
      expected[name][0] += weights[b, s] * mean.total
      expected[name][1] += weights[b, s] * mean.count
  for name, mean in found.items():
    np.testing.assert_allclose(mean, expected[name], rtol=1e-5)
    assert mean.count > 0


def reference_rpn(outputs, present):
  """(total, count) of both losses, anchor by anchor."""
  score, box = [0.0, 0], [0.0, 0]
  for b, a in np.ndindex(outputs["rpn_logits"].shape):
    if not (present[b] and outputs["anchor_sampled"][b, a]):
      continue
    positive = outputs["anchor_labels"][b, a] == 1
    x = float(outputs["rpn_logits"][b, a])
    score[0] += np.log1p(np.exp(-x if positive else x))
    score[1] += 1
    if positive:
      targets = encode(
        outputs["anchor_gt_boxes"][b, a], outputs["anchors"][a], (1, 1, 1, 1)
      )
      for d, t in zip(outputs["rpn_deltas"][b, a], targets, strict=True):
        box[0] += huber(float(d) - t, 1 / 9)
        box[1] += 1
  return {"rpn_score": score, "rpn_box": box}


def reference_rcnn(outputs, present):
  classes, box = [0.0, 0], [0.0, 0]
  for b, s in np.ndindex(outputs["roi_valid"].shape):
    if not (present[b] and outputs["roi_valid"][b, s]):
      continue
    positive = outputs["roi_positive"][b, s]
    k = outputs["roi_classes"][b, s]
    x = outputs["class_logits"][b, s].astype(np.float64)
    classes[0] += np.log(np.exp(x).sum()) - x[k + 1 if positive else 0]
    classes[1] += 1
    if positive:
      targets = encode(
        outputs["roi_gt_boxes"][b, s], outputs["rois"][b, s], (10, 10, 5, 5)
      )
      deltas = outputs["box_deltas"][b, s]
      own = deltas[k] if len(deltas) > 1 else deltas[0]
      for d, t in zip(own, targets, strict=True):
        box[0] += huber(float(d) - t, 1.0)
        box[1] += 1
  return {"roi_class": classes, "roi_box": box}


PRESENT = np.array([True, False, True])
PAIRS = {
  "rpn": (jax.jit(detection.rpn_losses), reference_rpn),
  "rcnn": (jax.jit(detection.rcnn_losses), reference_rcnn),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("class_specific", [True, False])
def test_matches_float64(name, class_specific):
  losses, reference = PAIRS[name]
  outputs = example(class_specific=class_specific)
  result, expected = losses(outputs, PRESENT), reference(outputs, PRESENT)
  assert set(result) == set(expected)
  for part, (total, count) in expected.items():
    assert count > 3
    assert result[part].count == count
    np.testing.assert_allclose(result[part].total, total, rtol=1e-5)


@pytest.mark.parametrize(
  ("name", "key"),
  [
    ("rpn", "rpn_logits"),
    ("rpn", "rpn_deltas"),
    ("rcnn", "class_logits"),
    ("rcnn", "box_deltas"),
  ],
)
def test_gradient(name, key, numeric_gradient):
  losses, reference = PAIRS[name]
  outputs = example(1, a=6, s=5)

  def total(x):
    parts = losses({**outputs, key: x}, PRESENT)
    return sum(part.total for part in parts.values())

  expected = numeric_gradient(
    lambda x: sum(
      part[0] for part in reference({**outputs, key: x}, PRESENT).values()
    ),
    outputs[key].astype(np.float64),
  )
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(
    jax.jit(jax.grad(total))(outputs[key]), expected, atol=1e-4
  )


def test_literal():
  """One anchor, one ROI, all by hand."""
  anchor = np.array([0.0, 0.0, 10.0, 10.0], np.float32)
  moved = np.array([1.0, 0.0, 11.0, 10.0], np.float32)  # dy = 0.1
  outputs = {
    "rpn_logits": np.zeros((1, 1), np.float32),
    "rpn_deltas": np.zeros((1, 1, 4), np.float32),
    "anchors": anchor[None],
    "anchor_labels": np.ones((1, 1), np.int32),
    "anchor_sampled": np.ones((1, 1), bool),
    "anchor_gt_boxes": moved[None, None],
    "rois": anchor[None, None],
    "roi_valid": np.ones((1, 1), bool),
    "roi_classes": np.ones((1, 1), np.int32),
    "roi_positive": np.ones((1, 1), bool),
    "roi_gt_boxes": moved[None, None],
    "class_logits": np.array([[[0.0, 0.0, 1.0]]], np.float32),
    "box_deltas": np.array(
      [[[[9, 9, 9, 9], [0.5, 0.0, 0.0, 2.0]]]], np.float32
    ),
  }
  present = np.array([True])
  rpn = PAIRS["rpn"][0](outputs, present)
  np.testing.assert_allclose(rpn["rpn_score"].compute(), 0.6931472, rtol=1e-6)
  np.testing.assert_allclose(rpn["rpn_box"].compute(), 0.005 / 4, rtol=1e-5)
  rcnn = PAIRS["rcnn"][0](outputs, present)
  # Class 1 is logit 2: log(1 + 1 + e) - 1.
  np.testing.assert_allclose(rcnn["roi_class"].compute(), 0.5514447, rtol=1e-6)
  # Weighted target 1 in y: errors -0.5 (square) and 2 (linear: 1.5).
  np.testing.assert_allclose(
    rcnn["roi_box"].compute(), (0.125 + 1.5) / 4, rtol=1e-5
  )


def test_other_classes_deltas_do_not_matter():
  outputs = example()
  base = PAIRS["rcnn"][0](outputs, PRESENT)["roi_box"]
  own = np.arange(4) == outputs["roi_classes"][..., None]
  outputs["box_deltas"] = np.where(
    own[..., None], outputs["box_deltas"], np.nan
  )
  loss = PAIRS["rcnn"][0](outputs, PRESENT)["roi_box"]
  np.testing.assert_array_equal(loss.total, base.total)


def test_no_gradient_through_the_targets():
  """ROIs come from the model, but are no way to lower the loss."""
  outputs = example()
  for key in ("rois", "roi_gt_boxes"):
    gradient = jax.grad(
      lambda x, key=key: (
        PAIRS["rcnn"][0]({**outputs, key: x}, PRESENT)["roi_box"].total
      )
    )(outputs[key])
    np.testing.assert_array_equal(gradient, 0)
