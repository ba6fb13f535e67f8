"""The one training loop: teacher, student and fine-tuning differ in config."""

import contextlib
import sys
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from must_jax.config import PREEMPTED
from must_jax.input import sources
from must_jax.input.quarantine import Quarantine
from must_jax.storage.path import Path, PathLike, make_directory
from must_jax.train import checkpoint as checkpoint_lib
from must_jax.train import mesh as mesh_lib
from must_jax.train import runtime
from must_jax.train.best import Best
from must_jax.train.build import Program, build
from must_jax.train.claim import Claim
from must_jax.train.evaluate import Evaluator, write_result
from must_jax.train.metric_logger import MetricLogger
from must_jax.train.profiler import Profiler
from must_jax.train.recovery import roll_back
from must_jax.train.runtime import Preemption, Watchdog
from must_jax.train.state import TrainState
from must_jax.train.trackers import check_installed
from must_jax.weighting import paper_weights


def train(config: ConfigDict, workdir: PathLike) -> dict[str, float]:
  """Trains as configured, resuming from `workdir` if it holds a checkpoint.

  Args:
    config: a valid config (`must_jax.config.validate`).
    workdir: receives `config.json` and `run.json` (see `Claim`),
      `checkpoints/`, `metrics.jsonl`, TensorBoard events, `progress/`,
      `quarantine/` and `result.json`.

  Returns:
    The last evaluation's metrics; {} without an evaluation.

  Raises:
    ValueError: the config does not fit the data, the devices or what `workdir`
      holds.
    TooManyBad: more records cannot be used than `data.max_bad` allows.
    TrainingDiverged: with the steps, the tasks' losses and the batch's keys.
    OSError: a checkpoint or the metrics cannot be written.
    SystemExit: with code 42 on SIGTERM, Ctrl-C or a notice of preemption, after
      saving; within a streak of skipped steps nothing is saved, and the last
      checkpoint is gone on from.
  """
  workdir = Path(workdir)
  make_directory(workdir)
  logging.info("%s", runtime.report())

  # 1. Names become data: fill in classes and weights, open all that is read,
  # and see that nothing of it is wrong, before anything is compiled.
  config = sources.resolve(config)
  claim = Claim(config, workdir)
  config = claim.config
  program = build(config, _loss_weights(config))
  train_step = runtime.compiles_aloud("the training step", program.train_step)
  options = config.train
  check_installed(config.trackers)
  quarantine = runtime.open_quarantine(workdir)
  data = _TrainingData(program, quarantine)
  evaluator = Evaluator(
    config,
    program.model,
    program.tasks,
    program.mesh,
    quarantine,
    num_pictures=options.pictures if config.trackers else 0,
  )

  # 2. The state: resume, or warm-start, or begin.
  best = Best(config, workdir, evaluator.metric_names())
  checkpoints = checkpoint_lib.Checkpoints(workdir, config)
  state = _initial_state(checkpoints, program)
  best.go_back(state)
  step = first_step = int(state.step)
  if step > 0:
    claim.write()
  data.seek(state)
  final: dict[str, float] = {}

  with (
    Preemption() as preemption,
    # Trackers may wait for their servers; a checkpoint does not wait for them.
    MetricLogger(config, workdir, first_step) as logger,
    contextlib.closing(checkpoints),
    contextlib.closing(best),
    Watchdog(workdir, options.stuck_seconds) as watchdog,
    contextlib.closing(Profiler(workdir, *options.profile_steps)) as profiler,
  ):

    def due(every: int) -> bool:
      return step == options.steps or (every > 0 and step % every == 0)

    def save() -> None:
      watchdog.moved(step, "saves")
      best.wait()
      checkpoints.save(state)

    def evaluate() -> dict[str, float] | None:
      def stop(batch: int) -> bool:
        watchdog.moved(step, "evaluates", batch)
        return preemption.reached()

      watchdog.moved(step, "evaluates")
      return evaluator(state.variables, stop)

    # An evaluation that was cut off decides what is best, too.
    if step and due(options.evaluate_every) and best.lacks(step):
      found = evaluate()
      if found is None:
        sys.exit(PREEMPTED)
      final = found
      logger.write_evaluation(step, final, evaluator.pictures)
      best.add(state, final, save)

    # 3. Train.
    while step < options.steps and not best.is_over:
      watchdog.moved(step, "waits for data")
      keys, batch = next(data)
      watchdog.moved(step, "compiles" if step == first_step else "computes")
      with profiler.step(step):
        state, metrics = train_step(state, batch, program.key)
      if step == 0:
        jax.block_until_ready(metrics)  # or whatever is wrong is said now
        claim.write()
      logger.add(step, keys, metrics)
      step += 1
      ends = preemption.reached()
      writes, saves = due(options.log_every), due(options.checkpoint_every)
      evaluates = due(options.evaluate_every)
      if not (writes or saves or evaluates or ends):
        continue

      # Reading waits for the device, so it is done rarely. Whoever is told to
      # end leaves it to the next start to go back, at the step where this one
      # would have.
      streak = logger.read()
      if streak and not ends:
        state = roll_back(checkpoints, program, state, streak)
        best.go_back(state)
        step = int(state.step)
        data.seek(state)
        logger.restart(step)
        continue

      # Within a streak of skipped steps there is nothing to go on from.
      resumable = not streak and (
        step == options.steps or not logger.is_skipping
      )
      if writes:
        checkpoints.check()
        lr = float(program.schedule(step - 1))
        logger.write(step, {"lr": lr} | data.counts())
      if saves and resumable:
        save()
      if evaluates and not ends:
        found = evaluate()
        ends, final = found is None, found or {}
        logger.write_evaluation(step, final, evaluator.pictures)
        if found and resumable:
          best.add(state, found, save)
      if ends:
        if resumable:
          save()
        logging.info("Told to end at step %d; the same command goes on.", step)
        sys.exit(PREEMPTED)

    # 4. Done. An old run that is merely opened again is evaluated anew.
    if best.is_over:
      best.say_over()
      save()
    if step == first_step and not final:
      found = evaluate()
      if found is None:
        sys.exit(PREEMPTED)
      final = found
      logging.info("Result\n%s", runtime.metric_table(final))
  if final:
    write_result(workdir, final)
  return final


