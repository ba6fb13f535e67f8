"""What kinds of field say of themselves and of labels."""

import copy
import json

import numpy as np
import pytest

from must_jax import fields as fields_lib
from must_jax.fields import KINDS, alarms, check_descriptions, make_field
from must_jax.fields.statistics import accumulate

CLASSES = [*"abcdefgh"]
DESCRIPTIONS = {
  name: {"kind": name} | ({"classes": CLASSES} if kind.has_classes else {})
  for name, kind in KINDS.items()
}


@pytest.mark.parametrize(
  "description",
  [*DESCRIPTIONS.values(), {"kind": "ValueMap", "unit": "metres"}],
)
def test_a_field_is_listed_as_it_was(description):
  field = make_field(description)
  assert field.describe(description.get("classes", ())) == description
  assert field.unfiltered() == field
  check_descriptions({"x": description})


@pytest.mark.parametrize(
  "spec, message",
  [
    ({"kind": "Mask"}, "'Mask'"),
    ({"kind": "Boxes"}, "list of different names"),
    ({"kind": "Boxes", "classes": ["a", "a"]}, "list of different names"),
    ({"kind": "ClassMap", "classes": [*map(str, range(256))]}, "at most 255"),
  ],
)
def test_check_fields(spec, message):
  with pytest.raises(ValueError, match=message):
    check_descriptions({"x": spec})


STATISTICS = [
  (
    "ClassVector",
    {"classes": np.array([4, 7]), "probs": np.array([0.2, 0.6])},
    {"elements": 1, "classes": {"7": 1}, "score_sum": 153, "constant": 0},
  ),
  (
    "ClassVector",
    {"classes": np.array([4, 7, 1])},
    {"elements": 3, "classes": {"1": 1, "4": 1, "7": 1}},
  ),
  (
    "ClassVector",
    {"classes": np.arange(4), "probs": np.full(4, 0.25)},
    {"elements": 1, "constant": 1},
  ),
  (
    "Boxes",
    {
      "boxes": np.zeros((3, 4)),
      "classes": np.array([1, 0, 1]),
      "scores": np.array([0.05, 1.0, 0.5]),
    },
    {
      "elements": 3,
      "classes": {"0": 1, "1": 2},
      "scores": [1, 0, 0, 0, 0, 1, 0, 0, 0, 1],
      "score_sum": 13 + 255 + 128,
      "empty": 0,
    },
  ),
  (
    "Boxes",
    {
      "boxes": np.zeros((0, 4)),
      "classes": np.zeros(0, int),
      "scores": np.zeros(0),
    },
    {"elements": 0, "classes": {}, "scores": [0] * 10, "empty": 1},
  ),
  (
    "ClassMap",
    {
      "classes": np.array([[2, 2], [2, 255]]),
      "confidence": np.array([[1.0, 0.2], [0.2, 0.9]]),
    },
    {
      "elements": 3,
      "classes": {"2": 3},
      "scores": [0, 0, 2, 0, 0, 0, 0, 0, 0, 1],
      "constant": 1,
      "unknown": 1,
    },
  ),
  (
    "ValueMap",
    {
      "values": np.array([[1.0, 2.0], [np.nan, 1.0]]),
      "valid": np.array([[True, True], [False, True]]),
    },
    {"elements": 3, "constant": 0, "octaves": {"0": 2, "8": 1}},
  ),
  ("ValueMap", {"values": np.ones((2, 3))}, {"elements": 6, "constant": 1}),
  (
    "VectorMap",
    {"vectors": np.tile(np.array([0.0, 0.6, -0.8]), (2, 2, 1))},
    {
      "elements": 4,
      "constant": 1,
      "positive": [0, 4, 0],
      "negative": [0, 0, 4],
    },
  ),
  (
    "VectorMap",
    {"vectors": np.ones((1, 2, 3)), "valid": np.zeros((1, 2), bool)},
    {"elements": 0, "empty": 1, "constant": 0},
  ),
  # As a teacher of one's own may give nothing.
  (
    "Boxes",
    {"boxes": [], "classes": [], "scores": []},
    {"elements": 0, "empty": 1, "classes": {}, "scores": [0] * 10},
  ),
  (
    "ClassMap",
    {"classes": np.full((2, 2), 255)},
    {"elements": 0, "empty": 1, "constant": 0, "unknown": 4, "classes": {}},
  ),
]


