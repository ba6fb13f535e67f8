"""What a person decided of a label set's images, as the page of it saves it.

  {"schema_version": 1, "what": "must_jax selection",
   "image_set": {"name": ..., "split": ..., "num_records": N},
   "label_sets": [{"name": ..., "teacher": digest}, ...],
   "min_score": {field: number, or {class: number}},
   "images": [{"key": ..., "decision": ..., "note": ""}, ...]}

"accept": the labels are right as they were shown, at the thresholds
`min_score`; "reject": the image shall have no labels; "correct": a person has
to mend them.
"""

import dataclasses
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from must_jax.fields.field import OTHERS
from must_jax.importers import names
from must_jax.storage.path import PathLike, read_file
from must_jax.storage.sets import check_version

VERSION = 1
WHAT = "must_jax selection"
DECISIONS = ("accept", "reject", "correct")


@dataclasses.dataclass(frozen=True)
class Selection:
  """A selection that was read.

  Attributes:
    path: of its file, for messages.
    min_score: thresholds that were shown, by field.
    decisions: {key of an image: one of `DECISIONS`}.
  """

  path: str
  min_score: Mapping[str, Any]
  decisions: Mapping[str, str]

  def keys(self, decision: str) -> list[str]:
    """The images of which this was decided."""
    return [key for key, given in self.decisions.items() if given == decision]


def is_selection(value: Any) -> bool:
  """Whether the contents of a JSON file are a selection, right or wrong."""
  return isinstance(value, dict) and value.get("what") == WHAT


def read(path: PathLike, manifest: Mapping[str, Any]) -> Selection:
  """Reads a selection of the images of a label set.

  Args:
    path: of the file.
    manifest: of the label set.

  Raises:
    ValueError: it is none, or of other images or labels. Keys are not checked:
      see `check_known`.
  """
  try:
    value = json.loads(read_file(path))
  except (OSError, ValueError, RecursionError) as error:
    raise ValueError(
      f"{path} cannot be read ({error}); expected a selection, the JSON that a"
      " page of `must-jax inspect` saves."
    ) from None
  if not is_selection(value):
    raise ValueError(
      f"{path} is no selection; expected the JSON that a page of `must-jax"
      f' inspect` saves, with "what": "{WHAT}".'
    )
  check_version(path, value, VERSION)
  for entry, kind in (
    ("image_set", dict),
    ("label_sets", list),
    ("min_score", dict),
    ("images", list),
  ):
    if not isinstance(value.get(entry), kind):
      raise ValueError(
        f"{path} has {entry} {str(value.get(entry))[:80]!r}; expected"
        f" {kind.__name__}. Save it from the page again."
      )
  _check_sets(path, value, manifest)
  min_score = value["min_score"]
  if len(value["label_sets"]) > 1:  # the others have fields of their own
    min_score = _of_fields(min_score, manifest["fields"])
  check_thresholds(f"{path}, min_score", min_score, manifest["fields"])
  decisions: dict[str, str] = {}
  for entry in value["images"]:
    key, decision = (
      entry.get(name) if isinstance(entry, dict) else None
      for name in ("key", "decision")
    )
    if not isinstance(key, str) or decision not in DECISIONS:
      raise ValueError(
        f"{path} has an image {str(entry)[:80]}; expected a key, and a decision"
        f" out of {', '.join(DECISIONS)}."
      )
    if decisions.setdefault(key, decision) != decision:
      raise ValueError(
        f"{path} has image {key!r} twice, as {decisions[key]!r} and"
        f" {decision!r}; expected one decision."
      )
  return Selection(str(path), min_score, decisions)


def _check_sets(
  path: PathLike, value: Mapping[str, Any], manifest: Mapping[str, Any]
) -> None:
  """Raises `ValueError` for a selection of other images or other labels."""
  given, wanted = value["image_set"], manifest["image_set"]
  names = ("name", "split", "num_records")
  if any(given.get(n) != wanted.get(n, given.get(n)) for n in names):
    raise ValueError(
      f"{path} is a selection of {_described(given)}; the label set is of"
      f" {_described(wanted)}. Give the label set of the page that saved it."
    )
  listed = [s for s in value["label_sets"] if isinstance(s, dict)]
  digest = manifest["teacher"].get("digest")
  if digest not in [entry.get("teacher") for entry in listed]:
    known = [f"{s.get('name')} (teacher {s.get('teacher')})" for s in listed]
    raise ValueError(
      f"{path} is a selection of label sets {', '.join(known) or 'none'}; the"
      f" one given is of teacher {digest}. Give one of these as --labels."
    )


def _of_fields(
  min_score: Mapping[str, Any], fields: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
  """The thresholds of some fields and their classes."""
  return {
    name: {
      k: v
      for k, v in given.items()
      if k == OTHERS or k in fields[name].get("classes", ())
    }
    if isinstance(given, Mapping)
    else given
    for name, given in min_score.items()
    if name in fields
  }


def _described(image_set: Mapping[str, Any]) -> str:
  return (
    f"split {image_set.get('split')!r} of image set {image_set.get('name')!r},"
    f" {image_set.get('num_records', '?')} images"
  )


def check_thresholds(
  source: str, min_score: Any, fields: Mapping[str, Mapping[str, Any]]
) -> None:
  """Checks {field: number, or {class: number}}.

  Args:
    source: of it, for messages.
    min_score: thresholds of scores.
    fields: of the label set, as its manifest lists them.

  Raises:
    ValueError: names what is not known or no number from 0 to 1.
  """
  expected = "expected {field: number, or {class: number}}, from 0 to 1"
  if not isinstance(min_score, Mapping):
    raise ValueError(f"{source} is {str(min_score)[:80]!r}; {expected}.")
  check_known(source, "fields", min_score, fields)
  for field, given in min_score.items():
    by_class = given if isinstance(given, Mapping) else {}
    known = [*fields[field].get("classes", ()), OTHERS]
    check_known(f"{source}, {field}", "classes", by_class, known)
    for number in by_class.values() if by_class else [given]:
      if isinstance(number, bool) or not (
        isinstance(number, int | float) and 0 <= number <= 1
      ):
        raise ValueError(f"{source} has {field}: {number!r}; {expected}.")


def check_known(
  source: str, what: str, given: Iterable[str], known: Collection[str]
) -> None:
  """Checks that all names are known.

  Args:
    source: of the names, for the message.
    what: they are, in the plural.
    given: names.
    known: those that there are.

  Raises:
    ValueError: some are not; it says which, and what is near them.
  """
  there = {*known}
  if unknown := [name for name in given if name not in there]:
    meant = names.meant(unknown[0], there) or "."
    shown = ", ".join(map(repr, unknown[:5])) + ", ..." * (len(unknown) > 5)
    raise ValueError(
      f"{source} has {len(unknown)} unknown {what}: {shown}{meant} There are"
      f" {len(there)}, such as {sorted(there)[:3]}."
    )
