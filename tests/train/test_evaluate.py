"""The stage "evaluate": a checkpoint decides, whatever the config says."""

import json
import logging as std_logging

import numpy as np
import pytest
from PIL import Image

from must_jax.cli import main
from must_jax.config import base_config, dataset, smoke, task
from must_jax.export import card
from must_jax.main import run_stage
from must_jax.train import checkpoint, loop

COLORS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 200)}


def import_colors(root, name, order, only=()):
  """Photos of colours, imported with the classes in some order."""
  photos = root / name / "photos"
  for color in only or COLORS:
    (photos / color).mkdir(parents=True)
    for i in range(6):
      rng = np.random.default_rng(i)
      pixels = np.array(COLORS[color]) + rng.integers(-20, 20, (64, 64, 3))
      image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
      image.save(photos / color / f"{i}.png")
  classes = root / name / "classes.txt"
  classes.write_text("\n".join(order) + "\n")
  command = ["import", "folder", "--images", str(photos), "--name", name]
  command += ["--classes", str(classes), "--split", "train"]
  assert main([*command, "--out", str(root / "data" / name)]) == 0
  return dataset(root / "data" / name, "train")


def make_config(entry):
  config = base_config()
  config.datasets.it = entry
  config.train_on = config.evaluate_on = ("it",)
  config.tasks.color = task("classification", labels={"it": "supervised"})
  config = smoke(config)
  config.train.update({"steps": 80, "checkpoint_every": 0, "log_every": 80})
  config.optimizer.lr = 0.05
  config.data.color.update({"num_ops": 0})
  return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run, its config and its result."""
  root = tmp_path_factory.mktemp("colors")
  config = make_config(import_colors(root, "rgb", COLORS))
  result = loop.train(config, root / "run")
  assert result["it/color/top1"] > 0.9
  return root, config, result


@pytest.fixture
def warnings_said(caplog):
  caplog.set_level(std_logging.WARNING, "absl")
  return lambda: " ".join(r.getMessage() for r in caplog.records)


def evaluate(config, workdir):
  config = config.copy_and_resolve_references()
  config.stage = "evaluate"
  return run_stage(config, str(workdir))


def test_the_same_run_again(run):
  root, config, result = run
  before = (root / "run" / "result.json").read_bytes()
  assert evaluate(config, root / "run") == result
  assert (root / "run" / "result.json").read_bytes() == before


def test_classes_in_another_order_are_the_same_by_name(run, tmp_path):
  root, _, result = run
  order = ("blue", "red", "green")
  config = make_config(import_colors(tmp_path, "bgr", order))
  config.evaluate_from = str(root / "run")
  assert evaluate(config, tmp_path / "new") == result
  written = json.loads((tmp_path / "new" / "result.json").read_text())
  assert written == result
  # And of which weights it is, on what.
  said = json.loads((tmp_path / "new" / "evaluation.json").read_text())
  assert said["metrics"] == result
  assert said["digest"] == checkpoint.fingerprint(root / "run")
  assert said["datasets"]["it"]["name"] == "bgr"
  assert said["datasets"]["it"]["num_records"] == 18


def test_a_card_has_the_metrics_of_both(run, tmp_path):
  root, config, result = run
  own = card.collect(root / "run").evaluations
  assert [(e.metrics, e.problem) for e in own] == [(result, "")]
  config = config.copy_and_resolve_references()
  config.evaluate_from = str(root / "run")
  evaluate(config, tmp_path / "new")
  facts = card.collect(root / "run", [tmp_path / "new"])
  assert [e.metrics for e in facts.evaluations] == [result, result]
  # The weights of the loss, and how often images were drawn, are the run's.
  assert facts.last["step"] == facts.step == config.train.steps
  assert facts.last["examples/it"] == (
    config.train.steps * config.data.batch_size
  )


def test_the_checkpoint_says_what_the_model_is(run, tmp_path, warnings_said):
  root, config, result = run
  large = base_config()
  large.datasets.it, large.evaluate_on = config.datasets.it, ("it",)
  large.tasks.color = task("classification", labels={"it": "supervised"})
  large.evaluate_from = str(root / "run")
  assert evaluate(large, tmp_path / "new") == result
  assert "model.backbone was 'resnet50', is 'resnet18'" in warnings_said()
  assert "image_size" in warnings_said()


def test_fewer_classes_are_told(run, tmp_path, warnings_said):
  root, *_ = run
  entry = import_colors(tmp_path, "two", ("blue", "red"), ("blue", "red"))
  config = make_config(entry)
  config.evaluate_from = str(root / "run")
  found = evaluate(config, tmp_path / "new")
  assert found["it/color/top1"] > 0.9
  assert "no labels of 1 of the 3 classes" in warnings_said()
  assert "'green'" in warnings_said()


def test_classes_that_the_checkpoint_does_not_know(run, tmp_path):
  root, *_ = run
  entry = import_colors(tmp_path, "odd", ("crimson", *COLORS))
  config = make_config(entry)
  config.evaluate_from = str(root / "run")
  with pytest.raises(ValueError, match=r"1 classes that .* 'crimson'"):
    evaluate(config, tmp_path / "new")
  assert not (tmp_path / "new").exists()


def test_tasks_that_the_checkpoint_does_not_have(run, tmp_path):
  root, config, _ = run
  config = config.copy_and_resolve_references()
  config.tasks.hue = config.tasks.color
  config.evaluate_from = str(root / "run")
  with pytest.raises(ValueError, match=r"Task 'hue' .* color \(classif"):
    evaluate(config, tmp_path / "new")
  del config.tasks["hue"]
  config.evaluate_on = ()
  with pytest.raises(ValueError, match=r"evaluate_on is \(\)"):
    evaluate(config, tmp_path / "new")


def test_no_checkpoint_is_said_with_what_makes_it(run, tmp_path):
  _, config, _ = run
  with pytest.raises(ValueError, match="no checkpoint there"):
    evaluate(config, tmp_path / "none")
  assert not (tmp_path / "none").exists()
