"""Image sets and label sets on disk: shards of records under one index.

An image set is a directory with any number of splits:

  DIR/index.json                           what the set holds
  DIR/NAME-SPLIT-00000-of-00004.tfrecord   records, see `tfrecord`
  DIR/NAME-SPLIT-00000-of-00004.offsets

A label set is a directory for one teacher and one split of an image set. Its
shards are named like the image shards, and by their content, too; they hold a
record for each of their records, with the same keys in the same order:

  DIR/manifest.json                        whose labels of what
  DIR/NAME-SPLIT-00000-of-00004.0123456789abcdef.tfrecord
  DIR/NAME-SPLIT-00000-of-00004.0123456789abcdef.offsets

(Sets of earlier versions have the names of the image shards alone.)

Index and manifest are written last: without one, a set is not finished.
"""

import bisect
import collections
import dataclasses
import hashlib
import itertools
import json
import re
import struct
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Self

from must_jax.storage.path import (
  Path,
  PathLike,
  list_names,
  list_sizes,
  read_files,
  read_ranges,
)
from must_jax.storage.tfrecord import (
  CorruptRecord,
  RecordWriter,
  ShardReader,
  offsets_path,
  plain_name,
)

SCHEMA_VERSION = 1
INDEX_FILE = "index.json"
LABEL_SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
# Names become file names, so they stay harmless.
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_COMMIT_NAME = re.compile(r"-of-(\d+)\.json$")

# What must be in the files, of what is read by name.
_INDEX_ENTRIES = {"name": str, "licence": str, "fields": dict, "splits": dict}
_SPLIT_ENTRIES = {"num_records": int, "shards": list}
_MANIFEST_ENTRIES = {
  "image_set": dict,
  "teacher": dict,
  "fields": dict,
  "shards": list,
}
_IMAGE_SET_ENTRIES = {"name": str, "split": str}

_MAX_READERS = 256  # shards whose offsets stay in memory, per set


def shard_file(name: str, split: str, shard: int, num_shards: int) -> str:
  """File name of a shard."""
  return f"{name}-{split}-{shard:05d}-of-{num_shards:05d}.tfrecord"


def key_digest(keys: Iterable[bytes]) -> str:
  """Digest of the keys of a shard in order, hexadecimal blake2b-16."""
  digest = hashlib.blake2b(digest_size=16)
  for key in keys:
    digest.update(struct.pack("<I", len(key)) + key)
  return digest.hexdigest()


def content_digest(shards: Iterable[Mapping[str, Any]]) -> str:
  """Digest of all records of a set in order, wherever it lies.

  Args:
    shards: as an index or manifest lists them.
  """
  return key_digest(shard["checksum"].encode() for shard in shards)


@dataclasses.dataclass(frozen=True)
class Shard:
  """A shard as its index or manifest lists it.

  Attributes:
    file: name in the directory of the set.
    num_records, num_bytes: of the file.
    checksum: blake2b-16 of the file.
    keys: `key_digest` of its records.
  """

  file: str
  num_records: int
  num_bytes: int
  checksum: str
  keys: str

  def written_by(self, writer: RecordWriter) -> Self:
    """The shard with the records of a writer that has ended, and these keys."""
    return dataclasses.replace(
      self,
      file=writer.path.name,
      num_bytes=writer.num_bytes,
      checksum=writer.checksum,
    )


def check_shards(
  directory: Path, listed: Sequence[Mapping[str, Any]]
) -> tuple[Shard, ...]:
  """Reads the list of shards of an index and checks it against the files.

  Raises:
    ValueError: a file is missing or has another size than listed.
  """
  shards = tuple(Shard(**entry) for entry in listed)
  for shard in shards:
    if not NAME_PATTERN.fullmatch(shard.file):
      raise ValueError(f"{directory} lists {shard.file!r}, not a file name.")
  sizes = list_sizes(directory, [shard.file for shard in shards])
  for shard in shards:
    for file, size in (
      (shard.file, shard.num_bytes),
      (offsets_path(shard.file).name, 8 * (shard.num_records + 1)),
    ):
      if file not in sizes:
        raise ValueError(
          f"{directory / file} is missing: the set lists {len(shards)} shards."
          " Copy the set again, or make it anew."
        )
      if sizes[file] != size:
        raise ValueError(
          f"{directory / file} has {sizes[file]} bytes; {size} are expected for"
          f" the {shard.num_records} records listed. Copy the set again, or"
          " make it anew."
        )
  return shards


