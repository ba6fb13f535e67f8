"""Where a process belongs in a run; needs no JAX."""

import contextlib
import glob
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple

TPU_FILES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")


class Place(NamedTuple):
  """This process's place among the others, as JAX will find it.

  Attributes:
    launcher: who says so.
    processes: of the run.
    number: of this one; -1 if nobody says so.
  """

  launcher: str = "no launcher"
  processes: int = 1
  number: int = -1


def find_place(environ: Mapping[str, str]) -> Place:
  """Reads what jax.distributed reads.

  See jax/_src/clusters: variables of GKE, SLURM and Open MPI, or the metadata
  of a TPU VM.
  """
  hosts = environ.get(
    "TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES", "")
  )
  if hosts:
    per_slice = len(hosts.split(","))
    slices = int(environ.get("MEGASCALE_NUM_SLICES") or 1)
    return Place(
      "TPU_WORKER_HOSTNAMES",
      per_slice * slices,
      int(environ.get("TPU_WORKER_ID", -1))
      + per_slice * int(environ.get("MEGASCALE_SLICE_ID") or 0),
    )
  for launcher, count, index in (
    ("SLURM", "SLURM_NTASKS", "SLURM_PROCID"),
    ("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
  ):
    if count in environ:
      return Place(launcher, int(environ[count]), int(environ.get(index, -1)))
  if any(glob.glob(files) for files in TPU_FILES):
    with contextlib.suppress(urllib.error.URLError, TimeoutError):
      hosts = tpu_metadata(environ, "worker-network-endpoints")
      index = tpu_metadata(environ, "agent-worker-number")
      return Place("TPU VM", len(hosts.split(",")), int(index))
  return Place()


def tpu_metadata(environ: Mapping[str, str], key: str) -> str:
  """An attribute of a TPU VM; `urllib.error.URLError` on other machines."""
  server = environ.get("GCE_METADATA_IP", "metadata.google.internal")
  request = urllib.request.Request(
    f"http://{server}/computeMetadata/v1/instance/attributes/{key}",
    headers={"Metadata-Flavor": "Google"},
  )
  with urllib.request.urlopen(request, timeout=2) as answer:
    return answer.read().decode()
