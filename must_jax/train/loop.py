"""The one training loop: teacher, student and fine-tuning differ in config."""

import contextlib
import dataclasses
import itertools
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
from must_jax.input import sources
from must_jax.input.quarantine import Quarantine
from must_jax.storage.tfrecord import atomic_write
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

# Options that a run may change when it goes on: they suit the machines, and
# make no other run of it.
_OF_THE_MACHINES = (
  "mesh.",
  "model.remat",
  "data.num_threads",
  "data.eval_batch_size",
  "train.log_every",
  "train.evaluate_every",
  "train.checkpoint_every",
  "train.keep_checkpoints",
  "train.stuck_seconds",
)


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

    def evaluate_state() -> dict[str, float]:
      watchdog.moved(done, "evaluates")
      batches = itertools.count(1)

      def stop() -> bool:
        watchdog.moved(done, "evaluates", next(batches))
        return told_to_end()

      return evaluator(state, stop)

    # 4. Train.
    history = _History(config)
    while done < total:
      watchdog.moved(done, "waits for data")
      batch = next(batches)
      keys = batch.pop("key")
      watchdog.moved(done, "compiles" if done == first_step else "computes")
      state, metrics = program.train_step(
        state, mesh_lib.to_device(batch, program.mesh)
      )
      history.add(done, keys, metrics)
      done += 1
      bar.update()
      is_last, ends = done == total, told_to_end()
      log = is_last or _due(done, config.train.log_every)
      save = is_last or ends or _due(done, config.train.checkpoint_every)
      tests = is_last or _due(done, config.train.evaluate_every)

      # What a step says is looked at rarely, for that waits for the device.
      # Whoever is told to end leaves it to the next start to go back, at the
      # step where this one would have.
      bad = history.read() if log or save or tests else None
      if bad and not ends:
        state = _roll_back(checkpoints, program, state, bad)
        logging.error("Went back to step %d, other data.", int(state.step))
        bar.update(int(state.step) - done)
        done, left_out = int(state.step), int(state.batches_left_out)
        batches = sources.train_batches(config, done + left_out, quarantine)
        history = _History(config)
        continue

      if log:
        checkpoints.check()
        scalars = history.scalars()
        scalars["lr"] = float(program.schedule(done - 1))
        for name, count in zip(
          config.train_on, batches.counts(done + left_out), strict=True
        ):
          scalars[f"examples/{name}"] = float(count)
        writer.write_scalars(done, scalars)
        bar.set_postfix(loss=f"{scalars['loss']:.4f}")

      # A row of skipped steps is no place to go on from.
      resumable = not bad and (is_last or not history.is_skipping)
      if save and resumable:
        watchdog.moved(done, "saves")
        checkpoints.save(state)

      if tests and not ends:
        final = evaluate_state()
        if final:
          writer.write_scalars(done, final)
        elif config.evaluate_on:
          ends = True
          if resumable:
            checkpoints.save(state)
        history.rest()

      if ends:
        logging.info("Told to end at step %d; the same command goes on.", done)
        sys.exit(PREEMPTED)

    # 5. Done. An old run that is merely opened again is evaluated anew.
    if first_step >= total:
      final = evaluate_state()
      if config.evaluate_on and not final:
        sys.exit(PREEMPTED)
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
    """Whether the latest step that was read was skipped."""
    return bool(self._latest.get("skipped_in_a_row"))

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
  state: TrainState,
  trouble: _Trouble,
) -> TrainState:
  """The last state before the trouble, to go on with the data behind it.

  Args:
    checkpoints: of the run.
    program: of the run.
    state: after the trouble.
    trouble: the latest.

  Raises:
    TrainingDiverged: there is none, or it was done too often.
  """
  report = (
    f"{trouble.in_a_row} steps in a row could not be learned from, the last:"
    f" {trouble.describe()} Look at these examples, or start from a"
    " checkpoint in another --workdir (init_from) with a lower optimizer.lr or"
    " an optimizer.clip_norm."
  )
  logging.error("%s", report)
  before = checkpoints.roll_back(program.abstract_state, trouble.first)
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
  return before.replace(rollbacks=counters[0], batches_left_out=counters[1])


class _Evaluator:
  """Evaluates a state on every dataset of `config.evaluate_on`."""

  def __init__(self, config, model, tasks, mesh, on_bad):
    self._config, self._tasks, self._mesh = config, tasks, mesh
    self._on_bad = on_bad
    self._steps = {}
    for dataset in config.evaluate_on:
      names = sources.tasks_of(config, dataset)
      chosen = {name: tasks[name] for name in names}
      step = make_predict_step(model, chosen, mesh, map_stride=1)
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
  before = path.read_text() if path.exists() else text
  differences = [
    line
    for line in config_lib.differences(json.loads(before), json.loads(text))
    if not line.startswith(_OF_THE_MACHINES)
  ]
  if differences:
    raise ValueError(
      f"{workdir} belongs to a run with another config. Different:"
      f" {'; '.join(differences)}. Choose another --workdir, or delete this"
      " one."
    )
  if jax.process_index() == 0 and (before != text or not path.exists()):
    with atomic_write(path) as file:
      file.write(text.encode())


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
  path = workdir / "metrics.jsonl"
  if first:
    _cut_torn_line(path)
  writer = metric_writers.create_default_writer(
    str(workdir), just_logging=not first, asynchronous=False
  )
  jsonl = path.open("a") if first else None

  class Writer:
    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
      with _named(path):
        writer.write_scalars(step, scalars)
        if jsonl is not None:
          jsonl.write(json.dumps({"step": step, **scalars}) + "\n")
          jsonl.flush()

  try:
    yield Writer()
  finally:
    with _named(path):
      writer.close()
      if jsonl is not None:
        jsonl.close()


def _cut_torn_line(path: epath.Path) -> None:
  """What a full disk or a kill left half written is written again."""
  text = path.read_bytes() if path.exists() else b""
  if text and not text.endswith(b"\n"):
    path.write_bytes(text[: text.rfind(b"\n") + 1])


@contextlib.contextmanager
def _named(path: epath.Path) -> Iterator[None]:
  """An error of writing says where, and is of one kind."""
  try:
    yield
  except Exception as error:  # TensorFlow's are no OSError
    raise OSError(
      f"{path} and the events beside it cannot be written: {error}. Free some"
      " space, or mend what the message says; the same command goes on."
    ) from error


def _progress_bar(initial: int, total: int) -> tqdm:
  hidden = jax.process_index() != 0 or not sys.stderr.isatty()
  return tqdm(
    initial=initial, total=total, unit="step", disable=hidden, leave=False
  )