class Frame:
  """A record of which only the place is known yet.

  Args:
    reader: of its shard.
    index: place in the shard.

  Raises:
    CorruptRecord: the offsets do not say where.
  """

  def __init__(self, reader: ShardReader, index: int):
    self.range = reader.range_of(index)
    self._reader, self._index = reader, index

  def parse(self, data: bytes) -> bytes:
    """The record, of the bytes that were read.

    Raises:
      CorruptRecord: lengths or checksums do not agree.
    """
    return self._reader.parse(self._index, data)


class Records:
  """Records of several shards under one index.

  Args:
    directory: where the shards lie.
    shards: in order.
  """

  def __init__(self, directory: PathLike, shards: Sequence[Shard]):
    self.directory = Path(directory)
    self.shards = tuple(shards)
    self._ends = list(itertools.accumulate(s.num_records for s in shards))
    self._readers: collections.OrderedDict[int, ShardReader]
    self._readers = collections.OrderedDict()
    self._lock = threading.Lock()

  def reader(self, shard: int) -> ShardReader:
    """Reads a shard.

    Raises:
      ValueError: its offsets are missing.
    """
    return self.readers([shard])[shard]

  def readers(self, shards: Collection[int]) -> dict[int, ShardReader]:
    """Readers of some shards, whose offsets are read at the same time.

    Raises:
      ValueError: the offsets of one are missing.
    """
    with self._lock:
      found = {i: self._readers[i] for i in shards if i in self._readers}
    missing = [i for i in {*shards} if i not in found]
    paths = [self.directory / self.shards[i].file for i in missing]
    offsets = read_files([offsets_path(path) for path in paths])
    for i, path, data in zip(missing, paths, offsets, strict=True):
      found[i] = ShardReader(path, data)
    with self._lock:
      for i in found:
        self._readers[i] = found[i]
        self._readers.move_to_end(i)
      while len(self._readers) > _MAX_READERS:
        self._readers.popitem(last=False)
    return found

  @property
  def num_records(self) -> int:
    """Of all shards."""
    return self._ends[-1] if self._ends else 0

  def locate(self, index: int) -> tuple[int, int]:
    """The shard that holds a record, and the record's place in it.

    Raises:
      IndexError: there is no such record.
    """
    if not 0 <= index < self.num_records:
      raise IndexError(
        f"{self.directory} has {self.num_records} records, not {index + 1}."
      )
    shard = bisect.bisect_right(self._ends, index)
    return shard, index - self._ends[shard] + self.shards[shard].num_records

  def read(self, index: int) -> bytes:
    """The record at `index`.

    Raises:
      CorruptRecord: this record cannot be read.
    """
    shard, place = self.locate(index)
    return self.reader(shard).read(place)

  def frames(self, indices: Sequence[int]) -> list["Frame | CorruptRecord"]:
    """Where records lie, for `path.read_ranges`; those that offsets know.

    Args:
      indices: of records.
    """
    places = [self.locate(index) for index in indices]
    readers = self.readers({shard for shard, _ in places})
    frames: list[Frame | CorruptRecord] = []
    for shard, place in places:
      try:
        frames.append(Frame(readers[shard], place))
      except CorruptRecord as error:
        frames.append(error)
    return frames

  def read_many(self, indices: Sequence[int]) -> list[bytes | CorruptRecord]:
    """Records, of a bucket all at the same time, or what is wrong with them.

    Args:
      indices: of records.
    """
    frames = self.frames(indices)
    data = iter(read_ranges([f.range for f in frames if isinstance(f, Frame)]))
    found: list[bytes | CorruptRecord] = []
    for frame in frames:
      try:
        found.append(
          frame.parse(next(data)) if isinstance(frame, Frame) else frame
        )
      except CorruptRecord as error:
        found.append(error)
    return found


class ImageSet(Records):
  """One split of an image set, opened with `ImageSet.open`.

  Attributes:
    name, split: as in the names of its shards.
    fields: {field: how it is listed}, see `fields.Description`.
    licence: of images and labels.
    index: all of `index.json`.
  """

  def __init__(self, directory: PathLike, split: str, index: Mapping[str, Any]):
    directory = Path(directory)
    shards = check_shards(directory, index["splits"][split]["shards"])
    super().__init__(directory, shards)
    self.name, self.split, self.index = index["name"], split, index
    self.fields, self.licence = index["fields"], index["licence"]

  @classmethod
  def open(cls, directory: PathLike, split: str) -> Self:
    """Opens a split and checks that all its files are there.

    Raises:
      ValueError: no image set, an unknown version, no such split, or files
        that do not fit the index.
    """
    index = read_index(directory)
    if split not in index["splits"]:
      raise ValueError(
        f"{directory} has no split {split!r}; it has {sorted(index['splits'])}."
      )
    return cls(directory, split, index)


