"""Several processes train as one would, and end together."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from must_jax import config as config_lib
from must_jax.config import PREEMPTED, base_config, dataset, task
from must_jax.storage.path import Path, list_names, read_appended
from must_jax.train import checkpoint, runtime
from must_jax.train.checkpoint import is_finished

ROOT = pathlib.Path(config_lib.__file__).parent.parent
TIMEOUT = 240.0  # seconds, of a run on a machine that does other things, too

# `main.py` with data that stop: a process of PROCESSES gets the batch AT of
# training or evaluation only once there is a file at PATH.
MAIN = """
import os, time
import jax
from must_jax.input import sources
from must_jax.main import run

kind, processes, at, path = os.environ["HOLD"].split(":")
original = getattr(sources, kind)


def held(batches):
  for i, batch in enumerate(batches):
    if i == int(at):
      open(f"{path}.{jax.process_index()}", "w").close()
      while not os.path.exists(path):
        time.sleep(0.05)
    yield batch


def hold(*args):
  batches = original(*args)
  if str(jax.process_index()) not in processes:
    return batches
  if kind == "eval_batches":
    return held(batches)
  batches._batches = held(batches._batches)
  return batches


setattr(sources, kind, hold)
run()
"""


class Run:
  """The processes of one run of `main.py`, and their logs."""

  def __init__(
    self, config_file, workdir, count, devices, *flags, hold="", logs=None
  ):
    self.workdir = Path(workdir)
    self._logs = pathlib.Path(logs or f"{workdir}.logs")
    self._logs.mkdir(exist_ok=True)
    with socket.create_server(("localhost", 0)) as server:
      port = server.getsockname()[1]
    self._children = []
    for i in range(count):
      command = [sys.executable, *(("-c", MAIN) if hold else ("main.py",))]
      command += [f"--config={config_file}", f"--workdir={workdir}"]
      if count > 1:
        command += [f"--num_processes={count}", f"--process_id={i}"]
        command += [f"--coordinator=localhost:{port}"]
      with (self._logs / f"{i}").open("w") as log:
        self._children.append(
          subprocess.Popen(
            [*command, *flags],
            cwd=ROOT,
            env=os.environ
            | {
              "HOLD": hold,
              "TF_CPP_MIN_LOG_LEVEL": "0",
              "XLA_FLAGS": "--xla_backend_optimization_level=0"
              f" --xla_force_host_platform_device_count={devices}",
            },
            stdout=log,
            stderr=log,
          )
        )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for child in self._children:
      child.kill()
      child.wait()

  def signal(self, process, number):
    self._children[process].send_signal(number)

  def wait(self, *chosen):
    """Exit statuses of these processes, or of all."""
    children = [self._children[i] for i in chosen] or self._children
    with contextlib.suppress(subprocess.TimeoutExpired):
      end = time.monotonic() + TIMEOUT
      return [child.wait(end - time.monotonic()) for child in children]
    pytest.fail(f"Still running:\n{self.log(0)}")

  def wait_for(self, condition):
    """Until a condition holds, or a process has ended."""
    end = time.monotonic() + TIMEOUT
    while not condition():
      if time.monotonic() > end or any(c.poll() for c in self._children):
        pytest.fail(f"It never came so far:\n{self.log(0)}\n{self.log(1)}")
      time.sleep(0.05)

  def log(self, process):
    return (self._logs / f"{process}").read_text()

  def succeed(self):
    """Waits; returns the losses by step."""
    statuses = self.wait()
    assert statuses == [0] * len(statuses), self.log(len(statuses) - 1)
    return losses(self.workdir)


def lines(path):
  """The records of a file of JSON lines."""
  return [json.loads(line) for line in read_appended(path).splitlines()]


def losses(workdir):
  metrics = lines(workdir / "metrics.jsonl")
  return {line["step"]: line["loss"] for line in metrics if "loss" in line}


def result(workdir):
  return json.loads((workdir / "result.json").read_text())


def digests(workdir):
  meta = checkpoint.find(workdir) / "meta" / "metadata"
  return json.loads(meta.read_text())["digest"]


@pytest.fixture(scope="module")
def config_file(world, tmp_path_factory, write_config_file):
  """A run of six steps that saves after three and evaluates at the end."""
  directory = tmp_path_factory.mktemp("config")
  images = directory / "images"
  shutil.copytree(world / "src_cls", images)
  shard = sorted(images.glob("*train-00000*.tfrecord"))[0]
  data = bytearray(shard.read_bytes())
  data[200] ^= 1  # in the first record
  shard.write_bytes(data)
  config = base_config()
  for split in ("train", "validation"):
    config.datasets[split] = dataset(images, split)
  config.train_on = ("train",)
  config.evaluate_on = ("validation",)
  config.tasks.kind = task(
    "classification",
    labels=dict.fromkeys(("train", "validation"), "supervised"),
  )
  config = config_lib.smoke(config)
  # Of 12 examples the second batch has 4.
  config.data.update({"eval_batch_size": 8, "max_bad": 0.5})
  config.optimizer.update({"lr": 1e-3, "warmup_lr": 1e-3, "warmup_steps": 1})
  config.train.update({"steps": 6, "checkpoint_every": 3, "log_every": 1})
  config.train.best_metric = "validation/kind/top1"
  return write_config_file(directory, config)


@pytest.fixture(scope="module")
def one(config_file, tmp_path_factory):
  """A run of one process with four devices."""
  with Run(config_file, tmp_path_factory.mktemp("one") / "run", 1, 4) as run:
    run.succeed()
    return run


@pytest.fixture(scope="module")
def two(config_file, tmp_path_factory):
  """A run of two processes with two devices each."""
  with Run(config_file, tmp_path_factory.mktemp("two") / "run", 2, 2) as run:
    run.succeed()
    return run


def test_two_processes_train_and_evaluate_as_one_does(one, two):
  expected = losses(one.workdir)
  assert len(set(expected.values())) == 6
  found = losses(two.workdir)
  assert found.keys() == expected.keys()
  np.testing.assert_allclose(
    list(found.values()), list(expected.values()), rtol=1e-5
  )
  assert result(two.workdir) == result(one.workdir)


def test_two_processes_keep_the_same_best_checkpoint(one, two):
  for run in (one, two):
    best = json.loads((run.workdir / "best.json").read_text())
    found = result(run.workdir)["validation/kind/top1"]
    assert best["best"] == {"step": 6, "value": found}
    assert digests(run.workdir / "best") == digests(run.workdir)


def test_every_process_names_all_of_them(two):
  for process in (0, 1):
    log = two.log(process)
    assert "2 processes, 4 devices" in log
    for number in (0, 1):
      assert f"process {number}, {socket.gethostname()} (pid" in log


def test_files_are_written_once(one, two):
  steps = [line["step"] for line in lines(two.workdir / "metrics.jsonl")]
  assert steps == [1, 2, 3, 4, 5, 6, 6]  # the last is the evaluation
  assert len(list(two.workdir.glob("events.*"))) == 1
  # The bad record comes up in two epochs, once to each process.
  keys = {
    path.name: [line["key"] for line in lines(path)]
    for path in (two.workdir / "quarantine").iterdir()
  }
  bad = lines(one.workdir / "quarantine/00000.jsonl")[0]["key"]
  assert keys == {"00000.jsonl": [bad], "00001.jsonl": [bad]}


@pytest.mark.slow
def test_checkpoint_of_two_processes_is_restored_in_one_and_back(
  config_file, one, two, tmp_path
):
  for source, count in ((two, 1), (one, 2)):
    workdir = tmp_path / f"{count}"
    shutil.copytree(source.workdir, workdir)
    (workdir / "result.json").unlink()
    with Run(config_file, workdir, count, 4 // count) as run:
      run.succeed()
      assert "Resumed at step 6" in run.log(0)
    assert digests(workdir) == digests(source.workdir)
    assert result(workdir) == result(source.workdir)


@pytest.mark.slow
def test_two_processes_share_a_bucket(config_file, two, bucket, tmp_path):
  """They save, are killed, and go on as on a disk."""
  workdir = f"{bucket.root}/run"
  path = tmp_path / "go"
  hold = f"train_batches:01:5:{path}"
  cache = f"--compilation_cache={bucket.root}/compiled"
  with Run(
    config_file, workdir, 2, 2, cache, hold=hold, logs=tmp_path / "first"
  ) as run:
    run.wait_for(lambda: is_finished(run.workdir / "checkpoints" / "3"))
  with Run(config_file, workdir, 2, 2, cache, logs=tmp_path / "second") as run:
    found = run.succeed()
    assert "Resumed at step 3" in run.log(0)
    assert found == losses(two.workdir)
    assert digests(workdir) == digests(two.workdir)
    assert result(run.workdir) == result(two.workdir)
  names = list_names(run.workdir / "quarantine")
  assert names == {"00000.00000.jsonl", "00001.00000.jsonl"}
  assert list_names(f"{bucket.root}/compiled")


# Both processes wait for data while the signal comes, so that they are as far.
@pytest.mark.slow
def test_a_signal_to_one_process_ends_both_at_one_step(
  config_file, two, tmp_path
):
  workdir = tmp_path / "run"

  def end(kind, batch, process, step, number=signal.SIGTERM):
    """Signals one process before a batch; both save the step."""
    held = tmp_path / f"{kind}{batch}"
    hold = f"{kind}:01:{batch}:{held}"
    with Run(config_file, workdir, 2, 2, hold=hold) as run:
      run.wait_for(lambda: all(map(os.path.exists, (f"{held}.0", f"{held}.1"))))
      run.signal(process, number)
      run.wait_for(
        lambda: all("sync counter is set" in run.log(i) for i in (0, 1))
      )
      held.touch()
      assert run.wait() == [PREEMPTED, PREEMPTED], run.log(process)
    assert checkpoint.find(workdir).name == str(step)
    assert not (workdir / "result.json").exists()

  # In training; in the evaluation after it; in that of a finished run.
  end("train_batches", 4, process=1, step=5)
  end("eval_batches", 0, process=0, step=6, number=signal.SIGINT)
  end("eval_batches", 1, process=1, step=6)
  with Run(config_file, workdir, 2, 2) as run:
    run.succeed()
  assert digests(workdir) == digests(two.workdir)
  assert result(workdir) == result(two.workdir)


@pytest.mark.slow
def test_killed_process_ends_the_other_and_both_go_on(
  config_file, two, tmp_path
):
  held = tmp_path / "held"
  workdir = tmp_path / "run"
  flags = ("--heartbeat_timeout=10",)
  hold = f"train_batches:1:4:{held}"
  with Run(config_file, workdir, 2, 2, *flags, hold=hold) as run:
    run.wait_for(pathlib.Path(f"{held}.1").exists)
    run.signal(1, signal.SIGKILL)
    (status,) = run.wait(0)
    assert status not in (0, PREEMPTED)
  with Run(config_file, workdir, 2, 2) as run:
    run.succeed()
    assert "Resumed at step 3" in run.log(0)
  assert digests(workdir) == digests(two.workdir)


@pytest.mark.slow
def test_stuck_process_is_named_by_the_other_and_the_run_given_up(
  config_file, tmp_path
):
  workdir = tmp_path / "run"
  hold = f"train_batches:1:4:{tmp_path / 'never'}"
  flags = ("--config.train.stuck_seconds=5",)
  with Run(config_file, workdir, 2, 2, *flags, hold=hold) as run:
    assert run.wait() == [PREEMPTED, PREEMPTED], run.log(0) + run.log(1)
    for process in (0, 1):
      report = run.log(process).rpartition("that all wait for:\n")[2]
      first, second = report.splitlines()[:2]
      assert first.startswith("  process 1, ")
      assert "waits for data at step 4 for" in first
      assert second.startswith("  process 0, ")
      assert "computes at step 4" in second
    # Where in the code it is.
    assert "in held\n" in run.log(1)


# Unit tests: signs of life.


@pytest.mark.parametrize(
  ("seconds", "text"),
  [
    (0, "0 s"),
    (0.2, "1 s"),
    (89, "89 s"),
    (90, "2 min"),
    (720, "12 min"),
    (5340, "89 min"),
    (5400, "1.5 hours"),
    (86400, "24 hours"),
    (200_000, "2.3 days"),
    (2_000_000, "23 days"),
  ],
)
def test_durations_are_for_people(seconds, text):
  assert runtime.duration(seconds) == text


def test_signs_of_life_come_now_and_then(monkeypatch, caplog):
  caplog.set_level("INFO")
  now = 0.0
  monkeypatch.setattr(time, "monotonic", lambda: now)
  life = runtime.SignOfLife(30.0)
  for now in range(100):  # the clock reads it
    life.say("at %d", now)
  assert caplog.messages == ["at 30", "at 60", "at 90"]


# Unit tests of the watchdog.


def describe(monkeypatch, tmp_path, notes):
  """The lines about the processes, in a run of so many as there are notes."""
  monkeypatch.setattr(jax, "process_count", lambda: len(notes))
  monkeypatch.setattr(time, "time", lambda: 1000.0)
  watchdog = runtime.Watchdog(tmp_path, 60.0)
  (tmp_path / "progress").mkdir()
  for process, (step, batch, doing, since) in enumerate(notes):
    note = {"process": process, "name": f"host{process} (pid 7)"}
    note |= {"step": step, "batch": batch, "doing": doing, "since": since}
    path = tmp_path / f"progress/{process:05d}.json"
    path.write_text(json.dumps(note))
  # Of an earlier run with more processes.
  (tmp_path / "progress/00009.json").write_text("{}")
  return watchdog.describe().splitlines()[1:]


@pytest.mark.parametrize(
  ("notes", "order"),
  [
    # The one that is behind.
    ([(7, 0, "computes", 900.0), (6, 0, "computes", 990.0)], "10"),
    # At one step the one that does not wait for others.
    ([(7, 0, "computes", 900.0), (7, 0, "waits for data", 950.0)], "10"),
    ([(0, 0, "compiles", 900.0), (0, 0, "waits for data", 950.0)], "10"),
    # Of an evaluation the one with fewer batches.
    ([(7, 5, "evaluates", 900.0), (7, 4, "evaluates", 950.0)], "10"),
    # Of equal ones the one that began first.
    ([(7, 0, "saves", 950.0), (7, 0, "saves", 900.0)], "10"),
    ([(7, 0, "saves", 900.0), (7, 0, "saves", 950.0)], "01"),
  ],
)
def test_process_that_is_waited_for_is_named_first(
  monkeypatch, tmp_path, notes, order
):
  lines = describe(monkeypatch, tmp_path, notes)
  assert [line.split(",")[0] for line in lines] == [
    f"  process {process}" for process in order
  ]


def test_report_says_where_a_process_is_and_for_how_long(monkeypatch, tmp_path):
  (line,) = describe(monkeypatch, tmp_path, [(7, 3, "evaluates", 940.0)])
  expected = "host0 (pid 7): evaluates at step 7, batch 3 for 60 s"
  assert line == f"  process 0, {expected}"


def test_process_without_a_readable_note_is_named(monkeypatch, tmp_path):
  monkeypatch.setattr(jax, "process_count", lambda: 1)
  watchdog = runtime.Watchdog(tmp_path, 60.0)
  assert "process 0 has left no note" in watchdog.describe()


@pytest.mark.slow
def test_second_start_finds_what_the_first_compiled(config_file, tmp_path):
  cache = tmp_path / "cache"
  flags = (f"--compilation_cache={cache}", "--config.train.steps=4")
  logs, files = [], []
  for name in ("first", "second"):
    with Run(config_file, tmp_path / name, 1, 1, *flags) as run:
      run.succeed()
      logs.append(run.log(0))
      files.append(sorted(path.name for path in cache.glob("*-cache")))
  assert files[0] == files[1]
  assert any(name.startswith("jit_step") for name in files[0])
  for log in logs:
    assert "persistent compilation cache" not in log.lower()
    assert "mismatch" not in log.lower()
