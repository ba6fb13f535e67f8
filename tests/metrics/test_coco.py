import contextlib
import io
import json
import os
import pathlib

import numpy as np
import pytest

from must_jax.metrics import coco

NAMES = ("cat", "dog", "owl")


def pycocotools_numbers(ground_truth, detections):
  """The 12 numbers of the reference implementation."""
  api = pytest.importorskip("pycocotools.coco")
  cocoeval = pytest.importorskip("pycocotools.cocoeval")
  with contextlib.redirect_stdout(io.StringIO()):
    truth = api.COCO()
    truth.dataset = ground_truth
    truth.createIndex()
    run = cocoeval.COCOeval(truth, truth.loadRes(detections), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
  return run.stats


def to_coco(batches):
  """The batches of `detection_batches` in COCO's format, box by box."""
  images, annotations, detections = [], [], []
  for prediction, label, batch in batches:
    objects = label
    for b in range(len(batch["valid"])):
      image_id = int(batch["position"][b]) + 100
      images.append({"id": image_id, "height": 104, "width": 224})
      for g in np.flatnonzero(objects["valid"][b]):
        y0, x0, y1, x1 = (float(v) for v in objects["boxes"][b, g])
        box = [4 * x0, 2 * y0, 4 * (x1 - x0), 2 * (y1 - y0)]
        annotations.append(
          {
            "id": len(annotations) + 1,
            "image_id": image_id,
            "category_id": int(objects["classes"][b, g]),
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": int(objects["ignore"][b, g]),
          }
        )
      for d in np.flatnonzero(prediction["valid"][b]):
        y0, x0, y1, x1 = (
          min(max(float(v), 0), limit)
          for v, limit in zip(
            prediction["boxes"][b, d], (52, 56, 52, 56), strict=True
          )
        )
        detections.append(
          {
            "image_id": image_id,
            "category_id": int(prediction["classes"][b, d]),
            "bbox": [4 * x0, 2 * y0, 4 * (x1 - x0), 2 * (y1 - y0)],
            "score": float(prediction["scores"][b, d]),
          }
        )
  categories = [{"id": k, "name": name} for k, name in enumerate(NAMES)]
  truth = {
    "images": images,
    "annotations": annotations,
    "categories": categories,
  }
  return truth, detections


@pytest.mark.parametrize("seed", range(3))
def test_matches_pycocotools(detection_batches, assert_streams, seed):
  batches = list(detection_batches(np.random.default_rng(seed)))
  result = assert_streams(lambda: coco.CocoAP(NAMES), batches)
  truth, detections = to_coco(batches)
  expected = pycocotools_numbers(truth, detections)
  assert 0.1 < result["AP"] < 0.9
  np.testing.assert_allclose(
    [result[name] for name in coco.NUMBERS],
    # No box is large: pycocotools says -1, we say 0.
    np.maximum(expected, 0),
    atol=1e-9,
  )
  np.testing.assert_allclose(
    np.mean([result[f"AP/{name}"] for name in NAMES]), result["AP"]
  )


def test_matches_published_numbers():
  """`MUST_JAX_ORACLE_COCO` names a folder with COCO's own test files:

  instances_val2014_100.json, instances_val2014_fakebbox100_results.json (from
  the COCO API) and expected.json, {"names": [...], "bbox": [...]}.
  """
  folder = os.environ.get("MUST_JAX_ORACLE_COCO")
  if not folder:
    pytest.skip("MUST_JAX_ORACLE_COCO is not set")

  def load(name):
    return json.loads((pathlib.Path(folder) / name).read_text())

  result = coco.evaluate(
    load("instances_val2014_100.json"),
    load("instances_val2014_fakebbox100_results.json"),
  )
  expected = load("expected.json")
  np.testing.assert_allclose(
    [result[name] for name in expected["names"]], expected["bbox"], atol=1e-6
  )


def scene(gt, detections, size=200):
  """One image: (class, box[, crowd]) and (class, box, score), boxes xywh."""
  truth = {
    "images": [{"id": 0, "height": size, "width": size}],
    "annotations": [
      {
        "id": 0,  # COCO starts at 1, others do not
        "image_id": 0,
        "category_id": k,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": int(bool(crowd)),
      }
      for k, box, *crowd in gt
    ],
    "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES)],
  }
  detections = [
    {"image_id": 0, "category_id": k, "bbox": box, "score": score}
    for k, box, score in detections
  ]
  return coco.evaluate(truth, detections)


BOX, FAR = [10, 10, 40, 40], [100, 100, 40, 40]
LITERAL = [
  # truth, detections, AP, AP50, AR100
  ([(0, BOX)], [(0, BOX, 0.9)], 1.0, 1.0, 1.0),
  ([(0, BOX)], [(1, BOX, 0.9)], 0.0, 0.0, 0.0),  # wrong class
  ([(0, BOX)], [(0, BOX, 0.9), (0, FAR, 0.5)], 1.0, 1.0, 1.0),
  ([(0, BOX)], [(0, BOX, 0.5), (0, FAR, 0.9)], 0.5, 0.5, 1.0),
  # 6 of 10 thresholds lie up to IoU 0.75.
  ([(0, BOX)], [(0, [10, 10, 40, 30], 0.9)], 0.6, 1.0, 0.6),
  # Half the boxes found: recalls 0, .01, ..., .5 are 51 of 101 points.
  ([(0, BOX), (0, FAR)], [(0, BOX, 0.9)], 51 / 101, 51 / 101, 0.5),
  # A crowd swallows a detection inside it.
  (
    [(0, BOX), (0, [90, 90, 80, 80], True)],
    [(0, FAR, 0.95), (0, BOX, 0.9)],
    1.0,
    1.0,
    1.0,
  ),
  # The mean is over classes that have ground truth.
  ([(0, BOX), (1, FAR)], [(0, BOX, 0.9), (2, FAR, 0.9)], 0.5, 0.5, 0.5),
  ([(0, BOX)], [], 0.0, 0.0, 0.0),
  ([], [(0, BOX, 0.9)], 0.0, 0.0, 0.0),
  ([], [], 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("gt", "detections", "ap", "ap50", "ar"), LITERAL)
def test_literal(gt, detections, ap, ap50, ar):
  result = scene(gt, detections)
  np.testing.assert_allclose(
    [result["AP"], result["AP50"], result["AR100"]], [ap, ap50, ar], atol=1e-9
  )
  assert {name for name in NAMES if f"AP/{name}" in result} == {
    NAMES[k] for k, _, *crowd in gt if not crowd
  }


def test_sizes():
  """Small up to 32^2, medium up to 96^2 pixels of the stored image."""
  boxes = [[0, 0, 20, 20], [30, 30, 60, 60], [0, 100, 110, 99]]
  for found, name in enumerate(("APs", "APm", "APl")):
    result = scene([(0, box) for box in boxes], [(0, boxes[found], 0.9)])
    for other in ("APs", "APm", "APl"):
      assert result[other] == float(other == name)


def test_nothing_at_all():
  assert coco.CocoAP(NAMES).compute() == dict.fromkeys(coco.NUMBERS, 0.0)


def test_leaves_its_inputs_alone_and_is_silent(capfd):
  truth = {
    "images": [{"id": 3, "height": 9, "width": 9}],
    "annotations": [
      {
        "id": 5,
        "image_id": 3,
        "category_id": 1,
        "bbox": [0, 0, 4, 4],
        "area": 16,
        "iscrowd": 0,
      }
    ],
    "categories": [{"id": 1, "name": "cat"}],
  }
  detections = [
    {"image_id": 3, "category_id": 1, "bbox": [0, 0, 4, 4], "score": 0.5}
  ]
  before = json.dumps([truth, detections])
  assert coco.evaluate(truth, detections)["AP"] == pytest.approx(1)
  assert json.dumps([truth, detections]) == before
  assert capfd.readouterr() == ("", "")


def test_equal_scores_count_in_the_order_of_the_data_set(detection_batches):
  """Otherwise the result would depend on which host saw which image."""
  batches = list(detection_batches(np.random.default_rng(5)))
  results = []
  for order in (batches, batches[::-1]):
    metric = coco.CocoAP(NAMES)
    for prediction, label, batch in order:
      tied = np.full_like(prediction["scores"], 0.5)
      metric.update({**prediction, "scores": tied}, label, batch)
    results.append(metric.compute())
  assert results[0] == results[1]


def test_skips(detection_batches, assert_skips):
  batch = next(detection_batches(np.random.default_rng(1)))
  assert_skips(lambda: coco.CocoAP(NAMES), *batch)
