"""What is left of labels at a threshold: sums against reading itself."""

import json

import numpy as np
import pytest
import tensorflow as tf

from must_jax.fields import KINDS, alarms, kept_of, left
from must_jax.fields.statistics import accumulate
from must_jax.types import IGNORE_LABEL

CLASSES = ["ant", "bee", "cow"]
GRID = [i / 20 for i in range(20)]
EMPTY = {
  "bytes": tf.constant(b""),
  "float": tf.constant(0.0),
  "ints": tf.zeros([0], tf.int64),
  "floats": tf.zeros([0]),
}


def describe(kind):
  return {"kind": kind} | (
    {"classes": CLASSES} if KINDS[kind].has_classes else {}
  )


def random_scores(rng, shape):
  """Half of them at edges of the grid, where rounding decides."""
  scores = rng.random(shape)
  edges = rng.choice([*GRID, 1.0], shape)
  return np.where(rng.random(shape) < 0.5, edges, scores).astype(np.float32)


def make_label(kind, rng):
  count, size = rng.integers(0, 6), (4, 5)
  if kind == "Boxes":
    boxes = np.sort(rng.uniform(0.1, 0.9, (count, 2, 2)), 1).reshape(-1, 4)
    label = {"boxes": boxes, "classes": rng.integers(0, 3, count)}
    if rng.random() < 0.8:
      label["scores"] = random_scores(rng, count)
    return label
  if kind == "ClassMap":
    classes = rng.choice([0, 1, IGNORE_LABEL], size)
    return {"classes": classes, "confidence": random_scores(rng, size)}
  if kind == "ClassVector":
    return {"classes": np.arange(3), "probs": random_scores(rng, 3)}
  valid = rng.random(size) < 0.5
  if kind == "ValueMap":
    return {"values": rng.random(size), "valid": valid}
  vectors = rng.normal(size=(*size, 3))
  vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
  return {"vectors": vectors, "valid": valid}


def read(field, label, checked=False):
  """Class ids of what the field reads; 0 where it has no classes."""
  stored = {k: tf.constant(v) for k, v in field.encode(label).items()}
  features = {k: EMPTY[kind] for k, kind in field.features.items()} | stored
  features = {
    k: v[0] if field.features[k] == "float" and v.shape.rank else v
    for k, v in features.items()
  }
  said = {"present": tf.constant(True), "checked": tf.constant(checked)}
  arrays = field.parse("x", features | said, None)
  arrays = {k: v.numpy() for k, v in arrays.items()}
  if "probs" in arrays:
    told = arrays["probs"] >= 0.5
    told[np.argmax(arrays["probs"])] = True
    return np.flatnonzero(told)
  if "valid" in arrays:
    return np.zeros(arrays["valid"].sum(), int)
  classes = arrays["classes"].reshape(-1)
  return classes[classes != IGNORE_LABEL]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_left_is_what_is_read(kind):
  rng = np.random.default_rng(0)
  labels = [make_label(kind, rng) for _ in range(40)]
  unfiltered = KINDS[kind].of(describe(kind))
  sums = {}
  for label in labels:
    accumulate(sums, unfiltered.sums(label))
  sums = json.loads(json.dumps(sums))
  for min_score in [*GRID, 0.123, 0.5001, 0.97]:
    field = KINDS[kind].as_read(describe(kind), min_score)
    ids = np.concatenate([read(field, label) for label in labels])
    found = field.kept(sums)
    least, most = found.bounds
    assert least <= len(ids) <= most
    for k, (low, high) in found.by_class.items():
      assert low <= (ids == k).sum() <= high
    if min_score in GRID:
      assert least == most
      assert all(low == high for low, high in found.by_class.values())
    else:  # not more than a bin of the grid is uncertain
      wider = [
        KINDS[kind].as_read(describe(kind), edge).kept(sums).bounds[0]
        for edge in (
          np.floor(min_score * 20) / 20,
          np.ceil(min_score * 20) / 20,
        )
      ]
      assert wider[1] <= least and most <= wider[0]


@pytest.mark.parametrize("kind", ["Boxes", "ClassMap"])
def test_thresholds_by_class_are_those_of_each_class_alone(kind):
  rng = np.random.default_rng(1)
  labels = [make_label(kind, rng) for _ in range(20)]
  description = describe(kind)
  classes = description["classes"]
  named = {name: GRID[5 * k % len(GRID)] for k, name in enumerate(classes)}
  named["*"] = named.pop(classes[1])
  field = KINDS[kind].as_read(description, named)
  sums = {}
  for label in labels:
    accumulate(sums, field.sums(label))
  kept = field.kept(json.loads(json.dumps(sums)))
  for k, name in enumerate(classes):
    score = named.get(name, named["*"])
    one = KINDS[kind].as_read(description, score)
    alone = [read(one, label) == k for label in labels]
    found = [read(field, label) == k for label in labels]
    total = sum(f.sum() for f in found)
    assert total == sum(a.sum() for a in alone)
    assert total > 0 or (kind == "ClassMap" and k == 2)
    assert kept.by_class.get(k, (0, 0)) == (total, total)
    if kind == "Boxes":  # a picture and a file of results have the same
      left = [
        field.at_least(field.at_size(label, (8, 8)), field.min_score)
        for label in labels
      ]
      assert sum((x["classes"] == k).sum() for x in left) == total


