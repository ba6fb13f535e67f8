"""Model, tasks and the state that training changes."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from ml_collections import ConfigDict

from must_jax.config import task_kwargs
from must_jax.models.fpn import FPN
from must_jax.models.must import MustModel, build_backbone
from must_jax.tasks import HeadOptions, Task, make_task
from must_jax.train import mesh as mesh_lib
from must_jax.types import PyTree


class TrainState(struct.PyTreeNode):
  """Everything a checkpoint holds."""

  step: jax.Array
  params: PyTree
  batch_stats: PyTree
  opt_state: optax.OptState

  @property
  def variables(self) -> dict[str, PyTree]:
    """What `model.apply` takes."""
    return {"params": self.params, "batch_stats": self.batch_stats}


def build_tasks(config: ConfigDict) -> dict[str, Task]:
  """The tasks of a config whose class names are known."""
  return {
    name: make_task(entry.kind, name, tuple(entry.classes), task_kwargs(entry))
    for name, entry in sorted(config.tasks.items())
  }


def build_model(config: ConfigDict, tasks: dict[str, Task]) -> MustModel:
  """The multi-task model of `config.model` with a head per task."""
  options = config.model
  dtype = jnp.dtype(options.dtype)
  head_options = HeadOptions(
    channels=options.channels,
    min_level=options.min_level,
    max_level=options.max_level,
    dtype=dtype,
    norm_momentum=options.norm_momentum,
    norm_epsilon=options.norm_epsilon,
  )
  return MustModel(
    backbone=build_backbone(
      options.backbone,
      width=options.width,
      dtype=dtype,
      norm_momentum=options.norm_momentum,
      norm_epsilon=options.norm_epsilon,
    ),
    fpn=FPN(
      min_level=options.min_level,
      max_level=options.max_level,
      channels=options.channels,
      norm=options.fpn_norm,
      top=options.fpn_top,
      dtype=dtype,
      norm_momentum=options.norm_momentum,
      norm_epsilon=options.norm_epsilon,
    ),
    heads=tuple(
      (name, task.make_head(head_options)) for name, task in tasks.items()
    ),
    image_mean=tuple(options.image_mean),
    image_std=tuple(options.image_std),
    frozen=tuple(config.freeze),
  )


def init_variables(
  model: nn.Module, image_size: tuple[int, int], rng: jax.Array
) -> Mapping[str, Any]:
  """Fresh parameters and norm statistics; trace it under `jax.jit`."""
  image = jnp.zeros((1, *image_size, 3), jnp.uint8)
  return model.init(rng, image, train=False)


def create_state(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  image_size: tuple[int, int],
  seed: int,
  mesh: Mesh,
) -> TrainState:
  """A fresh state, made on the devices where it will live."""

  def init(rng: jax.Array) -> TrainState:
    variables = init_variables(model, image_size, rng)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=variables["params"],
      batch_stats=variables.get("batch_stats", {}),
      opt_state=optimizer.init(variables["params"]),
    )

  # It runs once: compiling it well takes seconds on a CPU and gains nothing.
  options = {"xla_backend_optimization_level": 0}
  compiled = jax.jit(
    init,
    out_shardings=mesh_lib.replicated(mesh),
    compiler_options=options if jax.default_backend() == "cpu" else None,
  )
  return compiled(jax.random.key(seed))
