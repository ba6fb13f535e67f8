"""Work that is cut into shards, each committed whole: claim, work, publish.

Importing and labelling are the same protocol. Workers share a directory and
nothing else:

  DIR/job.json        what all shards have in common; written first, by one
  DIR/leases/NAME     who works on what
  DIR/SHARD.tfrecord  records of a shard, with their .offsets
  DIR/SHARD.json      its commit record, written last: without one it does not
                      count

Whoever finds all shards committed publishes what is made of them. Every byte
but those of leases follows from the job and its input, so that it does not
matter who does a shard, when, or how often.

Workers of a labelling job lease a shard each. An import leases its directory as
a whole: one process hands out the shards, to its own processes or to a cluster.
"""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any, ClassVar, Generic, Self, TypeVar

from absl import logging

from must_jax.storage import path as path_lib
from must_jax.storage.path import Path, PathLike
from must_jax.storage.sets import Shard, read_versioned_json

JOB_FILE = "job.json"
_LEASES = "leases"
_BEATS = 10  # of a lease in the time after which it is stale


@dataclasses.dataclass(frozen=True)
class Commit:
  """The commit record of a shard. Subclasses add what else it says.

  Attributes:
    shard: as it lies in the directory.
    job: digest of the job.
  """

  VERSION: ClassVar[int] = 1

  shard: Shard
  job: str

  def to_value(self) -> dict[str, Any]:
    """As JSON."""
    return {"schema_version": self.VERSION, **dataclasses.asdict(self)}

  @classmethod
  def from_value(cls, value: Mapping[str, Any]) -> Self:
    """The reverse of `to_value`.

    Raises:
      KeyError, TypeError: it is none.
    """
    entries = {k: v for k, v in value.items() if k != "schema_version"}
    return cls(**entries | {"shard": Shard(**entries["shard"])})


CommitT = TypeVar("CommitT", bound=Commit)


class CommitDirectory(Generic[CommitT]):
  """The directory of a job.

  Args:
    directory: of the job.
    job: its digest; commits of other jobs do not count.
    commit_type: of its commit records.
  """

  def __init__(self, directory: PathLike, job: str, commit_type: type[CommitT]):
    self.path, self.job = Path(directory), job
    self._type = commit_type

  def commit_path(self, file: str) -> Path:
    """The commit record of the shard with this file name."""
    return (self.path / file).with_suffix(".json")

  def write(self, commit: CommitT) -> None:
    """Makes a shard count; all its other files must be there."""
    path_lib.publish_json(
      self.commit_path(commit.shard.file), commit.to_value()
    )

  def is_committed(self, file: str) -> bool:
    """Whether a shard is done."""
    return self.commit_path(file).exists()

  def read(self, file: str) -> CommitT:
    """The commit record of a shard.

    Raises:
      ValueError: there is none, it cannot be understood, or it is of another
        job.
    """
    path = self.commit_path(file)
    value = read_versioned_json(
      path, self._type.VERSION, "the shard is not finished."
    )
    try:
      commit = self._type.from_value(value)
    except (KeyError, TypeError, AttributeError):
      raise ValueError(
        f"{path} is no commit record; delete it and run the job again."
      ) from None
    if commit.job != self.job:
      raise ValueError(
        f"{self.path / file} was committed by another job than {JOB_FILE}"
        " describes. Delete its .json file to do it anew."
      )
    return commit

  def read_all(self, files: Iterable[str]) -> dict[str, CommitT]:
    """The commit records that are there of these shards, by file name.

    Raises:
      ValueError: see `read`.
    """
    there = path_lib.list_names(self.path)
    found = [file for file in files if self.commit_path(file).name in there]
    with futures.ThreadPoolExecutor(16) as pool:
      return dict(zip(found, pool.map(self.read, found), strict=True))

  def prepare(self) -> None:
    """Makes room for leases."""
    (self.path / _LEASES).mkdir(parents=True, exist_ok=True)

  def lease(self, name: str, seconds: float) -> "Lease | None":
    """Takes a lease that is free or stale; None if it is another's.

    Args:
      name: of what is worked on.
      seconds: without a beat after which others may take it over.
    """
    return Lease.claim(self.path / _LEASES / name, seconds)

  def holder(self, name: str) -> dict[str, Any] | None:
    """What the holder of a lease wrote; None if nobody holds it."""
    return read_lease(self.path / _LEASES / name)

  def clean_up(self) -> None:
    """Deletes leases and temporary files, once all is published."""
    # So may others, at the same time.
    with contextlib.suppress(OSError):
      path_lib.remove_tree(self.path / _LEASES)
    self.collect_garbage()

  def collect_garbage(self, min_age: float = 0, file: str = "") -> None:
    """Deletes temporary files of workers that died.

    Args:
      min_age: seconds since they were last written to.
      file: only those of this shard.
    """
    prefix = "." + file.removesuffix("tfrecord")
    for name in path_lib.list_names(self.path):
      if not (name.startswith(prefix) and name.endswith(".tmp")):
        continue
      path = self.path / name
      with contextlib.suppress(FileNotFoundError):
        if time.time() - path.stat().mtime >= min_age:
          path.unlink()


