"""Files of published weights: read without running any code in them.

`torch`, the extra `[convert]`, is imported only for its own files.
"""

import hashlib
import importlib
import importlib.metadata
import re
from typing import Any

import numpy as np

from must_jax.convert.conversion import ConversionError
from must_jax.storage import tensor_file
from must_jax.storage.path import Path

# What training programs call the weights in their checkpoints. Averaged ones
# come first: they are what their authors evaluate.
_WRAPPERS = (
  *("state_dict_ema", "model_ema", "ema_state_dict"),
  *("state_dict", "model_state_dict", "model_state", "model", "net"),
)
_TORCH_SUFFIXES = (".pt", ".pth", ".bin")
_INSTALL = "pip install 'must_jax[convert]'"


def read(path: Path) -> tuple[dict[str, np.ndarray], str]:
  """Reads all tensors of a file by name.

  Args:
    path: `.safetensors`, or `.pt` / `.pth` / `.bin` with a state dict, bare or
      in a checkpoint of training, under one of `_WRAPPERS`.

  Returns:
    The tensors, and where in the file they are; "" for the file as a whole.

  Raises:
    ConversionError: another kind of file, a damaged one, or one that would run
      code when unpickled.
    FileNotFoundError: there is no such file.
  """
  if not path.is_file():
    raise FileNotFoundError(f"There is no file of weights at {path}.")
  if path.suffix == ".safetensors":
    return read_with_metadata(path)[0], ""
  if path.suffix in _TORCH_SUFFIXES:
    return _read_torch(path)
  raise ConversionError(
    f"{path} ends in {path.suffix!r}; expected .safetensors, .pt or .pth."
  )


def read_with_metadata(
  path: Path,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Tensors and the free text of a `.safetensors` file; see `read`.

  Raises:
    FileNotFoundError: there is no such file.
    ConversionError: it is damaged, or of another format.
  """
  try:
    return tensor_file.read(path)
  except ValueError as error:
    raise ConversionError(str(error)) from None


def in_package(name: str) -> Path:
  """The file of weights that an installed package of pip has.

  Raises:
    ConversionError: the package is not installed.
  """
  try:
    files = importlib.metadata.files(name) or []
  except importlib.metadata.PackageNotFoundError:
    raise ConversionError(
      f"The weights are in the package {name!r}, which is not installed: pip"
      f" install {name}. Or name a file of weights after the kind."
    ) from None
  (found,) = (file for file in files if file.suffix in _TORCH_SUFFIXES)
  return Path(str(found.locate()))


def sha256(path: Path) -> str:
  """Digest of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _read_torch(path: Path) -> tuple[dict[str, np.ndarray], str]:
  torch = _import("torch")
  try:
    value = torch.load(str(path), map_location="cpu", weights_only=True)
  except Exception as error:  # torch raises many kinds
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code:
      raise ConversionError(
        f"{path} holds more than tensors, namely {code[1]}: pickled code, which"
        " is never run. Save `model.state_dict()` alone, or take a .safetensors"
        " file."
      ) from None
    reason = str(error).partition(". ")[0].strip().splitlines()[0]
    raise ConversionError(
      f"{path} cannot be read as PyTorch's tensors ({reason}). It may be"
      " truncated: compare its size with the published one. If it holds pickled"
      " code: that is never run."
    ) from None
  taken: list[str] = []
  left_out: list[str] = []
  while found := _wrappers(value):
    taken.append(found[0])
    left_out += found[1:]
    value = value[found[0]]
  if not isinstance(value, dict) or not all(
    isinstance(tensor, torch.Tensor) for tensor in value.values()
  ):
    raise ConversionError(
      f"{path} holds no state dict, a table of tensors by name, but"
      f" {_contents(value)}. Expected one, bare or under one of"
      f" {', '.join(_WRAPPERS)}; save `model.state_dict()`."
    )
  where = ".".join(taken)
  if left_out:
    where += f" (not {', '.join(left_out)}, which is there, too)"
  return {name: _numpy(tensor) for name, tensor in value.items()}, where


def _wrappers(value: Any) -> list[str]:
  """Names under which weights may lie, those to take first."""
  if not isinstance(value, dict):
    return []
  return [key for key in _WRAPPERS if isinstance(value.get(key), dict)]


def _contents(value: Any) -> str:
  if not isinstance(value, dict):
    return type(value).__name__
  entries = [f"{key} ({type(x).__name__})" for key, x in value.items()]
  more = f" and {len(entries) - 10:,} more" if len(entries) > 10 else ""
  return f"{', '.join(entries[:10]) or 'nothing'}{more}"


def _numpy(tensor: Any) -> np.ndarray:
  if tensor.is_floating_point():
    tensor = tensor.float()  # numpy has no bfloat16
  return tensor.numpy()


def _import(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError:
    raise ConversionError(
      f"Converting needs the package {name.partition('.')[0]!r}: {_INSTALL}"
    ) from None
