"""Max pooling of batches of images, whose gradient is fast on a CPU, too.

There XLA asks for the place of each maximum one window at a time, which takes
ten times as long as the pooling. In programs for a CPU the gradient is written
with slices of all windows at once. On other platforms it is XLA's.

Legend: B images, [H, W] input and [h, w] output pixels, C channels.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

_Pairs = tuple[tuple[int, int], ...]


def max_pool(
  x: jax.Array,
  window: Sequence[int],
  strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
) -> jax.Array:
  """`nn.max_pool`; differentiable once, and in reverse only.

  Args:
    x: [B, H, W, C].
    window: rows and columns.
    strides: input pixels from one window to the next.
    padding: (before, after) pixels by rows and columns, not negative, that are
      never a maximum; or "SAME", "VALID".

  Returns:
    [B, h, w, C]. Of equal maxima the first one has the gradient.
  """
  if isinstance(padding, str):
    padding = jax.lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
  pairs = tuple((int(before), int(after)) for before, after in padding)
  return _pool(x, tuple(window), tuple(strides), pairs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _pool(
  x: jax.Array, window: tuple[int, ...], strides: tuple[int, ...], pads: _Pairs
) -> jax.Array:
  return nn.max_pool(x, window, strides, pads)


def _forward(
  x: jax.Array, window: tuple[int, ...], strides: tuple[int, ...], pads: _Pairs
) -> tuple[jax.Array, jax.Array]:
  return _pool(x, window, strides, pads), x


def _backward(
  window: tuple[int, ...],
  strides: tuple[int, ...],
  pads: _Pairs,
  x: jax.Array,
  g: jax.Array,
) -> tuple[jax.Array]:
  settings = {"window": window, "strides": strides, "pads": pads}
  return (_gradient_p.bind(x, g, **settings),)


_pool.defvjp(_forward, _backward)


# --- The gradient of x [B, H, W, C] for that of the output, g [B, h, w, C].


def _of_xla(
  x: jax.Array,
  g: jax.Array,
  *,
  window: tuple[int, ...],
  strides: tuple[int, ...],
  pads: _Pairs,
) -> jax.Array:
  pool = functools.partial(
    nn.max_pool, window_shape=window, strides=strides, padding=pads
  )
  return jax.vjp(pool, x)[1](g)[0]


def _by_slices(
  x: jax.Array,
  g: jax.Array,
  *,
  window: tuple[int, ...],
  strides: tuple[int, ...],
  pads: _Pairs,
) -> jax.Array:
  places = _first_maxima(x, g.shape[1:3], window, strides, pads)
  # The padded input in blocks of as many pixels as a stride has. What windows
  # begin in a block, and in those before it, are the ones that reach a pixel.
  blocks = [
    -(-(before + size) // stride)
    for (before, _), size, stride in zip(
      pads, x.shape[1:3], strides, strict=True
    )
  ]
  reach = [-(-k // s) - 1 for k, s in zip(window, strides, strict=True)]
  around = [
    (far, count - size, 0)
    for far, count, size in zip(reach, blocks, g.shape[1:3], strict=True)
  ]
  around = [(0, 0, 0), *around, (0, 0, 0)]
  g = jax.lax.pad(g, jnp.zeros((), g.dtype), around)
  places = jax.lax.pad(places, jnp.full((), -1, places.dtype), around)

  def at(row: int, column: int) -> jax.Array:
    """What the pixels at a place of their blocks get, [B, rows, columns, C]."""
    total = jnp.zeros((), jnp.promote_types(g.dtype, jnp.float32))
    for i, j in itertools.product(
      range(row, window[0], strides[0]), range(column, window[1], strides[1])
    ):
      first = reach[0] - i // strides[0], reach[1] - j // strides[1]
      rows, columns = (
        slice(start, start + count)
        for start, count in zip(first, blocks, strict=True)
      )
      is_here = places[:, rows, columns] == i * window[1] + j
      total += jnp.where(is_here, g[:, rows, columns], 0)
    return jnp.broadcast_to(total, (x.shape[0], *blocks, x.shape[3]))

  pixels = jnp.stack(
    [
      jnp.stack([at(row, column) for column in range(strides[1])], 3)
      for row in range(strides[0])
    ],
    2,
  )
  sides = (n * s for n, s in zip(blocks, strides, strict=True))
  pixels = pixels.reshape(x.shape[0], *sides, x.shape[3])
  rows, columns = (
    slice(before, before + size)
    for (before, _), size in zip(pads, x.shape[1:3], strict=True)
  )
  return pixels[:, rows, columns].astype(x.dtype)


def _first_maxima(
  x: jax.Array,
  size: Sequence[int],
  window: tuple[int, ...],
  strides: tuple[int, ...],
  pads: _Pairs,
) -> jax.Array:
  """Which pixel of its window each maximum is, int32 [B, h, w, C]."""
  lasts = [(n - 1) * s for n, s in zip(size, strides, strict=True)]
  around = [
    (before, last + k - before - n, 0)
    for (before, _), last, k, n in zip(
      pads, lasts, window, x.shape[1:3], strict=True
    )
  ]
  lowest = jnp.full((), -jnp.inf, x.dtype)
  x = jax.lax.pad(x, lowest, [(0, 0, 0), *around, (0, 0, 0)])
  best, places = lowest, jnp.zeros((), jnp.int32)
  for number, (row, column) in enumerate(
    itertools.product(*map(range, window))
  ):
    pixels = x[
      :,
      row : row + lasts[0] + 1 : strides[0],
      column : column + lasts[1] + 1 : strides[1],
    ]
    is_more = pixels > best
    best = jnp.where(is_more, pixels, best)
    places = jnp.where(is_more, number, places)
  return places


def _batch(
  args: Sequence[jax.Array], axes: Sequence[int | None], **settings: Any
) -> tuple[jax.Array, int]:
  """`jax.vmap`: more images."""
  size = next(
    x.shape[axis]
    for x, axis in zip(args, axes, strict=True)
    if axis is not None
  )
  x, g = (
    jnp.broadcast_to(x, (size, *x.shape))
    if axis is None
    else jnp.moveaxis(x, axis, 0)
    for x, axis in zip(args, axes, strict=True)
  )
  found = _gradient_p.bind(
    x.reshape(-1, *x.shape[2:]), g.reshape(-1, *g.shape[2:]), **settings
  )
  return found.reshape(x.shape), 0


_gradient_p = Primitive("max_pool_gradient")
_gradient_p.def_impl(
  jax.jit(_gradient_p.bind, static_argnames=("window", "strides", "pads"))
)
_gradient_p.def_abstract_eval(lambda x, _, **__: x)
batching.primitive_batchers[_gradient_p] = _batch
mlir.register_lowering(
  _gradient_p, mlir.lower_fun(_of_xla, multiple_results=False)
)
mlir.register_lowering(
  _gradient_p, mlir.lower_fun(_by_slices, multiple_results=False), "cpu"
)
