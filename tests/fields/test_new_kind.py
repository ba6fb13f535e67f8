"""A new kind of label field is one class: all the rest goes through it."""

import json

import numpy as np
import pytest
from PIL import Image

from must_jax import fields, tasks
from must_jax.cli import main
from must_jax.config import base_config, dataset, smoke, task
from must_jax.storage.sets import read_manifest

PAGE = "docs/your-own-field.md"


@pytest.fixture
def new_kind(code_of):
  code = code_of(PAGE, "own field", "task of own field")
  # exec'd dataclasses look their module up.
  exec(code, {"__name__": __name__})
  yield
  del fields.KINDS["Number"], tasks.TASKS["guess"]


def draw_photos():
  rng = np.random.default_rng(0)
  for i in range(8):
    pixels = rng.integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(f"photos/image-{i}.png", "PNG")


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
  new_kind, code_of, tmp_path, monkeypatch, capsys
):
  from must_jax.main import run_stage

  monkeypatch.chdir(tmp_path)
  (tmp_path / "photos").mkdir()
  draw_photos()
  exec(code_of(PAGE, "labels of own field"), {})
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
