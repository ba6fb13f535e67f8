"""Files of safetensors: arrays by name, and JSON beside them."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from must_jax.storage.path import Path, PathLike, local_copy, publish


def read(path: PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Arrays by name, and the free text of a file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, or of another format.
  """
  with local_copy(path) as local:
    if not local.is_file():
      raise FileNotFoundError(f"There is no file of weights at {path}.")
    try:
      with safetensors.safe_open(str(local), framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}
    except (safetensors.SafetensorError, TypeError, OSError) as error:
      raise ValueError(
        f"{path} cannot be read as safetensors ({error}). It may be truncated:"
        " compare its size with the published one."
      ) from None


def write(
  path: PathLike,
  tensors: Mapping[str, np.ndarray],
  metadata: Mapping[str, Any],
) -> None:
  """Writes a file, whole or not at all.

  Args:
    path: of the file; its directory is there.
    tensors: by name.
    metadata: JSON values by name.
  """
  data = safetensors.numpy.save(
    {name: np.ascontiguousarray(value) for name, value in tensors.items()},
    metadata={name: json.dumps(value) for name, value in metadata.items()},
  )
  with publish(Path(path)) as file:
    file.write(data)
