"""Where the labels of a task come from, and whether they fit together.

Class names are what counts; ids are matched by name.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

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
      directory of a label set, or several of these, best first: an image has
      the first that it is in. A task that is missing has no labels here.
  """

  directory: str
  split: str
  labels: Mapping[str, str | Sequence[str] | None] = dataclasses.field(
    default_factory=dict
  )

  def origins(self, task: str) -> tuple[str, ...]:
    """`SUPERVISED` and directories of label sets that a task reads, best first.

    Raises:
      ValueError: one comes twice.
    """
    found = listed(self.labels.get(task))
    if len(set(found)) != len(found):
      raise ValueError(
        f"Task {task!r} takes its labels on {self.directory} from"
        f" {list(found)}, where one comes twice; expected {SUPERVISED!r} and"
        " directories of label sets, best first."
      )
    return found


def listed(origins: str | Sequence[str] | None) -> tuple[str, ...]:
  """Origins of labels as a config has them, as a tuple."""
  return (origins,) if isinstance(origins, str) else tuple(origins or ())


def label_sets(
  task: str, options: Mapping[str, Any], dataset: str
) -> Iterator[tuple[str, str]]:
  """The label sets of a task on a dataset, with their names in a config.

  Args:
    task: its name.
    options: its entry in the config.
    dataset: name of the dataset.

  Yields:
    ("tasks.TASK.labels.DATASET", directory); that of all but the first ends
    with their number, [1] and so on.
  """
  origins = listed(options["labels"].get(dataset))
  places = [origin for origin in origins if origin != SUPERVISED]
  for number, place in enumerate(places):
    yield f"tasks.{task}.labels.{dataset}" + f"[{number}]" * (number > 0), place


class FieldOrigin(NamedTuple):
  """What one place with labels says of a field.

  Attributes:
    directory: of the label set, or of the image set whose own labels they are.
    description: how it lists the field.
  """

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
    """All origins with labels of a task, source by source, best first.

    Raises:
      ValueError: one has no such field.
    """
    found = []
    for source in self._sources:
      for origin in source.origins(task):
        own = origin == SUPERVISED
        place = source.directory if own else origin
        index = (self._index if own else self._manifest)(place)
        if field not in index["fields"]:
          raise ValueError(
            f"Task {task!r} reads {field!r}; {place} has"
            f" {sorted(index['fields'])}. Take the task's labels from another"
            " place, or leave this one out."
          )
        found.append(FieldOrigin(place, index["fields"][field]))
    return found


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
  for place, description in origins:
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


# For each origin of labels, the ids of a task by the ids of the labels; all
# equally long, `NO_CLASS` for ids that an origin does not have.
ClassTables: TypeAlias = tuple[tuple[int, ...], ...]


def class_tables(
  origins: Sequence[FieldOrigin], classes: Sequence[str]
) -> ClassTables | None:
  """Matches the ids of labels with those of a task, by name.

  Args:
    origins: where a field's labels come from.
    classes: of the task, in order of their ids.

  Returns:
    None where all ids are the task's.
  """
  ids = {name: i for i, name in enumerate(classes)}
  tables = [[ids[n] for n in o.description.get("classes", ())] for o in origins]
  if all(table == list(range(len(classes))) for table in tables):
    return None
  length = max(map(len, tables))
  return tuple(
    (*table, *[NO_CLASS] * (length - len(table))) for table in tables
  )


def known_classes(
  origins: Sequence[FieldOrigin], classes: Sequence[str]
) -> tuple[tuple[bool, ...], ...]:
  """Which of a task's classes [K] each origin of labels knows.

  What it does not know may well be in its images.

  Args:
    origins: where a field's labels come from.
    classes: of the task, in order of their ids.
  """
  listed = [set(origin.description.get("classes", ())) for origin in origins]
  return tuple(tuple(name in names for name in classes) for names in listed)


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
  for place, description in origins:
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
