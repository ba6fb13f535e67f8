"""Class maps: a PNG of class ids for each image."""

import argparse
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from must_jax.importers import arguments, files, lists
from must_jax.importers.items import Item, Labels, Plan, ReadFiles
from must_jax.storage.image_files import Picture, Rejected
from must_jax.types import IGNORE_LABEL

HELP = "a PNG of class ids for each image"

_NO_CLASS = -1


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  arguments.add_pair_arguments(parser, "masks")
  parser.add_argument(
    "--classes",
    required=True,
    metavar="FILE[:KEY]",
    help="names in order: text, JSON, YAML or CSV",
  )
  parser.add_argument(
    "--first-id",
    type=int,
    default=0,
    metavar="N",
    help="id of the first class in the PNGs; default %(default)s. Where 1 is,"
    " 0 is mostly --ignore-id",
  )
  parser.add_argument(
    "--ignore-id",
    type=int,
    nargs="+",
    default=[],
    metavar="N",
    help="ids of the PNGs that mean unknown; 255 does unless --map has it",
  )
  parser.add_argument(
    "--map",
    metavar="FILE[:KEY]",
    help="JSON from ids of the PNGs to ids of --classes (null: unknown), an"
    " object or a list; default: they are the same",
  )


def plan(args: argparse.Namespace) -> Plan:
  """Pairs images and masks.

  Raises:
    ValueError: a directory or file is missing or does not fit.
  """
  classes = lists.load_classes(args.classes)
  table = _table(args, len(classes))
  items, notes = arguments.pair(args, "mask", (".png",))
  fields = {"mask": {"kind": "ClassMap", "classes": classes}}
  return Plan(
    fields,
    items,
    ReadFiles(_ReadMask(table)),
    warn=functools.partial(_warn, args.first_id == 0 and not args.map),
    notes=notes,
  )


@dataclasses.dataclass(frozen=True)
class _ReadMask:
  """Reads the class map of an image.

  Attributes:
    table: see `_table`.
  """

  table: np.ndarray

  def __call__(self, item: Item, picture: Picture) -> Labels:
    path = arguments.partner(item, "mask")
    ids, counts = files.read_ids(path, picture)
    mapped = self.table[ids]
    wrong = np.unique(ids[mapped == _NO_CLASS])
    if wrong.size:
      raise Rejected(
        f"{path.name} has class ids {wrong[:5].tolist()}; expected"
        f" {_ids(self.table)}. See --classes, --first-id, --ignore-id and --map"
      )
    zeros = int((ids == 0).any())
    return Labels(
      {"mask": {"classes": mapped.astype(np.uint8)}},
      (),
      {**counts, _ZEROS: zeros, _MASKS: 1},
    )


_ZEROS, _MASKS = "masks with id 0", "masks"


def _warn(from_zero: bool, counts: Mapping[str, float]) -> list[str]:
  """What looks wrong by the counts of `_ReadMask`.

  Args:
    from_zero: whether ids are taken to begin with 0.
    counts: summed over all images.
  """
  warnings = files.warn_of_palettes(counts)
  if from_zero and counts.get(_MASKS) and not counts[_ZEROS]:
    warnings.append(
      f"none of the {counts[_MASKS]:.0f} masks has the id 0; do ids begin with"
      " 1? Then give --first-id 1."
    )
  return warnings


def _table(args: argparse.Namespace, num_classes: int) -> np.ndarray:
  """New id of every id a PNG can hold, `_NO_CLASS` for those not allowed."""
  table = np.full(1 << 16, _NO_CLASS)
  table[IGNORE_LABEL] = IGNORE_LABEL
  if not 0 <= args.first_id <= len(table) - num_classes or (
    args.first_id and args.map
  ):
    raise ValueError(
      f"--first-id is {args.first_id}; expected 0 or more, and none with --map."
    )
  mapping: Mapping[int, int | None]
  mapping = {args.first_id + i: i for i in range(num_classes)}
  if args.map:
    mapping = _load_map(args.map, num_classes)
  for old, new in mapping.items():
    table[old] = IGNORE_LABEL if new is None else new
  for old in args.ignore_id:
    if not 0 <= old < len(table):
      raise ValueError(
        f"--ignore-id is {old}; expected an id from 0 to {len(table) - 1}."
      )
    table[old] = IGNORE_LABEL
  return table


def _load_map(text: str, num_classes: int) -> Mapping[int, int | None]:
  value = files.load_json(text)
  pairs: Sequence = ()
  if isinstance(value, list):
    pairs = list(enumerate(value))
  elif isinstance(value, dict):
    pairs = [(int(k) if k.isdecimal() else k, v) for k, v in value.items()]
  for old, new in pairs:
    fits = isinstance(old, int) and old < 1 << 16
    if not fits or not (new is None or new in range(num_classes)):
      raise ValueError(
        f"{text} maps {old!r} to {new!r}; expected an id from 0 to 65535 to"
        f" an id of --classes, 0 to {num_classes - 1}, or null."
      )
  if not pairs:
    raise ValueError(
      f'{text} maps nothing; expected a JSON object such as {{"0": 0, "1": 0}}'
      " or a list of new ids."
    )
  return dict(pairs)


def _ids(table: np.ndarray) -> str:
  ids = np.flatnonzero(table != _NO_CLASS).tolist()
  if len(ids) > 12:
    return f"{ids[:6]} to {ids[-3:]}"
  return str(ids)