@pytest.mark.parametrize("kind", ["Boxes", "ClassMap"])
def test_what_a_person_has_seen_is_read_whatever_its_score(kind):
  rng = np.random.default_rng(2)
  label = make_label(kind, rng)
  strict = KINDS[kind].as_read(describe(kind), 1.0)
  everything = KINDS[kind].of(describe(kind))
  assert len(read(strict, label)) < len(read(everything, label))
  np.testing.assert_array_equal(
    read(strict, label, checked=True), read(everything, label)
  )


def test_a_person_is_sure():
  label = make_label("Boxes", np.random.default_rng(3))
  field = KINDS["Boxes"].as_read(describe("Boxes"), 0.9)
  features = {k: tf.constant(v) for k, v in field.encode(label).items()}
  said = {"present": tf.constant(True), "checked": tf.constant(True)}
  scores = field.parse("x", features | said, None)["scores"].numpy()
  np.testing.assert_array_equal(scores, np.ones(len(label["classes"])))


def sums_of(scores, classes=None):
  boxes = np.tile([0, 0, 0.5, 0.5], (len(scores), 1))
  if classes is None:
    classes = np.zeros(len(scores), int)
  label = {"boxes": boxes, "classes": classes, "scores": np.array(scores)}
  return KINDS["Boxes"].of(describe("Boxes")).sums(label)


def test_nothing_left_is_an_alarm_that_tells_the_threshold():
  fields, sums = {"o": describe("Boxes")}, {"o": sums_of([0.1, 0.49, 0.3])}
  assert alarms(fields, sums) == [
    "o: 3 boxes in 1 labels, of which 0 (0.0%) have a score of 0.5 or"
    " more and are read; a student would learn nothing. Lower"
    " tasks.NAME.min_score (`must-jax thresholds` proposes scores), or train"
    " the teacher longer."
  ]
  assert alarms(fields, sums, 0.45) == []
  assert alarms(fields, {"o": sums_of([0.1, 0.5])}) == []


def test_a_manifest_tells_what_is_left_by_class():
  fields = {"o": describe("Boxes"), "d": describe("ValueMap")}
  sums = {
    "o": sums_of([0.9, 0.6, 0.2, 0.4], np.array([0, 0, 1, 0])),
    "d": KINDS["ValueMap"]().sums({"values": np.ones((2, 2))}),
  }
  assert left(fields, sums) == {
    "o": {"min_score": 0.5, "elements": 2, "classes": {"ant": 2, "bee": 0}}
  }
  assert left(fields, sums, 0.4)["o"]["classes"] == {"ant": 3, "bee": 0}


def test_few_are_noticed():
  def is_little(labels, stored, kept_of_them):
    scores = np.r_[np.full(kept_of_them, 0.9), np.full(stored, 0.1)]
    sums = sums_of(scores[:stored])
    return kept_of(describe("Boxes"), sums | {"examples": labels}).is_little

  assert is_little(1000, 2000, 99)
  assert not is_little(1000, 2000, 100)
  assert is_little(10, 2000, 19)
  assert not is_little(10, 2000, 20)


def test_lines_tell_each_class():
  sums = sums_of([0.9, 0.6, 0.2, 0.4], np.array([0, 0, 1, 0]))
  found = kept_of(describe("Boxes"), sums)
  assert str(found) == (
    "4 boxes in 1 labels, of which 2 (50.0%) have a score of 0.5 or more and"
    " are read"
  )
  text = "\n".join(found.lines(CLASSES))
  assert (
    "ant                                 3                2 (66.7%)" in text
  )
  assert "1 of the 3 classes do not occur" in text
  assert "nothing is left of bee" in text
  between = kept_of(describe("Boxes"), sums, 0.41)
  assert "of which 2 to 3 (50.0% to 75.0%) have" in str(between)
  assert "all of which are read" in str(kept_of(describe("Boxes"), sums, 0.0))


def test_sets_of_earlier_versions_tell_what_they_counted():
  sums = sums_of([0.95, 0.62, 0.2, 0.4], np.array([0, 0, 1, 0]))
  del sums["class_scores"]
  fields = {"o": describe("Boxes")}
  found = kept_of(fields["o"], sums)
  assert (found.bounds, found.by_class) == ((2, 2), None)
  assert kept_of(fields["o"], sums, 0.25).bounds == (3, 4)
  assert "not known" in "\n".join(found.lines(CLASSES))
  assert left(fields, {"o": sums}) == {}
  assert kept_of(fields["o"], sums, 0.99).bounds == (0, 1)
  assert alarms(fields, {"o": sums}, 0.99) == []
  assert kept_of(fields["o"], sums, 0.0).by_class == {0: (3, 3), 1: (1, 1)}
  accumulate(sums, sums_of([0.7]))  # a shard that this version has labelled
  found = kept_of(fields["o"], sums)
  assert (found.bounds, found.by_class) == ((3, 3), None)


def test_what_has_no_score_is_read():
  sums = (
    KINDS["Boxes"]
    .of(describe("Boxes"))
    .sums({"boxes": np.array([[0, 0, 1, 1]]), "classes": np.array([0])})
  )
  accumulate(sums, sums_of([0.2, 0.7], np.array([0, 1])))
  assert kept_of(describe("Boxes"), sums).by_class == {0: (1, 1), 1: (1, 1)}
