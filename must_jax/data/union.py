"""Several image sets with their labels as one sequence of records.

Sampling uniformly from the union of all sets (paper 3.2) is then a matter of
the order alone.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from must_jax.data.sets import ImageSet, LabelSet, read_index, read_manifest
from must_jax.data.tfrecord import is_local
from must_jax.types import Field

SUPERVISED = "supervised"
SAME_RECORD = b"="  # stands for the image record; no record reads like this
TaskFields = Mapping[str, Mapping[str, Field]]  # task -> field name -> field


@dataclasses.dataclass(frozen=True)
class Source:
  """A split of an image set and where its labels come from.

  Attributes:
    directory: of the image set.
    split: of the image set.
    labels: {task: "supervised" for the image set's own labels, the directory of
      a label set, or None}; a task that is missing has no labels here.
  """

  directory: str
  split: str
  labels: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


class Union:
  """All records of some sources, one after the other.

  Args:
    sources: in order.
    task_fields: what the tasks read.

  Raises:
    ValueError: a set cannot be opened, labels do not belong to their images,
      or their fields or classes do not fit the task.
  """

  def __init__(self, sources: Sequence[Source], task_fields: TaskFields):
    if not sources:
      raise ValueError("There are no sources to read; give at least one.")
    self.tasks = tuple(task_fields)
    for task, fields in task_fields.items():
      for name, field in fields.items():
        _check_field(sources, task, name, field)
    self._sources = tuple(sources)
    self._images = [ImageSet.open(s.directory, s.split) for s in sources]
    self._labels: list[dict[str, LabelSet]] = []
    for source, images in zip(sources, self._images, strict=True):
      origins = {source.labels.get(task) or SUPERVISED for task in task_fields}
      opened = {d: LabelSet.open(d) for d in origins - {SUPERVISED}}
      for labels in opened.values():
        labels.check_images(images)
      self._labels.append(opened)
    self._ends = list(
      itertools.accumulate(images.num_records for images in self._images)
    )

  @property
  def num_records(self) -> int:
    """Of all sources."""
    return self._ends[-1]

  @property
  def is_local(self) -> bool:
    """Whether all images are on a disk, none on an object store."""
    return all(is_local(images.directory) for images in self._images)

  def shard_range(self, shard: int) -> range:
    """The records of a shard of the first source.

    Raises:
      ValueError: there is no such shard.
    """
    shards = self._images[0].shards
    if not 0 <= shard < len(shards):
      raise ValueError(
        f"Shard {shard} is asked for; {self._images[0].directory} has"
        f" {len(shards)}, counted from 0."
      )
    start = sum(s.num_records for s in shards[:shard])
    return range(start, start + shards[shard].num_records)

  def read(self, index: int) -> list[bytes]:
    """The image record and, for each task, the record with its labels.

    That is `SAME_RECORD` for a task with supervised labels, which are in the
    image record, and empty for a task without labels.

    Raises:
      CorruptRecord: one of them cannot be read.
    """
    source, place = self._find(index)
    image = self._images[source].read(place)
    records = {None: b"", SUPERVISED: SAME_RECORD}
    for directory, labels in self._labels[source].items():
      records[directory] = labels.read(place)
    origins = self._sources[source].labels
    return [image, *(records[origins.get(task)] for task in self.tasks)]

  def locate(self, index: int, task: str | None = None) -> tuple[str, int]:
    """Path of the shard that holds a record, and its place there.

    Args:
      index: of the record.
      task: ask for the labels of this task instead of the image.
    """
    source, place = self._find(index)
    origin = self._sources[source].labels.get(task or "") or SUPERVISED
    records = self._labels[source].get(origin, self._images[source])
    shard, place = records.locate(place)
    return str(records.directory / records.shards[shard].file), place

  def _find(self, index: int) -> tuple[int, int]:
    if not 0 <= index < self.num_records:
      raise IndexError(
        f"There are {self.num_records} records, not {index + 1}."
      )
    source = bisect.bisect_right(self._ends, index)
    return source, index - self._ends[source] + self._images[source].num_records


def class_names(
  sources: Sequence[Source], task: str, field: str
) -> tuple[str, ...]:
  """The classes of a field that all sources of a task's labels agree on.

  Returns:
    Names in order of their ids; none if no source has labels with classes.

  Raises:
    ValueError: two sources have different classes.
  """
  agreed, first = (), ""
  for source in sources:
    origin, spec = _describe(source, task, field)
    classes = tuple((spec or {}).get("classes", ()))
    if not classes:
      continue
    agreed, first = agreed or classes, first or origin
    if classes != agreed:
      raise ValueError(
        f"Task {task!r}: sources have different classes for {field!r}."
        f" {first} has {len(agreed)}, {origin} has {len(classes)}; only the"
        f" first has {sorted(set(agreed) - set(classes))[:10]}, only the second"
        f" {sorted(set(classes) - set(agreed))[:10]}"
        f"{'' if set(classes) - set(agreed) else ' (the order counts)'}. Make"
        " them two tasks, or import with the same classes."
      )
  return agreed


def _describe(
  source: Source, task: str, field: str
) -> tuple[str, Mapping[str, Any] | None]:
  """Where a source has labels for a task, and what it says of the field."""
  origin = source.labels.get(task)
  if origin is None:
    return source.directory, None
  if origin == SUPERVISED:
    origin, fields = source.directory, read_index(source.directory)["fields"]
  else:
    fields = read_manifest(origin)["fields"]
  if field not in fields:
    raise ValueError(
      f"Task {task!r} reads {field!r}; {origin} has {sorted(fields)}. Take the"
      " task's labels from another place, or leave this one out."
    )
  return origin, fields[field]


def _check_field(
  sources: Sequence[Source], task: str, name: str, field: Field
) -> None:
  kind = type(field).__name__
  for source in sources:
    origin, spec = _describe(source, task, name)
    if spec is not None and spec["kind"] != kind:
      raise ValueError(
        f"Task {task!r} reads {name!r} as {kind}; in {origin} it is a"
        f" {spec['kind']}."
      )
    stored, wanted = (spec or {}).get("unit", ""), getattr(field, "unit", "")
    if (stored, wanted) == ("inverse", "metres"):
      raise ValueError(
        f"Task {task!r} reads {name!r} in metres; {origin} has inverse depth"
        " of unknown scale. Set the task's unit to 'inverse', with the"
        " objective 'scale_shift_invariant'."
      )
  classes = class_names(sources, task, name)
  expected = getattr(field, "num_classes", 0)
  if classes and len(classes) != expected:
    raise ValueError(
      f"Task {task!r} has {expected} classes for {name!r}; its labels have"
      f" {len(classes)}: {list(classes)[:10]}. Give the task these classes."
    )
