"""What agreeing means for each kind of field, against other ways to count."""

import itertools

import numpy as np
import pytest

from must_jax.fields import KINDS
from must_jax.metrics.depth import DepthError
from must_jax.types import IGNORE_LABEL

CLASSES = ["ant", "bee", "cow"]
SIZE = (6, 8)


def make_field(kind, **more):
  classes = {"classes": CLASSES} if KINDS[kind].has_classes else {}
  return KINDS[kind].of({"kind": kind, **classes, **more})


def make_label(kind, rng, near=None):
  """A label as it is parsed; with `near` one that is often the same."""
  if kind == "Boxes":
    count = rng.integers(0, 6)
    boxes = np.sort(rng.uniform(0, 1, (count, 2, 2)), 1).reshape(-1, 4)
    classes = rng.integers(0, 3, count)
    if near is not None:
      moved = near["boxes"] + rng.normal(0, 0.05, near["boxes"].shape)
      moved = np.sort(moved.reshape(-1, 2, 2), 1).reshape(-1, 4)
      boxes = np.r_[np.clip(moved, 0, 1), boxes[:2]]
      classes = np.r_[near["classes"], classes[:2]]
    return boxes_of(boxes, classes)
  if kind == "ClassVector":
    probs = rng.dirichlet(np.ones(3)).astype(np.float32)
    return {"probs": probs if near is None else (probs + near["probs"]) / 2}
  keep = rng.random(SIZE) < (0 if near is None else 0.5)
  if kind == "ClassMap":
    classes = rng.choice([0, 1, 2, IGNORE_LABEL], SIZE)
    return {
      "classes": np.where(keep, near["classes"], classes) if near else classes
    }
  valid = rng.random(SIZE) < 0.8
  if kind == "ValueMap":
    values = rng.uniform(0.1, 1, SIZE).astype(np.float32)
    if near is not None:
      values = np.where(keep, 3 * near["values"] + 1, 3 * values + 1)
    return {
      "values": np.where(valid, values, 0).astype(np.float32),
      "valid": valid,
    }
  vectors = rng.normal(size=(*SIZE, 3))
  if near is not None:
    vectors = np.where(keep[..., None], near["vectors"], vectors)
  vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
  return {"vectors": vectors.astype(np.float32), "valid": valid}


def boxes_of(boxes, classes, ignore=()):
  classes = np.asarray(classes, np.int32)
  flags = np.zeros(len(classes), bool)
  flags[list(ignore)] = True
  return {
    "boxes": np.asarray(boxes, np.float32).reshape(-1, 4),
    "classes": classes,
    "scores": np.ones(len(classes), np.float32),
    "ignore": flags,
  }


def pairs_of(kind, count=30):
  for seed in range(count):
    rng = np.random.default_rng(seed)
    first = make_label(kind, rng)
    yield first, make_label(kind, rng, first if seed % 3 else None)


def flipped(label):
  moved = dict(label)
  if "boxes" in label:
    y0, x0, y1, x1 = label["boxes"].T
    moved["boxes"] = np.stack([y0, 1 - x1, y1, 1 - x0], 1)
  elif "probs" not in label:
    moved = {name: array[:, ::-1] for name, array in label.items()}
  if "vectors" in label:
    moved["vectors"] = moved["vectors"] * np.float32([-1, 1, 1])
  return moved


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_invariances(kind):
  field, rng = make_field(kind), np.random.default_rng(0)
  shares = set()
  for first, second in pairs_of(kind):
    found = field.agreement(first, second)
    assert found == field.agreement(second, first)
    assert found == field.agreement(flipped(first), flipped(second))
    assert all(0 <= part <= of and of > 0 for part, of in found.values())
    for label in (first, second):
      assert all(a == b for a, b in field.agreement(label, label).values())
    shares |= {part / of for part, of in found.values()}
    if kind == "Boxes":
      order = rng.permutation(len(first["classes"]))
      mixed = {name: array[order] for name, array in first.items()}
      assert found == field.agreement(mixed, second)
  assert len(shares) >= 2


@pytest.mark.parametrize("kind", ["ClassMap", "VectorMap"])
def test_counts_of_parts_add_up(kind):
  field, pairs = make_field(kind), list(pairs_of(kind, 5))
  whole = [
    {k: np.concatenate([pair[i][k] for pair in pairs]) for k in pairs[0][i]}
    for i in range(2)
  ]
  assert field.agreement(*whole) == add([field.agreement(*p) for p in pairs])


