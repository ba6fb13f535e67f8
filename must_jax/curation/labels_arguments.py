"""The options of `must-jax labels`."""

import argparse

from must_jax.annotations import FORMATS
from must_jax.storage.path import Path


def add_export(parser: argparse.ArgumentParser) -> None:
  """Adds those of `must-jax labels export`."""
  add = parser.add_argument
  add("labels", type=Path, help="label set")
  add("--images", type=Path, required=True, help="image set that it is of")
  add("--out", type=Path, required=True, help="folder to make")
  add("--format", required=True, choices=list(FORMATS), help="of the tool")
  add(
    "--selection",
    type=Path,
    metavar="FILE",
    help="only images out of this selection, at the thresholds it was made at;"
    " the page of `must-jax inspect` saves it",
  )
  add(
    "--decision",
    nargs="+",
    choices=("accept", "reject", "correct"),
    help="which of the selection; default: correct",
  )
  add(
    "--min-score",
    metavar="S",
    help="leave out what has a lower score: a number, or a JSON file {field:"
    " number or {class: number}}, or a selection; default: that of --selection,"
    " else the score at which the labels are read. 0 leaves out nothing",
  )
  _add_fields(parser)
  add(
    "--no-images",
    action="store_true",
    help="leave the images out; the tool has them",
  )
  add(
    "--image-url",
    metavar="PREFIX",
    help="for label-studio: what stands before the names of images, such as"
    " https://example.org/photos/; default: its local files",
  )


def add_import(parser: argparse.ArgumentParser) -> None:
  """Adds those of `must-jax labels import`."""
  add = parser.add_argument
  add("file", type=Path, help="file or folder that came back, or a selection")
  add("--labels", type=Path, required=True, help="label set that is corrected")
  add("--images", type=Path, required=True, help="image set that it is of")
  add("--out", type=Path, required=True, help="label set to make")
  add("--format", choices=list(FORMATS), help="of the file; default: it tells")
  add(
    "--by",
    metavar="NAME",
    help="who made the corrections; default: whom the file names, else you",
  )
  _add_fields(parser)
  add(
    "--only-changed",
    action="store_true",
    help="images whose labels came back as they are exported at --min-score"
    " were not looked at; for tools that give all images back",
  )
  add(
    "--min-score",
    metavar="S",
    help="with --only-changed: that of the export, or its selection; default:"
    " the score at which the labels are read",
  )
  add(
    "--max-rejected",
    type=float,
    default=0.0,
    metavar="FRACTION",
    help="leave images out whose corrections cannot be read, if they are no"
    " more than this; default %(default)s",
  )
  add("--overwrite", action="store_true", help="replace corrections in --out")


def _add_fields(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--fields",
    nargs="+",
    metavar="FIELD",
    help="some of the label set's; default: all that the format can hold",
  )
