"""Weights for parity tests that need not be stored: drawn from their names.

The oracle's environment (with torch) and the tests (without) draw the same.
"""

import zlib

import numpy as np


def make_weights(
  shapes: dict[str, tuple[int, ...]], gain: float = 2.0
) -> dict[str, np.ndarray]:
  """Draws every tensor of a PyTorch state dict.

  Args:
    shapes: name -> shape.
    gain: of kernels. By default He's, at which a deep network with gates is so
      chaotic that its float32 and float64 outputs have nothing in common.

  Returns:
    name -> float32 array: normal with variance gain / fan-in for two and more
    dimensions, scales of norms and variances in .5 to 1.5, other vectors small.
    Scalars, which count batches, are 0.
  """
  return {
    name: _draw(name, tuple(shape), gain) for name, shape in shapes.items()
  }


def _draw(name: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  if not shape:
    return np.zeros(shape, np.float32)
  if len(shape) == 1 and name.endswith(("weight", "running_var")):
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)
  fan_in = np.prod(shape[1:])
  std = 0.1 if len(shape) == 1 else np.sqrt(gain / fan_in)
  return (std * rng.normal(size=shape)).astype(np.float32)


def sample(level: str, x: np.ndarray) -> np.ndarray:
  """What golden files keep of features [B, h, w, C]: some cells, 8 channels."""
  stride = {"2": 4, "3": 2}.get(level, 1)
  return x[:, ::stride, ::stride, :: x.shape[-1] // 8]
