"""`must-jax inspect`: what is in a label set, how far it is, how good it is."""

import argparse
import heapq
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from must_jax import config as config_lib
from must_jax import pictures
from must_jax.curation import page
from must_jax.curation.agreement import (
  Agreement,
  compare,
  disagreement,
  disputed,
)
from must_jax.fields import kept_of
from must_jax.fields.field import NamedScores
from must_jax.input.batches import eval_batches
from must_jax.input.origins import SUPERVISED, Source
from must_jax.pseudo_label.status import status
from must_jax.ranges import FRACTION, NOT_NEGATIVE, check
from must_jax.storage.label_sets import is_corrections, reading_score
from must_jax.storage.path import Path, PathLike, publish, publish_json
from must_jax.storage.sets import MANIFEST_FILE, ImageSet, read_manifest
from must_jax.tasks import Task, task_of_field
from must_jax.train.build import build_tasks
from must_jax.train.runtime import keep_tensorflow_off_accelerators

# Labels are drawn and measured at this size, whatever size they have.
_IMAGE_SIZE = (256, 256)
_GALLERY_ROWS = 8
_MAX_LISTED = 20  # of what cannot be shown
_RANGES = {"--min-score": FRACTION, "--worst": NOT_NEGATIVE}


def label_tasks(manifest: dict[str, Any]) -> dict[str, Task]:
  """The tasks whose labels a label set holds, by name.

  That of the teacher, if it is a checkpoint; of other teachers those that read
  their fields, under the names of these.

  Raises:
    ValueError: no task reads a field.
  """
  teacher = manifest["teacher"]
  if "config" in teacher:
    config = config_lib.from_json(json.dumps(teacher["config"]))
    return {teacher["task"]: build_tasks(config)[teacher["task"]]}
  return {
    name: task_of_field(name, description)
    for name, description in manifest["fields"].items()
  }


def quality(
  labels: PathLike,
  truth: PathLike,
  image_size: tuple[int, int] = _IMAGE_SIZE,
) -> dict[str, float]:
  """Measures pseudo labels against the true labels of the same images.

  All stored labels count, those below the reading thresholds too; images that
  have none, because nobody looked at them, do not.

  Args:
    labels: a finished label set.
    truth: an image set with the same name, split and keys and true labels.
    image_size: (H, W) at which both are compared.

  Returns:
    {metric: value}, or {"task/metric": value} of labels for several tasks.

  Raises:
    ValueError: the sets don't line up, or one of them has no such labels.
  """
  manifest = read_manifest(labels)
  found: dict[str, float] = {}
  tasks = label_tasks(manifest)
  for name, task in tasks.items():
    prefix = f"{name}/" if len(tasks) > 1 else ""
    metrics = _quality(task, manifest, labels, truth, image_size)
    found |= {f"{prefix}{key}": value for key, value in metrics.items()}
  return found


def _quality(
  task: Task,
  manifest: dict[str, Any],
  labels: PathLike,
  truth: PathLike,
  image_size: tuple[int, int],
) -> dict[str, float]:
  fields = {name: field.unfiltered() for name, field in task.fields.items()}
  source = Source(
    str(truth),
    manifest["image_set"]["split"],
    {"pseudo": str(labels), "true": SUPERVISED},
  )
  metric = task.make_metrics()
  num_labelled = 0
  for batch in eval_batches(
    [source],
    {"pseudo": fields, "true": fields},
    batch_size=32,
    image_size=image_size,
  ):
    found = batch["labels"]
    labelled = found["pseudo"][task.measured]["present"]
    batch["valid"] = np.asarray(batch["valid"]) & np.asarray(labelled)
    num_labelled += int(batch["valid"].sum())
    metric.update(
      found["pseudo"][task.measured],
      found["true"][task.measured],
      batch,
    )
  if not num_labelled:
    raise ValueError(
      f"Label set {labels} has no {task.measured!r} of any image; there is"
      " nothing to measure."
    )
  return metric.compute()


def record_quality(labels: PathLike, truth: PathLike) -> dict[str, float]:
  """Measures as `quality` and keeps the result in the manifest.

  Args:
    labels: a finished label set.
    truth: see `quality`.
  """
  found = quality(labels, truth)
  manifest = read_manifest(labels)
  manifest["quality"] = {"truth": str(truth), "metrics": found}
  publish_json(Path(labels) / MANIFEST_FILE, manifest)
  return found


