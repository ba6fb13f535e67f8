"""Writes image sets: equal examples give equal bytes."""

import contextlib
import dataclasses
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
from typing import Any

from must_jax.fields import check_descriptions
from must_jax.storage import path as path_lib
from must_jax.storage.path import (
  Path,
  PathLike,
  list_names,
  list_sizes,
  publish,
  publish_json,
)
from must_jax.storage.sets import (
  INDEX_FILE,
  NAME_PATTERN,
  SCHEMA_VERSION,
  ImageSet,
  Shard,
  key_digest,
  read_index,
  shard_file,
)
from must_jax.storage.tfrecord import (
  RecordWriter,
  offsets_path,
)

_MAX_LISTED = 1000  # rejected images in an index; a file beside it has all


class NewSplit:
  """A split of an image set that is about to be written.

  Args:
    directory: of the set; it may hold other splits of it already.
    name: of the set.
    split: such as "train".
    fields: the labels the set has: {field: {"kind": ..., "classes": [...]}}.
    licence: of images and labels.
    overwrite: replace the split if it is there.

  Raises:
    ValueError: the directory holds another set or this split, or a name or a
      field is none.
  """

  def __init__(
    self,
    directory: PathLike,
    name: str,
    split: str,
    fields: Mapping[str, Mapping[str, Any]],
    licence: str = "",
    overwrite: bool = False,
  ):
    self.directory = Path(directory)
    self.name, self.split, self.overwrite = name, split, overwrite
    self.head = {
      "schema_version": SCHEMA_VERSION,
      "name": name,
      "licence": licence,
      "fields": json.loads(json.dumps(fields)),  # tuples become lists
    }
    check_descriptions(self.head["fields"])
    for word in (name, split):
      if not NAME_PATTERN.fullmatch(word):
        raise ValueError(
          f"{word!r} cannot name an image set or a split; expected letters,"
          " digits and '_.-', beginning with a letter or digit."
        )
    self._splits()

  def publish(
    self,
    stage: Path,
    shards: Sequence[Shard],
    rejected: Iterable[Mapping[str, str]],
    warnings: Sequence[str] = (),
  ) -> ImageSet:
    """Moves shards to their names and lists them in the index.

    One that was broken off goes on where it was.

    Args:
      stage: directory of the shards, on the same file system or in the same
        bucket.
      shards: in order, with the names of their files there.
      rejected: what was left out, as {"key": ..., "reason": ...}.
      warnings: what looks wrong in the images or labels, for people.

    Raises:
      ValueError: there are no shards, one is missing, or the directory holds
        another set or this split by now.
    """
    rejected = sorted(rejected, key=lambda entry: entry["key"])
    if not shards:
      raise ValueError(
        f"There are no examples for split {self.split!r} of {self.directory}"
        f" ({len(rejected)} were rejected)."
      )
    self._splits()
    final = [
      dataclasses.replace(
        shard, file=shard_file(self.name, self.split, i, len(shards))
      )
      for i, shard in enumerate(shards)
    ]
    there = list_sizes(self.directory, [shard.file for shard in final])
    with futures.ThreadPoolExecutor(16) as pool:  # an object store copies
      moves = zip(shards, final, strict=True)
      list(pool.map(lambda move: self._move(stage, there, *move), moves))
    lines = [json.dumps(entry, sort_keys=True) + "\n" for entry in rejected]
    rejected_file = f"{self.name}-{self.split}.rejected.jsonl"
    if rejected:
      with publish(self.directory / rejected_file) as file:
        file.write("".join(lines).encode())
    splits = self._splits()
    splits[self.split] = {
      "num_records": sum(shard.num_records for shard in final),
      "shards": [dataclasses.asdict(shard) for shard in final],
      "num_rejected": len(rejected),
      "rejected": rejected[:_MAX_LISTED],
    }
    if warnings:
      splits[self.split]["warnings"] = list(warnings)
    publish_json(self.directory / INDEX_FILE, {**self.head, "splits": splits})
    kept = {shard.file for shard in final}
    kept |= {offsets_path(file).name for file in kept}
    kept |= {rejected_file} if rejected else set()
    ours = re.compile(
      re.escape(f"{self.name}-{self.split}")
      + r"(-\d+-of-\d+\.(tfrecord|offsets)|\.rejected\.jsonl)"
    )
    path_lib.remove_all(
      [
        self.directory / name
        for name in list_names(self.directory)
        if ours.fullmatch(name) and name not in kept
      ]
    )
    return ImageSet.open(self.directory, self.split)

  def _splits(self) -> dict[str, Any]:
    """The splits the directory has, if this one may be added to them."""
    if not (self.directory / INDEX_FILE).exists():
      return {}
    index = read_index(self.directory)
    for what in ("name", "licence", "fields"):
      if index[what] != self.head[what]:
        hint = " (--classes names those that a split lacks, too)"
        hint = hint if what == "fields" else ""
        raise ValueError(
          f"{self.directory} holds an image set whose {what} is"
          f" {index[what]!r}; given is {self.head[what]!r}. Write to another"
          f" directory, or give all splits the same{hint}."
        )
    if self.split in index["splits"] and not self.overwrite:
      raise ValueError(
        f"{self.directory} has a split {self.split!r} already. Write to another"
        " directory or split, or ask to overwrite it."
      )
    return index["splits"]

  def _move(
    self,
    stage: Path,
    there: Mapping[str, int | None],
    shard: Shard,
    final: Shard,
  ) -> None:
    sizes = {
      # The offsets go first: a shard that is there can be read.
      offsets_path: 8 * (shard.num_records + 1),
      Path: shard.num_bytes,
    }
    for path_of, size in sizes.items():
      source = path_of(stage / shard.file)
      target = path_of(self.directory / final.file)
      # A bucket has no renaming: what is copied twice does no harm.
      try:
        path_lib.move(source, target)
      except FileNotFoundError:
        if there.get(target.name) == size:
          continue  # moved by the one that was broken off
        raise ValueError(
          f"{source} is missing. Delete {stage} and import the split again."
        ) from None


