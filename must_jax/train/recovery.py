"""Recovery from a streak: consecutive steps that were skipped."""

import dataclasses
from typing import Any

import jax
import numpy as np
from absl import logging

from must_jax.train import mesh as mesh_lib
from must_jax.train.build import Program
from must_jax.train.checkpoint import Checkpoints
from must_jax.train.guard import TrainingDiverged
from must_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class Streak:
  """Consecutive skipped steps.

  Attributes:
    step: the last of them that is known.
    length: their number up to this one.
    keys: of the examples in its batch.
    metrics: what it said.
  """

  step: int
  length: int
  keys: Any
  metrics: dict[str, float]

  @property
  def first(self) -> int:
    """The first of the steps."""
    return self.step - self.length + 1

  def describe(self) -> str:
    """Names the last step, its losses and the examples in its batch."""
    losses = {k: v for k, v in self.metrics.items() if k.endswith("/loss")}
    shown = b", ".join(self.keys[:8]).decode(errors="replace")
    return (
      f"step {self.step}: loss {self.metrics['loss']}, gradient norm"
      f" {self.metrics['grad_norm']}; losses of the tasks {losses}; the batch"
      f" begins with the keys {shown}."
    )


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
