"""From a config to what trains: model, optimizer, compiled step."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from must_jax import weighting
from must_jax.config import task_kwargs
from must_jax.input.abstract import abstract_batch
from must_jax.models.fpn import FPN
from must_jax.models.must import MustModel, build_backbone
from must_jax.tasks import HeadOptions, Task, make_task
from must_jax.train import mesh as mesh_lib
from must_jax.train.guard import Guard
from must_jax.train.optimizer import make_optimizer, make_schedule
from must_jax.train.state import TrainState, create_state, init_state
from must_jax.train.step import make_train_step
from must_jax.types import PyTree
from must_jax.weighting.balancer import Balancer


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
      remat=tuple(options.remat),
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


@dataclasses.dataclass(frozen=True)
class Program:
  """What a run computes, on the devices of a mesh.

  Attributes:
    config: of the run, with class names filled in.
    mesh: devices; those of a description that is not at hand can compile.
    tasks: by name.
    model: with a head for each task.
    schedule: step -> learning rate.
    optimizer: of the parameters.
    balancer: of the tasks' losses.
    guard: of the steps.
  """

  config: ConfigDict
  mesh: Mesh
  tasks: dict[str, Task]
  model: MustModel
  schedule: optax.Schedule
  optimizer: optax.GradientTransformation
  balancer: Balancer
  guard: Guard

  def create_state(self) -> TrainState:
    """A fresh state on the devices."""
    return create_state(self._init, self.config.seed, self.mesh)

  @functools.cached_property
  def abstract_state(self) -> TrainState:
    """Shapes and shardings of a state, as `jax.ShapeDtypeStruct`."""
    shapes = jax.eval_shape(self._init, jax.random.key(0))
    return jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=sharding
      ),
      shapes,
      mesh_lib.state_sharding(shapes, self.mesh),
    )

  @functools.cached_property
  def train_step(self) -> Any:
    """See `make_train_step`."""
    return make_train_step(
      self.model,
      self.tasks,
      self.optimizer,
      self.balancer,
      self.guard,
      state_sharding=jax.tree.map(lambda x: x.sharding, self.abstract_state),
      mesh=self.mesh,
      num_images=self.config.data.batch_size * self._views,
      accumulate=self.config.train.accumulate,
      ema_decay=self.config.optimizer.ema_decay,
    )

  @property
  def abstract_batch(self) -> PyTree:
    """Shapes and shardings of a batch, likewise."""
    data = self.config.data
    return abstract_batch(
      {name: task.fields for name, task in self.tasks.items()},
      data.batch_size,
      tuple(data.image_size),
      data.label_stride,
      views=self._views,
      sharding=mesh_lib.batch_sharding(self.mesh),
    )

  @functools.cached_property
  def key(self) -> np.ndarray:
    """Data of the steps' random key, uint32 [2]; see `make_train_step`."""
    return np.asarray(jax.random.key_data(jax.random.key(self.config.seed)))

  def lower(self) -> jax.stages.Lowered:
    """The training step, for batches of the config's size."""
    return self.train_step.lower(
      self.abstract_state, self.abstract_batch, self.key
    )

  @property
  def _views(self) -> int:
    return max(task.views for task in self.tasks.values())

  def _init(self, rng: jax.Array) -> TrainState:
    return init_state(
      self.model,
      self.optimizer,
      self.balancer,
      self.guard,
      tuple(self.config.data.image_size),
      rng,
      ema=bool(self.config.optimizer.ema_decay),
    )


def build(
  config: ConfigDict,
  weights: Mapping[str, float] | None = None,
  devices: list[jax.Device] | None = None,
) -> Program:
  """Builds all that a run computes with; nothing is compiled yet.

  Args:
    config: with class names filled in (`must_jax.input.sources.resolve`).
    weights: of the tasks' losses; 1 by default.
    devices: all by default.

  Raises:
    ValueError: the devices cannot share the mesh, or the batch.
  """
  mesh = mesh_lib.make_mesh(config.mesh.data, config.mesh.fsdp, devices)
  mesh_lib.check_batch_size(
    "data.batch_size", config.data.batch_size, mesh, config.train.accumulate
  )
  tasks = build_tasks(config)
  options = config.optimizer.to_dict()
  schedule_options = {key: options.pop(key) for key in _SCHEDULE_OPTIONS}
  schedule = make_schedule(steps=config.train.steps, **schedule_options)
  del options["ema_decay"]
  # What is frozen stays as it is.
  factors = options.pop("lr_factors") | dict.fromkeys(config.freeze, 0.0)
  balancing = config.balancing.to_dict()
  model = build_model(config, tasks)
  return Program(
    config=config,
    mesh=mesh,
    tasks=tasks,
    model=model,
    schedule=schedule,
    optimizer=make_optimizer(
      schedule, parts=factors, layers=model.backbone.layers, **options
    ),
    balancer=weighting.make_balancer(
      balancing.pop("method"),
      weights or dict.fromkeys(tasks, 1.0),
      **balancing,
    ),
    guard=Guard(config.train.spike_sigmas),
  )


_SCHEDULE_OPTIONS = (
  "lr",
  "schedule",
  "warmup_steps",
  "warmup_lr",
  "boundaries",
  "decay",
)
