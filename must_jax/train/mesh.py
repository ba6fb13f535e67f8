"""The one place that knows how devices are laid out.

Arrays live on a mesh with the axes `data` and `fsdp`. A batch is split over
both. Parameters are the same everywhere along `data`; large ones, and what the
optimizer keeps of them, are split along `fsdp`.
"""

import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from must_jax.types import PyTree

AXES = ("data", "fsdp")
# Smaller arrays are not worth a collective of their own.
MIN_SPLIT_SIZE = 2**16


def make_mesh(
  data: int = -1, fsdp: int = 1, devices: list[jax.Device] | None = None
) -> Mesh:
  """A mesh over all devices of all processes.

  Args:
    data: devices along `data`; -1 for all that `fsdp` leaves.
    fsdp: devices along `fsdp`.
    devices: devices to use; all by default.

  Raises:
    ValueError: the devices don't fill the mesh.
  """
  devices = devices or jax.devices()
  if data == -1:
    data = max(1, len(devices) // fsdp)
  if data * fsdp != len(devices):
    raise ValueError(
      f"The mesh has data={data} x fsdp={fsdp} places, but there are"
      f" {len(devices)} devices; set config.mesh.data to -1, or so that the"
      " product is their number."
    )
  # Explicit axes, the default, refuse the gathers of a detector.
  return jax.make_mesh(
    (data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
  )


def local_mesh() -> Mesh:
  """A mesh over this process's devices alone, for labelling."""
  return make_mesh(devices=jax.local_devices())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Splits the leading dimension over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same values on every device."""
  return NamedSharding(mesh, PartitionSpec())


def state_sharding(state: PyTree, mesh: Mesh) -> PyTree:
  """Where each array of a state lives, by one rule of its shape.

  An array of `MIN_SPLIT_SIZE` elements or more is split along `fsdp`, in the
  largest of its dimensions that divides evenly; any other is replicated. The
  optimizer's copies of a parameter have its shape, so they live where it does.

  Args:
    state: a tree of arrays or `jax.ShapeDtypeStruct`.
    mesh: devices.

  Returns:
    A tree of `NamedSharding`.
  """
  parts = mesh.shape["fsdp"]

  def sharding(array: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
    sizes = [size if size % parts == 0 else 0 for size in array.shape]
    if parts == 1 or math.prod(array.shape) < MIN_SPLIT_SIZE or not any(sizes):
      return replicated(mesh)
    axis = sizes.index(max(sizes))
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

  return jax.tree.map(sharding, state)


def gather_params(params: PyTree, mesh: Mesh) -> PyTree:
  """Parameters whole on every device, in a compiled function.

  Else XLA may split activations after the parameters.
  """
  if mesh.shape["fsdp"] == 1:
    return params
  return jax.lax.with_sharding_constraint(params, replicated(mesh))


def to_device(batch: PyTree, mesh: Mesh) -> PyTree:
  """Makes global arrays of this process's part of a batch."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )


def check_batch_size(
  name: str, batch_size: int, mesh: Mesh, accumulate: int = 1
) -> None:
  """A batch, or each of its parts, must split evenly over the devices.

  Raises:
    ValueError: it does not.
  """
  if batch_size % (mesh.size * accumulate):
    parts = f" in {accumulate} parts" if accumulate > 1 else ""
    raise ValueError(
      f"{name} is {batch_size}, which {mesh.size} devices cannot share"
      f" equally{parts}; expected a multiple of {mesh.size * accumulate}."
    )
