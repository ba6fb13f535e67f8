"""StableHLO as `jax.export` serialises it; one file for CPUs, GPUs and TPUs."""

import jax
from jax import export

from must_jax.export.program import ExportProgram
from must_jax.storage.path import Path

ARTEFACT = "model.stablehlo"
REQUIRES = ("jax", "flatbuffers")
ANY_BATCH = True
PLATFORMS = ("cpu", "cuda", "tpu")


def write(program: ExportProgram, directory: Path) -> None:
  """See `formats.Format`."""
  exported = export.export(jax.jit(program), platforms=PLATFORMS)(
    *program.inputs()
  )
  (directory / ARTEFACT).write_bytes(exported.serialize())