class LabelSet(Records):
  """The labels of one teacher, opened with `LabelSet.open`.

  Attributes:
    fields: {field: how it is listed}, see `fields.Description`.
    manifest: all of `manifest.json`.
  """

  def __init__(self, directory: PathLike, manifest: Mapping[str, Any]):
    directory = Path(directory)
    super().__init__(directory, check_shards(directory, manifest["shards"]))
    self.fields, self.manifest = manifest["fields"], manifest

  @classmethod
  def open(cls, directory: PathLike) -> Self:
    """Opens a complete label set.

    Raises:
      ValueError: there is none, its version is unknown, files do not fit the
        manifest, or it is not finished.
    """
    return cls(directory, read_manifest(directory))

  def check_same_images(self, other: "LabelSet") -> None:
    """Checks that another label set is of the same images, shard by shard.

    Raises:
      ValueError: names what differs.
    """
    mine, others = (labels.manifest["image_set"] for labels in (self, other))
    given = [f"split {i['split']!r} of {i['name']!r}" for i in (mine, others)]
    if given[0] != given[1]:
      raise ValueError(
        f"Label set {self.directory} is of {given[0]}, {other.directory} of"
        f" {given[1]}. Give label sets of the same images."
      )
    shards = [
      [(plain_name(s.file), s.num_records, s.keys) for s in labels.shards]
      for labels in (self, other)
    ]
    if shards[0] != shards[1]:
      raise ValueError(
        f"Label sets {self.directory} ({self.num_records} records) and"
        f" {other.directory} ({other.num_records}) are both of {given[0]}, but"
        " not of the same records in the same shards. The images changed"
        " between them: label them again."
      )

  def check_images(self, images: ImageSet) -> None:
    """Checks that the labels belong to these images, shard by shard.

    Raises:
      ValueError: names the two shards that do not line up.
    """
    given = self.manifest["image_set"]
    if (given["name"], given["split"]) != (images.name, images.split):
      raise ValueError(
        f"Label set {self.directory} was made for split {given['split']!r} of"
        f" image set {given['name']!r}; the images in {images.directory} are"
        f" split {images.split!r} of {images.name!r}. Label these images, or"
        " read the others."
      )
    wanted = {shard.file: shard for shard in images.shards}
    done = {plain_name(shard.file): shard for shard in self.shards}
    if len(done) < len(self.shards) or list(done) != list(wanted):
      missing = [file for file in wanted if file not in done]
      raise ValueError(
        f"Label set {self.directory} has {len(wanted) - len(missing)} of the"
        f" {len(wanted)} shards of {images.directory} and"
        f" {len(done) - len(wanted) + len(missing)} others; missing are"
        f" {missing[:3]}. Run the labelling job again."
      )
    for file, label in done.items():
      image = wanted[file]
      if (label.num_records, label.keys) != (image.num_records, image.keys):
        raise ValueError(
          f"Label shard {self.directory / label.file} ({label.num_records}"
          f" records,"
          f" keys {label.keys}) does not line up with image shard"
          f" {images.directory / file} ({image.num_records} records, keys"
          f" {image.keys}). The images changed since: label them again."
        )


def read_index(directory: PathLike) -> dict[str, Any]:
  """Reads `index.json` of an image set.

  Raises:
    ValueError: there is none, or its version is unknown.
  """
  directory = Path(directory)
  if not directory.is_dir():
    raise ValueError(
      f"Image set {directory} is no directory. Give the directory that"
      " `must-jax import` wrote."
    )
  path = directory / INDEX_FILE
  index = read_versioned_json(
    path,
    SCHEMA_VERSION,
    f"{directory} is no image set. Give the directory that `must-jax import`"
    " wrote; if an import broke off there, run it again.",
  )
  _check_entries(path, index, _INDEX_ENTRIES)
  _check_fields(path, index["fields"])
  for split, entry in index["splits"].items():
    _check_entries(path, entry, _SPLIT_ENTRIES, f"splits.{split}.")
    _check_listed(path, entry["shards"], f"splits.{split}.")
  return index


