"""A checkpoint as a folder for a model hub: `safetensors`, and its card.

DIR/README.md          the card
DIR/model.safetensors, DIR/config.json
DIR/signature.json     inputs, outputs and preprocessing
"""

from must_jax.export import card
from must_jax.export.formats import safetensors
from must_jax.export.formats.safetensors import (  # all but the card
  ANY_BATCH,
  ARTEFACT,
  REQUIRES,
  check,
)
from must_jax.export.program import ExportProgram
from must_jax.storage.path import Path, publish

__all__ = [
  "ANY_BATCH",
  "ARTEFACT",
  "REQUIRES",
  "check",
  "write",
]


def write(program: ExportProgram, directory: Path) -> None:
  """See `formats.Format`."""
  facts = card.collect(program.loaded.path)
  with publish(directory / "README.md") as file:
    file.write(card.render(facts).encode())
  safetensors.write_with(facts, program, directory)
