import dataclasses
import json
import os
import pathlib
import re
import signal

import jax
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from must_jax import cli
from must_jax.config import base_config, dataset, task
from must_jax.curation import inspect
from must_jax.fields import Boxes, ValueMap
from must_jax.input.batches import eval_batches
from must_jax.input.origins import Source
from must_jax.input.union import Union
from must_jax.pseudo_label import worker
from must_jax.pseudo_label.status import status
from must_jax.storage.sets import LabelSet
from must_jax.train import checkpoint
from must_jax.train.build import build_model, build_tasks
from must_jax.train.state import init_variables

DOCS = pathlib.Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def images(draw_pile):
  return draw_pile(10) / "pile"


@dataclasses.dataclass
class Corners:
  """Says of every image that its upper left quarter is a cat."""

  fields: dict
  description: dict
  labels: int = 1

  def __call__(self, images):
    assert all(image.dtype == np.uint8 for image in images)
    label = {
      "objects": {
        "boxes": np.array([[0, 0, 0.5, 0.5]]),
        "classes": np.array([0]),
        "scores": np.array([0.9]),
      }
    }
    return [label] * (len(images) * self.labels)


def corners(**options):
  fields = {"objects": {"kind": "Boxes", "classes": ["cat"]}}
  return Corners(fields, {"digest": "corners-1"}, **options)


def read(images, labels, field, size=(48, 48)):
  """The labels as a student would read them."""
  source = Source(str(images), "train", {"task": str(labels)})
  batches = eval_batches(
    [source], {"task": field}, batch_size=10, image_size=size
  )
  return next(iter(batches))["labels"]["task"]


def test_any_callable_labels(images, tmp_path):
  worker.label_images(corners(), images, "train", tmp_path, batch_size=4)
  manifest = LabelSet.open(tmp_path).manifest
  assert manifest["teacher"] == {"digest": "corners-1"}
  assert manifest["num_records"] == 10
  objects = read(images, tmp_path, {"objects": Boxes(1, 5)})["objects"]
  np.testing.assert_array_equal(objects["valid"].sum(1), 1)
  np.testing.assert_allclose(objects["boxes"][:, 0], [[0, 0, 24, 24]] * 10)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_worker_that_goes_on_later(images, tmp_path, number):
  teacher, batches = corners(), 0

  def interrupted(given):
    nonlocal batches
    batches += 1
    if batches == 3:  # in the second shard of two
      os.kill(os.getpid(), number)
    return teacher(given)

  interrupted.fields = teacher.fields
  interrupted.description = teacher.description
  with pytest.raises(SystemExit) as exit_info:
    worker.label_images(interrupted, images, "train", tmp_path, batch_size=4)
  assert exit_info.value.code == 42
  assert status(tmp_path).done == 1
  worker.label_images(teacher, images, "train", tmp_path, batch_size=4)
  assert LabelSet.open(tmp_path).manifest["num_records"] == 10


def test_wrong_number_of_labels_is_said(images, tmp_path):
  with pytest.raises(ValueError, match="gave labels for 10"):
    worker.label_images(
      corners(labels=2), images, "train", tmp_path, batch_size=5
    )


def test_example_in_the_docs(images, tmp_path):
  pytest.importorskip("torch")
  text = (DOCS / "your-own-teacher.md").read_text()
  (code,) = re.findall(
    r"<!-- test: own teacher -->\n```python\n(.*?)```", text, re.DOTALL
  )
  scope = {"__name__": "docs"}
  exec(code, scope)
  scope["label_images"](scope["Brightness"](), images, "train", tmp_path)
  depth = read(images, tmp_path, {"depth": ValueMap("inverse")})["depth"]
  assert depth["valid"].all()
  assert 0 < depth["values"].min() < depth["values"].max() < 1


def published(tmp_path, kind, resize, **options):
  """A checkpoint like a converted one, with weights at random."""
  config = base_config()
  config.model.update({"backbone": "resnet18", "width": 8, "dtype": "float32"})
  config.model.update({"channels": 8, "image_mean": (0.5, 0.5, 0.5)})
  config.data.update({"image_size": (64, 64), "eval_resize": resize})
  config.tasks.it = task(kind, labels={}, **options)
  model = build_model(config, build_tasks(config))
  variables = jax.device_get(init_variables(model, (64, 64), jax.random.key(0)))
  checkpoint.write_variables(
    tmp_path, config, dict(variables), {"kind": "test", "licence": "none"}
  )
  return tmp_path


def job_config(teacher, images, **options):
  config = base_config()
  config.stage = "label"
  config.datasets.images = dataset(str(images), "train")
  config.label.update({"teacher": str(teacher), "dataset": "images"})
  config.label.update({"batch_size": 4, **options})
  return config


