"""What hundreds of labelling workers ask of a bucket, and how long they take.

    python -m benchmarks.fleet --shards 300000 --workers 256

The workers are those of a labelling job, with their queue, leases and commits.
Their clock is not: a shard takes no longer than it takes to say so, and a
worker that waits lets the others go on. Nor is the bucket, which lies in memory
and counts what Google Cloud Storage would charge: a request for each object
that is read, written or deleted, also in vain, and for each page of names.
Reading images is not counted.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import heapq
import io
import itertools
import json
import math
import os
import random
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import tqdm

from must_jax.pseudo_label import job as job_lib
from must_jax.storage import (
  commits,
  label_sets,
  sets,
  tfrecord,
  work_queue,
)
from must_jax.storage import path as path_lib
from must_jax.storage.commits import JOB_FILE, CommitDirectory, Lease
from must_jax.storage.label_sets import LabelCommit
from must_jax.storage.sets import MANIFEST_FILE, Shard
from must_jax.storage.work_queue import Worker

DIRECTORY = "gs://fleet/labels"
LEASES = f"{DIRECTORY}/leases"
LATENCY = 0.05  # seconds of a request
PAGES = (1000, 5000)  # names that one request lists
_CONCURRENT = 64  # requests of one call
_PER_BATCH = 100  # objects that one request deletes; each is charged
_STEP = 30.0  # seconds between a worker's looks at its clock
_LEASE_SECONDS = 600.0
_DEVIATION = 0.5  # of the logarithm of the seconds of a shard
_DIGEST = "0" * 32
_OTHER = "records"  # what is asked for where nothing else is said
Figure = tuple[str, float, str]


# The clock


class _Killed(BaseException):
  """The worker died; it asks nothing any more."""


class _Process:
  """A thread of the simulation; one runs at a time.

  Attributes:
    number: of the worker.
    life: how often it was started before.
    death: when it dies.
    kind: of what it asks the bucket for at present.
  """

  def __init__(self, number: int, life: int = 0, death: float = math.inf):
    self.number, self.life, self.death = number, life, death
    self.kind = _OTHER
    self.turn = threading.Lock()
    self.turn.acquire()


class Clock:
  """A time that passes when all wait."""

  def __init__(self):
    self.now = 0.0
    self.current = _Process(-1)
    self._waiting: list[tuple[float, int, _Process]] = []
    self._numbers = itertools.count()
    self._end = threading.Event()
    self._error: BaseException | None = None

  def start(
    self, when: float, process: _Process, body: Callable[[], None]
  ) -> None:
    """Lets a thread begin at some time; it waits for its turn."""

    def run() -> None:
      process.turn.acquire()
      try:
        with contextlib.suppress(_Killed):
          body()
      except BaseException as error:
        self._error = error
        self._end.set()
      else:
        self._next()

    heapq.heappush(self._waiting, (when, next(self._numbers), process))
    threading.Thread(target=run, daemon=True).start()

  def run(self) -> None:
    """Until all threads have ended.

    Raises:
      BaseException: that of a thread.
    """
    self._next()  # the first
    self._end.wait()
    if self._error:
      raise self._error

  def sleep(self, seconds: float) -> None:
    """Lets time pass for the thread that asks."""
    process = self.current
    when = min(self.now + seconds, max(process.death, self.now))
    heapq.heappush(self._waiting, (when, next(self._numbers), process))
    if self._next() is not process:
      process.turn.acquire()
    if self.now >= process.death:
      raise _Killed

  def _next(self) -> _Process | None:
    before = self.current
    if not self._waiting:
      self._end.set()
      return None
    self.now, _, following = heapq.heappop(self._waiting)
    self.current = following
    if following is not before:
      following.turn.release()  # after which all of this may have changed
    return following

  def time(self) -> float:
    """As `time.time`."""
    return self.now

  monotonic = time


# The bucket


@dataclasses.dataclass
class _Directory:
  """Contents and versions of files by name; `parts` counts beginnings."""

  files: dict[str, tuple[bytes, int]] = dataclasses.field(default_factory=dict)
  parts: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )


class Store:
  """A bucket in memory, by the functions of `path` that jobs use.

  Args:
    clock: passes with each request.
    shards: file names.

  Attributes:
    counts: requests by (kind, worker); for listings with pages of 1,000.
    pages: requests that listings need, by length of a page.
    sent: shards whose records were sent, by file, and how often.
    committed: shards with a commit record.
    last_commit, finished: when there was the last one, and the manifest.
  """

  def __init__(self, clock: Clock, shards: Sequence[str]):
    self._clock, self._shards = clock, shards
    self.counts: collections.Counter[tuple[str, int]] = collections.Counter()
    self.pages: collections.Counter[int] = collections.Counter()
    self.sent: collections.Counter[str] = collections.Counter()
    self.committed: set[str] = set()
    self.last_commit = self.finished = 0.0
    self._directories: dict[str, _Directory] = collections.defaultdict(
      _Directory
    )
    self._versions = itertools.count(1)
    # As `path.list_sizes` divides them.
    self._length = len(os.path.commonprefix(list(shards))) + 2  # noqa: RUF071
    self._parts = sorted({name[: self._length] for name in shards})

  def _ask(self, requests: int, rounds: float = 1, kind: str = "") -> None:
    """Counts requests, so many rounds of which follow each other."""
    process = self._clock.current
    if process.number < 0:
      return  # what is there before the fleet begins
    self.counts[kind or process.kind, process.number] += requests
    self._clock.sleep(rounds * LATENCY)

  def _find(self, path: Any) -> tuple[_Directory, str]:
    directory, _, name = os.fspath(path).rpartition("/")
    return self._directories[directory], name

  def get(self, path: Any) -> tuple[bytes, int] | None:
    """Contents and version of a file, without a request."""
    directory, name = self._find(path)
    return directory.files.get(name)

  def put(self, path: Any, data: bytes) -> int:
    """Writes a file without a request."""
    directory, name = self._find(path)
    if name not in directory.files:
      directory.parts[name[: self._length]] += 1
    version = next(self._versions)
    directory.files[name] = data, version
    if directory is self._directories[DIRECTORY]:
      if name.endswith(".tfrecord"):
        self.sent[tfrecord.plain_name(name)] += 1
      elif name == MANIFEST_FILE:
        self.finished = self._clock.now
      elif name.endswith(".json") and name != JOB_FILE:
        self.committed.add(name.removesuffix("json") + "tfrecord")
        self.last_commit = self._clock.now
    return version

  def names(self, directory: str) -> set[str]:
    """Names in a directory, without a request."""
    return set(self._directories[directory].files)

  def delete(self, path: Any) -> None:
    """Deletes a file without a request."""
    directory, name = self._find(path)
    if directory.files.pop(name, None) is not None:
      directory.parts[name[: self._length]] -= 1

  def ask_listing(self, directory: Any, expected: Sequence[str] = ()) -> None:
    """Counts the requests of `path.list_sizes`."""
    found = self._directories[os.fspath(directory)]
    sizes = [len(found.files)]
    if len(expected) > path_lib._PAGE:
      sizes = [found.parts[part] for part in self._parts]
    requests = {
      # Where nothing is found, gcsfs asks for a file of the name.
      page: [math.ceil(size / page) if size else 2 for size in sizes]
      for page in PAGES
    }
    for page in PAGES:
      self.pages[page] += sum(requests[page])
    listed = requests[PAGES[0]]
    rounds = max(max(listed), sum(listed) / _CONCURRENT)
    self._ask(sum(listed), rounds)

  # The functions of `path`

  def list_sizes(
    self, directory: Any, expected: Sequence[str] = ()
  ) -> dict[str, int]:
    """As `path.list_sizes`."""
    self.ask_listing(directory, expected)
    found = self._directories[os.fspath(directory)].files
    return {name: len(data) for name, (data, _) in found.items()}

  def list_names(
    self, directory: Any, expected: Sequence[str] = ()
  ) -> set[str]:
    """As `path.list_names`."""
    return set(self.list_sizes(directory, expected))

  def is_file(self, path: Any) -> bool:
    """As `path.is_file`."""
    found = self.get(path) is not None
    self._ask(1 if found else 2)
    return self.get(path) is not None

  def read_files(self, paths: Sequence[Any]) -> list[bytes | None]:
    """As `path.read_files`."""
    if not paths:
      return []
    self._ask(len(paths), math.ceil(len(paths) / _CONCURRENT))
    found = [self.get(path) for path in paths]
    return [file[0] if file else None for file in found]

  def read_version(self, path: Any) -> path_lib.Version | None:
    """As `path.read_version`."""
    self._ask(1)
    found = self.get(path)
    return path_lib.Version(json.loads(found[0]), found[1]) if found else None

  def replace_json(
    self, path: Any, before: path_lib.Version | None, value: Any
  ) -> path_lib.Version | None:
    """As `path.replace_json`."""
    self._ask(1)
    found = self.get(path)
    if (found[1] if found else 0) != (before.generation if before else 0):
      # `Gcs.write_if` reads whether it is its own.
      process = self._clock.current
      self.counts[process.kind, process.number] -= 1
      self._ask(2, kind=f"{process.kind}, in vain")
      return None
    data = path_lib.json_text(value).encode()
    return path_lib.Version(value, self.put(path, data))

  def create_json(self, path: Any, value: Any) -> bool:
    """As `path.create_json`."""
    return self.replace_json(path, None, value) is not None

  @contextlib.contextmanager
  def publish(
    self, path: Any, final: Callable[[], Any] | None = None
  ) -> Iterator[io.BytesIO]:
    """As `path.publish`."""
    with io.BytesIO() as buffer:
      yield buffer
      self._ask(1)
      self.put(final() if final else path, buffer.getvalue())

  def publish_json(self, path: Any, value: Any) -> None:
    """As `path.publish_json`."""
    with self.publish(path) as file:
      file.write(path_lib.json_text(value).encode())

  def remove(self, path: Any) -> None:
    """As `path.remove`."""
    self._ask(1)
    self.delete(path)

  def remove_all(self, paths: Sequence[Any]) -> None:
    """As `path.remove_all`."""
    rounds = len(paths) / _PER_BATCH / _CONCURRENT
    self._ask(len(paths), math.ceil(rounds))
    for path in paths:
      self.delete(path)

  def remove_tree(self, directory: Any) -> None:
    """As `path.remove_tree`."""
    directory = os.fspath(directory)
    names = list(self._directories[directory].files)
    if not names:
      raise FileNotFoundError(directory)
    self.ask_listing(directory)
    self.remove_all([f"{directory}/{name}" for name in names])


_FUNCTIONS = (
  *("list_names", "list_sizes", "is_file", "read_files", "read_version"),
  *("replace_json", "create_json", "publish", "publish_json", "remove"),
  *("remove_all", "remove_tree"),
)
_MODULES = (path_lib, commits, label_sets, sets, tfrecord, job_lib)
# What a request is for; within one of these, others do not count.
_KINDS = (
  (CommitDirectory, "lease_if_new", "claim"),
  (CommitDirectory, "lease", "take over"),
  (CommitDirectory, "holders", "look for the dead"),
  (CommitDirectory, "is_committed", "look for the dead"),
  (CommitDirectory, "committed", "look"),
  (CommitDirectory, "leased", "look"),
  (work_queue.WorkQueue, "look", "look"),
  (work_queue.WorkQueue, "_hear", "look"),
  (CommitDirectory, "commit", "commit"),
  (Lease, "beat", "beat"),
  (job_lib._Worker, "_read_manifest", "wait"),
  (job_lib._Worker, "_finish", "finish"),
)


# The fleet


@dataclasses.dataclass(frozen=True)
class Fleet:
  """What is simulated.

  Attributes:
    shards, workers: how many.
    told: workers know which they are.
    resumed: half of the shards are done, and each worker was at another one
      when it died.
    seconds: of a shard, in the mean; log-normal with a deviation of a half.
    slow: this share of the workers takes twice as long.
    dying: this share dies once, and is started again within 20 minutes.
    exact: lists whole directories, as jobs do, which takes time: a test.
    seed: of everything drawn.
  """

  shards: int
  workers: int
  told: bool = True
  resumed: bool = False
  seconds: float = 60.0
  slow: float = 0.1
  dying: float = 0.05
  exact: bool = False
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
  """What came of it.

  Attributes:
    shards, workers: that were to be labelled, and by how many.
    counts: requests by kind.
    pages: requests that listings need, by length of a page.
    largest: requests of the worker with the most.
    hours: until the last shard was committed, and until the set was finished.
    ideal_hours: of work, if all workers ended at the same moment.
    twice: shards whose records were sent more than once.
  """

  shards: int
  workers: int
  counts: dict[str, int]
  pages: dict[int, int]
  largest: int
  hours: tuple[float, float]
  ideal_hours: float
  twice: int

  @property
  def total(self) -> int:
    """All requests."""
    return sum(self.counts.values())


class _Done(set[str]):
  """As many as were there, and those that are added: full sets take memory."""

  def __init__(self, before: int):
    super().__init__()
    self._before = before

  def __len__(self) -> int:
    return self._before + super().__len__()


class _Queue(work_queue.WorkQueue):
  """The queue, which forgets by name what was done when it looked."""

  def look(self) -> bool:
    news = super().look()
    self.done = _Done(len(self.done))
    return news


class Simulation:
  """A clock, a bucket and workers that know of no other.

  Args:
    fleet: what is simulated.
  """

  def __init__(self, fleet: Fleet):
    self._fleet = fleet
    self._files = [
      sets.shard_file("pile", "train", i, fleet.shards)
      for i in range(fleet.shards)
    ]
    self._numbers = {file: i for i, file in enumerate(self._files)}
    self._order = list(self._numbers.values())
    draw = random.Random(fleet.seed)
    middle = math.log(fleet.seconds) - _DEVIATION**2 / 2
    self._seconds = [
      draw.lognormvariate(middle, _DEVIATION) for _ in self._files
    ]
    workers = range(fleet.workers)
    slow = set(draw.sample(workers, round(fleet.slow * len(workers))))
    self._slowness = [2 if i in slow else 1 for i in workers]
    self._draw = draw
    self.clock = Clock()
    self.store = Store(self.clock, self._files)
    keys = sets.key_digest([])
    # Without records: what is asked for does not depend on them.
    self._shards = [Shard(file, 0, 0, "", keys) for file in self._files]
    self._directory = label_sets.LabelDirectory(DIRECTORY, _DIGEST, LabelCommit)
    teacher = {"digest": _DIGEST}
    self._static = {"schema_version": 1, "fields": {}, "teacher": teacher}
    images = types.SimpleNamespace(
      shards=self._shards, num_records=0, directory="gs://fleet/pile"
    )
    self._job = job_lib.LabelJob(
      images,  # type: ignore[arg-type]
      DIRECTORY,
      {},
      teacher,
      {},
      lease_seconds=_LEASE_SECONDS,
    )

  def run(self) -> Result:
    """Labels all shards."""
    fleet = self._fleet
    todo = self._seconds
    with self._replaced():
      if fleet.resumed:
        todo = self._begin()
      speed = sum(1 / slowness for slowness in self._slowness)
      ideal = sum(todo) / speed
      dying = self._draw.sample(
        range(fleet.workers), round(fleet.dying * fleet.workers)
      )
      for i in range(fleet.workers):
        begin = self._draw.uniform(0, 300)
        process = _Process(i)
        if i in dying:
          process.death = self._draw.uniform(begin, ideal)
          again = process.death + self._draw.uniform(60, 1200)
          self._start(again, _Process(i, life=1))
        self._start(begin, process)
      self.clock.run()
    counts: collections.Counter[str] = collections.Counter()
    by_worker: collections.Counter[int] = collections.Counter()
    for (kind, number), count in self.store.counts.items():
      counts[kind] += count
      by_worker[number] += count
    return Result(
      shards=len(todo),
      workers=fleet.workers,
      counts=dict(counts),
      pages=dict(self.store.pages),
      largest=max(by_worker.values()),
      hours=(self.store.last_commit / 3600, self.store.finished / 3600),
      ideal_hours=ideal / 3600,
      twice=sum(count > 1 for count in self.store.sent.values()),
    )

  def _begin(self) -> list[float]:
    """Does half of the shards; returns the seconds of the others."""
    # As if each worker had done the first half of its share.
    width = self._fleet.workers
    done = [
      i
      for i in range(len(self._files))
      if i // width < len(self._files) // width // 2
    ]
    held = range(len(done), min(len(done) + width, len(self._files)))
    holder = {"machine": "gone", "pid": 1, "beat": -3600.0, "token": ""}
    for i in itertools.chain(done, held):
      self.store.put(f"{LEASES}/{self._files[i]}", json.dumps(holder).encode())
    for i in done:
      with self._directory.writer(self._files[i]) as writer:
        pass
      shard = dataclasses.replace(
        self._shards[i], file=writer.path.name, checksum=writer.checksum
      )
      self._directory.commit(LabelCommit(shard, _DIGEST, _DIGEST, (), {}))
    self.store.put(f"{DIRECTORY}/{JOB_FILE}", b"{}")
    self.store.sent.clear()
    return self._seconds[len(done) :]

  def _start(self, when: float, process: _Process) -> None:
    place = Worker(-1, 0)
    if self._fleet.told:
      place = Worker(process.number, self._fleet.workers)

    def examples(index: int) -> Iterator[list[Any]]:
      left = self._seconds[index] * self._slowness[process.number]
      while left > 0:
        self.clock.sleep(min(left, _STEP))
        left -= _STEP
        yield []

    def body() -> None:
      worker = job_lib._Worker(
        dataclasses.replace(self._job, worker=place),
        types.SimpleNamespace(examples=examples),  # type: ignore[arg-type]
        lambda: False,
      )
      # What all know is there once.
      worker._files = worker._queue._files = self._files
      worker._queue._numbers = self._numbers
      worker._queue._todo = [self._order[i] for i in worker._queue._todo]
      worker._queue.done = _Done(len(worker._queue.done))
      worker.run()

    self.clock.start(when, process, body)

  @contextlib.contextmanager
  def _replaced(self) -> Iterator[None]:
    """Puts clock and bucket in the place of the real ones."""
    clock, store = self.clock, self.store
    seeds = itertools.count(self._fleet.seed)
    replacements: list[tuple[Any, str, Any]] = [
      (work_queue, "time", clock),
      (commits, "time", clock),
      (job_lib, "time", clock),
      (
        work_queue,
        "random",
        types.SimpleNamespace(Random=lambda: random.Random(next(seeds))),
      ),
      (commits, "_machine", self._machine),
      (Lease, "beating", lambda lease: self._beating(lease)),
      (job_lib, "WorkQueue", _Queue),
      (job_lib, "tqdm", lambda **_: tqdm.tqdm(disable=True)),
      (job_lib, "LabelSet", types.SimpleNamespace(open=self._open)),
      (label_sets, "describe_job", lambda *_: self._static),
      (label_sets, "claim_directory", self._claim_directory),
    ]
    for name in _FUNCTIONS:
      before = getattr(path_lib, name)
      replacements += [
        (module, name, getattr(store, name))
        for module in _MODULES
        if getattr(module, name, None) is before
      ]
    if not self._fleet.exact:
      replacements += [
        (CommitDirectory, "committed", self._committed),
        (CommitDirectory, "leased", self._leased),
      ]
    with contextlib.ExitStack() as stack:
      for owner, name, value in replacements:
        stack.enter_context(mock.patch.object(owner, name, value))
      for owner, name, kind in _KINDS:
        function = self._counted(getattr(owner, name), kind)
        stack.enter_context(mock.patch.object(owner, name, function))
      yield

  def _counted(self, function: Callable[..., Any], kind: str) -> Any:
    """A function whose requests are of a kind, unless they are of another."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
      process = self.clock.current
      if process.kind != _OTHER:
        return function(*args, **kwargs)
      process.kind = kind
      try:
        return function(*args, **kwargs)
      finally:
        process.kind = _OTHER

    return call

  def _claim_directory(self, directory: Any, job: Any) -> Any:
    """What `label_sets.claim_directory` asks for."""
    path = f"{directory}/{JOB_FILE}"
    self.clock.current.kind = "start"
    try:
      if self.store.read_version(path) is None:
        self.store.ask_listing(directory)
        if self.store.create_json(path, {}):
          return self._directory, job, True
      self.store.read_files([path])
      return self._directory, job, False
    finally:
      self.clock.current.kind = _OTHER

  def _open(self, directory: Any) -> Any:
    """What `LabelSet.open` asks for."""
    self.store.read_files([f"{directory}/{MANIFEST_FILE}"])
    self.store.ask_listing(directory, self._files)
    return types.SimpleNamespace(manifest={}, shards=self._shards)

  def _committed(self, directory: Any, files: Sequence[str]) -> set[str]:
    self.store.ask_listing(DIRECTORY, files)
    return set(self.store.committed)

  def _leased(self, directory: Any, files: Sequence[str]) -> set[str]:
    self.store.ask_listing(LEASES, files)
    return self.store.names(LEASES) - {MANIFEST_FILE, work_queue._LOOK}

  def _machine(self) -> str:
    return f"{self.clock.current.number}, {self.clock.current.life}"

  @contextlib.contextmanager
  def _beating(self, lease: Lease) -> Iterator[None]:
    """`Lease.beating` with a thread of the simulation."""
    ended = False
    process = _Process(self.clock.current.number)
    process.kind = "finish"

    def beat() -> None:
      while True:
        self.clock.sleep(lease.seconds / 10)
        if ended:
          return
        lease.beat()

    self.clock.start(self.clock.now, process, beat)
    try:
      yield
    finally:
      ended = True


