"""Ways of balancing the tasks' losses, side by side on the embedded world.

  python -m benchmarks.balancing --workdir runs/balancing --seeds 3

One network learns four tasks from four datasets, each with one kind of label
(paper 4.4, "supervised multi-task"), by every method of `must_jax.weighting`;
it is measured on the datasets' validation splits. The cost of a step is timed
in one process, the methods taking turns. Interrupted, the same command goes on.
"""

import argparse
import pathlib
import statistics
import time
from collections.abc import Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax.config import base_config, dataset, task
from must_jax.lab.render import render
from must_jax.lab.scale_mini import COUNTS, TEACHER_SETS
from must_jax.lab.stages import Stages
from must_jax.lab.train_and_label import train
from must_jax.train import mesh as mesh_lib
from must_jax.train.build import build
from must_jax.weighting import METHODS

STEPS = 500
_ROUNDS = 7
_STEPS_A_ROUND = 5


def make_config(
  directories: Mapping[str, pathlib.Path], method: str, seed: int
) -> ConfigDict:
  """Four tasks, each on its own dataset, drawn equally."""
  config = base_config()
  config.seed = seed
  for source in TEACHER_SETS:
    for split in ("train", "validation"):
      name = f"{source.set_name}_{split}"
      config.datasets[name] = dataset(
        directories[source.set_name] / source.set_name, split
      )
    config.tasks[source.kind] = task(
      source.kind,
      labels={
        f"{source.set_name}_train": "supervised",
        f"{source.set_name}_validation": "supervised",
      },
      **source.options,
    )
  names = tuple(config.datasets)
  config.train_on = tuple(name for name in names if name.endswith("_train"))
  config.evaluate_on = tuple(n for n in names if n.endswith("_validation"))
  config.sampling = "equal"
  config = config_lib.small(config)
  config.model.max_level = 5  # so that all tasks read all of the backbone
  # SGD at .03 leaves classification at chance for hundreds of steps.
  config.optimizer.update({"name": "adamw", "lr": 2e-3, "warmup_lr": 0.0})
  config.train.steps = STEPS
  config.balancing.method = method
  return config


def seconds_per_step(methods: list[str]) -> dict[str, float]:
  """Time of a compiled step on random images without labels."""
  programs, states = {}, {}
  nowhere = {s.set_name: pathlib.Path("none") for s in TEACHER_SETS}
  for method in methods:
    config = make_config(nowhere, method, 0)
    for entry in config.tasks.values():
      entry.classes = tuple(map(str, range(8)))
    programs[method] = build(config)
    states[method] = programs[method].create_state()
  program = programs[methods[0]]
  rng = np.random.default_rng(0)
  batch = jax.tree.map(
    lambda x: rng.integers(0, 2, x.shape).astype(x.dtype),
    program.abstract_batch,
  )
  batch = mesh_lib.to_device(batch, program.mesh)
  times: dict[str, list[float]] = {method: [] for method in methods}
  for turn in range(_ROUNDS + 1):  # the first compiles
    for method in methods:
      start = time.perf_counter()
      for _ in range(_STEPS_A_ROUND):
        states[method], metrics = programs[method].train_step(
          states[method], batch, programs[method].key
        )
      jax.block_until_ready(metrics)
      if turn:
        times[method].append(time.perf_counter() - start)
  return {
    method: statistics.median(values) / _STEPS_A_ROUND
    for method, values in times.items()
  }


def main() -> None:
  """Trains what is not trained yet, and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, default=1)
  parser.add_argument("--jobs", type=int, default=2)
  args = parser.parse_args()

  # "paper" is "fixed" here: there are no teachers whose settings it could use.
  methods = [method for method in METHODS if method != "paper"]
  stages = Stages(args.workdir, args.jobs)
  rendered = {
    source.set_name: stages.add(
      f"render-{source.set_name}",
      render,
      source.set_name,
      COUNTS[source.set_name],
    )
    for source in TEACHER_SETS
  }
  runs = {
    (method, seed): stages.add(
      f"train-{method}-{seed}",
      train,
      config_lib.to_json(make_config(rendered, method, seed)),
      after=tuple(rendered.values()),
    )
    for seed in range(args.seeds)
    for method in methods
  }
  stages.run()
  seconds = seconds_per_step(methods)
  titles = [f"{source.kind} {source.metric}" for source in TEACHER_SETS]
  print(f"| method | cost of a step | {' | '.join(titles)} |")
  print("|---|---|" + "---|" * len(titles))
  for method in methods:
    cells = [f"{seconds[method] / seconds['fixed']:.2f}"]
    for source in TEACHER_SETS:
      key = f"{source.set_name}_validation/{source.kind}/{source.metric}"
      values = [
        100 * stages[runs[method, seed]].result[key]
        for seed in range(args.seeds)
      ]
      spread = f" ±{statistics.stdev(values):.1f}" if len(values) > 1 else ""
      cells.append(f"{statistics.mean(values):.1f}{spread}")
    print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
  main()
