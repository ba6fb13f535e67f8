import argparse
import collections
import errno
import glob
import http.server
import os
import resource
import shutil
import socket
import stat
import threading
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import clusters

from must_jax.lab import world as world_lib
from must_jax.preflight import doctor
from must_jax.preflight.doctor import FAIL, OK, WARN, Case
from must_jax.train.launcher import find_launch, tpu_metadata


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  directory = tmp_path_factory.mktemp("world")
  world_lib.build(directory, 64, {"pile_truth": {"train": 8}}, workers=1)
  return directory / "pile_truth"


@pytest.fixture
def config_file(tmp_path):
  """Writes a config file around lines of code."""

  def write(*lines):
    path = tmp_path / "config.py"
    path.write_text(
      "from must_jax.config import base_config, dataset, smoke, task\n"
      "def get_config(arg=None):\n"
      "  config = base_config()\n"
      + "".join(f"  {line}\n" for line in lines)
      + "  return config\n"
    )
    return str(path)

  return write


@pytest.fixture
def training(config_file, images):
  """A config that trains on the images."""
  return config_file(
    f"config.datasets.all = dataset({str(images)!r}, 'train')",
    "config.train_on = ('all',)",
    "config.tasks.depth = task('depth', labels={'all': 'supervised'})",
    "config = smoke(config)",
  )


# Packages


def test_requirements_that_are_met_are_silent():
  versions = {"jax": "0.10.2", "numpy": "2.4.6"}
  assert not doctor.unmet(["jax>=0.10,<0.12", "numpy"], versions.get)


@pytest.mark.parametrize(
  ("requirement", "problem"),
  [
    ("jax>=0.11", "jax is 0.10.2, expected >=0.11"),
    ("libtpu", "libtpu is missing"),
    ("jax==0.9; python_version >= '3'", "jax is 0.10.2, expected ==0.9"),
  ],
)
def test_requirements_that_are_not_met_are_named(requirement, problem):
  assert doctor.unmet([requirement], {"jax": "0.10.2"}.get) == [problem]


def test_requirements_of_an_extra_count_with_it_alone():
  requirements = ["libtpu==0.0.42.*; extra == 'tpu'"]
  versions = {"libtpu": "0.0.41"}.get
  assert not doctor.unmet(requirements, versions)
  assert doctor.unmet(requirements, versions, ["tpu"]) == [
    "libtpu is 0.0.41, expected ==0.0.42.*"
  ]


def test_this_environment_is_as_it_should_be():
  for check in (doctor.check_python, doctor.check_packages, doctor.check_jax):
    assert check(Case()).status == OK


# The machine


@pytest.mark.skipif(
  any(glob.glob(files) for files, _ in doctor._ACCELERATORS),
  reason="this machine has an accelerator",
)
def test_a_cpu_alone_is_a_warning():
  environ = {"JAX_PLATFORMS": "cpu", "PATH": ""}
  found = doctor.check_devices(Case(environ=environ))
  assert found.status == WARN
  assert found.detail == "1 x cpu"


def test_a_gpu_that_jax_does_not_use_is_a_failure(tmp_path):
  tool = tmp_path / "nvidia-smi"
  tool.write_text("#!/bin/sh\n")
  tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
  found = doctor.check_devices(Case(environ={"PATH": str(tmp_path)}))
  assert found.status == FAIL
  assert "'.[cuda]'" in found.mend
  forced = {"PATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
  assert doctor.check_devices(Case(environ=forced)).mend == (
    "unset JAX_PLATFORMS"
  )


def test_devices_that_jax_cannot_open_are_a_failure():
  found = doctor.check_devices(Case(environ={"JAX_PLATFORMS": "tpu"}))
  assert found.status == FAIL
  assert "tpu" in found.detail


def test_few_open_files_are_a_failure():
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    assert doctor.check_files(Case()).status == FAIL
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
  assert doctor.check_files(Case()).status == OK


# Several processes

SLURM_STEP = {
  "SLURM_NTASKS": "16",
  "SLURM_PROCID": "3",
  "SLURM_STEP_NODELIST": "node[1-2]",
}
OPEN_MPI_4 = {
  "OMPI_COMM_WORLD_SIZE": "4",
  "OMPI_COMM_WORLD_RANK": "1",
  "OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp://10.96.0.1:34911",
}
MULTISLICE = {
  "TPU_WORKER_HOSTNAMES": "a,b,c,d",
  "TPU_WORKER_ID": "2",
  "MEGASCALE_NUM_SLICES": "2",
  "MEGASCALE_SLICE_ID": "1",
}


@pytest.mark.parametrize(
  ("environ", "processes", "number"),
  [
    ({}, 1, -1),
    (SLURM_STEP, 16, 3),
    (OPEN_MPI_4, 4, 1),
    ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, 1, 0),
    (MULTISLICE, 8, 6),
  ],
)
def test_processes_are_counted_as_jax_counts_them(environ, processes, number):
  launch = find_launch(environ)
  assert (launch.num_processes, launch.process_id) == (processes, number)
  assert doctor.check_processes(Case(environ=environ)).status == OK


