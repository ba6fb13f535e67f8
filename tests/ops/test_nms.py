import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from must_jax.ops import nms as ops

nms = jax.jit(ops.nms, static_argnums=4)
batched_nms = jax.jit(ops.batched_nms, static_argnums=5)


def greedy(boxes, scores, valid, threshold, max_outputs, classes=None):
  """Kept indices by the sequential algorithm, in float64."""
  boxes = boxes.astype(np.float64)
  low, high = boxes[:, :2], boxes[:, 2:]
  areas = np.prod(np.maximum(high - low, 0), 1)
  kept = []
  for i in sorted(np.flatnonzero(valid), key=lambda i: (-scores[i], i)):
    sides = np.minimum(high[i], high[kept]) - np.maximum(low[i], low[kept])
    shared = np.prod(np.maximum(sides, 0), 1)
    overlaps = shared > threshold * (areas[i] + areas[kept] - shared)
    if classes is not None:
      overlaps &= classes[i] == classes[kept]
    if not overlaps.any():
      kept.append(i)
  return kept[:max_outputs]


def check(result, expected, max_outputs):
  index, found = (np.asarray(x) for x in result)
  assert index.shape == found.shape == (max_outputs,)
  assert index.dtype == np.int32
  assert found.sum() == len(expected)
  np.testing.assert_array_equal(index[: len(expected)], expected)
  assert not found[len(expected) :].any()
  assert not index[len(expected) :].any()


@functools.cache
def random_boxes(seed, count, spread):
  rng = np.random.default_rng(seed)
  low = rng.uniform(0, spread, (count, 2))
  sides = np.exp(rng.normal(3.5, 0.6, (count, 2)))
  return np.concatenate([low, low + sides], 1).astype(np.float32)


def test_known_boxes():
  boxes = np.float32(
    [
      [0, 0, 10, 10],
      [0, 1, 10, 11],  # IoU 9 / 11 with the first
      [0, 5, 10, 15],  # 1 / 3 with the first, 6 / 14 with the second
      [50, 50, 60, 60],
      [0, 0, 10, 10],  # padding
    ]
  )
  scores = np.float32([0.8, 0.9, 0.7, 0.1, 1.0])
  valid = np.array([True, True, True, True, False])
  check(nms(boxes, scores, valid, 0.5, 4), [1, 2, 3], 4)
  check(nms(boxes, scores, valid, 0.4, 4), [1, 3], 4)
  check(nms(boxes, scores, valid, 0.9, 4), [1, 0, 2, 3], 4)
  check(nms(boxes, scores, valid, 0.5, 2), [1, 2], 2)
  classes = np.int32([0, 1, 0, 0, 1])
  check(batched_nms(boxes, scores, classes, valid, 0.5, 5), [1, 0, 2, 3], 5)
  check(batched_nms(boxes, scores, classes, valid, 0.3, 5), [1, 0, 3], 5)


def test_a_suppressed_box_does_not_suppress():
  # Each overlaps the next one only, over more than one tile.
  x = 4 * np.arange(100, dtype=np.float32)
  boxes = np.stack([0 * x, x, 0 * x + 10, x + 10], 1)
  result = nms(boxes, -x, np.ones(100, bool), 0.3, 100)
  check(result, list(range(0, 100, 2)), 100)


def test_the_threshold_itself_is_kept():
  boxes = np.float32([[0, 0, 4, 4], [0, 0, 4, 2]])  # IoU 1 / 2
  ones = np.ones(2, np.float32)
  check(nms(boxes, ones, ones > 0, 0.5, 2), [0, 1], 2)
  check(nms(boxes, ones, ones > 0, 0.499, 2), [0], 2)


def test_empty_boxes_are_kept():
  boxes = np.float32([[1, 1, 1, 1], [1, 1, 1, 1], [3, 3, 2, 2]])
  check(nms(boxes, np.zeros(3), np.ones(3, bool), 0.5, 3), [0, 1, 2], 3)


def test_nothing_valid():
  boxes = random_boxes(0, 40, 50)
  check(nms(boxes, np.ones(40), np.zeros(40, bool), 0.5, 7), [], 7)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_greedy_with_ties(data):
  # Small whole numbers make equal scores and IoUs of exactly 1 / 2 common.
  count = 70
  seed = data.draw(st.integers(0, 2**32 - 1))
  rng = np.random.default_rng(seed)
  low = rng.integers(0, data.draw(st.integers(1, 30)), (count, 2))
  sides = rng.integers(0, data.draw(st.integers(2, 12)), (count, 2))
  boxes = np.concatenate([low, low + sides], 1).astype(np.float32)
  scores = rng.integers(0, data.draw(st.integers(1, 50)), count)
  scores = scores.astype(np.float32)
  valid = rng.uniform(size=count) < data.draw(st.floats(0, 1))
  classes = rng.integers(0, 3, count).astype(np.int32)
  threshold = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
  check(
    nms(boxes, scores, valid, threshold, count),
    greedy(boxes, scores, valid, threshold, count),
    count,
  )
  check(
    batched_nms(boxes, scores, classes, valid, threshold, 20),
    greedy(boxes, scores, valid, threshold, 20, classes),
    20,
  )


@pytest.mark.parametrize("count", [1, 31, 32, 33, 64])
def test_equals_greedy_at_tile_edges(count):
  boxes = random_boxes(count, count, 60)
  scores = np.random.default_rng(count).normal(size=count).astype(np.float32)
  valid = np.ones(count, bool)
  # More outputs than boxes are padded.
  check(
    nms(boxes, scores, valid, 0.4, count + 5),
    greedy(boxes, scores, valid, 0.4, count),
    count + 5,
  )


def test_equals_greedy_on_many_boxes():
  images = [random_boxes(seed, 600, 150) for seed in range(3)]
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(3, 600)).astype(np.float32)
  valid = rng.uniform(size=(3, 600)) < 0.9
  result = jax.jit(
    jax.vmap(lambda b, s, v: ops.nms(b, s, v, 0.7, 300)),
  )(np.stack(images), scores, valid)
  for i, boxes in enumerate(images):
    expected = greedy(boxes, scores[i], valid[i], 0.7, 300)
    check((result[0][i], result[1][i]), expected, 300)


def test_a_perfect_ladder_of_scores_is_kept_in_order():
  boxes = random_boxes(1, 200, 5000)
  scores = np.random.default_rng(1).normal(size=200).astype(np.float32)
  index, found = nms(boxes, scores, np.ones(200, bool), 0.7, 200)
  kept = np.asarray(index)[np.asarray(found)]
  assert len(kept) > 150
  assert (np.diff(scores[kept]) < 0).all()
