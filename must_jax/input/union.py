"""Several image sets with their labels as one sequence of records.

A mixture of the sets is then a matter of the order alone.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from must_jax.input import classes as class_lib
from must_jax.input.source import Source
from must_jax.storage.sets import ImageSet, LabelSet
from must_jax.storage.tfrecord import is_local
from must_jax.types import Field

# Begins the label record of a task that prefers the labels of the image record
# itself, if it has any; no record begins so.
OWN_LABELS = b"="
TaskFields = Mapping[str, Mapping[str, Field]]  # task -> field name -> field


class Union:
  """All records of some sources, one after the other.

  Attributes:
    starts: int64 [sources + 1], the first record of each, and all their number.
    class_tables: {task: {field: table}} where ids of labels are not those of
      the task, see `classes.class_table`.

  Args:
    sources: in order.
    task_fields: what the tasks read.
    classes: {task: names in order of their ids}; by default those of the
      sources, which must agree.

  Raises:
    ValueError: a set cannot be opened, labels do not belong to their images,
      or their fields or classes do not fit the task.
  """

  def __init__(
    self,
    sources: Sequence[Source],
    task_fields: TaskFields,
    classes: Mapping[str, Sequence[str]] | None = None,
  ):
    if not sources:
      raise ValueError("There are no sources to read; give at least one.")
    self.tasks = tuple(task_fields)
    self._images = [ImageSet.open(s.directory, s.split) for s in sources]
    # Of each source and task: own labels?, and the directory of a label set.
    self._origins = [[s.origins(task) for task in self.tasks] for s in sources]
    self._labels: list[dict[str, LabelSet]] = []
    for origins, images in zip(self._origins, self._images, strict=True):
      opened = {d: LabelSet.open(d) for _, d in origins if d}
      for labels in opened.values():
        labels.check_images(images)
      self._labels.append(opened)
    self.class_tables: dict[str, dict[str, np.ndarray]] = {}
    # What was opened is not read again.
    indexes = {str(i.directory): i.index for i in self._images}
    manifests = {
      d: s.manifest for sets in self._labels for d, s in sets.items()
    }
    describe = class_lib.Describer(
      sources, lambda d: indexes[str(epath.Path(d))], manifests.__getitem__
    )
    for task, fields in task_fields.items():
      for name, field in fields.items():
        specs, given = describe(task, name), (classes or {}).get(task, ())
        names = class_lib.class_names(specs, task, name, given)
        class_lib.check_field(specs, task, name, field, names)
        table = class_lib.class_table(specs, len(sources), names)
        if table is not None:
          self.class_tables.setdefault(task, {})[name] = table
    sizes = [images.num_records for images in self._images]
    self.starts = np.array([0, *itertools.accumulate(sizes)])

  def origin_kinds(self, task: str) -> frozenset[tuple[bool, bool]]:
    """(own labels?, a label set?) of the sources of a task."""
    i = self.tasks.index(task)
    return frozenset((o[i][0], o[i][1] is not None) for o in self._origins)

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

  def read(self, index: int) -> list[bytes]:
    """The image record and, for each task, the record with its labels.

    It begins with `OWN_LABELS` if labels in the image record go before it, and
    is empty for a task without labels.

    Raises:
      CorruptRecord: one of them cannot be read.
    """
    source = self.source_of(index)
    place = index - int(self.starts[source])
    records: dict[str | None, bytes] = {None: b""}
    for directory, labels in self._labels[source].items():
      records[directory] = labels.read(place)
    return [
      self._images[source].read(place),
      *(
        OWN_LABELS + records[directory] if own else records[directory]
        for own, directory in self._origins[source]
      ),
    ]

  def locate(self, index: int, task: str | None = None) -> tuple[str, int]:
    """Path of the shard that holds a record, and its place there.

    Args:
      index: of the record.
      task: ask for the label set of this task instead of the images.
    """
    source = self.source_of(index)
    records: ImageSet | LabelSet = self._images[source]
    if task is not None:
      _, directory = self._origins[source][self.tasks.index(task)]
      records = self._labels[source].get(directory or "", records)
    shard, place = records.locate(index - int(self.starts[source]))
    return str(records.directory / records.shards[shard].file), place
