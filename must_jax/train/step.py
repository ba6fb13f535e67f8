"""The compiled steps: one of training, one of prediction."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from must_jax.tasks.task import Task
from must_jax.train import mesh as mesh_lib
from must_jax.train.compile_options import compile_options
from must_jax.train.gradients import Batch, make_gradients
from must_jax.train.guard import Guard
from must_jax.train.state import TrainState
from must_jax.types import Array, PyTree
from must_jax.weighting.balancer import Balancer

Predictions: TypeAlias = dict[str, dict[str, Array]]  # by task


def make_train_step(
  model: nn.Module,
  tasks: dict[str, Task],
  optimizer: optax.GradientTransformation,
  balancer: Balancer,
  guard: Guard,
  *,
  state_sharding: TrainState,
  mesh: Mesh,
  num_images: int,
  accumulate: int = 1,
  ema_decay: float = 0.0,
) -> Callable[
  [TrainState, Batch, jax.Array], tuple[TrainState, dict[str, Array]]
]:
  """`step(state, batch, key) -> (state, metrics)`, compiled.

  `state` is donated. `key` is the data of a random key, uint32 [2], of dropout
  and of the sampling of anchors and ROIs; runs that differ in it alone share a
  program, which the compilation cache keeps.

  Losses are sums over the global batch, divided by the global count of valid
  elements, so the result does not depend on the number of devices.

  Args:
    model: `MustModel`.
    tasks: the model's tasks.
    optimizer: from `make_optimizer`.
    balancer: from `must_jax.weighting`.
    guard: which steps count.
    state_sharding: from `mesh.state_sharding`.
    mesh: devices.
    num_images: in a batch, all views of its examples; what to compile for.
    accumulate: see `make_gradients`.
    ema_decay: of the averaged parameters; 0 if the state has none.
  """
  gradients = make_gradients(model, tasks, balancer, mesh, accumulate)

  def step(
    state: TrainState, batch: Batch, key: jax.Array
  ) -> tuple[TrainState, dict[str, Array]]:
    weights = balancer.weigh(state.balance)
    result = gradients(
      state.params,
      state.batch_stats,
      batch,
      weights,
      jax.random.fold_in(jax.random.wrap_key_data(key), state.step),
    )
    grads = jax.lax.with_sharding_constraint(
      result.grads, state_sharding.params
    )
    weighted = {name: weights[name] * result.losses[name] for name in tasks}
    loss = jnp.sum(jnp.stack(list(weighted.values())))
    grad_norm = optax.tree.norm(grads)
    good = guard.judge(state.guard, loss, grad_norm)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    learned = {
      "params": optax.apply_updates(state.params, updates),
      "batch_stats": result.batch_stats,
      "opt_state": opt_state,
      "balance": balancer.update(
        state.balance, result.losses, result.present, result.norms
      ),
    }
    if ema_decay:
      # TensorFlow's rule: an average over few steps forgets how they began.
      decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
      learned["ema"] = optax.incremental_update(
        {key: learned[key] for key in state.ema}, state.ema, 1 - decay
      )
    learned = {
      key: jax.tree.map(
        lambda new, old: jnp.where(good, new, old), value, getattr(state, key)
      )
      for key, value in learned.items()
    }
    guarded = guard.update(state.guard, good, loss, grad_norm)

    metrics = {
      "loss": loss,
      "grad_norm": grad_norm,
      "unusable_examples": jnp.sum(~batch["valid"]),
      "skipped_steps": guarded.skipped,
      "skipped_in_a_row": guarded.in_a_row,
      **result.parts,
    }
    for name in tasks:
      metrics[f"{name}/loss"] = result.losses[name]
      metrics[f"{name}/weight"] = weights[name]
      metrics[f"{name}/weighted"] = weighted[name]
      metrics[f"{name}/grad_norm"] = result.feature_norms[name]
    return state.replace(step=state.step + 1, guard=guarded, **learned), metrics

  return jax.jit(
    step,
    in_shardings=(
      state_sharding,
      mesh_lib.batch_sharding(mesh),
      mesh_lib.replicated(mesh),
    ),
    out_shardings=(state_sharding, mesh_lib.replicated(mesh)),
    donate_argnums=0,
    compiler_options=compile_options(mesh, num_images // accumulate),
  )


class PredictStep:
  """Predicts batches; compiled when it is called first."""

  def __init__(self, predict: Callable[..., Predictions], mesh: Mesh):
    """See `make_predict_step`.

    Args:
      predict: of variables, images and the size of their content or None.
      mesh: devices.
    """
    self._predict, self._mesh = predict, mesh
    self._compiled = functools.cache(self._jit)

  def __call__(
    self, variables: PyTree, images: Array, content_size: Array | None = None
  ) -> Predictions:
    """Predicts a batch.

    Args:
      variables: of the model.
      images: [B, H, W, 3].
      content_size: [B, 2], pixels to which boxes are kept; by default the whole
        image.

    Returns:
      {task: predictions}, each [B, ...].
    """
    step = self._compiled(images.shape[0])
    return step(variables, images, content_size)

  def lower(
    self, variables: PyTree, images: PyTree, content_size: PyTree = None
  ) -> jax.stages.Lowered:
    """The same before it is compiled; shapes will do for arrays."""
    step = self._compiled(images.shape[0])
    return step.lower(variables, images, content_size)

  def _jit(self, num_images: int) -> Any:
    sharding = mesh_lib.batch_sharding(self._mesh)
    return jax.jit(
      self._predict,
      in_shardings=(None, sharding, sharding),
      out_shardings=sharding,
      compiler_options=compile_options(self._mesh, num_images),
    )


def make_predict_step(
  model: nn.Module,
  tasks: dict[str, Task],
  mesh: Mesh,
  map_stride: int = 0,
) -> PredictStep:
  """The step that predicts.

  Args:
    model: `MustModel`.
    tasks: tasks to predict; they need not be all of the model's.
    mesh: devices.
    map_stride: pixels of the image for each of a per-pixel prediction; by
      default these have the heads' own size. It must divide both sides.
  """

  def predict(variables, images, content_size):
    variables = mesh_lib.gather_params(variables, mesh)
    outputs: Any = model.apply(
      variables, images, train=False, content_size=content_size
    )
    map_size = None
    if map_stride:
      height, width = images.shape[-3:-1]
      if height % map_stride or width % map_stride:
        raise ValueError(
          f"map_stride is {map_stride}; expected a divisor of the sides of"
          f" {height} x {width} images."
        )
      map_size = height // map_stride, width // map_stride
    return {
      name: task.predict(outputs[name], map_size)
      for name, task in tasks.items()
    }

  return PredictStep(predict, mesh)
