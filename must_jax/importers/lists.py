"""Lists that people keep in files: names of classes, ids of images.

What a list says is read where that is certain, and refused where it is not: a
comment or a header that is taken for a name shifts all classes after it.
"""

import collections
import csv
import itertools
import pathlib
import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import yaml

from must_jax.importers import files
from must_jax.importers.names import nfc
from must_jax.storage import image_files
from must_jax.storage.image_files import Rejected
from must_jax.storage.path import Path

_NAME_HEADERS = (
  *("name", "class_name", "category_name", "label_name", "display_name"),
  *("class", "label", "category", "names", "classes", "labels", "categories"),
)
_ID_HEADERS = (
  *("id", "index", "idx", "class_id", "label_id", "category_id", "number"),
)
_EXPECTED = (
  "expected different names in the order of their ids: one a line; a JSON or"
  " YAML list, or object from ids 0, 1, ... to names (FILE, or FILE:KEY for a"
  " part of it); or a CSV file with a column 'name' and perhaps one 'id'"
)


def load_classes(text: str) -> list[str]:
  """Class names out of FILE, or out of FILE:KEY for a key of JSON or YAML.

  The extension tells the format: .json, .yaml, .yml, .csv, .tsv; others are
  text with a name a line, in which lines that begin with "# " are comments.

  Raises:
    ValueError: the file is missing, or it is not certain what it lists.
  """
  path, key = files.file_and_key(text)
  suffix = path.suffix.lower()
  try:
    if suffix == ".json":
      names = _names_in(files.load_json(text))
    elif suffix in (".yaml", ".yml"):
      names = _names_in(files.value_at(load_yaml(path), path, key))
    elif suffix in (".csv", ".tsv"):
      names = _names_of_table(files.read_text(path), suffix)
    else:
      names = _names_of_lines(files.read_text(path).splitlines())
    names = [nfc(name).strip() for name in names]
    counts = collections.Counter(names)
    double = [name for name, count in counts.items() if count > 1]
    if not names or "" in names or double:
      what = f"{double[0]!r} comes twice" if double else "a name is empty"
      raise Rejected(what if names else "it is empty")
  except Rejected as error:
    raise ValueError(
      f"{text} lists no classes: {error}; {_EXPECTED}."
    ) from None
  return names


def load_yaml(path: Path) -> Any:
  """Reads YAML in which all scalars stay text.

  YAML's own rules make false of a class "no", and a number of "1e3".

  Raises:
    ValueError: the file is missing or no YAML.
  """
  try:
    return yaml.load(files.read_text(path), Loader=yaml.BaseLoader)
  except (yaml.YAMLError, RecursionError) as error:
    reason = " ".join(str(error).split())
    raise ValueError(f"{path} is not valid YAML ({reason}).") from None


def _names_in(value: Any) -> list[str]:
  """Names out of JSON or YAML: a list, or an object of ids and names."""
  if isinstance(value, dict) and "names" in value:
    value = value["names"]  # as data.yaml of YOLO
  if isinstance(value, dict):
    pairs = list(value.items())
    if not all(_is_number(key) for key, _ in pairs):
      pairs = [(number, name) for name, number in pairs]
    return _in_order(pairs)
  if isinstance(value, list) and all(
    isinstance(entry, dict) and {"id", "name"} <= entry.keys()
    for entry in value
  ):
    return _in_order([(entry["id"], entry["name"]) for entry in value])
  if isinstance(value, list) and all(isinstance(name, str) for name in value):
    return value
  raise Rejected(f"{str(value)[:80]} is no list of names")


def _is_number(value: Any) -> bool:
  return re.fullmatch(r"\d+", str(value), re.ASCII) is not None


def _in_order(pairs: Sequence[tuple[Any, Any]]) -> list[str]:
  """Names in the order of their ids, which must be 0, 1, ..."""
  for number, name in pairs:
    if not _is_number(number) or not isinstance(name, str):
      raise Rejected(f"it has {number!r} for {name!r}, no id and name")
  by_id = {int(number): name for number, name in pairs}
  if sorted(by_id) != list(range(len(pairs))):
    ids = [str(number) for number, _ in pairs]
    raise Rejected(
      f"its {len(ids)} ids are {', '.join(ids[:5])} and so on, not 0 to"
      f" {len(ids) - 1} each once"
    )
  return [by_id[i] for i in range(len(pairs))]