def test_published_network_labels_by_its_own_rule(images, tmp_path):
  path = published(tmp_path / "net", "depth", "midas_upper_bound")
  worker.label(job_config(path, images), tmp_path / "labels")
  manifest = LabelSet.open(tmp_path / "labels").manifest
  assert manifest["teacher"]["origin"]["licence"] == "none"
  assert manifest["teacher"]["digest"] == checkpoint.fingerprint(path)
  # How it was trained is not known: the paper's rule must not use it.
  assert not {"lr", "batch_size"} & set(manifest["teacher"])
  settings = manifest["settings"]
  assert settings["resize"] == "midas_upper_bound"
  assert settings["image_mean"] == [0.5, 0.5, 0.5]
  json.dumps(manifest)


def test_quality_is_kept_in_the_manifest(fake, images, tmp_path):
  path = published(tmp_path / "net", "depth", "midas_upper_bound")
  labels = tmp_path / "labels"
  worker.label(job_config(path, images), labels)
  found = inspect.record_quality(labels, images.parent / "pile_truth")
  assert 0 <= found["aligned_delta1"] <= 1
  manifest = fake.verify(labels)
  assert manifest["quality"]["metrics"] == found
  assert manifest["quality"]["truth"].endswith("pile_truth")


class Maps:
  """Another person's teacher of two fields."""

  def __init__(self):
    self.description = {"digest": "maps-1"}
    self.fields = {
      "depth": {"kind": "ValueMap", "unit": "inverse"},
      "normals": {"kind": "VectorMap"},
    }

  def __call__(self, images):
    valid = np.ones((6, 6), bool)
    vectors = np.random.default_rng(0).normal(size=(6, 6, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    values = np.linspace(0.1, 1, 36).reshape(6, 6)
    return [
      {
        "depth": {"values": values, "valid": valid},
        "normals": {"vectors": vectors, "valid": valid},
      }
    ] * len(images)


def test_labels_of_own_teachers_are_drawn_and_measured(
  images, tmp_path, capsys
):
  labels = tmp_path / "labels"
  worker.label_images(Maps(), images, "train", labels)
  gallery = tmp_path / "gallery.png"
  truth = images.parent / "pile_truth"
  command = ["inspect", str(labels), "--truth", str(truth)]
  command += ["--images", str(images), "--gallery", str(gallery)]
  assert cli.main(command) == 0
  printed = capsys.readouterr().out
  for metric in ("depth/aligned_delta1", "normals/within_30"):
    assert metric in printed
  # Of each field the same images.
  with Image.open(gallery) as drawn:
    width, height = drawn.size
  pairs = list(inspect.draw_labels(labels, images, 3, (48, 48)))
  assert len(pairs) == 6 and width > 0 and height > 0
  np.testing.assert_array_equal(pairs[0][0], pairs[3][0])
  assert (pairs[0][1] != pairs[3][1]).any()


def test_fields_that_no_task_reads_are_named(images, tmp_path):
  teacher = corners()
  teacher.fields = {"things": teacher.fields["objects"]}
  label = teacher([np.zeros((1, 1, 3), np.uint8)])[0]

  def renamed(given):
    return [{"things": label["objects"]}] * len(given)

  renamed.fields, renamed.description = teacher.fields, teacher.description
  worker.label_images(renamed, images, "train", tmp_path)
  with pytest.raises(ValueError, match=r"reads the field 'things' of kind Box"):
    list(inspect.draw_labels(tmp_path, images, 1))


def test_tensorflow_is_kept_off_accelerators(images, tmp_path, monkeypatch):
  hidden = []
  monkeypatch.setattr(
    tf.config,
    "set_visible_devices",
    lambda devices, kind: hidden.append((devices, kind)),
  )

  def union(*args):
    assert hidden == [([], "GPU"), ([], "TPU")]  # before anything is read
    return Union(*args)

  monkeypatch.setattr(worker, "Union", union)
  worker.label_images(corners(), images, "train", tmp_path)


def test_maps_are_stored_at_the_stride_that_is_asked_for(images, tmp_path):
  path = published(tmp_path / "net", "depth", "midas_upper_bound")
  shapes = []
  for stride in (2, 4):
    config = job_config(path, images, map_stride=stride)
    labelling = worker.prepare(config, tmp_path / "labels")
    batch = next(iter(labelling.batches(0)))
    (prediction, *_) = labelling.predict(batch)["rows"]
    labels = labelling.to_labels({"rows": prediction}, batch, 0)
    shapes.append(labels["depth"]["values"].shape)
  assert shapes == [(32, 32), (16, 16)]


def test_a_label_set_of_another_stride_is_another_job(images, tmp_path):
  teacher = published(tmp_path / "net", "depth", "midas_upper_bound")
  config = job_config(teacher, images, map_stride=8)
  worker.label(config, tmp_path / "labels")
  labels = LabelSet.open(tmp_path / "labels")
  assert labels.manifest["settings"]["map_stride"] == 8
  config.label.map_stride = 0
  with pytest.raises(ValueError, match="holds labels of another job"):
    worker.label(config, tmp_path / "labels")
