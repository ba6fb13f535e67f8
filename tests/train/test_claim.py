"""One workdir, one run; and what is wrong is said before anything compiles."""

import functools
import json
import os
import pathlib
import shutil
import types

import pytest

from must_jax import config as config_lib
from must_jax.config import dataset
from must_jax.input import sources
from must_jax.storage import label_sets
from must_jax.storage.path import is_same, publish_json
from must_jax.storage.sets import ImageSet
from must_jax.train import build, checkpoint, loop, mesh
from must_jax.train.claim import Claim


@pytest.fixture
def data(world, tmp_path):
  """Copies of images to move about; those to train on, and for evaluation."""
  shutil.copytree(world / "src_cls", tmp_path / "data")
  return tmp_path / "data"


@pytest.fixture
def make(make_config, data):
  """Makes configs of a run on `data`; options by their whole name."""

  def make(directory=data, split="train", **options):
    config = make_config("classification")
    config.datasets.all = dataset(str(directory), split)
    config.update_from_flattened_dict(options)
    return sources.resolve(config)

  return make


@pytest.fixture
def run(make, tmp_path):
  """The workdir of a run that has made a step."""
  return begun(make(), tmp_path / "run")


def begun(config, workdir):
  workdir.mkdir()
  Claim(config, workdir).write()
  return workdir


def forget(run):
  """As an earlier version left it."""
  (run / "run.json").unlink()


def write_labels(directory, images, checksum="0"):
  """A label set that says no more than that it is finished."""
  images = ImageSet.open(images, "train")
  fields = images.fields
  job = label_sets.describe_job(images, fields, {"digest": "0"}, {})
  shards = [
    {**shard, "checksum": f"{checksum}{i}"}
    for i, shard in enumerate(job["image_set"]["shards"])
  ]
  directory.mkdir(parents=True)
  publish_json(directory / "manifest.json", job | {"shards": shards})


# Places


def test_a_place_is_the_same_however_it_is_written(make, run, data):
  Claim(make(f"{data}/"), run)
  Claim(make(f"{data.parent}/./data/../data"), run)
  Claim(make(os.path.relpath(data)), run)
  forget(run)
  Claim(make(os.path.relpath(data) + "/"), run)
  assert is_same("gs://b/x/", "gs://b/x") and not is_same(
    "gs://b/x", "gs://c/x"
  )


def test_images_that_were_moved_are_the_same(make, run, data, tmp_path):
  data.rename(tmp_path / "elsewhere")
  moved = make(tmp_path / "elsewhere")
  Claim(moved, run).write()
  assert json.loads((run / "config.json").read_text())["datasets"]["all"][
    "dir"
  ] == str(tmp_path / "elsewhere")
  forget(run)
  shutil.copytree(tmp_path / "elsewhere", data)
  Claim(make(), run)  # an old run: both places are there, and alike
  shutil.rmtree(tmp_path / "elsewhere")
  with pytest.raises(ValueError, match=r"datasets.all was .*elsewhere.*, is "):
    Claim(make(), run)


def test_other_images_are_another_run(make, run, data, world):
  with pytest.raises(
    ValueError, match=r"datasets.all was .* is .* other recor"
  ):
    Claim(make(split="validation"), run)
  shutil.rmtree(data)
  shutil.copytree(world / "pile_truth", data)
  with pytest.raises(ValueError, match="has other records than when the run b"):
    Claim(make(), run)


def test_labels_that_were_moved_are_the_same(make, data, tmp_path):
  labels, moved = tmp_path / "labels", tmp_path / "moved"
  write_labels(labels, data)
  key = "tasks.classification.labels"
  run = begun(make(**{key: {"all": str(labels)}}), tmp_path / "run")
  labels.rename(moved)
  Claim(make(**{key: {"all": f"{moved}/"}}), run)
  write_labels(labels, data, "1")
  with pytest.raises(ValueError, match=f"{key}.all: .* has other records"):
    Claim(make(**{key: {"all": str(labels)}}), run)
  for other in ("supervised", ("supervised", str(moved))):
    with pytest.raises(ValueError, match=f"{key}.all"):
      Claim(make(**{key: {"all": other}}), run)


def test_where_a_run_began_may_move_or_go(make, make_config, tmp_path):
  loop.train(make_config("classification", steps=3), tmp_path / "first")
  start = {"init_from": str(tmp_path / "first")}
  begun(make(**start), tmp_path / "run")
  loop.train(make_config("depth", steps=3), tmp_path / "other")
  with pytest.raises(ValueError, match=r"init_from was .*first', is .*other'"):
    Claim(make(init_from=str(tmp_path / "other")), tmp_path / "run")
  shutil.move(tmp_path / "first", tmp_path / "moved")
  Claim(make(init_from=str(tmp_path / "moved")), tmp_path / "run").write()
  shutil.rmtree(tmp_path / "moved")
  Claim(make(init_from=str(tmp_path / "moved") + "/"), tmp_path / "run").write()


