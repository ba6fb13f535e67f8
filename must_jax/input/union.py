"""Several image sets with their labels as one sequence of records.

A mixture of the sets is then a matter of the order alone.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from must_jax.fields import Field
from must_jax.input import origins as origin_lib
from must_jax.input.origins import ClassTables, Source
from must_jax.storage.path import Path, is_local, read_ranges
from must_jax.storage.sets import Frame, ImageSet, LabelSet
from must_jax.storage.tfrecord import CorruptRecord

TaskFields = Mapping[str, Mapping[str, Field]]  # task -> field name -> field


class Record(NamedTuple):
  """What is stored of an example.

  Attributes:
    image: the image record, which has the set's own labels.
    sidecars: for each task the record with its labels out of a label set; empty
      where the task has none.
  """

  image: bytes
  sidecars: tuple[bytes, ...]


class TaskLabels(NamedTuple):
  """How the labels of a task are read; hashable.

  Attributes:
    task: its name.
    fields: by name, in order.
    reads_own: by source, whether labels in the image record go before those of
      a label set.
    reads_sidecar: by source, whether there is a label set.
    class_tables: of fields by name, where ids of labels are not those of the
      task, see `origins.class_tables`.
  """

  task: str
  fields: tuple[tuple[str, Field], ...]
  reads_own: tuple[bool, ...]
  reads_sidecar: tuple[bool, ...]
  class_tables: tuple[tuple[str, ClassTables], ...]


class Union:
  """All records of some sources, one after the other.

  Attributes:
    tasks: {task: {field: what it reads}}, in order.
    labels: how those of each task are read.
    starts: int64 [sources + 1], the first record of each, and all their number.

  Args:
    sources: in order.
    tasks: what they read.
    classes: {task: names in order of their ids}; by default those of the
      sources, which must agree.

  Raises:
    ValueError: a set cannot be opened, labels do not belong to their images,
      or their fields or classes do not fit the task.
  """

  def __init__(
    self,
    sources: Sequence[Source],
    tasks: TaskFields,
    classes: Mapping[str, Sequence[str]] | None = None,
  ):
    if not sources:
      raise ValueError("There are no sources to read; give at least one.")
    self.tasks = dict(tasks)
    self._images = [ImageSet.open(s.directory, s.split) for s in sources]
    # Of each source and task: own labels?, and the directory of a label set.
    self._origins = [[s.origins(task) for task in tasks] for s in sources]
    self._label_sets: list[dict[str, LabelSet]] = []
    for origins, images in zip(self._origins, self._images, strict=True):
      opened = {d: LabelSet.open(d) for _, d in origins if d}
      for labels in opened.values():
        labels.check_images(images)
      self._label_sets.append(opened)
    tables = self._match_classes(sources, classes or {})
    self.labels = tuple(
      TaskLabels(
        task,
        tuple(fields.items()),
        tuple(origins[i][0] for origins in self._origins),
        tuple(origins[i][1] is not None for origins in self._origins),
        tuple(tables.get(task, {}).items()),
      )
      for i, (task, fields) in enumerate(self.tasks.items())
    )
    sizes = [images.num_records for images in self._images]
    self.starts = np.array([0, *itertools.accumulate(sizes)])

  def _match_classes(
    self, sources: Sequence[Source], classes: Mapping[str, Sequence[str]]
  ) -> dict[str, dict[str, ClassTables]]:
    # What was opened is not read again.
    indexes = {str(i.directory): i.index for i in self._images}
    manifests = {
      d: s.manifest for sets in self._label_sets for d, s in sets.items()
    }
    describe = origin_lib.Describer(
      sources, lambda d: indexes[str(Path(d))], manifests.__getitem__
    )
    tables: dict[str, dict[str, ClassTables]] = {}
    for task, fields in self.tasks.items():
      for name, field in fields.items():
        origins, given = describe(task, name), classes.get(task, ())
        names = origin_lib.class_names(origins, task, name, given)
        origin_lib.check_field(origins, task, name, field, names)
        matched = origin_lib.class_tables(origins, len(sources), names)
        if matched is not None:
          tables.setdefault(task, {})[name] = matched
    return tables

  def label_sets(self) -> Iterator[tuple[str, LabelSet]]:
    """Each task with each of the label sets that it reads."""
    for i, task in enumerate(self.tasks):
      found = {}
      for origins, opened in zip(self._origins, self._label_sets, strict=True):
        if directory := origins[i][1]:
          found[directory] = opened[directory]
      yield from ((task, labels) for labels in found.values())

  @property
  def num_records(self) -> int:
    """Of all sources."""
    return int(self.starts[-1])

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

  def source_of(self, index: int) -> int:
    """Number of the source of a record."""
    if not 0 <= index < self.num_records:
      raise IndexError(
        f"There are {self.num_records} records, not {index + 1}."
      )
    return int(np.searchsorted(self.starts, index, side="right")) - 1

  def read(self, index: int) -> Record:
    """An example's records.

    Raises:
      CorruptRecord: one of them cannot be read.
    """
    (record,) = self.read_many([index])
    if isinstance(record, CorruptRecord):
      raise record
    return record

  def read_many(self, indices: Sequence[int]) -> list[Record | CorruptRecord]:
    """The records of many examples; of a bucket all at the same time.

    Returns:
      For each example its records, or what is wrong with one of them.
    """
    sources = [self.source_of(index) for index in indices]
    # By set: images, or the directory of a label set of a source.
    wanted: dict[tuple[int, str], list[int]] = {}
    for number, source in enumerate(sources):
      for name in ("", *self._label_sets[source]):
        wanted.setdefault((source, name), []).append(number)
    frames: dict[tuple[int, str], Frame] = {}
    parts: dict[tuple[int, str], bytes | CorruptRecord] = {}
    for (source, name), numbers in wanted.items():
      records = self._label_sets[source][name] if name else self._images[source]
      start = int(self.starts[source])
      found = records.frames([indices[number] - start for number in numbers])
      for number, frame in zip(numbers, found, strict=True):
        if isinstance(frame, Frame):
          frames[number, name] = frame
        else:
          parts[number, name] = frame
    data = read_ranges([frame.range for frame in frames.values()])
    for (key, frame), part in zip(frames.items(), data, strict=True):
      try:
        parts[key] = frame.parse(part)
      except CorruptRecord as error:
        parts[key] = error
    return [
      self._record(source, number, parts)
      for number, source in enumerate(sources)
    ]

  def _record(
    self, source: int, number: int, parts: Mapping[tuple[int, str], Any]
  ) -> Record | CorruptRecord:
    sidecars = {}
    for name in ("", *self._label_sets[source]):
      sidecars[name] = parts[number, name]
      if isinstance(sidecars[name], CorruptRecord):
        return sidecars[name]
    image = sidecars.pop("")
    return Record(
      image,
      tuple(sidecars.get(d or "", b"") for _, d in self._origins[source]),
    )

  def locate(self, index: int, task: str | None = None) -> tuple[str, int]:
    """Path of the shard that holds a record, and its place there.

    Args:
      index: of the record.
      task: ask for the label set of this task instead of the images.
    """
    source = self.source_of(index)
    records: ImageSet | LabelSet = self._images[source]
    if task is not None:
      _, directory = self._origins[source][list(self.tasks).index(task)]
      records = self._label_sets[source].get(directory or "", records)
    shard, place = records.locate(index - int(self.starts[source]))
    return str(records.directory / records.shards[shard].file), place
