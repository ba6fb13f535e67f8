"""The one training loop: teacher, student and fine-tuning differ in config."""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import metric_writers
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from must_jax import config as config_lib
from must_jax.config import PREEMPTED
from must_jax.data import sources
from must_jax.data.quarantine import Quarantine
from must_jax.train import checkpoint as checkpoint_lib
from must_jax.train import mesh as mesh_lib
from must_jax.train import processes
from must_jax.train.build import Program, build, build_model, build_tasks
from must_jax.train.evaluate import evaluate
from must_jax.train.guard import TrainingDiverged
from must_jax.train.preemption import Sigterm
from must_jax.train.processes import Watchdog
from must_jax.train.state import TrainState
from must_jax.train.step import make_predict_step
from must_jax.weighting import paper_weights


def train(config: ConfigDict, workdir: epath.PathLike) -> dict[str, float]:
  """Trains as configured, resuming from `workdir` if it holds a checkpoint.

  Args:
    config: a valid config (`must_jax.config.validate`).
    workdir: receives `config.json`, `checkpoints/`, `metrics.jsonl` and
      TensorBoard events.

  Returns:
    The last evaluation's metrics; {} without an evaluation.

  Raises:
    ValueError: the config does not fit the data or what `workdir` holds.
    TrainingDiverged: with the steps, the tasks' losses and the batch's keys.
    SystemExit: with code 42, after saving, on SIGTERM or a preemption notice.
  """
  workdir = epath.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  logging.info("%s", processes.report())

  # 1. Names become data: open the sources, fill in classes and weights.
  config = sources.resolve(config)
  _claim_workdir(config, workdir)
  program = build(config, _loss_weights(config))
  total = config.train.steps

  # 2. The state: resume, or warm-start, or begin.
  checkpoints = checkpoint_lib.Checkpoints(workdir, config)
  state = checkpoints.restore(program.abstract_state)
  if state is not None:
    logging.info("Resumed at step %d.", int(state.step))
  else:
    state = program.create_state()
    if config.init_from:
      state, table = checkpoint_lib.warm_start(
        state,
        config.init_from,
        tuple(config.init_parts),
        {name: task.classes for name, task in program.tasks.items()},
        config.model,
      )
      logging.info("%s", table)

  # 3. Data, and where the numbers go.
  done = first_step = int(state.step)
  left_out = int(state.batches_left_out)
  quarantine = _quarantine(workdir)
  batches = sources.train_batches(config, done + left_out, quarantine)
  evaluator = _Evaluator(
    config, program.model, program.tasks, program.mesh, quarantine
  )
  final: dict[str, float] = {}

  with (
    Sigterm() as sigterm,
    contextlib.closing(checkpoints),
    Watchdog(workdir, config.train.stuck_seconds) as watchdog,
    _metric_writer(workdir) as writer,
    _progress_bar(first_step, total) as bar,
  ):
    # Once `jax.distributed` is initialised it owns SIGTERM, and tells every
    # process the same moment to stop at.
    def told_to_end() -> bool:
      return sigterm.received or checkpoints.reached_preemption()

    # 4. Train.
    history = _History(config)
    while done < total:
      watchdog.moved(done, "waits for data")
      batch = next(batches)
      keys = batch.pop("key")
      watchdog.moved(done, "computes")
      state, metrics = program.train_step(
        state, mesh_lib.to_device(batch, program.mesh)
      )
      history.add(done, keys, metrics)
      done += 1
      bar.update()
      is_last, ends = done == total, told_to_end()
      log = is_last or _due(done, config.train.log_every)
      save = is_last or ends or _due(done, config.train.checkpoint_every)

      # What a step says is looked at rarely, for that waits for the device.
      if (log or save) and (bad := history.read()):
        state = _roll_back(checkpoints, program, bad, done + left_out)
        logging.error("Went back to step %d, other data.", int(state.step))
        done, left_out = int(state.step), int(state.batches_left_out)
        batches = sources.train_batches(config, done + left_out, quarantine)
        history = _History(config)
        continue

      if log:
        scalars = history.scalars()
        scalars["lr"] = float(program.schedule(done - 1))
        for name, count in zip(
          config.train_on, batches.counts(done + left_out), strict=True
        ):
          scalars[f"examples/{name}"] = float(count)
        writer.write_scalars(done, scalars)
        bar.set_postfix(loss=f"{scalars['loss']:.4f}")

      if save and (is_last or ends or not history.is_skipping):
        watchdog.moved(done, "saves")
        checkpoints.save(state)

      if not ends and (is_last or _due(done, config.train.evaluate_every)):
        watchdog.moved(done, "evaluates")
        final = evaluator(state, told_to_end)
        if final:
          writer.write_scalars(done, final)
        else:
          ends = bool(config.evaluate_on)
          checkpoints.save(state)
        history.rest()

      if ends:
        logging.info("Told to end: saved step %d.", done)
        sys.exit(PREEMPTED)

    # 5. Done. An old run that is merely opened again is evaluated anew.
    if first_step >= total:
      final = evaluator(state, told_to_end)
  if jax.process_index() == 0 and final:
    (workdir / "result.json").write_text(
      json.dumps(final, indent=2, sort_keys=True) + "\n"
    )
  return final


