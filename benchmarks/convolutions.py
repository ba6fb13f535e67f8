"""Times our convolutions and max pooling on a CPU beside XLA's.

    JAX_PLATFORMS=cpu python -m benchmarks.convolutions

Layers of an EfficientNet-Lite0 at 224 pixels (8 images) and of the small
student at 64 (16 images): output and both gradients, each program alone. Then
the gradient of a ResNet's max pooling. Both sides take turns; the shortest of
the rounds counts. On other devices both are the same program.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from must_jax.ops import convolution, pooling

ROUNDS = 3
LEAST_SECONDS = 0.05  # of a measurement; short programs run more than once


class Layer(NamedTuple):
  """A convolution; `groups` 0 is one for each channel."""

  images: int
  size: int
  channels: int
  features: int
  kernel: int
  stride: int
  groups: int = 1

  def __str__(self) -> str:
    kind = "" if self.groups else "depthwise "
    return (
      f"{kind}{self.kernel}x{self.kernel}/{self.stride},"
      f" {self.channels} to {self.features}, {self.images} maps of {self.size}"
    )


LAYERS = (
  Layer(8, 112, 32, 32, 3, 1, 0),
  Layer(8, 112, 96, 96, 3, 2, 0),
  Layer(8, 56, 144, 144, 5, 2, 0),
  Layer(8, 28, 240, 240, 5, 1, 0),
  Layer(8, 14, 672, 672, 5, 1, 0),
  Layer(8, 7, 1152, 1152, 5, 1, 0),
  Layer(8, 112, 16, 96, 1, 1),
  Layer(8, 28, 40, 240, 1, 1),
  Layer(8, 14, 480, 112, 1, 1),
  Layer(16, 16, 16, 32, 1, 2),
  Layer(16, 2, 128, 128, 3, 1),
)
# Maps that are pooled: images, pixels a side, channels.
POOLED = ((16, 32, 16), (8, 112, 64), (2, 320, 64))


def compile_parts(layer: Layer, seed: int = 0) -> dict[str, Callable[[], Any]]:
  """Programs of the output and of both gradients."""
  rng = np.random.default_rng(seed)
  groups = layer.groups or layer.channels
  pad = (layer.kernel - 1) // 2
  places = (layer.size - 1) // layer.stride + 1
  shapes = (
    (layer.images, layer.size, layer.size, layer.channels),
    (layer.kernel, layer.kernel, layer.channels // groups, layer.features),
    (layer.images, places, places, layer.features),
  )
  args = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]

  def output(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return convolution.conv_general_dilated(
      x,
      kernel,
      (layer.stride, layer.stride),
      [(pad, pad)] * 2,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups,
    )

  functions = {
    "output": lambda x, w, g: output(x, w),
    "input gradient": lambda x, w, g: jax.vjp(lambda x: output(x, w), x)[1](g),
    "kernel gradient": lambda x, w, g: jax.vjp(lambda w: output(x, w), w)[1](g),
  }

  def bind(function: Callable[..., Any]) -> Callable[[], Any]:
    compiled = jax.jit(function).lower(*args).compile()
    return lambda: compiled(*args)

  return {name: bind(function) for name, function in functions.items()}


def seconds(program: Callable[[], Any], calls: int) -> float:
  """Time of a call."""
  start = time.perf_counter()
  for _ in range(calls):
    result = program()
  jax.block_until_ready(result)
  return (time.perf_counter() - start) / calls


def compile_pooling(pool: Callable[..., Any], shape: tuple[int, ...]) -> Any:
  """A program of the gradient of a ResNet's max pooling of x [B, H, W, C]."""
  images, side, channels = shape
  x, g = (
    jnp.asarray(np.random.default_rng(seed).normal(size=size), jnp.float32)
    for seed, size in enumerate(
      ((images, side, side, channels), (images, side // 2, side // 2, channels))
    )
  )

  def gradient(x: jax.Array, g: jax.Array) -> jax.Array:
    pads = ((1, 1), (1, 1))
    _, pull = jax.vjp(lambda x: pool(x, (3, 3), (2, 2), pads), x)
    return pull(g)[0]

  compiled = jax.jit(gradient).lower(x, g).compile()
  return lambda: compiled(x, g)


def compare(name: str, ours: Any, theirs: Any) -> tuple[str, float, str]:
  """The figure of two programs that take turns."""
  pair = (ours, theirs)
  calls = []
  for program in pair:
    jax.block_until_ready(program())
    calls.append(1 + int(LEAST_SECONDS / seconds(program, 1)))
  found = [
    [seconds(p, n) for p, n in zip(pair, calls, strict=True)]
    for _ in range(ROUNDS)
  ]
  mine, its = (min(times) * 1e3 for times in zip(*found, strict=True))
  note = f"x, {its:.2f} ms to {mine:.2f} ms"
  return f"{name} over XLA's", its / mine, note


def run() -> list[tuple[str, float, str]]:
  """(name, value, unit or note) of each layer and part."""
  figures = []
  for layer in LAYERS:
    ours = compile_parts(layer)
    with convolution.plain():
      theirs = compile_parts(layer)
    figures += [
      compare(f"{layer}, {part}", ours[part], theirs[part]) for part in ours
    ]
  for shape in POOLED:
    name = "max pooling 3x3/2, {2}, {0} maps of {1}, gradient".format(*shape)
    pair = (compile_pooling(p, shape) for p in (pooling.max_pool, nn.max_pool))
    figures.append(compare(name, *pair))
  return figures


if __name__ == "__main__":
  for name, value, note in run():
    print(f"{name}: {value:.2f} {note}")
