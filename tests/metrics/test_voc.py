import numpy as np
import pytest

from must_jax.metrics import voc

NAMES = ("cat", "dog", "owl")

AP_LITERAL = [
  # right, number of boxes, area, 11 points
  ([1], 1, 1.0, 1.0),
  ([0], 1, 0.0, 0.0),
  ([], 1, 0.0, 0.0),
  ([0, 1], 1, 0.5, 0.5),
  ([1, 0], 1, 1.0, 1.0),
  # Precision 1 up to recall 1/2: points 0 to 0.5 are 6 of 11.
  ([1], 2, 0.5, 6 / 11),
  # Precision 1 at recall 1/2, 2/3 at recall 1.
  ([1, 0, 1], 2, (1 + 2 / 3) / 2, (6 + 5 * 2 / 3) / 11),
  # The envelope lifts the first half to 2/3.
  ([0, 1, 1], 2, 2 / 3, 2 / 3),
  # Recall is exactly 0.3: 4 of 11 points.
  ([1, 1, 1], 10, 0.3, 4 / 11),
]


@pytest.mark.parametrize(("right", "num_gt", "area", "points"), AP_LITERAL)
def test_average_precision_literal(right, num_gt, area, points):
  right = np.array(right, bool)
  np.testing.assert_allclose(voc.average_precision(right, num_gt), area)
  np.testing.assert_allclose(voc.eleven_point_precision(right, num_gt), points)


def update_args(gt, detections):
  """One image: (class, box[, difficult]) and (class, box, score), yxyx."""
  gt = [(k, box, bool(difficult)) for k, box, *difficult in gt]
  return (
    {
      "boxes": np.array([[d[1] for d in detections]], np.float32).reshape(
        1, -1, 4
      ),
      "scores": np.array([[d[2] for d in detections]], np.float32),
      "classes": np.array([[d[0] for d in detections]], np.int32),
      "valid": np.ones((1, len(detections)), bool),
    },
    {
      "boxes": np.array([[g[1] for g in gt]], np.float32).reshape(1, -1, 4),
      "classes": np.array([[g[0] for g in gt]], np.int32),
      "ignore": np.array([[g[2] for g in gt]], bool),
      "valid": np.ones((1, len(gt)), bool),
      "present": np.ones(1, bool),
    },
    {
      "valid": np.ones(1, bool),
      "content_size": np.full((1, 2), 200, np.float32),
      "original_size": np.full((1, 2), 200, np.float32),
      "position": np.zeros(1, np.int32),
    },
  )


BOX, FAR = [10, 10, 50, 50], [100, 100, 140, 140]
MATCH_LITERAL = [
  # truth, detections, AP50
  ([(0, BOX)], [(0, BOX, 0.9)], 1.0),
  ([(0, BOX)], [(1, BOX, 0.9)], 0.0),
  ([(0, BOX)], [(0, [10, 10, 50, 30], 0.9)], 1.0),  # IoU 0.5
  ([(0, BOX)], [(0, [10, 10, 50, 29], 0.9)], 0.0),
  # The second detection of the same box is wrong, and costs the third.
  (
    [(0, BOX), (0, FAR)],
    [(0, BOX, 0.9), (0, BOX, 0.8), (0, FAR, 0.7)],
    (1 + 2 / 3) / 2,
  ),
  # Difficult boxes: need not be found, and finding them is no mistake.
  ([(0, BOX), (0, FAR, True)], [(0, BOX, 0.5)], 1.0),
  (
    [(0, BOX), (0, FAR, True)],
    [(0, FAR, 0.9), (0, FAR, 0.8), (0, BOX, 0.5)],
    1.0,
  ),
  # Unlike a COCO crowd, a difficult box excuses by IoU only.
  (
    [(0, BOX), (0, FAR, True)],
    [(0, [100, 100, 115, 115], 0.9), (0, BOX, 0.5)],
    0.5,
  ),
  # The mean is over classes with boxes that are not difficult.
  ([(0, BOX), (1, FAR, True)], [(0, BOX, 0.9), (2, FAR, 0.9)], 1.0),
  ([(0, BOX), (1, FAR)], [(0, BOX, 0.9)], 0.5),
  ([(0, BOX)], [], 0.0),
  ([], [(0, BOX, 0.9)], 0.0),
  ([], [], 0.0),
]