@pytest.mark.parametrize(
  ("launcher", "environ"),
  [
    ("slurm", SLURM_STEP | {"SLURM_JOB_ID": "4097", "SLURM_LOCALID": "3"}),
    ("ompi", OPEN_MPI_4 | {"OMPI_COMM_WORLD_LOCAL_RANK": "1"}),
  ],
)
def test_jax_finds_the_same_place(monkeypatch, launcher, environ):
  for name, value in environ.items():
    monkeypatch.setenv(name, value)
  found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
    None, None, None, None, launcher, 300
  )
  address, processes, number, _ = found
  assert find_launch(environ)[1:] == (processes, number)
  if launcher == "slurm":
    assert doctor.coordinator_port(environ) == int(address.split(":")[1])


@pytest.mark.parametrize(
  ("environ", "mend"),
  [
    ({"SLURM_NTASKS": "16"}, "srun"),
    ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}, "coordinator"),
  ],
)
def test_processes_that_jax_cannot_join_are_a_failure(environ, mend):
  found = doctor.check_processes(Case(environ=environ))
  assert found.status == FAIL
  assert mend in found.mend


def test_another_number_of_processes_than_wanted_is_a_failure():
  wanted = doctor.check_processes(Case(processes=8, environ=SLURM_STEP))
  assert wanted.status == FAIL
  assert "16" in wanted.detail
  assert "expected 8" in wanted.detail


def test_a_proxy_between_processes_is_a_warning():
  proxy = {"https_proxy": "http://proxy:3128"}
  assert doctor.check_processes(Case(environ=proxy)).status == OK
  found = doctor.check_processes(Case(environ=SLURM_STEP | proxy))
  assert found.status == WARN
  assert found.mend == "unset https_proxy"


def test_a_tpu_vm_says_its_place_by_its_metadata():
  class Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      assert self.headers["Metadata-Flavor"] == "Google"
      key = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
      body = {
        "worker-network-endpoints": b"unknown:unknown:10.0.0.1,"
        b"unknown:unknown:10.0.0.2",
        "agent-worker-number": b"1",
      }[key]
      self.send_response(200)
      self.end_headers()
      self.wfile.write(body)

    def log_message(self, *unused):
      pass

  with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    environ = {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
    read = [
      tpu_metadata(environ, key)
      for key in ("worker-network-endpoints", "agent-worker-number")
    ]
    server.shutdown()
    thread.join()
  assert len(read[0].split(",")) == 2
  assert read[1] == "1"


@pytest.mark.parametrize(
  ("environ", "port"),
  [
    ({"JAX_COORDINATOR_PORT": "1234", "SLURM_JOB_ID": "5"}, 1234),
    ({}, 8482),  # a TPU
  ],
)
def test_the_port_is_that_of_jax(environ, port):
  assert doctor.coordinator_port(environ) == port


def test_a_port_that_is_taken_is_a_failure():
  with socket.create_server(("", 0)) as taken:
    environ = {"JAX_COORDINATOR_PORT": str(taken.getsockname()[1])}
    found = doctor.check_port(Case(processes=2, environ=environ))
    assert found.status == FAIL
    assert "in use" in found.detail
    # Only process 0 listens, and only for others.
    assert doctor.check_port(Case(environ=environ)) is None
    assert doctor.check_port(Case(environ=environ | SLURM_STEP)) is None
  assert doctor.check_port(Case(processes=2, environ=environ)).status == OK


# Storage


def test_a_workdir_is_made_and_left_empty(tmp_path):
  case = Case(workdir=str(tmp_path / "new" / "run"))
  for check in (doctor.check_workdir, doctor.check_clock, doctor.check_space):
    assert check(case).status == OK
  assert not list((tmp_path / "new" / "run").iterdir())


def test_without_a_workdir_nothing_is_said_of_it():
  for check in (doctor.check_workdir, doctor.check_clock, doctor.check_space):
    assert check(Case()) is None


def test_a_workdir_below_a_file_is_a_failure(tmp_path):
  (tmp_path / "file").write_text("")
  found = doctor.attempt(
    doctor.check_workdir, Case(workdir=str(tmp_path / "file" / "run"))
  )
  assert found.status == FAIL
  assert "Not a directory" in found.detail


def test_a_full_disk_is_a_failure(tmp_path, monkeypatch):
  def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  found = doctor.attempt(doctor.check_workdir, Case(workdir=str(tmp_path)))
  assert found.status == FAIL
  assert "No space left" in found.detail
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("hours", "status", "says"),
  [(0, OK, "within"), (1, FAIL, "ahead of"), (-1, FAIL, "behind")],
)
def test_a_clock_that_is_wrong_is_a_failure(tmp_path, hours, status, says):
  def clock():
    return os.stat(tmp_path).st_mtime + 3600 * hours

  found = doctor.check_clock(Case(workdir=str(tmp_path)), clock)
  assert found.status == status
  assert says in found.detail


