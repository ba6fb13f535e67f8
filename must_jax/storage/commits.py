"""Work that is cut into shards, each committed whole: claim, work, publish.

Importing and labelling are the same protocol. Workers share a directory and
nothing else, on a disk or in a bucket:

  DIR/job.json                what all shards have in common; made first, by one
  DIR/leases/NAME             who works, or worked, on what
  DIR/SHARD.CONTENT.tfrecord  records of a shard, with their .offsets
  DIR/SHARD.json              its commit record, made last, by one: without one
                              the shard does not count

A shard's records are named by their content (`tfrecord.content_name`), and its
commit record is made exclusively. So two workers on one shard do no harm, even
if they make other bytes of it, and whatever the order of their writes: the
first commit counts, and names records that nobody else writes.

Whoever finds all shards committed publishes what is made of them. Every byte
but those of leases follows from the job and its input, so that it does not
matter who does a shard, when, or how often.

Workers of a labelling job lease a shard each (`work_queue`). An import leases
its directory as a whole: one process hands out the shards, to its own processes
or to a cluster.
"""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

from absl import logging

from must_jax.storage import path as path_lib
from must_jax.storage.path import Path, PathLike
from must_jax.storage.sets import Shard, parse_versioned_json
from must_jax.storage.tfrecord import RecordWriter, offsets_path, plain_name

JOB_FILE = "job.json"
_LEASES = "leases"
_READ_TOGETHER = 4096  # commit records
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
    return (self.path / plain_name(file)).with_suffix(".json")

  def writer(self, file: str) -> RecordWriter:
    """Writes the records of a shard."""
    return RecordWriter(self.path / file, by_content=True)

  def commit(self, commit: CommitT) -> bool:
    """Makes a shard count; all its other files must be there.

    Returns:
      Whether it was made; if not, another worker was faster.
    """
    return path_lib.create_json(
      self.commit_path(commit.shard.file), commit.to_value()
    )

  def discard(self, file: str) -> None:
    """Makes a shard count no longer."""
    path_lib.remove(self.commit_path(file))

  def is_committed(self, file: str) -> bool:
    """Whether a shard is done."""
    return path_lib.is_file(self.commit_path(file))

  def read(self, file: str) -> CommitT:
    """The commit record of a shard.

    Raises:
      ValueError: there is none, it cannot be understood, or it is of another
        job.
    """
    path = self.commit_path(file)
    (text,) = path_lib.read_files([path])
    return self._parse(path, text)

  def _parse(self, path: Path, text: bytes | None) -> CommitT:
    value = parse_versioned_json(
      path, text, self._type.VERSION, "the shard is not finished."
    )
    try:
      commit = self._type.from_value(value)
    except (KeyError, TypeError, AttributeError):
      raise ValueError(
        f"{path} is no commit record; move it away and run the job again."
      ) from None
    if commit.job != self.job:
      raise ValueError(
        f"{path} was committed by another job than {JOB_FILE} describes. Move"
        " it away to do its shard anew."
      )
    return commit

  def read_all(self, files: Sequence[str]) -> dict[str, CommitT]:
    """The commit records that are there of these shards, by file name.

    Raises:
      ValueError: see `read`.
    """
    return dict(self.read_each(files))

  def read_each(self, files: Sequence[str]) -> Iterator[tuple[str, CommitT]]:
    """The same in order, one at a time: together they may be very large."""
    return self._read_all(files, discard=False)

  def keep_valid(self, files: Sequence[str]) -> dict[str, CommitT]:
    """The same, but those that do not count are discarded."""
    return dict(self._read_all(files, discard=True))

  def _read_all(
    self, files: Sequence[str], discard: bool
  ) -> Iterator[tuple[str, CommitT]]:
    committed = self.committed(files)
    found = [file for file in files if file in committed]
    for begin in range(0, len(found), _READ_TOGETHER):
      part = found[begin : begin + _READ_TOGETHER]
      paths = [self.commit_path(file) for file in part]
      texts = path_lib.read_files(paths)
      for file, path, text in zip(part, paths, texts, strict=True):
        try:
          yield file, self._parse(path, text)
        except ValueError:
          if not discard:
            raise
          self.discard(file)

  def committed(self, files: Sequence[str]) -> set[str]:
    """Those of some shards that are done, by one listing of the directory."""
    names = path_lib.list_names(self.path, files)
    return {file for file in files if self.commit_path(file).name in names}

  def prepare(self) -> None:
    """Makes room for leases."""
    path_lib.make_directory(self.path / _LEASES)

  def lease(self, name: str, seconds: float) -> "Lease | None":
    """Takes a lease that is free or stale; None if it is another's.

    Args:
      name: of what is worked on.
      seconds: without a beat after which others may take it over.
    """
    return Lease.claim(self.path / _LEASES / name, seconds)

  def lease_if_new(self, name: str, seconds: float) -> "Lease | None":
    """Takes a lease that nobody ever took, without a look at others."""
    return Lease.create(self.path / _LEASES / name, seconds)

  def leased(self, files: Sequence[str]) -> set[str]:
    """Those of some shards that have a lease, by one listing."""
    try:
      names = path_lib.list_names(self.path / _LEASES, files)
    except FileNotFoundError:  # they go when the set is finished
      return set()
    return {file for file in files if file in names}

  def has_leases(self) -> bool:
    """Whether anybody works, or worked, in the directory."""
    with contextlib.suppress(FileNotFoundError):
      return bool(path_lib.list_names(self.path / _LEASES))
    return False

  def holders(self, names: Sequence[str]) -> list[dict[str, Any] | None]:
    """What the holders of leases wrote; None where nobody holds one."""
    paths = [self.path / _LEASES / name for name in names]
    return [
      json.loads(text) if text else None for text in path_lib.read_files(paths)
    ]

  def holder(self, name: str) -> dict[str, Any] | None:
    """What the holder of a lease wrote; None if nobody holds it."""
    return self.holders([name])[0]

  def clean_up(self, shards: Sequence[Shard]) -> None:
    """Deletes all but job, commits and shards, once all is published.

    Args:
      shards: what was committed.
    """
    # Others may do so, too, or claim this very moment.
    for _ in range(3):
      with contextlib.suppress(OSError):
        path_lib.remove_tree(self.path / _LEASES)
        break
    self.collect_garbage()
    kept = {shard.file for shard in shards}
    kept |= {offsets_path(file).name for file in kept}
    # Of workers that made other bytes of a shard, and were not the first.
    plain = {plain_name(shard.file) for shard in shards}
    path_lib.remove_all(
      [
        self.path / name
        for name in path_lib.list_names(self.path, list(kept))
        if name not in kept
        and plain_name(name.replace(".offsets", ".tfrecord")) in plain
      ]
    )

  def collect_garbage(self, min_age: float = 0, file: str = "") -> None:
    """Deletes temporary files of workers that died; a bucket has none.

    Args:
      min_age: seconds since they were last written to.
      file: only those of this shard.
    """
    if not path_lib.is_local(self.path):
      return
    prefix = "." + file.removesuffix("tfrecord")
    for name in path_lib.list_names(self.path):
      if not (name.startswith(prefix) and name.endswith(".tmp")):
        continue
      path = self.path / name
      with contextlib.suppress(FileNotFoundError):
        if time.time() - path_lib.modified(path) >= min_age:
          path_lib.remove(path)