@pytest.mark.parametrize(("gt", "detections", "expected"), MATCH_LITERAL)
def test_matching_literal(gt, detections, expected):
  metric = voc.VocAP(NAMES)
  metric.update(*update_args(gt, detections))
  result = metric.compute()
  np.testing.assert_allclose(result["AP50"], expected)
  assert {name for name in NAMES if f"AP50/{name}" in result} == {
    NAMES[k] for k, _, *difficult in gt if not difficult
  }


def iou(a, b):
  height = min(a[2], b[2]) - max(a[0], b[0])
  width = min(a[3], b[3]) - max(a[1], b[1])
  common = max(height, 0) * max(width, 0)
  areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
  return common / (sum(areas) - common)


def reference(batches, k):
  """(area, 11 points) of class k: all detections in one list, as in the kit."""
  truth, detections = {}, []
  for prediction, label, batch in batches:
    objects = label
    for b, image in enumerate(batch["position"]):
      truth[image] = [
        {
          "box": objects["boxes"][b, g] * (2, 4, 2, 4),
          "difficult": objects["ignore"][b, g],
          "taken": False,
        }
        for g in range(objects["valid"].shape[1])
        if objects["valid"][b, g] and objects["classes"][b, g] == k
      ]
      detections += [
        (
          prediction["scores"][b, d],
          image,
          np.clip(prediction["boxes"][b, d], 0, (52, 56, 52, 56))
          * (2, 4, 2, 4),
        )
        for d in range(prediction["valid"].shape[1])
        if prediction["valid"][b, d] and prediction["classes"][b, d] == k
      ]
  num_gt = sum(not t["difficult"] for image in truth.values() for t in image)
  curve, right, wrong = [], 0, 0
  for _, image, box in sorted(detections, key=lambda d: -d[0]):
    best = max(truth[image], key=lambda t: iou(t["box"], box), default=None)
    if best is None or iou(best["box"], box) < 0.5:
      wrong += 1
    elif best["difficult"]:
      continue
    elif best["taken"]:
      wrong += 1
    else:
      best["taken"] = True
      right += 1
    curve.append((right / num_gt, right / (right + wrong)))

  def precision_from(recall):
    return max((p for r, p in curve if r >= recall - 1e-12), default=0.0)

  # Precision is constant between the recalls that can be reached.
  area = sum(precision_from((i + 1) / num_gt) for i in range(num_gt)) / num_gt
  points = sum(precision_from(i / 10) for i in range(11)) / 11
  return area, points


@pytest.mark.parametrize("seed", range(4))
def test_matches_a_slow_reference(detection_batches, assert_streams, seed):
  batches = list(detection_batches(np.random.default_rng(seed)))
  result = assert_streams(lambda: voc.VocAP(NAMES), batches)
  areas, points = zip(*(reference(batches, k) for k in range(3)), strict=True)
  assert 0.2 < np.mean(areas) < 0.95
  np.testing.assert_allclose(
    [result[f"AP50/{name}"] for name in NAMES], areas, atol=1e-12
  )
  np.testing.assert_allclose(result["AP50"], np.mean(areas), atol=1e-12)
  np.testing.assert_allclose(
    result["AP50_11point"], np.mean(points), atol=1e-12
  )


def test_nothing_at_all():
  assert voc.VocAP(NAMES).compute() == {"AP50": 0.0, "AP50_11point": 0.0}


def test_skips(detection_batches, assert_skips):
  batch = next(detection_batches(np.random.default_rng(1)))
  assert_skips(lambda: voc.VocAP(NAMES), *batch)