@pytest.mark.parametrize("kind, arrays, expected", STATISTICS)
def test_statistics_of_one_example(kind, arrays, expected):
  sums = make_field(DESCRIPTIONS[kind]).sums(arrays)
  assert sums["examples"] == 1
  assert {k: sums[k] for k in expected} == expected
  json.dumps(sums)


def test_statistics_add_up():
  boxes = [
    make_field(DESCRIPTIONS[k]).sums(a)
    for k, a, _ in STATISTICS
    if k == "Boxes"
  ]
  total, first = {}, copy.deepcopy(boxes[0])
  accumulate(total, {"f": boxes[0]})
  assert total == {"f": first}
  accumulate(total, {"f": boxes[1]})
  accumulate(total, {})
  both = total["f"]
  assert (both["examples"], both["elements"], both["empty"]) == (2, 3, 1)
  assert boxes[0] == first
  total = {"classes": {"1": 2}, "scores": [1, 0]}
  accumulate(total, {"classes": {"1": 3, "5": 1}, "scores": [0, 2]})
  assert total == {"classes": {"1": 5, "5": 1}, "scores": [1, 2]}


@pytest.mark.parametrize(
  "kind, sums, alarm",
  [
    ("Boxes", None, "not one image"),
    ("Boxes", {"elements": 0}, "all 20 labels are empty"),
    ("Boxes", {"elements": 1}, None),
    ("ClassMap", {"elements": 9, "constant": 20}, "one value"),
    ("ClassMap", {"elements": 9, "constant": 19}, None),
    ("ValueMap", {"elements": 9, "constant": 20}, "one value"),
    ("ClassVector", {"elements": 20, "classes": {"1": 20}}, "class 'b'"),
    ("ClassVector", {"elements": 20, "classes": {"0": 1, "1": 19}}, None),
    ("ClassVector", {"elements": 20, "constant": 20}, "one value"),
  ],
)
def test_alarms(kind, sums, alarm):
  fields = {"f": {"kind": kind, "classes": ["a", "b"]}}
  total = {} if sums is None else {"f": {"examples": 20, "constant": 0} | sums}
  found = alarms(fields, total)
  assert len(found) == (alarm is not None)
  assert alarm is None or alarm in found[0]


def test_warnings_name_the_field_and_begin_with_its_alarms():
  fields = {
    "boxes": {"kind": "Boxes", "classes": ["a", "b", "B", "c"]},
    "nothing": {"kind": "ValueMap", "unit": "metres"},
  }
  sums = {
    "boxes": {"examples": 9, "elements": 0, "constant": 0, "classes": {}},
  }
  assert fields_lib.warnings(fields, sums) == [
    "boxes: all 9 labels are empty; nothing was found in any image.",
    "nothing: not one image has a label.",
    "boxes: 4 of the 4 classes never occur: 'a' (0), 'b' (1), 'B' (2), 'c' (3)",
    "boxes: classes differ by case, spaces or signs alone: ['b', 'B']; are they"
    " the same?",
  ]
  sums["boxes"] |= {"elements": 9, "classes": {"0": 4, "1": 1, "2": 1, "3": 3}}
  fields["boxes"]["classes"] = ["a", "b", "c", "d"]
  fields.pop("nothing")
  assert fields_lib.warnings(fields, sums) == []


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_warns_of_its_own_sums(name):
  """Sums of real labels, and of none, are enough for `warnings`."""
  field = make_field(DESCRIPTIONS[name])
  classes = DESCRIPTIONS[name].get("classes", ())
  for kind, arrays, _ in STATISTICS:
    if kind == name:
      sums = json.loads(json.dumps(field.sums(arrays)))
      accumulate(sums, json.loads(json.dumps(sums)))
      for text in field.warnings(sums, classes):
        assert text[0].islower() or text[0].isdigit(), text