def test_room_is_for_the_checkpoints_kept_and_one_more(tmp_path, training):
  case = Case(training, str(tmp_path))
  found = doctor.check_space(case)
  assert found.status == OK
  assert "3 checkpoints" in found.detail  # train.keep_checkpoints is 2


def test_no_room_for_checkpoints_is_a_failure(training):
  # A file system of no size.
  assert shutil.disk_usage("/proc").free == 0
  assert doctor.check_space(Case(training, "/proc")).status == FAIL


def test_the_size_of_a_checkpoint_is_at_least_parameters_and_momentum(
  training,
):
  from must_jax.input import sources
  from must_jax.train import build

  config = doctor.load_config(Case(training))
  state = build.build(sources.resolve(config)).create_state()
  arrays = jax.tree.leaves((state.params, state.params, state.batch_stats))
  least = sum(a.nbytes for a in arrays)
  assert least <= doctor.state_bytes(config) < 1.1 * least


# The config


def test_a_valid_config_is_ok(training):
  found = doctor.check_config(Case(training))
  assert found.status == OK
  assert "'train'" in found.detail


@pytest.mark.parametrize(
  ("code", "problem"),
  [
    ("config.stage = 'fly'", "stage is 'fly'"),
    ("config.lock().no_such_option = 1", "no_such_option"),
    ("raise SystemError('broken')", "SystemError: broken"),
  ],
)
def test_a_config_that_does_not_load_is_a_failure(config_file, code, problem):
  case = Case(config_file(code))
  found = doctor.attempt(doctor.check_config, case)
  assert found.status == FAIL
  assert problem in found.detail
  # The other checks have nothing to say of it.
  assert case.config is None
  assert doctor.check_data(case) is None


def test_a_config_file_that_is_missing_is_a_failure(tmp_path):
  found = doctor.attempt(
    doctor.check_config, Case(str(tmp_path / "no.py") + ":small")
  )
  assert found.status == FAIL
  assert "no such file" in found.detail


def test_arguments_reach_the_config():
  case = Case("configs/label.py:teacher=ckpt,images=pile")
  assert case.config.label.teacher == "ckpt"
  assert case.config.datasets.images.dir == "pile"


def test_data_that_is_there_is_counted(training):
  found = doctor.check_data(Case(training))
  assert found == (OK, "directories: 1; images: 8", "")


def test_what_is_read_of_labels_is_told(config_file, images, tmp_path):
  from must_jax.pseudo_label import worker

  class Teacher:
    fields: ClassVar = {"objects": {"kind": "Boxes", "classes": ["cat", "dog"]}}
    description: ClassVar = {"digest": "1"}

    def __call__(self, given):
      label = {
        "boxes": np.array([[0, 0, 0.5, 0.5], [0.2, 0.2, 0.9, 0.6]]),
        "classes": np.array([0, 1]),
        "scores": np.array([0.6, 0.3]),
      }
      return [{"objects": label}] * len(given)

  worker.label_images(Teacher(), images, "train", tmp_path / "labels")
  found = doctor.check_data(
    Case(
      config_file(
        f"config.datasets.all = dataset({str(images)!r}, 'train')",
        "config.train_on = ('all',)",
        "config.tasks.find = task('detection', labels={'all':"
        f" {str(tmp_path / 'labels')!r}}}, min_score={{'dog': 0.2, '*': 0.7}})",
      )
    )
  )
  assert found.status == OK
  assert found.detail == (
    f"directories: 2; images: 8\n{tmp_path / 'labels'}: objects: 16 boxes in 8"
    " labels, of which 8 (50.0%) have a score of 0.2 to 0.7 (by class) or more"
    " and are read"
  )


