"""`must-jax thresholds`: proposals against counting; configs take the files."""

import contextlib
import dataclasses
import json
import shlex
import xml.etree.ElementTree

import numpy as np
import pytest

from must_jax.cli import main
from must_jax.config import (
  base_config,
  dataset,
  from_json,
  load,
  task,
  to_json,
)
from must_jax.curation import score_curves, thresholds
from must_jax.curation.score_curves import ScoreCurve
from must_jax.curation.thresholds import Wish
from must_jax.fields import KINDS
from must_jax.fields.field import Outcomes
from must_jax.input import sources
from must_jax.pseudo_label import worker
from must_jax.storage.path import Path, publish, read_file
from must_jax.storage.records import (
  label_reader,
  parse_image,
  read_labels,
  stored_labels,
)
from must_jax.storage.set_writer import write_image_set
from must_jax.storage.sets import ImageSet, LabelSet, read_manifest

NUM_IMAGES = 64


@pytest.fixture(scope="module")
def world(draw_pile):
  """Images with the truth about them: "pile" and "pile_truth"."""
  return draw_pile(NUM_IMAGES)


@pytest.fixture(scope="module")
def classes(world):
  images = ImageSet.open(world / "pile_truth", "train")
  return {name: images.fields[name]["classes"] for name in ("objects", "mask")}


@dataclasses.dataclass
class Noisy:
  """Knows the truth, and says it the worse the less sure it is."""

  truth: dict
  classes: dict
  scored: bool = True

  @property
  def fields(self):
    kinds = {"objects": "Boxes", "mask": "ClassMap"}
    return {
      name: {"kind": kind, "classes": list(self.classes[name])}
      for name, kind in kinds.items()
    }

  @property
  def description(self):
    return {"digest": f"noisy {self.scored}"}

  def __call__(self, images):
    return [self._labels(image) for image in images]

  def _labels(self, image):
    truth = self.truth[int(image.astype(int).sum())]
    rng = np.random.default_rng(int(image.sum()))
    objects, mask = truth["objects"], truth["mask"]["classes"][::4, ::4]
    repeated = {k: np.repeat(v, 3, 0) for k, v in objects.items()}
    scores = rng.uniform(0.05, 1, len(repeated["classes"]))
    noise = rng.normal(0, 1, repeated["boxes"].shape) * (1 - scores[:, None])
    boxes = np.clip(repeated["boxes"] + 0.1 * noise, 0, 1)
    boxes = np.sort(boxes.reshape(-1, 2, 2), 1).reshape(-1, 4)
    boxes[:, 2:] = np.minimum(boxes[:, 2:] + 0.01, 1)
    boxes[:, :2] = np.minimum(boxes[:, :2], boxes[:, 2:] - 0.005)
    confidence = rng.uniform(0.1, 1, mask.shape)
    is_wrong = rng.random(mask.shape) > confidence
    other = rng.integers(0, len(self.classes["mask"]), mask.shape)
    labels = {
      "objects": {
        "boxes": boxes,
        "classes": repeated["classes"],
        "scores": scores,
      },
      "mask": {
        "classes": np.where(is_wrong, other, mask),
        "confidence": confidence,
      },
    }
    if not self.scored:
      del labels["objects"]["scores"], labels["mask"]["confidence"]
    return labels


@pytest.fixture(scope="module")
def truth(world):
  """{sum of the pixels: true labels}."""
  import tensorflow as tf

  images = ImageSet.open(world / "pile_truth", "train")
  fields = {
    name: KINDS[images.fields[name]["kind"]].of(images.fields[name])
    for name in ("objects", "mask")
  }
  found = {}
  for i in range(NUM_IMAGES):
    record = images.read(i)
    example = tf.train.Example.FromString(record).features.feature
    image = tf.io.decode_image(example["image"].bytes_list.value[0]).numpy()
    found[int(image.astype(int).sum())] = read_labels(record, fields)
  assert len(found) == NUM_IMAGES
  return found


