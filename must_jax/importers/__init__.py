"""`must-jax import`: datasets on disk become image sets.

Every importer is a module with `HELP`, `add_arguments(parser)` and
`plan(args) -> items.Plan`.
"""

import argparse
import sys

from must_jax.importers import (
  aligned,
  arguments,
  coco_json,
  cvat,
  datasets,
  depth,
  folder,
  label_studio,
  masks,
  normals,
  tfds,
  tfrecords,
  voc,
  write,
  yolo,
)

__all__ = ["IMPORTERS", "add_arguments", "run"]

IMPORTERS = {
  "coco": coco_json,
  "voc": voc,
  "yolo": yolo,
  "cvat": cvat,
  "label_studio": label_studio,
  "folder": folder,
  "masks": masks,
  "depth": depth,
  "normals": normals,
  "tfds": tfds,
  "tfrecords": tfrecords,
}


def add_arguments(subparsers: argparse._SubParsersAction) -> None:
  """Adds a command for each importer and for each dataset with a name."""
  for name, module in IMPORTERS.items():
    parser = subparsers.add_parser(
      name, help=module.HELP, description=module.__doc__
    )
    module.add_arguments(parser)
    arguments.add_output_arguments(parser)
    parser.set_defaults(plan=module.plan)
  datasets.add_arguments(subparsers)


def run(args: argparse.Namespace) -> int:
  """Imports what the arguments ask for.

  Returns:
    0, 1 if too many images were rejected, or 2 for another error of the user;
    then no image set was written.
  """
  try:
    (aligned if args.labels_for else write).write(args)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1 if isinstance(error, write.TooManyRejected) else 2
  return 0