def test_all_that_is_missing_is_named(config_file, images):
  found = doctor.check_data(
    Case(
      config_file(
        f"config.datasets.all = dataset({str(images)!r}, 'test')",
        "config.datasets.more = dataset('no/images', 'train')",
        "config.train_on = ('all', 'more')",
        "config.init_from = 'no/checkpoint'",
        "config.tasks.depth = task('depth', labels={'all': 'no/labels'})",
      )
    )
  )
  assert found.status == FAIL
  for problem in ("no split 'test'", "no/images", "no/checkpoint", "no/labels"):
    assert problem in found.detail
  assert "--workdir=no/labels" in found.detail


def test_files_that_are_missing_are_named(config_file, training, images):
  shard = sorted(images.glob("*.tfrecord"))[0]
  shard.rename(shard.with_suffix(".aside"))
  try:
    found = doctor.check_data(Case(training))
  finally:
    shard.with_suffix(".aside").rename(shard)
  assert found.status == FAIL
  assert f"{shard} is missing" in found.detail


def test_compiling_tells_memory(training):
  def compile_step(config):
    assert config.tasks.depth.kind == "depth"
    return jax.jit(lambda x: x + 1).lower(jnp.zeros(250_000_000 // 4)).compile()

  found = doctor.check_compile(Case(training), compile_step)
  assert found.status == OK
  assert "needs 0.50 GB a device" in found.detail  # in and out


def test_nothing_is_compiled_for_data_that_are_missing(config_file):
  def compile_step(config):
    raise AssertionError("takes a minute")

  config = config_file(
    "config.datasets.all = dataset('no/images', 'train')",
    "config.train_on = ('all',)",
    "config.tasks.depth = task('depth', labels={'all': 'supervised'})",
    "config = smoke(config)",
  )
  case = Case(config)
  assert doctor.check_data(case).status == FAIL
  found = doctor.check_compile(case, compile_step)
  assert found.status == WARN and "not tried" in found.detail


def test_what_does_not_compile_is_a_failure(training):
  def compile_step(config):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

  found = doctor.attempt(
    lambda case: doctor.check_compile(case, compile_step), Case(training)
  )
  assert found.status == FAIL
  assert "RESOURCE_EXHAUSTED" in found.detail


# The command


def run(capsys, *options):
  parser = argparse.ArgumentParser()
  doctor.add_arguments(parser)
  args, overrides = parser.parse_known_args(options)
  args.overrides = overrides
  status = doctor.run(args)
  lines = capsys.readouterr().out.splitlines()
  return status, collections.Counter(line.split()[0] for line in lines)


def test_one_failure_fails_and_stops_no_other_check(capsys, training, tmp_path):
  status, good = run(capsys, "--config", training, "--workdir", str(tmp_path))
  assert status == 0
  assert good[FAIL] == 0
  status, bad = run(
    capsys, "--config", "no.py", "--workdir", str(tmp_path), "--processes", "2"
  )
  assert status == 1
  assert bad[FAIL] == 2  # the config, the number of processes
  # One more, the port; one less, the data of a config that isn't there.
  assert bad.total() == good.total()


def test_options_are_set_as_in_a_run(capsys, training):
  case = Case(training, overrides=("--config.train.steps=77",))
  assert case.config.train.steps == 77
  option = "--config.train.accumulate=0"
  found = doctor.attempt(
    doctor.check_config, Case(training, overrides=(option,))
  )
  assert found.status == FAIL
  assert "train.accumulate is 0; expected 1 or more" in found.detail
  assert run(capsys, "--config", training, option)[0] == 1
  with pytest.raises(ValueError, match="sets an option of no config"):
    run(capsys, option)


def test_a_line_says_status_name_detail_and_mend():
  found = doctor.Finding(WARN, "of\n  several lines", "do this")
  assert doctor.line("clock", found) == (
    "warn  clock       of\n        several lines  (do this)"
  )
