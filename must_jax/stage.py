"""The stages of a config, see `main`, and what their libraries need."""

import logging as std_logging
import sys
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from must_jax.train.runtime import keep_tensorflow_off_accelerators


def run(config: ConfigDict, workdir: str) -> Any:
  """Runs what `config.stage` names; returns its result.

  Args:
    config: a valid one, see `config.validate`.
    workdir: of the run.
  """
  quiet_libraries()
  keep_tensorflow_off_accelerators()
  if config.stage == "label":
    from must_jax.pseudo_label import worker

    return worker.label(config, workdir)
  if config.stage == "evaluate":
    from must_jax.train.evaluate import evaluate_checkpoint

    return evaluate_checkpoint(config, workdir)
  from must_jax.train.loop import train

  return train(config, workdir)


def quiet_libraries() -> None:
  """Keeps orbax's account of its every step out of the log.

  Its tracebacks, too, and those of its tasks: `train.checkpoint` says what they
  mean.
  """
  handler = logging.get_absl_handler()
  handler.addFilter(
    lambda record: (
      record.levelno >= std_logging.WARNING and not record.exc_info
      if "orbax" in record.pathname or record.name == "asyncio"
      else True
    )
  )
  before = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    # Writes of a save that has failed say so, hundreds of them.
    if str(unraisable.exc_value) != "Event loop is closed":
      before(unraisable)

  sys.unraisablehook = hook
