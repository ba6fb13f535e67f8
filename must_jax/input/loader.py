"""Reads, decodes and batches records whose numbers it is given.

A record that cannot be used gives an example with `valid` False in its place,
without labels; the others do not move. What fails in reading is replaced at
once. What fails later stops TensorFlow's iterator: the loader looks for the
record, notes it and begins anew at the same step, which is possible as a batch
follows from its step alone.
"""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

import numpy as np
from absl import logging

from must_jax.input.examples import ExampleGraph, batch_graph
from must_jax.input.quarantine import BadRecord, BadRecords
from must_jax.input.union import Record, Union
from must_jax.quiet_tensorflow import tf
from must_jax.storage import records
from must_jax.storage.tfrecord import CorruptRecord

Batch = dict[str, Any]
# Positions int64 [n] -> the same as they are shown, and numbers of records or
# NO_RECORD.
Locate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

NO_RECORD = -1  # number of the record of a padding example
_READ_SIZE = 64  # records read and planned together


def _warn(record: BadRecord) -> None:
  logging.warning("Left out %s", record)


@dataclasses.dataclass(frozen=True)
class ReadOptions:
  """How reading is done; nothing here changes the batches.

  Attributes:
    num_threads: that decode; 0 for one per core.
    prefetch: batches made ahead.
    max_bad: part of the records this process reads that may be unusable, each
      counted once; None for any.
    free_bad: unusable records that are accepted in any case.
    on_bad: called once with each of them, from any thread.
  """

  num_threads: int = 0
  prefetch: int = 2
  max_bad: float | None = 0.01
  free_bad: int = 10
  on_bad: Callable[[BadRecord], None] = _warn


@dataclasses.dataclass(frozen=True)
class Rows:
  """Which rows of every batch are this process's.

  Attributes:
    batch_size: of all processes together.
    first: row of this process.
    count: rows of this process.
  """

  batch_size: int
  first: int
  count: int


