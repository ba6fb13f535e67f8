import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from must_jax.ops import matching as ops

match_anchors = jax.jit(
  ops.match_anchors,
  static_argnames=("positive_iou", "negative_iou", "force_best"),
)
sample = jax.jit(ops.sample, static_argnums=(2, 3))
sample_rois = jax.jit(ops.sample_rois, static_argnames="num_samples")

GT = np.float32([[0, 0, 10, 10], [20, 20, 40, 40]])
BOTH = np.array([True, True])
NONE = np.array([False, False])


def box_area(box):
  return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def box_shared(a, b):
  low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
  return box_area(np.concatenate([low, high]))


def box_iou(a, b):
  shared = box_shared(a, b)
  union = box_area(a) + box_area(b) - shared
  return shared / union if union else 0.0


def naive_match(anchors, gt, valid, ignore, positive, negative, force):
  """(gt_index, labels), one anchor and one box at a time, in float64."""
  anchors, gt = anchors.astype(np.float64), gt.astype(np.float64)
  targets = [g for g in range(len(gt)) if valid[g] and not ignore[g]]
  index, labels = [], []
  for anchor in anchors:
    ious = {g: box_iou(anchor, gt[g]) for g in targets}
    best = max(ious, key=ious.get) if ious else 0
    iou = ious.get(best, 0.0)
    label = 1 if iou >= positive else 0 if iou < negative else -1
    for g in np.flatnonzero(valid & ignore):
      shared = box_shared(anchor, gt[g])
      if label == 0 and shared > 0 and shared >= 0.5 * box_area(anchor):
        label = -1
    index.append(best)
    labels.append(label)
  for g in reversed(targets if force else []):
    ious = [box_iou(anchor, gt[g]) for anchor in anchors]
    if max(ious) > 0:
      index[int(np.argmax(ious))] = g
      labels[int(np.argmax(ious))] = 1
  return np.array(index), np.array(labels)


@pytest.mark.parametrize(
  ("anchor", "label", "gt_index"),
  [
    ((0, 0, 10, 10), 1, 0),
    ((0, 0, 7, 10), 1, 0),  # IoU 0.7 itself is an object
    ((0, 0, 6.9, 10), -1, 0),
    ((0, 0, 3, 10), -1, 0),  # IoU 0.3 itself is not background
    ((0, 0, 2.9, 10), 0, 0),
    ((20, 20, 40, 39), 1, 1),
    ((50, 50, 60, 60), 0, 0),
  ],
)
def test_thresholds(anchor, label, gt_index):
  matches = match_anchors(np.float32([anchor]), GT, BOTH, force_best=False)
  assert matches.labels[0] == label
  assert matches.gt_index[0] == gt_index


def test_the_best_anchor_of_each_box_is_forced():
  anchors = np.float32(
    [
      [0, 0, 2, 10],  # IoU 0.2 with box 0, like the next one: the first wins
      [8, 0, 10, 10],
      [0, 0, 1, 10],
      [20, 20, 24, 40],  # IoU 0.2 with box 1
      [60, 60, 70, 70],
    ]
  )
  forced = match_anchors(anchors, GT, BOTH)
  np.testing.assert_array_equal(forced.labels, [1, 0, 0, 1, 0])
  np.testing.assert_array_equal(forced.gt_index[np.array([0, 3])], [0, 1])
  free = match_anchors(anchors, GT, BOTH, force_best=False)
  np.testing.assert_array_equal(free.labels, [0, 0, 0, 0, 0])


def test_a_forced_anchor_belongs_to_the_box_that_forces_it():
  # The anchor overlaps box 1 more, but it is all that box 0 has.
  gt = np.float32([[0, 0, 2, 10], [0, 0, 10, 10]])
  anchors = np.float32([[0, 0, 9, 10], [0, 0, 10, 10]])
  matches = match_anchors(anchors, gt, BOTH)
  np.testing.assert_array_equal(matches.labels, [1, 1])
  np.testing.assert_array_equal(matches.gt_index, [0, 1])
  # Of two boxes with the same best anchor the first one has it.
  matches = match_anchors(anchors[:1], gt, BOTH)
  np.testing.assert_array_equal(matches.gt_index, [0])


def test_a_box_far_from_every_anchor_forces_none():
  matches = match_anchors(np.float32([[70, 70, 80, 80]] * 3), GT, BOTH)
  np.testing.assert_array_equal(matches.labels, [0, 0, 0])


