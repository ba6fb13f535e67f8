"""The order of examples, a pure function of seed and position.

Whoever knows a position knows its record: resuming costs nothing, and the
global batches are the same at any number of processes.

Every epoch is a permutation of all records, in three steps:

1. the records are rotated by a random amount and cut into blocks of
   neighbours, so that reads stay local; blocks are permuted,
2. the sequence of blocks is cut into windows of some blocks; records are
   permuted within a window,
3. what is left at the end, less than a block, stays at the end. The rotation
   makes it other records in every epoch.
"""

import dataclasses

import tensorflow as tf

# Each use of the seed has a stream of its own; windows come after these.
_ROTATION, _BLOCKS, _WINDOWS = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Order:
  """Shuffles endlessly.

  Attributes:
    num_records: records in an epoch.
    seed: any integer.
    block_size: neighbouring records that stay together.
    window_blocks: blocks whose records are mixed.
  """

  num_records: int
  seed: int
  block_size: int = 128
  window_blocks: int = 16

  def __post_init__(self):
    for name in ("num_records", "block_size", "window_blocks"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} is {getattr(self, name)}; expected 1 or more."
        )

  def __call__(self, positions: tf.Tensor) -> tf.Tensor:
    """Records at some positions.

    Args:
      positions: int64 [n], counted from the start of training.

    Returns:
      int64 [n], numbers of records.
    """
    block = self.block_size
    num_blocks = self.num_records // block
    window_size = block * self.window_blocks
    epoch = positions // self.num_records
    place = positions % self.num_records

    window = place // window_size
    start = window * window_size
    last = tf.minimum(self.num_records - start, window_size) - 1
    place = start + self._shuffle(place - start, epoch, _WINDOWS + window, last)

    index = place // block
    full = index < num_blocks
    permuted = self._shuffle(
      tf.where(full, index, 0), epoch, _BLOCKS, max(num_blocks - 1, 0)
    )
    record = tf.where(full, permuted, index) * block + place % block
    rotation = self._shuffle(0, epoch, _ROTATION, self.num_records - 1)
    return (record + rotation) % self.num_records

  def _shuffle(
    self,
    index: tf.Tensor | int,
    epoch: tf.Tensor,
    stream: tf.Tensor | int,
    last: tf.Tensor | int,
  ) -> tf.Tensor:
    """Places of indices in permutations of [0, last], all int64 [n]."""
    like = tf.zeros_like(epoch)
    key = _mix(_mix(_mix(like + self.seed) + epoch) + stream)
    # The cipher takes few bits of each word, so all of them must matter.
    seed = tf.stack([key, _mix(key), _mix(_mix(key))], -1)
    # `tf.random.experimental.index_shuffle` takes one seed only.
    return tf.raw_ops.RandomIndexShuffle(
      index=like + index, seed=seed, max_index=like + last, rounds=4
    )


def _mix(x: tf.Tensor) -> tf.Tensor:
  """A bijection of int64 in which every bit changes all (SplitMix64)."""
  x = tf.bitcast(x, tf.uint64) + _uint64(0x9E3779B97F4A7C15)
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
    x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, _uint64(shift)))
    x *= _uint64(factor)
  x = tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, _uint64(31)))
  return tf.bitcast(x, tf.int64)


def _uint64(x: int) -> tf.Tensor:
  return tf.constant(x, tf.uint64)
