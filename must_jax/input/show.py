"""`must-jax data show`: what is in an image set, in words and in pictures."""

import argparse
import os
from collections.abc import Iterator
from concurrent import futures

import numpy as np

from must_jax.fields import make_field
from must_jax.storage.path import Path, publish
from must_jax.storage.sets import ImageSet, read_index
from must_jax.storage.tfrecord import CorruptRecord

_MAX_SAMPLE = 2000  # records that are read for the summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `must-jax data show`."""
  add = parser.add_argument
  add("directory", type=Path, help="image set")
  add("--split", help="default: the first")
  add(
    "--out",
    type=Path,
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

  out = args.out or Path(f"{images.name}-{images.split}.png")
  with publish(out) as file:
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
    for text in entry.get("warnings", ()):
      yield f"  warning: {text}"
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
      field = make_field(spec)
      yield from field.summarize(np.array(rows), spec.get("classes", ()))


class _Reader:
  """Reads a record and measures its image and labels."""

  def __init__(self, images: ImageSet):
    from must_jax.quiet_tensorflow import tf
    from must_jax.storage import records

    self._images = images
    self._errors = CorruptRecord, *records.BROKEN
    self._head = tf.function(
      records.parse_image, [tf.TensorSpec([], tf.string)], autograph=False
    )
    self._graphs = records.label_graphs(images.fields)

  def __call__(
    self, number: int
  ) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
    """Image size and {field: `Field.measure`}; None for a broken record."""
    from must_jax.storage import records

    try:
      record = self._images.read(int(number))
      if not records.is_example(record):
        return None
      size, labels = self._head(record)["size"].numpy(), {}
      for name, graph in self._graphs.items():
        arrays = {k: v.numpy() for k, v in graph(record).items()}
        if arrays["present"]:
          field = make_field(self._images.fields[name])
          labels[name] = field.measure(arrays)
    except self._errors:
      return None
    return size, labels
