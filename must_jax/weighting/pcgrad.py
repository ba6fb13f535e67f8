"""Gradients that conflict are projected (PCGrad, Yu et al., 2001.06782)."""

import dataclasses

import jax
import jax.numpy as jnp

from must_jax.types import Array, PyTree
from must_jax.weighting.balancer import Balancer, Gradients, Scalars, Trunk, dot


@dataclasses.dataclass(frozen=True)
class PCGrad(Balancer):
  """Takes from each task's gradient what goes against another's.

  For each task, g_i is projected onto the normal plane of every other task's
  original g_j that it conflicts with (g_i . g_j < 0), in random order; the
  results are summed. All shared parameters count as one vector.
  """

  def merge(
    self, cotangents: dict[str, PyTree], trunk: Trunk, key: Array
  ) -> tuple[Gradients, Scalars]:
    gradients = [trunk.pull(cotangent) for cotangent in cotangents.values()]
    num = len(gradients)
    # XLA computes equal products once.
    products = jnp.array(
      [
        [dot(gradients[min(i, j)], gradients[max(i, j)]) for j in range(num)]
        for i in range(num)
      ]
    )
    factors = surgery(products, key)
    merged = jax.tree.map(
      lambda *leaves: sum(f * g for f, g in zip(factors, leaves, strict=True)),
      *gradients,
    )
    return merged, {}


def surgery(products: Array, key: Array) -> Array:
  """PCGrad's merged gradient as a combination of the original ones.

  A projected gradient is a linear combination of originals, and its product
  with an original follows from theirs: no gradient is touched.

  Args:
    products: inner products of the gradients, [T, T].
    key: of the orders, one for each gradient.

  Returns:
    Their factors, [T].
  """
  num = len(products)

  def project(own: Array, key: Array) -> Array:
    def step(factors: jax.Array, other: jax.Array) -> tuple[jax.Array, None]:
      product = jnp.sum(factors * products[other])
      conflict = (product < 0) & (other != own)
      scale = jnp.where(conflict, product / products[other, other], 0)
      return factors.at[other].add(-scale), None

    order = jax.random.permutation(key, num)
    return jax.lax.scan(step, jnp.eye(num)[own], order)[0]

  projected = jax.vmap(project)(jnp.arange(num), jax.random.split(key, num))
  return jnp.sum(projected, axis=0)
