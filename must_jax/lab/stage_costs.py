"""What stages cost on a chip, by the operations of their networks."""

import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax.lab.experiment import Experiment
from must_jax.lab.floors import floor
from must_jax.ops import convolution
from must_jax.preflight import compiled, estimate
from must_jax.preflight.chips import Chip
from must_jax.preflight.plan import fill_classes
from must_jax.storage.path import Path
from must_jax.train.build import build_tasks


def chip_hours(
  experiment: Experiment, chip: Chip
) -> Iterator[tuple[Path, tuple[float, float] | None]]:
  """Prices of the stages that train or label, one after the other.

  Each network is traced with its classes and image size, which takes seconds,
  but not compiled; `must-jax plan` compiles one, and says more. Evaluation is
  not in the price.

  Args:
    experiment: whose classes and numbers of images are known.
    chip: that does the work.

  Yields:
    (stage, chip-hours at the better and the worse of `estimate.HOPED_MFU`, or
    None where the number of images is not known).
  """
  # Chips are a description; JAX must not look for real ones.
  jax.config.update("jax_platforms", "cpu")
  stages = experiment.stages
  for directory, stage in stages.items():
    if stage.function is floor:  # computes nothing
      continue
    config = config_lib.from_json(stage.args[0])
    if config.stage == "label":
      images = experiment.counts[directory]
      if images is None:
        yield directory, None
        continue
      teacher = _teacher(experiment, config.label.teacher)
      flops = _labelling_flops(teacher, config.label.task)
    else:
      config = fill_classes(config, experiment.classes[directory])
      flops = _training_flops(_network(config))
      images = config.train.steps * config.data.batch_size
    worse, better = estimate.hoped_seconds(chip, images * flops, 0.0)
    yield directory, (better / 3600, worse / 3600)


def _network(config: ConfigDict) -> str:
  """A config as JSON, without what does not change an image's operations."""
  raw: dict[str, Any] = json.loads(config_lib.to_json(config))
  default = json.loads(config_lib.to_json(config_lib.base_config()))
  kept = {key: raw[key] for key in ("model", "freeze", "balancing")}
  tasks = {
    name: {**entry, "labels": {}, "weight": None}
    for name, entry in raw["tasks"].items()
  }
  size = {key: raw["data"][key] for key in ("image_size", "label_stride")}
  return json.dumps(
    default | kept | {"tasks": tasks, "data": default["data"] | size},
    sort_keys=True,
  )


@functools.cache
def _training_flops(network: str) -> float:
  """Operations of a training step for each image."""
  config = config_lib.from_json(network)
  return compiled.flops_per_image(compiled.lower_one_image(config))


@functools.cache
def _labelling_flops(network: str, task: str) -> float:
  """Operations of a prediction for each image; of the only task by default."""
  teacher = config_lib.from_json(network)
  tasks = build_tasks(teacher)
  chosen = tasks[task or next(iter(tasks))]
  cpu = jax.devices("cpu")[:1]
  with convolution.plain():
    lowered = compiled.lower_labelling(teacher, chosen, 1, cpu)
  return compiled.flops_per_image(lowered)


def _teacher(experiment: Experiment, path: str) -> str:
  """The config of a teacher that is a stage, or that is converted, as JSON."""
  stage = experiment.stages.get(Path(path))
  if stage:
    counts = experiment.classes[stage.directory]
    return config_lib.to_json(
      fill_classes(config_lib.from_json(stage.args[0]), counts)
    )
  from must_jax import convert

  kinds = {
    checkpoint.path: checkpoint.kind
    for items in experiment.prerequisites.values()
    for checkpoint in items
  }
  return config_lib.to_json(convert.get_kind(kinds[path]).make_config({}))
