"""Arguments of `must-jax plan`; reading them imports nothing heavy."""

import argparse

from must_jax.storage.path import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what `run` takes besides overrides of the config's options."""
  parser.add_argument(
    "--config", required=True, metavar="CONFIG[:ARG]", help="as of a run"
  )
  parser.add_argument(
    "--topology",
    required=True,
    help="TPU slice: v4-128, v5e-256, v6e-64, or a shape in chips, v5e:16x16",
  )
  parser.add_argument(
    "--classes",
    action="append",
    default=[],
    metavar="TASK=COUNT",
    help="number of a task's classes, where its labels are not at hand; by"
    " default the paper's",
  )
  parser.add_argument(
    "--images",
    type=int,
    help="in an epoch, where the datasets are not at hand",
  )
  parser.add_argument(
    "--teacher-config",
    metavar="CONFIG[:ARG] or KIND",
    help='of a teacher that is not at hand, for the stage "label"; KIND is one'
    " of `must-jax convert --list`",
  )
  parser.add_argument(
    "--largest-batch",
    action="store_true",
    help="also find the largest batch that fits; many compilations",
  )
  parser.add_argument(
    "--parts",
    action="store_true",
    help="also show which parts of the model the step's work is for;"
    " implies --full-effort",
  )
  parser.add_argument(
    "--full-effort",
    action="store_true",
    help="compile as a run does, which takes about ten times as long",
  )
  parser.add_argument("--json", type=Path, help="file to write the figures to")
