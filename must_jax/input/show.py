"""`must-jax data show`: what is in an image set, in words and in pictures."""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from etils import epath

from must_jax.storage.sets import ImageSet, read_index
from must_jax.storage.tfrecord import CorruptRecord, atomic_write
from must_jax.types import IGNORE_LABEL

_MAX_SAMPLE = 2000  # records that are read for the summary
_MAX_CLASSES = 20  # named in it

Arrays = Mapping[str, np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `must-jax data show`."""
  add = parser.add_argument
  add("directory", type=epath.Path, help="image set")
  add("--split", help="default: the first")
  add(
    "--out",
    type=epath.Path,
    metavar="FILE",
    help="PNG of random images with their labels; default NAME-SPLIT.png",
  )
  add("--count", type=int, default=24, help="images in it; default %(default)s")
  add("--seed", type=int, default=0, help="of what is read and drawn")


def run(args: argparse.Namespace) -> int:
  """Prints a summary of an image set, and writes a contact sheet.

  Args:
    args: see `add_arguments`.

  Returns:
    0

  Raises:
    ValueError: there is no image set, or no such split.
  """
  if args.count < 1:
    raise ValueError(f"--count is {args.count}; expected 1 or more.")
  splits = read_index(args.directory)["splits"]
  if not splits:
    raise ValueError(f"{args.directory} has no splits. Import one into it.")
  images = ImageSet.open(args.directory, args.split or next(iter(splits)))
  for line in summarize(images, args.seed):
    print(line)
  from must_jax.input import sheet

  out = args.out or epath.Path(f"{images.name}-{images.split}.png")
  with atomic_write(out) as file:
    sheet.draw(images, args.count, args.seed).save(file, "PNG")
  print(f"Contact sheet: {out}")
  return 0


def summarize(images: ImageSet, seed: int = 0) -> Iterator[str]:
  """Lines on an image set, and on the images and labels of a split.

  Args:
    images: the split. What is not in the index is counted in a sample of it.
    seed: of the sample.
  """
  yield f"{images.name}: {images.directory}"
  yield f"licence: {images.licence or 'not given'}"
  for name, entry in images.index["splits"].items():
    size = sum(shard["num_bytes"] for shard in entry["shards"])
    rejected = entry.get("num_rejected", len(entry.get("rejected", ())))
    yield (
      f"{name}: {entry['num_records']:,} records in"
      f" {len(entry['shards']):,} shards, {size / 1e6:,.1f} MB;"
      f" {rejected:,} rejected when they were imported"
    )
  count = min(images.num_records, _MAX_SAMPLE)
  chosen = np.random.default_rng(seed).choice(
    images.num_records, count, replace=False
  )
  read = _Reader(images)
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    found = [record for record in pool.map(read, np.sort(chosen)) if record]
  yield f"\nOf split {images.split}, {len(found):,} records were read:"
  if len(found) < count:
    yield (
      f"{count - len(found):,} records cannot be read; `must-jax data verify"
      f" {images.directory}` says why"
    )
  if found:
    sizes = np.array([size for size, _ in found])
    low, mean, high = sizes.min(0), sizes.mean(0), sizes.max(0)
    yield (
      f"images: {mean[0]:.0f} x {mean[1]:.0f} pixels on average (height x"
      f" width), heights {low[0]} to {high[0]}, widths {low[1]} to {high[1]}"
    )
  for name, spec in images.fields.items():
    rows = [labels[name] for _, labels in found if name in labels]
    yield f"{name} ({spec['kind']}): {len(rows):,} images have it"
    if rows:
      yield from _DESCRIBE[spec["kind"]](np.array(rows), spec)


class _Reader:
  """Reads a record and measures its image and labels."""

  def __init__(self, images: ImageSet):
    import tensorflow as tf

    from must_jax.storage import parsing

    self._images = images
    self._errors = CorruptRecord, *parsing.BROKEN
    self._head = tf.function(
      parsing.parse_image, [tf.TensorSpec([], tf.string)], autograph=False
    )
    self._graphs = parsing.label_graphs(images.fields)

  def __call__(
    self, number: int
  ) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
    """Image size and {field: row of `_MEASURE`}; None for a broken record."""
    from must_jax.storage import parsing

    try:
      record = self._images.read(int(number))
      if not parsing.is_example(record):
        return None
      size, labels = self._head(record)["size"].numpy(), {}
      for name, graph in self._graphs.items():
        arrays = {k: v.numpy() for k, v in graph(record).items()}
        if arrays["present"]:
          spec = self._images.fields[name]
          labels[name] = _MEASURE[spec["kind"]](arrays, spec)
    except self._errors:
      return None
    return size, labels


def _measure_boxes(arrays: Arrays, spec: Mapping[str, Any]) -> np.ndarray:
  """Boxes of each class, and those to be ignored."""
  counts = np.bincount(arrays["classes"], minlength=len(spec["classes"]))
  return np.append(counts, arrays["ignore"].sum())


def _measure_class_map(arrays: Arrays, spec: Mapping[str, Any]) -> np.ndarray:
  """Part of the pixels of each class, and of the unknown ones."""
  classes = arrays["classes"].reshape(-1)
  counts = np.bincount(classes, minlength=IGNORE_LABEL + 1) / len(classes)
  return np.append(counts[: len(spec["classes"])], counts[IGNORE_LABEL])


def _measure_value_map(arrays: Arrays, spec: Mapping[str, Any]) -> np.ndarray:
  """Part of the pixels that are valid; least, median and greatest value."""
  del spec
  valid = arrays["valid"]
  values = arrays["values"][valid]
  if not values.size:
    return np.array([0, np.nan, np.nan, np.nan])
  return np.array([valid.mean(), values.min(), np.median(values), values.max()])


_MEASURE: Mapping[str, Callable[[Arrays, Mapping[str, Any]], np.ndarray]] = {
  "ClassVector": lambda arrays, spec: arrays["probs"] > 0,
  "Boxes": _measure_boxes,
  "ClassMap": _measure_class_map,
  "ValueMap": _measure_value_map,
  "VectorMap": lambda arrays, spec: arrays["valid"].mean(),
}


def _describe_class_vectors(
  rows: np.ndarray, spec: Mapping[str, Any]
) -> Iterator[str]:
  yield f"  {rows.sum(1).mean():.3g} classes an image"
  yield from _list_classes(rows.sum(0), spec["classes"], "{:,.0f} images")


def _describe_boxes(rows: np.ndarray, spec: Mapping[str, Any]) -> Iterator[str]:
  boxes = rows[:, :-1].sum(1)
  yield (
    f"  {boxes.sum():,} boxes, {boxes.mean():.3g} an image, at most"
    f" {boxes.max()}; {rows[:, -1].sum():,} to be ignored"
  )
  yield from _list_classes(rows.sum(0)[:-1], spec["classes"], "{:,.0f} boxes")


def _describe_class_maps(
  rows: np.ndarray, spec: Mapping[str, Any]
) -> Iterator[str]:
  shares = rows.mean(0)
  yield f"  {shares[-1]:.1%} of the pixels are unknown"
  yield from _list_classes(shares[:-1], spec["classes"], "{:.1%}")


def _describe_value_maps(
  rows: np.ndarray, spec: Mapping[str, Any]
) -> Iterator[str]:
  yield f"  {rows[:, 0].mean():.1%} of the pixels are valid"
  rows = rows[rows[:, 0] > 0]
  if len(rows):
    yield (
      f"  values {rows[:, 1].min():.4g} to {rows[:, 3].max():.4g}, median"
      f" {np.median(rows[:, 2]):.4g}, unit {spec.get('unit') or 'not given'}"
    )


def _describe_vector_maps(
  rows: np.ndarray, spec: Mapping[str, Any]
) -> Iterator[str]:
  del spec
  yield f"  {rows.mean():.1%} of the pixels are valid"


_DESCRIBE: Mapping[
  str, Callable[[np.ndarray, Mapping[str, Any]], Iterator[str]]
] = {
  "ClassVector": _describe_class_vectors,
  "Boxes": _describe_boxes,
  "ClassMap": _describe_class_maps,
  "ValueMap": _describe_value_maps,
  "VectorMap": _describe_vector_maps,
}


def _list_classes(
  counts: np.ndarray, classes: Sequence[str], form: str
) -> Iterator[str]:
  """The most frequent classes, and how many others there are."""
  order = np.argsort(-counts, kind="stable")
  for k in order[:_MAX_CLASSES]:
    yield f"    {classes[k]:<24} {form.format(counts[k])}"
  if len(classes) > _MAX_CLASSES:
    yield f"    ... and {len(classes) - _MAX_CLASSES:,} classes more"
  if missing := int((counts == 0).sum()):
    yield f"    {missing:,} of the {len(classes):,} classes do not occur"
