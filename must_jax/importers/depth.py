"""Depth maps: a 16-bit PNG or an .npy array for each image.

Depth is the distance along the optical axis, in metres, or inverse depth
without a unit. Pixels that are not finite, not above zero, or hold a code of
--invalid are invalid. By default that is 0 and, of distances, the greatest code
of their type (65535 of 16 bits, 65504 of half floats): cameras and renderers
write it where they see no end.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from must_jax.importers import arguments, files
from must_jax.importers.items import Item, Labels, Plan, ReadFiles
from must_jax.storage.image_files import Picture, Rejected

HELP = "a 16-bit PNG or .npy of depth for each image"

_MAX_AT_TOP = 0.01  # of the valid pixels of a map
_TOP = "at the top "
_PNG_SCALE = 0.001  # metres per code, the habit of RGB-D cameras


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  arguments.add_pair_arguments(parser, "depths")
  parser.add_argument(
    "--scale",
    type=float,
    help="metres per code; default 0.001 for integers (PNG), 1 for floats",
  )
  parser.add_argument(
    "--invalid",
    type=float,
    nargs="+",
    metavar="CODE",
    help="codes of invalid pixels; default 0 and, without --inverse, the"
    " greatest code of their type, such as 65535",
  )
  parser.add_argument(
    "--inverse",
    action="store_true",
    help="the maps hold inverse depth without a unit, kept as it is",
  )


def plan(args: argparse.Namespace) -> Plan:
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
  items, notes = arguments.pair(args, "depth map", files.MAP_SUFFIXES)
  unit = "inverse" if args.inverse else "metres"
  scale = 1.0 if args.inverse else args.scale
  return Plan(
    {"depth": {"kind": "ValueMap", "unit": unit}},
    items,
    ReadFiles(
      _ReadDepth(
        scale, tuple(args.invalid or [0.0]), not (args.invalid or args.inverse)
      )
    ),
    summarize=functools.partial(_summarize, unit),
    warn=warn,
    notes=notes,
  )


@dataclasses.dataclass(frozen=True)
class _ReadDepth:
  """Reads the depth map of an image.

  Attributes:
    scale: what a code is multiplied by; None decides by its type.
    invalid: codes of invalid pixels.
    top_is_invalid: whether the greatest code of their type is another one.
  """

  scale: float | None
  invalid: Sequence[float]
  top_is_invalid: bool

  def __call__(self, item: Item, picture: Picture) -> Labels:
    path = arguments.partner(item, "depth map")
    codes = files.read_map(path, picture)
    if codes.ndim != 2 or codes.dtype.kind not in "uif":
      raise Rejected(
        f"{path.name} is {codes.dtype} {codes.shape}; expected numbers [h, w]"
      )
    scale = self.scale
    if scale is None:
      if codes.dtype == np.uint8:
        raise Rejected(
          f"{path.name} has 8 bits, too few for millimetres; expected 16, or"
          " --scale"
        )
      scale = 1.0 if codes.dtype.kind == "f" else _PNG_SCALE
    is_float, dtype = codes.dtype.kind == "f", codes.dtype
    invalid = np.array(self.invalid, np.float64)
    if self.top_is_invalid:
      limits = np.finfo(dtype) if is_float else np.iinfo(dtype)
      invalid = np.append(invalid, np.float64(limits.max))
    if is_float:  # such as 65.535 in 32 bits
      with np.errstate(over="ignore"):
        invalid = invalid.astype(dtype)
    valid = np.isfinite(codes) & (codes > 0)
    marked = valid & np.isin(codes, invalid)
    valid &= ~marked
    # Sums and scales of halves are more than halves can hold.
    codes = codes.astype(np.float64)
    if not valid.any():
      raise Rejected(
        f"{path.name} has no valid pixel: its values are"
        f" {files.describe(codes)}; expected some above 0, other than"
        f" {', '.join(f'{code:g}' for code in invalid)}"
      )
    labels = labels_of(np.where(valid, codes, 0) * scale, valid)
    return dataclasses.replace(
      labels, counts={**labels.counts, "marked": int(marked.sum())}
    )


def labels_of(values: np.ndarray, valid: np.ndarray) -> Labels:
  """The labels of a depth map [h, w], 0 where it is not valid."""
  values = values.astype(np.float64)
  counts = {
    "sum": float(values.sum()),
    "valid": int(valid.sum()),
    "pixels": valid.size,
  }
  top = values.max()
  at_top = int((values == top).sum())
  if at_top > _MAX_AT_TOP * counts["valid"] and (values[valid] < top).any():
    counts[f"{_TOP}{top:.6g}"] = at_top
  return Labels({"depth": {"values": values, "valid": valid}}, (), counts)


def _summarize(unit: str, counts: Mapping[str, float]) -> list[str]:
  mean = counts["sum"] / counts["valid"]
  line = (
    f"depth ({unit}): mean {mean:.4g},"
    f" {counts['valid'] / counts['pixels']:.1%} of the pixels are valid"
  )
  if marked := counts.get("marked"):
    line += f", {marked / counts['pixels']:.1%} hold a code of invalid ones"
  return [line]


def warn(counts: Mapping[str, float]) -> list[str]:
  """What looks wrong in the counts of `labels_of`."""
  tops = {
    name.removeprefix(_TOP): count
    for name, count in counts.items()
    if name.startswith(_TOP)
  }
  share = sum(tops.values()) / max(counts.get("valid", 0), 1)
  if share < _MAX_AT_TOP:
    return []
  common = max(tops, key=lambda top: tops[top])
  return [
    f"{share:.1%} of the valid pixels have the greatest value of their map,"
    f" most often {common}; is it a code for unknown or far ones? Then give"
    " --invalid."
  ]
