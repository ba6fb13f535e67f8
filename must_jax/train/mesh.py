"""The one place that knows how devices are laid out.

Arrays live on a mesh with the axes `data` and `fsdp`; a batch is split over
both, parameters are the same everywhere.
"""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from must_jax.types import PyTree

AXES = ("data", "fsdp")


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


def to_device(batch: PyTree, mesh: Mesh) -> PyTree:
  """Makes global arrays of this process's part of a batch."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )


def check_batch_size(name: str, batch_size: int, mesh: Mesh) -> None:
  """A batch must split evenly over the devices.

  Raises:
    ValueError: it does not.
  """
  if batch_size % mesh.size:
    raise ValueError(
      f"{name} is {batch_size}, which {mesh.size} devices cannot share"
      f" equally; expected a multiple of {mesh.size}."
    )
