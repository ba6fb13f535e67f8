"""Losses and gradients of all tasks, kept apart where tasks meet.

The backward pass is cut twice, at what the heads read and at what the backbone
gives. There each task's gradient can be looked at and changed by a `Balancer`;
one that only sums them costs nothing over `jax.grad` of the weighted sum.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from must_jax.tasks.task import Task, sum_of_means
from must_jax.train import mesh as mesh_lib
from must_jax.types import Array, PyTree
from must_jax.weighting.balancer import Balancer, Scalars, Trunk, dot

Batch = dict[str, Any]


class Gradients(NamedTuple):
  """What one batch says.

  Attributes:
    grads: of the weighted sum of the losses, like the parameters.
    batch_stats: running statistics of the norms, updated.
    losses: by task, not weighted.
    parts: {"task/part": mean}.
    present: bool by task, whether any example has its labels.
    norms: what the balancer measured, by task.
    feature_norms: norm of the gradient of the weighted loss with respect to
      what the heads read, by task.
  """

  grads: PyTree
  batch_stats: PyTree
  losses: Scalars
  parts: Scalars
  present: Scalars
  norms: Scalars
  feature_norms: Scalars


def make_gradients(
  model: nn.Module,
  tasks: dict[str, Task],
  balancer: Balancer,
  mesh: Mesh,
  accumulate: int = 1,
) -> Callable[[PyTree, PyTree, Batch, Scalars, Array], Gradients]:
  """`gradients(params, batch_stats, batch, weights, key)`, to be traced.

  Args:
    model: `MustModel`.
    tasks: the model's tasks.
    balancer: puts the tasks' gradients together.
    mesh: devices.
    accumulate: parts of the batch that are computed one after another. Each
      part of a task's loss is weighted by the number of its examples that have
      labels, so that with equally large labels the sum is the whole batch's.
      Norms see a part of the batch at a time; a balancer, too.
  """

  def of_part(
    params: PyTree,
    batch_stats: PyTree,
    batch: Batch,
    shares: Scalars,
    weights: Scalars,
    key: Array,
  ) -> Gradients:
    sample_key, dropout_key, balance_key = jax.random.split(key, 3)
    image_size = batch["image"].shape[-3:-1]

    def apply(params: PyTree, method: str, *args: Any) -> tuple[Any, PyTree]:
      """Outputs of a part of the model, and its new statistics."""
      stats = {k: batch_stats[k] for k in params if k in batch_stats}
      outputs, mutated = model.apply(
        {"params": params, "batch_stats": stats},
        *args,
        method=method,
        train=True,
        rngs={"sample": sample_key, "dropout": dropout_key},
        mutable=["batch_stats"],
      )
      return outputs, mutated.get("batch_stats", {})

    def run_trunk(params: PyTree) -> tuple[Any, PyTree]:
      return apply(params, "trunk", batch["image"])

    def run_neck(params: PyTree, maps: Any) -> tuple[Any, PyTree]:
      return apply(params, "neck", *maps, image_size)

    maps, pull_trunk, stats = jax.vjp(
      run_trunk, _only(params, "backbone"), has_aux=True
    )
    features, pull_neck, neck_stats = jax.vjp(
      run_neck, _only(params, "fpn"), maps, has_aux=True
    )
    stats |= neck_stats
    grads: PyTree = {}
    losses: Scalars = {}
    parts: Scalars = {}
    cotangents: dict[str, PyTree] = {}
    for name, task in tasks.items():

      def run_head(params, features, name=name, task=task):
        labels = batch["labels"].get(name, {})
        outputs, stats = apply(
          params, "head", name, features, image_size, labels
        )
        means = task.loss(outputs, batch)
        return sum_of_means(means), (means, stats)

      loss, pull_head, (means, head_stats) = jax.vjp(
        run_head, _only(params, f"head_{name}"), features, has_aux=True
      )
      head_grads, cotangents[name] = pull_head(
        jnp.asarray(weights[name] * shares[name], loss.dtype)
      )
      grads |= head_grads
      stats |= head_stats
      losses[name] = shares[name] * loss
      for part, mean in means.items():
        parts[f"{name}/{part}"] = shares[name] * mean.compute()
    trunk = Trunk(
      maps=maps,
      pull_neck=pull_neck,
      pull_backbone=lambda cotangent: pull_trunk(cotangent)[0],
      last_layer=lambda grads: {
        name: grads["backbone"][name] for name in model.backbone.last_block
      },
    )
    shared, norms = balancer.merge(cotangents, trunk, balance_key)
    for part in shared:
      grads |= part
    return Gradients(
      grads=grads,
      batch_stats=stats,
      losses=losses,
      parts=parts,
      present={name: jnp.any(_present(batch, name)) for name in tasks},
      norms=norms,
      feature_norms={
        name: jnp.sqrt(dot(cotangent, cotangent))
        for name, cotangent in cotangents.items()
      },
    )

  def of_batch(params, batch_stats, batch, weights, key):
    params = mesh_lib.gather_params(params, mesh)
    shares: Scalars = {name: jnp.ones(()) for name in tasks}
    if accumulate == 1:
      return of_part(params, batch_stats, batch, shares, weights, key)

    batches = jax.tree.map(lambda x: _split(x, accumulate, mesh), batch)
    for name in tasks:
      counts = jnp.sum(_present(batches, name), 1)
      shares[name] = counts / jnp.maximum(jnp.sum(counts), 1)
    keys = jax.random.split(key, accumulate)

    def add(carry: tuple[PyTree, PyTree], part: Any) -> Any:
      total, stats = carry
      batch, shares, key = part
      result = of_part(params, stats, batch, shares, weights, key)
      total = jax.tree.map(jnp.add, total, result.grads)
      return (total, result.batch_stats), result._replace(
        grads=None, batch_stats=None
      )

    zeros = jax.tree.map(jnp.zeros_like, params)
    (grads, stats), results = jax.lax.scan(
      add, (zeros, batch_stats), (batches, shares, keys)
    )
    return Gradients(
      grads=grads,
      batch_stats=stats,
      losses=jax.tree.map(jnp.sum, results.losses),
      parts=jax.tree.map(jnp.sum, results.parts),
      present=jax.tree.map(jnp.any, results.present),
      norms=jax.tree.map(jnp.sum, results.norms),
      feature_norms=jax.tree.map(
        lambda x: jnp.sqrt(jnp.sum(x**2)), results.feature_norms
      ),
    )

  return of_batch


def _only(params: PyTree, module: str) -> PyTree:
  """The parameters of one module; none if it has none."""
  return {module: params[module]} if module in params else {}


def _present(batch: Batch, task: str) -> Array:
  """Whether an example has any of a task's labels, or the task needs none."""
  labels = batch["labels"].get(task, {})
  flags = [arrays["present"] for arrays in labels.values()]
  return jnp.any(jnp.stack(flags), 0) if flags else batch["valid"]


def _split(x: Array, parts: int, mesh: Mesh) -> Array:
  """[B, ...] to [parts, B / parts, ...], each device keeping its examples."""
  x = jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)
  return jax.lax.with_sharding_constraint(
    x, NamedSharding(mesh, PartitionSpec(None, mesh_lib.AXES))
  )