@pytest.fixture(scope="module")
def labels(world, truth, classes):
  """A label set, not to be changed."""
  directory = world / "labels"
  teacher = Noisy(truth, classes)
  worker.label_images(teacher, world / "pile", "train", directory)
  return directory


@pytest.fixture(scope="module")
def curves(world, labels):
  return score_curves.measure(
    LabelSet.open(labels), labels, [(str(world / "pile_truth"), "train")]
  )


def make_curve(rows, positives, num_images=100):
  """Of (score, right, wrong), the highest score first."""
  scores, right, wrong = (np.array(x) for x in zip(*rows, strict=True))
  return ScoreCurve(
    scores.astype(np.float32),
    np.cumsum(right),
    np.cumsum(right + wrong),
    positives,
    num_images,
  )


def test_curves_are_what_counting_from_each_score_gives():
  rng = np.random.default_rng(0)

  class Stub:
    def score_outcomes(self, found, truth):
      return found

  total = score_curves._Sums(Stub())
  parts = []
  for _ in range(5):
    count = int(rng.integers(3, 30))
    is_right = rng.integers(0, 2, count)
    parts.append(
      Outcomes(
        rng.integers(0, 2, count),
        rng.choice(np.float32([0.1, 0.25, 0.5, 0.9, 0.95]), count),
        is_right,
        1 - is_right,
        np.array([4, 7, 0]),
      )
    )
    total.add(parts[-1], None)
  classes, scores, right = (
    np.concatenate([p[i] for p in parts]) for i in range(3)
  )
  found = total.curves()
  assert [c.positives for c in found] == [20, 35, 0]
  assert [c.num_images for c in found] == [5, 5, 0]
  for k in range(2):
    curve = found[k]
    assert (
      curve.scores.tolist() == sorted({*scores[classes == k].tolist()})[::-1]
    )
    for score in (0, 0.05, 0.1, 0.3, 0.5, 0.93, 0.95, 1):
      keep = (classes == k) & (scores >= np.float32(score))
      precision, recall = curve.at(score)
      if keep.any():
        assert precision == right[keep].mean()
      else:
        assert precision is None
      assert recall == right[keep].sum() / curve.positives
      if score in curve.scores:
        i = curve.scores.tolist().index(np.float32(score))
        p, r = curve.precision[i], curve.recall[i]
        assert (p, r) == (precision, recall)
        assert curve.f1[i] == pytest.approx(2 * p * r / max(p + r, 1e-9))
  assert found[2].at(0.5) == (None, None)


def test_many_outcomes_are_added_up_on_the_way(
  monkeypatch, world, labels, curves
):
  monkeypatch.setattr(score_curves, "_MAX_PENDING", 10)
  again = score_curves.measure(
    LabelSet.open(labels), labels, [(str(world / "pile_truth"), "train")]
  )
  for name, expected in curves.items():
    for a, b in zip(expected, again[name], strict=True):
      assert a.scores.tolist() == b.scores.tolist()
      assert a.right.tolist() == b.right.tolist()
      assert (a.positives, a.num_images) == (b.positives, b.num_images)


def test_precision_keeps_as_much_as_it_can():
  rows = [(0.9, 8, 2), (0.8, 8, 0), (0.7, 1, 5), (0.6, 8, 0), (0.5, 0, 9)]
  curve = make_curve(rows, 40)
  # Right of all so far: 8/10, 16/18, 17/24, 25/32, 25/41.
  for wanted, score in ((0.85, 0.8), (0.75, 0.6), (0.3, 0.5)):
    found, note = thresholds._by_truth(curve, wanted)
    assert np.float32(found) <= np.float32(score) and not note
    assert curve.at(found)[0] >= wanted
    assert (
      curve.at(found)[1]
      == curve.recall[list(curve.scores).index(np.float32(score))]
    )
  found, note = thresholds._by_truth(curve, 0.95)
  assert found == 1 and "no score reaches 95.0%, the best is 88.9%" in note


def test_a_lucky_few_at_the_top_prove_nothing():
  curve = make_curve([(0.9, 3, 0), (0.5, 5, 20)], 30)
  assert thresholds._by_truth(curve, 0.9)[0] == 1


