"""Flags, platform set-up, and dispatch on `config.stage`.

The stages, all with the config of the run and its directory:

  train     trains (the default), and goes on where the run was; a teacher, a
            student and a fine-tuned model are configs of it
  label     labels the images of `config.label.dataset` with the checkpoint
            `config.label.teacher`; workdir: of the label set
  evaluate  evaluates the latest checkpoint in the workdir on
            `config.evaluate_on`, and logs the metrics
"""

import os
import re
import sys
import tempfile
import threading
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax import stage
from must_jax.input.quarantine import TooManyBad
from must_jax.preflight import places
from must_jax.signals import heed_ctrl_c
from must_jax.storage import path

_CONFIG = flags.DEFINE_string(
  "config",
  None,
  "configs/NAME.py, or configs/NAME.py:ARG; --config.NAME=VALUE sets an option"
  " of it, as often as given. --config.stage says what is done with it: train"
  " (the default), label, or evaluate (metrics of the workdir's latest"
  " checkpoint on config.evaluate_on, which are logged).",
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run: checkpoints, metrics, labels."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes",
  None,
  "Processes of the run, where no launcher (TPU, SLURM, Open MPI) says it.",
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "This process's id among them, from 0."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0."
)
_INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
  "initialization_timeout", 300, "Seconds to wait for all processes to start."
)
_HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
  "heartbeat_timeout",
  100,
  "Seconds after which a silent process counts as dead, and the others end.",
)
_COMPILATION_CACHE = flags.DEFINE_string(
  "compilation_cache",
  os.environ.get("JAX_COMPILATION_CACHE_DIR"),
  "Directory of compiled programs, for the next start; empty for none. All"
  " processes of a run must see it: by default it is in the workdir if there"
  " are several, else in ~/.cache.",
)


def run_stage(config: ConfigDict, workdir: str) -> Any:
  """Runs what `config.stage` names; returns its result.

  Raises:
    ValueError: the config is not valid, or does not fit what there is; nothing
      is written if what it reads is not all there.
    OSError: a bucket is not there, may not be used, or does not answer.
  """
  config_lib.validate(config)
  path.check_reachable(workdir)
  places.check(config, workdir)
  return stage.run(config, workdir)


def initialize_distributed() -> None:
  """Joins the other processes, if there are any.

  Raises:
    ValueError: it is not said how.
  """
  import jax

  from must_jax.train.launcher import find_launch

  needed = (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)
  missing = [flag.name for flag in needed if flag.value is None]
  if not missing:
    launcher = "--num_processes"
    if not re.fullmatch(r".+:\d+", _COORDINATOR.value or ""):
      raise ValueError(
        f"--coordinator is {_COORDINATOR.value!r}; expected HOST:PORT, which"
        " process 0 listens at and all others reach."
      )
  elif len(missing) < len(needed):
    raise ValueError(
      "--coordinator, --num_processes and --process_id say together where a"
      f" process belongs; not given: {', '.join(missing)}."
    )
  elif (launch := find_launch(os.environ)).num_processes > 1:
    launcher = launch.launcher
  else:
    return

  # JAX's own deadline ends the process with a stack trace.
  seconds = _INITIALIZATION_TIMEOUT.value
  alarm = threading.Timer(seconds, _give_up_waiting, (launcher,))
  alarm.daemon = True
  alarm.start()
  try:
    jax.distributed.initialize(
      _COORDINATOR.value,
      _NUM_PROCESSES.value,
      _PROCESS_ID.value,
      initialization_timeout=seconds + 60,
      heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT.value,
    )
  except (ValueError, RuntimeError) as error:
    raise ValueError(
      f"This process cannot join the others that {launcher} names: {error}"
      " Under SLURM, start it by srun; else give --coordinator,"
      " --num_processes and --process_id."
    ) from error
  finally:
    alarm.cancel()


def _give_up_waiting(launcher: str) -> None:
  seconds = _INITIALIZATION_TIMEOUT.value
  where = f" at {_COORDINATOR.value}" if _COORDINATOR.value else ""
  print(
    f"error: the processes that {launcher} names have not met{where} within"
    f" {seconds} s. Start all of them; every one must reach the address of"
    " process 0. --initialization_timeout is for those that start late.",
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)


def keep_compiled_programs(directory: str | None, workdir: str) -> None:
  """Spares the next start what this one compiles.

  Only process 0 writes. On GPUs the processes compile together, so either all
  of them find a program or none does.

  Args:
    directory: "" for none, None for the default.
    workdir: of the run.
  """
  import jax

  if directory is None:
    directory = os.path.join(workdir, "compiled")
    if not jax.distributed.is_initialized():
      cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
      directory = os.path.join(cache, "must_jax", "compiled")
  if directory and "://" not in directory:
    try:
      os.makedirs(directory, exist_ok=True)
      tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
      logging.warning("Compiled programs are not kept: %s", error)
      directory = ""
  jax.config.update("jax_compilation_cache_dir", directory or None)


def _main(argv: list[str]) -> None:
  logging.set_verbosity(logging.INFO)
  from must_jax.train.guard import TrainingDiverged

  file, workdir = _CONFIG.value, _WORKDIR.value
  assert file is not None and workdir is not None  # required flags
  try:
    config = config_lib.load(file, argv[1:])
    if config.stage != "label":  # whose workers need nobody
      initialize_distributed()
    keep_compiled_programs(_COMPILATION_CACHE.value, workdir)
    run_stage(config, workdir)
  except (ValueError, OSError, TooManyBad, TrainingDiverged) as error:
    # What a user can mend needs no traceback; --verbosity=1 shows it.
    logging.debug("", exc_info=True)
    sys.exit(f"error: {error}")
  except KeyboardInterrupt:
    print("\nInterrupted. The same command goes on.", file=sys.stderr)
    sys.exit(130)


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses our own flags; returns the rest, which set options of the config."""
  own: list[str] = []
  overrides: list[str] = []
  taker = own
  for arg in flags.FLAGS.read_flags_from_files(argv, force_gnu=False):
    if re.match(r"--?(no)?config\.", arg):
      overrides.append(arg)
      taker = own if "=" in arg else overrides
    elif re.match(r"--?[a-z]", arg):
      own.append(arg)
      taker = own
    else:  # the value of the flag before it
      taker.append(arg)
  try:
    return flags.FLAGS(own) + overrides
  except flags.Error as error:
    sys.exit(
      f"error: {error}\nPass --helpshort or --helpfull to see help on flags."
    )


def run() -> None:
  """Entry point of `main.py`."""
  heed_ctrl_c()
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(_main, flags_parser=_parse_flags)
