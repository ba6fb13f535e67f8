"""The unit of work of an import: a part, which becomes one shard.

Items are cut into parts before any is read. A part is read, written and
committed whole in a stage, a hidden directory below the image set:

  DIR/.SPLIT.import-JOB/    JOB tells this import from others
    job.json                the same, whole
    leases/                 which process is at work
    00012.CONTENT.tfrecord  records, with their .offsets
    00012.CONTENT.keys      little-endian uint64, hashes of their keys
    00012.json              commit record, written last (`storage/commits.py`)

Every byte follows from the plan and its files, so that it does not matter who
reads a part, when, or how often. A commit tells which labels and which versions
of the files its part was made of; where these have changed since, the part is
read again.
"""

import collections
import dataclasses
import hashlib
import itertools
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, ClassVar

import numpy as np

import must_jax
from must_jax.fields import Description, make_field, statistics
from must_jax.importers.items import HasKey, Imported, Plan
from must_jax.storage import tfrecord
from must_jax.storage.commits import Commit, CommitDirectory
from must_jax.storage.path import Path, fingerprints, publish, read_files
from must_jax.storage.sets import Shard, key_digest
from must_jax.storage.tfrecord import ShardReader

# What a library's message names differently in every process.
_ADDRESS = re.compile(r" ?<[\w.]+ object at 0x[0-9a-f]+>")


@dataclasses.dataclass(frozen=True)
class ImportCommit(Commit):
  """A finished part; its shard may have no records.

  Attributes:
    num_images: read, whatever became of them.
    rejected: what was left out, {"key", "reason"} each, whole images or parts
      of their labels.
    counts: sums of `Labels.counts` and `Picture.counts`.
    statistics: sums over the labels by field, see `Field.sums`.
    inputs: see `ImportPart`.
  """

  VERSION: ClassVar[int] = 2

  num_images: int
  rejected: Sequence[Mapping[str, str]]
  counts: Mapping[str, float]
  statistics: Mapping[str, Mapping[str, Any]]
  inputs: str

  @property
  def rejected_keys(self) -> set[str]:
    """Of images that were left out, whole or in part."""
    return {entry["key"] for entry in self.rejected}


@dataclasses.dataclass(frozen=True)
class ImportPart:
  """What becomes a shard.

  Attributes:
    number: of the part.
    items: to read.
    inputs: digest of the items and of the present versions of their files.
  """

  number: int
  items: Sequence[HasKey]
  inputs: str


@dataclasses.dataclass(frozen=True)
class ImportJob:
  """What the parts of an import have in common; pickled to their readers.

  Attributes:
    stage: directory of the parts.
    digest: see `digest_of`.
    fields: as in `index.json`.
    read: the images of an item, see `Plan`.
    shard_per_item: see `Plan`.
  """

  stage: Path
  digest: str
  fields: Mapping[str, Description]
  read: Callable[[Any], Iterator[Imported]]
  shard_per_item: bool

  def file(self, part: ImportPart, suffix: str = ".tfrecord") -> str:
    """The name of a file of a part, but for the digest of its content."""
    return f"{part.number:05d}{suffix}"

  @property
  def commits(self) -> CommitDirectory[ImportCommit]:
    """The commit records of the parts."""
    return CommitDirectory(self.stage, self.digest, ImportCommit)

  def read_commits(
    self, parts: Sequence[ImportPart]
  ) -> dict[int, ImportCommit]:
    """The commit records that are there, by number of the part in order."""
    found = self.commits.keep_valid([self.file(part) for part in parts])
    return {
      part.number: found[self.file(part)]
      for part in parts
      if self.file(part) in found
    }

  def discard(self, part: ImportPart) -> None:
    """Makes a part unfinished."""
    self.commits.discard(self.file(part))


def cut(
  plan: Plan, num_shards: int | None, records_per_shard: int
) -> list[ImportPart]:
  """Cuts the items into parts, and looks up the versions of their files.

  Neighbours in an image set meet in a batch, but neighbours in a dataset are
  alike (frames of a video, images of a class). So items are ordered by a hash
  of their keys, unless each is a part by itself.
  """
  items = plan.items
  if plan.shard_per_item:
    num_shards = len(items)
  else:
    items = sorted(items, key=lambda item: _hash(item.key.encode(), 16))
  if num_shards:
    count = min(num_shards, len(items))
    pieces = [items[i::count] for i in range(count)]
  else:
    starts = range(0, len(items), records_per_shard)
    pieces = [items[i : i + records_per_shard] for i in starts]
  paths = [[file for item in piece for file in item.files] for piece in pieces]
  versions = iter(fingerprints(list(itertools.chain.from_iterable(paths))))
  return [
    ImportPart(
      number,
      piece,
      _digest([piece, list(itertools.islice(versions, len(files)))]),
    )
    for number, (piece, files) in enumerate(zip(pieces, paths, strict=True))
  ]


def digest_of(plan: Plan, parts: Sequence[ImportPart]) -> str:
  """Digest of what tells imports apart: which images, and how they are read.

  What may be mended, labels and contents of files, is `ImportPart.inputs`.
  """
  head = (must_jax.__version__, ImportCommit.VERSION, plan.fields, plan.read)
  keys = ([item.key for item in part.items] for part in parts)
  return _digest([head, *keys])