def write_image_set(
  directory: PathLike,
  name: str,
  split: str,
  examples: Iterable[Mapping[str, Any]],
  fields: Mapping[str, Mapping[str, Any]],
  licence: str = "",
  *,
  num_shards: int | None = None,
  records_per_shard: int = 1024,
  rejected: Sequence[Mapping[str, str]] = (),
  overwrite: bool = False,
) -> ImageSet:
  """Writes one split of an image set; equal examples give equal bytes.

  Args:
    directory: see `NewSplit`.
    name: of the set.
    split: such as "train".
    examples: arguments of `records.encode_example` except `fields`: dicts of
      key, image, height, width, labels.
    fields: the labels the set has.
    licence: of images and labels.
    num_shards: examples are dealt out to so many shards in turn.
    records_per_shard: without `num_shards`, examples fill shard after shard.
    rejected: what was left out, as {"key": ..., "reason": ...}; read after
      the examples, so their generator may fill it.
    overwrite: replace the split if it is there.

  Raises:
    ValueError: see `NewSplit`; or an example does not fit its field, a key
      comes twice, or there are no examples.
  """
  from must_jax.storage import records  # reading works without TensorFlow

  target = NewSplit(directory, name, split, fields, licence, overwrite)
  # The names tell the number of shards, which is known at the end only.
  stage = (
    target.directory / f".{split}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
  )
  path_lib.make_directory(stage)
  try:
    shards = _write_shards(
      stage,
      (
        (e["key"], records.encode_example(**e, fields=fields)) for e in examples
      ),
      num_shards,
      records_per_shard,
    )
    return target.publish(stage, shards, rejected)
  finally:
    with contextlib.suppress(FileNotFoundError):  # a bucket's are gone by now
      path_lib.remove_tree(stage)


def _write_shards(
  directory: Path,
  examples: Iterable[tuple[bytes | str, bytes]],
  num_shards: int | None,
  records_per_shard: int,
) -> list[Shard]:
  """Writes examples to numbered shards, see `write_image_set`."""
  writers: list[RecordWriter] = []
  keys: list[list[bytes]] = []
  seen = set()
  with contextlib.ExitStack() as stack:
    for i, (key, record) in enumerate(examples):
      key = key.encode() if isinstance(key, str) else key
      if key in seen:
        raise ValueError(
          f"Key {key!r} comes twice; keys must tell the examples of a split"
          " apart."
        )
      seen.add(key)
      shard = i % num_shards if num_shards else i // records_per_shard
      if shard == len(writers):
        if not num_shards:
          stack.close()  # the shard before is full
        path = directory / f"{shard:05d}.tfrecord"
        writers.append(stack.enter_context(RecordWriter(path)))
        keys.append([])
      writers[shard].write(record)
      keys[shard].append(key)
  return [
    Shard(w.path.name, w.num_records, w.num_bytes, w.checksum, key_digest(k))
    for w, k in zip(writers, keys, strict=True)
  ]
