import argparse
import dataclasses
import json
import pathlib

import jax
import pytest

from must_jax.config import base_config, dataset, task
from must_jax.preflight import compiled, places, plan_arguments
from must_jax.preflight import plan as plan_command
from must_jax.preflight.chips import Slice

ROOT = pathlib.Path(__file__).parents[2]
STUDENT = (
  "configs/student.py:smoke,tasks=classification+segmentation+depth,labels=L"
)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
  monkeypatch.chdir(ROOT)


@pytest.fixture
def without_compiler(monkeypatch):
  monkeypatch.setattr(plan_command, "has_compiler", lambda: False)


def plan(tmp_path, *argv):
  """Runs the command; returns the figures."""
  parser = argparse.ArgumentParser()
  plan_arguments.add_arguments(parser)
  out = tmp_path / "plan.json"
  args, rest = parser.parse_known_args([*argv, "--json", str(out)])
  assert plan_command.run(args, rest) == 0
  return json.loads(out.read_text())


def unknown_config(*kinds):
  config = base_config()
  config.datasets.all = dataset("nowhere", "train")
  config.train_on = ("all",)
  for kind in kinds:
    config.tasks[kind] = task(kind, labels={"all": "supervised"})
  return config


def test_training_is_planned_without_data_and_compiler(
  tmp_path, capsys, without_compiler
):
  found = plan(
    tmp_path,
    f"--config={STUDENT}",
    "--topology=v5e-4",
    "--classes=classification=10",
    "--classes=segmentation=7",
    "--images=1000",
    "--config.train.accumulate=2",
  )
  assert (found["chips"], found["hosts"]) == (4, 1)
  assert found["images_per_chip"] == 2
  # float32 parameters, their velocity, and little else.
  assert found["checkpoint_bytes"] == pytest.approx(
    8 * found["parameters"], rel=0.1
  )
  assert found["label_bytes"]["classification"] == 60
  assert found["run_hours"] == pytest.approx(
    [10 * seconds / 3600 for seconds in found["step_seconds"]]
  )
  assert found["epoch_hours"][0] == pytest.approx(
    1000 / found["images_per_second"][0] / 3600
  )
  assert "8 images, 2 a chip in 2 parts" in capsys.readouterr().out


def test_the_largest_batch_is_looked_for_in_images_of_a_chip_at_a_time(
  tmp_path, monkeypatch
):
  lower_training, lowered = compiled.lower_training, []

  def lower_once(config, devices):
    if not lowered:
      lowered.append(lower_training(config, devices))
    return dataclasses.replace(lowered[0], batch_size=config.data.batch_size)

  def compile_step(lowered, effort, with_work):
    assert effort == compiled.LEAST_EFFORT
    return compiled.StepCost(hbm=1.0, fits=lowered.batch_size <= 2 * 3)

  monkeypatch.setattr(plan_command, "has_compiler", lambda: True)
  monkeypatch.setattr(Slice, "devices", lambda self: jax.devices()[:1])
  monkeypatch.setattr(compiled, "lower_training", lower_once)
  monkeypatch.setattr(compiled, "compile_step", compile_step)
  found = plan(
    tmp_path,
    "--config=configs/student.py:smoke,tasks=depth",
    "--topology=v5e:1x1",
    "--config.train.accumulate=2",
    "--largest-batch",
  )
  assert found["largest_per_chip"] == 3


def test_labelling_is_planned_from_a_config_or_a_published_kind(
  tmp_path, without_compiler
):
  found = plan(
    tmp_path,
    "--config=configs/label.py:batch_size=8",
    "--teacher-config=configs/teacher_depth.py:smoke",
    "--teacher-config.model.width=16",
    "--topology=v4-16",
  )
  assert (found["chips"], found["images_per_chip"]) == (8, 2)
  # 16 x 16 cells, a quarter of them padding.
  assert found["label_bytes"] == {"depth": pytest.approx(1.33 * 192)}
  published = plan(
    tmp_path,
    "--config=configs/label_midas.py:batch_size=8",
    "--teacher-config=midas_v21_small",
    "--topology=v4-16",
  )
  # A photo of 4:3 fills 192 x 256; every second pixel a side is stored.
  assert published["label_bytes"] == {"depth": pytest.approx(1.33 * 96 * 128)}


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["--topology=v9"], "v5e-256"),
    (["--config=configs/none.py"], "there is no such file"),
    (["--classes=classification"], "expected TASK=COUNT"),
    (["--classes=normals=3"], "has the tasks"),
    (["--config.optimizer.speed=3"], "speed"),
    (["--speed"], "speed"),
    (["--config.sampling=never"], "sampling is 'never'"),
    (["--config.train.accumulate=3"], "4 devices cannot share"),
  ],
)
def test_what_does_not_fit_is_answered_with_what_does(tmp_path, argv, message):
  counts = ["--classes=classification=10", "--classes=segmentation=7"]
  given = [f"--config={STUDENT}", "--topology=v5e-4", *counts, *argv]
  with pytest.raises(ValueError, match=message):
    plan(tmp_path, *given)