def _initial_state(
  checkpoints: checkpoint_lib.Checkpoints, program: Program
) -> TrainState:
  """The latest one of the run; else a fresh one, warm-started if asked for."""
  state = checkpoints.restore(program.abstract_state)
  if state is not None:
    logging.info("Resumed at step %d.", int(state.step))
    return state
  config = program.config
  if not config.init_from:
    return program.create_state()
  start = checkpoint_lib.WarmStart(
    program.abstract_state,
    config.init_from,
    tuple(config.init_parts),
    {name: task.classes for name, task in program.tasks.items()},
    config.model,
  )
  logging.info("%s", start.table)
  return start(program.create_state())


class _TrainingData:
  """The batches of a run, from where a state is in their order."""

  def __init__(self, program: Program, quarantine: Quarantine):
    """Opens what the run trains on; `seek` comes before the first batch."""
    self._config, self._mesh = program.config, program.mesh
    self._quarantine = quarantine
    self._union = sources.train_union(self._config)
    sources.check_labels(self._union)

  def seek(self, state: TrainState) -> None:
    """Makes the batch of a state's next step the next one."""
    self._position = int(state.step) + int(state.batches_left_out)
    self._batches = sources.train_batches(
      self._config, self._position, self._quarantine, self._union
    )

  def __next__(self) -> tuple[Any, dict[str, Any]]:
    """The keys of this process's examples; the global batch, on the devices."""
    batch = next(self._batches)
    self._position += 1
    keys = batch.pop("key")
    return keys, mesh_lib.to_device(batch, self._mesh)

  def counts(self) -> dict[str, float]:
    """{"examples/dataset": number} of the global batches before the next."""
    counts = self._batches.counts(self._position)
    return {
      f"examples/{name}": float(count)
      for name, count in zip(self._config.train_on, counts, strict=True)
    }


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
