"""What the page of messages quotes is what the package says."""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [
  ROOT / "docs" / f"{name}.md" for name in ("troubleshooting", "buckets")
]
# Of libraries, and of the Makefile.
_OTHERS = {"RESOURCE_EXHAUSTED", "must_jax needs Python 3.11 or newer"}
# How messages that need no page say what is expected, or what to do.
_SAYS_WHAT = re.compile(
  r"expected|choose|give |set |name |run |leave |export |install|copy|make"
  r"|add |use |check |see |save |mend|needs |takes |draw |there are|it has"
  r"|delete|in another|pass |goes with|has the tasks",
  re.IGNORECASE,
)
_LOGGED = ("warning", "error", "exit")


@functools.cache
def quoted():
  """The messages of the pages: code in the first cells of their tables."""
  text = "".join(page.read_text() for page in PAGES)
  tables = re.findall(r"^\| you see \|.*\n\|.*\n((?:\|.*\n)+)", text, re.M)
  rows = [row for table in tables for row in table.splitlines()]
  return {
    message
    for row in rows
    for message in re.findall("`(.*?)`", row.split(" | ")[0])
  }


def text_of(node):
  """A string as people see it, with "..." for what differs; "" of others."""
  match node:
    case ast.Constant(value=str(text)):
      return re.sub(r"%(\.\d)?[sdfr]", "...", text)
    case ast.JoinedStr(values=parts):
      return "".join(text_of(part) or "..." for part in parts)
    case ast.BinOp(left=left, op=ast.Add() | ast.Mod(), right=right):
      return text_of(left) + (text_of(right) or "...")
  return ""


@functools.cache
def trees():
  files = [*ROOT.glob("must_jax/**/*.py"), *ROOT.glob("configs/*.py")]
  return [ast.parse(file.read_text()) for file in files]


@functools.cache
def texts():
  """Everything that the package, its configs and scripts may say."""
  found = {
    text_of(node)
    for tree in trees()
    for node in ast.walk(tree)
    if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)
  }
  scripts = [file for file in ROOT.glob("launch/**/*") if file.is_file()]
  return "\n".join([*found, *(file.read_text() for file in scripts)])


@functools.cache
def messages():
  """What is raised, and logged as a warning or an error."""
  found = set()
  for tree in trees():
    for node in ast.walk(tree):
      match node:
        case ast.Raise(exc=ast.Call(args=[first, *_])):
          found.add(text_of(first))
        case ast.Call(func=ast.Attribute(attr=name), args=[first, *_]):
          found |= {text_of(first)} if name in _LOGGED else set()
  return {text for text in found if re.search(r"[a-z]{3}", text)}


@pytest.mark.parametrize("message", sorted(quoted() - _OTHERS))
def test_is_said_by_the_package(message):
  assert message in texts()


def test_what_does_not_say_what_to_do_is_on_the_page():
  """But for a few, of which most are about one annotation."""
  said = messages()
  found = {m for m in said if any(q in m for q in quoted())}
  lacking = sorted(m for m in said - found if not _SAYS_WHAT.search(m))
  print(*lacking, sep="\n")
  assert len(lacking) < 0.15 * len(said)
  assert len(found) > 0.4 * len(said)
