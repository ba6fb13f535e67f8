"""What the importers of DIODE share.

  ROOT/SPLIT/{indoors,outdoor}/scene_00011/scan_00118/
    NAME.png               1024 x 768
    NAME_depth.npy         [768, 1024, 1] metres
    NAME_depth_mask.npy    [768, 1024], 1 where the scanner saw something
    NAME_normal.npy        [768, 1024, 3], (0, 0, 0) where invalid

The normals come in archives of their own, to be unpacked over the others. Train
has 16,884 images outdoors and 8,574 indoors; of val the list in the development
kit has 392 and 220 and users of the data count 446 and 325. The paper's 17k are
the outdoor part of train.
"""

import argparse

from must_jax.storage.path import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds common options; `--split` is one of every importer."""
  parser.add_argument(
    "--root",
    type=Path,
    required=True,
    metavar="DIR",
    help="with the splits in it",
  )
  parser.add_argument(
    "--scenes",
    choices=("outdoor", "indoors", "all"),
    default="outdoor",
    help="default %(default)s, as in the paper",
  )


def pairs(args: argparse.Namespace, suffix: str) -> dict[str, object]:
  """Options for `arguments.pair`.

  Args:
    args: with the options of `add_arguments`.
    suffix: of the label's name, such as "_normal".
  """
  directory = args.root / args.split
  scenes = "" if args.scenes == "all" else f"{args.scenes}/"
  return {
    "images": directory,
    "label_directory": directory,
    "image_suffix": "",
    "label_suffix": suffix,
    "image_glob": f"{scenes}*.png",
  }
