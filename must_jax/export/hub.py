"""A checkpoint as a folder for a model hub.

  DIR/README.md          the card
  DIR/model.safetensors  the variables, by name
  DIR/config.json        what the checkpoint says of itself, and its lineage
  DIR/signature.json     inputs, outputs and preprocessing

`must_jax.load(DIR)` reads it, and so does whatever takes a checkpoint: it
labels, is started from, evaluated and exported.
"""

from must_jax.convert import convert_command
from must_jax.export import card
from must_jax.storage.path import Path, PathLike, publish, publish_json
from must_jax.train import checkpoint


def write_folder(
  path: PathLike, directory: PathLike, name: str = "", licence: str = ""
) -> None:
  """Writes all but the signature; `config.json` comes last.

  Args:
    path: of the checkpoint.
    directory: to write into; made if need be.
    name: of the model, on its card.
    licence: of the model, on its card.
  """
  directory = Path(directory)
  facts = card.collect(path)
  weights = directory / checkpoint.WEIGHTS_FILE
  convert_command.to_safetensors(Path(path), weights)
  with publish(directory / "README.md") as file:
    file.write(card.render(facts, name, licence).encode())
  described = checkpoint.describe_folder(
    path, lineage=facts.model.to_json(), run=facts.to_json()
  )
  publish_json(directory / checkpoint.CONFIG_FILE, described)
