"""Reads, decodes and batches records whose numbers it is given.

A record that cannot be used gives an example with `valid` False in its place,
without labels; the others do not move. What fails in reading is replaced at
once. What fails later stops TensorFlow's iterator: the loader looks for the
record, notes it and begins anew at the same step, which is possible as a batch
follows from its step alone.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import tensorflow as tf
from absl import logging

from must_jax.input import geometry as geometry_lib
from must_jax.input.geometry import AugmentOptions
from must_jax.input.quarantine import BadRecord, BadRecords
from must_jax.input.union import OWN_LABELS, TaskFields, Union
from must_jax.storage import parsing
from must_jax.storage.encoders import bytes_feature
from must_jax.storage.tfrecord import CorruptRecord
from must_jax.types import Field

Batch = dict[str, Any]
Example = dict[str, Any]
Plan = dict[str, Any]
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


class ExampleGraph(NamedTuple):
  """How records become examples, in two steps.

  Attributes:
    plan: from positions, numbers of sources (int64 [n]) and the records (string
      [n, 1 + tasks]) to all that is said about the examples before decoding,
      [n, ...]. Many small operations, which take little time for many records
      at once. Records are those of `Union.read`; an image record may have no
      more than a key.
    make: from one row of a plan to the example.
  """

  plan: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Plan]
  make: Callable[[Plan], Example]


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
      except (tf.errors.OpError, *parsing.BROKEN):
        if not self._find_bad(step):
          raise
        iterator = None
      self._bad.check((step + 1 - first) * self._rows.count)
      if iterator is not None:
        yield batch
        step += 1

  def _dataset(self, first: int, end: int | None) -> tf.data.Dataset:
    rows = self._rows
    threads = self._options.num_threads or _num_cores()
    last = np.iinfo(np.int64).max if end is None else end * rows.count
    dataset = tf.data.Dataset.range(first * rows.count, last)
    dataset = dataset.batch(_READ_SIZE)
    # Many calls at a time hide the latency of an object store; on a disk they
    # would only wait for each other.
    calls = 1 if self._union.is_local else 16
    dataset = dataset.map(
      self._read_graph, num_parallel_calls=calls, deterministic=True
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
  ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    positions, sources, records = tf.numpy_function(
      self._read, [index], (tf.int64, tf.int64, tf.string), stateful=False
    )
    return (
      tf.ensure_shape(positions, [None]),
      tf.ensure_shape(sources, [None]),
      tf.ensure_shape(records, [None, 1 + len(self._union.tasks)]),
    )

  def _read(
    self, index: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, sources and records of this process's examples `index`."""
    positions, numbers = self._find(index)
    return positions, *self._read_records(numbers)

  def _find(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `Locate` says of this process's examples `index`."""
    rows = self._rows
    step, row = np.divmod(index, rows.count)
    return self._locate(step * rows.batch_size + rows.first + row)

  def _read_records(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sources int64 [n]; image and label records, object [n, 1 + tasks]."""
    records = np.full((len(numbers), 1 + len(self._union.tasks)), b"", object)
    sources = np.zeros_like(numbers)
    for i, number in enumerate(numbers.tolist()):
      if number == NO_RECORD:
        continue
      sources[i] = self._union.source_of(number)
      if self._bad.get(number) is None:
        try:
          row = self._union.read(number)
          if all(parsing.is_example(r.removeprefix(OWN_LABELS)) for r in row):
            records[i] = row
            continue
          self._note(number, b"", "it or its labels are no tf.train.Example")
        except CorruptRecord as error:
          self._note(number, b"", str(error))
      bad = self._bad.get(number)
      assert bad is not None
      records[i, 0] = _key_only(bad.key)
    return sources, records

  def _find_bad(self, step: int) -> bool:
    """Notes the records that stopped a step, if there are any.

    Those are its own that cannot be decoded, and any that no plan can be made
    of and that were read together with its own.
    """
    count = self._rows.count
    end = (step + 1) * count
    index = np.arange(step * count, end + _READ_SIZE - 1)
    positions, numbers = self._find(index)
    sources, records = self._read_records(numbers)
    found = False
    for i, number in enumerate(numbers.tolist()):
      self._check_keys(number, records[i])
      row = slice(i, i + 1)
      try:
        plan = self._graph.plan(
          *map(tf.constant, (positions[row], sources[row], records[row]))
        )
        if index[i] < end:
          self._graph.make(tf.nest.map_structure(lambda x: x[0], plan))
      except parsing.BROKEN as error:
        self._note(number, _key_of(records[i, 0]), parsing.reason(error))
        found = True
    return found

  def _check_keys(self, number: int, records: np.ndarray) -> None:
    key = _key_of(records[0])
    for task, record in zip(self._union.tasks, records[1:], strict=True):
      record = record.removeprefix(OWN_LABELS)
      if record and _key_of(record) != key:
        image, labels = (
          "record {1} of {0}".format(*self._union.locate(number, origin))
          for origin in (None, task)
        )
        raise ValueError(
          f"Labels do not belong to their images: {image} has key {key!r},"
          f" {labels} has {_key_of(record)!r}. The images changed since: label"
          " them again."
        )

  def _note(self, number: int, key: bytes, reason: str) -> None:
    shard, index = self._union.locate(number)
    self._bad.add(number, BadRecord(shard, index, key, reason))


def example_graph(
  union: Union,
  task_fields: TaskFields,
  image_size: tuple[int, int] | None,
  label_stride: int,
  augment: AugmentOptions,
  seed: int,
  views: int = 1,
) -> ExampleGraph:
  """The graph that makes examples.

  Args:
    union: whose records it reads.
    task_fields: what the tasks read.
    image_size: (H, W) of the network input; None leaves images as they are.
    label_stride: network pixels per cell of a map.
    augment: how images vary.
    seed: of the augmentation.
    views: of each image; with more than one "image" has a dimension of them.
  """
  reads = tuple(
    _TaskReads(
      task,
      tuple(fields.items()),
      union.origin_kinds(task),
      tuple(
        (name, table.shape, table.tobytes())
        for name, table in union.class_tables.get(task, {}).items()
      ),
    )
    for task, fields in task_fields.items()
  )
  size = None if image_size is None else (image_size[0], image_size[1])
  return _example_graph(reads, size, label_stride, augment, seed, views)


class _TaskReads(NamedTuple):
  """What a task reads, hashable."""

  task: str
  fields: tuple[tuple[str, Field], ...]
  origin_kinds: frozenset[tuple[bool, bool]]
  class_tables: tuple[tuple[str, tuple[int, ...], bytes], ...]

  def record(
    self, image: tf.Tensor, record: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor | int]:
    """The record that has an example's labels, and 1 if it is a sidecar."""
    if self.origin_kinds == {(True, False)}:
      return image, 0
    if not any(own for own, _ in self.origin_kinds):
      return record, 1
    prefers_own = tf.strings.substr(record, 0, 1) == OWN_LABELS
    sidecar = tf.cond(
      prefers_own, lambda: tf.strings.substr(record, 1, 1 << 30), lambda: record
    )
    names = [name for name, _ in self.fields]
    own = prefers_own & (
      (tf.strings.length(sidecar) == 0) | parsing.has_labels(image, names)
    )
    chosen = tf.cond(own, lambda: image, lambda: sidecar)
    return chosen, tf.cast(~own, tf.int64)

  def tables(
    self, source: tf.Tensor, is_sidecar: tf.Tensor | int
  ) -> dict[str, tf.Tensor]:
    """The tables of class ids of a record, see `parsing.parse_labels`."""
    return {
      name: tf.gather(
        np.frombuffer(data, np.int32).reshape(-1, shape[-1]),
        2 * source + is_sidecar,
      )
      for name, shape, data in self.class_tables
    }


@functools.lru_cache(16)  # a labelling job makes a loader for each shard
def _example_graph(
  reads: tuple[_TaskReads, ...],
  image_size: tuple[int, int] | None,
  label_stride: int,
  augment: AugmentOptions,
  seed: int,
  views: int,
) -> ExampleGraph:
  """`example_graph` of hashable arguments."""

  @tf.function(
    input_signature=[
      tf.TensorSpec([None], tf.int64),
      tf.TensorSpec([None], tf.int64),
      tf.TensorSpec([None, 1 + len(reads)], tf.string),
    ],
    autograph=False,
  )
  def plan(
    positions: tf.Tensor, sources: tf.Tensor, records: tf.Tensor
  ) -> Plan:
    head = parsing.parse_image(records[:, 0])
    randoms = [
      geometry_lib.random_numbers(seed, positions, view)
      for view in range(views)
    ]
    geometries = [
      geometry_lib.whole_image(head["size"])
      if image_size is None
      else geometry_lib.make_geometry(head["size"], image_size, augment, random)
      for random in randoms
    ]
    return head | {
      "position": positions,
      "source": sources,
      "records": records,
      "views": tuple(zip(geometries, randoms, strict=True)),
    }

  def make_view(
    plan: Plan, geometry: geometry_lib.Geometry, random: tf.Tensor
  ) -> tf.Tensor:
    pixels = parsing.decode_image(
      plan["image"], plan["size"], geometry.window, geometry.reduction
    )
    if image_size is None:
      return pixels
    return geometry_lib.transform_image(
      pixels, geometry, image_size, augment, random
    )

  @tf.function(autograph=False)
  def make(plan: Plan) -> Example:
    pixels = [make_view(plan, *view) for view in plan["views"]]
    geometry, _ = plan["views"][0]
    image, *others = tf.unstack(plan["records"])
    labels = {}
    for read, other in zip(reads, others, strict=True):
      record, is_sidecar = read.record(image, other)
      fields = dict(read.fields)
      labels[read.task] = geometry_lib.transform_labels(
        parsing.parse_labels(
          record, fields, plan["key"], read.tables(plan["source"], is_sidecar)
        ),
        fields,
        geometry,
        cast(tuple[int, int], image_size),
        label_stride,
      )
    return {
      "image": pixels[0] if views == 1 else tf.stack(pixels),
      "valid": tf.strings.length(plan["image"]) > 0,
      "content_size": tf.cast(geometry.content, tf.float32),
      "original_size": tf.cast(geometry.window[2:], tf.float32),
      "position": tf.cast(plan["position"], tf.int32),
      "key": plan["key"],
      "labels": labels,
    }

  return ExampleGraph(plan, make)


def _num_cores() -> int:
  """Those this process may use: launchers bind processes to some."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _key_of(record: bytes) -> bytes:
  """Key of a record that may be broken."""
  try:
    return parsing.parse_key(tf.constant(record)).numpy()
  except parsing.BROKEN:
    return b""


def _key_only(key: bytes) -> bytes:
  feature = {
    "key": bytes_feature(key),
    "status": bytes_feature(b"undecodable"),
  }
  example = tf.train.Example(features=tf.train.Features(feature=feature))
  return example.SerializeToString()
