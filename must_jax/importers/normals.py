"""Surface normals: a colour PNG or an .npy array for each image.

The camera frame is x right, y down, z forward, so that surfaces that face the
camera have z < 0. A PNG of 8 or 16 bits, or an .npy array of such integers,
holds n = rgb / max * 2 - 1; an array of floats holds n [h, w, 3], or codes from
0 to --max-code. Pixels far from unit length are invalid; that covers grey and
black in a PNG and (0, 0, 0) in an array. So are transparent ones.
"""

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from must_jax.importers import arguments, files
from must_jax.importers.items import Item, Labels, Plan, ReadFiles
from must_jax.storage import orientation
from must_jax.storage.image_files import Picture, Rejected
from must_jax.storage.path import Path

HELP = "a colour PNG or .npy of surface normals for each image"

# Lengths that are taken for 1: wide enough for codes averaged at edges; grey
# has length 0, black and white have 1.73.
_MIN_LENGTH, _MAX_LENGTH = 0.5, 1.5
_UNIT_SLACK = 0.02  # of a length that was 1 before it was rounded to 8 bits


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  arguments.add_pair_arguments(parser, "normals")
  parser.add_argument(
    "--flip-axes",
    default="",
    metavar="AXES",
    help="axes to negate, of xyz; yz converts from the frame of OpenGL",
  )
  parser.add_argument(
    "--max-code",
    type=float,
    metavar="N",
    help="arrays of floats hold n = rgb / N * 2 - 1, with N such as 1 or 255;"
    " default: they hold n itself",
  )


def plan(args: argparse.Namespace) -> Plan:
  """Pairs images and normals.

  Raises:
    ValueError: a directory or file is missing or an option does not fit.
  """
  if not set(args.flip_axes) <= set("xyz"):
    raise ValueError(
      f"--flip-axes is {args.flip_axes!r}; expected letters of 'xyz'."
    )
  if args.max_code is not None and not 0 < args.max_code < math.inf:
    raise ValueError(f"--max-code is {args.max_code}; expected more than 0.")
  signs = tuple(-1.0 if a in args.flip_axes else 1.0 for a in "xyz")
  items, notes = arguments.pair(args, "normal map", files.MAP_SUFFIXES)
  return Plan(
    {"normals": {"kind": "VectorMap"}},
    items,
    ReadFiles(_ReadNormals(signs, args.max_code)),
    summarize=_summarize,
    notes=notes,
  )


@dataclasses.dataclass(frozen=True)
class _ReadNormals:
  """Reads the normals of an image.

  Attributes:
    signs: that x, y and z are multiplied by.
    max_code: of floats that are codes.
  """

  signs: Sequence[float]
  max_code: float | None

  def __call__(self, item: Item, picture: Picture) -> Labels:
    path = arguments.partner(item, "normal map")
    codes, turn, _ = files.read_label_map(path, picture)
    kind = codes.dtype.kind
    opaque = np.ones(codes.shape[:2], bool)
    if kind == "u" and codes.shape[2:] == (4,):
      codes, opaque = codes[..., :3], codes[..., 3] > 0
    if codes.shape[2:] != (3,) or kind not in "uf":
      raise Rejected(
        f"{path.name} is {codes.dtype} {codes.shape}; expected an RGB PNG or"
        " floats [h, w, 3]"
      )
    vectors = codes.astype(np.float64)
    max_code = np.iinfo(codes.dtype).max if kind == "u" else self.max_code
    if max_code is None:
      _check_vectors(path, vectors)
    else:
      vectors = vectors / max_code * 2 - 1
    vectors = orientation.turn_vectors(vectors, turn)
    length = np.linalg.norm(vectors, axis=-1)
    valid = (length >= _MIN_LENGTH) & (length <= _MAX_LENGTH)  # no nan is
    valid &= opaque
    if not valid.any():
      raise Rejected(
        f"{path.name} has no vector of length 1: lengths are"
        f" {files.describe(length)}, and {opaque.mean():.1%} are opaque"
      )
    unit = np.zeros_like(vectors)
    unit[valid] = vectors[valid] / length[valid, None] * np.array(self.signs)
    counts = {
      "away": int((unit[..., 2] > 0).sum()),
      "valid": int(valid.sum()),
      "pixels": valid.size,
    }
    return Labels({"normals": {"vectors": unit, "valid": valid}}, (), counts)


def _check_vectors(path: Path, vectors: np.ndarray) -> None:
  """Looks whether floats are codes.

  Raises:
    Rejected: none is negative, and more are of unit length as codes from 0 to 1
      or 255 than as they are.
  """
  found = vectors[np.isfinite(vectors).all(-1)]
  found = found[found.any(-1)]
  if not found.size or found.min() < 0:
    return

  def share(vectors: np.ndarray) -> float:
    lengths = np.linalg.norm(vectors, axis=-1)
    return float((np.abs(lengths - 1) < _UNIT_SLACK).mean())

  as_they_are = share(found)
  for max_code in (1, 255):
    as_codes = share(found / max_code * 2 - 1)
    if found.max() <= max_code and as_codes > as_they_are:
      raise Rejected(
        f"{path.name} has floats from {found.min():.3g} to {found.max():.3g};"
        f" {as_they_are:.0%} of its vectors have length 1, and"
        f" {as_codes:.0%} as codes: give --max-code {max_code}"
      )


def _summarize(counts: Mapping[str, float]) -> list[str]:
  away = counts["away"] / counts["valid"]
  return [
    f"normals: {counts['valid'] / counts['pixels']:.1%} of the pixels are"
    f" valid, {away:.1%} of these face away from the camera"
  ]