class Loader:
  """Makes batches.

  Args:
    union: the records.
    graph: from `example_graph`.
    locate: what is at a position.
    rows: of this process.
    options: how reading is done.
  """

  def __init__(
    self,
    union: Union,
    graph: ExampleGraph,
    locate: Locate,
    rows: Rows,
    options: ReadOptions,
  ):
    self._union, self._graph = union, graph
    self._locate, self._rows, self._options = locate, rows, options
    self._bad = BadRecords(options.max_bad, options.free_bad, options.on_bad)

  def batches(self, first: int, end: int | None) -> Iterator[Batch]:
    """Batches of the steps from `first` until `end`, or endless.

    Raises:
      ValueError: images and labels have different keys.
      TooManyBad: more records are unusable than allowed.
    """
    step, iterator = first, None
    while end is None or step < end:
      if iterator is None:
        iterator = self._dataset(step, end).as_numpy_iterator()
      try:
        batch = next(iterator)
      except (tf.errors.OpError, *records.BROKEN):
        if not self._find_bad(step):
          raise
        iterator = None
      self._bad.check((step + 1 - first) * self._rows.count)
      if iterator is not None:
        yield batch
        step += 1

  def few_batches(self, end: int) -> Iterator[Batch]:
    """The same batches from step 0, without the start of a `tf.data` pipeline.

    That takes as long as some hundred small images, and shards may be small.

    Raises:
      ValueError: see `batches`.
      TooManyBad: more records are unusable than allowed.
    """
    make_all = batch_graph(self._graph, self._num_threads)
    if make_all is None:
      yield from self.batches(0, end)
      return

    def make(step: int) -> Batch:
      index = np.arange(step * self._rows.count, (step + 1) * self._rows.count)
      made = make_all(*map(tf.constant, self._read(index)))
      return tf.nest.map_structure(lambda x: x.numpy(), made)

    ahead: collections.deque[futures.Future[Batch]] = collections.deque()
    pool = futures.ThreadPoolExecutor(self._num_calls)
    most = max(self._options.prefetch, self._num_calls)
    try:
      for step in range(end):
        while len(ahead) <= min(most, end - 1 - step):
          ahead.append(pool.submit(make, step + len(ahead)))
        made = ahead.popleft()
        while True:
          try:
            batch = made.result()
            break
          except (tf.errors.OpError, *records.BROKEN):
            if not self._find_bad(step):
              raise
            made = pool.submit(make, step)
          self._bad.check((step + 1) * self._rows.count)
        self._bad.check((step + 1) * self._rows.count)
        yield batch
    finally:
      pool.shutdown(cancel_futures=True)

  @property
  def _num_threads(self) -> int:
    return self._options.num_threads or _num_cores()

  @property
  def _num_calls(self) -> int:
    # Several calls at a time, each of many requests, hide the latency of an
    # object store; on a disk they would only wait for each other.
    return 1 if self._union.is_local else 4

  def _dataset(self, first: int, end: int | None) -> tf.data.Dataset:
    rows, threads = self._rows, self._num_threads
    last = np.iinfo(np.int64).max if end is None else end * rows.count
    dataset = tf.data.Dataset.range(first * rows.count, last)
    dataset = dataset.batch(_READ_SIZE)
    dataset = dataset.map(
      self._read_graph, num_parallel_calls=self._num_calls, deterministic=True
    )
    dataset = dataset.map(self._graph.plan).prefetch(1).unbatch()
    dataset = dataset.map(
      self._graph.make, num_parallel_calls=threads, deterministic=True
    )
    # Only images that have kept their size need padding, which costs time.
    one_shape = dataset.element_spec["image"].shape.is_fully_defined()
    batch = dataset.batch if one_shape else dataset.padded_batch
    dataset = batch(rows.count, drop_remainder=True)
    dataset = dataset.prefetch(self._options.prefetch)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return dataset.with_options(options)

  @tf.autograph.experimental.do_not_convert
  def _read_graph(
    self, index: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    positions, images, sidecars, origins = tf.numpy_function(
      self._read,
      [index],
      (tf.int64, tf.string, tf.string, tf.int64),
      stateful=False,
    )
    return (
      tf.ensure_shape(positions, [None]),
      tf.ensure_shape(images, [None]),
      tf.ensure_shape(sidecars, [None, len(self._union.tasks)]),
      tf.ensure_shape(origins, [None, len(self._union.tasks)]),
    )

  def _read(self, index: np.ndarray) -> tuple[np.ndarray, ...]:
    """What `ExampleGraph.plan` takes of this process's examples `index`."""
    positions, numbers = self._find(index)
    images = np.full(len(numbers), b"", object)
    sidecars = np.full((len(numbers), len(self._union.tasks)), b"", object)
    origins = np.zeros(sidecars.shape, np.int64)
    wanted = np.flatnonzero(numbers != NO_RECORD).tolist()
    found = self._read_records([int(numbers[i]) for i in wanted])
    for i, record in zip(wanted, found, strict=True):
      images[i], sidecars[i], origins[i] = record
    return positions, images, sidecars, origins

  def _find(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `Locate` says of this process's examples `index`."""
    rows = self._rows
    step, row = np.divmod(index, rows.count)
    return self._locate(step * rows.batch_size + rows.first + row)

  def _read_records(self, numbers: list[int]) -> list[Record]:
    """The records of these numbers; no more than keys of unusable ones."""
    good = [number for number in numbers if self._bad.get(number) is None]
    found = dict(zip(good, self._union.read_many(good), strict=True))
    for number, record in found.items():
      if isinstance(record, CorruptRecord):
        self._note(number, b"", str(record))
      elif not all(map(records.is_example, (record.image, *record.sidecars))):
        self._note(number, b"", "it or its labels are no tf.train.Example")
    return [self._usable(number, found.get(number)) for number in numbers]

  def _usable(
    self, number: int, record: Record | CorruptRecord | None
  ) -> Record:
    bad = self._bad.get(number)
    if bad is not None:
      tasks = len(self._union.tasks)
      return Record(_key_only(bad.key), (b"",) * tasks, (0,) * tasks)
    assert isinstance(record, Record)
    return record

  def _find_bad(self, step: int) -> bool:
    """Notes the records that stopped a step, if there are any.

    Those are its own that cannot be decoded, and any that no plan can be made
    of and that were read together with its own.
    """
    count = self._rows.count
    end = (step + 1) * count
    index = np.arange(step * count, end + _READ_SIZE - 1)
    _, numbers = self._find(index)
    read = self._read(index)
    _, images, sidecars, origins = read
    found = False
    for i, number in enumerate(numbers.tolist()):
      self._check_keys(number, images[i], sidecars[i], origins[i].tolist())
      try:
        plan = self._graph.plan(*(tf.constant(x[i : i + 1]) for x in read))
        if index[i] < end:
          self._graph.make(tf.nest.map_structure(lambda x: x[0], plan))
      except records.BROKEN as error:
        self._note(number, _key_of(images[i]), records.reason(error))
        found = True
    return found

  def _check_keys(
    self,
    number: int,
    image: bytes,
    sidecars: Iterable[bytes],
    origins: Iterable[int],
  ) -> None:
    key = _key_of(image)
    for task, sidecar, origin in zip(
      self._union.tasks, sidecars, origins, strict=True
    ):
      if sidecar and _key_of(sidecar) != key:
        images, labels = (
          "record {1} of {0}".format(*self._union.locate(number, *place))
          for place in ((), (task, origin))
        )
        raise ValueError(
          f"Labels do not belong to their images: {images} has key {key!r},"
          f" {labels} has {_key_of(sidecar)!r}. The images changed since: label"
          " them again."
        )

  def _note(self, number: int, key: bytes, reason: str) -> None:
    shard, index = self._union.locate(number)
    self._bad.add(number, BadRecord(shard, index, key, reason))


def _num_cores() -> int:
  """Those this process may use: launchers bind processes to some."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _key_of(record: bytes) -> bytes:
  """Key of a record that may be broken."""
  try:
    return records.parse_key(tf.constant(record)).numpy()
  except records.BROKEN:
    return b""


def _key_only(key: bytes) -> bytes:
  return records.serialize({"key": key, "status": b"undecodable"})
