"""Labels of one task that come from several places: do they fit together?

Class names are what counts; ids are matched by name.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from must_jax.input.source import Source
from must_jax.storage.sets import read_index, read_manifest
from must_jax.types import Field

NO_CLASS = -1
_MAX_SHOWN = 10


class Spec(NamedTuple):
  """What one place says of a field.

  Attributes:
    source: number of the source.
    is_sidecar: whether it is a label set, not the image set itself.
    origin: its directory.
    spec: its entry of the field, {"kind": ..., "classes": [...]}.
  """

  source: int
  is_sidecar: bool
  origin: str
  spec: Mapping[str, Any]


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

  def __call__(self, task: str, field: str) -> list[Spec]:
    """All places with labels of a task.

    Raises:
      ValueError: one has no such field.
    """
    specs = []
    for i, source in enumerate(self._sources):
      own, directory = source.origins(task)
      found = []
      if own:
        found.append((False, source.directory, self._index(source.directory)))
      if directory:
        found.append((True, directory, self._manifest(directory)))
      for is_sidecar, origin, index in found:
        if field not in index["fields"]:
          raise ValueError(
            f"Task {task!r} reads {field!r}; {origin} has"
            f" {sorted(index['fields'])}. Take the task's labels from another"
            " place, or leave this one out."
          )
        specs.append(Spec(i, is_sidecar, origin, index["fields"][field]))
    return specs


def class_names(
  specs: Sequence[Spec], task: str, field: str, given: Sequence[str] = ()
) -> tuple[str, ...]:
  """The classes of a task's field.

  Args:
    specs: where its labels come from.
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
  for _, _, origin, spec in specs:
    names = tuple(spec.get("classes", ()))
    if not names:
      continue
    if not agreed:
      agreed, first = names, origin
    lacking, surplus = set(agreed) - set(names), set(names) - set(agreed)
    if surplus or (lacking and not given):
      raise ValueError(
        f"Task {task!r}: classes of {field!r} differ. {first} has"
        f" {len(agreed)}, {origin} has {len(names)}; only the first has"
        f" {sorted(lacking)[:_MAX_SHOWN]}, only the second"
        f" {sorted(surplus)[:_MAX_SHOWN]}. Make them two tasks, import with the"
        f" same names, or list all of them in tasks.{task}.classes; then ids"
        " are matched by name."
      )
  return agreed


def class_table(
  specs: Sequence[Spec], num_sources: int, classes: Sequence[str]
) -> np.ndarray | None:
  """From the ids of labels to the ids of a task.

  Args:
    specs: where a field's labels come from.
    num_sources: all of them.
    classes: of the task, in order of their ids.

  Returns:
    int32 [num_sources, 2, K], the second axis for a set's own labels and those
    of its label set; `NO_CLASS` for ids that they do not have. None where all
    ids are the task's.
  """
  ids = {name: i for i, name in enumerate(classes)}
  tables = [[ids[name] for name in s.spec.get("classes", ())] for s in specs]
  if all(table == list(range(len(classes))) for table in tables):
    return None
  shape = num_sources, 2, max(map(len, tables))
  result = np.full(shape, NO_CLASS, np.int32)
  for spec, table in zip(specs, tables, strict=True):
    result[spec.source, int(spec.is_sidecar), : len(table)] = table
  return result


def check_field(
  specs: Sequence[Spec],
  task: str,
  name: str,
  field: Field,
  classes: Sequence[str],
) -> None:
  """Checks that a task can read what its sources have.

  Args:
    specs: where the field's labels come from.
    task: name of the task.
    name: name of the field.
    field: what the task reads.
    classes: of the task.

  Raises:
    ValueError: another kind, unit or number of classes.
  """
  kind = type(field).__name__
  for _, _, origin, spec in specs:
    if spec["kind"] != kind:
      raise ValueError(
        f"Task {task!r} reads {name!r} as {kind}; in {origin} it is a"
        f" {spec['kind']}."
      )
    stored, wanted = spec.get("unit", ""), getattr(field, "unit", "")
    if (stored, wanted) == ("inverse", "metres"):
      raise ValueError(
        f"Task {task!r} reads {name!r} in metres; {origin} has inverse depth"
        " of unknown scale. Set the task's unit to 'inverse', with the"
        " objective 'scale_shift_invariant'."
      )
  expected = getattr(field, "num_classes", 0)
  if classes and len(classes) != expected:
    raise ValueError(
      f"Task {task!r} has {expected} classes for {name!r}; its labels have"
      f" {len(classes)}: {list(classes)[:_MAX_SHOWN]}. Give the task these"
      " classes."
    )