def read_manifest(directory: PathLike) -> dict[str, Any]:
  """Reads `manifest.json` of a label set.

  Raises:
    ValueError: there is none, or its version is unknown.
  """
  path = Path(directory) / MANIFEST_FILE
  missing = ""
  if not path.exists():
    if not path.parent.is_dir():
      raise ValueError(
        f"Label set {directory} is no directory. Give the directory that a"
        " labelling job, `must-jax import --labels-for` or `must-jax labels"
        " import` wrote."
      )
    names = list_names(directory) if path.parent.is_dir() else set()
    totals = [match[1] for match in map(_COMMIT_NAME.search, names) if match]
    missing = (
      f"{directory} is no finished label set, {len(totals)} of"
      f" {int(totals[0]) if totals else '?'} shards"
      " are done. Run the labelling job to its end; it keeps what is done."
    )
  manifest = read_versioned_json(path, LABEL_SCHEMA_VERSION, missing)
  _check_entries(path, manifest, _MANIFEST_ENTRIES)
  _check_entries(path, manifest["image_set"], _IMAGE_SET_ENTRIES, "image_set.")
  _check_fields(path, manifest["fields"])
  _check_listed(path, manifest["shards"])
  return manifest


def read_versioned_json(
  path: PathLike, version: int, missing: str
) -> dict[str, Any]:
  """Reads a JSON file with a `schema_version`, see `parse_versioned_json`."""
  (text,) = read_files([path])
  return parse_versioned_json(path, text, version, missing)


def parse_versioned_json(
  path: PathLike, text: bytes | None, version: int, missing: str
) -> dict[str, Any]:
  """Parses a JSON file with a `schema_version`.

  Args:
    path: of the file.
    text: its contents; None if there is no such file.
    version: the only one that is understood.
    missing: what to tell when there is no such file.

  Raises:
    ValueError: there is no such file, it is no JSON object, or its version is
      another one.
  """
  if text is None:
    raise ValueError(f"{path} is missing: {missing}")
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not valid JSON ({error}).") from None
  return check_version(path, value, version)


def check_version(path: PathLike, value: Any, version: int) -> dict[str, Any]:
  """The JSON of a file, if it has the `schema_version` that is understood.

  Raises:
    ValueError: it is no JSON object, or its version is another one.
  """
  given = value.get("schema_version") if isinstance(value, dict) else None
  if given != version:
    raise ValueError(
      f"{path} has schema_version {given!r}; this must_jax reads {version}."
      " Use the must_jax that wrote it, or make the files anew."
    )
  return value


def _check_fields(path: Path, fields: Mapping[str, Any]) -> None:
  for name, spec in fields.items():
    _check_entries(path, spec, {"kind": str}, f"fields.{name}.")
    classes = spec.get("classes", [])
    if not isinstance(classes, list) or not all(
      isinstance(name, str) for name in classes
    ):
      raise ValueError(
        f"{path} has fields.{name}.classes {str(classes)[:80]}; expected a list"
        " of names."
      )


def _check_listed(path: Path, shards: Sequence[Any], place: str = "") -> None:
  types = {field.name: field.type for field in dataclasses.fields(Shard)}
  for i, shard in enumerate(shards):
    _check_entries(path, shard, types, f"{place}shards.{i}.")
    if unknown := sorted(set(shard) - set(types)):
      raise ValueError(
        f"{path} has {place}shards.{i} with {unknown}; expected"
        f" {sorted(types)} only."
      )


def _check_entries(
  path: Path, value: Any, types: Mapping[str, Any], place: str = ""
) -> None:
  """Checks types, so that whatever reads on finds what it expects.

  Args:
    path: of the file, for the message.
    value: what should be a JSON object.
    types: of entries that it must have, by name; numbers are not negative.
    place: of the object in the file, for the message.

  Raises:
    ValueError: names the place, what is given and what is expected.
  """
  for name, kind in types.items():
    given = value.get(name) if isinstance(value, dict) else None
    # To Python, true is a number.
    fine = isinstance(given, kind) and not isinstance(given, bool)
    if not fine or (isinstance(given, int) and given < 0):
      raise ValueError(
        f"{path} has {place}{name} {str(given)[:80]!r}; expected"
        f" {kind.__name__}. Make the file anew, or copy it again."
      )
