"""Depth maps: a 16-bit PNG or an .npy array for each image.

Depth is the distance along the optical axis, in metres, or inverse depth
without a unit. Pixels that are not finite, not above zero, or hold a code of
--invalid are invalid.
"""

import argparse
import math
from collections.abc import Mapping

import numpy as np

from must_jax.data.importers import base, files

HELP = "a 16-bit PNG or .npy of depth for each image"

_PNG_SCALE = 0.001  # metres per code, the habit of RGB-D cameras


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  base.add_pair_arguments(parser, "depths")
  parser.add_argument(
    "--scale",
    type=float,
    help="metres per code; default 0.001 for integers (PNG), 1 for floats",
  )
  parser.add_argument(
    "--invalid",
    type=float,
    nargs="+",
    default=[0.0],
    metavar="CODE",
    help="codes of invalid pixels; default 0",
  )
  parser.add_argument(
    "--inverse",
    action="store_true",
    help="the maps hold inverse depth without a unit, kept as it is",
  )


def plan(args: argparse.Namespace) -> base.Plan:
  """Pairs images and depth maps.

  Raises:
    ValueError: a directory or file is missing or an option does not fit.
  """
  if args.scale is not None and (
    args.inverse or not (0 < args.scale < math.inf)
  ):
    raise ValueError(
      f"--scale is {args.scale}; expected metres per code, more than 0, and"
      " none with --inverse."
    )
  items, notes = base.pair(args, "depth map", files.MAP_SUFFIXES)

  def read_labels(item: base.Item, picture: files.Picture) -> base.Labels:
    path = base.partner(item, "depth map")
    codes = files.read_map(path, picture)
    if codes.ndim != 2 or codes.dtype.kind not in "uif":
      raise files.Rejected(
        f"{path.name} is {codes.dtype} {codes.shape}; expected numbers [h, w]"
      )
    if codes.dtype == np.uint8 and args.scale is None and not args.inverse:
      raise files.Rejected(
        f"{path.name} has 8 bits, too few for millimetres; expected 16, or"
        " --scale"
      )
    valid = np.isfinite(codes) & (codes > 0) & ~np.isin(codes, args.invalid)
    if not valid.any():
      raise files.Rejected(
        f"{path.name} has no valid pixel; expected values above 0, other than"
        f" {args.invalid}"
      )
    values = np.where(valid, codes, 0) * _scale(args, codes.dtype)
    counts = {
      "sum": float(values.sum()),
      "valid": int(valid.sum()),
      "pixels": valid.size,
    }
    return base.Labels(
      {"depth": {"values": values, "valid": valid}}, (), counts
    )

  unit = "inverse" if args.inverse else "metres"

  def summarize(counts: Mapping[str, float]) -> list[str]:
    mean = counts["sum"] / counts["valid"]
    return [
      f"depth ({unit}): mean {mean:.4g},"
      f" {counts['valid'] / counts['pixels']:.1%} of the pixels are valid"
    ]

  fields = {"depth": {"kind": "ValueMap", "unit": unit}}
  return base.Plan(fields, items, read_labels, summarize, notes)


def _scale(args: argparse.Namespace, dtype: np.dtype) -> float:
  if args.inverse:
    return 1.0
  if args.scale is not None:
    return args.scale
  return 1.0 if dtype.kind == "f" else _PNG_SCALE
