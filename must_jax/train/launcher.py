"""How many processes a launcher started, and which is this; needs no JAX."""

import contextlib
import glob
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple

TPU_FILES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")


class Launch(NamedTuple):
  """What a launcher says of this process, as `jax.distributed` will read it.

  Attributes:
    launcher: its name.
    num_processes: of the run.
    process_id: of this process, from 0; -1 if the launcher does not say.
  """

  launcher: str = "no launcher"
  num_processes: int = 1
  process_id: int = -1


def find_launch(environ: Mapping[str, str]) -> Launch:
  """Reads what `jax.distributed` reads (see jax/_src/clusters).

  Args:
    environ: with the variables of GKE, SLURM or Open MPI. On a TPU VM without
      them the metadata server is asked.
  """
  hosts = environ.get(
    "TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES", "")
  )
  if hosts:
    per_slice = len(hosts.split(","))
    slices = int(environ.get("MEGASCALE_NUM_SLICES") or 1)
    return Launch(
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
      return Launch(launcher, int(environ[count]), int(environ.get(index, -1)))
  if any(glob.glob(files) for files in TPU_FILES):
    with contextlib.suppress(urllib.error.URLError, TimeoutError):
      hosts = tpu_metadata(environ, "worker-network-endpoints")
      index = tpu_metadata(environ, "agent-worker-number")
      return Launch("TPU VM", len(hosts.split(",")), int(index))
  return Launch()


def find_worker(environ: Mapping[str, str]) -> Launch:
  """Which of several labelling workers this is, who do not know each other.

  Args:
    environ: with MUST_JAX_WORKER_INDEX and MUST_JAX_WORKER_COUNT, which scripts
      in `launch/` set; or those of an array job of SLURM; or those of
      `find_launch`.

  Returns:
    Process -1 of 0 if nobody says.

  Raises:
    ValueError: our variables make no sense.
  """
  names = "MUST_JAX_WORKER_INDEX", "MUST_JAX_WORKER_COUNT"
  index, count = (environ.get(name, "") for name in names)
  if index or count:
    numbers = index.isdecimal() and count.isdecimal()
    if not numbers or int(index) >= int(count):
      raise ValueError(
        f"{names[0]} is {index!r} and {names[1]} is {count!r}; expected both,"
        " or neither: a worker's number from 0, and how many there are."
      )
    return Launch("MUST_JAX_WORKER_*", int(count), int(index))
  task, first, step, tasks = (
    int(environ.get(f"SLURM_ARRAY_TASK_{name}", default))
    for name, default in zip(
      ("ID", "MIN", "STEP", "COUNT"), "0011", strict=True
    )
  )
  if tasks > 1:  # in a list such as 5,9,100 the number is anything
    return Launch("SLURM array", tasks, (task - first) // step % tasks)
  launch = find_launch(environ)
  return launch if launch.num_processes > 1 else Launch("no launcher", 0, -1)


def tpu_metadata(environ: Mapping[str, str], key: str) -> str:
  """An attribute of a TPU VM; `urllib.error.URLError` on other machines."""
  server = environ.get("GCE_METADATA_IP", "metadata.google.internal")
  request = urllib.request.Request(
    f"http://{server}/computeMetadata/v1/instance/attributes/{key}",
    headers={"Metadata-Flavor": "Google"},
  )
  with urllib.request.urlopen(request, timeout=2) as answer:
    return answer.read().decode()
