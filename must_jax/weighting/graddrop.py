"""Signs of gradients that are drawn (GradDrop, Chen et al., 2010.06808)."""

import dataclasses

import jax
import jax.numpy as jnp

from must_jax.types import Array, PyTree
from must_jax.weighting.balancer import Balancer, Gradients, Scalars, Trunk, add


@dataclasses.dataclass(frozen=True)
class GradDrop(Balancer):
  """Where tasks want a feature to go different ways, one way is drawn.

  It acts on the backbone's maps, the last that all tasks share. At a place and
  channel, G_i is the sum over the batch of task i's gradient times the sign of
  the feature. With the probability (1 + sum_i G_i / sum_i |G_i|) / 2 the tasks
  with G_i < 0 are dropped, else those with G_i > 0, for the whole batch. A task
  alone is never dropped. The gradient's norm is not restored (lingvo's code has
  a factor for that which is the wrong way round).

  Attributes:
    leak: part of the gradients that is never dropped.
  """

  leak: float = 0.0

  def __post_init__(self) -> None:
    if not 0 <= self.leak <= 1:
      raise ValueError(
        f"leak is {self.leak}; expected a part from 0 (all of a gradient may be"
        " dropped) to 1 (nothing is)."
      )

  def merge(
    self, cotangents: dict[str, PyTree], trunk: Trunk, key: Array
  ) -> tuple[Gradients, Scalars]:
    pulled = [trunk.pull_neck(cotangent) for cotangent in cotangents.values()]
    maps, treedef = jax.tree.flatten(trunk.maps)
    keys = jax.tree.unflatten(treedef, jax.random.split(key, len(maps)))
    kept = jax.tree.map(
      self._drop, keys, trunk.maps, *(cotangent for _, cotangent in pulled)
    )
    return (trunk.pull_backbone(kept), add(neck for neck, _ in pulled)), {}

  def _drop(self, key: Array, features: Array, *gradients: Array) -> Array:
    """What is left of gradients [B, h, w, C] of one map, summed."""
    signs = jnp.sign(features).astype(jnp.float32)
    votes = jnp.stack([jnp.sum(g * signs, axis=0) for g in gradients])
    total = jnp.sum(jnp.abs(votes), axis=0)
    positive = 0.5 + 0.5 * jnp.sum(votes, axis=0) / jnp.where(total, total, 1)
    # Never where the probability is 0, always where it is 1.
    up = positive > jax.random.uniform(key, positive.shape)
    keep = jnp.where(up, votes >= 0, votes <= 0).astype(jnp.float32)
    factors = self.leak + (1 - self.leak) * keep
    left = sum(g * f for g, f in zip(gradients, factors, strict=True))
    return jnp.asarray(left, features.dtype)
