"""Reads, decodes and batches records whose numbers it is given.

A record that cannot be used gives an example with `valid` False in its place,
without labels; the others do not move. What fails in reading is replaced at
once. What fails in decoding stops TensorFlow's iterator: the loader looks for
the record, notes it and begins anew at the same step, which is possible as a
batch follows from its step alone.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import tensorflow as tf
from absl import logging

from must_jax.data import parsing, transforms
from must_jax.data.encoders import bytes_feature
from must_jax.data.quarantine import BadRecord, BadRecords
from must_jax.data.tfrecord import CorruptRecord
from must_jax.data.transforms import AugmentOptions
from must_jax.data.union import OWN_LABELS, TaskFields, Union
from must_jax.types import Field

Batch = dict[str, Any]
Example = dict[str, Any]
# Positions int64 [n] -> the same as they are shown, and numbers of records or
# NO_RECORD.
Locate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

NO_RECORD = -1  # number of the record of a padding example
_READ_SIZE = 32  # records per call into Python


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
    make_example: from `example_function`.
    locate: what is at a position.
    rows: of this process.
    options: how reading is done.
  """

  def __init__(
    self,
    union: Union,
    make_example: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Example],
    locate: Locate,
    rows: Rows,
    options: ReadOptions,
  ):
    self._union, self._make_example = union, make_example
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
    threads = self._options.num_threads or os.cpu_count() or 1
    last = np.iinfo(np.int64).max if end is None else end * rows.count
    dataset = tf.data.Dataset.range(first * rows.count, last)
    dataset = dataset.batch(_READ_SIZE)
    # Many calls at a time hide the latency of an object store; on a disk they
    # would only wait for each other.
    calls = 1 if self._union.is_local else 16
    dataset = dataset.map(
      self._read_graph, num_parallel_calls=calls, deterministic=True
    )
    dataset = dataset.prefetch(1).unbatch()
    dataset = dataset.map(
      self._make_example, num_parallel_calls=threads, deterministic=True
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
    """Notes the records of a step that cannot be decoded, if there are any."""
    count = self._rows.count
    positions, numbers = self._find(np.arange(step * count, (step + 1) * count))
    sources, records = self._read_records(numbers)
    found = False
    for position, number, source, row in zip(
      positions, numbers.tolist(), sources, records, strict=True
    ):
      self._check_keys(number, row)
      try:
        self._make_example(
          tf.constant(position), tf.constant(source), tf.constant(row)
        )
      except parsing.BROKEN as error:
        self._note(number, _key_of(row[0]), parsing.reason(error))
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


def example_function(
  union: Union,
  task_fields: TaskFields,
  image_size: tuple[int, int] | None,
  label_stride: int,
  augment: AugmentOptions,
  seed: int,
  views: int = 1,
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Example]:
  """The graph that makes one example.

  Args:
    union: whose records it reads.
    task_fields: what the tasks read.
    image_size: (H, W) of the network input; None leaves images as they are.
    label_stride: network pixels per cell of a map.
    augment: how images vary.
    seed: of the augmentation.
    views: of each image; with more than one "image" has a dimension of them.

  Returns:
    Function of a position, the number of a source (int64) and the records
    (string [1 + tasks]): those of `Union.read`, or an image record with no more
    than a key.
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
  return _example_function(reads, size, label_stride, augment, seed, views)


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
def _example_function(
  reads: tuple[_TaskReads, ...],
  image_size: tuple[int, int] | None,
  label_stride: int,
  augment: AugmentOptions,
  seed: int,
  views: int,
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Example]:
  """`example_function` of hashable arguments."""

  def make_view(
    head: dict[str, tf.Tensor], position: tf.Tensor, view: int
  ) -> tuple[tf.Tensor, transforms.Geometry]:
    if image_size is None:
      geometry = transforms.whole_image(head["size"])
    else:
      random = transforms.random_numbers(seed, position, view)
      geometry = transforms.make_geometry(
        head["size"], image_size, augment, random
      )
    pixels = parsing.decode_image(
      head["image"], head["size"], geometry.window, geometry.reduction
    )
    if image_size is not None:
      pixels = transforms.transform_image(
        pixels, geometry, image_size, augment, random
      )
    return pixels, geometry

  @tf.function(
    input_signature=[
      tf.TensorSpec([], tf.int64),
      tf.TensorSpec([], tf.int64),
      tf.TensorSpec([1 + len(reads)], tf.string),
    ],
    autograph=False,
  )
  def make_example(
    position: tf.Tensor, source: tf.Tensor, records: tf.Tensor
  ) -> Example:
    head = parsing.parse_image(records[0])
    pixels, geometry = make_view(head, position, 0)
    if views > 1:
      others = [make_view(head, position, v)[0] for v in range(1, views)]
      pixels = tf.stack([pixels, *others])
    labels = {}
    for i, read in enumerate(reads):
      record, is_sidecar = read.record(records[0], records[1 + i])
      fields = dict(read.fields)
      labels[read.task] = transforms.transform_labels(
        parsing.parse_labels(
          record, fields, head["key"], read.tables(source, is_sidecar)
        ),
        fields,
        geometry,
        cast(tuple[int, int], image_size),
        label_stride,
      )
    return {
      "image": pixels,
      "valid": tf.strings.length(head["image"]) > 0,
      "content_size": tf.cast(geometry.content, tf.float32),
      "original_size": tf.cast(geometry.window[2:], tf.float32),
      "position": tf.cast(position, tf.int32),
      "key": head["key"],
      "labels": labels,
    }

  return make_example


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