def test_counts_of_boxes_add_up():
  field, pairs = make_field("Boxes"), list(pairs_of("Boxes", 5))
  whole = []
  for i in range(2):  # as if the images were tiles of one
    labels = [
      {**pair[i], "boxes": (pair[i]["boxes"] + [n, 0, n, 0]) / [5, 1, 5, 1]}
      for n, pair in enumerate(pairs)
    ]
    whole.append({k: np.concatenate([x[k] for x in labels]) for k in labels[0]})
  assert field.agreement(*whole) == add([field.agreement(*p) for p in pairs])


def add(found):
  total = {}
  for counts in found:
    for k, pair in counts.items():
      total[k] = tuple(np.add(total.get(k, (0, 0)), pair).tolist())
  return total


def iou(a, b):
  low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
  shared = np.prod(np.maximum(high - low, 0))
  return shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def test_boxes_are_paired_as_all_ways_to_pair_them_allow():
  field, most = make_field("Boxes"), 0
  for first, second in pairs_of("Boxes", 60):
    for k, found in field.agreement(first, second).items():
      few, many = sorted(
        (x["boxes"][x["classes"] == k].astype(float) for x in (first, second)),
        key=len,
      )
      best = max(
        sum(iou(a, many[j]) >= 0.5 for a, j in zip(few, order, strict=True))
        for order in itertools.permutations(range(len(many)), len(few))
      )
      assert found == (2 * best, len(few) + len(many))
      most = max(most, best)
  assert most >= 2


def test_one_box_is_not_the_partner_of_two():
  box = [0.1, 0.1, 0.5, 0.5]
  found = make_field("Boxes").agreement(
    boxes_of([box, box], [1, 1]), boxes_of([box, box], [1, 2])
  )
  assert found == {1: (2, 3), 2: (0, 1)}


def test_crowds_excuse_what_is_inside_and_do_not_count():
  crowd, inside, beside = (
    [0, 0, 0.5, 0.5],
    [0.1, 0.1, 0.2, 0.2],
    [0.6, 0.6, 0.9, 0.9],
  )
  labels = boxes_of([crowd, beside], [0, 0], ignore=[0])
  found = make_field("Boxes").agreement
  assert found(labels, boxes_of([inside, beside], [0, 0])) == {0: (2, 2)}
  assert found(labels, boxes_of([inside], [1])) == {0: (0, 1), 1: (0, 1)}
  assert found(labels, boxes_of([], [])) == {0: (0, 1)}
  # What has a partner counts, though it is inside.
  labels = boxes_of([crowd, inside], [0, 0], ignore=[0])
  assert found(labels, boxes_of([inside], [0])) == {0: (2, 2)}


def test_class_maps_by_hand():
  u = IGNORE_LABEL
  first = {"classes": np.array([[0, 0, 1], [1, 2, u]])}
  second = {"classes": np.array([[0, 1, 1], [0, u, 2]])}
  field = make_field("ClassMap")
  assert field.agreement(first, second) == {0: (1, 3), 1: (1, 3)}
  nothing = {"classes": np.full((2, 3), u)}
  assert field.agreement(first, nothing) == {}


def test_maps_of_different_sizes():
  coarse = {"classes": np.array([[0, 1]])}
  fine = {"classes": np.array([[0, 0, 1, 2], [0, 0, 1, 1]])}
  assert make_field("ClassMap").agreement(coarse, fine) == {
    0: (4, 4),
    1: (3, 4),
    2: (0, 1),
  }


def test_class_vectors_agree_as_accuracy_counts():
  field, equal, found = make_field("ClassVector"), [], []
  for first, second in pairs_of("ClassVector"):
    equal.append(first["probs"].argmax() == second["probs"].argmax())
    found.append(field.agreement(first, second))
  part, of = np.sum([[*c] for counts in found for c in counts.values()], 0)
  assert part / of == np.mean(equal)
  assert 0 < np.mean(equal) < 1


def test_class_vectors_of_several_classes():
  a, b = ({"probs": np.float32(p)} for p in ([0.9, 0.8, 0.1], [0.2, 0.7, 0.6]))
  field, nothing = make_field("ClassVector"), {"probs": np.zeros(3, np.float32)}
  assert field.agreement(a, b) == {0: (0, 1), 1: (2, 2), 2: (0, 1)}
  assert field.agreement(a, nothing) == field.agreement(nothing, a) == {}


