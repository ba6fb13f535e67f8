"""Names and ids out of people's files: which of them mean the same.

Text is compared in Unicode's composed form (NFC). File names of macOS are
decomposed: what looks like the same "é" may be one character or two.
"""

import collections
import difflib
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from must_jax.fields import Description

Id: TypeAlias = int | float | str

_SHOWN = 3  # ids in a message


def nfc(text: str) -> str:
  """Text in Unicode's composed form."""
  return unicodedata.normalize("NFC", text)


def is_id(value: Any) -> bool:
  """Whether JSON holds an id: a whole number, or text."""
  if isinstance(value, float):
    return value.is_integer()
  return isinstance(value, int | str) and not isinstance(value, bool)


def id_form(ids: Collection[Id]) -> Callable[[Id], str]:
  """How ids are compared: 7, 7.0, "7" and "007" are the same.

  Where there are ids that differ by zeros in front alone, these count.

  Args:
    ids: of what there is, which others refer to.
  """
  return _number if len(set(map(_number, ids))) == len(ids) else _text


def check_ids(ids: Collection[Id], place: str) -> None:
  """Checks that there are ids, each once.

  Args:
    ids: in a list of a JSON file.
    place: file and list, for the message.

  Raises:
    ValueError: there are none, or one comes twice.
  """
  if not ids:
    raise ValueError(f"{place}: it is empty; expected some.")
  ((value, count),) = collections.Counter(map(_text, ids)).most_common(1)
  if count > 1:
    raise ValueError(
      f"{place}: the id {value} comes {count} times; expected different ids."
    )


def _text(value: Id) -> str:
  return nfc(str(int(value) if isinstance(value, float) else value)).strip()


def _number(value: Id) -> str:
  text = _text(value)
  if text.isascii() and text.isdecimal():
    return text.lstrip("0") or "0"
  return text


def check_references(
  what: str,
  given: Sequence[Id],
  ids: Collection[Id],
  form: Callable[[Id], str],
  max_strays: float | None,
) -> list[str]:
  """Checks that what refers to images by their ids finds them.

  Args:
    what: of which file, in the plural, for messages.
    given: the ids that are referred to, one for each reference.
    ids: of the images.
    form: see `id_form`.
    max_strays: part of the references that may refer to nothing; None where
      there is no option for it.

  Returns:
    A warning, if there are any that do not.

  Raises:
    ValueError: there are more.
  """
  known = set(map(form, ids))
  strays = [value for value in given if form(value) not in known]
  if not strays:
    return []
  found = (
    f"{len(strays)} of {len(given)} {what} refer to no image, such as image_id"
    f" {_some(strays)}; the images have ids such as {_some(ids)}"
  )
  if len(strays) <= (max_strays or 0.0) * len(given):
    return [f"{found}."]
  option = ", or leave them out with --max-rejected"
  option += f" {len(strays) / len(given):.3g}"
  raise ValueError(
    f"{found}. They would be lost. Mend the file"
    f"{'' if max_strays is None else option}."
  )


def _some(ids: Iterable[Id]) -> str:
  shown = list(dict.fromkeys(map(repr, ids)))
  return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")


def meant(name: str, known: Iterable[str]) -> str:
  """What an unknown name may have been meant to be, to end a message with."""
  near = difflib.get_close_matches(name, sorted(known), 1, 0.5)
  return f"; is {near[0]!r} meant?" if near else ""


def clean_classes(
  fields: Mapping[str, Description],
) -> dict[str, Description]:
  """Class names as an image set has them: composed, without outer spaces.

  Args:
    fields: as in `index.json`.

  Raises:
    ValueError: names that look the same.
  """
  cleaned: dict[str, Description] = {}
  for field, description in fields.items():
    seen: dict[str, str] = {}
    for name in description.get("classes", ()):
      other = seen.setdefault(_look(name), name)
      if other != name:
        both = other + name
        codes = "" if both.isascii() else f" ({other!a} and {name!a})"
        raise ValueError(
          f"{field!r} has classes {other!r} and {name!r}{codes}, which differ"
          " by spaces, by the form of Unicode or by what is not seen alone;"
          " expected one name for one class. Rename one."
        )
    names = [nfc(name).strip() for name in description.get("classes", ())]
    cleaned[field] = {**description, **({"classes": names} if names else {})}
  return cleaned


def _look(name: str) -> str:
  seen = (c for c in nfc(name) if unicodedata.category(c) != "Cf")
  return " ".join("".join(seen).split())
