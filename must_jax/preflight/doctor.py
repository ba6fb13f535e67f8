"""`must-jax doctor`: what can go wrong is tried before machines are paid for.

A check is a function of a `Case` that says what it found, or None where there
is nothing to check. A new one is written below and named in `CHECKS`.
"""

import argparse
import contextlib
import dataclasses
import functools
import glob
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from must_jax.storage import path as path_lib
from must_jax.storage.path import Path
from must_jax.train.launcher import TPU_FILES, find_launch

OK, WARN, FAIL = "ok", "warn", "FAIL"

# Compiles the training step of a config with its class names filled in;
# returns a `jax.stages.Compiled`.
CompileStep = Callable[[ConfigDict], Any]

_NUM_FILES = 1024  # shards are kept open, up to 256 of a set
_MAX_SKEW = 120.0  # seconds; leases of labelling jobs last 600
_DEVICE_SECONDS = 180.0  # a TPU that another process holds blocks forever
_TPU_PORT = 8482  # jax/_src/clusters/cloud_tpu_cluster.py

# Accelerators that can be seen without JAX: files, and what makes JAX use them.
_ACCELERATORS = (
  ("/dev/nvidia[0-9]*", "cuda"),
  *((files, "tpu") for files in TPU_FILES),
)


class Finding(NamedTuple):
  """What a check found.

  Attributes:
    status: `OK`, `WARN` or `FAIL`.
    detail: what there is.
    mend: what to do about it; empty if nothing.
  """

  status: str
  detail: str
  mend: str = ""


@dataclasses.dataclass(frozen=True)
class Case:
  """What is to be checked.

  Attributes:
    config_file: as of a run, CONFIG or CONFIG:ARG; empty for none.
    workdir: of the run; empty for none.
    processes: that the run shall have; None if it doesn't matter.
    overrides: of the config's options, "--config.NAME=VALUE" each.
    environ: variables of the environment.
  """

  config_file: str = ""
  workdir: str = ""
  processes: int | None = None
  overrides: tuple[str, ...] = ()
  environ: Mapping[str, str] = dataclasses.field(
    default_factory=lambda: os.environ
  )

  @functools.cached_property
  def config(self) -> ConfigDict | None:
    """A valid config, or None; `check_config` says why."""
    try:
      return load_config(self) if self.config_file else None
    except Exception:  # a config is a program: anything may go wrong in it
      return None

  @functools.cached_property
  def data(self) -> "Finding | None":
    """What `check_data` finds."""
    return attempt(find_data, self)

  @functools.cached_property
  def devices(self) -> "Devices":
    """This machine's devices."""
    return find_devices(self.environ)


def load_config(case: Case) -> ConfigDict:
  """Loads and validates the config, as a run does."""
  from must_jax import config as config_lib

  config = config_lib.load(case.config_file, case.overrides, path_lib.read_file)
  config_lib.validate(config)
  return config


# Packages


def unmet(
  requirements: Iterable[str],
  version: Callable[[str], str | None],
  extras: Iterable[str] = (),
) -> list[str]:
  """Says for each requirement that is not met what is there instead.

  Args:
    requirements: as in package metadata, "jax>=0.10; extra == 'x'".
    version: of a package that is installed, else None.
    extras: whose requirements count, besides those without a condition.
  """
  problems = []
  for text in requirements:
    requirement = Requirement(text)
    marker = requirement.marker
    if marker and not any(
      marker.evaluate({"extra": extra}) for extra in ("", *extras)
    ):
      continue
    found = version(requirement.name)
    if found is None:
      problems.append(f"{requirement.name} is missing")
    elif not requirement.specifier.contains(found, prereleases=True):
      problems.append(
        f"{requirement.name} is {found}, expected {requirement.specifier}"
      )
  return problems


def installed(name: str) -> str | None:
  """Version of an installed package, or None."""
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return None


def check_python(case: Case) -> Finding:
  """Python's version, against that of `setup.py`."""
  expected = metadata.metadata("must_jax")["Requires-Python"]
  found = ".".join(map(str, sys.version_info[:3]))
  if found not in SpecifierSet(expected):
    return Finding(FAIL, f"{found}, expected {expected}", "make a new venv")
  return Finding(OK, found)


def check_packages(case: Case) -> Finding:
  """Installed packages, against the ranges of `setup.py`."""
  requirements = metadata.requires("must_jax") or []
  if problems := unmet(requirements, installed):
    return Finding(
      FAIL, "; ".join(problems), "pip install -c constraints.txt -e ."
    )
  return Finding(OK, f"must_jax {installed('must_jax')} and what it needs")


