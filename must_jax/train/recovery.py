"""Recovery from a streak of skipped steps: back to a checkpoint before it."""

import jax
import numpy as np
from absl import logging

from must_jax.train import mesh as mesh_lib
from must_jax.train.build import Program
from must_jax.train.checkpoint import Checkpoints
from must_jax.train.guard import Streak, TrainingDiverged
from must_jax.train.state import TrainState


def roll_back(
  checkpoints: Checkpoints, program: Program, state: TrainState, streak: Streak
) -> TrainState:
  """The last state before a streak, to go on with the data behind it.

  Args:
    checkpoints: of the run; those after this state are deleted.
    program: of the run.
    state: after the streak.
    streak: the latest.

  Raises:
    TrainingDiverged: there is no such state, or the run went back too often.
  """
  report = (
    f"{streak.length} steps in a row could not be learned from, the last:"
    f" {streak.describe()} Look at these examples, or start from a"
    " checkpoint in another --workdir (init_from) with a lower optimizer.lr or"
    " an optimizer.clip_norm."
  )
  logging.error("%s", report)
  before = checkpoints.roll_back(program.abstract_state, streak.first)
  if before is None:
    raise TrainingDiverged(f"{report} There is no checkpoint before them.")
  # Those that no checkpoint has seen count, too.
  rollbacks = int(state.rollbacks)
  if rollbacks >= program.config.train.max_rollbacks:
    raise TrainingDiverged(
      f"{report} The run has gone back {rollbacks} times already"
      f" (train.max_rollbacks); its last good checkpoint is that of step"
      f" {int(before.step)}."
    )
  position = int(state.step) + int(state.batches_left_out)
  counters = jax.device_put(
    (np.int32(rollbacks + 1), np.int32(position - int(before.step))),
    mesh_lib.replicated(program.mesh),
  )
  logging.error("Went back to step %d, other data.", int(before.step))
  return before.replace(rollbacks=counters[0], batches_left_out=counters[1])
