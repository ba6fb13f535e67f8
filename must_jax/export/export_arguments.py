"""Arguments of `must-jax card` and `export`; nothing heavy is imported."""

import argparse

from must_jax.export import formats
from must_jax.storage.path import Path


def add_card(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `must-jax card`."""
  parser.add_argument(
    "model", type=Path, metavar="RUN", help="a run's workdir, or a checkpoint"
  )
  parser.add_argument(
    "--out", type=Path, help="file to write, such as README.md; else printed"
  )
  parser.add_argument("--name", default="", help="of the model")
  parser.add_argument(
    "--licence", default="", help="of the model, such as apache-2.0"
  )
  parser.add_argument(
    "--evaluation",
    type=Path,
    nargs="+",
    default=(),
    metavar="WORKDIR",
    help="of --config.stage=evaluate, where the model was measured",
  )


def add_export(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `must-jax export`."""
  parser.add_argument("checkpoint", type=Path)
  parser.add_argument(
    "--format", required=True, help=" or ".join(formats.NAMES)
  )
  parser.add_argument("--out", type=Path, required=True, help="folder to make")
  parser.add_argument(
    "--tasks", nargs="+", default=(), help="some of the checkpoint's; all"
  )
  parser.add_argument(
    "--image-size",
    type=int,
    nargs=2,
    metavar=("H", "W"),
    help="of the images that it takes; default that of the checkpoint",
  )
  parser.add_argument(
    "--batch",
    default="1",
    help="images at a time, or 'any'; default %(default)s",
  )
  parser.add_argument(
    "--photos",
    type=Path,
    nargs="+",
    help="files to check it on; default some of the checkpoint's own data",
  )
  parser.add_argument(
    "--data", type=Path, help="image set with labels, to measure it on as well"
  )
  parser.add_argument("--split", default="validation", help="of --data")
