"""Flags of `main.py`, and what a user sees of its errors."""

import pathlib
import socket
import subprocess
import sys
import time

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from must_jax import main

ROOT = pathlib.Path(main.__file__).parent.parent
SLURM = {
  "SLURM_JOB_ID": "4097",
  "SLURM_NTASKS": "2",
  "SLURM_PROCID": "1",
  "SLURM_LOCALID": "1",
  "SLURM_STEP_NODELIST": "node[1-2]",
}
OPEN_MPI_4 = {
  "OMPI_COMM_WORLD_SIZE": "2",
  "OMPI_COMM_WORLD_RANK": "1",
  "OMPI_COMM_WORLD_LOCAL_RANK": "0",
  "OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp://10.96.0.1:34911",
}
TPU = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}


@pytest.fixture
def join(monkeypatch):
  """Calls `initialize_distributed`; returns what it asks of JAX."""

  def call(environ=(), **values):
    asked = []
    monkeypatch.setattr(
      jax.distributed, "initialize", lambda *args, **_: asked.append(args)
    )
    for name, value in dict(environ).items():
      monkeypatch.setenv(name, value)
    with flagsaver.flagsaver(**values):
      flags.FLAGS.mark_as_parsed()
      main.initialize_distributed()
    return asked

  return call


def test_a_process_alone_joins_nobody(join):
  assert join() == []
  assert join({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) == []
  assert join({"TPU_WORKER_HOSTNAMES": "localhost"}) == []


@pytest.mark.parametrize("environ", [SLURM, OPEN_MPI_4, TPU])
def test_launchers_need_no_flags(join, environ):
  assert join(environ) == [(None, None, None)]


def test_flags_win_over_a_launcher(join):
  place = {"coordinator": "host:1", "num_processes": 2, "process_id": 0}
  assert join(SLURM, **place) == [("host:1", 2, 0)]


def test_flags_of_several_processes_go_together(join):
  with pytest.raises(ValueError, match="not given: coordinator, process_id"):
    join(num_processes=2)


def test_coordinator_has_a_port(join):
  with pytest.raises(ValueError, match="'host'; expected HOST:PORT"):
    join(coordinator="host", num_processes=2, process_id=0)


def test_launcher_that_does_not_say_where_is_an_error(monkeypatch):
  for name, value in {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}.items():
    monkeypatch.setenv(name, value)
  with flagsaver.flagsaver(), pytest.raises(ValueError, match="srun"):
    flags.FLAGS.mark_as_parsed()
    monkeypatch.setattr(jax.distributed, "initialize", _fails)
    main.initialize_distributed()


def _fails(*_, **__):
  raise ValueError("coordinator_address should be defined.")


@pytest.fixture
def cache(monkeypatch):
  """Calls `keep_compiled_programs`; returns the directory that JAX is given."""

  def call(directory, workdir="work", is_one_of_several=False):
    given = {}
    monkeypatch.setattr(
      jax.distributed, "is_initialized", lambda: is_one_of_several
    )
    with monkeypatch.context() as patched:
      patched.setattr(jax.config, "update", given.__setitem__)
      main.keep_compiled_programs(directory, str(workdir))
    return given["jax_compilation_cache_dir"]

  return call


def test_compiled_programs_are_kept_where_the_flag_says(cache, tmp_path):
  assert cache(str(tmp_path / "a/b")) == str(tmp_path / "a/b")
  assert cache("") is None


def test_processes_keep_compiled_programs_in_what_they_share(
  cache, tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  assert cache(None, tmp_path) == str(tmp_path / "home/must_jax/compiled")
  assert cache(None, tmp_path, True) == str(tmp_path / "compiled")


def test_cache_that_cannot_be_written_is_a_warning(cache, tmp_path, caplog):
  (tmp_path / "file").touch()
  assert cache(str(tmp_path / "file/cache")) is None
  assert "Compiled programs are not kept: " in caplog.text


def run(*arguments, workdir="/dev/null/none"):
  return subprocess.run(
    [sys.executable, "main.py", f"--workdir={workdir}", *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=120,
  )


def test_processes_that_do_not_meet_end_with_an_error_and_no_traceback():
  with socket.create_server(("localhost", 0)) as server:
    port = server.getsockname()[1]
  result = run(
    "--config=configs/teacher_depth.py:smoke",
    "--num_processes=2",
    "--process_id=1",
    f"--coordinator=localhost:{port}",
    "--initialization_timeout=1",
  )
  assert result.returncode == 1
  assert "error: the processes that --num_processes names have not met at" in (
    result.stderr
  )
  assert "Traceback" not in result.stderr
  assert "stack trace" not in result.stderr


def test_an_argument_of_a_config_that_is_wrong_is_an_error_of_one_line():
  result = run("--config=configs/student.py:tasks=detectoin")
  assert result.returncode == 1
  (line,) = [x for x in result.stderr.splitlines() if "detectoin" in x]
  assert line.startswith("error: ")
  assert line.endswith("Did you mean 'detection'?")
  assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      ["--config.optimizer.learning_rate=0.1"],
      "error: There is no option optimizer.learning_rate; did you mean"
      " --config.optimizer.lr?",
    ),
    (
      ["--config.train.accumulate", "0", "--compilation_cache", ""],
      "error: train.accumulate is 0; expected 1 or more.",
    ),
    (
      ["--wrkdir=x", "--config.data.flip"],
      "error: Unknown command line flag 'wrkdir'. Did you mean: workdir ?",
    ),
    (
      ["x"],
      "error: Arguments not understood: ['x']; expected --config.NAME=VALUE.",
    ),
  ],
)
def test_an_option_that_is_wrong_is_an_error_of_one_line(arguments, message):
  result = run("--config=configs/teacher_depth.py:smoke", *arguments)
  assert result.returncode == 1
  assert message in result.stderr.splitlines()
  assert "Traceback" not in result.stderr


def test_config_that_is_not_there_is_an_error_and_no_traceback():
  result = run("--config=configs/none.py")
  assert result.returncode == 1
  assert "error: " in result.stderr
  assert "configs/none.py" in result.stderr
  assert "Traceback" not in result.stderr


@pytest.mark.parametrize("wrong", ["bucket", "rights", "network"])
def test_a_bucket_that_cannot_be_used_is_an_error_of_one_line(
  bucket, monkeypatch, wrong
):
  root = bucket.root
  if wrong == "bucket":
    root, says = "gs://no-such-bucket-there", "There is no bucket"
  elif wrong == "rights":
    bucket.set(forbidden=True)
    says = "may not be used by this machine's account"
  else:
    with socket.create_server(("localhost", 0)) as server:
      port = server.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
    says = "Is there a network"
  begin = time.monotonic()
  result = run(
    f"--config=configs/student.py:root={root},smoke",
    workdir=f"{root}/run",
  )
  assert result.returncode == 1
  errors = [x for x in result.stderr.splitlines() if x.startswith("error: ")]
  assert len(errors) == 1 and says in errors[0] and root in errors[0]
  assert "Traceback" not in result.stderr
  # It is tried for some seconds whether the network comes up.
  assert time.monotonic() - begin < 60