@pytest.mark.parametrize("num_gt", [1, 3])
def test_padding_is_never_matched(num_gt):
  anchors = np.float32([[0, 0, 10, 10], [0, 0, 0, 0], [5, 5, 9, 9]])
  gt = np.tile(np.float32([0, 0, 10, 10]), (num_gt, 1))
  matches = match_anchors(anchors, gt, np.zeros(num_gt, bool))
  np.testing.assert_array_equal(matches.labels, [0, 0, 0])
  matches = match_anchors(
    anchors, gt, np.zeros(num_gt, bool), np.ones(num_gt, bool)
  )
  np.testing.assert_array_equal(matches.labels, [0, 0, 0])


def test_ignore_boxes():
  anchors = np.float32(
    [
      [20, 20, 40, 40],  # the ignore box itself: no object
      [20, 30, 40, 50],  # half covered
      [20, 31, 40, 51],
      [25, 25, 26, 26],  # inside
      [30, 30, 30, 30],  # empty
      [0, 0, 10, 10],
    ]
  )
  ignore = np.array([False, True])
  matches = match_anchors(anchors, GT, BOTH, ignore)
  np.testing.assert_array_equal(matches.labels, [-1, -1, 0, -1, 0, 1])
  # An object stays one inside an ignore box.
  gt = np.float32([[0, 0, 10, 10], [0, 0, 100, 100]])
  matches = match_anchors(anchors, gt, BOTH, ignore)
  np.testing.assert_array_equal(matches.labels, [-1, -1, -1, -1, 0, 1])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_matches_naive(data):
  rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
  reach = data.draw(st.integers(4, 30))

  def boxes(count):
    # Few whole numbers: ties and IoUs at the thresholds are common.
    low = rng.integers(0, reach, (count, 2))
    return np.float32(np.hstack([low, low + rng.integers(0, 11, (count, 2))]))

  anchors, gt = boxes(40), boxes(5)
  valid = rng.uniform(size=5) < data.draw(st.floats(0, 1))
  ignore = rng.uniform(size=5) < data.draw(st.floats(0, 0.5))
  positive, negative = data.draw(st.sampled_from([(0.7, 0.3), (0.5, 0.5)]))
  force = data.draw(st.booleans())
  matches = match_anchors(
    anchors, gt, valid, ignore, positive, negative, force_best=force
  )
  index, labels = naive_match(
    anchors, gt, valid, ignore, positive, negative, force
  )
  np.testing.assert_array_equal(matches.labels, labels)
  np.testing.assert_array_equal(
    np.asarray(matches.gt_index)[labels == 1], index[labels == 1]
  )
  assert matches.gt_index.dtype == matches.labels.dtype == np.int32
  assert ((matches.gt_index >= 0) & (matches.gt_index < 5)).all()


@pytest.mark.parametrize(
  ("positives", "negatives", "num_positive", "num_negative"),
  [
    (40, 60, 8, 8),  # more than enough of both
    (3, 60, 3, 13),  # background fills
    (40, 2, 8, 2),  # objects do not
    (0, 60, 0, 16),
    (5, 0, 5, 0),
    (0, 0, 0, 0),
  ],
)
def test_sample_counts(positives, negatives, num_positive, num_negative):
  labels = np.full(100, -1, np.int32)
  labels[:positives], labels[100 - negatives :] = 1, 0
  labels = np.random.default_rng(0).permutation(labels)
  for seed in range(5):
    sampled = np.asarray(sample(labels, jax.random.key(seed), 16, 0.5))
    assert (labels[sampled] == 1).sum() == num_positive
    assert (labels[sampled] == 0).sum() == num_negative
    assert sampled.sum() == num_positive + num_negative


def test_sample_of_fewer_anchors_than_samples():
  labels = np.int32([1, 0, -1, 0, 1, 1])
  sampled = sample(labels, jax.random.key(0), 64, 0.5)
  np.testing.assert_array_equal(sampled, labels >= 0)


