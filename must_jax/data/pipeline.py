"""Batches for training, evaluation and labelling.

A position is mapped to a record (`order`), the record and its labels are read
by one seek each, parsed, decoded and augmented with the chance of (seed,
position). So a batch follows from its step alone: there is no state to save,
and process p of P makes rows p/P to (p+1)/P of every global batch.
"""

from collections.abc import Iterator, Sequence

import tensorflow as tf

from must_jax.data.loader import (
  NO_RECORD,
  BadRecord,
  Batch,
  Loader,
  ReadOptions,
  Rows,
  example_function,
  freeze,
)
from must_jax.data.order import Order
from must_jax.data.transforms import AugmentOptions
from must_jax.data.union import (
  SUPERVISED,
  Source,
  TaskFields,
  Union,
  class_names,
)

__all__ = [
  "SUPERVISED",
  "AugmentOptions",
  "BadRecord",
  "ReadOptions",
  "Source",
  "class_names",
  "eval_batches",
  "train_batches",
]

_NO_AUGMENTATION = AugmentOptions()
_DEFAULT_OPTIONS = ReadOptions()


def train_batches(
  sources: Sequence[Source],
  task_fields: TaskFields,
  *,
  batch_size: int,
  image_size: tuple[int, int],
  label_stride: int = 4,
  augment: AugmentOptions = _NO_AUGMENTATION,
  seed: int = 0,
  start_step: int = 0,
  block_size: int = 128,
  window_blocks: int = 16,
  process_index: int = 0,
  process_count: int = 1,
  options: ReadOptions = _DEFAULT_OPTIONS,
) -> Iterator[Batch]:
  """Endless batches from the union of the sources.

  Args:
    sources: sampled uniformly from their union (paper 3.2).
    task_fields: {task: {field: what to read}}.
    batch_size: of all processes together.
    image_size: (H, W) of the network input, multiples of `label_stride`.
    label_stride: network pixels per cell of a map.
    augment: how images vary.
    seed: of order and augmentation.
    start_step: the first batch is that of this step.
    block_size: neighbouring records that are read about the same time.
    window_blocks: blocks whose records are mixed.
    process_index: of this process.
    process_count: processes that share a batch.
    options: how reading is done.

  Returns:
    Iterator of this process's rows of each batch (`must_jax.types`), numpy, and
    "key", object [B] of bytes.

  Raises:
    ValueError: sources and tasks do not fit, or a size is not possible.
    RuntimeError: more records are unusable than `options` allow.
  """
  _check_size(image_size, label_stride)
  union = Union(sources, task_fields)
  order = Order(union.num_records, seed, block_size, window_blocks)
  loader = Loader(
    union,
    example_function(
      freeze(task_fields), tuple(image_size), label_stride, augment, seed
    ),
    lambda positions: (positions, order(positions)),
    _rows(batch_size, process_index, process_count),
    options,
  )
  return loader.batches(start_step, None)


def eval_batches(
  sources: Sequence[Source],
  task_fields: TaskFields,
  *,
  batch_size: int,
  image_size: tuple[int, int] | None,
  label_stride: int = 1,
  shard: int | None = None,
  process_index: int = 0,
  process_count: int = 1,
  options: ReadOptions = _DEFAULT_OPTIONS,
) -> Iterator[Batch]:
  """Batches that cover every record once, in order and as it is.

  The last batch is filled up with examples whose `valid` is False and whose
  `position` is -1. Unusable records are not `valid` either, but have their
  position. All processes get the same number of batches.

  Args:
    sources: read one after the other.
    task_fields: {task: {field: what to read}}; may be empty.
    batch_size: of all processes together.
    image_size: (H, W) of the network input, multiples of `label_stride`. With
      None images keep their size and are padded with zeros to the largest of
      their batch; labels are not possible then.
    label_stride: network pixels per cell of a map.
    shard: read only this shard of the first source; positions count from its
      start. For labelling.
    process_index: of this process.
    process_count: processes that share a batch.
    options: how reading is done.

  Returns:
    Iterator like that of `train_batches`.

  Raises:
    ValueError: sources and tasks do not fit, or a size is not possible.
    RuntimeError: more records are unusable than `options` allow.
  """
  if image_size is None:
    assert not task_fields, "labels need an image size"
  else:
    _check_size(image_size, label_stride)
  union = Union(sources, task_fields)
  records = range(union.num_records)
  if shard is not None:
    records = union.shard_range(shard)

  def locate(positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    inside = positions < len(records)
    return (
      tf.where(inside, positions, -1),
      tf.where(inside, positions + records.start, NO_RECORD),
    )

  loader = Loader(
    union,
    example_function(
      freeze(task_fields),
      None if image_size is None else tuple(image_size),
      label_stride,
      _NO_AUGMENTATION,
      0,
    ),
    locate,
    _rows(batch_size, process_index, process_count),
    options,
  )
  return loader.batches(0, -(-len(records) // batch_size))


def _rows(batch_size: int, process_index: int, process_count: int) -> Rows:
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f"batch_size is {batch_size}; expected a multiple of the"
      f" {process_count} processes."
    )
  count = batch_size // process_count
  return Rows(batch_size, process_index * count, count)


def _check_size(image_size: tuple[int, int], label_stride: int) -> None:
  if any(side < 1 or side % label_stride for side in image_size):
    raise ValueError(
      f"image_size is {image_size}; expected positive multiples of label_stride"
      f" ({label_stride})."
    )
