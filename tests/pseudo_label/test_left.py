"""Labels of which nothing is left when they are read: everybody says so."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from must_jax.cli import main
from must_jax.config import base_config, dataset, smoke, task
from must_jax.input import sources
from must_jax.pseudo_label import worker
from must_jax.pseudo_label.job import ALARM
from must_jax.storage.sets import read_manifest
from must_jax.train import build, loop

FIELDS = {
  "objects": {"kind": "Boxes", "classes": ["cat", "dog"]},
  "mask": {"kind": "ClassMap", "classes": ["sky", "sea"]},
}


@pytest.fixture(scope="module")
def images(draw_pile):
  return draw_pile(8) / "pile"


@dataclasses.dataclass
class Same:
  """Says the same of every image: a cat and dogs, sky above the sea."""

  dogs: tuple
  sea: float
  fields = FIELDS

  @property
  def description(self):
    return {"digest": f"same {self.dogs} {self.sea}"}

  def __call__(self, images):
    count = 1 + len(self.dogs)
    objects = {
      "boxes": np.tile([0.1, 0.1, 0.6, 0.6], (count, 1)),
      "classes": np.array([0, *[1] * len(self.dogs)]),
      "scores": np.array([0.3, *self.dogs]),
    }
    mask = {
      "classes": np.array([[0, 0], [1, 1]]),
      "confidence": np.array([[0.3, 0.3], [self.sea, self.sea]]),
    }
    return [{"objects": objects, "mask": mask}] * len(images)


@pytest.fixture
def label(images, tmp_path):
  """Makes label sets of what a teacher is how sure of; 0, or the status."""

  def label(name, dogs, sea):
    try:
      worker.label_images(
        Same(dogs, sea), images, "train", tmp_path / name, batch_size=8
      )
    except SystemExit as end:
      return end.code
    return 0

  return label


def student(images, labels, kind, **options):
  config = base_config()
  config.datasets.pile = dataset(str(images), "train")
  config.train_on = ("pile",)
  config.tasks.it = task(kind, labels={"pile": str(labels)})
  config = smoke(config)
  config.tasks.it.update({"min_score": 0.5} | options)
  config.train.steps = 3
  return config


def start(config):
  config = sources.resolve(config)
  sources.check_labels(sources.train_union(config))


def test_nothing_left_is_an_alarm_of_the_job(label, tmp_path):
  assert label("none", (0.4, 0.49), 0.49) == ALARM
  manifest = read_manifest(tmp_path / "none")
  assert len(manifest["alarms"]) == 2
  assert manifest["left"] == {
    "objects": {
      "min_score": 0.5,
      "elements": 0,
      "classes": {"cat": 0, "dog": 0},
    },
    "mask": {"min_score": 0.5, "elements": 0, "classes": {"sky": 0, "sea": 0}},
  }
  assert main(["data", "verify", str(tmp_path / "none")]) == 0


@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_nothing_left_stops_a_student_before_it_compiles(
  images, label, tmp_path, monkeypatch, kind
):
  label("none", (0.4, 0.49), 0.49)
  monkeypatch.setattr(
    build.Program, "create_state", lambda self: pytest.fail("compiled")
  )
  with pytest.raises(ValueError) as error:
    loop.train(student(images, tmp_path / "none", kind), tmp_path / "run")
  text = str(error.value)
  stored = {"detection": "24 boxes in 8", "segmentation": "32 pixels in 8"}
  assert f"{stored[kind]} labels, of which 0 (0.0%) have a score of 0.5" in text
  assert "tasks.it.min_score" in text and str(tmp_path / "none") in text
  start(student(images, tmp_path / "none", kind, min_score=0.3))


def test_labels_that_hold_nothing_stop_a_student(images, tmp_path):
  class Blind(Same):
    def __call__(self, images):
      return [{}] * len(images)

  with pytest.raises(SystemExit):
    worker.label_images(Blind((), 1.0), images, "train", tmp_path / "blind")
  config = student(images, tmp_path / "blind", "detection", min_score=0.0)
  with pytest.raises(ValueError, match="0 boxes in 0 labels, so"):
    start(config)


def test_corrections_that_hold_nothing_do_not_stop_a_student(
  images, label, tmp_path, caplog
):
  """People may have rejected some images, or found nothing there."""

  class People(Same):
    description = {"digest": "", "corrections": {"by": "ann"}}  # noqa: RUF012

    def __call__(self, images):
      return [{}] * len(images)

  worker.label_images(People((), 1.0), images, "train", tmp_path / "people")
  label("dogs", (0.9, 0.6), 0.7)
  caplog.set_level(logging.INFO)
  config = student(images, "", "detection", min_score=0.3)
  both = [str(tmp_path / name) for name in ("people", "dogs")]
  config.tasks.it.labels.pile = tuple(both)
  start(config)
  assert f"{both[0]}: 0 boxes in 0 labels." in caplog.text
  assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_class_of_which_nothing_is_left_is_a_warning(
  images, label, tmp_path, caplog
):
  assert label("dogs", (0.9, 0.6), 0.7) == 0
  caplog.set_level(logging.INFO)
  start(student(images, tmp_path / "dogs", "detection"))
  (record,) = [r for r in caplog.records if "Task 'it'" in r.getMessage()]
  assert record.levelno == logging.WARNING
  assert "24 boxes in 8 labels, of which 16 (66.7%) have" in record.getMessage()
  assert "Nothing is left of 1 classes: 'cat'." in record.getMessage()
  caplog.clear()
  start(student(images, tmp_path / "dogs", "detection", min_score=0.3))
  (record,) = [r for r in caplog.records if "Task 'it'" in r.getMessage()]
  assert record.levelno == logging.INFO


def test_each_class_is_read_from_its_own_threshold(images, label, tmp_path):
  label("dogs", (0.9, 0.6), 0.7)
  config = student(images, tmp_path / "dogs", "detection")

  def boxes():
    opened = sources.resolve(config)
    batch = next(iter(sources.eval_batches(opened, "pile", print)))
    objects = batch["labels"]["it"]["objects"]
    return np.bincount(objects["classes"][objects["valid"]], minlength=2)

  np.testing.assert_array_equal(boxes(), [0, 16])
  config.tasks.it.min_score = {"cat": 0.3, "dog": 0.8}
  np.testing.assert_array_equal(boxes(), [8, 8])
  config.tasks.it.min_score = {"*": 0.3, "dog": 1.0}
  np.testing.assert_array_equal(boxes(), [8, 0])
  config.tasks.it.min_score = {"dgo": 0.3}
  with pytest.raises(ValueError, match=r"class 'dgo'; .* Did you mean 'dog'\?"):
    start(config)


def test_sets_of_earlier_versions_stop_a_student_too(images, label, tmp_path):
  label("old", (0.4, 0.45), 0.4)
  path = tmp_path / "old/manifest.json"
  manifest = json.loads(path.read_text())
  del manifest["left"], manifest["statistics"]["objects"]["class_scores"]
  path.write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match=r"of which 0 \(0\.0%\) have"):
    start(student(images, tmp_path / "old", "detection"))
  start(student(images, tmp_path / "old", "detection", min_score=0.4))
  del manifest["statistics"]
  path.write_text(json.dumps(manifest))
  start(student(images, tmp_path / "old", "detection"))  # is not known


def test_inspect_tells_what_is_left_at_any_score(label, tmp_path, capsys):
  label("some", (0.9, 0.6), 0.7)
  directory = str(tmp_path / "some")

  def lines(*words):
    assert main(["inspect", directory, *words]) == 0
    return capsys.readouterr().out

  text = lines()
  assert (
    "objects: 24 boxes in 8 labels, of which 16 (66.7%) have a score of" in text
  )
  assert (
    "dog                                16              16 (100.0%)" in text
  )
  assert (
    "cat                                 8                 0 (0.0%)" in text
  )
  assert "mask: 32 pixels in 8 labels, of which 16 (50.0%) have" in text
  text = lines("--min-score=0.8")
  assert "of which 8 (33.3%) have a score of 0.8 or more" in text
  assert (
    "dog                                16                8 (50.0%)" in text
  )
  assert "of which 0 (0.0%) have a score of 0.8 or more" in text