def test_sample_is_uniform():
  labels = np.repeat(np.int32([1, 0, -1]), 20)
  keys = jax.random.split(jax.random.key(0), 4000)
  sampled = jax.vmap(lambda key: ops.sample(labels, key, 16, 0.25))(keys)
  rates = np.asarray(sampled).mean(0)
  # 4 of 20 and 12 of 20, within 5 standard deviations of 4000 draws.
  np.testing.assert_allclose(rates[:20], 0.2, atol=5 * 0.4 / 4000**0.5)
  np.testing.assert_allclose(rates[20:40], 0.6, atol=5 * 0.49 / 4000**0.5)
  assert not rates[40:].any()


def test_sample_depends_on_the_key_alone():
  labels = np.zeros(50, np.int32)
  first, again, other = (
    np.asarray(sample(labels, jax.random.key(seed), 16, 0.5))
    for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def draw_rois(
  rois, roi_valid=None, gt=GT, valid=BOTH, ignore=NONE, num_samples=8
):
  rois = np.float32(rois).reshape(-1, 4)
  roi_valid = np.ones(len(rois), bool) if roi_valid is None else roi_valid
  drawn = sample_rois(
    rois,
    np.asarray(roi_valid),
    gt,
    np.int32([3, 5]),
    valid,
    ignore,
    jax.random.key(0),
    num_samples=num_samples,
  )
  return {name: np.asarray(array) for name, array in drawn.items()}


def rows(array):
  return {tuple(row) for row in np.asarray(array).tolist()}


def test_sample_rois_mixes_in_ground_truth():
  background = [[0, 0, 4, 10], [60, 60, 70, 70]]
  padding = [[0, 0, 10, 10]]
  drawn = draw_rois(background + padding, [True, True, False])
  np.testing.assert_array_equal(drawn["valid"], [True] * 4 + [False] * 4)
  np.testing.assert_array_equal(drawn["is_positive"], [True] * 2 + [False] * 6)
  assert rows(drawn["rois"][:2]) == rows(GT)
  assert rows(drawn["rois"][2:4]) == rows(np.float32(background))
  np.testing.assert_array_equal(drawn["gt_boxes"][:2], drawn["rois"][:2])
  np.testing.assert_array_equal(
    drawn["classes"][:2], np.where(drawn["rois"][:2, 0] == 0, 3, 5)
  )
  for name, start in (("rois", 4), ("classes", 2), ("gt_boxes", 2)):
    assert not drawn[name][start:].any()
  assert drawn["classes"].dtype == np.int32


def test_sample_rois_iou_bounds():
  half = [0, 0, 5, 10]  # IoU 0.5 itself is positive
  drawn = draw_rois([half, [0, 0, 4.9, 10]], num_samples=12)
  positives = rows(drawn["rois"][drawn["is_positive"]])
  assert positives == rows(GT) | {tuple(half)}
  assert drawn["valid"].sum() == 4


def test_sample_rois_fraction():
  drawn = draw_rois([[0, 0, 10, 10]] * 30 + [[60, 60, 70, 70]] * 30)
  assert drawn["valid"].all()
  np.testing.assert_array_equal(drawn["is_positive"], [True] * 2 + [False] * 6)


def test_sample_rois_without_ground_truth():
  rois = [[0, 0, 10, 10], [20, 20, 40, 40], [1, 2, 3, 4]]
  drawn = draw_rois(rois, valid=NONE)
  assert drawn["valid"].sum() == 3
  assert not drawn["is_positive"].any()
  assert rows(drawn["rois"][drawn["valid"]]) == rows(np.float32(rois))


def test_sample_rois_leaves_ignore_boxes_out():
  rois = [[20, 20, 40, 40], [22, 22, 23, 23], [60, 60, 70, 70]]
  drawn = draw_rois(rois, ignore=np.array([False, True]))
  # The ignore box is no candidate, and what it covers is neither kind.
  assert rows(drawn["rois"][drawn["valid"]]) == rows([GT[0], rois[2]])
  assert drawn["is_positive"].sum() == 1


def test_sample_rois_does_not_mix_in_ignore_boxes():
  # A crowd box that itself overlaps an object would be a positive.
  gt = np.float32([[0, 0, 10, 10], [0, 0, 10, 9]])
  drawn = draw_rois([], gt=gt, ignore=np.array([False, True]))
  np.testing.assert_array_equal(drawn["rois"][drawn["valid"]], gt[:1])


def test_sample_rois_of_nothing():
  drawn = draw_rois([[1, 1, 5, 5]], [False], valid=NONE)
  assert not any(array.any() for array in drawn.values())