@pytest.mark.parametrize("root", ["", "gs://bucket/must"])
def test_the_paper_is_planned_without_data(
  tmp_path, monkeypatch, capsys, without_compiler, root
):
  monkeypatch.setattr(
    places, "is_file", lambda path: "://" not in str(path) and path.exists()
  )
  monkeypatch.setattr(plan_command, "is_file", lambda path: False)
  found = plan(
    tmp_path,
    f"--config=configs/student_jft.py:root={root}",
    "--topology=v5e:16x16",
    "--classes=detection=80",
  )
  assert (found["chips"], found["images_per_chip"]) == (256, 1)
  assert found["assumed_classes"] == {
    "classification": 1000,
    "segmentation": 133,
  }
  assert "classification 1000, segmentation 133: the paper's" in (
    capsys.readouterr().out
  )


def test_classes_of_labels_that_are_there_are_not_assumed(tmp_path):
  (tmp_path / "images").mkdir()
  index = {
    "schema_version": 1,
    "name": "boxes",
    "licence": "",
    "fields": {"objects": {"kind": "Boxes", "classes": ["cat", "dog"]}},
    "splits": {"train": {"num_records": 0, "shards": []}},
  }
  (tmp_path / "images" / "index.json").write_text(json.dumps(index))
  config = unknown_config("detection", "segmentation")
  config.datasets.mine = dataset(tmp_path / "images", "train")
  config.tasks.detection.labels = {"mine": "supervised"}
  assumed = plan_command._assumed_classes(config, {})
  assert assumed == {"segmentation": 133}
  filled = plan_command.fill_classes(config, assumed)
  assert filled.tasks.detection.classes == ("cat", "dog")
  assert len(filled.tasks.segmentation.classes) == 133


def test_a_task_whose_classes_nobody_knows_says_how_to_give_them():
  with pytest.raises(ValueError, match="--classes detection=COUNT"):
    plan_command.fill_classes(unknown_config("detection", "depth"), {})


def test_maps_of_values_need_no_classes():
  config = plan_command.fill_classes(unknown_config("depth", "normals"), {})
  assert config.tasks.depth.classes == ()


def test_a_teacher_that_is_not_at_hand_asks_for_its_config(tmp_path):
  argv = ["--config=configs/label.py:teacher=nowhere", "--topology=v5e-4"]
  with pytest.raises(ValueError, match="--teacher-config"):
    plan(tmp_path, *argv)


@pytest.mark.parametrize(
  "option", ["--parts", "--largest-batch", "--full-effort"]
)
def test_what_asks_the_compiler_needs_it(tmp_path, without_compiler, option):
  with pytest.raises(ValueError, match=f"{option} .* libtpu is not installed"):
    plan(tmp_path, f"--config={STUDENT}", "--topology=v5e-4", option)


@pytest.mark.slow
# What was compiled for a TPU that is not there is cached, but cannot be loaded.
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
@pytest.mark.parametrize("stage", ["train", "label"])
def test_a_tiny_config_compiles_for_a_tpu(tmp_path, stage):
  pytest.importorskip("libtpu")
  argv = {
    "train": [
      f"--config={STUDENT}",
      "--classes=classification=10",
      "--classes=segmentation=7",
    ],
    "label": [
      "--config=configs/label.py:batch_size=8",
      "--teacher-config=configs/teacher_depth.py:smoke",
    ],
  }[stage]
  found = plan(tmp_path, *argv, "--topology=v5e-4", "--parts")
  step = found["step"]
  assert step["fits"]
  assert 0 < step["hbm"] < found["hbm"]
  # Gradients are averaged in training; in labelling nobody waits for another.
  assert step["sent"] == (
    pytest.approx(4 * found["parameters"] * 2 * 3 / 4)
    if stage == "train"
    else 0
  )
  # A network as small as this is padded to the size of the hardware's units.
  written = found["flops_per_image"] * found["images_per_chip"]
  assert step["flops"] > 0.5 * written
  # Nearly all products are the model's.
  products = [w for w in step["work"] if w["kind"] == "products"]
  rest = [
    w["cycles"]
    for w in products
    if not w["part"].startswith(("backbone", "fpn", "neck", "head"))
  ]
  assert sum(rest) < 0.05 * sum(w["cycles"] for w in products)
