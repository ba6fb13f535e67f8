"""What is usual in labels; tests/lab/test_floors.py has those of images."""

import numpy as np
import pytest

from must_jax.fields import Boxes, ClassMap, ClassVector, ValueMap, VectorMap
from must_jax.types import IGNORE_LABEL


def test_class_vector():
  """The order of all classes counts, for the five best."""
  labels = [
    {"probs": np.eye(4, dtype=np.float32)[k]} for k in (2, 1, 2, 3, 3, 2)
  ]
  found = ClassVector(4).constant(iter(labels))
  assert np.argsort(-found["probs"], kind="stable").tolist() == [2, 3, 1, 0]
  assert found["probs"].sum() == pytest.approx(1)


def test_boxes_are_none():
  found = Boxes(3, max_boxes=5).constant(iter([{}]))
  assert {k: v.shape for k, v in found.items()} == {
    **dict.fromkeys(("classes", "scores", "ignore", "valid"), (5,)),
    "boxes": (5, 4),
  }
  assert not found["valid"].any()


def test_class_map():
  unknown = IGNORE_LABEL
  labels = [
    {"classes": np.array([[0, 1, unknown, unknown]])},
    {"classes": np.array([[2, 1, unknown, unknown]])},
    {"classes": np.array([[2, unknown, 0, unknown]])},
  ]
  found = ClassMap(3).constant(iter(labels))["classes"]
  # Of all there are two of each class: the lowest.
  assert found.tolist() == [[2, 1, 0, 0]]


def test_nothing_is_known_of_a_map():
  unknown = {
    "classes": np.full((2, 2), IGNORE_LABEL),
    "values": np.zeros((2, 2)),
    "vectors": np.zeros((2, 2, 3)),
    "valid": np.zeros((2, 2), bool),
  }
  for field in (ClassMap(3), ValueMap(), VectorMap()):
    (found,) = field.constant(iter([unknown])).values()
    assert np.isfinite(found).all()


@pytest.mark.parametrize("transform", [np.log, np.reciprocal, np.array])
def test_value_map_is_the_same_on_any_scale(transform):
  values = np.random.default_rng(0).uniform(0.5, 5, (7, 3, 4))
  valid = np.ones((3, 4), bool)
  valid[0, 0] = False

  def usual(maps):
    labels = ({"values": x, "valid": valid} for x in maps)
    return ValueMap("metres").constant(labels)["values"]

  found = usual(values)
  expected = transform(found)
  assert usual(transform(values))[valid] == pytest.approx(expected[valid])
  assert found[2, 1] == sorted(values[:, 2, 1])[3]
  assert found[0, 0] == pytest.approx(np.median(values[:, valid]))


def test_vector_map():
  x, y, z = np.eye(3)
  labels = [
    {
      "vectors": np.array([[x, z, x, z]]),
      "valid": np.array([[1, 1, 1, 0]]) > 0,
    },
    {
      "vectors": np.array([[y, z, -x, z]]),
      "valid": np.array([[1, 1, 1, 0]]) > 0,
    },
  ]
  found = VectorMap().constant(iter(labels))["vectors"]
  overall = (x + y + 2 * z) / np.sqrt(6)
  # Opposite directions have no mean, so that of all pixels holds.
  expected = [(x + y) / np.sqrt(2), z, overall, overall]
  assert found[0] == pytest.approx(np.array(expected))
