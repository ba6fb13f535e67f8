"""Images in one folder per class, or without labels."""

import argparse
import pathlib

from must_jax.data.importers import base, files

HELP = "images in a folder per class, or unlabelled"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer."""
  parser.add_argument(
    "--images",
    type=pathlib.Path,
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
    help="names in order, a JSON list or one a line; default: the folders,"
    " sorted. Needed where a split lacks a class",
  )


def plan(args: argparse.Namespace) -> base.Plan:
  """Finds the images; the class is the first folder below `--images`.

  Raises:
    ValueError: no images, images outside of class folders, or folders that
      are no class.
  """
  images, notes = files.find_images(args.images)
  if args.unlabelled:
    items = [base.Item(key, path) for key, path in images.items()]
    return base.Plan(
      {}, items, lambda item, picture: base.Labels({}), notes=notes
    )
  stray = [str(path) for key, path in images.items() if "/" not in key]
  if stray:
    raise ValueError(
      f"{len(stray)} images lie in no class folder, such as {stray[0]};"
      f" expected {args.images}/CLASS/NAME. For images without classes give"
      " --unlabelled."
    )
  folders = sorted(
    path.name
    for path in args.images.iterdir()
    if path.is_dir() and not path.name.startswith(".")
  )
  classes = files.load_classes(args.classes) if args.classes else folders
  unknown = sorted(set(folders) - set(classes))
  if unknown:
    raise ValueError(
      f"Folders {unknown[:5]} of {args.images} are no class of {args.classes},"
      f" which lists {classes[:5]} and so on. Add or remove them."
    )
  class_of = {key: key.split("/")[0] for key in images}
  empty = sorted(set(classes) - set(class_of.values()))
  if empty:
    notes = [*notes, f"classes without an image: {empty}"]

  def read_labels(item: base.Item, picture: files.Picture) -> base.Labels:
    del picture
    return base.Labels({"label": {"classes": [item.label]}})

  items = [
    base.Item(key, path, classes.index(class_of[key]))
    for key, path in images.items()
  ]
  fields = {"label": {"kind": "ClassVector", "classes": classes}}
  return base.Plan(fields, items, read_labels, notes=notes)
