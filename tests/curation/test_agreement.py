"""Agreement of label sets: of the same images, matched by name and key."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest

from must_jax.cli import main
from must_jax.curation import agreement
from must_jax.curation.agreement import compare
from must_jax.fields import KINDS
from must_jax.pseudo_label import worker
from must_jax.storage.records import read_labels
from must_jax.storage.sets import LabelSet, read_manifest
from must_jax.types import IGNORE_LABEL

CLASSES = ("cat", "cow", "dog")
MORE = ("hen", *CLASSES)


@pytest.fixture(scope="module")
def images(draw_pile):
  return draw_pile(8) / "pile"


@dataclasses.dataclass
class Guess:
  """Labels that follow from the image, and from what is guessed at random.

  Attributes:
    classes: of all fields, in order of their ids.
    told: those that occur.
    errors: part of the elements that are replaced at random.
    seed: of the errors.
    score: of all elements.
    wanted: names of the fields.
    silent: about every second image nothing is said.
  """

  classes: tuple = CLASSES
  told: tuple = CLASSES
  errors: float = 0.0
  seed: int = 0
  score: float = 0.9
  wanted: tuple = ("objects", "mask")
  silent: bool = False

  @property
  def fields(self):
    kinds = {"objects": "Boxes", "mask": "ClassMap"}
    classes = list(self.classes)
    return {n: {"kind": kinds[n], "classes": classes} for n in self.wanted}

  @property
  def description(self):
    return {"digest": repr(self)}

  def __call__(self, images):
    return [self._labels(image) for image in images]

  def _labels(self, image):
    seed = int(image.sum())
    rng = np.random.default_rng([seed, 1])
    if self.silent and seed % 2:
      return {}
    boxes = np.sort(rng.uniform(0, 1, (4, 2, 2)), 1).reshape(-1, 4)
    ids = {
      "objects": self._ids(rng, (4,)),
      "mask": self._ids(rng, (5, 5)),
    }
    scores = {n: np.full(k.shape, self.score) for n, k in ids.items()}
    labels = {
      "objects": {
        "boxes": boxes,
        "classes": ids["objects"],
        "scores": scores["objects"],
      },
      "mask": {"classes": ids["mask"], "confidence": scores["mask"]},
    }
    return {name: labels[name] for name in self.wanted}

  def _ids(self, rng, shape):
    names = rng.integers(0, len(self.told), shape)
    chance = np.random.default_rng([self.seed, int(names.sum())])
    wrong = chance.random(shape) < self.errors
    names = np.where(wrong, chance.integers(0, len(self.told), shape), names)
    return np.array([self.classes.index(n) for n in self.told])[names]


def make_labels(images, directory, **options):
  with contextlib.suppress(SystemExit):  # of an alarm
    worker.label_images(
      Guess(**options), images, "train", directory, batch_size=8
    )
  return directory


@pytest.fixture(scope="module")
def first(images):
  """Labels that are not to be changed."""
  return make_labels(images, images.parent / "first")


@pytest.fixture
def label(images, tmp_path):
  def label(name, **options):
    return make_labels(images, tmp_path / name, **options)

  return label


def total(*args, **options):
  summed = agreement.Agreement()
  for _, found in compare(*args, **options):
    summed.add(found)
  return summed


def labels_of(directory, min_score=0.5):
  """All labels of a set, read one by one."""
  labels = LabelSet.open(directory)
  fields = {
    name: KINDS[d["kind"]].as_read(d, min_score)
    for name, d in labels.fields.items()
  }
  return [read_labels(labels.read(i), fields) for i in range(8)]


def test_the_sums_are_those_of_a_count_by_hand(first, label):
  second = label("b", errors=0.5)
  found = total(first, second).counts
  assert {*found} == {("objects", "objects"), ("mask", "mask")}
  a, b = labels_of(first), labels_of(second)
  for k, name in enumerate(CLASSES):
    x, y = (
      np.stack([x["mask"]["classes"] for x in side]) == k for side in (a, b)
    )
    assert found["mask", "mask"][name] == ((x & y).sum(), (x | y).sum())
    # The boxes are the same, and so far apart that no other is like them.
    x, y = (
      np.stack([x["objects"]["classes"] for x in side]) == k for side in (a, b)
    )
    part, of = found["objects", "objects"][name]
    assert of == x.sum() + y.sum()
    assert 2 * (x & y).sum() <= part < of


def test_which_comes_first_does_not_matter_and_parts_add_up(first, label):
  second = label("b", errors=0.3)
  one, other = total(first, second), total(second, first)
  assert one == other
  results = [found for _, found in compare(first, second)]
  parts = [agreement.Agreement(), agreement.Agreement()]
  for i, found in enumerate(results):
    parts[i % 2].add(found)
  for pair, counts in one.counts.items():
    for name, pair_of_sums in counts.items():
      sums = [p.counts[pair].get(name, (0, 0)) for p in parts]
      assert pair_of_sums == tuple(np.sum(sums, 0))
      images = [p.num_images[pair][name] for p in parts]
      assert one.num_images[pair][name] == sum(images)
  itself = total(first, first)
  for counts in itself.counts.values():
    assert agreement.share(counts) == 1


def test_keys_are_those_of_the_images(first, label):
  keys = [key for key, _ in compare(first, first)]
  assert len({*keys}) == 8
  from must_jax.storage import records

  stored = [records.key_of(LabelSet.open(first).read(i)) for i in range(8)]
  assert [key.encode() for key in keys] == stored


def test_classes_are_matched_by_name(first, label):
  other_order = label("b", classes=CLASSES[::-1])
  for counts in total(first, other_order).counts.values():
    assert {*counts} == {*CLASSES}
    assert agreement.share(counts) == 1


def test_classes_that_one_side_knows_do_not_count(label):
  first = label("a", classes=MORE, told=MORE, wanted=("mask",))
  second = label("b", wanted=("mask",), errors=0.2)
  found = total(first, second).counts["mask", "mask"]
  assert {*found} == {*CLASSES}
  a, b = (
    np.stack([x["mask"]["classes"] for x in labels_of(side)])
    for side in (first, second)
  )
  known = a != MORE.index("hen")
  for name in CLASSES:
    x, y = a == MORE.index(name), b == CLASSES.index(name)
    assert found[name] == ((x & y).sum(), (x | y)[known].sum())
  # One that both know, and one of them claims, does.
  second = label("c", classes=MORE, wanted=("mask",))
  found = total(first, second).counts["mask", "mask"]
  assert found["hen"] == (0, (a == 0).sum())


def test_each_set_has_its_own_threshold_unless_one_is_given(first, label):
  unsure = label("b", score=0.4)
  assert total(first, unsure).counts == {
    ("mask", "mask"): {},  # nothing is known
    ("objects", "objects"): {
      name: (0, of)
      for name, (_, of) in total(first, unsure)
      .counts["objects", "objects"]
      .items()
    },
  }
  for counts in total(first, unsure, min_score=0.3).counts.values():
    assert agreement.share(counts) == 1
  path = unsure / "manifest.json"
  manifest = json.loads(path.read_text())
  manifest["settings"]["task"] = {"min_score": 0.35}
  path.write_text(json.dumps(manifest))
  for counts in total(first, unsure).counts.values():
    assert agreement.share(counts) == 1


def test_images_of_which_one_set_says_nothing_do_not_count(first, label):
  second = label("b", silent=True, errors=0.5)
  found = [found for _, found in compare(first, second)]
  silent = [not labels for labels in labels_of(second)]
  assert [not pairs for pairs in found] == silent and 0 < sum(silent) < 8


def test_boxes_against_a_map(label):
  """As the brute force of cells: of the areas the part that could be shared."""
  first, second = label("a", wanted=("objects",)), label("b", wanted=("mask",))
  found = total(first, second).counts
  assert {*found} == {("objects", "mask")}
  assert total(second, first).counts == {
    ("mask", "objects"): found["objects", "mask"]
  }
  expected = {name: [0, 0] for name in CLASSES}
  centres = (np.arange(128) + 0.5) / 128
  for a, b in zip(labels_of(first), labels_of(second), strict=True):
    cells = (centres * 5).astype(int)
    mask = b["mask"]["classes"][cells][:, cells]
    for k, name in enumerate(CLASSES):
      inside = np.zeros((128, 128), bool)
      for box in a["objects"]["boxes"][a["objects"]["classes"] == k]:
        y, x = ((centres >= box[i]) & (centres < box[i + 2]) for i in range(2))
        inside |= np.outer(y, x)
      inside &= mask != IGNORE_LABEL
      areas = [inside.sum(), (mask == k).sum()]
      expected[name][0] += (inside & (mask == k)).sum()
      expected[name][1] += min(areas) or max(areas)
  assert found["objects", "mask"] == {n: tuple(v) for n, v in expected.items()}


def test_the_nearest_fields_are_compared(first, label):
  both, boxes = first, label("b", wanted=("objects",))
  # The map has no partner of its kind, but the boxes have.
  assert {*total(both, boxes).counts} == {("objects", "objects")}
  assert {*total(boxes, both).counts} == {("objects", "objects")}


def test_against_the_truth(label, images):
  labels = label("a", classes=("ball", "box", "cone"), told=("ball", "cone"))
  truth = images.parent / "pile_truth"
  found = total(labels, truth).counts
  assert {*found} == {("objects", "objects"), ("mask", "mask")}
  assert {"ball", "box", "cone"} >= {*found["mask", "mask"]}


def test_contradiction_is_the_mean_over_pairs_of_fields():
  pairs = [
    {("a", "b"): {"cat": (1, 4), "dog": (0, 4)}, ("c", "d"): {}},
    {("a", "e"): {"cat": (1, 1)}},
  ]
  assert agreement.share(pairs[0]["a", "b"]) == 1 / 8
  assert agreement.disagreement(pairs) == 1 - (1 / 8 + 1) / 2
  assert agreement.disagreement([{("c", "d"): {}}]) is None
  assert agreement.disputed(pairs) == ["cat", "dog"]
  assert agreement.disputed(pairs[1:]) == []


def change(directory, **entries):
  path = directory / "manifest.json"
  manifest = json.loads(path.read_text())
  path.write_text(json.dumps(manifest | entries))


def test_what_cannot_be_compared_is_one_line(first, label, tmp_path):
  labels = first
  for reason, other in {
    "is no finished label set": tmp_path,
    "nothing can be compared": label(
      "b", classes=("hen", "pig", "ape"), told=("hen", "pig")
    ),
  }.items():
    with pytest.raises(ValueError, match=reason):
      compare(labels, other)
  other = label("c")
  shards = read_manifest(other)["shards"]
  change(other, image_set=read_manifest(other)["image_set"] | {"name": "heap"})
  with pytest.raises(
    ValueError, match=r"'train' of 'pile', .* of split 'train' of 'heap'"
  ):
    compare(labels, other)
  other = label("d")
  change(other, shards=[shards[0] | {"keys": "0" * 32}, shards[1]])
  with pytest.raises(ValueError, match="not of the same records"):
    compare(labels, other)
  other = label("e")
  path = other / shards[1]["file"]
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))
  with pytest.raises(ValueError, match=r"must-jax data verify .*/e"):
    list(compare(labels, other))


def test_inspect_prints_it_and_what_contradicts_most(first, label, capsys):
  second = label("b", errors=0.4)
  third = label("c", classes=CLASSES[::-1], errors=0.4, seed=1)
  assert (
    main(["inspect", str(first), "--against", str(second), str(third)]) == 0
  )
  text = capsys.readouterr().out
  assert f"Agreement with {second}" in text
  assert f"Agreement with {third}" in text
  part, of = total(first, second).counts["mask", "mask"]["dog"]
  assert f"{part / of:.1%}" in text
  results = [dict(compare(first, other)) for other in (second, third)]
  ranks = {
    key: agreement.disagreement([found[key] for found in results])
    for key in results[0]
  }
  assert (
    main(["inspect", str(first), "--against", str(third), "--worst=0"]) == 0
  )
  alone = capsys.readouterr().out
  assert "contradict" not in alone and f"Agreement with {third}" in alone
  assert all(line in text for line in alone.splitlines())
  worst = max(ranks, key=ranks.get)
  assert f"{ranks[worst]:.1%}" in text and worst in text
