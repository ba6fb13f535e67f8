"""Batches for training, evaluation and labelling.

A position is mapped to a record (`order`), the record and its labels are read
by one seek each, parsed, decoded and augmented with the chance of (seed,
position). So a batch follows from its step alone: there is no state to save,
and process p of P makes rows p/P to (p+1)/P of every global batch.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from must_jax.input.examples import example_graph
from must_jax.input.geometry import AugmentOptions
from must_jax.input.loader import NO_RECORD, Batch, Loader, ReadOptions, Rows
from must_jax.input.order import Mixture
from must_jax.input.origins import Source
from must_jax.input.union import TaskFields, Union
from must_jax.quiet_tensorflow import tf
from must_jax.storage import records

_NO_AUGMENTATION = AugmentOptions()
_DEFAULT_OPTIONS = ReadOptions()


class TrainBatches(Iterator[Batch]):
  """Endless training batches, made by `train_batches`."""

  def __init__(self, batches: Iterator[Batch], mixture: Mixture, size: int):
    self._batches, self._mixture, self._size = batches, mixture, size

  def __next__(self) -> Batch:
    batch = next(self._batches)
    del batch["placement"]  # there is no way back from augmented images
    return batch

  def counts(self, num_steps: int) -> np.ndarray:
    """Examples of each source in the first global batches, int64 [sources]."""
    return self._mixture.counts(num_steps * self._size)


def train_batches(
  sources: Sequence[Source] | Union,
  task_fields: TaskFields,
  *,
  classes: Mapping[str, Sequence[str]] | None = None,
  shares: Sequence[float] | None = None,
  batch_size: int,
  image_size: tuple[int, int],
  label_stride: int = 4,
  augment: AugmentOptions = _NO_AUGMENTATION,
  views: int = 1,
  seed: int = 0,
  start_step: int = 0,
  block_size: int = 128,
  window_blocks: int = 16,
  process_index: int = 0,
  process_count: int = 1,
  options: ReadOptions = _DEFAULT_OPTIONS,
) -> TrainBatches:
  """Endless batches of a mixture of the sources.

  Args:
    sources: what is mixed; a `Union` of them is not opened again.
    task_fields: {task: {field: what to read}}.
    classes: {task: names in order of their ids}; the ids in labels are matched
      by name. By default all sources must have the same names.
    shares: parts of the examples that come from each source, up to a factor;
      by default uniform over their union (paper 3.2).
    batch_size: of all processes together.
    image_size: (H, W) of the network input, multiples of `label_stride`.
    label_stride: network pixels per cell of a map.
    augment: how images vary.
    views: of each image, with a chance of their own; with more than one
      "image" is [B, views, H, W, 3], and labels are those of the first.
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
    TooManyBad: more records are unusable than `options` allow.
  """
  _check_size(image_size, label_stride)
  union = _open(sources, task_fields, classes)
  mixture = Mixture(
    np.diff(union.starts).tolist(),
    shares,
    seed=seed,
    block_size=block_size,
    window_blocks=window_blocks,
  )

  def locate(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    number, record = mixture(positions)
    return positions, union.starts[number] + record

  loader = Loader(
    union,
    example_graph(union.labels, image_size, label_stride, augment, seed, views),
    locate,
    _rows(batch_size, process_index, process_count),
    options,
  )
  return TrainBatches(loader.batches(start_step, None), mixture, batch_size)


def eval_batches(
  sources: Sequence[Source] | Union,
  task_fields: TaskFields,
  *,
  classes: Mapping[str, Sequence[str]] | None = None,
  batch_size: int,
  image_size: tuple[int, int] | None,
  label_stride: int = 1,
  augment: AugmentOptions = _NO_AUGMENTATION,
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
    sources: read one after the other; a `Union` of them is not opened again.
    task_fields: {task: {field: what to read}}; may be empty.
    classes: as for `train_batches`.
    batch_size: of all processes together.
    image_size: (H, W) of the network input, multiples of `label_stride`, or
      what the published rule `augment.resize` refers to. With None images keep
      their size. Where sizes differ, images and maps are padded with zeros to
      the largest of their batch; "placement" has their own.
    label_stride: network pixels per cell of a map.
    augment: how images reach the network; it should not vary.
    shard: read only this shard of the first source; positions count from its
      start. For labelling.
    process_index: of this process.
    process_count: processes that share a batch.
    options: how reading is done.

  Returns:
    Iterator of batches like those of `train_batches`, and "placement": {"size"
    int32 [B, 2] of the stored image, "window" float32 [B, 4] (y, x, height,
    width of what is seen of it), "canvas" int32 [B, 2] (of the network input)}.

  Raises:
    ValueError: sources and tasks do not fit, or a size is not possible.
    TooManyBad: more records are unusable than `options` allow.
  """
  if image_size is not None and not augment.varies_size:
    _check_size(image_size, label_stride)
  union = _open(sources, task_fields, classes)
  records = range(union.num_records)
  if shard is not None:
    records = union.shard_range(shard)

  def locate(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inside = positions < len(records)
    return (
      np.where(inside, positions, -1),
      np.where(inside, positions + records.start, NO_RECORD),
    )

  loader = Loader(
    union,
    example_graph(union.labels, image_size, label_stride, augment, seed=0),
    locate,
    _rows(batch_size, process_index, process_count),
    options,
  )
  num_batches = -(-len(records) // batch_size)
  if shard is not None:  # one of many
    return loader.few_batches(num_batches)
  return loader.batches(0, num_batches)


def photo_batch(
  images: Sequence[tuple[bytes, tuple[int, int]]],
  image_size: tuple[int, int],
  augment: AugmentOptions,
) -> Batch:
  """A batch of images out of no set, as `eval_batches` would make it.

  Args:
    images: encoded as in a record, each with its height and width; at least
      one.
    image_size: see `eval_batches`.
    augment: see there.

  Raises:
    ValueError: an image cannot be decoded.
  """
  graph = example_graph((), image_size, 1, augment, seed=0)
  encoded = [
    records.encode_example(str(i), data, *size, {}, fields={})
    for i, (data, size) in enumerate(images)
  ]
  count = len(encoded)
  try:
    plan = graph.plan(
      tf.range(count, dtype=tf.int64),
      tf.constant(encoded),
      tf.constant("", shape=[count, 0]),
      tf.zeros([count, 0], tf.int64),
    )
    examples = [
      graph.make(tf.nest.map_structure(lambda x: x[i], plan))  # noqa: B023
      for i in range(count)
    ]
  except records.BROKEN as error:
    raise ValueError(records.reason(error)) from None
  images_made = [example.pop("image").numpy() for example in examples]
  # NumPy would read the tensors as buffers, and lose a Ctrl-C meanwhile.
  batch = tf.nest.map_structure(
    lambda *x: np.array([y.numpy() for y in x], x[0].dtype.as_numpy_dtype),
    *examples,
  )
  height, width = np.max([x.shape[:2] for x in images_made], 0)
  batch["image"] = np.zeros((count, height, width, 3), images_made[0].dtype)
  for row, image in zip(batch["image"], images_made, strict=True):
    row[: image.shape[0], : image.shape[1]] = image
  return batch


def _open(
  sources: Sequence[Source] | Union,
  task_fields: TaskFields,
  classes: Mapping[str, Sequence[str]] | None,
) -> Union:
  if not isinstance(sources, Union):
    return Union(sources, task_fields, classes)
  assert dict(task_fields) == sources.tasks, "the union reads for its own tasks"
  return sources


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
