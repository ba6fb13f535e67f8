"""Compiles the steps of a config for chips that are not at hand."""

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from must_jax.input import preprocess
from must_jax.ops import convolution
from must_jax.preflight import step_parts
from must_jax.tasks import Task
from must_jax.train import mesh as mesh_lib
from must_jax.train.build import build, build_model, build_tasks
from must_jax.train.state import init_variables
from must_jax.train.step import make_predict_step
from must_jax.types import PyTree

# The stored size of a photo, for published rules of resizing.
_PHOTO = (480, 640)
_OUT_OF_MEMORY = re.compile(
  r"RESOURCE_EXHAUSTED.*(?:Used |temporaries \()([\d.]+)([KMGT])", re.DOTALL
)
# Of XLA, -1 to 1. Least effort takes a tenth of the time. Memory was 8 % less
# than with the effort of a run, operations were equal (docs/scale.md).
LEAST_EFFORT = -1.0


@dataclasses.dataclass(frozen=True)
class LoweredStep:
  """A step before it is compiled.

  Attributes:
    step: of `jax.stages`.
    batch_size: images that it takes, on all devices.
    loops: how often the loop over parts of the batch runs.
    state: bytes of what a checkpoint holds.
    parameters: number of the model's.
    modules: of the model, that have some of them.
    sent: bytes that a chip sends, see `sent_bytes`; none in labelling.
    outputs: shapes of the predictions of one task; {} in training.
  """

  step: jax.stages.Lowered
  batch_size: int
  loops: int
  state: int
  parameters: int
  modules: tuple[str, ...]
  sent: float
  outputs: PyTree


@dataclasses.dataclass(frozen=True)
class StepCost:
  """What a step costs each chip.

  Attributes:
    hbm: bytes that it needs; at least, if it does not fit.
    fits: whether the chip has them.
    flops: operations.
    least_bytes: that cross the HBM's interface at least: arguments and results
      once, temporary arrays at their peak twice.
    xla_bytes: as XLA counts them: operands and results of each operation, also
      where they stay on the chip.
    sent: bytes that it sends, of the step before it was compiled.
    seconds: that compiling took.
    work: of the step by parts of the model, of which there are none where it
      does not fit; None if that was not asked for.
  """

  hbm: float
  fits: bool
  flops: float = 0.0
  least_bytes: float = 0.0
  xla_bytes: float = 0.0
  sent: float = 0.0
  seconds: float = 0.0
  work: tuple[step_parts.Work, ...] | None = None


def lower_training(
  config: ConfigDict, devices: list[jax.Device] | None = None
) -> LoweredStep:
  """The training step of a config whose classes are known.

  Args:
    config: see `train.build.build`.
    devices: see there.
  """
  program = build(config, devices=devices)
  state, loops = program.abstract_state, config.train.accumulate
  return LoweredStep(
    step=program.lower(),
    batch_size=config.data.batch_size,
    loops=loops,
    state=tree_bytes(state),
    parameters=_size(state.params),
    modules=tuple(state.params),
    sent=sent_bytes(
      state.params, config.freeze, loops, jnp.dtype(config.model.dtype).itemsize
    ),
    outputs={},
  )


def lower_one_image(config: ConfigDict) -> LoweredStep:
  """The training step as the model is written, for an image on a CPU.

  Args:
    config: see `lower_training`.
  """
  plain = config.copy_and_resolve_references()
  plain.data.batch_size = plain.train.accumulate = 1
  plain.mesh.update({"data": 1, "fsdp": 1})
  plain.model.remat = ()
  with convolution.plain():
    return lower_training(plain, jax.devices("cpu")[:1])


def lower_labelling(
  teacher: ConfigDict,
  task: Task,
  batch_size: int,
  devices: list[jax.Device] | None = None,
  map_stride: int = 0,
) -> LoweredStep:
  """The prediction step of a labelling worker.

  Args:
    teacher: the teacher's config.
    task: that labels.
    batch_size: of the job.
    devices: of one worker; all by default.
    map_stride: of the job.
  """
  mesh = mesh_lib.make_mesh(devices=devices)
  mesh_lib.check_batch_size("label.batch_size", batch_size, mesh)
  model = build_model(teacher, build_tasks(teacher))
  height, width = input_size(teacher)
  # Published rules give images that were interpolated on the host.
  is_float = teacher.data.eval_resize in preprocess.RULES
  everywhere = mesh_lib.replicated(mesh)
  variables = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
    jax.eval_shape(
      lambda key: init_variables(model, (height, width), key),
      jax.random.key(0),
    ),
  )
  rows = mesh_lib.batch_sharding(mesh)
  arguments = (
    variables,
    jax.ShapeDtypeStruct(
      (batch_size, height, width, 3),
      jnp.float32 if is_float else jnp.uint8,
      sharding=rows,
    ),
    jax.ShapeDtypeStruct((batch_size, 2), jnp.float32, sharding=rows),
  )
  predict = make_predict_step(model, {task.name: task}, mesh, map_stride)
  step = predict.lower(*arguments)
  return LoweredStep(
    step=step,
    batch_size=batch_size,
    loops=1,
    state=tree_bytes(variables),
    parameters=_size(variables["params"]),
    modules=tuple(variables["params"]),
    sent=0.0,
    outputs=step.out_info[task.name],
  )