@dataclasses.dataclass
class Lease:
  """A worker's claim on a shard: a file that it rewrites as it makes progress.

  One that was not rewritten for `seconds` belongs to a worker that died or
  hangs, and may be taken over. Leases save work, they do not guard it, see the
  module. That is why it is enough that clocks of different hosts agree to well
  within `seconds`, and that only buckets compare and write in one step.

  As a context it is given back at the end, unless it is `kept`.

  Attributes:
    path: of the file.
    seconds: without a beat after which others may take over.
    num_records: done so far.
    kept: stays, as a sign that the shard needs nobody any more.
  """

  path: Path
  seconds: float
  num_records: int = 0
  kept: bool = False

  def __post_init__(self):
    self._begin = self._last = time.monotonic()
    self._token = uuid.uuid4().hex
    self._version: path_lib.Version | None = None

  @classmethod
  def create(cls, path: Path, seconds: float) -> Self | None:
    """Takes a lease that nobody has or had; else None."""
    return cls(path, seconds)._take(None)

  @classmethod
  def claim(cls, path: Path, seconds: float) -> Self | None:
    """Takes a lease that is free or stale; None if it is another's."""
    found = path_lib.read_version(path)
    if found is not None and not is_stale(found.value, seconds):
      return None
    return cls(path, seconds)._take(found)

  def _take(self, before: path_lib.Version | None) -> Self | None:
    try:
      self._version = path_lib.replace_json(self.path, before, self._contents())
    except FileNotFoundError:
      return None  # the directory goes when the set is finished
    return self if self._version else None

  def is_held(self) -> bool:
    """Whether nobody has taken it over."""
    return self._is_ours(path_lib.read_version(self.path))

  def _is_ours(self, version: path_lib.Version | None) -> bool:
    return version is not None and version.value.get("token") == self._token

  def is_due(self) -> bool:
    """Whether others should hear of the worker again."""
    return time.monotonic() - self._last >= self.seconds / _BEATS

  def beat(self) -> bool:
    """Tells others that the worker lives; false if one has taken over."""
    self._last = time.monotonic()
    try:
      version = path_lib.replace_json(
        self.path, self._version, self._contents()
      )
    except FileNotFoundError:
      return False  # another worker may have finished the set
    except OSError as error:
      # Work goes on; at worst another worker does it, too.
      logging.warning("%s cannot be written: %s", self.path, error)
      return True
    if version is None:
      # It may be ours all the same, if the answer to an earlier beat was lost.
      version = path_lib.read_version(self.path)
      if not self._is_ours(version):
        return False
    self._version = version
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
    if not self.kept and self.is_held():
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
