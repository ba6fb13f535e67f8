"""What the ways to use labels are worth, on the embedded world.

  python -m benchmarks.label_use known --workdir runs/label_use --seeds 3

`known`: two detection sets of different images know different halves of the
classes. One head learns from both, told which classes each set knows, or taking
what a set does not know for background; and from both with all their labels.

Where the truth is known, so is what helps. Interrupted, the same command goes
on.
"""

import argparse
import statistics
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax.config import base_config, dataset, task
from must_jax.lab.relabel import write_part
from must_jax.lab.render import render
from must_jax.lab.scale_mini import COUNTS, TEACHER_SETS, TEACHER_STEPS
from must_jax.lab.stages import Stages
from must_jax.lab.train_and_label import train
from must_jax.storage.path import Path

_DETECTION = next(s for s in TEACHER_SETS if s.kind == "detection")
Runs = dict[str, list[Path]]  # by row of the table, a stage a seed


def _detector(
  seed: int, train_on: Mapping[str, Path | str], validation: str, **options: Any
) -> ConfigDict:
  """A run that learns objects of some sets' own labels."""
  config = base_config()
  config.seed = seed
  for name, place in train_on.items():
    config.datasets[name] = dataset(str(place), "train")
  config.datasets.validation = dataset(validation, "validation")
  config.train_on = tuple(train_on)
  config.evaluate_on = ("validation",)
  config.tasks.detection = task(
    "detection",
    labels=dict.fromkeys(config.datasets, "supervised"),
    metric="voc",
    **options,
  )
  config = config_lib.small(config)
  config.optimizer.lr = _DETECTION.lr
  config.train.steps = TEACHER_STEPS["detection"]
  return config


def known_classes(stages: Stages, seeds: int) -> Runs:
  """The runs of `known`."""
  counts = COUNTS[_DETECTION.set_name]
  rendered = stages.add("render", render, _DETECTION.set_name, dict(counts))
  images = str(rendered / _DETECTION.set_name)
  names = _class_names()
  halves = names[::2], names[1::2]
  ways = {
    "told what each set knows": halves,
    "unknown is background": (names, names),
  }
  runs: Runs = {}
  for title, listed in ways.items():
    parts = {
      f"part{i}": stages.add(
        f"part{i}",
        write_part,
        images,
        i,
        list(halves[i]),
        list(listed[i]),
        after=(rendered,),
      )
      for i in range(2)
    }
    runs[title] = [
      _train(
        stages,
        _detector(seed, parts, images, classes=tuple(names)),
        (rendered, *parts.values()),
      )
      for seed in range(seeds)
    ]
  runs["all labels of both"] = [
    _train(stages, _detector(seed, {"all": images}, images), (rendered,))
    for seed in range(seeds)
  ]
  return runs


def _class_names() -> list[str]:
  from must_jax.lab.world.image_sets import get_spec

  fields = get_spec(_DETECTION.set_name).field_specs()
  return list(fields["objects"]["classes"])


def _train(stages: Stages, config: ConfigDict, after: tuple[Path, ...]) -> Path:
  config_lib.validate(config)
  return stages.add("train", train, config_lib.to_json(config), after=after)


STUDIES = {"known": known_classes}


def table(stages: Stages, runs: Runs, prefix: str) -> str:
  """Means and deviations of a study's metrics over the seeds, in percent.

  Args:
    stages: that are finished.
    runs: of the study.
    prefix: of the metrics that are shown.
  """
  first = stages[next(iter(runs.values()))[0]].result
  keys = [key for key in first if key.startswith(prefix)]
  lines = [
    f"| | {' | '.join(key.removeprefix(prefix) for key in keys)} |",
    "|---|" + "---|" * len(keys),
  ]
  for title, made in runs.items():
    cells = []
    for key in keys:
      values = [100 * stages[stage].result[key] for stage in made]
      spread = f" ±{statistics.stdev(values):.1f}" if len(values) > 1 else ""
      cells.append(f"{statistics.mean(values):.1f}{spread}")
    lines.append(f"| {title} | {' | '.join(cells)} |")
  return "\n".join(lines)


def main() -> None:
  """Trains what is not trained yet, and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("study", choices=STUDIES)
  parser.add_argument("--workdir", type=Path, required=True)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--jobs", type=int, default=2)
  args = parser.parse_args()
  stages = Stages(args.workdir, args.jobs)
  runs = STUDIES[args.study](stages, args.seeds)
  stages.run()
  print(table(stages, runs, "validation/detection/"))


if __name__ == "__main__":
  main()
