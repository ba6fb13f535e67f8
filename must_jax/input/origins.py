"""Where the labels of a task come from, and whether they fit together.

Class names are what counts; ids are matched by name.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from must_jax.fields import KINDS, Description, Field
from must_jax.storage.sets import read_index, read_manifest

SUPERVISED = "supervised"
NO_CLASS = -1
_MAX_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Source:
  """A split of an image set and where its labels come from.

  Attributes:
    directory: of the image set.
    split: of the image set.
    labels: {task: origins}: "supervised" for the image set's own labels, the
      directory of a label set, or both in this order: then the label set serves
      the images that have no labels of their own. A task that is missing has no
      labels here.
  """

  directory: str
  split: str
  labels: Mapping[str, str | Sequence[str] | None] = dataclasses.field(
    default_factory=dict
  )

  def origins(self, task: str) -> tuple[bool, str | None]:
    """Whether a task reads the set's own labels, and its label set.

    Raises:
      ValueError: more than one label set, or another order.
    """
    given = self.labels.get(task) or ()
    origins = [given] if isinstance(given, str) else list(given)
    own = origins[:1] == [SUPERVISED]
    rest = origins[1:] if own else origins
    if len(rest) > 1 or SUPERVISED in rest:
      raise ValueError(
        f"Task {task!r} takes its labels on {self.directory} from"
        f" {origins}; expected {SUPERVISED!r}, the directory of a label set, or"
        " both in this order."
      )
    return own, rest[0] if rest else None


class FieldOrigin(NamedTuple):
  """What one place with labels says of a field.

  Attributes:
    source: number of the source.
    is_sidecar: whether it is a label set, not the image set itself.
    directory: of it.
    description: how it lists the field.
  """

  source: int
  is_sidecar: bool
  directory: str
  description: Description


class Describer:
  """Finds out what sources say of fields.

  Args:
    sources: in order.
    index: the index of an image set, by its directory; called once for each.
    manifest: the same for label sets.
  """

  def __init__(
    self,
    sources: Sequence[Source],
    index: Callable[[str], Mapping[str, Any]] = read_index,
    manifest: Callable[[str], Mapping[str, Any]] = read_manifest,
  ):
    self._sources = sources
    self._index = functools.cache(index)
    self._manifest = functools.cache(manifest)

  def __call__(self, task: str, field: str) -> list[FieldOrigin]:
    """All origins with labels of a task.

    Raises:
      ValueError: one has no such field.
    """
    origins = []
    for i, source in enumerate(self._sources):
      own, directory = source.origins(task)
      found = []
      if own:
        found.append((False, source.directory, self._index(source.directory)))
      if directory:
        found.append((True, directory, self._manifest(directory)))
      for is_sidecar, place, index in found:
        if field not in index["fields"]:
          raise ValueError(
            f"Task {task!r} reads {field!r}; {place} has"
            f" {sorted(index['fields'])}. Take the task's labels from another"
            " place, or leave this one out."
          )
        origins.append(
          FieldOrigin(i, is_sidecar, place, index["fields"][field])
        )
    return origins


def class_names(
  origins: Sequence[FieldOrigin],
  task: str,
  field: str,
  given: Sequence[str] = (),
) -> tuple[str, ...]:
  """The classes of a task's field.

  Args:
    origins: where its labels come from.
    task: name of the task.
    field: name of the field.
    given: the task's classes in order of their ids. With none, all sources must
      have the same names; the first source says their order.

  Returns:
    Names in order of their ids; none if no source has labels with classes.

  Raises:
    ValueError: a source has a class that the task lacks, or, with none given,
      two sources have different ones.
  """
  agreed, first = tuple(given), f"tasks.{task}.classes"
  for _, _, place, description in origins:
    names = tuple(description.get("classes", ()))
    if not names:
      continue
    if not agreed:
      agreed, first = names, place
    lacking, surplus = set(agreed) - set(names), set(names) - set(agreed)
    if surplus or (lacking and not given):
      raise ValueError(
        f"Task {task!r}: classes of {field!r} differ. {first} has"
        f" {len(agreed)}, {place} has {len(names)}; only the first has"
        f" {sorted(lacking)[:_MAX_SHOWN]}, only the second"
        f" {sorted(surplus)[:_MAX_SHOWN]}. Make them two tasks, import with the"
        f" same names, or list all of them in tasks.{task}.classes; then ids"
        " are matched by name."
      )
  return agreed


class ClassTables(NamedTuple):
  """From the ids of labels to the ids of a task, by source.

  Attributes:
    own: [sources][K] for the labels of image sets; `NO_CLASS` for ids that they
      do not have.
    sidecar: the same for those of label sets.
  """

  own: tuple[tuple[int, ...], ...]
  sidecar: tuple[tuple[int, ...], ...]


def class_tables(
  origins: Sequence[FieldOrigin], num_sources: int, classes: Sequence[str]
) -> ClassTables | None:
  """Matches the ids of labels with those of a task, by name.

  Args:
    origins: where a field's labels come from.
    num_sources: all of them.
    classes: of the task, in order of their ids.

  Returns:
    None where all ids are the task's.
  """
  ids = {name: i for i, name in enumerate(classes)}
  tables = [[ids[n] for n in o.description.get("classes", ())] for o in origins]
  if all(table == list(range(len(classes))) for table in tables):
    return None
  length = max(map(len, tables))
  own, sidecar = ([(NO_CLASS,) * length] * num_sources for _ in range(2))
  for origin, table in zip(origins, tables, strict=True):
    target = sidecar if origin.is_sidecar else own
    target[origin.source] = (*table, *[NO_CLASS] * (length - len(table)))
  return ClassTables(tuple(own), tuple(sidecar))


def check_field(
  origins: Sequence[FieldOrigin],
  task: str,
  name: str,
  field: Field,
  classes: Sequence[str],
) -> None:
  """Checks that a task can read what its sources have.

  Args:
    origins: where the field's labels come from.
    task: name of the task.
    name: name of the field.
    field: what the task reads.
    classes: of the task.

  Raises:
    ValueError: another kind, unit or number of classes.
  """
  kind = type(field).__name__
  for _, _, place, description in origins:
    if KINDS.get(description["kind"]) is not type(field):
      raise ValueError(
        f"Task {task!r} reads {name!r} as {kind}; in {place} it is a"
        f" {description['kind']}."
      )
    try:
      field.check_stored(description)
    except ValueError as error:
      raise ValueError(
        f"Task {task!r} reads {name!r} of {place}, which {error}"
      ) from None
  expected = getattr(field, "num_classes", 0)
  if classes and len(classes) != expected:
    raise ValueError(
      f"Task {task!r} has {expected} classes for {name!r}; its labels have"
      f" {len(classes)}: {list(classes)[:_MAX_SHOWN]}. Give the task these"
      " classes."
    )
