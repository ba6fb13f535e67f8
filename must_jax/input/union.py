"""Several image sets with their labels as one sequence of records.

A mixture of the sets is then a matter of the order alone.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from must_jax.fields import Field
from must_jax.input import origins as origin_lib
from must_jax.input.origins import NO_CLASS, SUPERVISED, ClassTables, Source
from must_jax.storage.path import Path, is_local, read_ranges
from must_jax.storage.sets import Frame, ImageSet, LabelSet
from must_jax.storage.tfrecord import CorruptRecord

TaskFields = Mapping[str, Mapping[str, Field]]  # task -> field name -> field


class Record(NamedTuple):
  """What is stored of an example.

  Attributes:
    image: the image record, which has the set's own labels.
    sidecars: for each task the record with its labels out of a label set; empty
      where the task has none, or reads those of the image record.
    origins: for each task the number of the origin that the labels are from,
      among those of all sources, see `TaskLabels`.
  """

  image: bytes
  sidecars: tuple[bytes, ...]
  origins: tuple[int, ...]


class TaskLabels(NamedTuple):
  """How the labels of a task are read; hashable.

  Attributes:
    task: its name.
    fields: by name, in order.
    is_own: by origin, whether the labels are those of the image set itself.
      Origins of a task are numbered source by source, best first; the last
      stands for none, if a source has none.
    class_tables: of fields by name, where ids of labels are not those of the
      task, see `origins.class_tables`; the last is of none.
    known: of fields by name, which of the task's classes [K] each origin
      knows, see `origins.known_classes`; the last is of none.
  """

  task: str
  fields: tuple[tuple[str, Field], ...]
  is_own: tuple[bool, ...]
  class_tables: tuple[tuple[str, ClassTables], ...]
  known: tuple[tuple[str, tuple[tuple[bool, ...], ...]], ...]


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
    # Of each source and task, best first.
    self._origins = [[s.origins(task) for task in tasks] for s in sources]
    counts = [[len(origins) for origins in row] for row in self._origins]
    # The number of the first of each, by task.
    self._first_origins = np.cumsum([[0] * len(tasks), *counts], 0).tolist()
    self._label_sets: list[dict[str, LabelSet]] = []
    for row, images in zip(self._origins, self._images, strict=True):
      directories = dict.fromkeys(itertools.chain(*row))
      directories.pop(SUPERVISED, None)
      opened = {d: LabelSet.open(d) for d in directories}
      for labels in opened.values():
        labels.check_images(images)
      self._label_sets.append(opened)
    describe = self._describer(sources)
    self.labels = tuple(
      self._task_labels(i, (classes or {}).get(task, ()), describe)
      for i, task in enumerate(self.tasks)
    )
    sizes = [images.num_records for images in self._images]
    self.starts = np.array([0, *itertools.accumulate(sizes)])

  def _describer(self, sources: Sequence[Source]) -> origin_lib.Describer:
    # What was opened is not read again.
    indexes = {str(i.directory): i.index for i in self._images}
    manifests = {
      d: s.manifest for sets in self._label_sets for d, s in sets.items()
    }
    return origin_lib.Describer(
      sources, lambda d: indexes[str(Path(d))], manifests.__getitem__
    )

  def _task_labels(
    self, task: int, classes: Sequence[str], describe: origin_lib.Describer
  ) -> TaskLabels:
    name, fields = list(self.tasks.items())[task]
    tables: dict[str, ClassTables] = {}
    known = {}
    own = [o == SUPERVISED for row in self._origins for o in row[task]]
    has_none = not all(row[task] for row in self._origins)
    for key, field in fields.items():
      origins = describe(name, key)
      names = origin_lib.class_names(origins, name, key, classes)
      origin_lib.check_field(origins, name, key, field, names)
      if matched := origin_lib.class_tables(origins, names):
        nothing = (NO_CLASS,) * len(matched[0])
        tables[key] = (*matched, nothing)
      if field.has_background:
        none_known = (False,) * getattr(field, "num_classes", 0)
        known[key] = (*origin_lib.known_classes(origins, names), none_known)
    return TaskLabels(
      name,
      tuple(fields.items()),
      (*own, False) if has_none else tuple(own),
      tuple(tables.items()),
      tuple(known.items()),
    )

  def label_sets(self) -> Iterator[tuple[str, LabelSet]]:
    """Each task with each of the label sets that it reads."""
    for i, task in enumerate(self.tasks):
      found: dict[str, LabelSet] = {}
      for row, opened in zip(self._origins, self._label_sets, strict=True):
        found |= {d: opened[d] for d in row[i] if d != SUPERVISED}
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
    """Number of the source of a record.

    Raises:
      IndexError: there is no such record.
    """
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
    image = sidecars[""]
    records, numbers = [], []
    for task, origins in enumerate(self._origins[source]):
      place = self._best(task, [sidecars[_name(o)] for o in origins])
      is_sidecar = bool(origins) and origins[place] != SUPERVISED
      records.append(sidecars[origins[place]] if is_sidecar else b"")
      first = self._first_origins[source if origins else -1][task]
      numbers.append(first + place)
    return Record(image, tuple(records), tuple(numbers))

  def _best(self, task: int, found: Sequence[bytes]) -> int:
    """Which of an example's records has the labels of a task, best first."""
    if len(found) < 2:
      return 0
    from must_jax.storage import records  # reading alone needs no TensorFlow

    fields = [name for name, _ in self.labels[task].fields]
    for place, record in enumerate(found):
      if records.decides(record, fields):
        return place
    return len(found) - 1

  def locate(
    self, index: int, task: str | None = None, origin: int = 0
  ) -> tuple[str, int]:
    """Path of the shard that holds a record, and its place there.

    Args:
      index: of the record.
      task: ask for a label set of this task instead of the images.
      origin: number of the label set among the origins of the task's labels.
    """
    source = self.source_of(index)
    records: ImageSet | LabelSet = self._images[source]
    if task is not None:
      place = list(self.tasks).index(task)
      number = origin - self._first_origins[source][place]
      records = self._label_sets[source][self._origins[source][place][number]]
    shard, place = records.locate(index - int(self.starts[source]))
    return str(records.directory / records.shards[shard].file), place


def _name(origin: str) -> str:
  """Under which the parts of records are kept."""
  return "" if origin == SUPERVISED else origin