def check_jax(case: Case) -> Finding:
  """The libraries of jax, against what this jax was made for."""
  plugins = {
    "libtpu": "tpu",
    "jax-cuda12-plugin": "cuda12",
    "jax-cuda13-plugin": "cuda13",
  }
  there = {name: extra for name, extra in plugins.items() if installed(name)}
  requirements = metadata.requires("jax") or []
  found = ", ".join(f"{n} {installed(n)}" for n in ("jax", "jaxlib", *there))
  if problems := unmet(requirements, installed, there.values()):
    extra = ",".join(there.values())
    return Finding(
      FAIL,
      f"{found}: {'; '.join(problems)}",
      f"pip install -c constraints.txt 'jax[{extra}]'",
    )
  return Finding(OK, found)


# The machine


class Devices(NamedTuple):
  """What JAX finds on this machine.

  Attributes:
    kinds: of the devices; empty if JAX doesn't come up.
    error: why it doesn't.
  """

  kinds: tuple[str, ...] = ()
  error: str = ""


def find_devices(environ: Mapping[str, str]) -> Devices:
  """Asks JAX in another process: a TPU that is not free blocks who asks."""
  ask = (
    "import jax, json;"
    "print(json.dumps([d.device_kind for d in jax.local_devices()]))"
  )
  try:
    result = subprocess.run(
      [sys.executable, "-c", ask],
      env=dict(environ),
      capture_output=True,
      text=True,
      timeout=_DEVICE_SECONDS,
      check=False,
    )
  except subprocess.TimeoutExpired:
    return Devices(error=f"no answer in {_DEVICE_SECONDS:.0f} s")
  if result.returncode:
    return Devices(error=result.stderr.strip().rpartition("\n")[2])
  return Devices(tuple(json.loads(result.stdout.splitlines()[-1])))


def check_devices(case: Case) -> Finding:
  """The devices that JAX finds, against those that the machine has."""
  kinds, error = case.devices
  if error:
    return Finding(
      FAIL,
      error,
      "does another process use them? On a slice of several machines, start"
      " this on all at once",
    )
  found = ", ".join(
    f"{kinds.count(kind)} x {kind}" for kind in sorted({*kinds})
  )
  if {*kinds} != {"cpu"}:
    return Finding(OK, found)
  extras = [extra for files, extra in _ACCELERATORS if glob.glob(files)]
  if shutil.which("nvidia-smi", path=case.environ.get("PATH")):
    extras.append("cuda")
  if not extras:
    return Finding(WARN, found, "enough for configs that are :small or :smoke")
  platforms = case.environ.get("JAX_PLATFORMS")
  return Finding(
    FAIL,
    f"{found}, though the machine has an accelerator",
    "unset JAX_PLATFORMS"
    if platforms
    else f"pip install -c constraints.txt -e '.[{extras[0]}]'",
  )


def check_files(case: Case) -> Finding:
  """How many files a process may open."""
  import resource

  limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  if limit != resource.RLIM_INFINITY and limit < _NUM_FILES:
    return Finding(
      FAIL,
      f"a process may open {limit}, expected {_NUM_FILES}",
      f"ulimit -n {_NUM_FILES}",
    )
  return Finding(OK, f"a process may open {limit}")


# Several processes


def check_processes(case: Case) -> Finding:
  """The number of processes that jax.distributed will find."""
  env, launch = case.environ, find_launch(case.environ)
  found = f"{launch.num_processes}, by {launch.launcher}"
  if launch.process_id >= 0:
    found += f"; this is number {launch.process_id}"
  if launch.launcher == "SLURM" and launch.num_processes > 1:
    # An allocation has the number of tasks, only a step has places for them.
    if launch.process_id < 0 or "SLURM_STEP_NODELIST" not in env:
      return Finding(FAIL, f"{found}, but this is no step", "start it by srun")
  elif launch.launcher == "Open MPI" and "OMPI_MCA_orte_hnp_uri" not in env:
    return Finding(
      FAIL,
      f"{found}, but its version 5 doesn't say where the first process is",
      "give the run --coordinator, --num_processes and --process_id",
    )
  if case.processes not in (None, launch.num_processes):
    return Finding(
      FAIL,
      f"{found}; expected {case.processes}",
      "start as many, or give the run --coordinator, --num_processes and"
      " --process_id",
    )
  proxies = [name for name in env if name.lower().endswith("_proxy")]
  if launch.num_processes > 1 and proxies:
    return Finding(
      WARN,
      f"{found}; {', '.join(proxies)} may keep them from finding each other",
      f"unset {' '.join(proxies)}",
    )
  return Finding(OK, found)


