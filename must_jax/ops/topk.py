"""Top k that stays on its shard."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp

_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
  """What is traced within it has operations that every runtime knows.

  Elsewhere `top_k` becomes a custom call of XLA's, which others lack.
  """
  token = _portable.set(True)
  try:
    yield
  finally:
    _portable.reset(token)


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """The k largest of x [..., N] and their indices, both [..., k].

  As `lax.top_k`, but a batch sharded over devices is not gathered: XLA cannot
  partition `lax.top_k`, but it can `approx_max_k`, which is exact at a recall
  of 1. Which of equal values comes first is not defined.
  """
  if _portable.get():
    # Even `lax.top_k` is an operation that TensorFlow 2.21 does not know.
    index = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    falling, index = jax.lax.sort((-x, index), num_keys=1)
    return -falling[..., :k], index[..., :k]
  return jax.lax.approx_max_k(x, k, recall_target=1.0)
