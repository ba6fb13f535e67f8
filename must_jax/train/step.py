"""The compiled steps: one of training, one of prediction."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from must_jax.tasks.base import Task, sum_of_means
from must_jax.train import mesh as mesh_lib
from must_jax.types import Array, PyTree
from must_jax.weighting import fixed

Batch = dict[str, Any]


def make_train_step(
  model: nn.Module,
  tasks: dict[str, Task],
  optimizer: optax.GradientTransformation,
  weights: dict[str, float],
  seed: int,
  mesh: Mesh,
) -> Callable[[PyTree, Batch], tuple[PyTree, dict[str, Array]]]:
  """`step(state, batch) -> (state, metrics)`, compiled; `state` is donated.

  Losses are sums over the global batch, divided by the global count of valid
  elements, so the result does not depend on the number of devices.

  Args:
    model: `MustModel`.
    tasks: the model's tasks.
    optimizer: from `make_optimizer`.
    weights: w_i of the total loss, by task (paper 3.2).
    seed: of dropout and of the sampling of anchors and ROIs.
    mesh: devices.
  """

  def loss_fn(params, state, batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    sample_key, dropout_key = jax.random.split(key)
    outputs, mutated = model.apply(
      {"params": params, "batch_stats": state.batch_stats},
      batch["image"],
      batch["labels"],
      train=True,
      rngs={"sample": sample_key, "dropout": dropout_key},
      mutable=["batch_stats"],
    )
    parts = {
      name: task.loss(outputs[name], batch) for name, task in tasks.items()
    }
    losses = {name: sum_of_means(part) for name, part in parts.items()}
    total, weighted = fixed.combine(losses, weights)
    unusable = jnp.sum(~batch["valid"])
    metrics = {"loss": total, "unusable_examples": unusable}
    for name in tasks:
      metrics[f"{name}/loss"] = losses[name]
      metrics[f"{name}/weighted"] = weighted[name]
      for part, mean in parts[name].items():
        metrics[f"{name}/{part}"] = mean.compute()
    return total, (mutated["batch_stats"], metrics)

  def step(state, batch):
    grads, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(
      state.params, state, batch
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics["grad_norm"] = optax.tree.norm(grads)
    return (
      state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
      ),
      metrics,
    )

  everywhere = mesh_lib.replicated(mesh)
  return jax.jit(
    step,
    in_shardings=(everywhere, mesh_lib.batch_sharding(mesh)),
    out_shardings=(everywhere, everywhere),
    donate_argnums=0,
  )


def make_predict_step(
  model: nn.Module,
  tasks: dict[str, Task],
  mesh: Mesh,
  map_size: tuple[int, int] | None = None,
) -> Callable[..., dict[str, dict[str, Array]]]:
  """`predict(variables, images, content_size=None)`, compiled.

  It returns {task: predictions}. Boxes are kept to `content_size` [B, 2], or
  else to the whole image.

  Args:
    model: `MustModel`.
    tasks: tasks to predict; they need not be all of the model's.
    mesh: devices.
    map_size: (h, w) of per-pixel predictions; the heads' own by default.
  """

  def predict(variables, images, content_size):
    outputs: Any = model.apply(
      variables, images, train=False, content_size=content_size
    )
    return {
      name: task.predict(outputs[name], map_size)
      for name, task in tasks.items()
    }

  rows = mesh_lib.batch_sharding(mesh)
  compiled = jax.jit(
    predict,
    in_shardings=(mesh_lib.replicated(mesh), rows, rows),
    out_shardings=rows,
  )

  def call(
    variables: PyTree, images: Array, content_size: Array | None = None
  ) -> dict[str, dict[str, Array]]:
    return compiled(variables, images, content_size)

  return call