def coordinator_port(environ: Mapping[str, str]) -> int:
  """The port of process 0, by the rules of jax/_src/clusters."""
  if port := environ.get("JAX_COORDINATOR_PORT"):
    return int(port)
  if job := environ.get("SLURM_JOB_ID"):
    return int(job) % 2**12 + (65535 - 2**12 + 1)
  return _TPU_PORT


def check_port(case: Case) -> Finding | None:
  """Whether process 0 could listen here for the others."""
  launch = find_launch(case.environ)
  several = max(case.processes or 1, launch.num_processes) > 1
  if not several or launch.process_id > 0:
    return None
  port = coordinator_port(case.environ)
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
  except OSError as error:
    return Finding(
      FAIL,
      f"{port} cannot be listened at: {error.strerror}",
      "end what listens there, or set JAX_COORDINATOR_PORT on all machines",
    )
  return Finding(OK, f"{port} is free")


# Storage


@contextlib.contextmanager
def scratch(case: Case, name: str) -> Iterator[Path]:
  """A path in the workdir, which is made; what is there goes at the end."""
  workdir = Path(case.workdir)
  path_lib.make_directory(workdir)
  # Doctors of several machines may look at one workdir.
  path = workdir / f".doctor-{socket.gethostname()}-{os.getpid()}-{name}"
  try:
    yield path
  finally:
    path_lib.remove(path)


def check_workdir(case: Case) -> Finding | None:
  """Whether files can be written, read, deleted, and made by one only."""
  if not case.workdir:
    return None
  content = os.urandom(1024).hex()
  with scratch(case, "file") as path:
    made = path_lib.create_json(path, content)
    again = not path_lib.is_exclusive(path)
    found = path_lib.read_version(path)
  if not made or found is None or found.value != content:
    return Finding(
      FAIL, f"{case.workdir} returns other bytes than were written"
    )
  if again:
    return Finding(
      FAIL,
      f"{case.workdir} lets two make the same file",
      "labelling needs a file system with hard links, or a bucket",
    )
  return Finding(OK, f"{case.workdir} can be written, read and deleted")


def check_clock(
  case: Case, clock: Callable[[], float] = time.time
) -> Finding | None:
  """This clock against that of the workdir's file system.

  Labelling workers tell by it who is silent.
  """
  if not case.workdir:
    return None
  with scratch(case, "clock") as path:
    path_lib.publish_json(path, "")
    skew = clock() - path_lib.modified(path)
  if abs(skew) > _MAX_SKEW:
    return Finding(
      FAIL,
      f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the file"
      " system's",
      "set the clocks by NTP",
    )
  return Finding(OK, f"within {math.ceil(abs(skew))} s of the file system's")


def check_space(case: Case) -> Finding | None:
  """Room for the checkpoints that are kept, and the one being written."""
  if not case.workdir or not path_lib.is_local(case.workdir):
    return None
  free = shutil.disk_usage(case.workdir).free
  config = case.config
  if config is None or config.stage != "train" or case.devices.error:
    return Finding(OK, f"{free / 1e9:.1f} GB are free")
  try:
    size = state_bytes(config)
  except ValueError as error:
    return Finding(
      WARN, f"{free / 1e9:.1f} GB are free; the need is not known: {error}"
    )
  number = config.train.keep_checkpoints + 1
  need = f"{number} checkpoints of {size / 1e9:.2f} GB"
  if free < number * size:
    return Finding(
      FAIL,
      f"{free / 1e9:.1f} GB are free, too little for {need}",
      "choose another workdir, or less train.keep_checkpoints",
    )
  return Finding(OK, f"{free / 1e9:.1f} GB are free, enough for {need}")


def state_bytes(config: ConfigDict) -> int:
  """Size of a checkpoint before it is compressed."""
  import jax

  from must_jax.input import sources
  from must_jax.preflight import compiled
  from must_jax.train import build

  config = sources.resolve(config)
  config.mesh.update({"data": 1, "fsdp": 1})
  program = build.build(config, devices=jax.local_devices()[:1])
  return compiled.tree_bytes(program.abstract_state)


# The config


def check_config(case: Case) -> Finding | None:
  """Whether the config loads and is valid."""
  if not case.config_file:
    return None
  config = load_config(case)
  return Finding(OK, f"{case.config_file} is valid, stage {config.stage!r}")


