"""Surface normals: a colour PNG or an .npy array for each image.

The camera frame is x right, y down, z forward, so that surfaces that face the
camera have z < 0. A PNG of 8 or 16 bits holds n = rgb / max * 2 - 1, an .npy
array holds n [h, w, 3]. Pixels far from unit length are invalid; that covers
grey and black in a PNG and (0, 0, 0) in an array.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from must_jax.importers import arguments, files
from must_jax.importers.files import Picture, Rejected
from must_jax.importers.items import Item, Labels, Plan, ReadFiles

HELP = "a colour PNG or .npy of surface normals for each image"

# Lengths that are taken for 1: wide enough for codes averaged at edges; grey
# has length 0, black and white have 1.73.
_MIN_LENGTH, _MAX_LENGTH = 0.5, 1.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  arguments.add_pair_arguments(parser, "normals")
  parser.add_argument(
    "--flip-axes",
    default="",
    metavar="AXES",
    help="axes to negate, of xyz; yz converts from the frame of OpenGL",
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
  signs = tuple(-1.0 if a in args.flip_axes else 1.0 for a in "xyz")
  items, notes = arguments.pair(args, "normal map", files.MAP_SUFFIXES)
  return Plan(
    {"normals": {"kind": "VectorMap"}},
    items,
    ReadFiles(_ReadNormals(signs)),
    summarize=_summarize,
    notes=notes,
  )


@dataclasses.dataclass(frozen=True)
class _ReadNormals:
  """Reads the normals of an image.

  Attributes:
    signs: that x, y and z are multiplied by.
  """

  signs: Sequence[float]

  def __call__(self, item: Item, picture: Picture) -> Labels:
    path = arguments.partner(item, "normal map")
    codes = files.read_map(path, picture)
    is_png = path.suffix.lower() == ".png"
    if codes.shape[2:] != (3,) or codes.dtype.kind != ("u" if is_png else "f"):
      raise Rejected(
        f"{path.name} is {codes.dtype} {codes.shape}; expected an RGB PNG or"
        " floats [h, w, 3]"
      )
    vectors = codes.astype(np.float64)
    if is_png:
      vectors = vectors / np.iinfo(codes.dtype).max * 2 - 1
    length = np.linalg.norm(vectors, axis=-1)
    valid = (length >= _MIN_LENGTH) & (length <= _MAX_LENGTH)  # no nan is
    if not valid.any():
      raise Rejected(f"{path.name} has no vector of length 1")
    unit = np.zeros_like(vectors)
    unit[valid] = vectors[valid] / length[valid, None] * np.array(self.signs)
    counts = {
      "away": int((unit[..., 2] > 0).sum()),
      "valid": int(valid.sum()),
      "pixels": valid.size,
    }
    return Labels({"normals": {"vectors": unit, "valid": valid}}, (), counts)


def _summarize(counts: Mapping[str, float]) -> list[str]:
  away = counts["away"] / counts["valid"]
  lines = [
    f"normals: {counts['valid'] / counts['pixels']:.1%} of the pixels are"
    f" valid, {away:.1%} of these face away from the camera"
  ]
  if away > 0.5:
    lines.append(
      "warning: most normals have z > 0; here surfaces that face the camera"
      " have z < 0 (x right, y down, z forward). Check the frame of the data"
      " and give --flip-axes, such as yz for OpenGL's."
    )
  return lines
