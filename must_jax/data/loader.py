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
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import tensorflow as tf
from absl import logging

from must_jax.data import parsing, transforms
from must_jax.data.encoders import bytes_feature
from must_jax.data.tfrecord import CorruptRecord
from must_jax.data.transforms import AugmentOptions
from must_jax.data.union import SAME_RECORD, TaskFields, Union

Batch = dict[str, Any]

NO_RECORD = -1  # number of the record of a padding example
_READ_SIZE = 32  # records per call into Python


@dataclasses.dataclass(frozen=True)
class BadRecord:
  """A record that cannot be used.

  Attributes:
    shard: path of the shard of its image.
    index: place in the shard.
    key: of the example; empty if it cannot be read.
    reason: what is wrong with it or with its labels.
  """

  shard: str
  index: int
  key: bytes
  reason: str

  def __str__(self) -> str:
    key = self.key.decode(errors="replace") or "unknown"
    return f"record {self.index} of {self.shard} (key {key}): {self.reason}"


def _warn(record: BadRecord) -> None:
  logging.warning("Left out %s", record)


@dataclasses.dataclass(frozen=True)
class ReadOptions:
  """How reading is done; nothing here changes the batches.

  Attributes:
    num_threads: that decode; 0 for one per core.
    prefetch: batches made ahead.
    max_bad: unusable records this process accepts, each counted once; None for
      any number.
    on_bad: called once with each of them, from any thread.
  """

  num_threads: int = 0
  prefetch: int = 2
  max_bad: int | None = 100
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
    locate: positions int64 [n] -> the same as they are shown, and numbers of
      records or `NO_RECORD`.
    rows: of this process.
    options: how reading is done.
  """

  def __init__(
    self,
    union: Union,
    make_example: Callable[[tf.Tensor, tf.Tensor], dict[str, Any]],
    locate: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    rows: Rows,
    options: ReadOptions,
  ):
    self._union, self._make_example = union, make_example
    self._locate, self._rows, self._options = locate, rows, options
    self._bad: dict[int, BadRecord] = {}
    self._lock = threading.Lock()

  def batches(self, first: int, end: int | None) -> Iterator[Batch]:
    """Batches of the steps from `first` until `end`, or endless.

    Raises:
      ValueError: images and labels have different keys.
      RuntimeError: more records are unusable than allowed.
    """
    step, iterator = first, None
    while end is None or step < end:
      if iterator is None:
        iterator = self._dataset(step, end).as_numpy_iterator()
      try:
        batch = next(iterator)
      except tf.errors.OpError:
        if not self._find_bad(step):
          raise
        iterator = None
      self._check_budget()
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
      self._read, num_parallel_calls=calls, deterministic=True
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
  def _read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Positions and records of this process's examples `index` int64 [n]."""
    rows = self._rows
    step, row = index // rows.count, index % rows.count
    positions, numbers = self._locate(step * rows.batch_size + rows.first + row)
    records = tf.numpy_function(
      self._read_records, [numbers], tf.string, stateful=False
    )
    return positions, tf.ensure_shape(
      records, [None, 1 + len(self._union.tasks)]
    )

  def _read_records(self, numbers: np.ndarray) -> np.ndarray:
    """Image and label records, object [n, 1 + tasks] of bytes."""
    records = np.full((len(numbers), 1 + len(self._union.tasks)), b"", object)
    for row, number in zip(records, numbers.tolist(), strict=True):
      if number == NO_RECORD:
        continue
      if number not in self._bad:
        try:
          row[:] = self._union.read(number)
          continue
        except CorruptRecord as error:
          self._note(number, b"", str(error))
      row[0] = _key_only(self._bad[number].key)
    return records

  def _find_bad(self, step: int) -> bool:
    """Notes the records of a step that cannot be decoded, if there are any."""
    rows = self._rows
    start = step * rows.batch_size + rows.first
    positions, numbers = self._locate(
      tf.range(start, start + rows.count, dtype=tf.int64)
    )
    records = self._read_records(numbers.numpy())
    found = False
    for position, number, row in zip(
      positions, numbers.numpy().tolist(), records, strict=True
    ):
      self._check_keys(number, row)
      try:
        self._make_example(position, tf.constant(row))
      except tf.errors.InvalidArgumentError as error:
        self._note(number, _key_of(row[0]), _reason(error))
        found = True
    return found

  def _check_keys(self, number: int, records: np.ndarray) -> None:
    key = _key_of(records[0])
    for task, record in zip(self._union.tasks, records[1:], strict=True):
      if record not in (b"", SAME_RECORD) and _key_of(record) != key:
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
    with self._lock:
      if number in self._bad:
        return
      shard, index = self._union.locate(number)
      self._bad[number] = BadRecord(shard, index, key, reason)
    self._options.on_bad(self._bad[number])

  def _check_budget(self) -> None:
    limit = self._options.max_bad
    if limit is None or len(self._bad) <= limit:
      return
    shown = "\n".join(f"  {bad}" for bad in list(self._bad.values())[:20])
    raise RuntimeError(
      f"{len(self._bad)} records cannot be used; at most {limit} are allowed."
      f" Mend the data, or raise data.max_bad.\n{shown}"
    )