def _names_of_table(text: str, suffix: str) -> list[str]:
  """Names out of a table; a column of numbers beside them holds their ids."""
  mark = next((m for m in ",;" if m in text.partition("\n")[0]), ",")
  rows = [
    [cell.strip() for cell in row]
    for row in csv.reader(
      text.splitlines(), delimiter="\t" if suffix == ".tsv" else mark
    )
    if any(row)
  ]
  if not rows:
    return []
  if comments := [row for row in rows if row[0].startswith("#")]:
    raise Rejected(f"its row {comments[0]} looks like a comment")
  if len(set(map(len, rows))) > 1:
    raise Rejected("its rows have different numbers of columns")
  head = [cell.lower() for cell in rows[0]]
  if {*_NAME_HEADERS, *_ID_HEADERS}.isdisjoint(head):
    rows = [["name"] if len(head) == 1 else _guess_head(rows[0]), *rows]
    head = rows[0]
  columns = dict(zip(head, zip(*rows[1:], strict=True), strict=False))
  names = [h for h in _NAME_HEADERS if h in columns]
  ids = [
    h
    for h in (*_ID_HEADERS, *names)
    if len(names) > 1 or h not in names
    if all(map(_is_number, columns.get(h, "-")))
  ]
  names = [h for h in names if h not in ids]
  if not names:
    raise Rejected(f"its first row is {rows[0]}, without a column 'name'")
  if not ids:
    return list(columns[names[0]])
  return _in_order(list(zip(columns[ids[0]], columns[names[0]], strict=True)))


def _guess_head(row: Sequence[str]) -> list[str]:
  """The head of a table that begins with a name and its id."""
  head = ["id" if _is_number(cell) else "name" for cell in row]
  if sorted(head) != ["id", "name"]:
    raise Rejected(f"its first row is {list(row)}, without a column 'name'")
  return head


def _names_of_lines(lines: Sequence[str]) -> list[str]:
  """Names out of text with a name a line."""
  numbered = [(i, line.strip()) for i, line in enumerate(lines, start=1)]
  while numbered and not numbered[-1][1]:
    numbered.pop()
  comments = {i for i, line in numbered if re.match(r"#+\s+\S", line)}
  if 1 in comments:  # with empty lines in it and after it
    head = list(
      itertools.takewhile(
        lambda n: n[1].strip("#") == "" or n[0] in comments, numbered
      )
    )
    last = max(i for i, _ in head if i in comments)
    comments |= {i for i, line in head if i < last or not line}
  kept = [(i, line) for i, line in numbered if i not in comments]
  names = [line for _, line in kept]
  marked = [re.fullmatch(r"(\d+)(\s*[:,;\t]\s*|\s+)(.+)", n) for n in names]
  if all(marked):
    ids = [int(m[1]) for m in marked if m]
    if ids == list(range(len(ids))):
      return [m[3] for m in marked if m]
    if ids == list(range(1, len(ids) + 1)) or all(
      m[2].strip() or "\t" in m[2] for m in marked if m
    ):
      raise Rejected(
        f"its lines are numbered {ids[0]}, ... {ids[-1]}, not from 0 up"
      )
  # Of CVAT: label:color_rgb:parts:actions
  form = re.compile(r"([^:]+):(\d+,\d+,\d+)?:[^:]*:[^:]*")
  labelmap = [form.fullmatch(name) for name in names]
  if all(labelmap):
    return [m[1] for m in labelmap if m]
  for i, name in kept:
    if reason := _doubt(name, len(names), bool(comments)):
      raise Rejected(f"line {i}, {name[:80]!r}, {reason}")
  return names


