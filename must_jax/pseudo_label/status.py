"""How far a labelling job is, from the files of its directory alone."""

import dataclasses
import time

from must_jax.storage.label_sets import open_directory, read_job
from must_jax.storage.path import Path, PathLike, is_file
from must_jax.storage.sets import MANIFEST_FILE


@dataclasses.dataclass(frozen=True)
class WorkerStatus:
  """A worker that holds a lease.

  Attributes:
    name: its host and process.
    shard: file at work.
    num_records: labelled in this shard so far.
    images_per_second: in this shard.
    silent_seconds: since its last sign of life.
  """

  name: str
  shard: str
  num_records: int
  images_per_second: float
  silent_seconds: float


@dataclasses.dataclass(frozen=True)
class Status:
  """How far a job is.

  Attributes:
    num_records, num_labelled: in all shards, and in committed ones.
    done, leased, pending: numbers of shards.
    workers: those that hold leases.
    finished: the manifest is there.
  """

  num_records: int
  num_labelled: int
  done: int
  leased: int
  pending: int
  workers: tuple[WorkerStatus, ...]
  finished: bool

  @property
  def images_per_second(self) -> float:
    """Of all workers together, in the shards they are at."""
    return sum(worker.images_per_second for worker in self.workers)

  @property
  def eta_seconds(self) -> float | None:
    """Seconds to go at the present rate; None if nobody works."""
    if self.finished:
      return 0.0
    started = self.num_labelled + sum(w.num_records for w in self.workers)
    rate = self.images_per_second
    return (self.num_records - started) / rate if rate else None


def status(directory: PathLike) -> Status:
  """How far the job in a directory is, from its files alone.

  Raises:
    ValueError: the directory is no label set.
  """
  job = read_job(directory)
  shards = {shard["file"]: shard for shard in job["image_set"]["shards"]}
  labels = open_directory(directory, job)
  finished = is_file(Path(directory) / MANIFEST_FILE)
  leased = set() if finished else labels.leased(list(shards))
  done = labels.committed(list(shards))
  # Leases of finished shards stay until all are.
  held = sorted(leased - done)
  workers = [
    WorkerStatus(
      name=f"{holder['host']}:{holder['pid']}",
      shard=file,
      num_records=holder["num_records"],
      images_per_second=holder["num_records"] / max(holder["seconds"], 1e-9),
      silent_seconds=time.time() - holder["beat"],
    )
    for file, holder in zip(held, labels.holders(held), strict=True)
    if holder
  ]
  return Status(
    num_records=sum(shard["num_records"] for shard in shards.values()),
    num_labelled=sum(shards[file]["num_records"] for file in done),
    done=len(done),
    leased=len(workers),
    pending=len(shards) - len(done) - len(workers),
    workers=tuple(workers),
    finished=finished,
  )
