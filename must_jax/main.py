"""Flags, platform set-up, and dispatch on `config.stage`."""

import logging as std_logging
import os
import sys
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from must_jax import config as config_lib
from must_jax.data.quarantine import TooManyBad

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "configs/NAME.py, or configs/NAME.py:ARG.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory of the run: checkpoints, metrics, labels."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes",
  None,
  "Processes of the run, where the platform (TPU, SLURM, Open MPI) does not"
  " say.",
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process's number.")
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
  os.path.join(
    os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")),
    "must_jax",
    "compiled",
  ),
  "Directory of compiled programs, for the next start; empty for none.",
)


def quiet_libraries() -> None:
  """Keeps orbax's account of its every step out of the log."""
  handler = logging.get_absl_handler()
  handler.addFilter(
    lambda record: (
      record.levelno >= std_logging.WARNING
      if "orbax" in record.pathname
      else True
    )
  )


def keep_tensorflow_off_accelerators() -> None:
  """It reads data only, and would take the memory that JAX needs."""
  import tensorflow as tf

  for kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], kind)


def run_stage(config: ConfigDict, workdir: str) -> Any:
  """Runs what `config.stage` names; returns its result."""
  config_lib.validate(config)
  quiet_libraries()
  keep_tensorflow_off_accelerators()
  if config.stage == "label":
    from must_jax.pseudo_label import worker

    return worker.label(config, workdir)
  from must_jax.train import loop

  if config.stage == "evaluate":
    return loop.evaluate_checkpoint(config, workdir)
  return loop.train(config, workdir)


def initialize_distributed() -> None:
  """Joins the other processes, if there are any."""
  import jax

  timeouts: dict[str, Any] = {
    "initialization_timeout": _INITIALIZATION_TIMEOUT.value,
    "heartbeat_timeout_seconds": _HEARTBEAT_TIMEOUT.value,
  }
  if _NUM_PROCESSES.value is not None:
    jax.distributed.initialize(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, **timeouts
    )
  elif _is_cluster():
    jax.distributed.initialize(**timeouts)


def keep_compiled_programs(directory: str) -> None:
  """Spares the next start what this one compiles."""
  import jax

  if directory:
    jax.config.update("jax_compilation_cache_dir", directory)


def _is_cluster() -> bool:
  """Whether the environment names several processes."""
  workers = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
  tasks = os.environ.get(
    "SLURM_NTASKS", os.environ.get("OMPI_COMM_WORLD_SIZE", "1")
  )
  return len(workers) > 1 or int(tasks) > 1


def _main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Arguments not understood: {argv[1:]}")
  logging.set_verbosity(logging.INFO)
  if _CONFIG.value.stage != "label":  # whose workers need nobody
    initialize_distributed()
  keep_compiled_programs(_COMPILATION_CACHE.value)
  from must_jax.train.guard import TrainingDiverged

  assert _WORKDIR.value is not None  # a required flag
  try:
    result = run_stage(_CONFIG.value, _WORKDIR.value)
  except (ValueError, OSError, TooManyBad, TrainingDiverged) as error:
    # What a user can mend needs no traceback; --verbosity=1 shows it.
    logging.debug("", exc_info=True)
    sys.exit(f"error: {error}")
  if result:
    logging.info("Result: %s", result)


def run() -> None:
  """Entry point of `main.py`."""
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(_main)
