"""Class maps of ADE20K, as in the scene parsing benchmark.

  ROOT (ADEChallengeData2016)
    images/SPLIT/ADE_train_00000001.jpg
    annotations/SPLIT/ADE_train_00000001.png   grey PNG of ids
    objectInfo150.txt   tab separated: Idx, Ratio, Train, Val, Name

Ids 1 to 150 become classes 0 to 149, named in full as in the list ("building,
edifice"); 0 is whatever else there is and becomes unknown. There are 20,210
images in training and 2,000 in validation (sceneparsing.csail.mit.edu).
"""

import argparse

from must_jax.importers import arguments, files
from must_jax.importers.items import Plan, ReadFiles
from must_jax.importers.voc_segmentation import ReadMask
from must_jax.storage.path import Path
from must_jax.types import IGNORE_LABEL

HELP = "class maps of ADE20K"

_NAMES_FILE = "objectInfo150.txt"
_OTHER = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer; `--split` is one of every importer."""
  parser.add_argument(
    "--root",
    type=Path,
    required=True,
    metavar="DIR",
    help=f"ADEChallengeData2016, with {_NAMES_FILE} in it or beside it",
  )


def plan(args: argparse.Namespace) -> Plan:
  """Pairs the images of a split with their masks.

  Raises:
    ValueError: a file or directory is missing or has another format.
  """
  classes = _class_names(args.root)
  pairs = argparse.Namespace(
    images=args.root / "images" / args.split,
    label_directory=args.root / "annotations" / args.split,
    image_suffix="",
    label_suffix="",
    image_glob="*.jpg",
  )
  items, notes = arguments.pair(pairs, "mask", (".png",))
  class_of = {_OTHER: IGNORE_LABEL}
  class_of |= {i + 1: i for i in range(len(classes))}
  fields = {"mask": {"kind": "ClassMap", "classes": classes}}
  return Plan(
    fields,
    items,
    ReadFiles(ReadMask(class_of)),
    warn=files.warn_of_palettes,
    notes=notes,
  )


def _class_names(root: Path) -> list[str]:
  paths = [root / _NAMES_FILE, root.parent / _NAMES_FILE]
  path = next((path for path in paths if path.exists()), None)
  if path is None:
    raise ValueError(
      f"There is no {_NAMES_FILE} in {root} or beside it; expected the list of"
      " classes that comes with the dataset."
    )
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("\t")] for line in lines]
    column = rows[0].index("Name")
    ids, names = zip(
      *((int(row[0]), row[column]) for row in rows[1:] if any(row)),
      strict=True,
    )
  except (OSError, ValueError, IndexError) as error:
    raise ValueError(
      f"{path} cannot be read ({error}); expected columns Idx to Name, parted"
      " by tabs."
    ) from None
  if ids != tuple(range(1, len(ids) + 1)):
    raise ValueError(
      f"{path} has ids {ids[:5]} and so on; expected 1, 2, ... in order."
    )
  return list(names)
