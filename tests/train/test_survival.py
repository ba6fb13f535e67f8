"""What a run survives: bad data, full disks, lost and damaged files."""

import contextlib
import gc
import inspect
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import must_jax
from must_jax.config import base_config
from must_jax.input import sources
from must_jax.train import checkpoint, loop
from must_jax.train import mesh as mesh_lib
from must_jax.train.build import build
from must_jax.train.evaluate import evaluate_checkpoint
from must_jax.train.guard import Guard, TrainingDiverged
from must_jax.train.metric_logger import MetricWriter
from must_jax.train.state import TrainState

# All runs here are this one: it is compiled once.
STEPS = 12
DECAY = 0.9


@pytest.fixture(scope="module", autouse=True)
def no_late_callbacks():
  """When one array cannot be read, orbax no longer waits for the others."""
  original = sys.unraisablehook

  def hook(event):
    closed = "Event loop is closed" in str(event.exc_value)
    if not closed and not inspect.iscoroutine(event.object):
      original(event)

  sys.unraisablehook = hook
  yield
  gc.collect()
  sys.unraisablehook = original


@pytest.fixture
def config(make_config):
  return make_config(
    "classification",
    steps=STEPS,
    **{
      "model.channels": 8,
      "data.image_size": (32, 32),
      "data.batch_size": 4,
      "optimizer.ema_decay": DECAY,
      "balancing.method": "uncertainty",
      "train.checkpoint_every": 2,
      "train.log_every": 3,
      "train.max_skipped": 2,
    },
  )


@contextlib.contextmanager
def data(function):
  """Has a function see, and change, the batch of every position."""
  original = sources.train_batches

  def batches(config, start, *args):
    made = original(config, start, *args)
    numbered = enumerate(made._batches, start)
    made._batches = (function(*item) or item[1] for item in numbered)
    return made

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sources, "train_batches", batches)
    yield


def spoil(batch):
  """Makes the loss infinite."""
  label = batch["labels"]["classification"]["label"]
  label["probs"] = np.full_like(label["probs"], np.inf)


def digests(workdir):
  meta = checkpoint.find(workdir) / "meta" / "metadata"
  return json.loads(meta.read_text())["digest"]


def saved_steps(workdir):
  names = (p.name for p in (workdir / "checkpoints").iterdir())
  return sorted(int(name) for name in names if name.isdigit())


def wait_for_saves(workdir, steps):
  while saved_steps(workdir) != steps:
    pass


def by_hand(config, positions):
  """The states after every step of a bare loop over positions of the data."""
  config = sources.resolve(config)
  program = build(config)
  state = program.create_state()
  states = [jax.device_get(state)]
  batches = sources.train_batches(config, 0, None)
  for position in range(max(positions) + 1):
    batch = next(batches)
    if position in positions:
      del batch["key"]
      batch = mesh_lib.to_device(batch, program.mesh)
      state, _ = program.train_step(state, batch, program.key)
      states.append(jax.device_get(state))
  return states


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
  """Digests of a run that nothing happened to."""
  cache = {}

  def run(config):
    if not cache:
      workdir = tmp_path_factory.mktemp("whole")
      loop.train(config, workdir)
      cache.update(digests(workdir))
    return cache

  return run


# Bad steps.


def test_a_skipped_step_changes_nothing_but_counters(config):
  config = sources.resolve(config)
  program = build(config)
  batches = sources.train_batches(config, 0, None)
  state = program.create_state()
  for bad in (False, True, True, False):
    before = jax.device_get(state)
    batch = next(batches)
    del batch["key"]
    if bad:
      spoil(batch)
    batch = mesh_lib.to_device(batch, program.mesh)
    state, metrics = program.train_step(state, batch, program.key)
    same = {
      part
      for part in ("params", "batch_stats", "opt_state", "balance", "ema")
      if checkpoint.digest(getattr(state, part))
      == checkpoint.digest(getattr(before, part))
    }
    assert len(same) == (5 if bad else 0)
    assert np.isfinite(metrics["loss"]) != bad
  assert int(state.step) == 4
  assert int(metrics["skipped_steps"]) == 2
  assert int(metrics["skipped_in_a_row"]) == 0


