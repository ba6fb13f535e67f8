"""Label sets as they are made: one directory per image set and teacher.

  DIR/job.json                what is labelled, by whom and how; made first
  DIR/SHARD.CONTENT.tfrecord  label records, aligned with the image shard's
  DIR/SHARD.CONTENT.offsets   where they begin
  DIR/SHARD.json              commit record; a shard without one does not count
  DIR/leases/                 who works on what; gone when the set is finished
  DIR/manifest.json           all of the set for its readers; written last

The protocol is that of `commits`. Apart from the leases every byte follows from
the images, the teacher and the settings: there are no times and no host names
in it.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any, ClassVar, Self

from absl import logging

from must_jax.config import differences, from_json, to_json
from must_jax.fields import Description, alarms, kept_of, left
from must_jax.fields.field import NamedScores
from must_jax.fields.statistics import accumulate
from must_jax.storage import path as path_lib
from must_jax.storage.commits import JOB_FILE, Commit, CommitDirectory
from must_jax.storage.path import Path, PathLike
from must_jax.storage.sets import (
  LABEL_SCHEMA_VERSION,
  ImageSet,
  check_version,
  read_versioned_json,
)

# The label record's key where the image record cannot be read at all.
UNKNOWN_KEY = b""

_LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "tensorflow")
_MAX_LISTED = 1000  # undecodable records in a manifest; commit records have all


@dataclasses.dataclass(frozen=True)
class LabelCommit(Commit):
  """A finished shard of labels; its `keys` are those of the image shard.

  Attributes:
    teacher: digest of the teacher's checkpoint.
    undecodable: records without a label, {"index", "key", "reason"} each.
    statistics: sums over the shard's labels by field, see `Field.sums`.
  """

  VERSION: ClassVar[int] = LABEL_SCHEMA_VERSION

  teacher: str
  undecodable: tuple[dict[str, Any], ...]
  statistics: dict[str, dict[str, Any]]

  @classmethod
  def from_value(cls, value: Mapping[str, Any]) -> Self:
    """See `Commit`."""
    listed = {"undecodable": tuple(value["undecodable"])}
    return super().from_value({**value, **listed})


LabelDirectory = CommitDirectory[LabelCommit]


def describe_job(
  image_set: ImageSet,
  fields: Mapping[str, Description],
  teacher: Mapping[str, Any],
  settings: Mapping[str, Any],
) -> dict[str, Any]:
  """The contents of `job.json`: all that the labels depend on.

  Args:
    image_set: what is labelled.
    fields: as in the index of an image set.
    teacher: JSON; "digest" identifies the checkpoint.
    settings: JSON; whatever else the labels depend on, as the batch size.
  """
  job = {
    "schema_version": LABEL_SCHEMA_VERSION,
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


def json_digest(value: Any) -> str:
  """Digest of a JSON value, hexadecimal blake2b-16."""
  text = json.dumps(value, sort_keys=True, separators=(",", ":"))
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _without_versions(job: Mapping[str, Any]) -> dict[str, Any]:
  """What decides whether two jobs may share a directory."""
  return {k: v for k, v in job.items() if k != "versions"}


def _comparable(job: Mapping[str, Any]) -> dict[str, Any]:
  """The same, with options that the teacher's config did not have then."""
  teacher = dict(job["teacher"])
  teacher.pop("lineage", None)  # a folder for a hub tells it, a run does not
  # Teachers that are no checkpoints may say anything here.
  with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
    config = from_json(json.dumps(teacher["config"]))
    teacher["config"] = json.loads(to_json(config))
  return _without_versions(job) | {"teacher": teacher}


def open_directory(
  directory: PathLike, job: Mapping[str, Any]
) -> LabelDirectory:
  """The directory of a job that has it already.

  Args:
    directory: of the label set.
    job: contents of its `job.json`.
  """
  digest = json_digest(_without_versions(job))
  return LabelDirectory(directory, digest, LabelCommit)


