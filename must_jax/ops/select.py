"""Picking the largest."""

import jax
import jax.numpy as jnp

from must_jax.types import Array


def top_k(values: Array, k: int) -> tuple[jax.Array, jax.Array]:
  """The k largest of values [N] and their indices; ties: lower index first.

  `lax.top_k` is a custom call that the partitioner does not see through: over
  a batch that is split over devices it gathers the whole batch. A sort stays
  local.

  Args:
    values: [N], N >= k.
    k: how many.

  Returns:
    Values [k], in descending order, and indices int32 [k].
  """
  places = jnp.arange(values.shape[0], dtype=jnp.int32)
  descending, order = jax.lax.sort((-values, places), num_keys=1)
  return -descending[:k], order[:k]
