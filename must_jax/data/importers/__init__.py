"""`must-jax import`: datasets on disk become image sets.

Every importer is a module with `HELP`, `add_arguments(parser)` and
`plan(args) -> base.Plan`.
"""

import argparse
import sys

from must_jax.data.importers import (
  base,
  coco_json,
  depth,
  folder,
  masks,
  normals,
)

__all__ = ["IMPORTERS", "add_arguments", "run"]

IMPORTERS = {
  "coco": coco_json,
  "folder": folder,
  "masks": masks,
  "depth": depth,
  "normals": normals,
}


def add_arguments(subparsers: argparse._SubParsersAction) -> None:
  """Adds a command for each importer."""
  for name, module in IMPORTERS.items():
    parser = subparsers.add_parser(
      name, help=module.HELP, description=module.__doc__
    )
    module.add_arguments(parser)
    base.add_output_arguments(parser)
    parser.set_defaults(plan=module.plan)


def run(args: argparse.Namespace) -> int:
  """Imports what the arguments ask for.

  Returns:
    0, 1 if too many images were rejected, or 2 for an error of the user; then
    nothing was written.
  """
  try:
    base.write(args.plan(args), args)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1 if isinstance(error, base.TooManyRejected) else 2
  return 0
