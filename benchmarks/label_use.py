"""What the ways to use labels are worth, on the embedded world.

  python -m benchmarks.label_use known --workdir runs/label_use --seeds 3

`known`: two detection sets of different images know different halves of the
classes. One head learns from both, told which classes each set knows, or taking
what a set does not know for background; and from both with all their labels.

`corrections`: of 800 images that a detector has labelled, 5 % are corrected:
those whose labels the page of `must-jax inspect` finds likeliest wrong, beside
those of a segmenter, or some at random. A student learns from the result.

`confidence`: students of a segmenter's and a detector's labels, with and
without each use of confidence.

Where the truth is known, so is what helps. Interrupted, the same command goes
on.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax.config import base_config, dataset, task
from must_jax.lab.relabel import CORRECTIONS, correct, write_part
from must_jax.lab.render import render
from must_jax.lab.scale_mini import COUNTS, TEACHER_SETS, TEACHER_STEPS
from must_jax.lab.stages import Stages
from must_jax.lab.train_and_label import label, train
from must_jax.storage.path import Path

_DETECTION = next(s for s in TEACHER_SETS if s.kind == "detection")
Runs = dict[str, list[Path]]  # by row of the table, a stage a seed


def _run(
  kind: str,
  seed: int,
  train_on: Mapping[str, Path | str],
  validation: str,
  **options: Any,
) -> ConfigDict:
  """A run that learns a task from some sets' own labels."""
  source = next(s for s in TEACHER_SETS if s.kind == kind)
  config = base_config()
  config.seed = seed
  for name, place in train_on.items():
    config.datasets[name] = dataset(str(place), "train")
  config.datasets.validation = dataset(validation, "validation")
  config.train_on = tuple(train_on)
  config.evaluate_on = ("validation",)
  labels = dict.fromkeys(config.datasets, "supervised")
  if kind == "detection":
    options |= {"metric": "voc"}
  config.tasks[kind] = task(kind, labels=labels, **options)
  config = config_lib.small(config)
  config.optimizer.lr = source.lr
  config.train.steps = TEACHER_STEPS[kind]
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
        _run("detection", seed, parts, images, classes=tuple(names)),
        (rendered, *parts.values()),
      )
      for seed in range(seeds)
    ]
  runs["all labels of both"] = [
    _train(
      stages, _run("detection", seed, {"all": images}, images), (rendered,)
    )
    for seed in range(seeds)
  ]
  return runs


_PILE, _HELD_OUT = 800, 200
_STUDENT_STEPS = 600


def _teach(stages: Stages, kind: str) -> tuple[Path, dict[str, str], Path]:
  """A teacher's labels of the pile, what they are of, and the stage before."""
  source = next(s for s in TEACHER_SETS if s.kind == kind)
  counts = dict(COUNTS[source.set_name])
  rendered = stages.add("render", render, source.set_name, counts)
  images = str(rendered / source.set_name)
  teacher = _train(
    stages, _run(kind, 0, {"train": images}, images), (rendered,)
  )
  pile = stages.add("render", render, "pile", {"train": _PILE})
  splits = {"train": _PILE, "held_out": _HELD_OUT}
  truth = stages.add("render", render, "pile_truth", splits)
  config = base_config()
  config.stage = "label"
  config.datasets.images = dataset(str(pile / "pile"), "train")
  config.label.update(
    {"teacher": str(teacher), "dataset": "images", "batch_size": 32}
  )
  places = {"images": str(pile / "pile"), "truth": str(truth / "pile_truth")}
  labelled = stages.add(
    "label",
    label,
    config_lib.to_json(config),
    places["truth"],
    after=(teacher, pile, truth),
  )
  return labelled, places, truth


def _student(
  kind: str,
  seed: int,
  places: Mapping[str, str],
  labels: Sequence[Path],
  **options: Any,
) -> ConfigDict:
  """A run that learns one task from label sets, measured on other images."""
  config = _run(kind, seed, {"pile": places["images"]}, places["truth"])
  config.datasets.validation.split = "held_out"
  entry = config.tasks[kind]
  entry.labels["pile"] = tuple(map(str, labels))
  entry.update({"min_score": 0.3} | options)
  config.train.steps = _STUDENT_STEPS
  return config


def corrections(stages: Stages, seeds: int) -> Runs:
  """The runs of `corrections`."""
  labels, places, truth = _teach(stages, "detection")
  others, _, _ = _teach(stages, "segmentation")
  runs: Runs = {
    "none": [
      _train(
        stages, _student("detection", seed, places, [labels]), (labels, truth)
      )
      for seed in range(seeds)
    ]
  }
  for way in ("random", "worst"):
    runs[way] = []
    for seed in range(seeds):
      corrected = stages.add(
        way,
        correct,
        places["images"],
        places["truth"],
        str(labels),
        [str(others)],
        way,
        _PILE // 20,
        seed if way == "random" else 0,
        after=(labels, others, truth),
      )
      student = _student(
        "detection", seed, places, [corrected / CORRECTIONS, labels]
      )
      runs[way].append(_train(stages, student, (corrected, labels, truth)))
  return runs


def confidence(stages: Stages, seeds: int) -> Runs:
  """The runs of `confidence`."""
  ways: dict[str, tuple[str, dict[str, Any]]] = {
    "boxes": ("detection", {}),
    "boxes by score": ("detection", {"weight_by_score": True}),
    "pixels": ("segmentation", {}),
    "pixels by confidence": ("segmentation", {"weight_by_score": True}),
    "soft pixels": ("segmentation", {"soft_labels": True}),
    "without the noisiest fifth": ("segmentation", {"trim": 0.2}),
  }
  runs = {}
  for title, (kind, options) in ways.items():
    labels, places, truth = _teach(stages, kind)
    runs[title] = [
      _train(
        stages,
        _student(kind, seed, places, [labels], **options),
        (labels, truth),
      )
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


STUDIES = {
  "known": known_classes,
  "corrections": corrections,
  "confidence": confidence,
}


def table(stages: Stages, runs: Runs) -> str:
  """Means and deviations of a study's metrics over the seeds, in percent.

  Args:
    stages: that are finished.
    runs: of the study.
  """
  results = {
    title: [stages[stage].result for stage in made]
    for title, made in runs.items()
  }
  found = {key: None for made in results.values() for key in made[0]}
  keys = [key for key in found if key.startswith("validation/")]
  names = [key.removeprefix("validation/") for key in keys]
  lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(keys)]
  for title, made in results.items():
    cells = []
    for key in keys:
      values = [100 * result[key] for result in made if key in result]
      spread = f" ±{statistics.stdev(values):.1f}" if len(values) > 1 else ""
      cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "")
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
  print(table(stages, runs))
  for stage in stages.values():
    if stage.function is correct:
      print(stage.name, stage.args[-1], stage.result)


if __name__ == "__main__":
  main()
