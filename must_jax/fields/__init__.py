"""Kinds of label field. To add one, add its file and its line here.

The data layer stores, reads, crops, scales and flips a field by its kind alone,
so that a task needs no file format. What a kind has to say is in `field.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from must_jax.fields.boxes import Boxes
from must_jax.fields.class_map import ClassMap
from must_jax.fields.class_vector import ClassVector
from must_jax.fields.field import Description, Field, NamedScores
from must_jax.fields.kept import Kept
from must_jax.fields.statistics import NO_LABELS
from must_jax.fields.value_map import ValueMap
from must_jax.fields.vector_map import VectorMap

# By their names on disk.
KINDS: dict[str, type[Field]] = {
  "ClassVector": ClassVector,
  "Boxes": Boxes,
  "ClassMap": ClassMap,
  "ValueMap": ValueMap,
  "VectorMap": VectorMap,
}

# What to do where a teacher says the same of all images.
_CHECK_TEACHER = (
  "Train the teacher longer, or check that its checkpoint has the classes,"
  " image size and normalisation that it was trained with."
)

__all__ = [
  "KINDS",
  "Boxes",
  "ClassMap",
  "ClassVector",
  "Description",
  "Field",
  "Kept",
  "ValueMap",
  "VectorMap",
  "alarms",
  "check_descriptions",
  "kept_of",
  "left",
  "make_field",
  "warnings",
]


def make_field(description: Description) -> Field:
  """The field as an index or manifest lists it, whatever its scores."""
  return KINDS[description["kind"]].of(description)


def check_descriptions(descriptions: Mapping[str, Description]) -> None:
  """Checks fields as they stand in an index or manifest.

  Raises:
    ValueError: an unknown kind, or classes that are missing, double or too
      many.
  """
  for name, description in descriptions.items():
    kind = description.get("kind")
    if kind not in KINDS:
      raise ValueError(
        f"Field {name!r} has kind {kind!r}; expected one of {sorted(KINDS)}."
      )
    try:
      KINDS[kind].check_description(description)
    except ValueError as error:
      raise ValueError(f"Field {name!r} {error}") from None


def alarms(
  descriptions: Mapping[str, Description],
  statistics: Mapping[str, Mapping[str, Any]],
  min_score: NamedScores | None = None,
) -> list[str]:
  """What is too good to be labels, nothing or always the same, and what to do.

  Args:
    descriptions: of the fields, as in a manifest.
    statistics: sums over the whole set by field, see `fields.statistics`.
    min_score: at which labels will be read, see `Field.as_read`.
  """
  return [
    f"{name}: {reason} {advice}"
    for name, reason, advice in _alarms(descriptions, statistics, min_score)
  ]


def _alarms(
  descriptions: Mapping[str, Description],
  statistics: Mapping[str, Mapping[str, Any]],
  min_score: NamedScores | None = None,
) -> Iterator[tuple[str, str, str]]:
  """Field, what is wrong with it, and what to do about it."""
  for name, description in sorted(descriptions.items()):
    sums = statistics.get(name, NO_LABELS)
    if not sums["examples"]:
      yield name, "not one image has a label.", "Check what the teacher gives."
    elif not sums["elements"]:
      reason = (
        f"all {sums['examples']} labels are empty; nothing was found in any"
        " image."
      )
      advice = (
        "Train the teacher longer, or lower from which score it predicts."
      )
      yield name, reason, advice
    elif sums["constant"] == sums["examples"]:
      reason = (
        f"each of the {sums['examples']} labels has one value all over, as if"
        " nobody had looked at the images."
      )
      yield name, reason, _CHECK_TEACHER
    elif lost := _nothing_left(description, sums, min_score):
      reason = f"{lost}; a student would learn nothing."
      advice = (
        "Lower tasks.NAME.min_score (`must-jax thresholds` proposes scores), or"
        " train the teacher longer."
      )
      yield name, reason, advice
    elif reason := make_field(description).alarm(
      sums, description.get("classes", ())
    ):
      yield name, reason, _CHECK_TEACHER


def warnings(
  descriptions: Mapping[str, Description],
  statistics: Mapping[str, Mapping[str, Any]],
) -> list[str]:
  """What looks wrong in labels: the alarms, and what single kinds say.

  Args:
    descriptions: of the fields, as in an index.
    statistics: sums over the whole set by field, see `fields.statistics`.
  """
  found = [
    f"{name}: {reason}" for name, reason, _ in _alarms(descriptions, statistics)
  ]
  for name, description in descriptions.items():
    if name in statistics:
      field, classes = make_field(description), description.get("classes", ())
      found += [
        f"{name}: {text}" for text in field.warnings(statistics[name], classes)
      ]
  return found


def kept_of(
  description: Description,
  sums: Mapping[str, Any],
  min_score: NamedScores | None = None,
) -> Kept:
  """What a task reads of labels with these sums, see `Field.as_read`."""
  return KINDS[description["kind"]].as_read(description, min_score).kept(sums)


def _nothing_left(
  description: Description,
  sums: Mapping[str, Any],
  min_score: NamedScores | None,
) -> str:
  found = kept_of(description, sums, min_score)
  # Of what earlier versions counted, they said nothing either.
  return str(found) if found.is_nothing and found.by_class else ""


def left(
  descriptions: Mapping[str, Description],
  statistics: Mapping[str, Mapping[str, Any]],
  min_score: NamedScores | None = None,
) -> dict[str, Any]:
  """What is left at the threshold of scores.

  Args:
    descriptions: of the fields, as in a manifest.
    statistics: sums over the whole set by field, see `fields.statistics`.
    min_score: at which labels will be read, see `Field.as_read`.

  Returns:
    `Kept.describe` by field, of those that have a threshold and labels.
  """
  found = {
    name: kept_of(description, statistics[name], min_score)
    for name, description in descriptions.items()
    if name in statistics
  }
  return {
    name: what.describe(descriptions[name].get("classes", ()))
    for name, what in found.items()
    if what.has_threshold and what.by_class
  }
