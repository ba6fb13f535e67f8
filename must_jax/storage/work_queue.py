"""Which shard a worker does next, among hundreds that share a directory.

Requests to the store grow with the shards, not with shards times workers: a
shard that nobody began costs one request to claim. Leases stay until the whole
set is done, so whoever makes a lease is the first at its shard, and need not
ask what others did. A worker begins with its own share, and with other places
than the rest; it looks at what all do only when its claims keep failing.
"""

import dataclasses
import random
import time
from collections.abc import Sequence

from must_jax.storage.commits import CommitDirectory, Lease, is_stale

_MAX_FAILURES = 16  # claims in a row, then it is time to look again
_SAMPLE = 8  # leases that are looked at for a stale one
_LONGEST_PAUSE = 30.0  # seconds
_FILES_PER_PAGE = 1000  # shards that one request lists, about


@dataclasses.dataclass(frozen=True)
class Worker:
  """A worker's place among all.

  Attributes:
    index: from 0; -1 if nobody says: then it begins anywhere.
    count: of all workers; 0 if nobody says.
  """

  index: int
  count: int


ALONE = Worker(0, 1)


class WorkQueue:
  """The shards of a job, as one worker takes them.

  Args:
    directory: of the job.
    files: names of all shards.
    lease_seconds: a worker that is silent for so long is taken for dead.
    worker: which this is.
    is_new: nobody has worked in this directory yet.
  """

  def __init__(
    self,
    directory: CommitDirectory,
    files: Sequence[str],
    lease_seconds: float,
    worker: Worker = ALONE,
    is_new: bool = False,
  ):
    self._directory, self._files = directory, files
    self._seconds = lease_seconds
    self._random = random.Random()
    self._numbers = {file: i for i, file in enumerate(files)}
    self._place = self._failures = 0
    self._held: list[str] = []  # by others, when last looked at
    self._next_look = 0.0
    self.done: set[str] = set()
    if not is_new:
      self.done = directory.committed(files)
    everything = range(len(files))
    if worker.count > 0 and worker.index >= 0:
      everything = range(worker.index % worker.count, len(files), worker.count)
    self._todo = [i for i in everything if files[i] not in self.done]
    if worker.index < 0 and self._todo:
      self._place = self._random.randrange(len(self._todo))

  @property
  def is_done(self) -> bool:
    """Whether all shards are committed, as far as was seen."""
    return len(self.done) == len(self._files)

  def claim(self) -> tuple[int, Lease] | None:
    """The next shard that nobody works on; None if there is none now."""
    while True:
      while self._todo and self._failures < _MAX_FAILURES:
        self._place %= len(self._todo)
        index = self._todo.pop(self._place)
        lease = self._directory.lease_if_new(self._files[index], self._seconds)
        if lease is not None:
          self._failures = 0
          return index, lease
        # Others are here: go where they may not be.
        self._failures += 1
        if self._todo:
          self._place = self._random.randrange(len(self._todo))
      if time.monotonic() < self._next_look:
        return self._take_over()
      self.look()
      if not self._todo:
        return self._take_over()

  def look(self) -> None:
    """Finds out what is done, what is in other hands, and what is left."""
    # Leases first: one may become a commit meanwhile, never the reverse.
    held = self._directory.leased(self._files)
    self.done = self._directory.committed(self._files)
    self._held = sorted(held - self.done)
    free = [f for f in self._files if f not in self.done and f not in held]
    self._todo = [self._numbers[file] for file in free]
    self._failures = 0
    if self._todo:
      self._place = self._random.randrange(len(self._todo))
      return
    # While others do the last ones, a large directory is rarely listed.
    pages = len(self._files) // _FILES_PER_PAGE
    self._next_look = time.monotonic() + min(pages, self._seconds)

  def _take_over(self) -> tuple[int, Lease] | None:
    """A shard of a worker that died, if one is found."""
    some = self._random.sample(self._held, min(_SAMPLE, len(self._held)))
    for file, holder in zip(some, self._directory.holders(some), strict=True):
      if holder is not None and not is_stale(holder, self._seconds):
        continue
      self._held.remove(file)
      if self._directory.is_committed(file):
        self.done.add(file)
        continue
      lease = self._directory.lease(file, self._seconds)
      if lease is not None:
        self._directory.collect_garbage(self._seconds, file)
        return self._numbers[file], lease
    return None

  def finished(self, file: str) -> None:
    """Notes that a shard was committed, by this worker or another."""
    self.done.add(file)

  def wait(self) -> None:
    """Lets the others go on, before the next claim."""
    pause = min(self._seconds / 4, _LONGEST_PAUSE)
    time.sleep(pause * self._random.uniform(0.5, 1))
