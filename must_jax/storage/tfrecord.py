"""TFRecord files with offsets, so that any record is one seek away.

  X.tfrecord   uncompressed TFRecord, readable by tf.data
  X.offsets    little-endian uint64 [n + 1]: record starts, then the file size

A corrupt record costs only itself; a plain TFRecord reader loses the rest of
the file. Files are written under a temporary name, synced and renamed: they
are there whole or not at all.
"""

import contextlib
import hashlib
import json
import os
import struct
import sys
import uuid
from collections.abc import Iterator
from typing import IO, Any, Self

import google_crc32c
import numpy as np
from etils import epath

MAX_RECORD_BYTES = 256 << 20

_MAX_FILE_BYTES = 1 << 62  # larger offsets overflow what systems seek by
_FRAME_BYTES = 16  # length u64, its CRC u32, and the CRC u32 of the payload


class CorruptRecord(Exception):
  """One record that cannot be read; its neighbours can.

  Attributes:
    shard: path of the shard.
    index: place of the record in the shard.
    reason: what is wrong with it.
  """

  def __init__(self, shard: str, index: int, reason: str):
    super().__init__(f"record {index} of {shard}: {reason}")
    self.shard, self.index, self.reason = shard, index, reason


def is_local(path: epath.PathLike) -> bool:
  """Whether a path is on a file system, not on an object store."""
  return "://" not in os.fspath(path)


def offsets_path(path: epath.PathLike) -> epath.Path:
  """The file of record offsets beside a shard."""
  return epath.Path(path).with_suffix(".offsets")


@contextlib.contextmanager
def atomic_write(path: epath.PathLike) -> Iterator[IO[bytes]]:
  """Opens a file that appears under its name only once it is complete.

  The name of the temporary file is unique, so that several processes may
  write the same path; the last one to finish wins.
  """
  path = epath.Path(path)
  temp = path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
  local = is_local(path)
  try:
    with temp.open("wb") as file:
      yield file
      file.flush()
      if local:
        os.fsync(file.fileno())
    temp.replace(path)
  except BaseException:
    temp.unlink(missing_ok=True)
    raise
  if local:  # a rename lasts once its directory is synced
    directory = os.open(path.parent, os.O_RDONLY)
    try:
      os.fsync(directory)
    finally:
      os.close(directory)


def to_json(value: Any) -> str:
  """JSON text; equal values give equal text."""
  return json.dumps(value, indent=1, sort_keys=True) + "\n"


def write_json(path: epath.PathLike, value: Any) -> None:
  """Writes `to_json` atomically."""
  with atomic_write(path) as file:
    file.write(to_json(value).encode())


def masked_crc(data: bytes) -> int:
  """The CRC of the TFRecord format: rotated, so that CRCs of CRCs differ."""
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def file_checksum(path: epath.PathLike) -> tuple[str, int]:
  """The `RecordWriter.checksum` of a file as it is now, and its size."""
  digest, size = hashlib.blake2b(digest_size=16), 0
  with epath.Path(path).open("rb") as file:
    while block := file.read(1 << 20):
      digest.update(block)
      size += len(block)
  return digest.hexdigest(), size


class RecordWriter:
  """Writes one shard and its offsets; both appear when the block ends well.

  After the block `num_records`, `num_bytes` and `checksum` (blake2b-16 of the
  file) tell what was written. After an exception nothing is left behind.

  Args:
    path: of the `.tfrecord`.
  """

  def __init__(self, path: epath.PathLike):
    self.path = epath.Path(path)
    self.num_records = self.num_bytes = 0
    self.checksum = ""

  def __enter__(self) -> Self:
    self._offsets = [0]
    self._digest = hashlib.blake2b(digest_size=16)
    self._context = atomic_write(self.path)
    self._file = self._context.__enter__()
    return self

  def write(self, record: bytes) -> None:
    """Appends a record.

    Raises:
      ValueError: the record is larger than a reader accepts.
    """
    if len(record) > MAX_RECORD_BYTES:
      raise ValueError(
        f"{self.path}: record {self.num_records} has {len(record)} bytes; at"
        f" most {MAX_RECORD_BYTES} are allowed."
      )
    length = struct.pack("<Q", len(record))
    frame = b"".join(
      (
        length,
        struct.pack("<I", masked_crc(length)),
        record,
        struct.pack("<I", masked_crc(record)),
      )
    )
    self._file.write(frame)
    self._digest.update(frame)
    self.num_records += 1
    self.num_bytes += len(frame)
    self._offsets.append(self.num_bytes)

  def __exit__(self, *error: Any) -> None:
    try:
      if error[0] is None:
        # The offsets come first: a shard that is there can be read.
        with atomic_write(offsets_path(self.path)) as file:
          file.write(np.asarray(self._offsets, "<u8").tobytes())
        self.checksum = self._digest.hexdigest()
    except BaseException:
      error = sys.exc_info()
      raise
    finally:
      self._context.__exit__(*error)


class ShardReader:
  """Random access to the records of one shard; safe to share by threads.

  Args:
    path: of the `.tfrecord`; its offsets lie beside it.

  Raises:
    ValueError: the offsets are missing or are no offsets.
  """

  def __init__(self, path: epath.PathLike):
    self.path = epath.Path(path)
    self._name, self._local = str(self.path), is_local(path)
    try:
      data = offsets_path(path).read_bytes()
    except FileNotFoundError:
      raise ValueError(
        f"{offsets_path(path)} is missing; copy it together with its shard, or"
        " import the data again."
      ) from None
    if len(data) < 8 or len(data) % 8:
      raise ValueError(
        f"{offsets_path(path)} has {len(data)} bytes; expected 8 for each"
        " record and 8 more. Import the data again."
      )
    self._offsets = np.frombuffer(data, "<u8")

  def __len__(self) -> int:
    return len(self._offsets) - 1

  def read(self, index: int) -> bytes:
    """The record at `index`.

    Raises:
      CorruptRecord: lengths or checksums do not agree.
      IndexError: the shard has no such record.
    """
    if not 0 <= index < len(self):
      raise IndexError(f"{self.path} has {len(self)} records, not {index + 1}.")
    begin, end = int(self._offsets[index]), int(self._offsets[index + 1])
    size = end - begin - _FRAME_BYTES
    if not 0 <= size <= MAX_RECORD_BYTES or end > _MAX_FILE_BYTES:
      raise CorruptRecord(
        self._name, index, f"its offsets would be {begin} to {end}"
      )
    frame = self._read_bytes(begin, end)
    if len(frame) != end - begin:
      raise CorruptRecord(self._name, index, "the shard ends before it")
    length, length_crc = struct.unpack_from("<QI", frame)
    if length != size or length_crc != masked_crc(frame[:8]):
      raise CorruptRecord(self._name, index, "its length is corrupt")
    record = frame[12:-4]
    if struct.unpack("<I", frame[-4:])[0] != masked_crc(record):
      raise CorruptRecord(self._name, index, "its checksum does not match")
    return record

  def __iter__(self) -> Iterator[bytes]:
    return map(self.read, range(len(self)))

  def _read_bytes(self, begin: int, end: int) -> bytes:
    # Opening anew for each record keeps no limit on shards and no lock.
    if not self._local:
      with self.path.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)
    descriptor = os.open(self._name, os.O_RDONLY)
    try:
      return os.pread(descriptor, end - begin, begin)
    finally:
      os.close(descriptor)
