"""Which elements are right, by score: against COCO's library and by hand."""

import collections

import numpy as np
import pytest

from must_jax.fields import KINDS
from must_jax.types import IGNORE_LABEL

CLASSES = ["ant", "bee", "cow"]


def make_field(kind):
  return KINDS[kind].of({"kind": kind, "classes": CLASSES})


def random_image(rng):
  """Objects, and boxes near them or anywhere, with scores."""
  count = rng.integers(0, 5)
  truth = {
    "boxes": np.sort(rng.uniform(0, 1, (count, 2, 2)), 1).reshape(-1, 4),
    "classes": rng.integers(0, 3, count),
    "ignore": rng.random(count) < 0.25,
  }
  near = np.repeat(truth["boxes"], 2, 0)
  near = near + rng.normal(0, 0.04, near.shape)
  near = np.sort(np.clip(near, 0, 1).reshape(-1, 2, 2), 1).reshape(-1, 4)
  other = np.sort(rng.uniform(0, 1, (3, 2, 2)), 1).reshape(-1, 4)
  classes = np.r_[np.repeat(truth["classes"], 2), rng.integers(0, 3, 3)]
  wrong = rng.random(len(classes)) < 0.1
  found = {
    "boxes": np.r_[near, other],
    "classes": np.where(wrong, rng.integers(0, 3, len(classes)), classes),
    "scores": rng.random(len(classes)).astype(np.float32),
  }
  return found, truth


def coco_matches(images):
  """{(class, score): right}, as pycocotools matches at an IoU of 0.5."""
  coco = pytest.importorskip(
    "pycocotools.coco", reason="pip install -e '.[dev]'"
  )
  from pycocotools.cocoeval import COCOeval

  def xywh(box):
    y0, x0, y1, x1 = (100 * side for side in box.tolist())
    return [x0, y0, x1 - x0, y1 - y0]

  annotations, results = [], []
  for i, (found, truth) in enumerate(images):
    for box, k, ignore in zip(*truth.values(), strict=True):
      box = xywh(box)
      annotations.append(
        {"id": len(annotations) + 1, "image_id": i, "category_id": int(k)}
        | {"bbox": box, "area": box[2] * box[3], "iscrowd": int(ignore)}
      )
    results += [
      {"image_id": i, "category_id": int(k), "bbox": xywh(box), "score": s}
      for box, k, s in zip(*found.values(), strict=True)
    ]
  truth = coco.COCO()
  truth.dataset = {
    "images": [{"id": i} for i in range(len(images))],
    "categories": [{"id": k} for k in range(3)],
    "annotations": annotations,
    "info": {},
  }
  truth.createIndex()
  run = COCOeval(truth, truth.loadRes(results), "bbox")
  run.params.iouThrs = np.array([0.5])
  run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
  run.evaluate()
  matches, positives = {}, collections.Counter()
  for image in filter(None, run.evalImgs):
    k = image["category_id"]
    positives[k] += int((~image["gtIgnore"].astype(bool)).sum())
    for score, partner, ignored in zip(
      image["dtScores"],
      image["dtMatches"][0],
      image["dtIgnore"][0],
      strict=True,
    ):
      matches[k, score] = None if ignored else partner > 0
  return matches, positives


def test_boxes_are_matched_as_coco_matches_them(capsys):
  rng = np.random.default_rng(0)
  images = [random_image(rng) for _ in range(60)]
  expected, positives = coco_matches(images)
  found, total = {}, 0
  for labels, truth in images:
    outcomes = make_field("Boxes").score_outcomes(labels, truth)
    total = total + outcomes.positives
    for k, score, right, wrong in zip(*outcomes[:4], strict=True):
      assert right + wrong <= 1
      found[k, score] = bool(right) if right + wrong else None
  assert found == expected
  assert total.tolist() == [positives[k] for k in range(3)]
  kinds = collections.Counter(found.values())
  assert min(kinds[None], kinds[True], kinds[False]) > 10


def test_pixels_are_right_or_wrong_where_the_truth_is_known():
  rng = np.random.default_rng(0)
  truth = {"classes": rng.choice([0, 1, 2, IGNORE_LABEL], (6, 8))}
  codes = rng.integers(200, 205, (6, 8))
  found = {
    "classes": rng.choice(
      [0, 1, 2, IGNORE_LABEL], (6, 8), p=[0.4, 0.3, 0.2, 0.1]
    ),
    "confidence": (codes / 255).astype(np.float32),
  }
  outcomes = make_field("ClassMap").score_outcomes(found, truth)
  counts = collections.Counter()
  for k, code, true in zip(
    found["classes"].flat, codes.flat, truth["classes"].flat, strict=True
  ):
    if IGNORE_LABEL not in (k, true):
      counts[int(k), np.float32(code) / np.float32(255), k == true] += 1
  assert counts == +collections.Counter(
    {
      (int(k), score, is_right): int(count)
      for k, score, *both in zip(*outcomes[:4], strict=True)
      for is_right, count in zip((True, False), both, strict=True)
    }
  )
  assert outcomes.positives.tolist() == [
    (truth["classes"] == k).sum() for k in range(3)
  ]


def test_labels_without_scores_are_sure():
  rng = np.random.default_rng(0)
  found, truth = random_image(rng)
  del found["scores"]
  outcomes = make_field("Boxes").score_outcomes(found, truth)
  assert (outcomes.scores == 1).all() and len(outcomes.scores)
  label = {"classes": np.array([[0, 1]])}
  outcomes = make_field("ClassMap").score_outcomes(label, label)
  assert outcomes.scores.tolist() == outcomes.right.tolist() == [1, 1]


def test_maps_of_different_sizes_are_brought_together():
  found = {
    "classes": np.array([[0, 1]]),
    "confidence": np.float32([[0.6, 0.8]]),
  }
  truth = {"classes": np.array([[0, 2, 1, IGNORE_LABEL]])}
  outcomes = make_field("ClassMap").score_outcomes(found, truth)
  assert outcomes.classes.tolist() == [0, 1]
  assert outcomes.scores.tolist() == pytest.approx([0.6, 0.8])
  assert (outcomes.right.tolist(), outcomes.wrong.tolist()) == ([1, 1], [1, 0])


def test_other_kinds_have_no_threshold():
  for kind in sorted(KINDS):
    classes = {"classes": CLASSES} if KINDS[kind].has_classes else {}
    field = KINDS[kind].of({"kind": kind, **classes})
    assert field.has_threshold == (kind in ("Boxes", "ClassMap"))
    if not field.has_threshold:
      with pytest.raises(NotImplementedError):
        field.score_outcomes({}, {})


@pytest.mark.parametrize("kind", ["Boxes", "ClassMap", "ClassVector"])
def test_what_is_stored_is_decoded(kind):
  from must_jax.storage import records

  rng = np.random.default_rng(0)
  label = {
    "Boxes": random_image(rng)[0],
    "ClassMap": {
      "classes": rng.integers(0, 3, (4, 5)),
      "confidence": (rng.integers(0, 256, (4, 5)) / 255).astype(np.float32),
    },
    "ClassVector": {
      "classes": np.array([2, 0]),
      "probs": np.float32([0.25, 0.75]),
    },
  }[kind]
  field = make_field(kind)
  description = {"x": field.describe(CLASSES)}
  record = records.encode_labels("a", "ok", {"x": label}, fields=description)
  found = records.stored_labels(record, {"x": field, "y": field})
  assert {*found} == {"x"}
  for name, array in label.items():
    np.testing.assert_allclose(found["x"][name], array, atol=1e-7)
  assert records.key_of(record) == b"a"