def test_best_f1():
  curve = make_curve([(0.9, 5, 1), (0.6, 5, 3), (0.3, 1, 30)], 12)
  found, _ = thresholds._by_truth(curve, None)
  assert 0.3 < found <= 0.6 and curve.at(found) == (10 / 14, 10 / 12)
  assert thresholds._by_truth(make_curve([(0.9, 0, 9)], 12), None)[0] == 1


def test_of_few_images_nothing_is_told():
  curve = make_curve([(0.9, 5, 1)], 12, num_images=9)
  for wanted in (None, 0.5):
    assert thresholds._by_truth(curve, wanted) == (
      None,
      "only 9 validation images have any",
    )


def test_numbers_are_short_and_leave_the_same():
  rng = np.random.default_rng(0)
  scores = np.sort(rng.random(500).astype(np.float32))[::-1]
  for i in range(500):
    number = thresholds._number(scores, i)
    assert (scores >= np.float32(number)).sum() == i + 1
    assert len(str(number)) <= 9
  assert thresholds._number(np.float32([0.9, 128 / 255, 127 / 255]), 1) == 0.5
  assert thresholds._number(np.float32([0.0]), 0) == 0.0


def read_counts(directory, name, min_score):
  """How many elements of each class readers get."""
  labels = LabelSet.open(directory)
  description = labels.fields[name]
  field = KINDS[description["kind"]].as_read(description, min_score)
  read = label_reader({name: field})
  ids = [read(labels.read(i))[name]["classes"] for i in range(NUM_IMAGES)]
  counts = np.bincount(np.concatenate([k.ravel() for k in ids]), minlength=256)
  return counts[: len(description["classes"])]


@pytest.mark.parametrize("wish", [Wish(count=7), Wish(share=0.3)])
def test_a_wanted_amount_is_what_readers_get(labels, wish):
  for found in thresholds.propose(LabelSet.open(labels), wish):
    scores = found.min_score
    stored = read_counts(labels, found.field, 0.0)
    left = read_counts(labels, found.field, scores)
    # At the next score of the grid, of all classes.
    higher = {k: min(v + 0.05, 1.0) for k, v in scores.items()}
    too_few = read_counts(labels, found.field, higher)
    for k, proposal in enumerate(found.proposals):
      wanted = min(wish.count or wish.share * stored[k], stored[k])
      assert stored[k] and not proposal.note
      assert left[k] >= wanted
      assert proposal.score == 0.95 or too_few[k] < wanted


@pytest.mark.parametrize("wish", [Wish(), Wish(precision=0.8)])
def test_what_is_proposed_keeps_its_word(labels, curves, wish):
  for found in thresholds.propose(LabelSet.open(labels), wish, curves):
    told = [p for p in found.proposals if not p.note]
    assert told
    for k, proposal in enumerate(found.proposals):
      curve = curves[found.field][k]
      if proposal in told and wish.precision:
        assert curve.at(proposal.score)[0] >= 0.8
      if proposal in told:
        best = curve.f1.max()
        precision, recall = curve.at(proposal.score)
        f1 = 2 * precision * recall / (precision + recall)
        assert f1 == pytest.approx(best) or wish.precision
      if curve.num_images < 10:
        assert proposal.is_default and proposal.score == 0.5


def test_classes_of_which_nothing_is_told_stay_as_they_are(labels, classes):
  names = classes["objects"]
  opened = LabelSet.open(labels)
  own = {"*": 0.4, names[0]: 0.7}
  few = ScoreCurve(np.zeros(0, np.float32), *np.zeros((2, 0), int), 0, 0)
  manifest = opened.manifest | {"settings": {"task": {"min_score": own}}}
  curves = {n: [few] * len(k) for n, k in classes.items()}
  found = thresholds.propose(LabelSet(labels, manifest), Wish(), curves)
  (objects,) = [f for f in found if f.field == "objects"]
  assert objects.min_score == own
  assert [p.score for p in objects.proposals] == [0.7] + [0.4] * (
    len(names) - 1
  )
  assert all("stays: only 0" in p.note for p in objects.proposals)
  manifest["settings"] = {"task": {"min_score": 0}}
  for field in thresholds.propose(LabelSet(labels, manifest), Wish(), curves):
    assert field.min_score == {"*": 0}


