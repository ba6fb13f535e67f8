"""The scripts of launch/slurm under a real SLURM, which is this machine alone.

Opt-in: MUST_JAX_TEST_SLURM=1 pytest -m slow tests/launch/test_slurm_cluster.py

The cluster needs no rights, and nothing of it lies outside the tests' own
directory: its munged has a key and a socket of its own.
"""

import contextlib
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time

import pytest

from must_jax.lab import world as world_lib
from must_jax.storage.sets import LabelSet
from must_jax.storage.verify import verify
from must_jax.train import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
SWITCH = "MUST_JAX_TEST_SLURM"
TIMEOUT = 300.0  # seconds, for whatever is waited for
STEPS = 200
SHARDS, SHARD_SIZE = 90, 4

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not os.environ.get(SWITCH), reason=f"starts a SLURM if {SWITCH}=1 is set"
  ),
  pytest.mark.skipif(
    bool(MISSING),
    reason=f"no {', '.join(MISSING)}: apt-get install slurm-wlm munge",
  ),
]

# Four cores, whatever the machine has, so that jobs run side by side. A job
# that is requeued may begin once its credential has expired, after 120 s by
# default.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmdSpoolDir={directory}/spool
StateSaveLocation={directory}/state
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count):
  with contextlib.ExitStack() as stack:
    servers = [
      stack.enter_context(socket.create_server(("localhost", 0)))
      for _ in range(count)
    ]
    return [server.getsockname()[1] for server in servers]


class Cluster:
  """A SLURM cluster of one node, this machine, as long as the block lasts."""

  def __init__(self, directory):
    self._directory = directory
    self._daemons = []
    # This machine may be a node of another cluster.
    self._environ = {
      name: value
      for name, value in os.environ.items()
      if not name.startswith(("SLURM_", "SBATCH_"))
    }
    self._environ |= {
      "PATH": PATH,
      "SLURM_CONF": str(directory / "slurm.conf"),
      "PYTHON": sys.executable,
    }

  def __enter__(self):
    for name in ("spool", "state"):
      (self._directory / name).mkdir()
    (self._directory / "slurm.conf").write_text(
      CONF.format(
        host=socket.gethostname().split(".")[0],
        user=self.call("id", "--user", "--name").strip(),
        ports=free_ports(2),
        directory=self._directory,
      )
    )
    key = self._directory / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    munge = {"socket": "socket", "key-file": "key", "pid-file": "pid"}
    munge |= {"seed-file": "seed", "log-file": "log"}
    try:
      self._start(
        "munged",
        "--foreground",
        "--force",  # others cannot enter the directory; none shall
        *(f"--{k}={self._directory}/munge.{v}" for k, v in munge.items()),
      )
      self.until(lambda: (self._directory / "munge.socket").exists())
      self._start("slurmctld", "-D")
      self._start("slurmd", "-D")
      self.until(
        lambda: "idle" in self.call("sinfo", "--noheader", check=False)
      )
    except BaseException:
      self.__exit__()
      raise
    return self

  def __exit__(self, *_):
    # Jobs outlive slurmd.
    with contextlib.suppress(subprocess.SubprocessError):
      self.call("scancel", "--signal=KILL", "--full", *self.jobs())
      self.call("scancel", *self.jobs())
      self.until(lambda: not self.jobs())
    for daemon in reversed(self._daemons):
      daemon.terminate()
      try:
        daemon.wait(30)
      except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()

  def _start(self, name, *args):
    with (self._directory / f"{name}.out").open("w") as log:
      self._daemons.append(
        subprocess.Popen(
          [name, *args], env=self._environ, stdout=log, stderr=log
        )
      )

  def call(self, *command, check=True, **environ):
    """What a command prints, run where jobs are submitted from."""
    return subprocess.run(
      command,
      cwd=ROOT,
      env=self._environ | environ,
      capture_output=True,
      check=check,
      text=True,
      timeout=60,
    ).stdout

  def until(self, condition):
    """Waits for a condition; returns its value."""
    end = time.monotonic() + TIMEOUT
    while not (value := condition()):
      if time.monotonic() > end:
        pytest.fail("".join(map(read, sorted(self._directory.glob("*.out")))))
      time.sleep(0.1)
    return value

  def runs(self, job, log, text):
    """Waits until a text stands in the log of a job."""
    self.until(lambda: text in read(log) or self._over(job))
    assert text in read(log), read(log)

  def jobs(self):
    """Ids of all that is not over."""
    form = ("--noheader", "--array", "--format=%i")
    return self.call("squeue", *form).split()

  def submit(self, script, *options, args=(), **environ):
    """Returns the id of the job."""
    command = ["sbatch", "--parsable", "--gres=none", *options]
    script = f"launch/slurm/{script}.sbatch"
    return self.call(*command, script, *args, **environ).strip()

  def finish(self, job, restarts=0):
    """Waits for the end of a job that is started again; returns its state."""

    def ended():
      found = self._over(job)
      return found and int(found["Restarts"]) == restarts and found

    found = self.until(ended)
    return found["JobState"], found["ExitCode"]

  def _over(self, job):
    """What SLURM says of a job that is over; else nothing."""
    text = self.call("scontrol", "show", "job", job, "--oneliner")
    found = dict(re.findall(r"(\S+?)=(\S*)", text))
    ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    return found if found["JobState"] in ends else {}


def read(path):
  return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
  with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
    yield cluster


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  directory = tmp_path_factory.mktemp("world")
  counts = {
    "src_depth": {"train": 24, "validation": 12},
    "pile": {"train": SHARDS * SHARD_SIZE},
  }
  world_lib.build(directory, 64, counts, SHARDS, workers=1)
  return directory