def check_data(case: Case) -> Finding | None:
  """Whether all that the config reads is there."""
  return case.data


def find_data(case: Case) -> Finding | None:
  """Looks for all that the config reads."""
  config = case.config
  if config is None:
    return None
  from must_jax.config import task_kwargs
  from must_jax.preflight import places
  from must_jax.storage import label_sets
  from must_jax.storage.sets import ImageSet, LabelSet

  read = places.places(config, case.workdir)
  if missing := places.missing(read):
    return Finding(FAIL, places.text(missing))
  problems, records, labels = [], 0, []
  for place in read:
    try:
      found = place.open()
    except (ValueError, OSError) as error:
      problems.append(str(error))
    else:
      if isinstance(found, ImageSet):
        records += found.num_records
      if isinstance(place, places.LabelsPlace):
        assert isinstance(found, LabelSet)
        options = task_kwargs(config.tasks[place.task])
        left = label_sets.summary(found.manifest, options.get("min_score"))
        labels += [f"{place.path}: {n}: {text}" for n, text in left.items()]
  if problems:
    return Finding(FAIL, "\n".join(problems))
  counts = f"directories: {len(read)}; images: {records:,}"
  return Finding(OK, "\n".join([counts, *labels]))


def check_compile(case: Case, compile_step: CompileStep) -> Finding | None:
  """Whether the training step compiles, and fits into a device."""
  config = case.config
  if config is None or config.stage != "train" or case.devices.error:
    return None
  if case.data and case.data.status == FAIL:
    return Finding(WARN, "not tried, since it takes long and data are missing")
  import jax

  from must_jax.input import sources
  from must_jax.preflight import compiled

  begin = time.monotonic()
  need = compiled.needed_memory(compile_step(sources.resolve(config)))
  seconds = time.monotonic() - begin
  found = f"in {seconds:.0f} s; needs {need / 1e9:.2f} GB a device"
  statistics = jax.local_devices()[0].memory_stats() or {}
  if limit := statistics.get("bytes_limit"):  # CPUs don't say
    found += f" of {limit / 1e9:.2f}"
    if need > limit:
      return Finding(FAIL, found, "lower data.batch_size, or use more devices")
  return Finding(OK, found)


Check = Callable[[Case], Finding | None]
CHECKS: tuple[tuple[str, Check], ...] = (
  ("python", check_python),
  ("packages", check_packages),
  ("jax", check_jax),
  ("devices", check_devices),
  ("open files", check_files),
  ("processes", check_processes),
  ("port", check_port),
  ("workdir", check_workdir),
  ("clock", check_clock),
  ("config", check_config),
  ("data", check_data),
  ("disk space", check_space),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `must-jax doctor`."""
  parser.add_argument(
    "--config",
    default="",
    metavar="CONFIG[:ARG]",
    help="as of a run, a file or a name of `must-jax configs`;"
    " --config.NAME=VALUE as well",
  )
  parser.add_argument("--workdir", default="", help="of the run")
  parser.add_argument(
    "--processes", type=int, help="that the run shall have on all machines"
  )


def run(
  args: argparse.Namespace, compile_step: CompileStep | None = None
) -> int:
  """Prints a line for each check; returns 1 if any failed.

  Raises:
    ValueError: options of a config are set, and no config is given.
  """
  case = Case(args.config, args.workdir, args.processes, tuple(args.overrides))
  if args.overrides and not args.config:
    raise ValueError(
      f"{args.overrides[0]} sets an option of no config; give --config, too."
    )
  checks = list(CHECKS)
  if compile_step is not None:
    checks.append(
      ("compile", functools.partial(check_compile, compile_step=compile_step))
    )
  failed = False
  for name, check in checks:
    finding = attempt(check, case)
    if finding is not None:
      print(line(name, finding), flush=True)
      failed |= finding.status == FAIL
  return int(failed)


def attempt(check: Check, case: Case) -> Finding | None:
  """Runs a check; whatever goes wrong in it is what it found."""
  try:
    return check(case)
  except Exception as error:
    kind = type(error).__name__
    return Finding(FAIL, f"{kind}: {error}")


def line(name: str, finding: Finding) -> str:
  """`ok    name        detail  (mend)`; more lines of detail are set in."""
  mend = f"  ({finding.mend})" if finding.mend else ""
  detail = finding.detail.strip().replace("\n", "\n      ")
  return f"{finding.status:4}  {name:10}  {detail}{mend}"
