"""`must-jax plan`: what a config needs of a TPU slice, its hosts and disks."""

import argparse
import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from must_jax.config import load, task_kwargs, validate
from must_jax.ops import convolution
from must_jax.preflight import compiled, estimate, places, plan_text
from must_jax.preflight.chips import Slice, has_compiler
from must_jax.storage.path import Path, is_file
from must_jax.storage.sets import (
  INDEX_FILE,
  MANIFEST_FILE,
  read_index,
  read_manifest,
)
from must_jax.tasks import make_task
from must_jax.train import mesh
from must_jax.train.build import build_tasks

# Classes by kind of task, of the paper's teachers (3.1).
PAPER_CLASSES = {
  "classification": 1000,  # paper: ImageNet
  "detection": 365,  # paper: Objects365
  "segmentation": 133,  # ref [26]: COCO, things and stuff
}


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> int:
  """Prints the plan; returns the exit status.

  Args:
    args: of `plan_arguments.add_arguments`.
    overrides: "--config.NAME=VALUE" or "--teacher-config.NAME=VALUE" each.

  Raises:
    ValueError: what is given does not fit, with what is expected.
  """
  # Chips are a description; JAX must not look for real ones.
  jax.config.update("jax_platforms", "cpu")
  tpu = Slice.parse(args.topology)
  for name in ("parts", "largest_batch", "full_effort"):
    if getattr(args, name) and not has_compiler():
      raise ValueError(
        f"--{name.replace('_', '-')} asks the compiler for TPUs, and libtpu is"
        " not installed. Install it (pip install 'must_jax[tpu]'), or leave the"
        " option out."
      )
  prefix = "--teacher-config."
  for_teacher = [
    "--config." + item.removeprefix(prefix)
    for item in overrides
    if item.startswith(prefix)
  ]
  own = [item for item in overrides if not item.startswith(prefix)]
  config = load(args.config, own)
  counts = _parse_counts(args.classes)
  if config.stage == "label":
    teacher = _teacher_config(args, config, for_teacher)
    assumed = _assumed_classes(teacher, counts)
    teacher = fill_classes(teacher, assumed | counts)
    plan = _plan_labelling(args, config, teacher, tpu)
  else:
    validate(config)
    assumed = _assumed_classes(config, counts)
    config = fill_classes(config, assumed | counts)
    plan = _plan_training(args, config, tpu)
  plan = {
    "config": args.config,
    "overrides": list(overrides),
    "assumed_classes": assumed,
    **plan,
  }
  if args.json:
    args.json.write_text(json.dumps(plan, indent=2) + "\n")
  print(plan_text.text(plan))
  return 0


def fill_classes(config: ConfigDict, counts: Mapping[str, int]) -> ConfigDict:
  """A copy of the config whose tasks know their classes.

  Args:
    config: whose tasks may not.
    counts: number of classes by task, where no data tells.

  Raises:
    ValueError: a count for no task, or a task whose classes nothing tells.
  """
  config = config.copy_and_resolve_references()
  if unknown := sorted(set(counts) - set(config.tasks)):
    raise ValueError(
      f"--classes names {unknown}; the config has the tasks"
      f" {sorted(config.tasks)}."
    )
  missing = []
  for name, entry in config.tasks.items():
    if name in counts:
      entry.classes = tuple(f"class_{i}" for i in range(counts[name]))
    elif not entry.classes and _has_classes(name, entry):
      missing.append(name)
  if not missing:
    return config
  from must_jax.input import sources

  # Labels of the others need not be at hand.
  rest = config.copy_and_resolve_references()
  for name in set(config.tasks) - set(missing):
    del rest.tasks[name]
  try:
    for name, entry in sources.resolve(rest).tasks.items():
      config.tasks[name].classes = entry.classes
    return config
  except ValueError as error:
    raise ValueError(
      f"The classes of {missing} are not known: {error} Or give their numbers:"
      f" {' '.join(f'--classes {name}=COUNT' for name in missing)}."
    ) from None


def _assumed_classes(
  config: ConfigDict, counts: Mapping[str, int]
) -> dict[str, int]:
  """The paper's numbers, for tasks none of whose labels are there.

  Args:
    config: whose tasks may not know their classes.
    counts: those that are given, by task.
  """
  assumed = {}
  for name, entry in config.tasks.items():
    if name in counts or entry.classes or entry.kind not in PAPER_CLASSES:
      continue
    sources = places.task_places(config, name)
    if len(places.missing(sources)) == len(sources):
      assumed[name] = PAPER_CLASSES[entry.kind]
  return assumed


def _has_classes(name: str, entry: ConfigDict) -> bool:
  task = make_task(entry.kind, name, ("class",), task_kwargs(entry))
  return any(field.has_classes for field in task.fields.values())


