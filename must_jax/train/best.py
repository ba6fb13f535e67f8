"""The best checkpoint of a run, and when it stops getting better.

  WORKDIR/best/checkpoints/STEP  loads as `must_jax.load("WORKDIR/best")`
  WORKDIR/best.json              the metric at each evaluation

Which step is best follows from the evaluations up to the one that a run goes on
from, so one that was killed keeps the same checkpoint as one that was not.
"""

import difflib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from must_jax.storage.path import Path, PathLike, publish_json, read_files
from must_jax.train.checkpoint import Checkpoints
from must_jax.train.state import TrainState

BEST_DIRECTORY, BEST_FILE = "best", "best.json"


class Best:
  """Keeps the checkpoint with the best value of `train.best_metric`."""

  def __init__(
    self, config: ConfigDict, workdir: PathLike, names: Mapping[str, bool]
  ):
    """Reads what a run before this start has found; nothing is written.

    Args:
      config: of the run.
      workdir: of the run.
      names: of all metrics, and whether a smaller one is better.

    Raises:
      ValueError: no evaluation gives the metric.
    """
    self._name = config.train.best_metric
    self._patience = config.train.patience
    self._file = Path(workdir) / BEST_FILE
    self._history: list[tuple[int, float]] = []
    self._checkpoints: Checkpoints | None = None
    if not self._name:
      if self._patience:
        raise ValueError(
          f"train.patience is {self._patience}, which counts evaluations"
          " without a better train.best_metric; that is empty. Expected one of"
          f" {_some(names)}."
        )
      return
    if self._name not in names:
      near = difflib.get_close_matches(self._name, names, 1)
      raise ValueError(
        f"train.best_metric is {self._name!r}; the evaluations during training"
        f" (evaluate_on) give {_some(names) or 'none'}."
        + (f" Did you mean {near[0]!r}?" if near else "")
      )
    self._sign = -1.0 if names[self._name] else 1.0
    (text,) = read_files([self._file])
    record = json.loads(text) if text else {}
    if record.get("metric") == self._name:
      self._history = [(step, value) for step, value in record["evaluations"]]
    self._checkpoints = Checkpoints(
      Path(workdir) / BEST_DIRECTORY, config, keep=1
    )

  @property
  def _best(self) -> tuple[int, float] | None:
    """Step and value of the first of the best evaluations."""
    return max(
      (e for e in self._history if e[1] == e[1]),  # not nan
      key=lambda e: self._sign * e[1],
      default=None,
    )

  @property
  def is_over(self) -> bool:
    """Whether so many evaluations found nothing better that the run ends."""
    if not self._patience or not self._history or not self._best:
      return False
    step, _ = self._best
    return sum(s > step for s, _ in self._history) >= self._patience

  def lacks(self, step: int) -> bool:
    """Whether an evaluation at a step of the run would be news."""
    return self._checkpoints is not None and all(
      s != step for s, _ in self._history
    )

  def go_back(self, state: TrainState) -> None:
    """Forgets what was found after the step of a state that is gone on from."""
    if self._checkpoints is None:
      return
    step, before = int(state.step), self._history
    self._history = [e for e in before if e[0] <= step]
    if self._history != before:  # else a later start would believe them
      self._write()
    self._checkpoints.delete_after(step)
    if self._best and self._best[0] not in self._checkpoints.steps:
      if self._best[0] == step:
        self._checkpoints.save(state)
      else:
        logging.warning(
          "The best checkpoint so far, of step %d, is not in %s; the next"
          " better one will be.",
          self._best[0],
          self._file.parent / BEST_DIRECTORY,
        )

  def add(
    self,
    state: TrainState,
    metrics: Mapping[str, float],
    save: Callable[[], None],
  ) -> None:
    """Takes in an evaluation, and saves the state if it is the best so far.

    Args:
      state: that was evaluated.
      metrics: of all evaluations at this step.
      save: saves the state among the run's own checkpoints, so that no later
        start goes back to before the best step.
    """
    if self._checkpoints is None:
      return
    step, before = int(state.step), self._best
    self._history = [e for e in self._history if e[0] < step]
    self._history.append((step, float(metrics[self._name])))
    if self._best != before:
      logging.info(
        "%s is %.4f, the best so far; must_jax.load(%r) has the checkpoint.",
        self._name,
        metrics[self._name],
        str(self._file.parent / BEST_DIRECTORY),
      )
      save()
      self._checkpoints.save(state)
    self._write()

  def _write(self) -> None:
    if jax.process_index():
      return
    best: dict[str, Any] = {}
    if self._best:
      best = {"step": self._best[0], "value": self._best[1]}
    publish_json(
      self._file,
      {
        "metric": self._name,
        "best": best,
        "evaluations": self._history,
        "stopped_early": self.is_over,
      },
    )

  def say_over(self) -> None:
    """Tells why the run ends, and where its best checkpoint is."""
    assert self._best
    logging.info(
      "No better %s than %.4f at step %d in %d evaluations (train.patience):"
      " the run ends. Its best checkpoint is %s; with a larger patience the"
      " same command goes on.",
      self._name,
      self._best[1],
      self._best[0],
      self._patience,
      self._file.parent / BEST_DIRECTORY,
    )

  def wait(self) -> None:
    """Waits for what is being saved.

    Raises:
      CheckpointNotSavedError: it cannot be written.
    """
    if self._checkpoints is not None:
      self._checkpoints.wait()

  def close(self) -> None:
    """Waits, and closes."""
    if self._checkpoints is not None:
      self._checkpoints.close()


def _some(names: Mapping[str, bool]) -> str:
  return ", ".join(sorted(name for name in names if name.count("/") < 3))
