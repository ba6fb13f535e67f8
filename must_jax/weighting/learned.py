"""What methods have in common that learn their weights with Adam."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from must_jax.types import Array
from must_jax.weighting.balancer import Balancer, Scalars


@dataclasses.dataclass(frozen=True)
class Learned(Balancer):
  """Weights that start at `weights` and are learned.

  The state is a dict of arrays [T], one element for each task in the order of
  their names.

  Attributes:
    lr: Adam's learning rate.
  """

  lr: float = 0.025

  def __post_init__(self) -> None:
    if not all(weight > 0 for weight in self.weights.values()):
      raise ValueError(
        f"Loss weights are {dict(self.weights)}; expected positive ones where"
        " they are learned, for they start there."
      )
    if self.lr <= 0:
      raise ValueError(
        f"Learning rate of the loss weights is {self.lr}; expected more than 0."
      )

  def stack(self, scalars: Mapping[str, Any]) -> Array:
    """Scalars by task as an array [T]."""
    return jnp.stack([jnp.asarray(scalars[t]) for t in sorted(self.weights)])

  def start(self) -> Array:
    """The weights at the start [T], of the type that a step gives them."""
    return self.stack(super().weigh({}))

  def unstack(self, array: Array) -> Scalars:
    """The inverse of `stack`: scalars by task, of an array [T]."""
    return dict(zip(sorted(self.weights), array, strict=True))

  def init_adam(self) -> optax.OptState:
    """Adam's state, its count of steps included, for each task [T]."""
    return jax.vmap(optax.adam(self.lr).init)(jnp.zeros(len(self.weights)))

  def descend(
    self, gradient: Array, values: Array, adam: optax.OptState, present: Array
  ) -> tuple[Array, optax.OptState]:
    """Steps of Adam; values [T] and states of absent tasks stay as they are.

    Args:
      gradient: of the values, [T].
      values: what is learned, [T].
      adam: from `init_adam`.
      present: bool [T].
    """
    updates, new_adam = jax.vmap(optax.adam(self.lr).update)(gradient, adam)
    return jax.tree.map(
      lambda new, old: jnp.where(present, new, old),
      (values + updates, new_adam),
      (values, adam),
    )