def claim_directory(
  directory: Path, job: dict[str, Any]
) -> tuple[LabelDirectory, dict[str, Any], bool]:
  """Makes the directory the job's own, or checks that it already is.

  Returns:
    The directory, the job as it is there, in which only library versions may
    differ, and whether it was made just now.

  Raises:
    ValueError: the directory belongs to another job or to something else.
  """
  path_lib.make_directory(directory)
  path = directory / JOB_FILE
  there = path_lib.read_version(path)
  if there is None:
    # Another worker may make the job, and shards, while this one looks.
    strangers = [
      name
      for name in path_lib.list_names(directory)
      if name.endswith(".tfrecord")
    ]
    if strangers and not path_lib.is_file(path):
      raise ValueError(
        f"{directory} holds {min(strangers)} but no {JOB_FILE}, so it is"
        " no label set; labels would overwrite it. Choose another directory."
      )
    if path_lib.create_json(path, job):
      return _prepare(directory, job), job, True
    there = path_lib.read_version(path)
  found = check_version(path, there and there.value, LABEL_SCHEMA_VERSION)
  different = differences(_comparable(found), _comparable(job))
  if different:
    raise ValueError(
      f"{directory} holds labels of another job. Different:"
      f" {'; '.join(different)}. Choose another directory, or label with what"
      " this one was begun with."
    )
  if found["versions"] != job["versions"]:
    logging.warning(
      "%s was begun with other library versions, so that its shards may"
      " differ in the last bits: %s",
      directory,
      "; ".join(differences(found["versions"], job["versions"])),
    )
  return _prepare(directory, found), found, False


def _prepare(directory: Path, job: Mapping[str, Any]) -> LabelDirectory:
  opened = open_directory(directory, job)
  opened.prepare()
  return opened


def read_job(directory: PathLike) -> dict[str, Any]:
  """Reads `job.json`.

  Raises:
    ValueError: the directory is no label set, or of an unknown version.
  """
  return read_versioned_json(
    Path(directory) / JOB_FILE,
    LABEL_SCHEMA_VERSION,
    "the directory is no label set.",
  )


def is_corrections(job: Mapping[str, Any]) -> bool:
  """Whether people have made or confirmed the labels.

  Args:
    job: contents of `job.json`, or of a manifest.
  """
  return "corrections" in job["teacher"]


def reading_score(
  job: Mapping[str, Any], of_task: NamedScores | None = None
) -> NamedScores | None:
  """The score at which labels of a job are read, if anybody says so.

  A student has its task's own, which is that of the teacher's unless somebody
  changed it. What people have looked at is read whatever its score.

  Args:
    job: contents of `job.json`, or of a manifest.
    of_task: that of the task that reads them, if it is known.
  """
  if is_corrections(job):
    return 0.0
  if of_task is not None:
    return of_task
  task = job.get("settings", {}).get("task")
  return task.get("min_score") if isinstance(task, Mapping) else None


def summary(
  manifest: Mapping[str, Any], of_task: NamedScores | None = None
) -> dict[str, str]:
  """What is in a label set, and left when it is read, by field.

  Args:
    manifest: of the label set.
    of_task: see `reading_score`.
  """
  fields, min_score = manifest["fields"], reading_score(manifest, of_task)
  return {
    name: str(kept_of(fields[name], sums, min_score))
    for name, sums in manifest.get("statistics", {}).items()
  }


def make_manifest(
  job: Mapping[str, Any], commits: Iterable[LabelCommit]
) -> dict[str, Any]:
  """The contents of `manifest.json`.

  Args:
    job: contents of `job.json`.
    commits: of all shards, in order; each is looked at once, for there may be
      hundreds of thousands.
  """
  totals: dict[str, dict[str, Any]] = {}
  shards: list[dict[str, Any]] = []
  undecodable: list[dict[str, Any]] = []
  num_undecodable = 0
  for commit in commits:
    accumulate(totals, commit.statistics)
    shards.append(dataclasses.asdict(commit.shard))
    num_undecodable += len(commit.undecodable)
    undecodable += [
      {"shard": commit.shard.file, **record}
      for record in commit.undecodable[: _MAX_LISTED - len(undecodable)]
    ]
  num_records = sum(shard["num_records"] for shard in shards)
  num_bytes = sum(shard["num_bytes"] for shard in shards)
  min_score = reading_score(job)
  known = left(job["fields"], totals, min_score)
  return {
    **job,
    "shards": shards,
    "num_records": num_records,
    "num_bytes": num_bytes,
    "bytes_per_image": round(num_bytes / max(num_records, 1), 1),
    "num_undecodable": num_undecodable,
    "undecodable": undecodable,
    "statistics": totals,
    # Earlier versions did not count it.
    **({"left": known} if known else {}),
    # People may well have looked at one class only.
    "alarms": []
    if is_corrections(job)
    else alarms(job["fields"], totals, min_score),
  }
