"""Max pooling of batches of images, whose gradient is fast on a CPU, too.

There XLA asks for the place of each maximum one window at a time, which takes
ten times as long as the pooling. In programs for a CPU the gradient is written
with slices of all windows at once. On other platforms it is XLA's.

Legend: B images, [H, W] input and [h, w] output pixels, C channels.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from must_jax.ops.convolution import Geometry, input_slices, output_slices


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
  size = x.shape[1:3]
  if isinstance(padding, str):
    padding = jax.lax.padtype_to_pads(size, window, strides, padding)
  pads = tuple((int(before), int(after)) for before, after in padding)
  geometry = Geometry(
    size, tuple(window), tuple(strides), pads, (1, 1), 1, None
  )
  return _pool(x, geometry)


def _of_xla(x: jax.Array, geometry: Geometry) -> jax.Array:
  return nn.max_pool(
    x, geometry.kernel_size, geometry.strides, geometry.padding
  )


_pool = jax.custom_vjp(_of_xla, nondiff_argnums=(1,))


def _forward(x: jax.Array, geometry: Geometry) -> tuple[jax.Array, jax.Array]:
  return _pool(x, geometry), x


def _backward(
  geometry: Geometry, x: jax.Array, g: jax.Array
) -> tuple[jax.Array]:
  return (_gradient_p.bind(x, g, geometry=geometry),)


_pool.defvjp(_forward, _backward)


# --- The gradient of x [B, H, W, C] for that of the output, g [B, h, w, C].


def _by_xla(x: jax.Array, g: jax.Array, *, geometry: Geometry) -> jax.Array:
  _, pull = jax.vjp(lambda x: _of_xla(x, geometry), x)
  return pull(g)[0]


def _by_slices(x: jax.Array, g: jax.Array, *, geometry: Geometry) -> jax.Array:
  # Which pixel of its window each maximum is, the first of equal ones.
  best, places = jnp.full((), -jnp.inf, x.dtype), jnp.zeros((), jnp.int32)
  for number, pixels in enumerate(input_slices(x, geometry, -jnp.inf)):
    is_more = pixels > best
    best = jnp.where(is_more, pixels, best)
    places = jnp.where(is_more, number, places)
  reached = zip(
    output_slices(places, geometry, -1),
    output_slices(g, geometry),
    strict=True,
  )
  total = jnp.zeros(x.shape, jnp.promote_types(g.dtype, jnp.float32))
  for number, (place, part) in enumerate(reached):
    total += jnp.where(place == number, part, 0)
  return total.astype(x.dtype)


def _batch(
  args: Sequence[jax.Array], axes: Sequence[int | None], **params: Any
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
    x.reshape(-1, *x.shape[2:]), g.reshape(-1, *g.shape[2:]), **params
  )
  return found.reshape(x.shape), 0


_gradient_p = Primitive("max_pool_gradient")
_gradient_p.def_impl(jax.jit(_gradient_p.bind, static_argnames="geometry"))
_gradient_p.def_abstract_eval(lambda x, _, **__: x)
batching.primitive_batchers[_gradient_p] = _batch
mlir.register_lowering(
  _gradient_p, mlir.lower_fun(_by_xla, multiple_results=False)
)
mlir.register_lowering(
  _gradient_p, mlir.lower_fun(_by_slices, multiple_results=False), "cpu"
)