def evaluate_checkpoint(
  config: ConfigDict, workdir: epath.PathLike
) -> dict[str, float]:
  """Evaluates `workdir`'s latest checkpoint on `config.evaluate_on`."""
  config = sources.resolve(config)
  tasks = build_tasks(config)
  mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp)
  variables = jax.device_put(
    checkpoint_lib.load_variables(workdir), mesh_lib.replicated(mesh)
  )
  evaluator = _Evaluator(
    config,
    build_model(config, tasks),
    tasks,
    mesh,
    _quarantine(epath.Path(workdir)),
  )
  return evaluator.run(variables)


class _History:
  """The steps since the last look at the device's numbers."""

  def __init__(self, config: ConfigDict):
    self._batch_size = config.data.batch_size
    self._max_skipped = config.train.max_skipped
    self._unread: list[tuple[int, Any, dict[str, Any]]] = []
    self._latest: dict[str, float] = {}
    self._unusable = 0.0
    self.rest()

  def rest(self) -> None:
    """The time until now counts for no step."""
    self._clock, self._steps = time.monotonic(), 0

  def add(self, step: int, keys: Any, metrics: dict[str, Any]) -> None:
    """Remembers what a step will say, and the keys of its batch."""
    self._unread.append((step, keys, metrics))
    self._steps += 1

  def read(self) -> "_Trouble | None":
    """Waits for the steps; tells of those that were skipped."""
    worst: _Trouble | None = None
    for step, keys, metrics in self._unread:
      latest = {k: float(v) for k, v in jax.device_get(metrics).items()}
      self._latest = latest
      self._unusable += latest["unusable_examples"]
      in_a_row = int(latest["skipped_in_a_row"])
      if in_a_row:
        trouble = _Trouble(step, in_a_row, keys, latest)
        logging.warning("Skipped: %s", trouble.describe())
        if in_a_row >= self._max_skipped:
          worst = trouble
    self._unread = []
    return worst

  @property
  def is_skipping(self) -> bool:
    """Whether the latest step was skipped: no good place to go back to."""
    return bool(self._latest["skipped_in_a_row"])

  def scalars(self) -> dict[str, float]:
    """The latest step's metrics, and what is counted since the last call."""
    seconds = time.monotonic() - self._clock
    scalars = self._latest | {
      "unusable_examples": self._unusable,
      "images_per_second": self._steps * self._batch_size / seconds,
    }
    self._unusable = 0.0
    self.rest()
    return scalars


@dataclasses.dataclass(frozen=True)
class _Trouble:
  """The last of a row of skipped steps."""

  step: int
  in_a_row: int
  keys: Any
  metrics: dict[str, float]

  @property
  def first(self) -> int:
    """The first step of the row."""
    return self.step - self.in_a_row + 1

  def describe(self) -> str:
    losses = {k: v for k, v in self.metrics.items() if k.endswith("/loss")}
    shown = b", ".join(self.keys[:8]).decode(errors="replace")
    return (
      f"step {self.step}: loss {self.metrics['loss']}, gradient norm"
      f" {self.metrics['grad_norm']}; losses of the tasks {losses}; the batch"
      f" begins with the keys {shown}."
    )


def _roll_back(
  checkpoints: checkpoint_lib.Checkpoints,
  program: Program,
  trouble: _Trouble,
  position: int,
) -> TrainState:
  """The last state before the trouble, to go on with the data behind it.

  Raises:
    TrainingDiverged: there is none, or it was done too often.
  """
  report = (
    f"{trouble.in_a_row} steps in a row could not be learned from, the last:"
    f" {trouble.describe()} Lower optimizer.lr, set optimizer.clip_norm, or"
    " look at these examples."
  )
  logging.error("%s", report)
  state = checkpoints.roll_back(program.abstract_state, trouble.first)
  if state is None:
    raise TrainingDiverged(f"{report} There is no checkpoint before them.")
  if int(state.rollbacks) >= program.config.train.max_rollbacks:
    raise TrainingDiverged(
      f"{report} The run has gone back {int(state.rollbacks)} times already"
      f" (train.max_rollbacks); its last good checkpoint is that of step"
      f" {int(state.step)}."
    )
  counters = jax.device_put(
    (
      np.int32(int(state.rollbacks) + 1),
      np.int32(position - int(state.step)),
    ),
    mesh_lib.replicated(program.mesh),
  )
  return state.replace(rollbacks=counters[0], batches_left_out=counters[1])


