"""Alarms: labels that cannot be right, and what to do; ordinary labels."""

import json

import numpy as np
import pytest

from must_jax.fields import KINDS, alarms, warnings
from must_jax.fields.statistics import accumulate
from must_jax.types import IGNORE_LABEL

CLASSES = ["ant", "bee", "cow"]


def describe(kind):
  return {"kind": kind} | (
    {"classes": CLASSES} if KINDS[kind].has_classes else {}
  )


def found(kind, labels, min_score=None, forget=()):
  """Alarms of a set with these labels."""
  field, sums = KINDS[kind].of(describe(kind)), {}
  for label in labels:
    accumulate(sums, {"f": field.sums(label)})
  for name in forget:  # as by an earlier version
    del sums["f"][name]
  sums = json.loads(json.dumps(sums))
  return alarms({"f": describe(kind)}, sums, min_score)


def ordinary(kind, count=40, seed=0):
  rng = np.random.default_rng(seed)
  for i in range(count):
    if kind == "Boxes":
      low = rng.uniform(0, 0.5, (5, 2))
      sides = np.exp(rng.uniform(-3, -0.7, (5, 2)))
      yield {
        "boxes": np.concatenate([low, low + sides], 1),
        "classes": rng.integers(0, 3, 5),
        "scores": rng.uniform(0.05, 1, 5),
      }
    elif kind == "ClassVector":
      yield {"classes": np.arange(3), "probs": rng.dirichlet(np.ones(3))}
    elif kind == "ClassMap":
      split = rng.integers(0, 8)  # none of one class, some of one
      classes = np.where(np.arange(8) < split, i % 3, (i + 1) % 3)
      yield {
        "classes": np.tile(classes, (8, 1)),
        "confidence": rng.uniform(0.3, 1, (8, 8)),
      }
    elif kind == "ValueMap":
      yield {"values": rng.uniform(1, 5) * (1 + np.outer(*[np.arange(8)] * 2))}
    else:
      vectors = rng.normal(size=(8, 8, 3))
      yield {"vectors": vectors / np.linalg.norm(vectors, axis=-1)[..., None]}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_ordinary_labels_raise_none(kind):
  for seed in range(3):
    assert found(kind, ordinary(kind, seed=seed)) == []


def changed(kind, **arrays):
  return [label | arrays for label in ordinary(kind)]


def of_one_size(label, spread=0.0):
  rng = np.random.default_rng(len(label["boxes"]))
  low = label["boxes"][:, :2]
  sides = np.array([0.3, 0.2]) * np.exp(rng.normal(0, spread, low.shape))
  return label | {"boxes": np.concatenate([low, low + sides], 1)}


FLAT = {"values": np.full((8, 8), 3.0)}
UP = {"vectors": np.tile([0.0, -1.0, 0.0], (8, 8, 1))}
MAP = {"classes": np.full((8, 8), 1), "confidence": np.full((8, 8), 0.9)}
PARTLY = np.where(np.eye(8, dtype=bool), 1, IGNORE_LABEL)
NOTHING = np.full((8, 8), IGNORE_LABEL)