def freeze(task_fields: TaskFields) -> tuple[tuple[str, tuple], ...]:
  """Task fields in a hashable form."""
  return tuple((t, tuple(fields.items())) for t, fields in task_fields.items())


@functools.lru_cache(16)  # a labelling job makes a loader for each shard
def example_function(
  task_fields: tuple[tuple[str, tuple], ...],
  image_size: tuple[int, int] | None,
  label_stride: int,
  augment: AugmentOptions,
  seed: int,
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, Any]]:
  """The graph that makes one example.

  Args:
    task_fields: from `freeze`.
    image_size: (H, W) of the network input; None leaves images as they are.
    label_stride: network pixels per cell of a map.
    augment: how images vary.
    seed: of the augmentation.

  Returns:
    Function of a position (int64) and the records (string [1 + tasks]): those
    of `Union.read`, or an image record with no more than a key.
  """

  @tf.function(
    input_signature=[
      tf.TensorSpec([], tf.int64),
      tf.TensorSpec([1 + len(task_fields)], tf.string),
    ],
    autograph=False,
  )
  def make_example(position: tf.Tensor, records: tf.Tensor) -> dict[str, Any]:
    head = parsing.parse_image(records[0])
    random = transforms.random_numbers(seed, position)
    if image_size is None:
      geometry = transforms.whole_image(head["size"])
    else:
      geometry = transforms.make_geometry(
        head["size"], image_size, augment, random
      )
    pixels = parsing.decode_image(head["image"], head["size"], geometry.window)
    if image_size is not None:
      pixels = transforms.transform_image(
        pixels, geometry, image_size, augment, random
      )
    labels = {}
    for i, (task, fields) in enumerate(task_fields):
      record = tf.cond(
        records[1 + i] == SAME_RECORD,
        lambda: records[0],
        lambda i=i: records[1 + i],
      )
      labels[task] = transforms.transform_labels(
        parsing.parse_labels(record, dict(fields), head["key"]),
        dict(fields),
        geometry,
        cast(tuple[int, int], image_size),
        label_stride,
      )
    return {
      "image": pixels,
      "valid": tf.strings.length(head["image"]) > 0,
      "content_size": tf.cast(geometry.content, tf.float32),
      "original_size": tf.cast(head["size"], tf.float32),
      "position": tf.cast(position, tf.int32),
      "key": head["key"],
      "labels": labels,
    }

  return make_example


def _key_of(record: bytes) -> bytes:
  """Key of a record that may be broken."""
  try:
    return parsing.parse_key(tf.constant(record)).numpy()
  except tf.errors.InvalidArgumentError:
    return b""


def _reason(error: tf.errors.OpError) -> str:
  """What a graph's error says, without where in the graph."""
  return error.message.partition("\n\t [[")[0].splitlines()[-1].strip()


def _key_only(key: bytes) -> bytes:
  feature = {"key": bytes_feature(key)}
  example = tf.train.Example(features=tf.train.Features(feature=feature))
  return example.SerializeToString()