def input_size(config: ConfigDict) -> tuple[int, int]:
  """(H, W) of what the network gets, for a photo of 4:3."""
  height, width = config.data.image_size
  if config.data.eval_resize not in preprocess.RULES:
    return height, width
  rule = preprocess.RULES[config.data.eval_resize]
  return preprocess.layout(_PHOTO, rule, (height, width)).canvas


def sent_bytes(
  params: PyTree, frozen: Sequence[str], parts: int, itemsize: int
) -> float:
  """Bytes that a chip sends at least in a training step.

  An estimate by where parameters live: gradients are summed over all chips, and
  parameters that are split are gathered once. What compiled steps send besides
  is a tenth or less (docs/scale.md), but for methods of balancing that look at
  each task's gradient.

  Args:
    params: {"backbone": ..., ...} of `jax.ShapeDtypeStruct` with shardings.
    frozen: parts without a gradient.
    parts: of the batch, each of which has a gradient to sum.
    itemsize: bytes of a gradient's element while it is summed.
  """
  sent = 0.0
  for name, arrays in params.items():
    for x in jax.tree.leaves(arrays):
      whole = math.prod(x.shape)
      own = math.prod(x.sharding.shard_shape(x.shape))
      elsewhere = whole - own
      sent += elsewhere * x.dtype.itemsize
      if name not in frozen:
        # Each chip's part is summed for it, and then among the chips that have
        # the same part, in a ring.
        copies = x.sharding.num_devices * own / whole
        ring = 2 * own * (copies - 1) / copies
        sent += parts * (elsewhere + ring) * itemsize
  return sent


def flops_per_image(lowered: LoweredStep) -> float:
  """Operations of the model for an image, as written.

  Args:
    lowered: for a CPU, without `remat` and `accumulate`.
  """
  costs: Any = lowered.step.cost_analysis()
  return costs["flops"] / lowered.batch_size


def compile_step(
  lowered: LoweredStep, effort: float = LEAST_EFFORT, with_work: bool = False
) -> StepCost:
  """Compiles a step; takes minutes.

  Args:
    lowered: for devices of a description.
    effort: of XLA.
    with_work: whether to split its work by parts of the model.
  """
  start = time.monotonic()
  options: Any = {"exec_time_optimization_effort": effort}
  try:
    compiled = lowered.step.compile(options)
  except jax.errors.JaxRuntimeError as error:
    return StepCost(
      hbm=_missing_memory(str(error)),
      fits=False,
      seconds=time.monotonic() - start,
      work=() if with_work else None,
    )
  memory: Any = compiled.memory_analysis()
  costs: Any = compiled.cost_analysis()
  arguments = memory.argument_size_in_bytes
  results = memory.output_size_in_bytes
  return StepCost(
    hbm=needed_memory(compiled),
    fits=True,
    # XLA counts what a loop does once.
    flops=lowered.loops * costs["flops"],
    least_bytes=arguments + results + 2 * memory.temp_size_in_bytes,
    xla_bytes=lowered.loops * costs["bytes accessed"],
    sent=lowered.sent,
    seconds=time.monotonic() - start,
    work=step_parts.split_work(compiled.as_text() or "", lowered.modules)
    if with_work
    else None,
  )


def needed_memory(compiled: jax.stages.Compiled) -> int:
  """Bytes that a compiled program needs of each device."""
  memory: Any = compiled.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes  # arguments that become results
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )


def tree_bytes(tree: PyTree) -> int:
  """Bytes of a tree of arrays or `jax.ShapeDtypeStruct`."""
  return sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def _missing_memory(message: str) -> float:
  """Bytes that a program needs, out of the message that they are too many.

  Raises:
    ValueError: the compiler failed for another reason.
  """
  found = _OUT_OF_MEMORY.search(message)
  if not found:
    raise ValueError(f"The step cannot be compiled: {message[:2000]}") from None
  return float(found[1]) * 1024.0 ** " KMGT".index(found[2])


def _size(tree: PyTree) -> int:
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
