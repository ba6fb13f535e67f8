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

  if _NUM_PROCESSES.value is not None:
    jax.distributed.initialize(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
  elif _is_cluster():
    jax.distributed.initialize()


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
  initialize_distributed()
  assert _WORKDIR.value is not None  # a required flag
  try:
    result = run_stage(_CONFIG.value, _WORKDIR.value)
  except (ValueError, OSError, TooManyBad) as error:
    # What a user can mend needs no traceback; --verbosity=1 shows it.
    logging.debug("", exc_info=True)
    sys.exit(f"error: {error}")
  if result:
    logging.info("Result: %s", result)


def run() -> None:
  """Entry point of `main.py`."""
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(_main)
