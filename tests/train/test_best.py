"""The best checkpoint, early stop, pictures and traces of a run."""

import json

import numpy as np
import pytest

import must_jax
from must_jax.config import dataset, validate
from must_jax.train import best, loop
from must_jax.train.evaluate import Evaluator

METRIC = "held_out/classification/top1"


@pytest.fixture
def config(make_config, world):
  config = make_config("classification", steps=6)
  config.datasets.held_out = dataset(str(world / "src_cls"), "validation")
  config.tasks.classification.labels = {
    "all": "supervised",
    "held_out": "supervised",
  }
  config.evaluate_on = ("held_out",)
  config.train.update({"evaluate_every": 1, "best_metric": METRIC})
  validate(config)
  return config


@pytest.fixture
def scores(monkeypatch):
  """Makes evaluations give these values, one after the other."""

  def give(values):
    left = list(values)
    monkeypatch.setattr(
      Evaluator, "__call__", lambda *_: {METRIC: float(left.pop(0))}
    )
    return left

  return give


def record(workdir):
  return json.loads((workdir / "best.json").read_text())


def kept(workdir):
  return [
    int(path.name) for path in (workdir / "best" / "checkpoints").iterdir()
  ]


def test_the_best_checkpoint_is_kept_and_loads(config, tmp_path, scores):
  config.train.checkpoint_every = 2
  scores([0.1, 0.5, float("nan"), 0.5, 0.4, 0.2])
  assert loop.train(config, tmp_path) == {METRIC: 0.2}
  assert record(tmp_path)["best"] == {"step": 2, "value": 0.5}
  assert not record(tmp_path)["stopped_early"]
  assert kept(tmp_path) == [2]
  assert must_jax.load(tmp_path / "best").path.name == "2"
  assert must_jax.load(tmp_path).path.name == "6"


def test_a_run_ends_early_and_stays_ended(config, tmp_path, scores, caplog):
  caplog.set_level("INFO", logger="absl")
  config.train.patience = 2
  left = scores([0.1, 0.5, 0.3, 0.4, 0.9, 0.8, 0.7])
  assert loop.train(config, tmp_path) == {METRIC: 0.4}
  assert record(tmp_path)["stopped_early"] and kept(tmp_path) == [2]
  assert "No better" in caplog.text and "0.5000 at step 2" in caplog.text
  assert must_jax.load(tmp_path).path.name == "4"
  loop.train(config, tmp_path)  # evaluates, and trains no step
  assert must_jax.load(tmp_path).path.name == "4"
  assert left == [0.8, 0.7]
  config.train.patience = 3
  loop.train(config, tmp_path)
  assert must_jax.load(tmp_path).path.name == "6"
  assert record(tmp_path)["best"] == {"step": 5, "value": 0.8}
  assert kept(tmp_path) == [5]


def test_a_resumed_run_keeps_the_same(config, tmp_path, scores, monkeypatch):
  values = [0.1, 0.5, 0.3, 0.6, 0.4, 0.2]
  scores(values)
  loop.train(config, tmp_path / "whole")

  # Killed within step 5, after the best one; and within step 3, before it.
  for killed_at in (5, 3):
    workdir = tmp_path / f"killed{killed_at}"
    scores(values)
    add = best.Best.add

    def add_or_die(self, state, metrics, save, at=killed_at, add=add):
      if int(state.step) == at:
        raise KeyboardInterrupt
      add(self, state, metrics, save)

    with monkeypatch.context() as patch:
      patch.setattr(best.Best, "add", add_or_die)
      with pytest.raises(KeyboardInterrupt):
        loop.train(config, workdir)
    begin = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
    # What was cut off is evaluated again, with nothing in between.
    scores(values[begin - (begin == killed_at) :])
    loop.train(config, workdir)
    assert record(workdir) == record(tmp_path / "whole")
    assert kept(workdir) == kept(tmp_path / "whole") == [4]
    ours, theirs = (
      must_jax.load(path / "best").variables["params"]["head_classification"]
      for path in (workdir, tmp_path / "whole")
    )
    for name, layer in theirs.items():
      for key, array in layer.items():
        np.testing.assert_array_equal(ours[name][key], array)


def test_errors_are_better_when_smaller(make_config, world):
  config = make_config("depth", "normals", "classification")
  config.evaluate_on = ("all",)
  config = loop.sources.resolve(config)
  program = loop.build(config)
  evaluator = Evaluator(
    config, program.model, program.tasks, program.mesh, None
  )
  names = evaluator.metric_names()
  assert names["all/normals/mean"] and names["all/normals/median"]
  assert not names["all/normals/within_11.25"]
  assert not names["all/classification/top1"]
  assert any(
    k.startswith("all/depth/") and v is False for k, v in names.items()
  )


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"best_metric": "held_out/classification/top"}, "Did you mean '.*/top."),
    ({"best_metric": "", "patience": 2}, "train.best_metric; that is empty"),
  ],
)
def test_what_is_refused_before_anything_is_compiled(
  config, tmp_path, options, message
):
  config.train.update(options)
  with pytest.raises(ValueError, match=message):
    loop.train(config, tmp_path)
  assert not (tmp_path / "config.json").exists()


def test_pictures_and_a_trace(config, tmp_path):
  from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
  )

  config.train.update({"steps": 3, "evaluate_every": 3, "pictures": 2})
  config.train.profile_steps = (2, 3)
  loop.train(config, tmp_path)
  events = EventAccumulator(str(tmp_path), {"tensors": 0}).Reload()
  tag = "held_out/classification"
  assert tag in events.Tags()["tensors"]
  drawn = events.Tensors(tag)[0].tensor_proto.string_val
  width, height, *pngs = drawn
  assert (int(width), int(height), len(pngs)) == (3 * 64, 64, 2)
  traces = list((tmp_path / "profile").rglob("*.trace.json.gz"))
  assert len(traces) == 1
