"""Multi-Task Self-Training (Ghiasi et al., ICCV 2021) in JAX.

`must_jax.load(path)` loads a checkpoint with everything needed to predict.
Importing the package starts neither TensorFlow nor a JAX backend.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from must_jax.train.load import LoadedModel

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: str) -> "LoadedModel":
  """Loads a checkpoint: model, parameters, tasks and class names.

  Args:
    path: a run's workdir, its `checkpoints`, the directory of one step, or a
      folder of `must-jax export --format hub` or `safetensors`; local or in a
      bucket.

  Raises:
    FileNotFoundError: there is no checkpoint.
    CorruptCheckpointError: its bits are not those that were saved.
  """
  from must_jax.train import load as load_lib

  return load_lib.load(path)