def _parse_counts(items: Sequence[str]) -> dict[str, int]:
  counts = {}
  for item in items:
    match = re.fullmatch(r"([^=]+)=([1-9]\d*)", item)
    if not match:
      raise ValueError(
        f"--classes is {item!r}; expected TASK=COUNT, as detection=365."
      )
    counts[match[1]] = int(match[2])
  return counts


def _plan_training(
  args: argparse.Namespace, config: ConfigDict, tpu: Slice
) -> dict[str, Any]:
  batch_size = config.data.batch_size
  shared: Any = jax.sharding.AbstractMesh((tpu.num_chips,), ("data",))
  mesh.check_batch_size(
    "data.batch_size", batch_size, shared, config.train.accumulate
  )
  tasks = build_tasks(config)
  fields = [field for task in tasks.values() for field in task.fields.values()]
  views = max(task.views for task in tasks.values())
  simple = compiled.lower_one_image(config)
  flops = compiled.flops_per_image(simple)

  def lower_batch(num_images: int) -> compiled.LoweredStep:
    sized = config.copy_and_resolve_references()
    sized.data.batch_size = num_images
    return compiled.lower_training(sized, tpu.devices())

  height, width = config.data.image_size
  labels: dict[str, float] = {}
  for name, task in tasks.items():
    # What a teacher of the student's resolution stores for a photo of 4:3.
    cells = 0.75 * height * width / 16
    stored = sum(estimate.stored(f, cells)[1] for f in task.fields.values())
    for dataset in config.train_on:
      if dataset in config.tasks[name].labels:
        num_bytes = _label_bytes(config.tasks[name].labels[dataset], stored)
        labels[name] = max(num_bytes, labels.get(name, 0.0))
  image_bytes, images = _datasets(args, config)
  plan = {
    "stage": config.stage,
    "batch_size": batch_size,
    "accumulate": config.train.accumulate,
    "parameters": simple.parameters,
    "checkpoint_bytes": simple.state,
    "flops_per_image": flops,
    "image_bytes": image_bytes,
    "label_bytes": labels,
    "images": images,
    "steps": config.train.steps,
    "core_seconds": estimate.input_seconds((height, width), fields)
    + (views - 1) * estimate.input_seconds((height, width), ()),
  }
  return _finish(args, plan, tpu, tpu.num_chips, lower_batch)


def _plan_labelling(
  args: argparse.Namespace,
  config: ConfigDict,
  teacher: ConfigDict,
  tpu: Slice,
) -> dict[str, Any]:
  tasks = build_tasks(teacher)
  name = config.label.task or (next(iter(tasks)) if len(tasks) == 1 else "")
  if name not in tasks:
    raise ValueError(
      f"label.task is {name!r}; the teacher has the tasks {sorted(tasks)}."
      " Choose one: --config.label.task=..."
    )
  task = tasks[name]
  cpu, stride = jax.devices("cpu")[:1], config.label.map_stride
  with convolution.plain():
    simple = compiled.lower_labelling(teacher, task, 1, cpu, stride)
  flops = compiled.flops_per_image(simple)

  def lower_batch(num_images: int) -> compiled.LoweredStep:
    # Each worker has the chips of one host, and a batch of its own.
    return compiled.lower_labelling(
      teacher, task, num_images, tpu.host.devices(), stride
    )

  size = compiled.input_size(teacher)
  cells = max(math.prod(x.shape[1:3]) for x in simple.outputs.values())
  if teacher.data.eval_resize == "pad":
    cells *= 0.75  # of a photo of 4:3, the padding is cut off
  stored = [estimate.stored(field, cells) for field in task.fields.values()]
  image_bytes, images = _datasets(args, config)
  plan = {
    "stage": config.stage,
    "batch_size": config.label.batch_size,
    "accumulate": 1,
    "parameters": simple.parameters,
    "checkpoint_bytes": simple.state,
    "flops_per_image": flops,
    "image_bytes": image_bytes,
    "label_bytes": {name: sum(num_bytes for _, num_bytes in stored)},
    "images": images,
    "steps": None,
    "core_seconds": estimate.input_seconds(size, ())
    + sum(seconds for seconds, _ in stored),
  }
  return _finish(args, plan, tpu, tpu.host.num_chips, lower_batch)


