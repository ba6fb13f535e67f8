"""`must-jax data verify`: reads a set whole and tells all that is wrong.

Records are read as training reads them, by the same graphs, so that training
leaves out no record of a set without problems.
"""

import abc
import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, ClassVar, NamedTuple

import numpy as np
from tqdm import tqdm

from must_jax.fields import check_descriptions, make_field
from must_jax.storage.path import (
  Path,
  PathLike,
  local_copy,
  publish,
  read_files,
)
from must_jax.storage.sets import (
  INDEX_FILE,
  MANIFEST_FILE,
  NAME_PATTERN,
  Shard,
  key_digest,
  read_index,
  read_manifest,
)
from must_jax.storage.tfrecord import (
  CorruptRecord,
  ShardReader,
  file_checksum,
  offsets_path,
)

_SHOWN = 20  # problems on the screen; `--report` has all


@dataclasses.dataclass(frozen=True)
class Problem:
  """Something wrong in a set.

  Attributes:
    shard: its file, or that of the index or manifest.
    index: place of the record in the shard; None for the file as a whole.
    key: of the record; empty if it cannot be read.
    reason: what is wrong.
  """

  shard: str
  index: int | None
  key: str
  reason: str

  def __str__(self) -> str:
    if self.index is None:
      return f"{self.shard}: {self.reason}"
    # A broken key may not be fit for a terminal.
    return f"record {self.index} of {self.shard}, {self.key!r}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Report:
  """What was found in a shard, or about a split as a whole.

  Attributes:
    split: empty for what concerns the index as a whole.
    problems: in order of the records.
    num_records: that the shard has.
    num_good: of these, without a problem of their own.
    num_bytes: of the shard.
  """

  split: str
  problems: Sequence[Problem]
  num_records: int = 0
  num_good: int = 0
  num_bytes: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `must-jax data verify`."""
  add = parser.add_argument
  add("directory", type=Path, help="image set or label set")
  add("--split", help="only this one; default all")
  add(
    "--fast",
    action="store_true",
    help="do not decode images; their headers and all labels are read",
  )
  add(
    "--workers",
    type=int,
    default=min(os.cpu_count() or 1, 16),
    help="shards read at a time; default %(default)s",
  )
  add(
    "--report",
    type=Path,
    metavar="FILE",
    help="write all problems to FILE, a JSON object a line",
  )


def run(args: argparse.Namespace) -> int:
  """Verifies a set; prints counts and the first problems.

  Args:
    args: see `add_arguments`.

  Returns:
    0, or 1 if there are problems.

  Raises:
    ValueError: there is no set, or no such split.
  """
  if args.workers < 1:
    raise ValueError(f"--workers is {args.workers}; expected 1 or more.")
  counts: dict[str, collections.Counter[str]] = {}
  shown: list[Problem] = []
  with contextlib.ExitStack() as stack:
    file = args.report and stack.enter_context(publish(args.report))
    bar = stack.enter_context(
      tqdm(unit="record", disable=not sys.stderr.isatty(), leave=False)
    )

    def progress(count: int, total: int) -> None:
      bar.total = total
      bar.update(count)

    for report in verify(
      args.directory,
      args.split,
      decode=not args.fast,
      workers=args.workers,
      progress=progress,
    ):
      count = counts.setdefault(report.split, collections.Counter())
      count["records"] += report.num_records
      count["good"] += report.num_good
      count["bytes"] += report.num_bytes
      count["problems"] += len(report.problems)
      shown.extend(report.problems[: _SHOWN - len(shown)])
      for problem in report.problems if file else ():
        line = json.dumps(dataclasses.asdict(problem)) + "\n"
        file.write(line.encode())
  for split, count in counts.items():
    print(
      f"{split or 'the whole set'}: {count['good']:,} of {count['records']:,}"
      f" records are good, {count['bytes'] / 1e6:,.1f} MB,"
      f" {count['problems']:,} problems"
    )
  num_problems = sum(count["problems"] for count in counts.values())
  for problem in shown:
    print(f"  {problem}")
  if num_problems > len(shown):
    print(f"  ... and {num_problems - len(shown):,} more; see --report")
  is_labels = (args.directory / MANIFEST_FILE).exists()
  if is_labels and not num_problems:
    from must_jax.storage import label_sets

    for name, left in label_sets.summary(read_manifest(args.directory)).items():
      print(f"  {name}: {left}")
  if is_labels and any(p.shard.endswith(".tfrecord") for p in shown):
    print(
      f"Move the .json files of the damaged shards and {MANIFEST_FILE} away,"
      " then run the labelling job again: it labels these shards anew."
    )
  return 1 if num_problems else 0


def verify(
  directory: PathLike,
  split: str | None = None,
  *,
  decode: bool = True,
  workers: int = 1,
  progress: Callable[[int, int], object] = lambda count, total: None,
) -> Iterator[Report]:
  """Reads an image set or label set whole; memory grows by 8 bytes a record.

  Args:
    directory: of the set.
    split: only this one; by default all.
    decode: decode images, which takes most of the time.
    workers: shards read at a time.
    progress: called from any thread with the number of records just read and
      that of all records.

  Returns:
    Iterator of a report on each shard in order, and further ones where there
    are problems with a split as a whole or with the index or manifest.

  Raises:
    ValueError: there is no set, or no such split.
  """
  directory = Path(directory)
  is_labels = (directory / MANIFEST_FILE).exists()
  make_checker = _LabelChecker if is_labels else _ImageChecker
  file = make_checker.FILE
  try:
    listed = read_manifest(directory) if is_labels else read_index(directory)
    check_descriptions(listed["fields"])
  except ValueError as error:
    if not (directory / file).exists():
      raise
    yield Report("", [Problem(file, None, "", str(error))])
    return
  splits = listed.get("splits", {})
  if is_labels:
    splits = {listed["image_set"]["split"]: listed}
  if split is not None and split not in splits:
    raise ValueError(
      f"{directory} has no split {split!r}; it has {sorted(splits)}."
    )
  chosen = splits if split is None else {split: splits[split]}
  total = sum(
    shard["num_records"]
    for entry in chosen.values()
    for shard in entry["shards"]
  )
  checker = make_checker(
    directory, listed["fields"], decode, lambda count: progress(count, total)
  )
  for name, entry in chosen.items():
    if is_labels:
      yield from _verify_labels(checker, name, entry, workers)
    else:
      yield from _verify_split(checker, name, entry, workers)


def _verify_split(
  checker: "_Checker", split: str, entry: Mapping[str, Any], workers: int
) -> Iterator[Report]:
  shards = [Shard(**shard) for shard in entry["shards"]]
  num_records = sum(shard.num_records for shard in shards)
  if not shards or entry["num_records"] != num_records:
    reason = (
      f"split {split!r} has {entry['num_records']} records; its {len(shards)}"
      f" shards have {num_records}"
    )
    yield Report(split, [Problem(INDEX_FILE, None, "", reason)])
  hashes = []
  for shard, checked in _check_shards(checker, shards, workers):
    hashes.append(checked.hashes)
    yield checked.report(split, shard)
  if doubles := list(_doubles(checker.directory, shards, hashes)):
    yield Report(split, doubles)


def _verify_labels(
  checker: "_Checker", split: str, manifest: Mapping[str, Any], workers: int
) -> Iterator[Report]:
  """The shards of a label set, its commit records, and its manifest."""
  from must_jax.config import differences
  from must_jax.storage import label_sets
  from must_jax.storage.commits import JOB_FILE

  def about(file: str, reasons: Iterable[str]) -> Report:
    return Report(split, [Problem(file, None, "", r) for r in reasons])

  shards = [Shard(**shard) for shard in manifest["shards"]]
  directory, commits = None, []
  try:
    job = label_sets.read_job(checker.directory)
    directory = label_sets.open_directory(checker.directory, job)
  except ValueError as error:
    yield about(JOB_FILE, [str(error)])
  for shard, checked in _check_shards(checker, shards, workers):
    yield checked.report(split, shard)
    if directory is None:
      continue
    try:
      commits.append(directory.read(shard.file))
    except ValueError as error:
      yield about(shard.file, [str(error)])
      continue
    found = list(checked.undecodable)
    committed = [entry["index"] for entry in commits[-1].undecodable]
    if checked.hashes.size and found != committed:
      reason = f"has undecodable records {found}; committed were {committed}"
      yield about(shard.file, [reason])
  if len(commits) == len(shards):
    # What was measured later does not follow from the commits, and alarms are
    # those of the version that made the manifest.
    kept, expected = (
      {k: v for k, v in found.items() if k not in ("quality", "alarms")}
      for found in (manifest, label_sets.make_manifest(job, commits))
    )
    if reasons := differences(expected, kept, MANIFEST_FILE):
      yield about(MANIFEST_FILE, reasons)


@dataclasses.dataclass(frozen=True)
class _Checked:
  """What was found in a shard.

  Attributes:
    problems: in order of the records.
    hashes: of the keys, uint64 [records].
    undecodable: places of label records that say so.
  """

  problems: Sequence[Problem]
  hashes: np.ndarray
  undecodable: Sequence[int]

  def report(self, split: str, shard: Shard) -> Report:
    """As others see it."""
    bad = {problem.index for problem in self.problems} - {None}
    count = len(self.hashes)
    return Report(
      split, self.problems, count, count - len(bad), shard.num_bytes
    )


def _check_shards(
  checker: "_Checker", shards: Sequence[Shard], workers: int
) -> Iterator[tuple[Shard, _Checked]]:
  """What is found in each shard, some shards at a time."""
  pool = futures.ThreadPoolExecutor(workers)
  try:
    checked = pool.map(checker.check_shard, shards)
    yield from zip(shards, checked, strict=True)
  except BaseException:
    checker.stop.set()
    raise
  finally:
    pool.shutdown(cancel_futures=True)


class _Checker(abc.ABC):
  """Checks the shards of a set; safe to share by threads.

  Args:
    directory: of the set.
    fields: as in its index or manifest.
    decode: decode images.
    progress: called with the number of records just read.
  """

  # What lists the shards, and features of a record that are no labels.
  FILE: ClassVar[str]
  HEAD: ClassVar[frozenset[str]]

  def __init__(
    self,
    directory: Path,
    fields: Mapping[str, Mapping[str, Any]],
    decode: bool,
    progress: Callable[[int], object],
  ):
    from must_jax.storage import records

    self.directory, self.stop = directory, threading.Event()
    self._decode, self._progress = decode, progress
    self._labels = records.label_graphs(fields)
    self._fields = {name: make_field(spec) for name, spec in fields.items()}

  @abc.abstractmethod
  def _check_head(self, record: bytes, key: bytes) -> "_Head":
    """Checks what is no label."""

  def check_shard(self, shard: Shard) -> _Checked:
    """Reads a shard whole, unless `stop` is set meanwhile.

    Args:
      shard: as the index or manifest lists it.
    """
    path = self.directory / shard.file
    try:
      if not NAME_PATTERN.fullmatch(shard.file):
        raise ValueError(f"{self.FILE} lists {shard.file!r}, not a file name")
      (offsets,) = read_files([offsets_path(path)])
      ShardReader(path, offsets)  # or says what is wrong with them
      # Of a bucket, one request is cheaper than one a record.
      with local_copy(path) as copy:
        return self._check_file(shard, ShardReader(copy, offsets))
    except (ValueError, OSError) as error:
      problem = Problem(shard.file, None, "", str(error))
      return _Checked([problem], np.zeros(0, np.uint64), ())

  def _check_file(self, shard: Shard, reader: ShardReader) -> _Checked:
    keys: list[bytes] = []
    problems: list[Problem] = []
    undecodable: list[int] = []

    def note(reason: str, index: int | None = None, key: bytes = b"") -> None:
      problems.append(Problem(shard.file, index, _text(key), reason))

    checksum, size = file_checksum(reader.path)
    ends = reader.ends
    for what, found, expected in (
      ("bytes", size, shard.num_bytes),
      ("checksum", checksum, shard.checksum),
      ("records", len(reader), shard.num_records),
      ("a first record at", ends[0], 0),
      ("an end of the last record at", ends[1], size),
    ):
      if found != expected:
        note(f"has {what} {found}; expected {expected}")
    for place in range(len(reader)):
      if self.stop.is_set():
        break
      try:
        key, reasons, is_undecodable = self._check_record(reader.read(place))
      except CorruptRecord as error:
        key, reasons, is_undecodable = b"", [error.reason], False
      keys.append(key)
      if is_undecodable:
        undecodable.append(place)
      for reason in reasons:
        note(reason, place, key)
      self._progress(1)
    if all(keys) and key_digest(keys) != shard.keys:
      note(f"has keys {key_digest(keys)}; expected {shard.keys}")
    hashes = np.array([_hash(key) for key in keys], np.uint64)
    return _Checked(problems, hashes, undecodable)

  def _check_record(self, record: bytes) -> tuple[bytes, list[str], bool]:
    """The key, empty if there is none; what is wrong; see `_Head`."""
    from must_jax.storage import records

    if not records.is_example(record):
      return b"", ["it is no tf.train.Example"], False
    key, names = _key_and_names(record)
    head = self._check_head(record, key)
    reasons = [*self._check_names(names), *head.reasons]
    if not key and not head.may_lack_key:
      reasons.insert(0, "it has no key")
    for name, labels in self._labels.items():
      try:
        arrays = {k: v.numpy() for k, v in labels(record).items()}
        if arrays["present"] and head.size:
          self._fields[name].check_extent(arrays, head.size)
      except (ValueError, *records.BROKEN) as error:
        reasons.append(f"field {name!r}: {records.reason(error)}")
    return key, reasons, head.is_undecodable

  def _check_names(self, names: set[str]) -> Iterator[str]:
    """What is wrong with the names of a record's features."""
    groups = collections.defaultdict(list)
    for name in sorted(names - self.HEAD):
      groups[name.rpartition("/")[0]].append(name)
    for field, found in groups.items():
      if field not in self._labels:
        yield f"features {found} are of no field that {self.FILE} lists"
      elif f"{field}/present" not in found:
        yield f"features {found} are not read: {field}/present is missing"


