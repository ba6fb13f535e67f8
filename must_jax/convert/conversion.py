"""Published weights become parameter trees of ours, one array at a time.

Ours is the list: for every array of our model a kind says which published
tensor it is and how that is laid out. So a missing, extra or mis-shaped tensor
is noticed by its name.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

Path = tuple[str, ...]  # ("params", "backbone", "conv1", "kernel")
# Our last part of a path -> the published one, as PyTorch names them.
TORCH_NAMES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}


class ConversionError(ValueError):
  """Weights that are not of the kind they are said to be."""


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A published tensor.

  Attributes:
    name: its key.
    to_ours: its values -> ours. By default kernels change from PyTorch's
      layout ([out, in, h, w] or [out, in]) to ours ([h, w, in, out], [in,
      out]), everything else stays.
  """

  name: str
  to_ours: Callable[[np.ndarray], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Kind:
  """A family of published weights.

  Attributes:
    name: on the command line.
    title: for people: model, training data.
    source: where the weights are published.
    licence: of the weights.
    make_config: weights -> config of the checkpoint: model, tasks with class
      names, image size and preprocessing. The weights may decide, for example
      the number of classes.
    find: path of an array of ours -> the published tensor.
    unused: patterns (`fnmatch`) of published tensors that have no place here.
  """

  name: str
  title: str
  source: str
  licence: str
  make_config: Callable[[Mapping[str, np.ndarray]], ConfigDict]
  find: Callable[[Path], Tensor]
  unused: tuple[str, ...] = ("*.num_batches_tracked",)


def torch_tensor(module: str, leaf: str) -> Tensor:
  """The tensor of a PyTorch module in the place of our array `leaf`."""
  return Tensor(f"{module}.{TORCH_NAMES[leaf]}")


def from_torch_layout(leaf: str, value: np.ndarray) -> np.ndarray:
  """PyTorch's layout to ours, see `Tensor.to_ours`."""
  if leaf != "kernel":
    return value
  if value.ndim == 4:
    return value.transpose(2, 3, 1, 0)
  return value.T


def convert(
  kind: Kind, weights: Mapping[str, np.ndarray], expected: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
  """Fills our tree with published weights.

  Args:
    kind: of the weights.
    weights: by published name.
    expected: our tree of arrays or shapes: {"params": ..., "batch_stats": ...}.

  Returns:
    Our tree as float32 numpy, and the names of published tensors that are
    unused on purpose.

  Raises:
    ConversionError: names every tensor that is missing, extra or of another
      shape.
  """
  problems, used = [], set()

  def fill(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    tensor = kind.find(path)
    used.add(tensor.name)
    if tensor.name not in weights:
      problems.append(f"missing: {tensor.name} (for {'/'.join(path)})")
      return None
    value = np.asarray(weights[tensor.name])
    if tensor.to_ours is not None:
      ours = tensor.to_ours(value)
    else:
      ours = from_torch_layout(path[-1], value)
    if ours.shape != shape:
      problems.append(
        f"shape: {tensor.name} {value.shape} gives {ours.shape};"
        f" {'/'.join(path)} is {shape}"
      )
      return None
    return np.ascontiguousarray(ours, np.float32)

  filled = {
    path: fill(path, tuple(array.shape))
    for path, array in traverse_util.flatten_dict(expected).items()
  }
  unused = []
  for name in sorted(set(weights) - used):
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in kind.unused):
      unused.append(name)
    else:
      problems.append(f"extra: {name} {tuple(np.shape(weights[name]))}")
  if problems:
    shown = "\n  ".join(problems[:20])
    more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
    raise ConversionError(
      f"These weights are not of the kind {kind.name!r} ({kind.title}):\n"
      f"  {shown}{more}\n`must-jax convert --list` shows all kinds."
    )
  return traverse_util.unflatten_dict(filled), unused