def _finish(
  args: argparse.Namespace,
  plan: dict[str, Any],
  tpu: Slice,
  chips: int,
  lower_batch: Callable[[int], compiled.LoweredStep],
) -> dict[str, Any]:
  """Adds what depends on the hardware.

  Args:
    args: of `plan_arguments.add_arguments`.
    plan: what does not.
    tpu: the slice.
    chips: that share a batch.
    lower_batch: batch size -> the step.
  """
  chip, batch_size = tpu.chip, plan["batch_size"]
  per_chip = batch_size / chips
  plan |= {
    "topology": tpu.name,
    "chips": tpu.num_chips,
    "hosts": tpu.num_hosts,
    "hbm": chip.hbm,
    "host_cores": chip.host_cores,
    "images_per_chip": per_chip,
    "step": None,
    "bounds": {"operations": plan["flops_per_image"] * per_chip / chip.flops},
    "largest_per_chip": None,
  }
  # Shares of the work are others with the least effort.
  full_effort = args.full_effort or args.parts
  if has_compiler():
    step = _compile(lower_batch(batch_size), tpu, full_effort, args.parts)
    plan["step"] = dataclasses.asdict(step)
    if step.flops:
      plan["bounds"] = estimate.bounds(
        chip, step.flops, step.least_bytes, step.sent
      )
    if args.largest_batch:
      # Images of a chip at a time.
      many = chips * plan["accumulate"]
      plan["largest_per_chip"] = estimate.largest(
        lambda size: _compile(lower_batch(size * many), tpu, full_effort).fits,
        max(1, batch_size // many),
      )
  bound = max(plan["bounds"].values())
  hoped = estimate.hoped_seconds(
    chip, plan["flops_per_image"] * per_chip, bound
  )
  # Slower, faster, and what no step can beat.
  rates = [
    batch_size / seconds * tpu.num_chips / chips for seconds in (*hoped, bound)
  ]
  plan["step_seconds"] = [*hoped, bound]
  plan["images_per_second"] = rates
  steps, images = plan["steps"], plan["images"]
  plan["epoch_hours"] = images and [images / rate / 3600 for rate in rates]
  plan["run_hours"] = steps and [
    steps * seconds / 3600 for seconds in plan["step_seconds"]
  ]
  per_host = [rate / tpu.num_hosts for rate in rates]
  plan["cores_per_host"] = [rate * plan["core_seconds"] for rate in per_host]
  num_bytes = plan["image_bytes"] + sum(plan["label_bytes"].values())
  plan["bytes_per_second_per_host"] = [rate * num_bytes for rate in per_host]
  return plan


def _compile(
  lowered: compiled.LoweredStep,
  tpu: Slice,
  full_effort: bool,
  with_work: bool = False,
) -> compiled.StepCost:
  effort = 0.0 if full_effort else compiled.LEAST_EFFORT
  step = compiled.compile_step(lowered, effort, with_work)
  return dataclasses.replace(step, fits=step.fits and step.hbm <= tpu.chip.hbm)


def _teacher_config(
  args: argparse.Namespace, config: ConfigDict, overrides: Sequence[str]
) -> ConfigDict:
  given = args.teacher_config
  if overrides and ".py" not in (given or ""):
    raise ValueError(
      f"{' '.join(overrides)} of the teacher: expected --teacher-config=FILE"
      " before it; what is trained or published already does not change."
    )
  if not given:
    from must_jax.train import checkpoint

    try:
      return checkpoint.read_config(checkpoint.find(config.label.teacher))
    except FileNotFoundError as error:
      raise ValueError(
        f"{error} For a teacher that is not at hand give --teacher-config: the"
        " config it is trained with, or a kind of `must-jax convert --list`."
      ) from None
  if ".py" in given:
    return load(given, overrides)
  from must_jax import convert

  return convert.get_kind(given).make_config({})


def _datasets(
  args: argparse.Namespace, config: ConfigDict
) -> tuple[float, int | None]:
  """Bytes of an image, and images of an epoch if they are known."""
  names = config.train_on or (config.label.dataset,)
  total = num_bytes = 0
  for entry in (config.datasets[name] for name in names):
    if not is_file(Path(entry.dir) / INDEX_FILE):
      return estimate.IMAGE_BYTES, args.images
    split = read_index(entry.dir)["splits"][entry.split]
    total += split["num_records"]
    num_bytes += sum(shard["num_bytes"] for shard in split["shards"])
  return num_bytes / max(total, 1), args.images or total


def _label_bytes(origins: Any, stored: float) -> float:
  """Bytes of an image's labels beside it: of manifests, else estimated."""
  from must_jax.input.origins import SUPERVISED, listed

  total = 0.0
  for labels in listed(origins):
    if labels == SUPERVISED:
      continue
    if not is_file(Path(labels) / MANIFEST_FILE):
      total += stored
      continue
    shards = read_manifest(labels)["shards"]
    total += sum(shard["num_bytes"] for shard in shards) / max(
      sum(shard["num_records"] for shard in shards), 1
    )
  return total
