"""Formats of `must-jax export`: a module each. To add one, name it here.

A module has `ARTEFACT`, the name of the file or folder that is loaded;
`REQUIRES`, packages that it needs to be written and checked; `ANY_BATCH`,
whether the number of images may stay open; `INSTALL`, a command that gets them
if it is not the extra of that name; and `write(program, directory)`.
`runner.py` is how its own runtime loads it. One that is the checkpoint itself
in another form is loaded by this package, and has `check(program, directory)`.
"""

import difflib
import importlib
import importlib.util
from typing import TYPE_CHECKING, Protocol

from must_jax.storage.path import Path

if TYPE_CHECKING:  # `NAMES` are asked for where nothing heavy is imported
  from must_jax.export.program import ExportProgram

NAMES = ("stablehlo", "savedmodel", "onnx", "safetensors", "hub")


class Format(Protocol):
  """What a module of a format offers."""

  ARTEFACT: str
  REQUIRES: tuple[str, ...]
  ANY_BATCH: bool

  def write(self, program: "ExportProgram", directory: Path) -> None:
    """Writes `ARTEFACT` into a directory on a disk."""


def get_format(name: str) -> Format:
  """The format of a name, if what it needs is installed.

  Raises:
    ValueError: there is none, or a package is missing.
  """
  if name not in NAMES:
    near = difflib.get_close_matches(name, NAMES, 1)
    raise ValueError(
      f"--format is {name!r}; expected one of {', '.join(NAMES)}."
      + (f" Did you mean {near[0]!r}?" if near else "")
    )
  module: Format = importlib.import_module(f"must_jax.export.formats.{name}")
  missing = [p for p in module.REQUIRES if not importlib.util.find_spec(p)]
  if missing:
    install = getattr(module, "INSTALL", f"pip install 'must_jax[{name}]'")
    raise ValueError(
      f"--format {name} needs {' and '.join(missing)}: {install}"
    )
  return module
