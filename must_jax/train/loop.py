"""The one training loop: teacher, student and fine-tuning differ in config."""

import contextlib
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
from must_jax.train.evaluate import evaluate
from must_jax.train.optimizer import make_optimizer, make_schedule
from must_jax.train.preemption import Sigterm
from must_jax.train.state import build_model, build_tasks, create_state
from must_jax.train.step import make_predict_step, make_train_step
from must_jax.weighting import fixed


class NonFiniteLossError(RuntimeError):
  """The loss became NaN or infinite."""


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
    NonFiniteLossError: with the step, the tasks' losses and the batch's keys.
    SystemExit: with code 42, after saving, on SIGTERM or a preemption notice.
  """
  workdir = epath.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)

  # 1. Names become data: open the sources, fill in classes and weights.
  config = sources.resolve(config)
  _claim_workdir(config, workdir)
  tasks = build_tasks(config)
  weights = _loss_weights(config)
  mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp)
  mesh_lib.check_batch_size("data.batch_size", config.data.batch_size, mesh)

  # 2. Model, optimizer and state; resume, or warm-start, or begin.
  model = build_model(config, tasks)
  schedule = make_schedule(
    config.optimizer.lr,
    config.train.steps,
    schedule=config.optimizer.schedule,
    warmup_steps=config.optimizer.warmup_steps,
    warmup_lr=config.optimizer.warmup_lr,
    boundaries=config.optimizer.boundaries,
    decay=config.optimizer.decay,
  )
  optimizer = make_optimizer(
    schedule,
    momentum=config.optimizer.momentum,
    nesterov=config.optimizer.nesterov,
    weight_decay=config.optimizer.weight_decay,
    clip_norm=config.optimizer.clip_norm,
    parts=_factors(config),
    layer_decay=config.optimizer.layer_decay,
  )
  state = create_state(
    model, optimizer, tuple(config.data.image_size), config.seed, mesh
  )
  checkpoints = checkpoint_lib.Checkpoints(workdir, config)
  restored = checkpoints.restore(state)
  if restored is not None:
    state = restored
    logging.info("Resumed at step %d.", int(state.step))
  elif config.init_from:
    state, report = checkpoint_lib.warm_start(
      state,
      config.init_from,
      tuple(config.init_parts),
      {name: task.classes for name, task in tasks.items()},
      config.model,
    )
    logging.info("%s", report)

  # 3. Compiled steps, data and where the numbers go.
  train_step = make_train_step(
    model, tasks, optimizer, weights, config.seed, mesh
  )
  first_step = int(state.step)
  quarantine = _quarantine(workdir)
  batches = sources.train_batches(config, first_step, quarantine)
  evaluator = _Evaluator(config, model, tasks, mesh, quarantine)
  final: dict[str, float] = {}

  with (
    Sigterm() as sigterm,
    contextlib.closing(checkpoints),
    _metric_writer(workdir) as writer,
    _progress_bar(first_step, config.train.steps) as bar,
  ):
    # Once `jax.distributed` is initialised it owns SIGTERM, and tells every
    # process the same step to stop at.
    def told_to_end() -> bool:
      return sigterm.received or checkpoints.reached_preemption(done)

    # 4. Train.
    done = first_step
    pending: list[tuple[int, Any, dict[str, Any]]] = []
    clock = time.monotonic()
    for step in range(first_step, config.train.steps):
      batch = next(batches)
      keys = batch.pop("key")
      state, metrics = train_step(state, mesh_lib.to_device(batch, mesh))
      pending.append((step, keys, metrics))
      done = step + 1
      is_last = done == config.train.steps
      bar.update()

      if is_last or _due(done, config.train.log_every):
        scalars = _check_finite(pending)
        seconds = time.monotonic() - clock
        scalars["lr"] = float(schedule(step))
        for name, count in zip(
          config.train_on, batches.counts(done), strict=True
        ):
          scalars[f"examples/{name}"] = float(count)
        scalars["images_per_second"] = (
          len(pending) * config.data.batch_size / seconds
        )
        writer.write_scalars(done, scalars)
        bar.set_postfix(loss=f"{scalars['loss']:.4f}")
        pending, clock = [], time.monotonic()

      if is_last or _due(done, config.train.checkpoint_every):
        _check_finite(pending)
        checkpoints.save(state)

      if is_last or _due(done, config.train.evaluate_every):
        final = evaluator(state, told_to_end)
        if final:
          writer.write_scalars(done, final)
          clock = time.monotonic()

      if told_to_end():
        _check_finite(pending)
        checkpoints.save(state)
        logging.info("Told to end: saved step %d.", done)
        sys.exit(PREEMPTED)

    # 5. Done. An old run that is merely opened again is evaluated anew.
    if first_step >= config.train.steps:
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


def _factors(config: ConfigDict) -> dict[str, float]:
  """Of the learning rate, by part; what is frozen stays as it is."""
  frozen = dict.fromkeys(config.freeze, 0.0)
  return config.optimizer.lr_factors.to_dict() | frozen


def _loss_weights(config: ConfigDict) -> dict[str, float]:
  """w_i by task: as configured, else the paper's rule, else 1; printed."""
  teachers = sources.teacher_settings(config)
  rule = fixed.paper_weights(
    config.data.batch_size, config.optimizer.lr, teachers
  )
  weights, lines = {}, []
  for name, entry in sorted(config.tasks.items()):
    if entry.weight is not None:
      weights[name], origin = entry.weight, "config"
    elif name in rule:
      batch, lr = teachers[name]
      weights[name] = rule[name]
      origin = f"b_s*lr_t/(b_t*lr_s), teacher: batch {batch}, lr {lr:g}"
    else:
      weights[name], origin = 1.0, "no teacher"
    lines.append(f"  {name}  {weights[name]:.4g}  ({origin})")
  logging.info("Loss weights (paper 3.2)\n%s", "\n".join(lines))
  return weights


def _check_finite(
  pending: list[tuple[int, Any, dict[str, Any]]],
) -> dict[str, float]:
  """The latest metrics as floats, after checking all that are pending.

  What is counted is summed over them.
  """
  latest: dict[str, float] = {}
  unusable = 0.0
  for step, keys, metrics in pending:
    latest = {k: float(v) for k, v in jax.device_get(metrics).items()}
    unusable += latest["unusable_examples"]
    latest["unusable_examples"] = unusable
    if not np.isfinite(latest["loss"]) or not np.isfinite(latest["grad_norm"]):
      losses = {k: v for k, v in latest.items() if k.endswith("/loss")}
      shown = b", ".join(keys[:8]).decode(errors="replace")
      raise NonFiniteLossError(
        f"Step {step}: loss {latest['loss']}, gradient norm"
        f" {latest['grad_norm']}; losses of the tasks {losses}; the batch"
        f" begins with the keys {shown}. Lower optimizer.lr, set"
        " optimizer.clip_norm, or look at these examples."
      )
  return latest


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
