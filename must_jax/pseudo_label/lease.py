"""Leases: which worker labels which shard, by files that age.

A lease is a file that its worker rewrites as it makes progress. One that was
not rewritten for `ttl` seconds belongs to a worker that died or hangs, and may
be taken over. Leases save work, they do not guard it: labels are
deterministic and shards appear whole, so two workers on one shard do no harm.
That is why it is enough that clocks of different hosts agree to well within
`ttl`, and that claims are exclusive on POSIX file systems only.
"""

import contextlib
import dataclasses
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any, Self

from etils import epath

from must_jax.pseudo_label import store
from must_jax.storage.tfrecord import write_json

_BEATS = 10  # per `ttl`


@dataclasses.dataclass
class Lease:
  """A worker's claim on a shard.

  Attributes:
    path: of the file.
    ttl: seconds without a beat after which others may take over.
    num_records: records labelled so far.
  """

  path: epath.Path
  ttl: float
  num_records: int = 0

  def __post_init__(self):
    self._begin = self._last = time.monotonic()

  @classmethod
  def claim(cls, path: epath.Path, ttl: float) -> Self | None:
    """Takes a lease that is free or stale; None if it is another's."""
    lease = cls(path, ttl)
    holder = read(path)
    if holder is not None and not is_stale(holder, ttl):
      return None
    try:
      if holder is None:
        return lease if store.create(path, lease._contents()) else None
      write_json(path, lease._contents())
    except FileNotFoundError:
      return None  # the directory goes when the set is finished
    return lease

  def beat(self) -> bool:
    """Tells others that the worker lives; returns whether it was due."""
    if time.monotonic() - self._last < self.ttl / _BEATS:
      return False
    self._last = time.monotonic()
    # As above: another worker may have finished the set.
    with contextlib.suppress(FileNotFoundError):
      write_json(self.path, self._contents())
    return True

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: Any) -> None:
    """Gives the shard back."""
    self.path.unlink(missing_ok=True)

  def _contents(self) -> dict[str, Any]:
    return {
      "host": socket.gethostname(),
      "pid": os.getpid(),
      "beat": time.time(),
      "seconds": time.monotonic() - self._begin,
      "num_records": self.num_records,
    }


def read(path: epath.Path) -> dict[str, Any] | None:
  """What a lease's holder wrote; None if nobody holds it."""
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None


def is_stale(holder: Mapping[str, Any], ttl: float) -> bool:
  """Whether the holder of a lease is gone, or as good as gone."""
  if holder["host"] == socket.gethostname() and not _runs(holder["pid"]):
    return True  # no need to wait after a restart on the same host
  return time.time() - holder["beat"] > ttl


def _runs(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True