def test_values_agree_as_depth_is_measured():
  field = make_field("ValueMap", unit="inverse")
  for first, second in pairs_of("ValueMap", 10):
    parts = []
    for pred, label in ((first, second), (second, first)):
      metric = DepthError("inverse", "inverse")
      valid = first["valid"] & second["valid"]
      truth = {"values": label["values"][None], "valid": valid[None]}
      batch = {"valid": np.ones(1, bool)}
      truth["present"] = np.ones(1, bool)
      metric.update({"values": pred["values"][None]}, truth, batch)
      parts.append(metric.compute()["aligned_delta1"])
    ((part, of),) = field.agreement(first, second).values()
    assert of == 2 * valid.sum()
    assert part / of == pytest.approx(np.mean(parts))


def test_metres_are_not_aligned_and_others_are():
  valid = np.ones((1, 4), bool)
  a = {"values": np.float32([[1, 2, 3, 4]]), "valid": valid}
  b = {"values": np.float32([[1.2, 2.6, 3.1, 8]]), "valid": valid}
  assert make_field("ValueMap", unit="metres").agreement(a, b) == {0: (2, 4)}
  double = {"values": 2 * a["values"] + 3, "valid": valid}
  assert make_field("ValueMap").agreement(a, double) == {0: (8, 8)}
  flat = {"values": np.full((1, 4), np.float32(3)), "valid": valid}
  # All are the mean: 3 of the ones, 2.5 of the others.
  assert make_field("ValueMap").agreement(a, flat) == {0: (4 + 1, 8)}
  below = {"values": -a["values"], "valid": valid}
  assert make_field("ValueMap").agreement(below, below) == {}


def test_units_are_shared():
  units = {
    unit: make_field("ValueMap", **({"unit": unit} if unit else {}))
    for unit in ("", "metres", "inverse")
  }
  assert units["metres"].shared(units["metres"]).unit == "metres"
  assert units["metres"].shared(units["inverse"]).unit == "inverse"
  assert units["inverse"].shared(units["metres"]).unit == "inverse"
  assert units[""].shared(units["metres"]).unit == ""


def test_directions_by_hand():
  angles = np.radians([0, 29, 31, 90])
  turned = np.stack([np.sin(angles), 0 * angles, -np.cos(angles)], -1)[None]
  ahead = np.broadcast_to(np.float32([0, 0, -1]), turned.shape)
  valid = np.array([[True, True, True, False]])
  found = make_field("VectorMap").agreement(
    {"vectors": turned, "valid": np.ones((1, 4), bool)},
    {"vectors": ahead, "valid": valid},
  )
  assert found == {0: (2, 3)}


def test_other_class_ids():
  ids = np.array([1, -1, 0])
  boxes = make_field("Boxes").with_class_ids(
    boxes_of(np.tile([0, 0, 1, 1], (3, 1)), [2, 1, 0]), ids
  )
  assert boxes["classes"].tolist() == [0, 1] and len(boxes["boxes"]) == 2
  u = IGNORE_LABEL
  label = {"classes": np.array([[0, 1], [2, u]])}
  changed = make_field("ClassMap").with_class_ids(label, ids)
  assert changed["classes"].tolist() == [[1, u], [0, u]]
  change = make_field("ClassVector").with_class_ids
  label = {"probs": np.float32([0.1, 0.3, 0.6])}
  assert change(label, ids)["probs"].tolist() == pytest.approx([0.6, 0.1])
  # It is a bee, of which the other side knows nothing.
  label = {"probs": np.float32([0.1, 0.6, 0.3])}
  assert change(label, ids)["probs"].tolist() == [0, 0]


def test_regions_of_boxes_and_maps():
  boxes = boxes_of(
    [[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1], [0, 0.75, 0.25, 1]],
    [0, 1, 1],
    ignore=[2],
  )
  regions, known = make_field("Boxes").regions(boxes, 4)
  a, b = np.zeros((2, 4, 4), bool)
  a[:2, :2], b[1:, 1:] = True, True
  assert (regions == [a, b, np.zeros((4, 4))]).all()
  assert (~known).nonzero()[0].tolist() == [0]
  label = {"classes": np.array([[0, IGNORE_LABEL], [2, 2]])}
  regions, known = make_field("ClassMap").regions(label, 4)
  assert regions.sum((1, 2)).tolist() == [4, 0, 8]
  assert regions[0, :2, :2].all() and not known[:2, 2:].any()
  assert known.sum() == 12
