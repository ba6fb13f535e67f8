"""Stage: an image set of the embedded world."""

from must_jax.storage.path import Path

IMAGE_SIZE = 64


def render(directory: Path, name: str, counts: dict[str, int]) -> None:
  """Writes an image set of the world to `directory/NAME`.

  Splits that are finished are kept, one that a kill cut short is drawn anew.

  Args:
    directory: of the stage.
    name: of the set.
    counts: images by split.
  """
  from must_jax.lab.world import build

  build(directory, IMAGE_SIZE, {name: counts}, workers=1)