def test_the_files_that_are_written(world, labels, classes, tmp_path, capsys):
  out = tmp_path / "scores.json"
  truth = f"{world / 'pile_truth'}:train"
  words = ["thresholds", str(labels), "--validation", str(labels)]
  words += ["--dataset", truth, "--precision", "0.8", "--out", str(out)]
  assert main(words) == 0
  text = capsys.readouterr().out
  scores = json.loads(out.read_text())
  assert {*scores} == {"objects", "mask"}
  assert scores["objects"]["*"] == 0.5
  found = thresholds.propose(
    LabelSet.open(labels),
    Wish(precision=0.8),
    score_curves.measure(LabelSet.open(labels), labels, [truth.split(":")]),
  )
  for field in found:
    assert str(field.kept()) in text
    assert scores[field.field] == field.min_score
    for k, proposal in enumerate(field.proposals):
      (line,) = [x for x in field.lines() if x.split()[0] == proposal.name]
      assert line in text and field.kept().left_of(k) in line
  picture = out.with_suffix(".svg").read_text()
  root = xml.etree.ElementTree.fromstring(picture)
  titles = [x.text for x in root.iter() if x.text and " from " in x.text]
  assert len(titles) == sum(map(len, classes.values()))
  # A config takes the file, and a student is told the same.
  config = base_config()
  config.datasets.pile = dataset(str(world / "pile"), "train")
  config.train_on = ("pile",)
  config.tasks.it = task("detection", labels={"pile": str(labels)})
  config.tasks.it.min_score = scores["objects"]
  union = sources.train_union(sources.resolve(config))
  sources.check_labels(union)
  read = union.tasks["it"]["objects"].kept(
    read_manifest(labels)["statistics"]["objects"]
  )
  assert (
    read.bounds == found[0].kept().bounds
    or read.bounds == found[1].kept().bounds
  )


def test_a_config_takes_the_file(labels, tmp_path, write_config_file):
  out = tmp_path / "scores.json"
  words = ["thresholds", str(labels), "--count", "5", "--out", str(out)]
  assert main(words) == 0
  config = base_config()
  config.datasets.pile = dataset("images", "train")
  config.tasks.it = task("segmentation", labels={"pile": str(labels)})
  path = write_config_file(tmp_path, config)
  found = load(str(path), [f"--config.tasks.it.min_score={out}"])
  assert dict(found.tasks.it.min_score) == json.loads(out.read_text())["mask"]


def make_teacher(make_checkpoint, classes, **data):
  return make_checkpoint(
    {
      "things": task(
        "detection",
        labels={},
        classes=tuple(classes["objects"]),
        score_threshold=0.0,
        max_detections=8,
        rpn_pre_nms=50,
        rpn_post_nms=20,
        pre_nms=40,
      )
    },
    **data,
  )


def test_a_checkpoint_is_measured_as_it_labels(
  make_checkpoint, world, classes, tmp_path
):
  teacher = make_teacher(make_checkpoint, classes)
  config = base_config()
  config.stage = "label"
  config.datasets.pile = dataset(str(world / "pile"), "train")
  config.label.update({"teacher": str(teacher), "dataset": "pile"})
  directory = tmp_path / "labels"
  with contextlib.suppress(SystemExit):  # of an alarm
    worker.label(config, directory)
  truth = [(str(world / "pile_truth"), "train")]
  labels = LabelSet.open(directory)
  by_label_set, by_checkpoint = (
    score_curves.measure(labels, validation, truth)["objects"]
    for validation in (directory, teacher)
  )
  assert sum(len(curve.scores) for curve in by_checkpoint) > 20
  for a, b in zip(by_label_set, by_checkpoint, strict=True):
    assert a.scores.tolist() == b.scores.tolist()
    assert a.kept.tolist() == b.kept.tolist()
    assert a.positives == b.positives
  # Its config names nothing that it was evaluated on.
  with pytest.raises(ValueError, match="Give an image set with true labels"):
    score_curves.measure(labels, teacher)
  manifest = dict(labels.manifest)
  known = from_json(json.dumps(manifest["teacher"]["config"]))
  with known.unlocked():
    known.datasets.own = dataset(*truth[0])
    known.evaluate_on = ("own",)
    known.tasks.things.labels = {"own": "supervised"}
  manifest["teacher"] |= {"config": json.loads(to_json(known))}
  found = score_curves.measure(LabelSet(directory, manifest), teacher)
  for a, b in zip(found["objects"], by_checkpoint, strict=True):
    assert a.right.tolist() == b.right.tolist()
  manifest["teacher"] |= {"digest": "another"}
  with pytest.raises(ValueError, match="Give the checkpoint that made"):
    score_curves.measure(LabelSet(directory, manifest), teacher, truth)


