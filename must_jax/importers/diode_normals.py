"""Surface normals of DIODE; `diode` describes its files.

The dataset does not document the frame of its normals. They are taken to lie in
OpenGL's, x right, y up, z backward, as in the reader of Metric3D
(training/mono/datasets/diode_dataset.py), which negates y and z. That reader
also turns around what then faces away from the camera; here such normals stay
as they are. The import says how many they are, and `must-jax data show` draws
them: look before you train.
"""

import argparse
import dataclasses

from must_jax.importers import diode, normals
from must_jax.importers.items import Plan

HELP = "surface normals of DIODE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  diode.add_arguments(parser)
  parser.add_argument(
    "--flip-axes",
    default="yz",
    metavar="AXES",
    help="axes to negate, of xyz; default %(default)s, from OpenGL's frame",
  )


def plan(args: argparse.Namespace) -> Plan:
  """Pairs images and normals.

  Raises:
    ValueError: a directory is missing, has no normals, or an option does not
      fit.
  """
  options = diode.pairs(args, "_normal")
  general = normals.plan(
    argparse.Namespace(**options, flip_axes=args.flip_axes, max_code=None)
  )
  # They tell of the files of other tasks.
  return dataclasses.replace(general, notes=())
