"""The state that training changes."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from must_jax.train import mesh as mesh_lib
from must_jax.train.guard import Guard, GuardState
from must_jax.types import PyTree
from must_jax.weighting.balancer import Balancer


class TrainState(struct.PyTreeNode):
  """Everything a checkpoint holds.

  Attributes:
    step: int32 [], steps done, those that were skipped included.
    params: of the model.
    batch_stats: of its norms.
    opt_state: of the optimizer.
    balance: of the balancer.
    guard: of the guard.
    ema: averages of `params` and `batch_stats`, by these names; {} if off.
    rollbacks: int32 [], how often the run went back to a checkpoint.
    batches_left_out: int32 []; the batch of a step is that of the position
      `step + batches_left_out` in the order of the data.
  """

  step: jax.Array
  params: PyTree
  batch_stats: PyTree
  opt_state: optax.OptState
  balance: PyTree
  guard: GuardState
  ema: dict[str, PyTree]
  rollbacks: jax.Array
  batches_left_out: jax.Array

  @property
  def variables(self) -> dict[str, PyTree]:
    """What `model.apply` takes: the averages, if there are any."""
    own = {"params": self.params, "batch_stats": self.batch_stats}
    return own | self.ema


def init_variables(
  model: nn.Module, image_size: tuple[int, int], rng: jax.Array
) -> Mapping[str, Any]:
  """Fresh parameters and norm statistics; trace it under `jax.jit`.

  Args:
    model: `MustModel`.
    image_size: (H, W) of the network input.
    rng: key of the initialisers, a scalar.
  """
  image = jnp.zeros((1, *image_size, 3), jnp.uint8)
  return model.init(rng, image, train=False)


def init_state(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  balancer: Balancer,
  guard: Guard,
  image_size: tuple[int, int],
  rng: jax.Array,
  ema: bool = False,
) -> TrainState:
  """A fresh state; to be traced.

  Args:
    model: `MustModel`.
    optimizer: from `make_optimizer`.
    balancer: from `must_jax.weighting`.
    guard: which steps count.
    image_size: (H, W) of the network input.
    rng: key of the initialisers, a scalar.
    ema: whether averages are kept.
  """
  variables = init_variables(model, image_size, rng)
  learned = {
    "params": variables["params"],
    "batch_stats": variables.get("batch_stats", {}),
  }
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    **learned,
    opt_state=optimizer.init(variables["params"]),
    balance=balancer.init(),
    guard=guard.init(),
    ema=learned if ema else {},
    rollbacks=jnp.zeros((), jnp.int32),
    batches_left_out=jnp.zeros((), jnp.int32),
  )


def create_state(
  init: Callable[[jax.Array], TrainState], seed: int, mesh: Mesh
) -> TrainState:
  """A fresh state, made on the devices where it will live.

  Args:
    init: `init_state`, but for its key.
    seed: of the initialisers.
    mesh: devices.
  """
  rng = jax.random.key(seed)
  # It runs once: compiling it well takes seconds on a CPU and gains nothing.
  options = {"xla_backend_optimization_level": 0}
  compiled = jax.jit(
    init,
    out_shardings=mesh_lib.state_sharding(jax.eval_shape(init, rng), mesh),
    compiler_options=options if jax.default_backend() == "cpu" else None,
  )
  return compiled(rng)
