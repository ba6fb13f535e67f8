"""Published weights become parameter trees of ours, one array at a time.

Ours is the list: for every array of our model a kind says which published
tensor it is and how that is laid out. So a missing, extra or mis-shaped tensor
is noticed by its name.
"""

import collections
import dataclasses
import fnmatch
from collections.abc import Callable, Collection, Mapping
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

_OF_TRAINING = ("n_averaged",)  # beside a model that PyTorch has averaged


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
    package: of pip, that holds a file of these weights; empty if none does.
  """

  name: str
  title: str
  source: str
  licence: str
  make_config: Callable[[Mapping[str, np.ndarray]], ConfigDict]
  find: Callable[[Path], Tensor]
  unused: tuple[str, ...] = ("*.num_batches_tracked",)
  package: str = ""


def torch_tensor(module: str, leaf: str) -> Tensor:
  """The tensor of a PyTorch module in the place of our array `leaf`."""
  return Tensor(f"{module}.{TORCH_NAMES[leaf]}")


def from_torch_layout(leaf: str, value: np.ndarray) -> np.ndarray:
  """PyTorch's layout to ours, see `Tensor.to_ours`.

  Args:
    leaf: name of our array; only kernels differ.
    value: [out, in, h, w] of a convolution, [out, in] of a linear layer.

  Returns:
    [h, w, in, out] or [in, out]; other arrays as they are.
  """
  if leaf != "kernel":
    return value
  if value.ndim == 4:
    return value.transpose(2, 3, 1, 0)
  return value.T


def match_names(
  weights: Mapping[str, np.ndarray], expected: Collection[str]
) -> tuple[dict[str, np.ndarray], str]:
  """Gives weights the names that a kind knows them by.

  Programs wrap models, and models are parts of others, so all names may begin
  with more than was published ("module.", "_orig_mod.", "model."), or lack
  their first part.

  Args:
    weights: by name in the file.
    expected: published names.

  Returns:
    The weights, and what was done; "" if the names are as published, or of
    another kind.

  Raises:
    ConversionError: two would get one name.
  """
  prefixes: dict[str, list[str]] = collections.defaultdict(list)
  for name in weights:
    parts = name.split(".")
    for i in range(len(parts)):
      before = ".".join([*parts[:i], ""])
      prefixes[name.removeprefix(before)].append(before)
  # How many names are as expected, once one prefix is removed, one added.
  counts: collections.Counter[tuple[str, str]] = collections.Counter()
  for name in expected:
    first = name.partition(".")[0] + "."
    for added in ("", first):
      for removed in prefixes[name.removeprefix(added)]:
        counts[removed, added] += 1
  (removed, added), count = max(
    counts.items(),
    key=lambda x: (x[1], -sum(map(len, x[0]))),
    default=(("", ""), 0),
  )
  if removed == added or count <= len(expected) / 2:
    return dict(weights), ""
  named = {
    added + name.removeprefix(removed) if name.startswith(removed) else name: x
    for name, x in weights.items()
  }
  if len(named) < len(weights):
    raise ConversionError(
      f"The weights have names with {removed!r} before them, and the same names"
      " without it; save the state dict of one model."
    )
  done = [
    *([f"{removed!r} removed"] if removed else []),
    *([f"{added!r} added"] if added else []),
  ]
  return named, f"names: {' and '.join(done)}, {count:,} tensors"


def check_finite(weights: Mapping[str, np.ndarray]) -> None:
  """Checks that published weights are numbers, whatever their shapes.

  Raises:
    ConversionError: some are not finite; it names them.
  """
  broken = {
    name: np.size(value) - np.isfinite(value).sum()
    for name, value in weights.items()
    if not np.isfinite(value).all()
  }
  if broken:
    shown = [
      f"{name}, {count:,} of {np.size(weights[name]):,}"
      for name, count in list(broken.items())[:10]
    ]
    raise ConversionError(
      f"{len(broken):,} of {len(weights):,} tensors have values that are not"
      f" finite: {'; '.join(shown)}. The training that made them diverged, or"
      " the file is damaged: take an earlier checkpoint, or copy it again."
    )


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
      shape, or has values that are not finite.
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
    patterns = (*kind.unused, *_OF_TRAINING)
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
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
  check_finite({name: weights[name] for name in sorted(used)})
  return traverse_util.unflatten_dict(filled), unused