def fails(capsys, *words):
  assert main(["thresholds", *map(str, words)]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  return line


def test_bad_input_is_one_line(world, labels, truth, classes, tmp_path, capsys):
  out = ["--out", tmp_path / "out.json"]
  pile, known = f"{world / 'pile'}:train", f"{world / 'pile_truth'}:train"
  given = [labels, "--validation", labels]
  for words, reason in (
    (
      [labels, *out],
      "--validation CHECKPOINT, or ask for a part of the labels",
    ),
    ([labels, "--precision", "0.7", *out], "is not known"),
    ([labels, "--precision", "70", *out], "--precision is 70; expected more"),
    ([labels, "--share", "0", *out], "--share is 0; expected more than 0"),
    ([labels, "--count", "0", *out], "--count is 0; expected 1 or more"),
    ([labels, "--count", "9", "--out", tmp_path / "x.txt"], "ends in .json"),
    ([labels, "--dataset", known, *out], "--dataset needs --validation"),
    ([*given, *out], "--dataset IMAGE_SET:SPLIT"),
    (
      [*given, "--dataset", world / "pile_truth", *out],
      "expected IMAGE_SET:SPLIT",
    ),
    ([*given, "--dataset", f"{known}ing", *out], "has no split 'training'"),
    ([*given, "--dataset", pile, *out], "'mask' (ClassMap); in"),
    ([tmp_path, "--count", "9", *out], "is no finished label set"),
  ):
    assert reason in fails(capsys, *words), reason
  assert not (tmp_path / "out.json").exists()


def test_a_new_folder_is_made_and_its_name_quoted(labels, tmp_path, capsys):
  path = tmp_path / "new folder" / "thresholds.json"
  words = ["thresholds", str(labels), "--count", "9", "--out", str(path)]
  assert main(words) == 0
  assert path.exists() and path.with_suffix(".svg").exists()
  option = shlex.split(capsys.readouterr().out.splitlines()[-1])
  assert option == [f"--config.tasks.NAME.min_score={path}"]


def test_a_bucket_is_like_a_disk(
  world, labels, tmp_path, bucket, capsys, write_config_file
):
  for source, name in ((labels, "labels"), (world / "pile_truth", "truth")):
    for file in source.iterdir():
      with publish(Path(f"{bucket.root}/{name}/{file.name}")) as copy:
        copy.write(file.read_bytes())
  outputs = []
  for root, own, true in (
    (bucket.root, f"{bucket.root}/labels", f"{bucket.root}/truth"),
    (str(tmp_path), str(labels), str(world / "pile_truth")),
  ):
    words = ["thresholds", own, "--validation", own, "--dataset"]
    assert main([*words, f"{true}:train", "--out", f"{root}/out.json"]) == 0
    assert main(["inspect", own, "--against", true]) == 0
    text = capsys.readouterr().out
    files = [read_file(Path(f"{root}/out.{end}")) for end in ("json", "svg")]
    outputs.append(
      (text.replace(own, "").replace(true, "").replace(root, ""), files)
    )
  assert outputs[0] == outputs[1]
  config = base_config()
  config.tasks.it = task("detection", labels={})
  path = str(write_config_file(tmp_path, config))
  option = f"--config.tasks.it.min_score={bucket.root}/out.json"
  found = load(path, [option], read_file)
  expected = json.loads(outputs[0][1][0])["objects"]
  assert dict(found.tasks.it.min_score) == expected


def test_labels_without_scores_are_told(
  world, truth, classes, tmp_path, capsys
):
  teacher = Noisy(truth, classes, scored=False)
  worker.label_images(teacher, world / "pile", "train", tmp_path / "sure")
  for wish in (["--count", "9"], ["--validation", tmp_path / "nothing"]):
    line = fails(capsys, tmp_path / "sure", *wish, "--out", tmp_path / "x.json")
    assert "has no counts of scores of 'mask'" in line


def test_corrections_are_read_whatever_their_scores(
  world, truth, classes, tmp_path, capsys
):
  class People(Noisy):
    description = {"digest": "", "corrections": {"by": "somebody"}}  # noqa: RUF012

  worker.label_images(
    People(truth, classes), world / "pile", "train", tmp_path / "mended"
  )
  line = fails(
    capsys, tmp_path / "mended", "--count", "9", "--out", tmp_path / "x.json"
  )
  assert "read whatever their scores: there is no threshold to choose" in line


def test_of_classes_that_the_truth_does_not_know_nothing_is_wrong(
  world, labels, classes, curves, tmp_path
):
  """Two truths that know half of the classes each are as good as one."""
  whole = ImageSet.open(world / "pile_truth", "train")
  fields = {n: KINDS[d["kind"]].of(d) for n, d in whole.fields.items()}
  halves = [classes["objects"][i::2] for i in range(2)]

  def examples(ids):
    for i in range(NUM_IMAGES):
      head = parse_image(whole.read(i))
      found = stored_labels(whole.read(i), fields)
      found["objects"] = fields["objects"].with_class_ids(found["objects"], ids)
      yield {
        "key": head["key"].numpy(),
        "image": head["image"].numpy(),
        "height": int(head["size"][0]),
        "width": int(head["size"][1]),
        "labels": found,
      }

  truths = []
  for number, known in enumerate(halves):
    ids = [known.index(k) if k in known else -1 for k in classes["objects"]]
    listed = whole.fields | {
      "objects": {"kind": "Boxes", "classes": list(known)}
    }
    write_image_set(
      tmp_path / str(number),
      whole.name,
      "train",
      examples(np.array(ids)),
      listed,
      records_per_shard=NUM_IMAGES // 2,
    )
    truths.append((str(tmp_path / str(number)), "train"))
  opened = LabelSet.open(labels)
  both, one = (
    score_curves.measure(opened, labels, given)["objects"]
    for given in (truths, truths[:1])
  )
  for k, expected in enumerate(curves["objects"]):
    for found in (both[k], one[k]) if k % 2 == 0 else (both[k],):
      assert found.kept.tolist() == expected.kept.tolist()
      assert found.right.tolist() == expected.right.tolist()
      assert found.num_images == expected.num_images
    if k % 2:
      assert (len(one[k].scores), one[k].num_images) == (0, 0)


def test_classes_that_the_teacher_does_not_know(
  world, truth, classes, tmp_path
):
  fewer = {name: names[:-1] for name, names in classes.items()}
  last = len(fewer["objects"])

  class Narrow(Noisy):
    def _labels(self, image):
      labels = super()._labels(image)
      keep = labels["objects"]["classes"] < last
      labels["objects"] = {k: v[keep] for k, v in labels["objects"].items()}
      mask = labels["mask"]["classes"]
      labels["mask"]["classes"] = np.minimum(mask, len(fewer["mask"]) - 1)
      return labels

  teacher = Narrow(truth, fewer)
  worker.label_images(teacher, world / "pile", "train", tmp_path / "narrow")
  with pytest.raises(ValueError, match="classes of 'mask' that the teacher"):
    score_curves.measure(
      LabelSet.open(tmp_path / "narrow"),
      tmp_path / "narrow",
      [(str(world / "pile_truth"), "train")],
    )