WRONG = {
  "one class of boxes": (
    "Boxes",
    changed("Boxes", classes=np.full(5, 1)),
    "all 200 boxes are of class 'bee'",
    "checkpoint has the classes",
  ),
  "one class of images": (
    "ClassVector",
    changed("ClassVector", probs=np.array([0.1, 0.2, 0.7])),
    "all 40 images are of class 'cow'",
    "checkpoint has the classes",
  ),
  "one class of pixels": (
    "ClassMap",
    [{"classes": PARTLY}] * 9 + [{"classes": NOTHING}],
    "all 72 pixels are of class 'bee'",
    "checkpoint has the classes",
  ),
  "maps of one class": (
    "ClassMap",
    [MAP] * 12,
    "each of the 12 labels has one value all over",
    "Train the teacher longer",
  ),
  "boxes of one size": (
    "Boxes",
    [of_one_size(label) for label in ordinary("Boxes")],
    "nearly all 200 boxes have one size and one shape",
    "Train the teacher longer",
  ),
  "boxes of nearly one size": (
    "Boxes",
    [of_one_size(label, 0.005) for label in ordinary("Boxes")],
    "nearly all 200 boxes have one size and one shape",
    "Train the teacher longer",
  ),
  "constant depth": (
    "ValueMap",
    [FLAT] * 12,
    "each of the 12 labels has one value all over",
    "Train the teacher longer",
  ),
  "mostly constant depth": (
    "ValueMap",
    [FLAT] * 30 + [*ordinary("ValueMap", 20)],
    "30 of the 50 maps have one value all over",
    "Train the teacher longer",
  ),
  "mostly constant normals": (
    "VectorMap",
    [UP] * 30 + [*ordinary("VectorMap", 20)],
    "30 of the 50 maps have one value all over",
    "Train the teacher longer",
  ),
  "no boxes": (
    "Boxes",
    [{"boxes": np.zeros((0, 4)), "classes": np.zeros(0, int)}] * 12,
    "all 12 labels are empty",
    "lower from which score it predicts",
  ),
  "no boxes above the threshold": (
    "Boxes",
    changed("Boxes", scores=np.full(5, 0.4)),
    "of which 0 (0.0%) have a score of 0.5 or more",
    "Lower tasks.NAME.min_score (`must-jax thresholds` proposes scores)",
  ),
  "no pixels above the threshold": (
    "ClassMap",
    changed("ClassMap", confidence=np.full((8, 8), 0.4)),
    "of which 0 (0.0%) have a score of 0.5 or more",
    "Lower tasks.NAME.min_score",
  ),
  "no labels": ("Boxes", [], "not one image has a label", "Check what"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_and_what_to_do(name):
  kind, labels, reason, advice = WRONG[name]
  (alarm,) = found(kind, labels)
  assert alarm.startswith("f: ") and reason in alarm and advice in alarm


def test_thresholds_by_class_can_leave_nothing_too():
  labels = changed("Boxes", scores=np.full(5, 0.6))
  assert found("Boxes", labels) == []
  high = dict.fromkeys(CLASSES, 0.7)
  (alarm,) = found("Boxes", labels, high)
  assert "of which 0 (0.0%) have" in alarm
  assert found("Boxes", labels, high | {"ant": 0.5}) == []


def test_few_labels_prove_nothing():
  one_size = [of_one_size(label) for label in ordinary("Boxes", 19)]
  assert found("Boxes", one_size) == []  # 95 boxes
  one_class = changed("Boxes", classes=np.full(5, 1))[:19]
  assert found("Boxes", one_class) == []
  assert found("ValueMap", [FLAT] * 5 + [*ordinary("ValueMap", 4)]) == []


def test_one_size_of_several_shapes_is_ordinary():
  labels = [of_one_size(label) for label in ordinary("Boxes")]
  for label in labels[:20]:  # the same area
    low = label["boxes"][:, :2]
    label["boxes"] = np.concatenate([low, low + [0.2, 0.3]], 1)
  assert found("Boxes", labels) == []


def test_sums_of_earlier_versions_and_of_both():
  labels = [of_one_size(label) for label in ordinary("Boxes")]
  assert found("Boxes", labels, forget=("areas", "aspects")) == []
  field, total = KINDS["Boxes"].of(describe("Boxes")), {}
  for i, label in enumerate(labels):
    sums = field.sums(label)
    if i < 10:
      del sums["areas"], sums["aspects"]
    accumulate(total, {"f": sums})
  assert total["f"]["elements"] == 200
  assert sum(total["f"]["areas"].values()) == 150
  (alarm,) = alarms({"f": describe("Boxes")}, total)
  assert "nearly all 150 boxes" in alarm


def test_sizes_are_counted_as_areas_and_shapes():
  field = KINDS["Boxes"].of(describe("Boxes"))
  boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.25], [0, 0, 0.5, 0.5]])
  sums = field.sums({"boxes": boxes, "classes": np.zeros(3, int)})
  assert sums["areas"] == {"-24": 1, "-16": 2}
  assert sums["aspects"] == {"0": 2, "8": 1}


def test_imports_are_not_told_to_train_a_teacher():
  field, sums = KINDS["ValueMap"].of(describe("ValueMap")), {}
  for _ in range(12):
    accumulate(sums, {"f": field.sums(FLAT)})
  (line, *_) = warnings({"f": describe("ValueMap")}, sums)
  assert "one value all over" in line and "eacher" not in line
