"""Images in one folder per class, or without labels."""

import argparse

from must_jax.importers import files, lists
from must_jax.importers.items import Item, Labels, Plan, ReadFiles
from must_jax.importers.names import nfc
from must_jax.storage.image_files import Picture
from must_jax.storage.path import Path

HELP = "images in a folder per class, or unlabelled"

_SPLITS = frozenset(
  {
    *("train", "training", "val", "valid", "validation", "eval", "dev"),
    *("test", "testing", "trainval", "minival"),
  }
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  parser.add_argument(
    "--images",
    type=Path,
    required=True,
    metavar="DIR",
    help="DIR/CLASS/... of JPEG, PNG or uint8 .npy",
  )
  labels = parser.add_mutually_exclusive_group()
  labels.add_argument(
    "--unlabelled",
    action="store_true",
    help="all images below DIR, without classes",
  )
  labels.add_argument(
    "--classes",
    metavar="FILE[:KEY]",
    help="names in order: text, JSON, YAML or CSV; default: the folders,"
    " sorted. Needed where a split lacks a class",
  )


def plan(args: argparse.Namespace) -> Plan:
  """Finds the images; the class is the first folder below `--images`.

  Raises:
    ValueError: no images, images outside of class folders, or folders that
      are no class.
  """
  images, notes = files.find_images(args.images)
  if args.unlabelled:
    items = [Item(key, path) for key, path in images.items()]
    return Plan({}, items, ReadFiles(_read_nothing), notes=notes)
  stray = [str(path) for key, path in images.items() if "/" not in key]
  if stray:
    raise ValueError(
      f"{len(stray)} images lie in no class folder, such as {stray[0]};"
      f" expected {args.images}/CLASS/NAME. For images without classes give"
      " --unlabelled."
    )
  names = sorted(
    nfc(path.name)
    for path in args.images.iterdir()
    if path.is_dir() and not files.in_system_folder(path.name)
  )
  folders = [name for name in names if not name.startswith(".")]
  hidden = [name for name in names if name.startswith(".")]
  if hidden:  # one may be meant as a class
    notes.append(
      f"hidden folders, which are no classes: {len(hidden)}, as {hidden[0]}"
    )
  if not args.classes and {name.lower() for name in folders} <= _SPLITS:
    raise ValueError(
      f"{args.images} has the folders {folders}, which are splits, not classes;"
      f" expected --images {args.images}/{folders[0]}, and so on for each"
      " --split. If they are classes, list them in a file and give --classes."
    )
  classes = lists.load_classes(args.classes) if args.classes else folders
  unknown = sorted(set(folders) - set(classes))
  if unknown:
    raise ValueError(
      f"Folders {unknown[:5]} of {args.images} are no class of {args.classes},"
      f" which lists {classes[:5]} and so on. Add or remove them."
    )
  class_of = {key: key.split("/")[0] for key in images}
  items = [
    Item(key, path, classes.index(class_of[key]))
    for key, path in images.items()
  ]
  fields = {"label": {"kind": "ClassVector", "classes": classes}}
  return Plan(fields, items, ReadFiles(_read_class), notes=notes)


def _read_nothing(item: Item, picture: Picture) -> Labels:
  del item, picture
  return Labels({})


def _read_class(item: Item, picture: Picture) -> Labels:
  del picture
  return Labels({"label": {"classes": [item.label]}})
