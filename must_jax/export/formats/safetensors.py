"""A checkpoint's variables as one file of safetensors, which loads again.

  DIR/model.safetensors  the variables, by name
  DIR/config.json        what the checkpoint says of itself, and its lineage

`must_jax.load(DIR)` reads it, and so does whatever takes a checkpoint: it
labels, is started from, evaluated and exported. Other programs read the
variables; their names are those of docs/architecture.md.
"""

import json
from typing import Any

from must_jax import config as config_lib
from must_jax.convert import convert_command
from must_jax.export import card
from must_jax.export.program import ExportProgram
from must_jax.storage.path import Path, publish_json
from must_jax.train import checkpoint

ARTEFACT = checkpoint.WEIGHTS_FILE
REQUIRES = ("safetensors",)
ANY_BATCH = False


def write(program: ExportProgram, directory: Path) -> None:
  """See `formats.Format`; `config.json` comes last."""
  write_with(card.collect(program.loaded.path), program, directory)


def write_with(
  facts: card.Facts, program: ExportProgram, directory: Path
) -> None:
  """The same, where the lineage is known already."""
  path = program.loaded.path
  convert_command.to_safetensors(path, directory / checkpoint.WEIGHTS_FILE)
  described = checkpoint.describe_folder(
    path, lineage=facts.model.to_json(), run=facts.to_json()
  )
  publish_json(directory / checkpoint.CONFIG_FILE, described)


def check(program: ExportProgram, directory: Path) -> dict[str, Any]:
  """Whether the folder is the checkpoint, bit for bit, and its config.

  Raises:
    CorruptCheckpointError: a variable is not what it was.
  """
  checkpoint.load_variables(directory)
  before, after = (
    (
      checkpoint.fingerprint(path),
      json.loads(config_lib.to_json(checkpoint.read_config(path))),
    )
    for path in (program.loaded.path, directory)
  )
  exceeded = [
    name
    for name, a, b in zip(("digest", "config"), before, after, strict=True)
    if a != b
  ]
  return {
    "digest": after[0],
    "exceeded": exceeded,
    "passed": not exceeded,
  }