class _Evaluator:
  """Evaluates a state on every dataset of `config.evaluate_on`."""

  def __init__(self, config, model, tasks, mesh, on_bad):
    self._config, self._tasks, self._mesh = config, tasks, mesh
    self._on_bad = on_bad
    size = tuple(config.data.image_size)
    self._steps = {}
    for dataset in config.evaluate_on:
      names = sources.tasks_of(config, dataset)
      chosen = {name: tasks[name] for name in names}
      step = make_predict_step(model, chosen, mesh, map_size=size)
      self._steps[dataset] = chosen, step
    if self._steps:
      mesh_lib.check_batch_size(
        "data.eval_batch_size", config.data.eval_batch_size, mesh
      )

  def __call__(self, state, stop) -> dict[str, float]:
    return self.run(state.variables, stop)

  def run(self, variables, stop=lambda: False) -> dict[str, float]:
    results: dict[str, float] = {}
    for dataset, (tasks, predict) in self._steps.items():
      metrics = evaluate(
        predict,
        variables,
        sources.eval_batches(self._config, dataset, self._on_bad),
        tasks,
        self._mesh,
        stop,
      )
      if not metrics:
        return {}
      results |= {f"{dataset}/{key}": value for key, value in metrics.items()}
    return results


def _claim_workdir(config: ConfigDict, workdir: epath.Path) -> None:
  """One workdir, one config: another one would resume a stranger's state."""
  path = workdir / "config.json"
  text = config_lib.to_json(config)
  if path.exists() and path.read_text() != text:
    old, new = json.loads(path.read_text()), json.loads(text)
    difference = "; ".join(config_lib.differences(old, new))
    raise ValueError(
      f"{workdir} belongs to a run with another config. Different:"
      f" {difference}. Choose another --workdir, or delete this one."
    )
  if jax.process_index() == 0 and not path.exists():
    path.write_text(text)


def _quarantine(workdir: epath.Path) -> Quarantine:
  """Where this process writes down the records that it cannot use."""
  return Quarantine(workdir / f"quarantine/{jax.process_index():05d}.jsonl")


def _loss_weights(config: ConfigDict) -> dict[str, float]:
  """w_i by task: as configured, else the paper's rule, else 1; printed."""
  rule, teachers = {}, {}
  if config.balancing.method == "paper":
    teachers = sources.teacher_settings(config)
    rule = paper_weights(config.data.batch_size, config.optimizer.lr, teachers)
  weights, lines = {}, []
  for name, entry in sorted(config.tasks.items()):
    if entry.weight is not None:
      weights[name], origin = entry.weight, "config"
    elif name in rule:
      batch, lr = teachers[name]
      weights[name] = rule[name]
      origin = f"b_s*lr_t/(b_t*lr_s), teacher: batch {batch}, lr {lr:g}"
    else:
      weights[name], origin = 1.0, "no teacher" if rule else "no rule"
    lines.append(f"  {name}  {weights[name]:.4g}  ({origin})")
  logging.info(
    "Loss weights, method %r\n%s", config.balancing.method, "\n".join(lines)
  )
  return weights


def _due(done: int, every: int) -> bool:
  return every > 0 and done % every == 0


@contextlib.contextmanager
def _metric_writer(workdir: epath.Path) -> Iterator[Any]:
  """TensorBoard events and `metrics.jsonl`, from the first process only."""
  first = jax.process_index() == 0
  writer = metric_writers.create_default_writer(
    str(workdir), just_logging=not first, asynchronous=False
  )
  jsonl = (workdir / "metrics.jsonl").open("a") if first else None

  class Writer:
    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
      writer.write_scalars(step, scalars)
      if jsonl is not None:
        jsonl.write(json.dumps({"step": step, **scalars}) + "\n")
        jsonl.flush()

  try:
    yield Writer()
  finally:
    writer.close()
    if jsonl is not None:
      jsonl.close()


def _progress_bar(initial: int, total: int) -> tqdm:
  hidden = jax.process_index() != 0 or not sys.stderr.isatty()
  return tqdm(
    initial=initial, total=total, unit="step", disable=hidden, leave=False
  )