@dataclasses.dataclass
class Lease:
  """A worker's claim on a shard: a file that it rewrites as it makes progress.

  One that was not rewritten for `seconds` belongs to a worker that died or
  hangs, and may be taken over. Leases save work, they do not guard it: shards
  have the same bytes whoever makes them, and appear whole, so two workers on
  one shard do no harm. That is why it is enough that clocks of different hosts
  agree to well within `seconds`, and that claims are exclusive on POSIX file
  systems only.

  Attributes:
    path: of the file.
    seconds: without a beat after which others may take over.
    num_records: done so far.
  """

  path: Path
  seconds: float
  num_records: int = 0

  def __post_init__(self):
    self._begin = self._last = time.monotonic()
    self._token = uuid.uuid4().hex

  @classmethod
  def claim(cls, path: Path, seconds: float) -> Self | None:
    """Takes a lease that is free or stale; None if it is another's."""
    lease = cls(path, seconds)
    holder = read_lease(path)
    if holder is not None and not is_stale(holder, seconds):
      return None
    try:
      if holder is None:
        made = path_lib.create_json(path, lease._contents())
        return lease if made else None
      path_lib.publish_json(path, lease._contents())
    except FileNotFoundError:
      return None  # the directory goes when the set is finished
    return lease

  def is_held(self) -> bool:
    """Whether nobody has taken it over."""
    holder = read_lease(self.path)
    return holder is not None and holder.get("token") == self._token

  def beat(self) -> bool:
    """Tells others that the worker lives; returns whether it was due."""
    if time.monotonic() - self._last < self.seconds / _BEATS:
      return False
    self._last = time.monotonic()
    try:
      if self.is_held():
        path_lib.publish_json(self.path, self._contents())
    except FileNotFoundError:
      pass  # as above: another worker may have finished the set
    except OSError as error:
      # Work goes on; at worst another worker does it, too.
      logging.warning("%s cannot be written: %s", self.path, error)
    return True

  @contextlib.contextmanager
  def beating(self) -> Iterator[None]:
    """Beats from a thread, for work that has no steps of its own."""
    end = threading.Event()

    def beat() -> None:
      while not end.wait(self.seconds / _BEATS):
        self.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
      yield
    finally:
      end.set()
      thread.join()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: Any) -> None:
    """Gives back what was leased."""
    if self.is_held():
      path_lib.remove(self.path)

  def _contents(self) -> dict[str, Any]:
    return {
      "host": socket.gethostname(),
      "machine": _machine(),
      "pid": os.getpid(),
      "token": self._token,
      "beat": time.time(),
      "seconds": time.monotonic() - self._begin,
      "num_records": self.num_records,
    }


def read_lease(path: Path) -> dict[str, Any] | None:
  """What a lease's holder wrote; None if nobody holds it."""
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None


def is_stale(holder: Mapping[str, Any], seconds: float) -> bool:
  """Whether the holder of a lease is gone, or as good as gone."""
  # No need to wait after a restart on the same machine.
  is_here = holder.get("machine") == _machine()
  if is_here and not _runs(holder["pid"]):
    return True
  return time.time() - holder["beat"] > seconds


def _machine() -> str:
  """Where numbers of processes mean the same as here.

  Containers may share a name and have processes of their own.
  """
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):  # not Linux
    parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    parts.append(os.readlink("/proc/self/ns/pid"))
  return " ".join(parts)


def _runs(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True
