"""Class maps of PASCAL VOC 2012.

  ROOT (VOCdevkit/VOC2012)
    ImageSets/Segmentation/SPLIT.txt   ids, one on each line
    JPEGImages/ID.jpg
    SegmentationClass/ID.png           palette PNG, its indices are class ids

21 classes, of which 0 is the background; 255 is void (edges of objects and
what is hard to tell) and becomes unknown. There are 1,464 images in train,
1,449 in val and 2,913 in trainval (the development kit). The paper trains on
train and tests on val.
"""

import argparse
import dataclasses
from collections.abc import Mapping

import numpy as np

from must_jax.importers import arguments, files, lists
from must_jax.importers.items import Item, Labels, Plan, ReadFiles
from must_jax.storage.image_files import Picture, Rejected
from must_jax.storage.path import Path
from must_jax.types import IGNORE_LABEL

HELP = "class maps of PASCAL VOC 2012"
CLASSES = (
  "background",
  "aeroplane",
  "bicycle",
  "bird",
  "boat",
  "bottle",
  "bus",
  "car",
  "cat",
  "chair",
  "cow",
  "diningtable",
  "dog",
  "horse",
  "motorbike",
  "person",
  "pottedplant",
  "sheep",
  "sofa",
  "train",
  "tvmonitor",
)

_VOID = 255


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of this importer; `--split` is one of every importer."""
  parser.add_argument(
    "--root",
    type=Path,
    required=True,
    metavar="DIR",
    help="VOCdevkit/VOC2012, with ImageSets, JPEGImages and SegmentationClass",
  )


def plan(args: argparse.Namespace) -> Plan:
  """Pairs the images of a split with their masks.

  Raises:
    ValueError: a file or directory is missing or has another format.
  """
  root = args.root
  images, _ = files.find_images(root / "JPEGImages")
  directory = root / "SegmentationClass"
  found, _ = files.find_files(directory, (".png",))
  masks = {files.key_of(path): directory / path for path in found}
  ids = lists.read_ids(
    root / "ImageSets" / "Segmentation" / f"{args.split}.txt",
    images.keys() | masks.keys(),
  )
  items = [
    Item(
      key,
      images.get(key, root / "JPEGImages" / f"{key}.jpg"),
      masks.get(key),
    )
    for key in ids
  ]
  read_mask = ReadMask(
    {i: i for i in range(len(CLASSES))} | {_VOID: IGNORE_LABEL}
  )
  fields = {"mask": {"kind": "ClassMap", "classes": list(CLASSES)}}
  return Plan(fields, items, ReadFiles(read_mask), warn=files.warn_of_palettes)


@dataclasses.dataclass(frozen=True)
class ReadMask:
  """Reads a PNG of class ids.

  Attributes:
    class_of: classes by the ids that there may be.
  """

  class_of: Mapping[int, int]

  def __call__(self, item: Item, picture: Picture) -> Labels:
    """The class map of an image.

    Raises:
      Rejected: the mask is missing, broken, or of another image.
    """
    path = arguments.partner(item, "mask")
    ids, counts = files.read_ids(path, picture)
    return class_map(path, ids, self.class_of, counts)


def class_map(
  path: Path,
  ids: np.ndarray,
  class_of: Mapping[int, int],
  counts: Mapping[str, float] | None = None,
) -> Labels:
  """Labels of a map of ids.

  Args:
    path: where the ids come from, for messages.
    ids: integers [h, w].
    class_of: classes by the ids that there may be.
    counts: of the labels.

  Raises:
    Rejected: an id of no class.
  """
  known = np.array(sorted(class_of))
  places = np.searchsorted(known, ids).clip(max=len(known) - 1)
  strange = np.unique(ids[known[places] != ids])
  if strange.size:
    raise Rejected(
      f"{path.name} has ids {strange[:5].tolist()} of no class; there are"
      f" {len(known)}, {known[:3].tolist()} to {known[-3:].tolist()}"
    )
  classes = np.array([class_of[i] for i in known.tolist()], np.uint8)
  return Labels({"mask": {"classes": classes[places]}}, (), counts or {})
