"""TFRecord files with offsets, so that any record is one seek away.

  X.tfrecord   uncompressed TFRecord, readable by tf.data
  X.offsets    little-endian uint64 [n + 1]: record starts, then the file size

A corrupt record costs only itself; a plain TFRecord reader loses the rest of
the file. Files are written under a temporary name, synced and renamed: they
are there whole or not at all.
"""

import hashlib
import os
import re
import struct
import sys
from collections.abc import Iterator
from typing import Any, Self

import google_crc32c
import numpy as np

from must_jax.storage.path import (
  Path,
  PathLike,
  Range,
  publish,
  read_files,
  read_range,
)

MAX_RECORD_BYTES = 256 << 20

_MAX_FILE_BYTES = 1 << 62  # larger offsets overflow what systems seek by
_FRAME_BYTES = 16  # length u64, its CRC u32, and the CRC u32 of the payload
_NAMED = 16  # digits of a checksum in a name
_CONTENT_NAME = re.compile(rf"\.[0-9a-f]{{{_NAMED}}}\.tfrecord$")


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


def offsets_path(path: PathLike) -> Path:
  """The file of record offsets beside a shard."""
  return Path(path).with_suffix(".offsets")


def masked_crc(data: bytes) -> int:
  """The CRC of the TFRecord format: rotated, so that CRCs of CRCs differ."""
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def file_checksum(path: PathLike) -> tuple[str, int]:
  """The `RecordWriter.checksum` of a file as it is now, and its size."""
  digest, size = hashlib.blake2b(digest_size=16), 0
  with Path(path).open("rb") as file:
    while block := file.read(1 << 20):
      digest.update(block)
      size += len(block)
  return digest.hexdigest(), size


def content_name(file: str, checksum: str) -> str:
  """The name of a shard that is named by its content, too.

  Whoever writes other records, writes other files: two who write the same shard
  at the same time never mix.

  Args:
    file: name of the shard.
    checksum: `RecordWriter.checksum` of its records.
  """
  return f"{file.removesuffix('.tfrecord')}.{checksum[:_NAMED]}.tfrecord"


def plain_name(file: str) -> str:
  """The name of a shard without what `content_name` adds."""
  return _CONTENT_NAME.sub(".tfrecord", file)


class RecordWriter:
  """Writes one shard and its offsets; both appear when the block ends well.

  After the block `num_records`, `num_bytes` and `checksum` (blake2b-16 of the
  file) tell what was written, and `path` where. After an exception nothing is
  left behind.

  Args:
    path: of the `.tfrecord`.
    by_content: give it its `content_name`.
  """

  def __init__(self, path: PathLike, by_content: bool = False):
    self.path, self._by_content = Path(path), by_content
    self.num_records = self.num_bytes = 0
    self.checksum = ""

  def __enter__(self) -> Self:
    self._offsets = [0]
    self._digest = hashlib.blake2b(digest_size=16)
    self._context = publish(self.path, lambda: self.path)
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
        self.checksum = self._digest.hexdigest()
        if self._by_content:
          name = content_name(self.path.name, self.checksum)
          self.path = self.path.with_name(name)
        # The offsets come first: a shard that is there can be read.
        with publish(offsets_path(self.path)) as file:
          file.write(np.asarray(self._offsets, "<u8").tobytes())
    except BaseException:
      error = sys.exc_info()
      raise
    finally:
      self._context.__exit__(*error)


class ShardReader:
  """Random access to the records of one shard; safe to share by threads.

  Args:
    path: of the `.tfrecord`; its offsets lie beside it.
    offsets: contents of their file, if it was read already.

  Raises:
    ValueError: the offsets are missing or are no offsets.
  """

  def __init__(self, path: PathLike, offsets: bytes | None = None):
    self.path = Path(path)
    self._name = os.fspath(self.path)  # which takes as long as to open it
    (data,) = [offsets] if offsets else read_files([offsets_path(path)])
    if data is None:
      raise ValueError(
        f"{offsets_path(path)} is missing; copy it together with its shard, or"
        " import the data again."
      )
    if len(data) < 8 or len(data) % 8:
      raise ValueError(
        f"{offsets_path(path)} has {len(data)} bytes; expected 8 for each"
        " record and 8 more. Import the data again."
      )
    self._offsets = np.frombuffer(data, "<u8")

  def __len__(self) -> int:
    return len(self._offsets) - 1

  @property
  def ends(self) -> tuple[int, int]:
    """Where the first record begins, and the last one ends."""
    return int(self._offsets[0]), int(self._offsets[-1])

  def locate(self, index: int) -> tuple[int, int]:
    """Where the frame of a record begins and ends in the file.

    Raises:
      CorruptRecord: the offsets do not say.
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
    return begin, end

  def range_of(self, index: int) -> Range:
    """The same for `path.read_ranges`."""
    return self._name, *self.locate(index)

  def parse(self, index: int, frame: bytes) -> bytes:
    """The record in the frame at `index`.

    Raises:
      CorruptRecord: lengths or checksums do not agree.
    """
    begin, end = self.locate(index)
    if len(frame) != end - begin:
      raise CorruptRecord(self._name, index, "the shard ends before it")
    length, length_crc = struct.unpack_from("<QI", frame)
    if length != end - begin - _FRAME_BYTES or length_crc != masked_crc(
      frame[:8]
    ):
      raise CorruptRecord(self._name, index, "its length is corrupt")
    record = frame[12:-4]
    if struct.unpack("<I", frame[-4:])[0] != masked_crc(record):
      raise CorruptRecord(self._name, index, "its checksum does not match")
    return record

  def read(self, index: int) -> bytes:
    """The record at `index`.

    Raises:
      CorruptRecord: lengths or checksums do not agree.
      IndexError: the shard has no such record.
    """
    return self.parse(index, read_range(*self.range_of(index)))

  def __iter__(self) -> Iterator[bytes]:
    return map(self.read, range(len(self)))
