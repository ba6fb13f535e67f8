"""The best checkpoint, early stop, pictures and traces of a run."""

import contextlib
import gzip
import json

import jax.numpy as jnp
import numpy as np
import pytest

import must_jax
from must_jax.config import dataset, validate
from must_jax.storage.path import Path, list_tree, read_files
from must_jax.train import best, loop, runtime
from must_jax.train.evaluate import Evaluator
from must_jax.train.state import TrainState

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


def state_at(step):
  """A state that is quickly saved."""
  zero = jnp.zeros((), jnp.int32)
  return TrainState(
    step=jnp.int32(step),
    params={"w": jnp.full(3, step, jnp.float32)},
    batch_stats={},
    opt_state={},
    balance={},
    guard={},
    ema={},
    rollbacks=zero,
    batches_left_out=zero,
  )


@contextlib.contextmanager
def opened(config, workdir, back_to=0):
  """`Best` of a start of a run that goes on from a step."""
  found = best.Best(config, workdir, {METRIC: False, METRIC + "k": False})
  with contextlib.closing(found):
    found.go_back(state_at(back_to))
    yield found


def add(found, values, first=1):
  """Evaluations of steps; returns those that saved the run's state."""
  saved = []
  for step, value in enumerate(values, first):
    found.add(
      state_at(step),
      {METRIC: value, METRIC + "k": value},
      lambda step=step: saved.append(step),
    )
  return saved


def test_a_run_that_went_back_forgets_what_was_found(config, tmp_path):
  with opened(config, tmp_path) as found:
    assert add(found, [0.1, 0.5, 0.3, 0.9]) == [1, 2, 4]
    found.go_back(state_at(2))  # as after a streak of skipped steps
  for _ in range(2):  # a later start reads what the first has written
    # Even if it finds checkpoints beyond the step that it went back to.
    with opened(config, tmp_path, back_to=9) as found:
      assert [found.lacks(step) for step in (1, 2, 3, 4)] == [0, 0, 1, 1]
    assert record(tmp_path)["best"] == {"step": 2, "value": 0.5}
  with opened(config, tmp_path, back_to=2) as found:
    assert add(found, [0.2, 0.5], first=3) == []
    assert kept(tmp_path) == [2]  # saved anew
    assert add(found, [0.6], first=5) == [5]
  assert kept(tmp_path) == [5]


def test_what_is_best_without_a_number(config, tmp_path):
  config.train.patience = 2
  nan = float("nan")
  with opened(config, tmp_path) as found:
    assert add(found, [nan, nan, nan]) == [] and not found.is_over
    assert add(found, [0.5, nan], first=4) == [4] and not found.is_over
    assert add(found, [nan], first=6) == [] and found.is_over
  assert record(tmp_path)["best"] == {"step": 4, "value": 0.5}
  assert kept(tmp_path) == [4]


def test_another_metric_counts_anew(config, tmp_path):
  with opened(config, tmp_path) as found:
    add(found, [0.1, 0.5])
  config.train.best_metric = METRIC + "k"
  with opened(config, tmp_path, back_to=2) as found:
    assert found.lacks(2)
    assert add(found, [0.4], first=3) == [3]
  assert record(tmp_path)["evaluations"] == [[3, 0.4]] and kept(tmp_path) == [3]


def test_best_and_pictures_and_trace_in_a_bucket(
  config, bucket, scores, monkeypatch
):
  config.train.update({"steps": 3, "evaluate_every": 1})
  config.train.profile_steps = (2, 2)
  picture = np.zeros((1, 8, 24, 3), np.uint8)
  scores([0.1, 0.5, 0.4])
  init = Evaluator.__init__

  def with_picture(self, *args, **options):
    init(self, *args, **options)
    self.pictures = {"held_out/classification": picture}

  monkeypatch.setattr(Evaluator, "__init__", with_picture)
  workdir = Path(f"{bucket.root}/run")
  loop.train(config, workdir)
  (found,) = read_files([workdir / "best.json"])
  assert json.loads(found)["best"] == {"step": 2, "value": 0.5}
  assert must_jax.load(workdir / "best").path.name == "2"
  names = list_tree(workdir)
  assert any(n.startswith("profile/") and "trace" in n for n in names)
  (events,) = [n for n in names if "tfevents" in n]
  assert b"held_out/classification" in (workdir / events).read_bytes()


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
    ({"best_metric": METRIC + "/red"}, "Did you mean '.*/top1'"),
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
  (trace,) = (tmp_path / "profile").rglob("*.trace.json.gz")
  traced = [
    int(event["args"]["step_num"])
    for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    if event.get("name") == "train"
  ]
  assert sorted(traced) == [2, 3]


def test_pictures_of_several_tasks(make_config, world, tmp_path):
  config = make_config("classification", "depth")
  config.datasets.held_out = dataset(str(world / "pile_truth"), "train")
  for entry in config.tasks.values():
    entry.labels.held_out = "supervised"
  config.evaluate_on = ("held_out",)
  config.data.eval_resize = "shortest_side"  # float images of many sizes
  config = loop.sources.resolve(config)
  program = loop.build(config)
  evaluator = Evaluator(
    config,
    program.model,
    program.tasks,
    program.mesh,
    runtime.open_quarantine(tmp_path),
    num_pictures=3,
  )
  evaluator(program.create_state().variables)
  pictures = evaluator.pictures
  assert set(pictures) == {f"held_out/{name}" for name in config.tasks}
  inputs = [array[:, :, :64] for array in pictures.values()]
  for name, array in pictures.items():
    assert array.shape == (3, 64, 3 * 64, 3) and array.dtype == np.uint8
    np.testing.assert_array_equal(array[:, :, :64], inputs[0])
    image, truth, prediction = np.split(array, 3, axis=2)
    assert (image != truth).any() and (truth != prediction).any(), name


@pytest.mark.parametrize("steps", [(5, 2), (-1, 3), (0, 3), (5, 7), (3,)])
def test_steps_that_cannot_be_traced(config, steps):
  config.train.profile_steps = steps
  with pytest.raises(ValueError, match=r"train.profile_steps.*expected"):
    validate(config)
