"""Depth maps of DIODE; `diode` describes its files."""

import argparse
import dataclasses
from typing import Any

import numpy as np

from must_jax.importers import arguments, depth, diode, files
from must_jax.importers.items import Item, Labels, Plan, ReadFiles
from must_jax.storage.image_files import Picture, Rejected

HELP = "depth maps of DIODE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  diode.add_arguments(parser)


def plan(args: argparse.Namespace) -> Plan:
  """Pairs images and depth maps.

  Raises:
    ValueError: a directory is missing or has no depth maps.
  """
  options = diode.pairs(args, "_depth")
  general = depth.plan(
    argparse.Namespace(**options, scale=None, invalid=None, inverse=False)
  )
  items = [_with_mask(item) for item in general.items]
  # Its notes tell of the files of other tasks.
  return dataclasses.replace(
    general, items=items, read=ReadFiles(_read_depth), notes=()
  )


def _with_mask(item: Any) -> Item:
  path = item.label
  if path is None:
    return item
  mask = path.with_name(f"{path.stem}_mask.npy")
  return dataclasses.replace(item, label=(path, mask))


def _read_depth(item: Item, picture: Picture) -> Labels:
  path, mask_path = arguments.partner(item, "depth map")
  values = files.read_map(path, picture)
  mask = files.read_map(mask_path, picture)
  for name, array in ((path.name, values), (mask_path.name, mask)):
    if array.ndim != 2 or array.dtype.kind not in "fuib":
      raise Rejected(
        f"{name} is {array.dtype} {array.shape}; expected numbers [h, w]"
      )
  valid = (mask > 0) & np.isfinite(values) & (values > 0)
  if not valid.any():
    raise Rejected(
      f"{path.name} has no valid pixel: its values are"
      f" {files.describe(values)}, those of its mask {files.describe(mask)}"
    )
  return depth.labels_of(np.where(valid, values, 0), valid)
