"""Weights learned from the tasks' uncertainty (Kendall et al., 1705.07115)."""

import dataclasses
import math

import jax.numpy as jnp

from must_jax.types import PyTree
from must_jax.weighting.balancer import Scalars
from must_jax.weighting.learned import Learned


@dataclasses.dataclass(frozen=True)
class Uncertainty(Learned):
  """Minimises sum_i exp(-s_i) L_i + s_i / 2 over the log-variances s_i, too.

  The weight exp(-s_i) tends to 1 / (2 L_i). Kendall et al. derive this form for
  classification and exp(-s) L / 2 + s / 2 for regression. Both are one: with
  u = s - log c, exp(-s) c L + s / 2 is exp(-u) L + u / 2 but for a constant, so
  that c = 1/2 means half the starting weight and nothing else.

  Attributes:
    bound: weights stay within [1 / bound, bound]. With 100 the optimum is
      within reach of losses from 0.005 to 50.
  """

  bound: float = 100.0

  def __post_init__(self) -> None:
    super().__post_init__()
    for task, weight in self.weights.items():
      if not 1 / self.bound <= weight <= self.bound:
        raise ValueError(
          f"Loss weight of {task!r} is {weight}, to be learned within"
          f" [1 / {self.bound}, {self.bound}]; expected it to start inside:"
          " set another weight or a larger bound."
        )

  def init(self) -> PyTree:
    return {
      "log_variance": -jnp.log(self.start()),
      "adam": self.init_adam(),
    }

  def weigh(self, state: PyTree) -> Scalars:
    return self.unstack(jnp.exp(-state["log_variance"]))

  def update(
    self, state: PyTree, losses: Scalars, present: Scalars, norms: Scalars
  ) -> PyTree:
    del norms
    s = state["log_variance"]
    s, adam = self.descend(
      0.5 - jnp.exp(-s) * self.stack(losses),
      s,
      state["adam"],
      self.stack(present),
    )
    limit = math.log(self.bound)
    return {"log_variance": jnp.clip(s, -limit, limit), "adam": adam}