def test_goes_back_and_on_with_the_data_behind_the_bad(
  config, tmp_path, caplog
):
  seen = []

  def step(position, batch):
    seen.append(position)
    if position in (5, 6, 7):
      spoil(batch)

  with data(step):
    loop.train(config, tmp_path)
  assert "Went back to step 4, other data" in caplog.text
  # Step 4 is done again, with the first batch that comes after the bad ones.
  assert seen == list(range(4 + STEPS))
  found = digests(tmp_path)
  good = by_hand(config, [0, 1, 2, 3, *range(8, 16)])[-1]
  for part in ("step", "params", "batch_stats", "opt_state", "balance", "ema"):
    assert found[part] == checkpoint.digest(getattr(good, part)), part
  counters = {"rollbacks": 1, "batches_left_out": 4}
  for part, value in counters.items():
    assert found[part] == checkpoint.digest(np.int32(value)), part
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  written = [json.loads(line)["step"] for line in lines]
  every = config.train.log_every
  assert written == list(range(every, STEPS + 1, every))


def test_interrupted_around_a_roll_back_ends_with_the_same_bits(
  config, tmp_path
):
  stops = {}

  def step(position, batch):
    if position in (5, 6, 7):
      spoil(batch)
    if position in stops:
      stops.pop(position)()

  def stop():
    raise KeyboardInterrupt

  def told_to_end():
    os.kill(os.getpid(), signal.SIGTERM)

  with data(step):
    loop.train(config, tmp_path / "whole")
    # Before, in and at the end of the bad steps, and right after going back.
    stops |= {4: stop, 6: told_to_end, 7: told_to_end}
    stops |= {8: told_to_end, 9: stop, 10: told_to_end}
    while stops:
      with pytest.raises((KeyboardInterrupt, SystemExit)):
        loop.train(config, tmp_path / "broken")
    loop.train(config, tmp_path / "broken")
  assert digests(tmp_path / "broken") == digests(tmp_path / "whole")


def test_going_back_has_an_end(config, tmp_path, caplog):
  def step(position, batch):
    if position >= 5:
      spoil(batch)

  config.train.max_rollbacks = 2
  for _ in range(2):  # starting again does not change it
    caplog.clear()
    with data(step), pytest.raises(TrainingDiverged) as error:
      loop.train(config, tmp_path)
    assert caplog.text.count("Went back to step 4") == 2
    assert "gone back 2 times already" in str(error.value)
    assert "last good checkpoint is that of step 4" in str(error.value)
    assert max(saved_steps(tmp_path)) == 4
  checkpoint.load_variables(tmp_path)


def test_divergence_without_a_checkpoint_names_step_tasks_and_keys(
  config, tmp_path
):
  with (
    data(lambda _, batch: spoil(batch)),
    pytest.raises(TrainingDiverged) as error,
  ):
    loop.train(config, tmp_path)
  for words in (
    "step 1: loss",
    "classification/loss",
    "pile-",
    "no checkpoint",
  ):
    assert words in str(error.value)


# Averages.


def test_averages_are_tensorflows_and_what_is_used(config, tmp_path):
  config.evaluate_on = ("all",)
  config.train.evaluate_every = 0
  result = loop.train(config, tmp_path / "run")
  states = by_hand(config, range(STEPS))
  average = jax.tree.map(np.float64, states[0].variables)
  for n, state in enumerate(states[1:]):
    decay = min(DECAY, (1 + n) / (10 + n))
    new = {"params": state.params, "batch_stats": state.batch_stats}
    average = jax.tree.map(
      lambda old, new, d=decay: d * old + (1 - d) * new, average, new
    )
  model = must_jax.load(tmp_path / "run")
  assert checkpoint.digest(model.variables) != checkpoint.digest(new)
  for kind, tree in average.items():
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      model.variables[kind],
      tree,
    )
  # Evaluation, a teacher's name and a warm start mean the averages.
  assert evaluate_checkpoint(config, tmp_path / "run") == result
  words = digests(tmp_path / "run")["ema"]
  name = f"{words[0]:08x}{words[1]:08x}"
  assert checkpoint.fingerprint(tmp_path / "run") == name
  program = build(sources.resolve(config))
  start = checkpoint.WarmStart(
    program.abstract_state,
    tmp_path / "run",
    ("backbone", "fpn", "heads"),
    {"classification": model.tasks["classification"].classes},
    config.model,
  )
  warm = start(program.create_state())
  assert checkpoint.digest(warm.params) == checkpoint.digest(
    model.variables["params"]
  )
  assert checkpoint.digest(warm.ema) == words


# Signals.


def test_a_signal_while_compiling_is_heeded_after_the_step(
  config, tmp_path, monkeypatch
):
  original = loop.build

  def build_and_signal(*args):
    program = original(*args)
    step = program.train_step

    def compile_and_step(*args):
      for _ in range(2):  # the second one changes nothing
        os.kill(os.getpid(), signal.SIGTERM)
      return step(*args)

    vars(program)["train_step"] = compile_and_step
    return program

  monkeypatch.setattr(loop, "build", build_and_signal)
  with pytest.raises(SystemExit) as exit_info:
    loop.train(config, tmp_path)
  assert exit_info.value.code == 42
  assert saved_steps(tmp_path) == [1]


