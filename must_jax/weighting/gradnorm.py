"""Weights learned so that tasks train at one pace (GradNorm, 1711.02257)."""

import dataclasses

import jax.numpy as jnp

from must_jax.types import Array, PyTree
from must_jax.weighting.balancer import Gradients, Scalars, Trunk, dot
from must_jax.weighting.learned import Learned

# Relative to the mean weight, before weights are made to sum.
_SMALLEST = 1e-3


@dataclasses.dataclass(frozen=True)
class GradNorm(Learned):
  """Descends on sum_i |w_i G_i - mean_j(w_j G_j) r_i^alpha| over the weights.

  G_i is the norm of the gradient of task i's unweighted loss at the last shared
  layer. r_i says how little the task has learned: its loss over its first loss,
  divided by the mean of that over the tasks. The target is a constant to the
  derivative. After each step weights are made to sum to what they started with.
  Tasks without labels in a batch keep their weight and are in no mean.

  Attributes:
    lr: Adam's learning rate, relative to the mean weight, which is 1 in the
      paper.
    alpha: how strongly slow tasks are favoured.
  """

  alpha: float = 1.5

  def init(self) -> PyTree:
    return {
      "relative_weights": self.start() / self._mean_weight,
      "first_losses": jnp.zeros(len(self.weights)),  # 0: not seen yet
      "adam": self.init_adam(),
    }

  def weigh(self, state: PyTree) -> Scalars:
    return self.unstack(state["relative_weights"] * self._mean_weight)

  def merge(
    self, cotangents: dict[str, PyTree], trunk: Trunk, key: Array
  ) -> tuple[Gradients, Scalars]:
    """The plain gradient, and the norms w_i G_i."""
    gradients, _ = super().merge(cotangents, trunk, key)
    # XLA leaves out what is before the last layer.
    last = {
      task: trunk.last_layer(trunk.pull(cotangent)[0])
      for task, cotangent in cotangents.items()
    }
    return gradients, {task: jnp.sqrt(dot(g, g)) for task, g in last.items()}

  def update(
    self, state: PyTree, losses: Scalars, present: Scalars, norms: Scalars
  ) -> PyTree:
    weights, first = state["relative_weights"], state["first_losses"]
    loss, norm = self.stack(losses), self.stack(norms)
    first = jnp.where(self.stack(present) & (first == 0), loss, first)
    active = self.stack(present) & (first > 0)

    def mean(values: Array) -> Array:
      return jnp.sum(values, where=active) / jnp.maximum(jnp.sum(active), 1)

    progress = jnp.where(active, jnp.maximum(loss, 0) / first, 0)
    rate = progress / jnp.maximum(mean(progress), 1e-12)
    target = mean(norm) * rate**self.alpha
    new, adam = self.descend(
      norm / weights * jnp.sign(norm - target), weights, state["adam"], active
    )
    new = jnp.maximum(new, _SMALLEST)
    share = len(self.weights) - jnp.sum(weights, where=~active)
    return {
      "relative_weights": jnp.where(
        active, new * share / jnp.sum(new, where=active), weights
      ),
      "first_losses": first,
      "adam": adam,
    }

  @property
  def _mean_weight(self) -> float:
    return sum(self.weights.values()) / len(self.weights)