def draw_labels(
  labels: PathLike,
  images: PathLike,
  count: int,
  image_size: tuple[int, int] = _IMAGE_SIZE,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(image, picture of its pseudo labels) of the first examples, task by task.

  Args:
    labels: a finished label set.
    images: the image set it was made for.
    count: examples.
    image_size: (H, W) of the pictures.

  Yields:
    Two uint8 [H, W, 3].
  """
  manifest = read_manifest(labels)
  source = Source(
    str(images), manifest["image_set"]["split"], {"pseudo": str(labels)}
  )
  for task in label_tasks(manifest).values():
    batches = eval_batches(
      [source],
      {"pseudo": task.fields},
      batch_size=count,
      image_size=image_size,
    )
    batch = next(iter(batches))
    arrays = batch["labels"]["pseudo"][task.measured]
    for i in np.flatnonzero(batch["valid"]):
      height, width = batch["content_size"][i].astype(int)
      picture = task.draw(
        batch["image"][i], {name: array[i] for name, array in arrays.items()}
      )
      yield batch["image"][i][:height, :width], picture[:height, :width]


def run(args: argparse.Namespace) -> int:
  """Prints what the arguments of `must-jax inspect` ask for; returns 0.

  Raises:
    ValueError: arguments contradict each other, or the label set is not what
      they need.
  """
  keep_tensorflow_off_accelerators()
  given = {"--min-score": args.min_score, "--worst": args.worst}
  check({k: v for k, v in given.items() if v is not None}, _RANGES)
  if args.single_file and not args.out:
    raise ValueError("--single-file needs --out, the folder of the page.")
  if args.out:
    return _make_page(args)
  for number, labels in enumerate(args.labels):
    if number:
      print()
    if len(args.labels) > 1:
      print(f"{labels}:")
    _inspect(labels, args)
  return 0


def _make_page(args: argparse.Namespace) -> int:
  if not args.images:
    raise ValueError("--out needs --images, the labelled image set.")
  for name in ("status", "gallery", "against"):
    if getattr(args, name):
      raise ValueError(f"--out and --{name} do not go together; give one.")
  options = page.PageOptions(
    max_side=args.max_side,
    count=args.count,
    single_file=args.single_file,
    min_score=args.min_score,
  )
  made = page.write(args.labels, args.images, args.out, args.truth, options)
  for problem in made.problems[:_MAX_LISTED]:
    print(f"cannot be shown: {problem}", file=sys.stderr)
  if (more := len(made.problems) - _MAX_LISTED) > 0:
    print(f"... and {more:,} more", file=sys.stderr)
  if made.num_images < made.num_records:
    print(
      f"{made.num_images:,} of {made.num_records:,} images, chosen at random;"
      " --count says how many"
    )
  print(f"{made.num_images:,} images -> {Path(args.out) / 'index.html'}")
  return 0


def _inspect(labels: PathLike, args: argparse.Namespace) -> None:
  if args.status:
    _print_status(labels)
    return
  manifest = read_manifest(labels)
  _print_summary(manifest, reading_score(manifest, args.min_score))
  if args.truth:
    record_quality(labels, args.truth)
    manifest = read_manifest(labels)
  if "quality" in manifest:
    print(f"\nAgainst the truth in {manifest['quality']['truth']}")
    for name, value in manifest["quality"]["metrics"].items():
      print(f"  {name:<24} {value:.4f}")
  if args.against:
    _print_agreement(labels, args.against, args.min_score, args.worst)
  if args.gallery:
    if not args.images:
      raise ValueError("--gallery needs --images, the labelled image set.")
    ImageSet.open(args.images, manifest["image_set"]["split"])
    pairs = list(draw_labels(labels, args.images, _GALLERY_ROWS))
    drawn = pictures.gallery(pairs, _IMAGE_SIZE)
    with publish(args.gallery) as file:
      Image.fromarray(drawn).save(file, "PNG")
    print(f"\nGallery: {args.gallery}")


def _print_agreement(
  labels: PathLike,
  others: Sequence[PathLike],
  min_score: float | None,
  num_worst: int,
) -> None:
  comparisons = [compare(labels, other, min_score) for other in others]
  sums = [Agreement() for _ in others]

  def ranked() -> Iterator[tuple[float, int, str, str]]:
    """Images on which labels differ, smaller where they differ more."""
    for results in zip(*comparisons, strict=True):
      found = [pairs for _, pairs in results]
      for total, pairs in zip(sums, found, strict=True):
        total.add(pairs)
      if rank := disagreement(found):
        names = disputed(found)
        yield -rank, -len(names), results[0][0], ", ".join(names)

  # At least one: of none it would not look at any image.
  worst = heapq.nsmallest(max(1, num_worst), ranked())[: max(0, num_worst)]
  for other, total in zip(others, sums, strict=True):
    print(f"\nAgreement with {other}")
    for line in [*total.lines()] or ["  no image that both have labelled"]:
      print(line)
  if worst:
    print("\nImages on which they contradict each other most, and in what")
  for rank, _, key, told in worst:
    print(f"  {-rank:>6.1%}  {key}  {told}".rstrip())


def _print_status(labels: PathLike) -> None:
  state = status(labels)
  share = state.num_labelled / max(1, state.num_records)
  print(
    f"{state.num_labelled:,} of {state.num_records:,} images ({share:.1%});"
    f" shards: {state.done} done, {state.leased} at work,"
    f" {state.pending} pending"
  )
  for worker in state.workers:
    print(
      f"  {worker.name}: {worker.shard}, {worker.num_records} images,"
      f" {worker.images_per_second:.1f}/s,"
      f" silent for {worker.silent_seconds:.0f} s"
    )
  if state.finished:
    print("Finished.")
  elif state.eta_seconds is not None:
    print(f"About {state.eta_seconds / 60:.0f} minutes to go.")


def _print_summary(
  manifest: dict[str, Any], min_score: NamedScores | None
) -> None:
  images, teacher = manifest["image_set"], manifest["teacher"]
  print(
    f"Labels of {images['name']}-{images['split']}:"
    f" {manifest['num_records']:,} records,"
    f" {manifest['num_undecodable']} undecodable,"
    f" {manifest['bytes_per_image']:.0f} bytes per image"
  )
  task = f", task {teacher['task']}" if "task" in teacher else ""
  if is_corrections(manifest):
    made = teacher["corrections"]
    print(
      f"Corrections by {made['by']}, {made['when']}, of labels by teacher"
      f" {made['of']}"
    )
  else:
    print(f"Teacher {teacher['digest']}{task}")
  for field, sums in manifest["statistics"].items():
    description = manifest["fields"][field]
    found = kept_of(description, sums, min_score)
    print(f"\n{field}: {found}")
    for line in found.lines(description.get("classes", ())):
      print(line)
  for alarm in manifest["alarms"]:
    print(f"\nALARM: {alarm}")
