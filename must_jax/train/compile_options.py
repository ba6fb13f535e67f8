"""Options of XLA for steps, where its own choice is a bad one."""

import functools
import logging
import os
from typing import Any

import jax
from jax.sharding import Mesh, SingleDeviceSharding

# Small batches let TPU compilers cut maps into strips that take the place of
# images, pad the strips for each 3 x 3 convolution and join them again. That
# pays for one image on a chip. With two, whole maps are expected to take .7 to
# .9 of the cycles, with four half of them (docs/scale.md).
_WHOLE_MAPS = {
  "xla_tpu_run_space_to_batch": False,
  "xla_tpu_run_space_to_batch_on_new_platforms": False,
}


def compile_options(mesh: Mesh, num_images: int) -> dict[str, Any] | None:
  """What to give `jax.jit` as `compiler_options`.

  What `LIBTPU_INIT_ARGS` says of space to batch stays as it says.

  Args:
    mesh: devices of the program.
    num_images: that it computes at a time, on all of them.
  """
  device = mesh.local_devices[0]
  if (
    device.platform != "tpu"
    or num_images < 2 * mesh.size
    or "space_to_batch" in os.environ.get("LIBTPU_INIT_ARGS", "")
    or not _are_known(device)
  ):
    return None
  return dict(_WHOLE_MAPS)


@functools.cache
def _are_known(device: jax.Device) -> bool:
  """Whether the device's compiler has the options; they come and go."""
  scalar = jax.ShapeDtypeStruct(
    (), "float32", sharding=SingleDeviceSharding(device)
  )
  try:
    jax.jit(lambda x: x, compiler_options=dict(_WHOLE_MAPS)).lower(
      scalar
    ).compile()
  except jax.errors.JaxRuntimeError as error:
    logging.getLogger(__name__).warning(
      "Convolutions of few images a chip may be slow, for the compiler does not"
      " take %s: %s",
      ", ".join(_WHOLE_MAPS),
      error,
    )
    return False
  return True
