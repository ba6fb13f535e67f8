import json
import os
import re
import shutil
import signal
from itertools import count

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import must_jax
from must_jax.config import dataset, task
from must_jax.input import sources
from must_jax.train import checkpoint, loop
from must_jax.train import mesh as mesh_lib
from must_jax.train.build import build
from must_jax.train.evaluate import evaluate_checkpoint

ALL = ("classification", "detection", "segmentation", "depth", "normals")


def digests(workdir):
  meta = checkpoint.find(workdir) / "meta" / "metadata"
  return json.loads(meta.read_text())["digest"]


def losses(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return {
    line["step"]: line["loss"]
    for line in map(json.loads, lines)
    if "loss" in line
  }


def steps(workdir):
  """Of the lines of metrics, in their order."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["step"] for line in lines]


@pytest.fixture
def interrupt(monkeypatch):
  """Makes the data call a function before the batch of a step."""

  def install(at, action):
    original = sources.train_batches

    def batches(config, start_step, *args):
      made, steps = original(config, start_step, *args), count(start_step)
      take = made._batches

      def interrupted():
        for step, batch in zip(steps, take, strict=False):
          if step == at:
            action(batch)
          yield batch

      made._batches = interrupted()
      return made

    monkeypatch.setattr(sources, "train_batches", batches)

  yield install
  monkeypatch.undo()


def test_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(
  make_config, tmp_path, interrupt, monkeypatch
):
  config = make_config(*ALL)
  loop.train(config, tmp_path / "whole")

  def stop(_):
    raise KeyboardInterrupt

  interrupt(5, stop)
  with pytest.raises(KeyboardInterrupt):
    loop.train(config, tmp_path / "broken")
  assert checkpoint.find(tmp_path / "broken").name == "3"
  monkeypatch.undo()
  loop.train(config, tmp_path / "broken")
  assert digests(tmp_path / "broken") == digests(tmp_path / "whole")
  # Steps 4 and 5 were written before the end, and come again.
  assert steps(tmp_path / "broken") == steps(tmp_path / "whole")
  assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


def test_the_log_says_how_far_a_run_is(make_config, tmp_path, caplog):
  caplog.set_level("INFO")
  config = make_config(*ALL, evaluate_on=("all",))
  loop.train(config, tmp_path)
  log = [r.getMessage() for r in caplog.records if "orbax" not in r.pathname]
  assert "Compiling the training step, which may take minutes." in log
  assert any(m.startswith("Compiled the training step in ") for m in log)
  steps = [m for m in log if m.startswith("step ")]
  assert len(steps) == 6
  for i, line in enumerate(steps[:-1], 1):
    assert re.match(rf"step {i}/6, \d+ (s|min) left: loss [\d.]+, ", line), line
    assert all(f" {kind} " in line for kind in ALL)
  assert steps[-1].startswith("step 6/6: loss ")
  (evaluation,) = [m for m in log if m.startswith("Evaluation at step 6\n")]
  assert "  all/classification/top1 " in evaluation
  # No line is longer than what stands on a screen.
  assert max(len(line) for m in log for line in m.splitlines()) < 200


def test_mixture_and_bad_records_are_counted(make_config, world, tmp_path):
  broken = tmp_path / "broken"
  shutil.copytree(world / "src_cls", broken)
  shard = sorted(broken.glob("*train-00000*.tfrecord"))[0]
  data = bytearray(shard.read_bytes())
  data[200] ^= 1  # in the first record
  shard.write_bytes(data)
  config = make_config("classification", steps=12)
  config.datasets.broken = dataset(str(broken), "train", share=3.0)
  config.train_on = ("all", "broken")
  config.sampling = "equal"
  config.tasks.classification.labels.broken = "supervised"
  # A window is one batch, so that every batch has its shares.
  config.data.update({"block_size": 4, "window_blocks": 2})
  loop.train(config, tmp_path / "run")
  lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
  metrics = [m for m in map(json.loads, lines) if "loss" in m]
  assert [m["examples/all"] for m in metrics] == [2 * i for i in range(1, 13)]
  assert metrics[-1]["examples/broken"] == 6 * 12  # three rounds of 24
  assert sum(m["unusable_examples"] for m in metrics) == 3
  (entry,) = (tmp_path / "run/quarantine/00000.jsonl").read_text().splitlines()
  assert "checksum" in json.loads(entry)["reason"]


@pytest.fixture(params=["SIGTERM", "SIGINT", "SIGINT in the background"])
def end(request):
  """Sends this process a signal that ends a run in good order."""
  before = signal.getsignal(signal.SIGINT)
  ignored = request.param.endswith("background")
  disposition = signal.SIG_IGN if ignored else signal.default_int_handler
  signal.signal(signal.SIGINT, disposition)
  number = getattr(signal, request.param.split()[0])
  yield lambda _=None: os.kill(os.getpid(), number)
  assert signal.getsignal(signal.SIGINT) is disposition
  signal.signal(signal.SIGINT, before)


def test_signals_save_and_exit_with_42(make_config, tmp_path, interrupt, end):
  config = make_config("classification", steps=40)
  interrupt(4, end)
  with pytest.raises(SystemExit) as exit_info:
    loop.train(config, tmp_path)
  assert exit_info.value.code == 42
  assert checkpoint.find(tmp_path).name == "5"


def test_a_second_ctrl_c_ends_at_once(make_config, tmp_path, interrupt, capfd):
  def twice(_):
    for _ in range(2):
      os.kill(os.getpid(), signal.SIGINT)

  interrupt(4, twice)
  with pytest.raises(KeyboardInterrupt):
    loop.train(make_config("classification", steps=40), tmp_path)
  assert "Ctrl-C again ends at once" in capfd.readouterr().err
  assert checkpoint.find(tmp_path).name == "3"


def test_the_stage_evaluate_ends_by_signals(
  make_config, tmp_path, monkeypatch, end
):
  config = make_config("classification", evaluate_on=("all",), steps=3)
  loop.train(config, tmp_path)
  original = sources.eval_batches

  def batches(*args):
    for batch in original(*args):
      end()
      yield batch

  monkeypatch.setattr(sources, "eval_batches", batches)
  with pytest.raises(SystemExit) as exit_info:
    evaluate_checkpoint(config, tmp_path)
  assert exit_info.value.code == 42


def test_sigterm_during_evaluation(make_config, tmp_path, monkeypatch):
  config = make_config(
    "classification", **{"evaluate_on": ("all",), "train.steps": 4}
  )
  original = sources.eval_batches

  def batches(*args):
    for batch in original(*args):
      os.kill(os.getpid(), signal.SIGTERM)
      yield batch

  monkeypatch.setattr(sources, "eval_batches", batches)
  with pytest.raises(SystemExit) as exit_info:
    loop.train(config, tmp_path)
  assert exit_info.value.code == 42
  assert checkpoint.find(tmp_path).name == "4"
  assert not (tmp_path / "result.json").exists()


def test_corrupt_checkpoint_falls_back_to_the_one_before(
  make_config, tmp_path, caplog
):
  config = make_config("classification")
  loop.train(config, tmp_path)
  before = digests(tmp_path)
  meta = tmp_path / "checkpoints" / "6" / "meta" / "metadata"
  changed = json.loads(meta.read_text())
  changed["digest"]["params"][0] ^= 1
  meta.write_text(json.dumps(changed))
  with pytest.raises(checkpoint.CorruptCheckpointError, match="meta is not"):
    checkpoint.load_variables(tmp_path)
  loop.train(config, tmp_path)
  assert "6.corrupt; using the one before" in caplog.text
  assert digests(tmp_path) == before


def test_digest_sees_any_flipped_bit_and_no_layout():
  rng = np.random.default_rng(0)
  tree = {
    "a": rng.normal(size=(5, 7)).astype(np.float32),
    "b": np.arange(3, dtype=np.int32),
  }
  whole = checkpoint.digest(tree)
  assert checkpoint.digest(jax.tree.map(jax.numpy.asarray, tree)) == whole
  for _ in range(100):
    flipped = {k: v.copy() for k, v in tree.items()}
    words = flipped["a"].reshape(-1).view(np.uint32)
    words[rng.integers(35)] ^= np.uint32(1 << rng.integers(32))
    assert checkpoint.digest(flipped) != whole


def test_other_config_in_the_same_workdir_is_refused(make_config, tmp_path):
  loop.train(make_config("classification", steps=3), tmp_path)
  other = make_config("classification", steps=3, **{"optimizer.lr": 0.5})
  with pytest.raises(ValueError, match=r"optimizer.lr was 0.02, is 0.5"):
    loop.train(other, tmp_path)


def test_options_of_the_machines_may_change(make_config, tmp_path):
  loop.train(make_config("classification", steps=3), tmp_path)
  other = make_config(
    "classification",
    steps=3,
    **{"data.num_threads": 1, "model.remat": (3,), "mesh.data": 1},
  )
  loop.train(other, tmp_path)
  stored = json.loads((tmp_path / "config.json").read_text())
  assert stored["data"]["num_threads"] == 1


def test_a_run_from_before_an_option_goes_on(make_config, tmp_path):
  loop.train(make_config("depth", steps=3), tmp_path)
  path = tmp_path / "config.json"
  stored = json.loads(path.read_text())
  del stored["balancing"], stored["optimizer"]["layer_decay"]
  path.write_text(json.dumps(stored))
  loop.train(make_config("depth", steps=3), tmp_path)
  assert "layer_decay" in json.loads(path.read_text())["optimizer"]
  path.write_text(json.dumps(stored))
  other = make_config("depth", steps=3)
  other.optimizer.layer_decay = 0.5
  with pytest.raises(ValueError, match=r"layer_decay was 1.0, is 0.5"):
    loop.train(other, tmp_path)


def test_evaluation_covers_every_example_once(
  make_config, tmp_path, monkeypatch
):
  seen = []
  original = sources.eval_batches

  def batches(*args):
    for batch in original(*args):
      seen.extend(batch["position"][batch["valid"]].tolist())
      yield batch

  monkeypatch.setattr(sources, "eval_batches", batches)
  config = make_config(
    "classification",
    steps=3,
    **{"evaluate_on": ("all",), "data.eval_batch_size": 7},
  )
  result = loop.train(config, tmp_path)
  assert sorted(seen) == list(range(24))
  assert 0 <= result["all/classification/top1"] <= 1


def test_two_tasks_of_a_kind_with_different_classes(
  make_config, world, tmp_path
):
  config = make_config("classification")
  config.datasets.other = dataset(str(world / "src_cls"), "train")
  config.tasks.second = task("classification", labels={"other": "supervised"})
  config.train_on = ("all", "other")
  loop.train(config, tmp_path)
  model = must_jax.load(str(tmp_path))
  assert set(model.tasks) == {"classification", "second"}
  assert {"head_classification", "head_second"} < set(model.variables["params"])


def test_contrastive_training_needs_no_labels(make_config, tmp_path):
  config = make_config("contrastive", steps=4)
  config.tasks.contrastive.labels = ConfigDict({})
  config.data.train_resize = "inception_crop"
  config.optimizer.name = "lars"
  loop.train(config, tmp_path)
  assert all(np.isfinite(list(losses(tmp_path).values())))
  start = make_config(
    "classification",
    steps=3,
    init_from=str(tmp_path),
    init_parts=("backbone",),
  )
  loop.train(start, tmp_path / "next")


def test_seeds_share_a_program_and_differ_in_what_they_sample(make_config):
  one, other = (
    build(sources.resolve(make_config("detection", seed=seed)))
    for seed in (0, 1)
  )
  # So the compilation cache knows the second run's program.
  assert one.lower().as_text() == other.lower().as_text()

  batch = next(sources.train_batches(one.config, 0, None))
  del batch["key"]
  batch = mesh_lib.to_device(batch, one.mesh)

  def loss(key):
    _, metrics = one.train_step(one.create_state(), batch, key)
    return float(metrics["loss"])

  assert loss(one.key) == loss(one.key) != loss(other.key)


def test_tasks_of_different_views_do_not_mix(make_config):
  with pytest.raises(ValueError, match=r"views.*runs of their own"):
    make_config("contrastive", "classification")


def test_warm_start_reports_and_keeps_heads_of_other_classes_fresh(
  make_config, tmp_path
):
  loop.train(make_config("segmentation", steps=3), tmp_path / "first")
  loaded = checkpoint.load_variables(tmp_path / "first")
  model = must_jax.load(str(tmp_path / "first"))
  state = _state_like(loaded)
  start = checkpoint.WarmStart(
    state,
    tmp_path / "first",
    ("backbone", "fpn", "heads"),
    {"segmentation": ("other",) * 11},
    model.config.model,
  )
  assert "head_segmentation  fresh" in start.table
  assert "other classes" in start.table
  assert "backbone           loaded" in start.table
  new = start(state)
  kernel = new.params["backbone"]["conv1"]["kernel"]
  np.testing.assert_array_equal(
    kernel, loaded["params"]["backbone"]["conv1"]["kernel"]
  )
  start = checkpoint.WarmStart(
    state,
    tmp_path / "first",
    ("backbone", "fpn", "heads"),
    {"segmentation": model.tasks["segmentation"].classes},
    model.config.model,
  )
  assert "head_segmentation  loaded" in start.table
  same = start(state)
  assert checkpoint.digest(same.params) == checkpoint.digest(loaded["params"])


def test_warm_start_of_another_architecture_says_what_differs(
  make_config, tmp_path
):
  loop.train(make_config("classification", steps=3), tmp_path / "first")
  config = make_config(
    "classification",
    steps=3,
    **{"init_from": str(tmp_path / "first"), "model.width": 16},
  )
  with pytest.raises(ValueError, match=r"backbone of .* does not fit"):
    loop.train(config, tmp_path / "second")


def test_warm_start_wants_the_same_normalisation(make_config, tmp_path):
  loop.train(make_config("classification", steps=3), tmp_path / "first")
  options = {
    "init_from": str(tmp_path / "first"),
    "model.image_mean": (0.5, 0.5, 0.5),
  }
  config = make_config("classification", steps=3, **options)
  with pytest.raises(ValueError, match=r"image_mean .* trained with .*0.485"):
    loop.train(config, tmp_path / "second")


def test_frozen_parts_keep_their_bits(make_config, tmp_path):
  loop.train(make_config("segmentation", steps=3), tmp_path / "first")
  before = checkpoint.load_variables(tmp_path / "first")
  config = make_config(
    "segmentation",
    steps=3,
    **{
      "init_from": str(tmp_path / "first"),
      "freeze": ("backbone",),
      "optimizer.weight_decay": 0.1,
    },
  )
  loop.train(config, tmp_path / "second")
  after = checkpoint.load_variables(tmp_path / "second")
  for kind in ("params", "batch_stats"):
    jax.tree.map(
      np.testing.assert_array_equal,
      after[kind]["backbone"],
      before[kind]["backbone"],
    )
    assert checkpoint.digest(after[kind]["fpn"]) != checkpoint.digest(
      before[kind]["fpn"]
    )


def test_loaded_model_predicts(make_config, tmp_path):
  loop.train(make_config(*ALL, steps=3), tmp_path)
  model = must_jax.load(str(tmp_path))
  images = np.zeros((2, 64, 64, 3), np.uint8)
  with pytest.raises(ValueError, match="map_stride is 3; expected a divisor"):
    model.predictor(map_stride=3)(images)
  predictions = model.predictor(map_stride=1)(images)
  assert set(predictions) == set(ALL)
  assert predictions["segmentation"]["classes"].shape == (2, 64, 64)
  for name, task_ in model.tasks.items():
    one = {k: v[0] for k, v in predictions[name].items()}
    assert task_.draw(images[0], one).shape == (64, 64, 3)
    labels = task_.to_labels(one, np.array([48.0, 64.0]), (64, 64))
    assert set(labels) == set(task_.fields)


def test_no_checkpoint_is_a_clear_error(tmp_path):
  with pytest.raises(FileNotFoundError, match="No checkpoint at"):
    must_jax.load(str(tmp_path))


def _state_like(loaded):
  from must_jax.train.guard import Guard
  from must_jax.train.state import TrainState

  fresh = jax.tree.map(lambda x: jax.numpy.zeros_like(x), loaded)
  none = jax.numpy.zeros((), jax.numpy.int32)
  return TrainState(
    step=none,
    params=fresh["params"],
    batch_stats=fresh["batch_stats"],
    opt_state=(),
    balance={},
    guard=Guard().init(),
    ema={},
    rollbacks=none,
    batches_left_out=none,
  )
