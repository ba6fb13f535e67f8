"""From a shard of images to label records, by any teacher."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any, Self, TypeAlias

import numpy as np

from must_jax.fields import make_field
from must_jax.quiet_tensorflow import tf
from must_jax.storage import records
from must_jax.storage.label_sets import UNKNOWN_KEY
from must_jax.storage.sets import ImageSet
from must_jax.storage.tfrecord import CorruptRecord
from must_jax.types import Labels

Batch: TypeAlias = dict[str, Any]
Predictions: TypeAlias = dict[str, Any]  # each indexed by row of the batch
ToLabels: TypeAlias = Callable[[Predictions, Batch, int], Labels]

_ROWS_AT_ONCE = 4  # by a thread, so that handing them over costs little


@dataclasses.dataclass(frozen=True)
class Example:
  """A label record.

  Attributes:
    key: of the image.
    record: the bytes to write.
    sums: by field, what the labels add to the statistics.
    reason: why there are no labels; empty if there are.
  """

  key: bytes
  record: bytes
  sums: dict[str, Any]
  reason: str = ""


class Labeller:
  """Labels the records of a shard in order; see `job.run` for arguments.

  The teacher works on the next batch while labels of one are encoded, in as
  many threads as pay.
  """

  def __init__(
    self,
    images: ImageSet,
    fields: Mapping[str, Mapping[str, Any]],
    batches: Callable[[int], Iterable[Batch]],
    predict: Callable[[Batch], Predictions],
    to_labels: ToLabels,
  ):
    self._images, self._fields = images, fields
    self._batches, self._predict, self._to_labels = batches, predict, to_labels

  def __enter__(self) -> Self:
    self._teacher = futures.ThreadPoolExecutor(1)  # one batch at a time
    self._encoders = futures.ThreadPoolExecutor()
    return self

  def __exit__(self, *_: Any) -> None:
    self._teacher.shutdown(cancel_futures=True)
    self._encoders.shutdown(cancel_futures=True)

  def examples(self, index: int) -> Iterator[list[Example]]:
    """One label record for every record of a shard, batch by batch."""
    shard = self._images.shards[index]
    place = 0
    for batch, predictions in self._predictions(index):
      rows = np.flatnonzero(batch["valid"])
      encode = functools.partial(self._encode_rows, batch, predictions)
      parts = np.split(rows, range(_ROWS_AT_ONCE, len(rows), _ROWS_AT_ONCE))
      encoded = itertools.chain.from_iterable(self._encoders.map(encode, parts))
      examples = []
      for given, example in zip(batch["position"][rows], encoded, strict=True):
        assert place <= given < shard.num_records, (shard.file, place, given)
        examples += [self._undecodable(index, i) for i in range(place, given)]
        examples.append(example)
        place = int(given) + 1
      yield examples
    yield [self._undecodable(index, i) for i in range(place, shard.num_records)]

  def _predictions(self, index: int) -> Iterator[tuple[Batch, Predictions]]:
    """Batches with their predictions, one batch ahead."""
    running: tuple[Batch, futures.Future[Predictions]] | None = None
    for batch in self._batches(index):
      following = batch, self._teacher.submit(self._predict, batch)
      if running is not None:
        yield running[0], running[1].result()
      running = following
    if running is not None:
      yield running[0], running[1].result()

  def _encode_rows(
    self, batch: Batch, predictions: Predictions, rows: np.ndarray
  ) -> list[Example]:
    return [self._encode(batch, predictions, row) for row in rows.tolist()]

  def _encode(
    self, batch: Batch, predictions: Predictions, row: int
  ) -> Example:
    prediction = {name: array[row] for name, array in predictions.items()}
    labels = self._to_labels(prediction, batch, row)
    key = batch["key"][row]
    record = records.encode_labels(key, "ok", labels, fields=self._fields)
    sums = {
      name: make_field(self._fields[name]).sums(arrays)
      for name, arrays in labels.items()
    }
    return Example(key, record, sums)

  def _undecodable(self, index: int, place: int) -> Example:
    """The label record that keeps the place of an image without labels."""
    key, reason = UNKNOWN_KEY, "the image cannot be decoded"
    try:
      record = self._images.reader(index).read(place)
      image = records.parse_image(tf.constant(record))
      key = image["key"].numpy()
      records.read_image_size(image["image"].numpy())
    except CorruptRecord as error:
      reason = error.reason
    except (ValueError, tf.errors.InvalidArgumentError) as error:
      reason = str(error)
    record = records.encode_labels(key, "undecodable", {}, fields=self._fields)
    return Example(key, record, {}, reason)
