"""Arguments of `must-jax thresholds`; reading them imports nothing heavy."""

import argparse

from must_jax.storage.path import Path


def add(parser: argparse.ArgumentParser) -> None:
  """Adds what `thresholds.run` takes."""
  parser.add_argument("labels", type=Path, help="label set")
  parser.add_argument(
    "--validation",
    type=Path,
    metavar="TEACHER",
    help="the run or checkpoint that made the labels, to measure by class how"
    " many are right from which score on; or a label set that it made of images"
    " with known truth",
  )
  parser.add_argument(
    "--dataset",
    nargs="+",
    default=(),
    metavar="IMAGE_SET:SPLIT",
    help="true labels to measure it on; by default those that it was evaluated"
    " on in training",
  )
  wishes = parser.add_mutually_exclusive_group()
  wishes.add_argument(
    "--best-f1",
    action="store_true",
    help="the best balance of precision and recall; the default",
  )
  wishes.add_argument(
    "--precision",
    type=float,
    metavar="P",
    help="as many labels as possible of which a part P is right",
  )
  wishes.add_argument(
    "--count",
    type=int,
    metavar="N",
    help="the highest score that leaves N boxes, or pixels, of each class;"
    " needs no truth",
  )
  wishes.add_argument(
    "--share",
    type=float,
    metavar="S",
    help="the highest score that leaves a part S of those of each class; needs"
    " no truth",
  )
  parser.add_argument(
    "--out",
    type=Path,
    required=True,
    help="JSON to write, which config.tasks.NAME.min_score takes, with a plot"
    " beside it, .svg",
  )
