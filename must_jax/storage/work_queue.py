"""Which shard a worker does next, among hundreds that share a directory.

Requests to the store grow with the shards, not with shards times workers: a
shard that nobody began costs one request to claim. Leases stay until the whole
set is done, so whoever makes a lease is the first at its shard, and need not
ask what others did. A worker begins with its own share, and with other places
than the rest; it wants to know what all do only when its claims keep failing.
Then one lists the directory, and tells the others what is there (`look`).
"""

import contextlib
import dataclasses
import random
import time
from collections.abc import Iterable, Sequence

from must_jax.storage import path as path_lib
from must_jax.storage.commits import CommitDirectory, Lease, is_stale

_MAX_FAILURES = 16  # claims in a row, then it is time to look again
_SAMPLE = 8  # leases that are looked at for a stale one
_LONGEST_PAUSE = 30.0  # seconds
_FILES_PER_PAGE = 1000  # shards that one request lists, about
_LOOK = "look"  # the lease of whoever looks, and what it saw


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
    self._worker = worker
    self._random = random.Random()
    self._numbers = {file: i for i, file in enumerate(files)}
    self._todo: list[int] = []
    self._place = self._failures = 0
    self._held: list[str] = []  # by others, when last looked at
    self._seen = 0.0  # when that was
    self.done: set[str] = set()
    # A large directory is looked at by one for all, and not very often.
    pages = len(files) / _FILES_PER_PAGE
    self._news_seconds = min(max(pages / 5, 5.0), lease_seconds / 4)
    self._is_large = pages >= 1
    if is_new or not (self._is_large and self._hear(lease_seconds)):
      if not is_new:
        self.done = directory.committed(files)
      self._plan(i for i, file in enumerate(files) if file not in self.done)

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
      if not self.look() or not self._todo:
        return self._take_over()

  def look(self) -> bool:
    """Finds out what is done, in other hands, and left, or hears it.

    Returns:
      Whether there was news.
    """
    if not self._is_large:
      self._list()
      return True
    if self._hear():
      return True
    lease = self._directory.lease(_LOOK, self._news_seconds)
    if lease is None:  # it was a moment ago, or another is looking
      return False
    free, has_leases = self._list()
    if not has_leases:  # nobody is left to tell: the set is finished
      path_lib.remove(lease.path)
      return True
    self._seen = time.time()
    held = [self._numbers[file] for file in self._held]
    news = {"beat": self._seen, "free": _ranges(free), "held": held}
    with contextlib.suppress(FileNotFoundError):  # finished meanwhile
      path_lib.publish_json(lease.path, news)
    return True

  def _hear(self, seconds: float = float("inf")) -> bool:
    """Takes over what another saw, if that is news and not so old."""
    news = self._directory.holder(_LOOK)
    if news is None or "free" not in news or news["beat"] <= self._seen:
      return False
    if time.time() - news["beat"] > seconds:
      return False
    self._seen = news["beat"]
    free = [i for begin, end in news["free"] for i in range(begin, end)]
    self._held = [self._files[i] for i in news["held"]]
    self.done = set(self._files).difference(
      self._held, (self._files[i] for i in free)
    )
    self._plan(free)
    return True

  def _list(self) -> tuple[list[int], bool]:
    """Lists the directory; returns what is free, and whether leases are."""
    # Leases first: one may become a commit meanwhile, never the reverse.
    leased = self._directory.leased(self._files)
    self.done = self._directory.committed(self._files)
    self._held = sorted(leased - self.done)
    free = [
      i
      for i, file in enumerate(self._files)
      if file not in self.done and file not in leased
    ]
    self._plan(free)
    return free, bool(leased)

  def _plan(self, free: Iterable[int]) -> None:
    """Decides what to claim: its own share, or else anything."""
    self._todo, self._failures, self._place = list(free), 0, 0
    index, count = self._worker.index, self._worker.count
    if count > 0 and index >= 0:
      own = [i for i in self._todo if i % count == index % count]
      if own:
        self._todo = own
        return
    if self._todo:
      self._place = self._random.randrange(len(self._todo))

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


def _ranges(numbers: Iterable[int]) -> list[list[int]]:
  """Rising numbers as [begin, end)."""
  ranges: list[list[int]] = []
  for number in numbers:
    if ranges and ranges[-1][1] == number:
      ranges[-1][1] += 1
    else:
      ranges.append([number, number + 1])
  return ranges
