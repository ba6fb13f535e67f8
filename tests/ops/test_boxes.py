import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from must_jax.ops import boxes as ops

BOXES = st_np.arrays(np.float32, (7, 4), elements=st.floats(0, 512, width=32))
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def naive_overlaps(a, b):
  """(iou, ioa) [N, M] in float64, pair by pair."""
  iou, ioa = np.zeros((2, len(a), len(b)))
  for i, p in enumerate(a.astype(np.float64)):
    for j, q in enumerate(b.astype(np.float64)):
      height = max(min(p[2], q[2]) - max(p[0], q[0]), 0)
      width = max(min(p[3], q[3]) - max(p[1], q[1]), 0)
      area_p = max(p[2] - p[0], 0) * max(p[3] - p[1], 0)
      area_q = max(q[2] - q[0], 0) * max(q[3] - q[1], 0)
      union = area_p + area_q - height * width
      iou[i, j] = height * width / union if union > 0 else 0
      ioa[i, j] = height * width / area_p if area_p > 0 else 0
  return iou, ioa


def naive_encode(box, anchor, weights):
  (y0, x0, y1, x1), (a0, b0, a1, b1) = (
    [float(v) for v in b] for b in (box, anchor)
  )
  code = (
    ((y0 + y1) - (a0 + a1)) / 2 / (a1 - a0),
    ((x0 + x1) - (b0 + b1)) / 2 / (b1 - b0),
    np.log((y1 - y0) / (a1 - a0)),
    np.log((x1 - x0) / (b1 - b0)),
  )
  return [c * w for c, w in zip(code, weights, strict=True)]


def random_boxes(rng, count):
  low = rng.uniform(0, 300, (count, 2))
  sides = rng.uniform(1, 200, (count, 2))
  return np.concatenate([low, low + sides], 1).astype(np.float32)


@pytest.mark.parametrize(
  ("box", "expected"),
  [
    ((0, 0, 2, 3), 6),
    ((1, 1, 1, 5), 0),  # empty
    ((4, 4, 2, 2), 0),  # inverted on both sides: not 4
    ((4, 0, 2, 5), 0),
  ],
)
def test_area(box, expected):
  assert ops.area(np.float32(box)) == expected


@pytest.mark.parametrize(
  ("a", "b", "iou", "ioa"),
  [
    ((0, 0, 2, 2), (0, 0, 2, 2), 1, 1),
    ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, 1 / 4),
    ((0, 0, 2, 2), (0, 0, 4, 4), 1 / 4, 1),
    ((0, 0, 4, 4), (0, 0, 2, 2), 1 / 4, 1 / 4),
    ((0, 0, 2, 2), (2, 0, 4, 2), 0, 0),  # a shared edge
    ((0, 0, 2, 2), (5, 5, 6, 6), 0, 0),
    ((1, 1, 1, 1), (1, 1, 1, 1), 0, 0),  # empty
    ((3, 3, 1, 1), (0, 0, 4, 4), 0, 0),  # inverted
  ],
)
def test_overlaps_of_known_pairs(a, b, iou, ioa):
  a, b = np.float32([a]), np.float32([b])
  np.testing.assert_allclose(ops.iou(a, b), [[iou]], rtol=1e-6)
  np.testing.assert_allclose(ops.ioa(a, b), [[ioa]], rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(BOXES, BOXES)
def test_overlaps_match_float64(a, b):
  # Whole pixels: products are exact in float32, and so are their differences.
  a, b = np.round(a), np.round(b)
  iou, ioa = naive_overlaps(a, b)
  np.testing.assert_allclose(ops.iou(a, b), iou, rtol=1e-6)
  np.testing.assert_allclose(ops.ioa(a, b), ioa, rtol=1e-6)


@pytest.mark.parametrize("height", [10, np.float32(10)])
def test_clip(height):
  boxes = np.float32([[-3, -4, 5, 50], [1, 2, 3, 4], [20, 30, 40, 50]])
  expected = [[0, 0, 5, 20], [1, 2, 3, 4], [10, 20, 10, 20]]
  np.testing.assert_array_equal(ops.clip(boxes, height, 20), expected)


def test_encode_known_box():
  # 10 down and 5 left of an anchor of 20 x 10; twice as high, half as wide.
  anchor, box = np.float32([40, 40, 60, 50]), np.float32([40, 37.5, 80, 42.5])
  expected = np.float32([0.5, -0.5, np.log(2), -np.log(2)])
  np.testing.assert_allclose(ops.encode(box, anchor), expected, atol=1e-6)
  np.testing.assert_allclose(
    ops.encode(box, anchor, WEIGHTS), expected * WEIGHTS, rtol=1e-6
  )
  np.testing.assert_allclose(ops.decode(expected, anchor), box, rtol=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), WEIGHTS])
def test_code_matches_float64_and_inverts(weights):
  rng = np.random.default_rng(0)
  boxes, anchors = random_boxes(rng, 60), random_boxes(rng, 60)
  code = ops.encode(boxes, anchors, weights)
  expected = [
    naive_encode(b, a, weights) for b, a in zip(boxes, anchors, strict=True)
  ]
  np.testing.assert_allclose(code, expected, rtol=1e-4, atol=1e-4)
  # Sides grow less than 62.5-fold by an anchor of at least 4 pixels.
  anchors[:, 2:] += 3
  code = ops.encode(boxes, anchors, weights)
  np.testing.assert_allclose(
    ops.decode(code, anchors, weights), boxes, atol=1e-3
  )


def test_decode_limits_growth():
  anchor = np.float32([0, 0, 2, 4])
  box = ops.decode(np.float32([0, 0, 50, 5]), anchor)
  np.testing.assert_allclose(
    box, [1 - 62.5, 2 - 125, 1 + 62.5, 2 + 125], rtol=1e-5
  )


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
def test_code_takes_any_leading_shape(shape):
  boxes = np.broadcast_to(np.float32([1, 2, 3, 5]), shape)
  assert ops.encode(boxes, boxes).shape == shape
  np.testing.assert_allclose(ops.decode(np.zeros(shape), boxes), boxes)


@settings(max_examples=50, deadline=None)
@given(BOXES, BOXES)
def test_code_is_finite_for_degenerate_boxes(boxes, anchors):
  boxes[0] = anchors[0] = 0  # padding
  anchors[1] = [5, 5, 5, 5]
  code = ops.encode(boxes, anchors)
  assert np.isfinite(code).all()
  assert np.isfinite(ops.decode(code, anchors)).all()
  assert np.isfinite(ops.iou(boxes, anchors)).all()


@pytest.mark.parametrize("function", [ops.encode, ops.decode, ops.iou, ops.ioa])
def test_gradients_are_finite_for_degenerate_boxes(function):
  boxes = np.float32([[0, 0, 0, 0], [3, 3, 1, 1], [1, 1, 2, 2]])
  gradients = jax.grad(lambda a, b: function(a, b).sum(), (0, 1))(boxes, boxes)
  assert all(np.isfinite(g).all() for g in gradients)
