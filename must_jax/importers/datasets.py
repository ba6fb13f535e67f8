"""The datasets of the paper by name (Table 1), and companions of theirs.

A dataset is an importer with its options filled in, the splits and their sizes
as they were published, and how results on it are measured.
"""

import argparse
import dataclasses
import functools
import shlex
import types
from collections.abc import Mapping, Sequence
from typing import Any

from must_jax.importers import (
  ade20k,
  arguments,
  coco_json,
  diode_depth,
  diode_normals,
  folder,
  panoptic,
  tfds,
  tfrecords,
  voc_segmentation,
)
from must_jax.importers.items import Plan
from must_jax.storage.path import Path


@dataclasses.dataclass(frozen=True)
class Split:
  """A split.

  Attributes:
    num_images: as published; None if that is not settled.
    presets: {argument of the importer: value}.
  """

  num_images: int | None
  presets: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A dataset with a name.

  Attributes:
    name: of its command and its image set.
    task: that it has labels for.
    importer: a module, see `importers`.
    options: of its command as on a command line, with the published names of
      the files of the first split; --split and --out come on top.
    splits: {name: split}.
    protocol: how the paper uses it, and what is measured.
    source: where its files come from.
    licence: or where it can be read.
  """

  name: str
  task: str
  importer: types.ModuleType
  options: str
  splits: Mapping[str, Split]
  protocol: str
  source: str
  licence: str

  def command(self, split: str, out: str) -> str:
    """The import of a split, with the published names of its files."""
    # Where files are named for a split, the others' names are alike.
    options = self.options.replace(next(iter(self.splits)), split)
    return (
      f"must-jax import {self.name} --split {split} --out {shlex.quote(out)}"
      f" {options}"
    )


def _tfds(num_images: int, *names: str) -> Split:
  return Split(num_images, {"dataset": names})


_COCO_LICENCE = (
  "annotations CC BY 4.0, images see https://cocodataset.org/#termsofuse"
)
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
_DIODE = "https://diode-dataset.org"

_DATASETS = (
  Dataset(
    "imagenet",
    "classification",
    tfds,
    "--download",
    {
      "train": _tfds(1_281_167, "imagenet2012:train"),
      "validation": _tfds(50_000, "imagenet2012:validation"),
    },
    "Teacher of classification, and images to label; top-1 accuracy.",
    "ILSVRC2012_img_{train,val}.tar of https://image-net.org, by hand",
    "see https://image-net.org/download",
  ),
  Dataset(
    "objects365",
    "detection",
    coco_json,
    "--annotations objects365_train.json --images train",
    {"train": Split(608_606), "val": Split(30_000)},
    "Teacher of detection; COCO AP of 365 classes. The paper's 600k images are"
    " version 1.",
    "https://www.objects365.org",
    "see https://www.objects365.org",
  ),
  Dataset(
    "coco_panoptic",
    "segmentation",
    panoptic,
    "--annotations panoptic_train2017.json"
    " --masks panoptic_train2017 --images train2017",
    {"train": Split(118_287), "val": Split(5_000)},
    "Teacher of segmentation; mean IoU of 133 classes, 80 things and 53 kinds"
    " of stuff.",
    "train2017, val2017 and panoptic annotations of https://cocodataset.org",
    _COCO_LICENCE,
  ),
  Dataset(
    "coco_detection",
    "detection",
    coco_json,
    "--annotations instances_train2017.json --images train2017",
    {"train": Split(118_287), "val": Split(5_000)},
    "Not in the paper; COCO AP of 80 classes.",
    "train2017, val2017 and their annotations of https://cocodataset.org",
    _COCO_LICENCE,
  ),
  Dataset(
    "coco_unlabeled",
    "none",
    folder,
    "--images unlabeled2017",
    {"train": Split(123_403, {"unlabelled": True})},
    "Not in the paper; images to label.",
    "unlabeled2017 of https://cocodataset.org",
    "see https://cocodataset.org/#termsofuse",
  ),
  Dataset(
    "jft",
    "classification",
    tfrecords,
    "--records 'jft/train-*' --classes jft/classes.txt",
    {"train": Split(None)},
    "Images to label, with several classes each; the paper has 300M.",
    "not public; any TFRecord files of the same layout",
    "",
  ),
  Dataset(
    "cifar100",
    "classification",
    tfds,
    "--download",
    {
      "train": _tfds(50_000, "cifar100:train"),
      "test": _tfds(10_000, "cifar100:test"),
    },
    "Fine-tune on train; top-1 accuracy on test.",
    "https://www.cs.toronto.edu/~kriz/cifar.html, by TFDS",
    "see https://www.cs.toronto.edu/~kriz/cifar.html",
  ),
  Dataset(
    "voc_detection",
    "detection",
    tfds,
    "--download",
    {
      "trainval": _tfds(
        16_551, "voc/2007:train+validation", "voc/2012:train+validation"
      ),
      "test": _tfds(4_952, "voc/2007:test"),
    },
    "Fine-tune on trainval of 2007 and 2012; AP50 on test of 2007, in which"
    " difficult objects count neither way.",
    f"{_VOC}, by TFDS",
    f"see {_VOC}",
  ),
  Dataset(
    "voc_segmentation",
    "segmentation",
    voc_segmentation,
    "--root VOCdevkit/VOC2012",
    {
      "train": Split(1_464),
      "val": Split(1_449),
      "trainval": Split(2_913),
    },
    "Fine-tune on train; mean IoU of 21 classes on val.",
    f"VOCtrainval_11-May-2012.tar of {_VOC}/voc2012",
    f"see {_VOC}",
  ),
  Dataset(
    "nyu_depth",
    "depth",
    tfds,
    "--download",
    {
      "train": _tfds(47_584, "nyu_depth_v2:train"),
      "test": _tfds(654, "nyu_depth_v2:validation"),
    },
    "Fine-tune on train; delta < 1.25 on test in Eigen's crop, metres up to"
    " 10.",
    "the copy of FastDepth, by TFDS",
    "see https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html",
  ),
  Dataset(
    "ade20k",
    "segmentation",
    ade20k,
    "--root ADEChallengeData2016",
    {"training": Split(20_210), "validation": Split(2_000)},
    "Fine-tune on training; mean IoU of 150 classes on validation.",
    "ADEChallengeData2016.zip of http://sceneparsing.csail.mit.edu",
    "see https://ade20k.csail.mit.edu",
  ),
  Dataset(
    "diode_normals",
    "normals",
    diode_normals,
    "--root diode",
    {"train": Split(16_884), "val": Split(None)},
    "Fine-tune on the outdoor part of train; pixels within 11.25 degrees on"
    " that of val (the paper does not name its measure).",
    f"train, val, train_normals and val_normals of {_DIODE}",
    f"see {_DIODE}",
  ),
  Dataset(
    "diode_depth",
    "depth",
    diode_depth,
    "--root diode",
    {"train": Split(16_884), "val": Split(None)},
    "Not in the paper; delta < 1.25.",
    f"train and val of {_DIODE}",
    f"see {_DIODE}",
  ),
)
DATASETS = {dataset.name: dataset for dataset in _DATASETS}

# How labels of a kind of task come in, where the dataset has no name here.
_FORMATS = {
  "classification": "folder --images DIR",
  "detection": "coco --annotations FILE --images DIR",
  "segmentation": "masks --images DIR --masks DIR --classes FILE",
  "depth": "depth --images DIR --depths DIR",
  "normals": "normals --images DIR --normals DIR",
}


def import_command(out: str, split: str, kinds: Sequence[str] = ()) -> str:
  """The command that imports a split; its dataset is known by its place.

  Args:
    out: directory of the image set.
    split: of it.
    kinds: of tasks that shall have labels there.
  """
  name = Path(out).name
  if name in DATASETS and split in DATASETS[name].splits:
    return DATASETS[name].command(split, out)
  known = [_FORMATS[kind] for kind in kinds if kind in _FORMATS]
  importer = known[0] if known else "folder --unlabelled --images DIR"
  where = shlex.join(["--name", name, "--split", split, "--out", out])
  return f"must-jax import {importer} {where}"


def add_arguments(subparsers: argparse._SubParsersAction) -> None:
  """Adds a command for each dataset: its importer with options filled in."""
  for dataset in DATASETS.values():
    parser = subparsers.add_parser(
      dataset.name,
      help=f"{dataset.task}: {_sizes(dataset)}",
      description=f"{dataset.protocol} Files: {dataset.source}.",
    )
    dataset.importer.add_arguments(parser)
    arguments.add_output_arguments(
      parser,
      name=dataset.name,
      licence=dataset.licence,
      splits=list(dataset.splits),
    )
    presets = {name for s in dataset.splits.values() for name in s.presets}
    for action in parser._actions:
      if action.dest in presets:
        action.required = False
    parser.set_defaults(plan=functools.partial(_plan, dataset))


def print_list() -> None:
  """Prints a table of all datasets."""
  rows = [("dataset", "task", "images by split", "options")]
  rows += [
    (dataset.name, dataset.task, _sizes(dataset), dataset.options)
    for dataset in DATASETS.values()
  ]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    cells = zip(row, widths, strict=True)
    print("  ".join(cell.ljust(width) for cell, width in cells).rstrip())
  print("\nmust-jax import DATASET --split SPLIT --out DIR OPTIONS")


def _sizes(dataset: Dataset) -> str:
  return ", ".join(
    name if split.num_images is None else f"{name} {split.num_images:,}"
    for name, split in dataset.splits.items()
  )


def _plan(dataset: Dataset, args: argparse.Namespace) -> Plan:
  """The importer's plan, with a note if its size is not the published one."""
  split = dataset.splits[args.split]
  for name, value in split.presets.items():
    if not getattr(args, name):
      setattr(args, name, value)
  plan = dataset.importer.plan(args)
  found = plan.num_images
  if found is None and not plan.shard_per_item:
    found = len(plan.items)
  if None in (found, split.num_images) or found == split.num_images:
    return plan
  note = (
    f"{found:,} images found; {dataset.name} was published with"
    f" {split.num_images:,} in {args.split}"
  )
  return dataclasses.replace(plan, notes=[*plan.notes, note])