@pytest.fixture(scope="module")
def training(world):
  """Config and flags of a run that saves at the end, or when told to end."""
  every = [f"checkpoint_every={STEPS}", "log_every=1"]
  data = f"data={world}/src_depth,train=train,validation=validation"
  return (
    f"configs/teacher_depth.py:{data},smoke",
    [f"--config.train.{text}" for text in (f"steps={STEPS}", *every)],
  )


@pytest.fixture(scope="module")
def trained(training, tmp_path_factory):
  """The run by two processes without SLURM, which nobody disturbed."""
  directory = tmp_path_factory.mktemp("trained")
  config, flags = training
  (port,) = free_ports(1)
  run = [sys.executable, "main.py", f"--config={config}", *flags]
  run += [f"--workdir={directory}/run", "--num_processes=2"]
  run += [f"--coordinator=localhost:{port}"]
  with contextlib.ExitStack() as stack:
    processes = []
    for i in range(2):
      log = stack.enter_context((directory / f"{i}.log").open("w"))
      processes.append(
        subprocess.Popen(
          [*run, f"--process_id={i}"], cwd=ROOT, stdout=log, stderr=log
        )
      )
      stack.callback(processes[i].kill)
    for process in processes:
      assert process.wait(TIMEOUT) == 0, read(directory / "0.log")
  return directory / "run"


def digests(workdir):
  """Of all arrays of the last checkpoint, the optimizer's included."""
  path = checkpoint.find(workdir)
  assert path.name == str(STEPS)
  return json.loads((path / "meta" / "metadata").read_text())["digest"]


def test_training_that_is_told_to_end_goes_on_to_the_same_bits(
  cluster, training, trained, tmp_path
):
  config, flags = training
  workdir, log = tmp_path / "run", tmp_path / "log"
  job = cluster.submit(
    "train",
    *("--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1"),
    f"--output={log}",
    args=flags,
    CONFIG=config,
    WORKDIR=str(workdir),
  )
  cluster.runs(job, workdir / "metrics.jsonl", '{"step": 6,')
  # As SLURM does before the time is over (--signal=B:TERM).
  cluster.call("scancel", "--signal=TERM", "--batch", job)
  cluster.until(lambda: job in cluster.jobs() and "goes back" in read(log))
  assert cluster.finish(job, restarts=1) == ("COMPLETED", "0:0"), read(log)

  text = read(log)
  stops = re.findall(r"Told to end at step (\d+)", text)
  assert len(stops) == 2  # one from each process
  assert len(set(stops)) == 1
  assert 5 < int(stops[0]) < STEPS
  assert text.count(f"Resumed at step {stops[0]}.") == 2
  assert text.count("2 processes, 2 devices") == 4  # two at each start
  assert digests(workdir) == digests(trained)
  assert checkpoint.fingerprint(workdir) == checkpoint.fingerprint(trained)


def test_an_array_labels_one_set(cluster, world, trained, tmp_path):
  images, batch = world / "pile", f"batch_size={SHARD_SIZE}"
  config = f"configs/label.py:teacher={trained},images={images},{batch}"
  job = cluster.submit(
    "label",
    *("--array=0-2", "--cpus-per-task=1", f"--output={tmp_path}/%a.log"),
    CONFIG=config,
    WORKDIR=str(tmp_path / "labels"),
  )
  log = {task: tmp_path / f"{task}.log" for task in range(3)}
  # One is told to end before its time is over, another is not wanted any more.
  cluster.runs(f"{job}_1", log[1], "Labelled ")
  cluster.call("scancel", "--signal=TERM", "--batch", f"{job}_1")
  cluster.runs(f"{job}_2", log[2], "Labelled ")
  cluster.call("scancel", f"{job}_2")

  assert cluster.finish(f"{job}_2")[0] == "CANCELLED"
  assert cluster.finish(f"{job}_0") == ("COMPLETED", "0:0"), read(log[0])
  status = cluster.finish(f"{job}_1", restarts=1)
  assert status == ("COMPLETED", "0:0"), read(log[1])
  assert f"job {job}_1 goes back" in read(log[1])
  assert "goes back" not in read(log[0]) + read(log[2])
  assert "scancel: error" not in read(log[2])
  labelled = [read(log[task]).count("Labelled ") for task in range(3)]
  assert sum(labelled) >= SHARDS
  assert all(labelled)

  reports = list(verify(tmp_path / "labels"))
  assert [p for report in reports for p in report.problems] == []
  assert sum(report.num_good for report in reports) == SHARDS * SHARD_SIZE
  LabelSet.open(tmp_path / "labels")
  run = [sys.executable, "main.py", f"--config={config}"]
  subprocess.run(
    [*run, f"--workdir={tmp_path}/alone"], cwd=ROOT, check=True, timeout=TIMEOUT
  )
  assert contents(tmp_path / "labels") == contents(tmp_path / "alone")


def test_a_sweep_runs_lists_of_commands(cluster, tmp_path):
  (tmp_path / "jobs").write_text("# --array=0-1\necho 'a  b'\nfalse\n")
  job = cluster.submit(
    "sweep",
    *("--array=0-2", "--cpus-per-task=1", f"--output={tmp_path}/%a.log"),
    JOBS=str(tmp_path / "jobs"),
  )
  assert cluster.finish(f"{job}_0") == ("COMPLETED", "0:0")
  assert read(tmp_path / "0.log") == "a  b\n"
  assert cluster.finish(f"{job}_1") == ("FAILED", "1:0")
  assert cluster.finish(f"{job}_2") == (
    "FAILED",
    "2:0",
  )  # there is no such line


def contents(directory):
  """{name: bytes} of the files of a label set."""
  files = [path for path in directory.rglob("*") if path.is_file()]
  return {str(p.relative_to(directory)): p.read_bytes() for p in files}