def _doubt(name: str, count: int, with_comments: bool) -> str | None:
  """Why one of some lines may be something else than a name."""
  if not name:
    return "is empty"
  is_comment = re.match(r"(#|//).", name) or re.search(r"\s#", name)
  if is_comment or (with_comments and not name.strip("#")):
    return "has a comment or begins so (a line of comment begins with '# ')"
  if re.fullmatch(r"""[\[{<].+|(["']).*\1,?|.*[{\[]""", name) and len(name) > 1:
    return "is no plain text"
  if re.match(r"-\s|\w+:$|names:", name):
    return "looks like YAML, whose files end in .yaml"
  if "\t" in name or (count == 1 and "," in name):
    return "has several columns"
  return None


def read_ids(path: Path, known: AbstractSet[str]) -> list[str]:
  """Keys of the images in a list as in VOC's `ImageSets`, none twice.

  A line is a key, perhaps with an extension, or with folders before it. In
  lists for one class (`CLASS_train.txt`) every line ends in a number, too: -1
  without the class, 0 with difficult objects only, 1 with others; lines with
  -1 are left out. Whether a number is that or the end of a key follows from the
  keys that there are.

  Args:
    path: of the list.
    known: keys that there are.

  Returns:
    Keys in the order of the list, also those that are not there.

  Raises:
    ValueError: the list cannot be read, is empty, names nothing that is there,
      has an id that would lead to files elsewhere, or may mean several things.
  """
  lines = [nfc(line.strip()) for line in files.read_text(path).splitlines()]
  lines = [line for line in lines if line]
  flagged = [re.fullmatch(r"(.*\S)\s+(-1|0|1)", line) for line in lines]
  matches = [match for match in flagged if match]
  if len(matches) == len(lines) and _are_flags(path, matches, known):
    lines = [match[1] for match in matches if match[2] != "-1"]
  if not lines:
    raise ValueError(f"{path} names no image; expected one on each line.")
  folders: dict[str, str] = {}
  for line in lines:
    key, folder = _find(line, known) or (_checked(path, line, known), "")
    if folders.setdefault(key, folder) != folder:
      raise ValueError(
        f"{path} has {folders[key] + key!r} and {folder + key!r}, but there is"
        f" only {key!r}; expected ids that tell images apart."
      )
  if known.isdisjoint(folders):
    raise ValueError(
      f"None of the {len(folders)} ids of {path} is there: it has"
      f" {lines[0]!r}, ..., and there are {sorted(known)[:3]}."
    )
  return list(folders)


def _are_flags(
  path: Path, matches: Sequence[re.Match[str]], known: AbstractSet[str]
) -> bool:
  """Whether the numbers at the ends of all lines are flags, no part of ids."""
  whole = [match[0] for match in matches if _find(match[0], known)]
  bare = [match[1] for match in matches if _find(match[1], known)]
  if not whole or (len(bare) == len(matches) > len(whole)):
    return True
  if not bare or (len(whole) == len(matches) > len(bare)):
    return False
  raise ValueError(
    f"{path} may mean two things: there is {whole[0]!r}, and there is"
    f" {bare[0]!r}, and each line ends in a number as in lists for one class."
    " Add the images' extension to ids, or rename files."
  )


def _find(line: str, known: AbstractSet[str]) -> tuple[str, str] | None:
  """A key in a line, and the folders before it."""
  if line in known:
    return line, ""
  path = pathlib.PureWindowsPath(line)  # either slash parts folders
  parts = path.relative_to(path.anchor).parts
  if ".." in parts:
    return None
  for i in range(len(parts)):
    name = "/".join(parts[i:])
    is_file = name.lower().endswith((*image_files.IMAGE_SUFFIXES, ".xml"))
    for key in (name, files.key_of(name) if is_file else name):
      if key in known:
        return key, line[: len(path.anchor)] + "".join(
          f"{p}/" for p in parts[:i]
        )
  return None


def _checked(path: Path, line: str, known: AbstractSet[str]) -> str:
  """A line that is no known key, if it can be one."""
  try:
    files.inside(path.parent, line)
  except Rejected:
    raise ValueError(
      f"{path} has id {line!r}; expected the name of an image without its"
      " extension."
    ) from None
  words = [word for word in re.split(r"[,;\t]\s*", line) if word]
  if len(words) > 1 and all(_find(word, known) for word in words):
    raise ValueError(f"{path} has {line!r}; expected one image on each line.")
  return line
