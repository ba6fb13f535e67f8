"""A new kind of label field is one class: all the rest goes through it."""

import dataclasses
import io
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from must_jax import fields, tasks
from must_jax.cli import main
from must_jax.config import base_config, dataset, smoke, task
from must_jax.fields.statistics import make_sums
from must_jax.metrics.metric import Metric, counted
from must_jax.models.heads import ClassificationHead
from must_jax.storage.set_writer import write_image_set
from must_jax.storage.sets import read_manifest
from must_jax.types import Mean


@dataclasses.dataclass(frozen=True)
class Number(fields.Field):
  """A number for the whole image: `value` float32 [B]."""

  needed = ("value",)
  features: ClassVar = {"value": "float"}
  store_cost = (1e-6, 8.0)

  def encode(self, arrays):
    return {"value": np.asarray(arrays["value"], np.float32).reshape(1)}

  def parse(self, name, features, table):
    return {"value": features["value"]}

  def move(self, arrays, placement, cells):
    return {"value": arrays["value"]}

  def batch_arrays(self, cells):
    return {"value": jax.ShapeDtypeStruct((), np.float32)}

  def sums(self, arrays):
    return make_sums(elements=1)

  def measure(self, arrays):
    return np.array([arrays["value"]])

  def summarize(self, measured, classes):
    yield f"  {measured.mean():.2f} on average"

  def caption(self, arrays, classes):
    return f"{arrays['value']:.2f}"

  def num_elements(self, cells):
    return 1


class Error(Metric):
  headline = "error"

  def __init__(self):
    self._errors = []

  def update(self, prediction, label, batch):
    rows = counted(label, batch)
    difference = np.asarray(prediction["value"])[rows] - label["value"][rows]
    self._errors += np.abs(difference).tolist()

  def merge(self, other):
    self._errors += other._errors

  def compute(self):
    return {"error": float(np.mean(self._errors or [0.0]))}


@dataclasses.dataclass(frozen=True)
class Guess(tasks.Task):
  @property
  def fields(self):
    return {"how_much": Number()}

  def make_head(self, options):
    return ClassificationHead(1)

  def loss(self, outputs, batch):
    label = batch["labels"][self.name]["how_much"]
    error = jnp.abs(outputs["logits"][:, 0] - label["value"])
    present = label["present"].astype(jnp.float32)
    return {"l1": Mean(jnp.sum(error * present), jnp.sum(present))}

  def predict(self, outputs, map_size=None):
    return {"value": outputs["logits"][:, 0].astype(jnp.float32)}

  def to_labels(self, prediction, content_size, image_size):
    return {"how_much": {"value": prediction["value"]}}

  def make_metrics(self):
    return Error()

  def draw(self, image, arrays):
    return image


@pytest.fixture
def new_kind():
  fields.KINDS["Number"] = Number
  tasks.TASKS["guess"] = Guess
  yield
  del fields.KINDS["Number"], tasks.TASKS["guess"]


def examples():
  rng = np.random.default_rng(0)
  for i in range(8):
    file = io.BytesIO()
    pixels = rng.integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    yield {
      "key": f"image-{i}",
      "image": file.getvalue(),
      "height": 40,
      "width": 50,
      "labels": {"how_much": {"value": i / 4}},
    }


def run(directory, **labels):
  from must_jax.main import run_stage

  config = base_config()
  config.datasets.images = dataset("set", "train")
  config.train_on = config.evaluate_on = ("images",)
  for name, origin in labels.items():
    config.tasks[name] = task("guess", labels={"images": origin})
  config = smoke(config)
  config.train.steps = 3
  return run_stage(config, str(directory))


def test_a_new_kind_is_stored_shown_learned_labelled_and_learned_again(
  new_kind, tmp_path, monkeypatch, capsys
):
  from must_jax.main import run_stage

  monkeypatch.chdir(tmp_path)
  listed = {"how_much": {"kind": "Number"}}
  write_image_set("set", "numbers", "train", examples(), listed)
  assert main(["data", "verify", "set"]) == 0
  assert main(["data", "show", "set", "--out", "sheet.png"]) == 0
  assert "0.88 on average" in capsys.readouterr().out

  result = run("teacher", guess="supervised")
  assert result["images/guess/error"] > 0

  config = base_config()
  config.stage = "label"
  config.datasets.images = dataset("set", "train")
  config.label.update(
    {"teacher": "teacher", "dataset": "images", "batch_size": 4}
  )
  run_stage(config, "labels")
  assert main(["data", "verify", "labels"]) == 0
  assert read_manifest("labels")["statistics"]["how_much"]["elements"] == 8

  Image.new("RGB", (50, 40)).save("photo.png")
  assert main(["predict", "teacher", "photo.png", "--out", "out"]) == 0
  with open("out/predictions.json") as file:
    (image,) = json.load(file)["images"]
  assert isinstance(image["predictions"]["guess"]["value"], float)

  # Two tasks of one kind, each with labels of its own.
  result = run("student", mine="labels", true=("supervised", "labels"))
  assert {*result} == {"images/mine/error", "images/true/error"}
