"""The order of examples, a pure function of seed and position.

Whoever knows a position knows its record: resuming costs nothing, and the
global batches are the same at any number of processes.

Every epoch of an `Order` is a permutation of its records, in three steps:

1. the records are rotated by a random amount and cut into blocks of
   neighbours, so that reads stay local; blocks are permuted,
2. the sequence of blocks is cut into windows of some blocks; records are
   permuted within a window,
3. what is left at the end, less than a block, stays at the end. The rotation
   makes it other records in every epoch.

A `Mixture` draws from several orders in exact shares.
"""

import functools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

# Each use of a seed has a stream of its own.
_ROTATION, _BLOCKS, _WINDOW, _SLOTS = range(4)
# Positions after which given shares come out exactly.
_CYCLE = 1 << 20
_CACHED = 8  # windows of an order, slots of a mixture


class Order:
  """Shuffles records endlessly.

  Args:
    num_records: records in an epoch.
    seed: any integers.
    block_size: neighbouring records that stay together.
    window_blocks: blocks whose records are mixed.
  """

  def __init__(
    self,
    num_records: int,
    seed: int | tuple[int, ...],
    block_size: int = 128,
    window_blocks: int = 16,
  ):
    _check_positive(
      num_records=num_records,
      block_size=block_size,
      window_blocks=window_blocks,
    )
    self.num_records, self._block_size = num_records, block_size
    self._seed = seed if isinstance(seed, tuple) else (seed,)
    self._window_size = block_size * window_blocks
    self._blocks = functools.lru_cache(2)(self._permute_blocks)
    self._window = functools.lru_cache(_CACHED)(self._permute_window)

  def __call__(self, positions: np.ndarray) -> np.ndarray:
    """Records at some positions.

    Args:
      positions: int64 [n], counted from the start of training.

    Returns:
      int64 [n], numbers of records.
    """
    epoch, place = np.divmod(positions, self.num_records)
    window, offset = np.divmod(place, self._window_size)
    records = np.empty_like(place)
    for key in set(zip(epoch.tolist(), window.tolist(), strict=True)):
      here = (epoch == key[0]) & (window == key[1])
      records[here] = self._window(*key)[offset[here]]
    return records

  def _permute_blocks(self, epoch: int) -> tuple[int, np.ndarray]:
    """The rotation of an epoch, and its blocks in their order."""
    seed, blocks = (*self._seed, epoch), self.num_records // self._block_size
    rotation = _random((*seed, _ROTATION)).randint(self.num_records)
    return rotation, _random((*seed, _BLOCKS)).permutation(blocks)

  def _permute_window(self, epoch: int, window: int) -> np.ndarray:
    """The records of a window in their order."""
    rotation, blocks = self._blocks(epoch)
    start = window * self._window_size
    size = min(self.num_records - start, self._window_size)
    random = _random((*self._seed, epoch, _WINDOW, window))
    block, place = np.divmod(start + random.permutation(size), self._block_size)
    full = block < len(blocks)
    block[full] = blocks[block[full]]
    return (block * self._block_size + place + rotation) % self.num_records


class Mixture:
  """Draws from several sets of records in exact shares.

  Positions are cut into blocks; each holds as many draws of a set as its share
  says, up to rounding that evens out, in random places. A set that is drawn
  from goes on in its own `Order`, so all its records come before one comes
  again.

  Args:
    sizes: records of each set.
    shares: parts of the draws that each set gets, up to a factor. By default
      those of its records: uniform over the union (paper 3.2), each epoch of
      which is a permutation.
    seed: any integer.
    block_size: of the orders.
    window_blocks: of the orders; a window is also the block of the mixture.
  """

  def __init__(
    self,
    sizes: Sequence[int],
    shares: Sequence[float] | None = None,
    *,
    seed: int,
    block_size: int = 128,
    window_blocks: int = 16,
  ):
    self._seed = seed
    self._orders = [
      Order(size, (seed, k) if k else seed, block_size, window_blocks)
      for k, size in enumerate(sizes)
    ]
    self._quotas = list(sizes) if shares is None else _quotas(shares)
    self._cycle = sum(self._quotas)
    self._block_size = block_size * window_blocks
    self._slots = functools.lru_cache(_CACHED)(self._permute_slots)

  def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is drawn at some positions.

    Args:
      positions: int64 [n], counted from the start of training.

    Returns:
      int64 [n] numbers of sets, int64 [n] numbers of records in their set.
    """
    if len(self._orders) == 1:
      return np.zeros_like(positions), self._orders[0](positions)
    cycle, place = np.divmod(positions, self._cycle)
    block, offset = np.divmod(place, self._block_size)
    sets, draws = np.empty_like(place), np.empty_like(place)
    for key in set(zip(cycle.tolist(), block.tolist(), strict=True)):
      here = (cycle == key[0]) & (block == key[1])
      sets[here], draws[here] = self._slots(*key)[:, offset[here]]
    records = np.empty_like(place)
    for k in set(sets.tolist()):
      records[sets == k] = self._orders[k](draws[sets == k])
    return sets, records

  def counts(self, num_positions: int) -> np.ndarray:
    """How often each set is drawn from in the first positions, int64 [sets]."""
    cycle, place = divmod(num_positions, self._cycle)
    start = place - place % self._block_size
    counts = cycle * np.array(self._quotas) + self._drawn(start)
    if place > start and len(self._quotas) > 1:
      slots = self._slots(cycle, start // self._block_size)[0, : place - start]
      return counts + np.bincount(slots, minlength=len(counts))
    return counts + (place - start) * (len(counts) == 1)

  def _drawn(self, place: int) -> np.ndarray:
    """Draws from each set before a block of a cycle begins.

    Draw i of a set with n of them in a cycle is due at (i + 1/2) / n of the
    cycle; the first ones are taken, so that no count ever falls back.
    """
    quotas, total = self._quotas, self._cycle
    counts = [(2 * place * n + total) // (2 * total) for n in quotas]
    sets = range(len(quotas))
    while surplus := sum(counts) - place:
      if surplus > 0:
        last = max((Fraction(2 * counts[k] - 1, quotas[k]), k) for k in sets)
        counts[last[1]] -= 1
      else:
        first = min((Fraction(2 * counts[k] + 1, quotas[k]), k) for k in sets)
        counts[first[1]] += 1
    return np.array(counts)

  def _permute_slots(self, cycle: int, block: int) -> np.ndarray:
    """Set and position in its order of each draw of a block, int64 [2, n]."""
    start = block * self._block_size
    end = min(start + self._block_size, self._cycle)
    before = self._drawn(start)
    counts = self._drawn(end) - before
    sets = np.repeat(np.arange(len(counts)), counts)
    first = cycle * np.array(self._quotas) + before
    draws = np.concatenate([np.arange(n) for n in counts]) + first[sets]
    random = _random((self._seed, cycle, _SLOTS, block))
    return np.stack([sets, draws])[:, random.permutation(end - start)]


def _quotas(shares: Sequence[float]) -> list[int]:
  """Draws in a cycle, at least one of each set."""
  total = sum(shares)
  return [max(1, round(_CYCLE * share / total)) for share in shares]


def _random(seed: tuple[int, ...]) -> np.random.RandomState:
  """A generator whose numbers no version of numpy may change (NEP 19)."""
  words = [word % 2**64 for word in seed]
  return np.random.RandomState(np.random.Philox(np.random.SeedSequence(words)))


def _check_positive(**values: int) -> None:
  for name, value in values.items():
    if value < 1:
      raise ValueError(f"{name} is {value}; expected 1 or more.")