def figures(what: str, result: Result) -> Iterator[Figure]:
  """(name, value, unit) of each figure of a fleet."""
  shards, counts = result.shards, result.counts
  for kind in sorted(counts, key=lambda kind: -counts[kind]):
    yield f"{what}, {kind}", counts[kind] / shards, "requests a shard"
  yield f"{what}, all", result.total / shards, "requests a shard"
  saved = result.pages[PAGES[0]] - result.pages[PAGES[1]]
  rest = (result.total - saved) / shards
  yield f"{what}, all with pages of {PAGES[1]}", rest, "requests a shard"
  mean = result.total / result.workers
  yield f"{what}, most of one worker / mean", result.largest / mean, "ratio"
  for name, hours in zip(("labelled", "finished"), result.hours, strict=True):
    ratio = hours / result.ideal_hours
    yield (
      f"{what}, {name} / ideal of {result.ideal_hours:.2f} h",
      ratio,
      "ratio",
    )
  yield f"{what}, sent twice", result.twice, "shards"


def run(shards: int = 5000, workers: int = 64) -> Iterator[Figure]:
  """(name, value, unit) of each figure."""
  for name, options in (
    ("told", {}),
    ("not told", {"told": False}),
    ("resumed", {"resumed": True}),
  ):
    fleet = Fleet(shards, workers, **options)
    yield from figures(
      f"{shards} shards, {workers} workers {name}", Simulation(fleet).run()
    )


def main() -> None:
  """Prints the figures of a fleet."""
  parser = argparse.ArgumentParser(description="See the module.")
  parser.add_argument("--shards", type=int, default=5000)
  parser.add_argument("--workers", type=int, default=64)
  options = parser.parse_args()
  for name, value, unit in run(options.shards, options.workers):
    print(f"{name:<60} {value:>10.3f}  {unit}", flush=True)


if __name__ == "__main__":
  main()