# Options


def test_how_a_run_is_measured_may_change(make_config, make, run, data):
  config = make_config("classification")
  config.datasets.all = dataset(str(data), "train")
  config.datasets.more = dataset(str(data), "validation")
  config.tasks.classification.labels.more = "supervised"
  config.tasks.classification.top_k = 3
  config.evaluate_on = ("more",)
  config.data.update({"eval_resize": "center_crop", "crop_fraction": 0.9})
  config.data.eval_batch_size = 3
  config.label.batch_size = 3
  config.evaluate_from = "elsewhere"
  Claim(sources.resolve(config), run).write()
  Claim(make(), run)
  config.data.train_resize = "center_crop"
  with pytest.raises(ValueError, match=r"data.train_resize"):
    Claim(sources.resolve(config), run)


@pytest.mark.parametrize(
  ("kind", "options"),
  [
    ("detection", {"metric": "voc", "nms_iou": 0.3, "max_detections": 7}),
    ("depth", {"max_depth": 3.0, "crop": "eigen"}),
  ],
)
def test_how_a_task_is_measured_may_change(
  make_config, tmp_path, kind, options
):
  Claim(sources.resolve(make_config(kind)), tmp_path).write()
  config = make_config(kind)
  config.tasks[kind].update(options)
  Claim(sources.resolve(config), tmp_path)


def test_a_run_keeps_its_defaults_when_those_of_a_version_change(
  make, run, monkeypatch
):
  original = config_lib.base_config

  def newer():
    config = original()
    config.optimizer.momentum = 0.8
    with config.unlocked():
      config.optimizer.novelty = 1
    return config

  # Of files that say nothing of the novelty.
  texts = {
    momentum: config_lib.to_json(make(**{"optimizer.momentum": momentum}))
    for momentum in (0.8, 0.7)
  }
  monkeypatch.setattr(config_lib, "base_config", newer)

  def config(momentum):
    return config_lib.from_json(texts[momentum])

  assert original().optimizer.momentum == 0.9
  for _ in range(2):
    made = Claim(config(0.8), run)
    assert made.config.optimizer.momentum == 0.9
    assert made.config.optimizer.novelty == 1
    made.write()
  with pytest.raises(ValueError, match=r"momentum was 0.9, is 0.7"):
    Claim(config(0.7), run)


def test_a_run_of_before_there_were_such_options_goes_on(make, run):
  chosen = {
    "train.best_metric": "all/classification/top1",
    "train.patience": 3,
    "train.pictures": 2,
    "train.profile_steps": (1, 2),
    "trackers": ("wandb",),
  }
  stored = [json.loads((run / "config.json").read_text())]
  record = json.loads((run / "run.json").read_text())
  stored.append(record["defaults"])
  for tree in stored:
    for option in chosen:
      *groups, name = option.split(".")
      functools.reduce(dict.__getitem__, groups, tree).pop(name)
  publish_json(run / "config.json", stored[0])
  publish_json(run / "run.json", record)
  for options in ({}, chosen):
    claim = Claim(make(**options), run)
    for option, value in chosen.items():
      given = (
        value
        if options
        else config_lib.options(config_lib.base_config())[option]
      )
      assert config_lib.options(claim.config)[option] == given
    claim.write()


def test_a_run_may_give_up_later(make, run):
  # As the messages advise when it has given up.
  options = {"data.max_bad": 0.5, "train.max_rollbacks": 100}
  Claim(make(**options), run).write()
  assert json.loads((run / "config.json").read_text())["data"]["max_bad"] == 0.5


def test_of_two_runs_that_begin_together_one_goes_on(make, tmp_path, run):
  first, second = (
    Claim(make(**{"optimizer.lr": lr}), tmp_path) for lr in (0.1, 0.2)
  )
  first.write()
  first.write()
  with pytest.raises(ValueError, match=r"Another run .* has taken"):
    second.write()
  assert (
    json.loads((tmp_path / "config.json").read_text())["optimizer"]["lr"] == 0.1
  )
  Claim(make(**{"optimizer.lr": 0.1}), tmp_path).write()
  # Two that go on: the later one is told, too.
  first, second = (Claim(make(**{"data.num_threads": n}), run) for n in (1, 2))
  first.write()
  with pytest.raises(ValueError, match=r"Another run .* has taken"):
    second.write()


