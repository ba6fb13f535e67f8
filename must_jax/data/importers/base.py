"""What importers share: a plan of images and labels becomes an image set.

An importer lists its images and tells how to read the labels of one; here
they are read by threads, checked, and written in an order that does not
depend on the number of threads.
"""

import argparse
import collections
import dataclasses
import hashlib
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from tqdm import tqdm

from must_jax.data.importers import files
from must_jax.data.importers.files import Picture, Rejected

_SHOWN = 10  # rejected images on the screen; index.json has all


class TooManyRejected(ValueError):
  """More images were rejected than allowed; nothing was written."""


@dataclasses.dataclass(frozen=True)
class Item:
  """An image to import.

  Attributes:
    key: names it in the image set.
    image: its file.
    label: what the importer needs to read its labels.
  """

  key: str
  image: pathlib.Path
  label: Any = None


@dataclasses.dataclass(frozen=True)
class Labels:
  """Labels of one image.

  Attributes:
    arrays: {field: arrays} as `schema.encode_example` takes them.
    rejected: reasons why parts of the labels were left out.
    counts: summed over all images, for `Plan.summarize`.
  """

  arrays: Mapping[str, Mapping[str, Any]]
  rejected: Sequence[str] = ()
  counts: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What an importer wants to import.

  Attributes:
    fields: as in `index.json`.
    items: the images.
    read_labels: called by several threads; raises `Rejected`.
    summarize: lines to print from the sums of `Labels.counts`.
    notes: further lines to print, found while planning.
  """

  fields: Mapping[str, Mapping[str, Any]]
  items: Sequence[Item]
  read_labels: Callable[[Item, Picture], Labels]
  summarize: Callable[[Mapping[str, float]], list[str]] = lambda counts: []
  notes: Sequence[str] = ()


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
  """Options of every importer."""
  add = parser.add_argument
  add("--out", required=True, help="directory of the image set")
  add("--name", required=True, help="name of the image set")
  add("--split", required=True, help="such as train, val, test")
  add("--licence", default="", help="of images and labels, kept in the set")
  size = parser.add_mutually_exclusive_group()
  size.add_argument("--shards", type=int, help="number of shards")
  size.add_argument(
    "--records-per-shard", type=int, default=1024, help="default %(default)s"
  )
  add("--overwrite", action="store_true", help="replace the split")
  add(
    "--max-rejected",
    type=float,
    default=0.01,
    metavar="FRACTION",
    help="fail if more of the images are rejected, whole or in part; default"
    " %(default)s",
  )
  add(
    "--workers",
    type=int,
    default=min(os.cpu_count() or 1, 16),
    help="threads that read; the result does not depend on it",
  )


def add_pair_arguments(parser: argparse.ArgumentParser, what: str) -> None:
  """Options of importers of one label file per image.

  Args:
    parser: gets the options.
    what: the labels, in the plural; names the option of their directory.
  """
  add = parser.add_argument
  add(
    "--images",
    type=pathlib.Path,
    required=True,
    metavar="DIR",
    help="of JPEG, PNG or uint8 .npy, with folders below it",
  )
  add(
    f"--{what}",
    type=pathlib.Path,
    required=True,
    dest="label_directory",
    metavar="DIR",
    help=f"of {what}, laid out like the images: a/b.jpg has a/b.png",
  )
  add(
    "--image-suffix",
    default="",
    metavar="TEXT",
    help="only images whose name ends so before the extension, such as _rgb;"
    " it is no part of the label's name",
  )
  add(
    "--label-suffix",
    default="",
    metavar="TEXT",
    help="what the name of a label file has there instead, such as _depth",
  )
  add(
    "--image-glob",
    default="*",
    metavar="GLOB",
    help="only images whose path below DIR matches, such as '*.jpg'",
  )


def pair(
  args: argparse.Namespace, what: str, suffixes: Sequence[str]
) -> tuple[list[Item], list[str]]:
  """Images with the path of their label file, or None where there is none.

  Args:
    args: with the options of `add_pair_arguments`.
    what: a label, in the singular, for messages.
    suffixes: extensions of label files.

  Returns:
    The items, and notes to print.

  Raises:
    ValueError: a directory is missing or empty, an image has two label files,
      or none has any.
  """
  images, notes = files.find_images(args.images, args.image_glob)
  images = {k: v for k, v in images.items() if k.endswith(args.image_suffix)}
  if not images:
    raise ValueError(
      f"No image below {args.images} has a name that ends in"
      f" {args.image_suffix!r} before its extension; give the right"
      " --image-suffix."
    )
  directory = args.label_directory
  labels = collections.defaultdict(list)
  found, _ = files.find(directory, suffixes)
  for path in found:
    labels[files.key_of(path)].append(directory / path)
  items = []
  for key, image in images.items():
    stem = key.removesuffix(args.image_suffix) + args.label_suffix
    partners = labels.get(stem, [])
    if len(partners) > 1:
      raise ValueError(
        f"{image} has several label files: {[str(p) for p in partners]};"
        f" expected one {what}. Move the others away."
      )
    items.append(Item(key, image, *partners))
  # Labels may lie among the images.
  taken = {item.label.resolve() for item in items if item.label}
  items = [item for item in items if item.image.resolve() not in taken]
  if not taken:
    stem = items[0].key.removesuffix(args.image_suffix) + args.label_suffix
    expected = " or ".join(stem + suffix for suffix in suffixes)
    raise ValueError(
      f"No image below {args.images} has a {what} below {directory}. For"
      f" {items[0].image} expected is {expected};"
      f" there are {found[:3]} and so on. Give --image-suffix and"
      " --label-suffix."
    )
  return items, notes


def partner(item: Item, what: str) -> pathlib.Path:
  """The label file of an image.

  Raises:
    Rejected: it has none.
  """
  if item.label is None:
    raise Rejected(f"has no {what}")
  return item.label


def write(plan: Plan, args: argparse.Namespace) -> None:
  """Reads what is planned, writes the image set and prints a summary.

  Neighbours in an image set meet in a batch, but neighbours in a dataset are
  alike (frames of a video, images of a class). So records are ordered by a
  hash of their keys.

  Raises:
    ValueError: options or labels that do not fit; nothing was written.
    TooManyRejected: more images were rejected than `--max-rejected`.
  """
  for option in ("shards", "records_per_shard", "workers"):
    if getattr(args, option) is not None and getattr(args, option) < 1:
      raise ValueError(
        f"--{option.replace('_', '-')} is {getattr(args, option)}; expected 1"
        " or more."
      )
  if not 0 <= args.max_rejected <= 1:
    raise ValueError(
      f"--max-rejected is {args.max_rejected}; expected a fraction from 0 to 1."
    )
  from must_jax.data import records

  start = time.monotonic()
  source = _Source(plan, args)
  image_set = records.write_image_set(
    args.out,
    args.name,
    args.split,
    source.examples(),
    plan.fields,
    args.licence,
    num_shards=args.shards,
    records_per_shard=args.records_per_shard,
    rejected=source.rejected,
    overwrite=args.overwrite,
  )
  _show_rejected(source.rejected)
  for line in (*plan.notes, *plan.summarize(source.counts)):
    print(f"  {line}")
  print(
    f"{image_set.name}-{image_set.split}: {image_set.num_records} of"
    f" {len(plan.items)} images in {len(image_set.shards)} shards,"
    f" {sum(s.num_bytes for s in image_set.shards) / 1e6:.1f} MB,"
    f" {time.monotonic() - start:.1f} s: {args.out}"
  )


class _Source:
  """Examples of a plan, with what had to be left out of them."""

  def __init__(self, plan: Plan, args: argparse.Namespace):
    self.plan, self.args = plan, args
    self.rejected: list[dict[str, str]] = []
    self.counts: collections.Counter[str] = collections.Counter()

  def examples(self) -> Iterator[dict[str, Any]]:
    items = sorted(self.plan.items, key=lambda item: _shuffled(item.key))
    allowed = self.args.max_rejected * len(items)
    keys = set()
    results = _map_in_order(self._read, items, self.args.workers)
    for item, (picture, labels) in tqdm(
      zip(items, results, strict=True),
      total=len(items),
      unit="image",
      disable=not sys.stderr.isatty(),
      leave=False,
    ):
      for reason in labels.rejected:
        self.rejected.append({"key": item.key, "reason": reason})
        keys.add(item.key)
      self.counts.update(labels.counts)
      # Once the import fails, the rest is looked at for the count only.
      if picture is not None and len(keys) <= allowed:
        yield {
          "key": item.key,
          "image": picture.data,
          "height": picture.size[0],
          "width": picture.size[1],
          "labels": labels.arrays,
        }
    self.rejected.sort(key=lambda entry: entry["key"])
    if len(keys) > allowed:
      _show_rejected(self.rejected)
      raise TooManyRejected(
        f"{len(keys)} of {len(items)} images were rejected, whole or in part"
        f" ({len(keys) / len(items):.2%}); allowed are"
        f" {self.args.max_rejected:.2%}. Nothing was written. Mend the files,"
        " or allow more with --max-rejected"
        f" {np.ceil(1000 * len(keys) / len(items)) / 1000:g}."
      )

  def _read(self, item: Item) -> tuple[Picture | None, Labels]:
    try:
      picture = files.read_image(item.image)
      return picture, self.plan.read_labels(item, picture)
    except Rejected as error:
      return None, Labels({}, [str(error)])


def _shuffled(key: str) -> bytes:
  return hashlib.blake2b(key.encode(), digest_size=16).digest()


def _map_in_order(
  function: Callable[[Item], Any], items: Sequence[Item], workers: int
) -> Iterator[Any]:
  """Like `Executor.map`, but only so far ahead that memory stays small."""
  with futures.ThreadPoolExecutor(workers) as pool:
    pending: collections.deque[futures.Future] = collections.deque()
    for item in items:
      pending.append(pool.submit(function, item))
      if len(pending) > 4 * workers:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()


def _show_rejected(rejected: Sequence[Mapping[str, str]]) -> None:
  if not rejected:
    return
  print(f"{len(rejected)} rejected:", file=sys.stderr)
  for entry in rejected[:_SHOWN]:
    print(f"  {entry['key']}: {entry['reason']}", file=sys.stderr)
  if len(rejected) > _SHOWN:
    print(f"  ... and {len(rejected) - _SHOWN} more", file=sys.stderr)
