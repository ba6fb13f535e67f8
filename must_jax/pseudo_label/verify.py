"""Reads a finished label set whole and checks it."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from etils import epath

from must_jax.pseudo_label import store
from must_jax.storage.sets import ImageSet, LabelSet, key_digest
from must_jax.storage.tfrecord import CorruptRecord, ShardReader, file_checksum


def verify(
  directory: epath.PathLike, image_set: ImageSet | None = None
) -> Mapping[str, Any]:
  """Reads a finished label set whole and checks it.

  Args:
    directory: of the label set.
    image_set: the images; by default only the labels themselves are checked.

  Returns:
    The manifest.

  Raises:
    ValueError: lists all that is wrong.
  """
  directory = epath.Path(directory)
  labels = LabelSet.open(directory)
  if image_set is not None:
    labels.check_images(image_set)
  job = store.read_job(directory)
  commits, problems = [], []
  for shard in labels.shards:
    try:
      commits.append(store.Commit.read(directory, shard.file))
      _verify_shard(directory, commits[-1], job)
    except (ValueError, CorruptRecord) as error:
      problems.append(str(error))
  if not problems:
    expected = store.make_manifest(job, commits)
    # What was measured later does not follow from the commits.
    found = {k: v for k, v in labels.manifest.items() if k != "quality"}
    problems = store.differences(expected, found, store.MANIFEST_FILE)
  if problems:
    raise ValueError(
      "\n  ".join([f"{directory} is damaged:", *problems])
      + "\nDelete the .json files of the damaged shards and"
      f" {store.MANIFEST_FILE}, then run the job again: it labels these shards"
      " anew."
    )
  return labels.manifest


def _verify_shard(
  directory: epath.Path, commit: store.Commit, job: Mapping[str, Any]
) -> None:
  """Raises `ValueError` or `CorruptRecord` if files and commit disagree."""
  shard, path = commit.shard, directory / commit.shard.file
  if commit.job != store.job_digest(job):
    raise ValueError(
      f"{path} was committed by another job than {store.JOB_FILE}."
    )
  checksum, _ = file_checksum(path)
  if checksum != shard.checksum:
    raise ValueError(
      f"{path} has checksum {checksum}; committed was {shard.checksum}."
    )
  keys, undecodable = [], []
  for i, record in enumerate(ShardReader(path)):
    feature = tf.train.Example.FromString(record).features.feature
    keys.append(feature["key"].bytes_list.value[0])
    if feature["status"].bytes_list.value[0] != b"ok":
      undecodable.append(i)
  counts = {
    "records": (len(keys), shard.num_records),
    "undecodable records": (
      undecodable,
      [entry["index"] for entry in commit.undecodable],
    ),
  }
  if store.UNKNOWN_KEY not in keys:
    counts["keys"] = (key_digest(keys), shard.keys)
  for name, (found, committed) in counts.items():
    if found != committed:
      raise ValueError(
        f"{path} has {name} {found}; committed were {committed}."
      )