class _Head(NamedTuple):
  """What a record is apart from its labels.

  Attributes:
    reasons: what is wrong.
    size: height and width of the image, if it is there.
    is_undecodable: a label record that says that its image gave no labels.
    may_lack_key: whether its key need not be known.
  """

  reasons: Sequence[str] = ()
  size: tuple[int, int] | None = None
  is_undecodable: bool = False
  may_lack_key: bool = False


class _ImageChecker(_Checker):
  """Checks the shards of an image set."""

  FILE = INDEX_FILE
  HEAD = frozenset({"key", "image", "height", "width"})

  def __init__(self, *args: Any):
    from must_jax.quiet_tensorflow import tf
    from must_jax.storage import records

    super().__init__(*args)
    text = tf.TensorSpec([], tf.string)

    def decoded_size(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
      window = tf.concat([[0, 0], size], 0)
      return tf.shape(records.decode_image(image, size, window))

    self._head = tf.function(records.parse_image, [text], autograph=False)
    self._decoded_size = tf.function(
      decoded_size, [text, tf.TensorSpec([2], tf.int32)], autograph=False
    )

  def _check_head(self, record: bytes, key: bytes) -> _Head:
    from must_jax.storage import records

    size = None
    try:
      head = self._head(record)
      image = head["image"].numpy()
      stored = tuple(head["size"].numpy())
      found = records.read_image_size(image)
      if found != stored:
        raise ValueError(
          f"it has {found[0]} x {found[1]} pixels (height x width); the record"
          f" says {stored[0]} x {stored[1]}"
        )
      size = found
      if self._decode:
        self._decoded_size(image, head["size"])
    except (ValueError, *records.BROKEN) as error:
      return _Head([f"image: {records.reason(error)}"], size)
    return _Head(size=size)


class _LabelChecker(_Checker):
  """Checks the shards of a label set."""

  FILE = MANIFEST_FILE
  HEAD = frozenset({"key", "status"})

  def _check_head(self, record: bytes, key: bytes) -> _Head:
    from must_jax.storage import records

    status = records.status_of(record)
    if status not in records.STATUSES:
      return _Head([f"its status is {status!r}; expected {records.STATUSES}"])
    is_undecodable = status == "undecodable"
    return _Head(is_undecodable=is_undecodable, may_lack_key=is_undecodable)


def _doubles(
  directory: Path, shards: Sequence[Shard], hashes: Sequence[np.ndarray]
) -> Iterator[Problem]:
  """Records with the key of an earlier one of the split."""
  ends = np.cumsum([len(part) for part in hashes])
  flat = np.concatenate([*hashes, np.zeros(0, np.uint64)])

  def locate(record: int) -> tuple[str, int, bytes]:
    shard = int(np.searchsorted(ends, record, side="right"))
    place = int(record - ends[shard]) + len(hashes[shard])
    reader = ShardReader(directory / shards[shard].file)
    return shards[shard].file, place, _key_and_names(reader.read(place))[0]

  order = np.argsort(flat, kind="stable")
  ordered = flat[order]
  same = (ordered[1:] == ordered[:-1]) & (ordered[1:] != _hash(b""))
  for i in np.flatnonzero(same):
    first, first_place, first_key = locate(order[i])
    file, place, key = locate(order[i + 1])
    if key == first_key:  # different ones may have one hash
      reason = f"record {first_place} of {first} has this key too"
      yield Problem(file, place, _text(key), reason)


def _key_and_names(record: bytes) -> tuple[bytes, set[str]]:
  """Key of a record, empty if it has none, and names of its features."""
  from must_jax.quiet_tensorflow import tf

  features = tf.train.Example.FromString(record).features.feature
  names = set(features)  # before a look for the key adds it
  keys = features["key"].bytes_list.value
  return keys[0] if len(keys) == 1 else b"", names


def _hash(key: bytes) -> int:
  digest = hashlib.blake2b(key, digest_size=8).digest()
  return int.from_bytes(digest, "little")


def _text(key: bytes) -> str:
  return key.decode(errors="backslashreplace")