def test_what_was_chosen_is_not_taken_for_a_default(make, tmp_path):
  Claim(make(**{"optimizer.momentum": 0.7}), tmp_path).write()
  with pytest.raises(ValueError, match=r"momentum was 0.7, is 0.9"):
    Claim(make(), tmp_path)


def test_nobody_is_told_to_delete(make, run):
  with pytest.raises(ValueError) as error:
    Claim(make(**{"optimizer.lr": 0.5}), run)
  assert "optimizer.lr was 0.02, is 0.5" in str(error.value)
  assert "another --workdir" in str(error.value)
  assert "elete this" not in str(error.value)


# Before the first compile


@pytest.fixture
def nothing_compiles(monkeypatch):
  def fail(self):
    raise AssertionError("compiled")

  monkeypatch.setattr(build.Program, "create_state", fail)


def refused(config, workdir):
  """The error; the workdir is free afterwards."""
  with pytest.raises(ValueError) as error:
    loop.train(config, workdir)
  assert not (pathlib.Path(workdir) / "config.json").exists()
  return str(error.value)


@pytest.fixture
def evaluated(make_config, data):
  """The config of a run that is evaluated on other images."""
  config = make_config("classification")
  config.datasets.more = dataset(str(data), "validation")
  config.tasks.classification.labels.more = "supervised"
  config.evaluate_on = ("more",)
  return config


def test_data_of_evaluation_are_opened_first(
  evaluated, nothing_compiles, data, tmp_path
):
  (shard, *_) = sorted(data.glob("*validation*.tfrecord"))
  shard.unlink()
  assert f"{shard} is missing" in refused(evaluated, tmp_path / "run")


def test_labels_of_evaluation_must_be_those_of_its_images(
  evaluated, nothing_compiles, data, tmp_path
):
  write_labels(tmp_path / "labels", data)
  for shard in ImageSet.open(data, "train").shards:
    for name in (shard.file, shard.file.replace(".tfrecord", ".offsets")):
      shutil.copy(data / name, tmp_path / "labels")
  evaluated.tasks.classification.labels.more = str(tmp_path / "labels")
  error = refused(evaluated, tmp_path / "run")
  assert "was made for split 'train'" in error


def test_batches_of_evaluation_must_fit_the_devices(
  evaluated, nothing_compiles, tmp_path, monkeypatch
):
  original, two = mesh.check_batch_size, types.SimpleNamespace(size=2)
  monkeypatch.setattr(
    mesh,
    "check_batch_size",
    lambda name, size, _, *parts: original(name, size, two, *parts),
  )
  evaluated.data.eval_batch_size = 7
  assert "data.eval_batch_size is 7, wh" in refused(evaluated, tmp_path / "run")


def test_a_start_that_does_not_fit_is_said_first(
  make_config, tmp_path, monkeypatch
):
  loop.train(make_config("classification", steps=3), tmp_path / "first")
  config = make_config(
    "classification",
    **{"init_from": str(tmp_path / "first"), "model.width": 16},
  )
  monkeypatch.setattr(
    build.Program, "create_state", lambda self: pytest.fail("compiled")
  )
  assert "does not fit this model" in refused(config, tmp_path / "run")


def test_a_dataset_that_no_task_has_labels_on_is_not_evaluated(evaluated):
  evaluated.tasks.classification.labels = {"all": "supervised"}
  with pytest.raises(ValueError, match="evaluate_on names 'more', on which no"):
    config_lib.validate(evaluated)


def test_a_run_that_made_no_step_claims_no_workdir(
  make_config, tmp_path, monkeypatch
):
  def fail(*_):
    raise ValueError("out of memory")

  with monkeypatch.context() as patched:
    patched.setattr(build.Program, "train_step", property(lambda self: fail))
    refused(make_config("classification", steps=3), tmp_path)
  other = make_config("classification", steps=3, **{"optimizer.lr": 0.01})
  loop.train(other, tmp_path)
  assert (tmp_path / "config.json").exists()


def test_a_converted_checkpoint_is_no_run_to_go_on_from(make_config, tmp_path):
  loop.train(make_config("classification", steps=3), tmp_path / "run")
  checkpoint.write_variables(
    tmp_path / "converted",
    checkpoint.read_config(tmp_path / "run"),
    checkpoint.load_variables(tmp_path / "run"),
    {"kind": "test", "licence": "none"},
  )
  config = make_config("classification", steps=3)
  assert "Start from them, config.init_from" in refused(
    config, tmp_path / "converted"
  )
  assert checkpoint.find(tmp_path / "converted").name == "0"
