"""Records on disk: writes image sets, and names all that reads them.

`tfrecord` has the files, `sets` what lies in a directory, `schema` what is
inside a record. Nothing here but writing needs TensorFlow.
"""

import contextlib
import dataclasses
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from must_jax.data.sets import (
  INDEX_FILE,
  LABEL_SCHEMA_VERSION,
  MANIFEST_FILE,
  NAME_PATTERN,
  SCHEMA_VERSION,
  ImageSet,
  LabelSet,
  Records,
  Shard,
  key_digest,
  read_index,
  read_versioned_json,
  shard_file,
)
from must_jax.data.tfrecord import (
  CorruptRecord,
  RecordWriter,
  ShardReader,
  atomic_write,
  offsets_path,
  to_json,
  write_json,
)

__all__ = [
  "INDEX_FILE",
  "LABEL_SCHEMA_VERSION",
  "MANIFEST_FILE",
  "SCHEMA_VERSION",
  "CorruptRecord",
  "ImageSet",
  "LabelSet",
  "RecordWriter",
  "Records",
  "Shard",
  "ShardReader",
  "atomic_write",
  "key_digest",
  "offsets_path",
  "read_index",
  "read_versioned_json",
  "shard_file",
  "to_json",
  "write_image_set",
  "write_json",
]


def write_image_set(
  directory: epath.PathLike,
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
    directory: of the set; it may hold other splits of it already.
    name: of the set.
    split: such as "train".
    examples: arguments of `schema.encode_example` except `fields`: dicts of
      key, image, height, width, labels.
    fields: the labels the set has: {field: {"kind": ..., "classes": [...]}}.
    licence: of images and labels.
    num_shards: examples are dealt out to so many shards in turn.
    records_per_shard: without `num_shards`, examples fill shard after shard.
    rejected: what was left out, as {"key": ..., "reason": ...}; read after
      the examples, so their generator may fill it.
    overwrite: replace the split if it is there.

  Raises:
    ValueError: the directory holds another set or this split, an example does
      not fit its field, a key comes twice, or there are no examples.
  """
  from must_jax.data import schema  # reading works without TensorFlow

  directory = epath.Path(directory)
  head = {
    "schema_version": SCHEMA_VERSION,
    "name": name,
    "licence": licence,
    "fields": json.loads(json.dumps(fields)),  # tuples become lists
  }
  schema.check_fields(head["fields"])
  for word in (name, split):
    if not NAME_PATTERN.fullmatch(word):
      raise ValueError(
        f"{word!r} cannot name an image set or a split; expected letters,"
        " digits and '_.-', beginning with a letter or digit."
      )
  _other_splits(directory, head, split, overwrite)
  directory.mkdir(parents=True, exist_ok=True)
  # The names tell the number of shards, which is known at the end only.
  stage = directory / f".{split}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
  stage.mkdir()
  try:
    shards = _write_shards(
      stage,
      ((e["key"], schema.encode_example(**e, fields=fields)) for e in examples),
      num_shards,
      records_per_shard,
    )
    if not shards:
      raise ValueError(
        f"There are no examples for split {split!r} of {directory}"
        f" ({len(rejected)} were rejected)."
      )
    for i, shard in enumerate(shards):
      file = shard_file(name, split, i, len(shards))
      for final in (offsets_path(directory / file), directory / file):
        (stage / shard.file).with_suffix(final.suffix).replace(final)
      shards[i] = dataclasses.replace(shard, file=file)
  finally:
    stage.rmtree()
  splits = _other_splits(directory, head, split, overwrite)
  old = {shard["file"] for shard in splits.get(split, {}).get("shards", ())}
  splits[split] = {
    "num_records": sum(shard.num_records for shard in shards),
    "shards": [dataclasses.asdict(shard) for shard in shards],
    "rejected": [dict(entry) for entry in rejected],
  }
  write_json(directory / INDEX_FILE, {**head, "splits": splits})
  for file in old - {shard.file for shard in shards}:
    for path in (directory / file, offsets_path(directory / file)):
      path.unlink(missing_ok=True)
  return ImageSet.open(directory, split)


def _other_splits(
  directory: epath.Path, head: Mapping[str, Any], split: str, overwrite: bool
) -> dict[str, Any]:
  """The splits a directory has, if this one may be added to them."""
  if not (directory / INDEX_FILE).exists():
    return {}
  index = read_index(directory)
  for what in ("name", "licence", "fields"):
    if index[what] != head[what]:
      raise ValueError(
        f"{directory} holds an image set whose {what} is {index[what]!r}; given"
        f" is {head[what]!r}. Write to another directory."
      )
  if split in index["splits"] and not overwrite:
    raise ValueError(
      f"{directory} has a split {split!r} already. Write to another directory"
      " or split, or ask to overwrite it."
    )
  return index["splits"]


def _write_shards(
  directory: epath.Path,
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