# Files. What holds a checkpoint is a few arrays, so that this takes no time.


def small_state(step, size=64):
  rng = np.random.default_rng(step)
  kernel = jnp.asarray(rng.standard_normal((size, size)), jnp.float32)
  none = jnp.zeros((), jnp.int32)
  return TrainState(
    step=jnp.int32(step),
    params={"backbone": {"kernel": kernel}},
    batch_stats={},
    opt_state=(jnp.ones(3),),
    balance={},
    guard=Guard().init(),
    ema={},
    rollbacks=none,
    batches_left_out=none,
  )


ABSTRACT = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
  small_state(0),
)


def opened(workdir, keep=2):
  config = base_config()
  config.train.keep_checkpoints = keep
  return contextlib.closing(checkpoint.Checkpoints(workdir, config))


@pytest.fixture(scope="session")
def two_steps(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("two")
  with opened(workdir) as checkpoints:
    for step in (3, 6):
      checkpoints.save(small_state(step))
  return workdir


@pytest.fixture
def workdir(two_steps, tmp_path):
  return shutil.copytree(two_steps, tmp_path / "run")


def largest_file(step):
  files = (p for p in step.rglob("*") if p.is_file())
  return max(files, key=lambda p: p.stat().st_size)


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(step):
  shutil.rmtree(step)
  step.mkdir()


DAMAGES = {
  "a flipped bit of an array": lambda step: flip(largest_file(step)),
  "a flipped bit of meta": lambda step: flip(step / "meta/metadata"),
  "half an array": lambda step: truncate(largest_file(step)),
  "no array": lambda step: largest_file(step).unlink(),
  "half of meta": lambda step: truncate(step / "meta/metadata"),
  "empty meta": lambda step: (step / "meta/metadata").write_text("[]"),
  "no meta": lambda step: shutil.rmtree(step / "meta"),
  "no state": lambda step: shutil.rmtree(step / "state"),
  "no index": lambda step: (step / "state/manifest.ocdbt").unlink(),
  "half of the tree": lambda step: truncate(step / "state/_METADATA"),
  "nothing": empty,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_kept_aside_and_the_one_before_used(
  workdir, damage, caplog
):
  damage(workdir / "checkpoints/6")
  with pytest.raises(checkpoint.CorruptCheckpointError, match=r"/6 is corrupt"):
    checkpoint.read_config(workdir)
    checkpoint.load_variables(workdir)
  with opened(workdir) as checkpoints:
    state = checkpoints.restore(ABSTRACT)
    assert checkpoint.digest(state) == checkpoint.digest(small_state(3))
    assert "6.corrupt; using the one before" in caplog.text
    checkpoints.save(small_state(6))
  with opened(workdir) as checkpoints:
    assert int(checkpoints.restore(ABSTRACT).step) == 6
  assert checkpoint.find(workdir).name == "6"
  assert (workdir / "checkpoints/6.corrupt").is_dir()


def test_without_a_commit_marker_the_digest_decides(workdir):
  for marker in (workdir / "checkpoints/6").rglob("commit_success.txt"):
    marker.unlink()
  with opened(workdir) as checkpoints:
    assert int(checkpoints.restore(ABSTRACT).step) == 6


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(workdir):
  flip(largest_file(workdir / "checkpoints/3"))
  shutil.rmtree(workdir / "checkpoints/6/meta")
  with (
    opened(workdir) as checkpoints,
    pytest.raises(checkpoint.CorruptCheckpointError) as error,
  ):
    checkpoints.restore(ABSTRACT)
  for words in ("No checkpoint in", "/3 is", "/6 is", "another --workdir"):
    assert words in str(error.value)
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == [
    "3",
    "6",
  ]


def test_a_checkpoint_that_was_never_finished_is_none(tmp_path):
  root = tmp_path / "checkpoints"
  (root / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  with opened(tmp_path) as checkpoints:
    assert checkpoints.restore(ABSTRACT) is None
    checkpoints.save(small_state(3))
  assert [p.name for p in root.iterdir()] == ["3"]


def test_later_checkpoints_go_when_a_run_goes_back(workdir):
  with opened(workdir) as checkpoints:
    assert int(checkpoints.roll_back(ABSTRACT, 5).step) == 3
    checkpoints.save(small_state(4))
  assert saved_steps(workdir) == [3, 4]


@pytest.fixture(params=["limit", "file system"])
def full_disk(request, tmp_path):
  """A directory, and a context in which it takes no more than 100 kB."""
  if request.param == "limit":
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def full():
      resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
      try:
        yield
      finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield tmp_path, full
    return
  mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path]
  if (
    not shutil.which("mount")
    or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode
  ):
    pytest.skip("No file system may be mounted here.")

  @contextlib.contextmanager
  def full():
    ballast = tmp_path / "ballast"
    free = shutil.disk_usage(tmp_path).free
    ballast.write_bytes(bytes(free - 100_000))
    yield
    ballast.unlink()

  yield tmp_path, full
  subprocess.run(["umount", tmp_path], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_to_do(full_disk):
  workdir, full = full_disk
  words = (
    f"{workdir}/checkpoints",
    "One needs up to 0.3 MB, and",
    "that of step 3, is intact",
    "Free some space",
    "the same command goes on",
  )

  def until_a_look(checkpoints):
    while True:
      checkpoints.check()

  ways = (
    until_a_look,
    lambda checkpoints: checkpoints.save(small_state(9, size=256)),
    lambda checkpoints: checkpoints.close(),
  )
  with opened(workdir) as checkpoints:
    checkpoints.save(small_state(3, size=32))
  for surfaces in ways:
    with (
      full(),
      pytest.raises(checkpoint.CheckpointNotSavedError) as error,
      opened(workdir) as checkpoints,
    ):
      checkpoints.save(small_state(6, size=256))
      surfaces(checkpoints)
    assert all(part in str(error.value) for part in words)
  assert saved_steps(workdir) == [3]
  with opened(workdir) as checkpoints:
    checkpoints.save(small_state(6, size=256))
  assert saved_steps(workdir) == [3, 6]


@pytest.mark.slow
def test_a_full_disk_has_the_last_word(config, tmp_path, write_config_file):
  """Its message is not lost among those of all that was being written."""
  words = [sys.executable, "main.py", f"--workdir={tmp_path / 'run'}"]
  words += [f"--config={write_config_file(tmp_path, config)}"]
  done = subprocess.run(
    ["bash", "-c", 'ulimit -f 60; exec "$@"', "-", *words],
    cwd=pathlib.Path(must_jax.__file__).parents[1],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  *_, what, mend = done.stderr.splitlines()
  assert what.startswith("error: A checkpoint could not be saved in")
  assert len(what) < 600
  assert "Free some space" in mend
  assert "Traceback" not in done.stderr


def test_metrics_on_a_full_disk_say_so_and_go_on_with_whole_lines(full_disk):
  workdir, full = full_disk
  scalars = {f"name{i}": float(i) for i in range(200)}
  with (
    full(),
    pytest.raises(OSError, match=r"metrics.jsonl .* cannot be written"),
    contextlib.closing(MetricWriter(base_config(), workdir, 0)) as writer,
  ):
    for step in range(1000):
      writer.write_scalars(step, scalars)
  path = workdir / "metrics.jsonl"
  text = path.read_text().rstrip("\n")
  path.write_text(text + '\n{"step": 7, "lo')
  with contextlib.closing(MetricWriter(base_config(), workdir, 1000)) as writer:
    writer.write_scalars(8, {"loss": 1.0})
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert lines[-1] == {"step": 8, "loss": 1.0}
  assert all(line["step"] != 7 or len(line) > 100 for line in lines)


def test_a_run_on_a_full_disk_goes_on_when_there_is_room(
  config, tmp_path, whole
):
  expected = whole(config)
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  small = (100_000, before[1])

  def step(position, _):
    if position == 7:
      wait_for_saves(tmp_path, [4, 6])
      resource.setrlimit(resource.RLIMIT_FSIZE, small)

  with data(step):
    try:
      with pytest.raises(OSError, match="step 6, is intact"):
        loop.train(config, tmp_path)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)
  loop.train(config, tmp_path)
  assert digests(tmp_path) == expected


def test_a_run_whose_checkpoints_vanish_makes_new_ones(config, tmp_path, whole):
  expected = whole(config)

  def step(position, _):
    if position == 7:
      wait_for_saves(tmp_path, [4, 6])
      shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)

  with data(step):
    loop.train(config, tmp_path)
  assert digests(tmp_path) == expected


def test_other_formats_are_refused_for_what_they_are(workdir):
  path = workdir / "checkpoints/6/meta/metadata"
  meta = json.loads(path.read_text())
  path.write_text(json.dumps(meta | {"format_version": 99}))
  with pytest.raises(checkpoint.OtherFormatError, match="format version 99"):
    checkpoint.load_variables(workdir)
  with (
    opened(workdir) as checkpoints,
    pytest.raises(checkpoint.OtherFormatError, match="format version 99"),
  ):
    checkpoints.restore(ABSTRACT)
  assert saved_steps(workdir) == [3, 6]