def _digest(values: Iterable[Any]) -> str:
  result = hashlib.blake2b(digest_size=16)
  for value in values:
    data = pickle.dumps(value, protocol=4)
    result.update(len(data).to_bytes(8, "little") + data)
  return result.hexdigest()


def write_part(job: ImportJob, part: ImportPart, threads: int = 1) -> int:
  """Reads the images of a part, writes and commits its shard.

  Args:
    job: that the part belongs to.
    part: to read.
    threads: that read and encode.

  Returns:
    The number of images read.

  Raises:
    OSError: the shard cannot be written; the part is not committed.
    Exception: what else the reader raises.
  """
  keys: list[bytes] = []
  rejected: list[dict[str, str]] = []
  counts: collections.Counter[str] = collections.Counter()
  sums: dict[str, Any] = {}
  num_images = 0
  with job.commits.writer(job.file(part)) as writer:
    for image, record, added in _encoded(job, part.items, threads):
      num_images += 1
      for reason in image.labels.rejected:
        reason = _ADDRESS.sub("", reason)
        rejected.append({"key": image.key, "reason": reason})
      if record is not None and image.picture is not None:
        counts.update(image.labels.counts)
        counts.update(image.picture.counts)
        statistics.accumulate(sums, added)
        keys.append(image.key.encode())
        writer.write(record)
  with publish(writer.path.with_suffix(".keys")) as file:
    file.write(b"".join(_hash(key, 8) for key in keys))
  shard = Shard(
    writer.path.name,
    writer.num_records,
    writer.num_bytes,
    writer.checksum,
    key_digest(keys),
  )
  job.commits.commit(
    ImportCommit(
      shard,
      job.digest,
      num_images,
      rejected,
      # Numpy's numbers are no JSON.
      {name: np.asarray(value).item() for name, value in counts.items()},
      sums,
      part.inputs,
    )
  )
  return num_images


def double_key(job: ImportJob, commits: Sequence[ImportCommit]) -> bytes | None:
  """A key that comes twice in all parts together, if there is one.

  Raises:
    ValueError: the keys of a part are missing.
  """
  from must_jax.storage import records

  paths = [job.stage / commit.shard.file for commit in commits]
  contents = read_files([path.with_suffix(".keys") for path in paths])
  if None in contents:
    raise ValueError(
      f"{paths[contents.index(None)].with_suffix('.keys')} is missing. Delete"
      f" {job.stage} and import the split again."
    )
  hashes = [np.frombuffer(data or b"", "<u8") for data in contents]
  ends = np.cumsum([len(part) for part in hashes])
  flat = np.concatenate([*hashes, np.zeros(0, "<u8")])
  order = np.argsort(flat, kind="stable")

  def key(place: int) -> bytes:
    part = int(np.searchsorted(ends, place, side="right"))
    reader = ShardReader(paths[part])
    return records.key_of(
      reader.read(int(place - ends[part]) + len(hashes[part]))
    )

  for i in np.flatnonzero(flat[order][1:] == flat[order][:-1]):
    # Different keys may have one hash.
    if key(order[i]) == key(order[i + 1]):
      return key(order[i])
  return None


def _encoded(
  job: ImportJob, items: Sequence[HasKey], threads: int
) -> Iterator[tuple[Imported, bytes | None, dict[str, Any]]]:
  """Images in order with their records, None if rejected, and label sums."""
  from must_jax.storage import records

  def encode(
    image: Imported,
  ) -> tuple[Imported, bytes | None, dict[str, Any]]:
    if image.picture is None:
      assert image.labels.rejected, image.key
      return image, None, {}
    labels = image.labels.arrays
    try:
      record = records.encode_example(
        image.key,
        image.picture.data,
        *image.picture.size,
        labels,
        fields=job.fields,
      )
      if len(record) > tfrecord.MAX_RECORD_BYTES:
        raise ValueError(f"its record has {len(record)} bytes")
    except ValueError as error:
      return image.left_out(str(error)), None, {}
    sums = {
      name: make_field(job.fields[name]).sums(
        {k: np.asarray(array) for k, array in arrays.items()}
      )
      for name, arrays in labels.items()
    }
    return image, record, sums

  if job.shard_per_item:
    (item,) = items
    return map_in_order(encode, job.read(item), threads)
  return itertools.chain.from_iterable(
    map_in_order(
      lambda item: [encode(image) for image in job.read(item)], items, threads
    )
  )


def map_in_order(
  function: Callable[[Any], Any], values: Iterable[Any], threads: int
) -> Iterator[Any]:
  """Like `Executor.map`, but only so far ahead that memory stays small."""
  if threads == 1:
    yield from map(function, values)
    return
  pool = futures.ThreadPoolExecutor(threads)
  try:
    pending: collections.deque[futures.Future] = collections.deque()
    for value in values:
      pending.append(pool.submit(function, value))
      if len(pending) > 4 * threads:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def _hash(key: bytes, size: int) -> bytes:
  return hashlib.blake2b(key, digest_size=size).digest()
