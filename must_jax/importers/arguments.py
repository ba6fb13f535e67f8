"""Options that importers share, and pairs of images and label files."""

import argparse
import collections
import os
from collections.abc import Sequence
from typing import Any

from must_jax.importers import files
from must_jax.importers.items import Item
from must_jax.importers.names import nfc
from must_jax.storage import image_files
from must_jax.storage.path import Path


def add_code_range(parser: argparse.ArgumentParser) -> None:
  """The option of all that reads image files."""
  parser.add_argument(
    "--code-range",
    type=int,
    nargs=2,
    metavar=("LOW", "HIGH"),
    help="codes of images of 16 bits that become black and white, such as"
    " 0 4095 for 12 bits; default: as a PNG's sBIT says, else 0 65535",
  )


def add_output_arguments(
  parser: argparse.ArgumentParser,
  *,
  name: str | None = None,
  licence: str = "",
  splits: Sequence[str] | None = None,
) -> None:
  """Options of every importer.

  Args:
    parser: gets the options.
    name: of the image set, where it has one of its own.
    licence: of a dataset that is known.
    splits: that there are, of a dataset that is known.
  """
  add = parser.add_argument
  add(
    "--out",
    type=Path,
    required=True,
    help="directory of the image set, or label set",
  )
  target = parser.add_mutually_exclusive_group(required=name is None)
  target.add_argument(
    "--name",
    default=name,
    help="name of the image set" + ("; default %(default)s" if name else ""),
  )
  target.add_argument(
    "--labels-for",
    type=Path,
    metavar="DIR",
    help="an image set that is imported already: write the labels alone to"
    " --out, as a label set of its --split, matched by key",
  )
  add("--split", required=True, choices=splits, help="such as train, val, test")
  add(
    "--licence",
    default=licence,
    help="of images and labels, kept in the set"
    + ("; default %(default)s" if licence else ""),
  )
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
  add_code_range(parser)
  add(
    "--labels-of-turned",
    choices=("upright", "stored"),
    default="",
    help="labels of images that EXIF or XMP turns are of the picture as viewers"
    " show it, or as the file has it; default: sizes tell, and images where"
    " they do not are rejected",
  )
  add(
    "--map-stride",
    type=int,
    default=1,
    metavar="PIXELS",
    help="store one value of maps of classes, depth or normals for so many"
    " pixels of the image a side: smaller, and faster to read. For training;"
    " results are measured on maps of full size. Default %(default)s",
  )
  add(
    "--workers",
    type=int,
    default=min(os.cpu_count() or 1, 16),
    help="images read at a time on this machine, by one process for each 2000"
    " images and threads in it, by default as many as it has cores, at most 16;"
    " the result does not depend on it",
  )
  add(
    "--runner",
    metavar="NAME",
    help="read on a cluster, by a runner of Apache Beam such as DataflowRunner,"
    " FlinkRunner or SparkRunner; --images and --out lie where all its workers"
    " see them",
  )
  add(
    "--beam-options",
    default="",
    metavar="TEXT",
    help="of the runner, such as '--project=p --region=us-central1'",
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
    type=Path,
    required=True,
    metavar="DIR",
    help="of JPEG, PNG or uint8 .npy, with folders below it",
  )
  add(
    f"--{what}",
    type=Path,
    required=True,
    dest="label_directory",
    metavar="DIR",
    help=f"of {what}, laid out like the images: a/b.jpg has a/b.png",
  )
  add(
    "--image-suffix",
    type=nfc,
    default="",
    metavar="TEXT",
    help="only images whose name ends so before the extension, such as _rgb;"
    " it is no part of the label's name",
  )
  add(
    "--label-suffix",
    type=nfc,
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
  found, others = files.find_files(directory, suffixes)
  if not found:
    raise ValueError(
      f"{directory} holds no {what} ({len(others)} other files, such as"
      f" {others[:3]}); expected files that end in {' or '.join(suffixes)}."
    )
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


def partner(item: Item, what: str) -> Any:
  """The label file or files of an image.

  Raises:
    Rejected: it has none.
  """
  if item.label is None:
    raise image_files.Rejected(f"has no {what}")
  return item.label
