"""Label sets on disk: one directory per image set and teacher.

  DIR/job.json           what is labelled, by whom and how; written first
  DIR/SHARD.tfrecord     label records, aligned with the image shard's records
  DIR/SHARD.offsets      where they begin
  DIR/SHARD.json         commit record; a shard without one does not count
  DIR/leases/            who works on what; gone when the set is finished
  DIR/manifest.json      all of the set for its readers; written last

Apart from the leases every byte follows from the images, the teacher and the
settings: there are no times and no host names in it, so that it does not
matter who writes a shard, when, or how often.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, Self

from absl import logging
from etils import epath

from must_jax.config import differences
from must_jax.pseudo_label import statistics
from must_jax.storage.sets import (
  LABEL_SCHEMA_VERSION,
  MANIFEST_FILE,
  ImageSet,
  Shard,
  read_versioned_json,
)
from must_jax.storage.tfrecord import write_json

SCHEMA_VERSION = LABEL_SCHEMA_VERSION
JOB_FILE = "job.json"
MANIFEST_FILE = MANIFEST_FILE
LEASES = "leases"
# The label record's key where the image record cannot be read at all.
UNKNOWN_KEY = b""

_LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "tensorflow")
_MAX_LISTED = 1000  # undecodable records in a manifest; commit records have all


@dataclasses.dataclass(frozen=True)
class Commit:
  """A finished shard of labels.

  Attributes:
    shard: the label shard; its `keys` are those of the image shard.
    job: digest of the job, see `job_digest`.
    teacher: digest of the teacher's checkpoint.
    undecodable: records without a label, {"index", "key", "reason"} each.
    statistics: sums over the shard's labels by field, see `measure`.
  """

  shard: Shard
  job: str
  teacher: str
  undecodable: tuple[dict[str, Any], ...]
  statistics: dict[str, dict[str, Any]]

  def write(self, directory: epath.Path) -> None:
    """Makes the shard count; all its other files must be there."""
    value = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
    write_json(commit_path(directory, self.shard.file), value)

  @classmethod
  def read(cls, directory: epath.Path, file: str) -> Self:
    """Reads the commit record of a shard.

    Raises:
      ValueError: there is none, or it cannot be understood.
    """
    value = read_versioned_json(
      commit_path(directory, file), SCHEMA_VERSION, "the shard is not finished."
    )
    try:
      del value["schema_version"]
      shard = Shard(**value.pop("shard"))
      return cls(shard, undecodable=tuple(value.pop("undecodable")), **value)
    except (KeyError, TypeError):
      raise ValueError(
        f"{commit_path(directory, file)} is no commit record; delete it and run"
        " the job again."
      ) from None


def commit_path(directory: epath.PathLike, file: str) -> epath.Path:
  """The commit record of the shard with this file name."""
  return (epath.Path(directory) / file).with_suffix(".json")


def config_digest(value: Any) -> str:
  """Digest of a JSON value, hexadecimal blake2b-16."""
  text = json.dumps(value, sort_keys=True, separators=(",", ":"))
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def describe_job(
  image_set: ImageSet,
  fields: Mapping[str, Mapping[str, Any]],
  teacher: Mapping[str, Any],
  settings: Mapping[str, Any],
) -> dict[str, Any]:
  """The contents of `job.json`: all that the labels depend on.

  Args:
    image_set: what is labelled.
    fields: as in the index of an image set, {field: {"kind", "classes"}}.
    teacher: JSON; "digest" identifies the checkpoint.
    settings: JSON; whatever else the labels depend on, as the batch size.
  """
  job = {
    "schema_version": SCHEMA_VERSION,
    "image_set": {
      "name": image_set.name,
      "split": image_set.split,
      "licence": image_set.licence,
      "num_records": image_set.num_records,
      "shards": [dataclasses.asdict(shard) for shard in image_set.shards],
    },
    "fields": fields,
    "teacher": teacher,
    "settings": settings,
    "versions": _versions(),
  }
  return json.loads(json.dumps(job))  # as it will be read, without tuples


def _versions() -> dict[str, str]:
  versions = {}
  for library in _LIBRARIES:
    with contextlib.suppress(metadata.PackageNotFoundError):
      versions[library] = metadata.version(library)
  return versions


def job_digest(job: Mapping[str, Any]) -> str:
  """Digest of what decides whether two jobs may share a directory."""
  return config_digest({k: v for k, v in job.items() if k != "versions"})


def claim_directory(
  directory: epath.Path, job: dict[str, Any]
) -> dict[str, Any]:
  """Makes the directory the job's own, or checks that it already is.

  Returns:
    The job as the directory has it; only library versions may differ.

  Raises:
    ValueError: the directory belongs to another job or to something else.
  """
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / JOB_FILE
  # Looked for first: other workers may begin while this one looks.
  strangers = [
    path.name for path in directory.iterdir() if path.suffix == ".tfrecord"
  ]
  if strangers and not path.exists():
    raise ValueError(
      f"{directory} holds {sorted(strangers)[0]} but no {JOB_FILE}, so it is"
      " no label set; labels would overwrite it. Choose another directory."
    )
  if create(path, job):
    return job
  found = read_versioned_json(
    path, SCHEMA_VERSION, "delete the directory to label anew."
  )
  different = differences(
    {k: v for k, v in found.items() if k != "versions"},
    {k: v for k, v in job.items() if k != "versions"},
  )
  if different:
    raise ValueError(
      f"{directory} holds labels of another job. Different:"
      f" {'; '.join(different)}. Choose another directory, or delete this one"
      " to label anew."
    )
  if found["versions"] != job["versions"]:
    logging.warning(
      "%s was begun with other library versions, so that its shards may"
      " differ in the last bits: %s",
      directory,
      "; ".join(differences(found["versions"], job["versions"])),
    )
  return found


def create(path: epath.Path, value: Any) -> bool:
  """Writes JSON unless the file exists; it appears with all its contents.

  Exclusive where the file system has hard links. Elsewhere, as on object
  stores, two callers at the same moment may both be told that they made it.

  Returns:
    Whether it was made.
  """
  if path.exists():
    return False
  temp = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
  try:
    write_json(temp, value)
    try:
      os.link(temp, path)
    except FileExistsError:
      return False
    except OSError:  # no hard links here
      temp.replace(path)
  finally:
    temp.unlink(missing_ok=True)
  return True


def make_manifest(
  job: Mapping[str, Any], commits: Sequence[Commit]
) -> dict[str, Any]:
  """The contents of `manifest.json`.

  Args:
    job: contents of `job.json`.
    commits: of all shards, in order.
  """
  totals: dict[str, dict[str, Any]] = {}
  for commit in commits:
    totals = statistics.add(totals, commit.statistics)
  num_records = sum(c.shard.num_records for c in commits)
  num_bytes = sum(c.shard.num_bytes for c in commits)
  undecodable = [
    {"shard": c.shard.file, **record}
    for c in commits
    for record in c.undecodable
  ]
  return {
    **job,
    "shards": [dataclasses.asdict(c.shard) for c in commits],
    "num_records": num_records,
    "num_bytes": num_bytes,
    "bytes_per_image": round(num_bytes / max(num_records, 1), 1),
    "num_undecodable": len(undecodable),
    "undecodable": undecodable[:_MAX_LISTED],
    "statistics": totals,
    "alarms": statistics.alarms(job["fields"], totals),
  }


def read_job(directory: epath.PathLike) -> dict[str, Any]:
  """Reads `job.json`.

  Raises:
    ValueError: the directory is no label set, or of an unknown version.
  """
  return read_versioned_json(
    epath.Path(directory) / JOB_FILE,
    SCHEMA_VERSION,
    "the directory is no label set.",
  )


def collect_garbage(
  directory: epath.Path, min_age: float = 0, file: str = ""
) -> None:
  """Deletes temporary files of workers that died.

  Args:
    directory: of the label set.
    min_age: seconds since they were last written to.
    file: only those of this shard.
  """
  for path in directory.iterdir():
    if not path.name.startswith("." + file.removesuffix("tfrecord")):
      continue
    with contextlib.suppress(FileNotFoundError):
      if path.suffix == ".tmp" and time.time() - path.stat().mtime >= min_age:
        path.unlink()
