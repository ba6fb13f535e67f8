"""What balances the tasks in a training step, and the simplest: fixed weights.

A step runs backbone -> maps -> neck (pyramid and fused map) -> features ->
heads forwards. Backwards, every task gives the cotangent of the features of its
own weighted loss; a balancer makes the shared gradient from them, and learns
from what it saw. Heads are not shared and need no balancing.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from must_jax.types import Array, PyTree

Scalars = dict[str, Array]  # by task
Gradients = tuple[PyTree, PyTree]  # of the backbone's and neck's parameters


class Trunk(NamedTuple):
  """What the tasks share, as its backward passes.

  Attributes:
    maps: the backbone's, {level: [B, h, w, C]}.
    pull_neck: cotangent of the features -> (gradient of the neck's parameters,
      cotangent of the maps).
    pull_backbone: cotangent of the maps -> gradient of the backbone's
      parameters.
    last_layer: picks the last layer out of a gradient of the backbone.
  """

  maps: PyTree
  pull_neck: Callable[[PyTree], tuple[PyTree, PyTree]]
  pull_backbone: Callable[[PyTree], PyTree]
  last_layer: Callable[[PyTree], PyTree]

  def pull(self, cotangent: PyTree) -> Gradients:
    """Cotangent of the features -> gradients of all shared parameters."""
    neck, maps = self.pull_neck(cotangent)
    return self.pull_backbone(maps), neck


@dataclasses.dataclass(frozen=True)
class Balancer:
  """Fixed weights; the base class of the other methods.

  Attributes:
    weights: w_i of the total loss, by task. Learned weights start there.
  """

  weights: Mapping[str, float]

  def init(self) -> PyTree:
    """The state before the first step."""
    return {}

  def weigh(self, state: PyTree) -> Scalars:
    """w_i of this step's total loss."""
    del state
    return {task: jnp.float32(weight) for task, weight in self.weights.items()}

  def merge(
    self, cotangents: dict[str, PyTree], trunk: Trunk, key: Array
  ) -> tuple[Gradients, Scalars]:
    """Makes the gradient of what the tasks share.

    Args:
      cotangents: of the features, by task, of the task's weighted loss; zero
        where no example has labels of the task.
      trunk: their way back.
      key: of this step, a scalar.

    Returns:
      The gradients, and norms for `update` if the method looks at them.
    """
    del key
    return trunk.pull(add(cotangents.values())), {}

  def update(
    self, state: PyTree, losses: Scalars, present: Scalars, norms: Scalars
  ) -> PyTree:
    """The next step's state.

    Args:
      state: of this step.
      losses: unweighted, by task.
      present: bool by task, False where no example has labels of the task.
      norms: from `merge`.
    """
    del losses, present, norms
    return state


def add(trees: Iterable[PyTree]) -> PyTree:
  """The sum of one or more trees, in their own precision."""
  return functools.reduce(optax.tree.add, trees)


def dot(a: PyTree, b: PyTree) -> Array:
  """The inner product of two trees of arrays, a float32 scalar.

  Not `optax.tree.vdot`, which flattens the arrays: sharded ones would be
  gathered.
  """
  products = jax.tree.map(
    lambda x, y: jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32)), a, b
  )
  return jnp.asarray(sum(jax.tree.leaves(products)), jnp.float32)
