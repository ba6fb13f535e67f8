"""A digest of the code that a function runs, to know results of other code.

What counts is the module of the function and every module that it imports,
directly or through others and anywhere in their text, of `must_jax` and of the
function's own package. A module counts by its syntax tree, in which comments,
layout and docstrings are not; files beside it that have its name
(`report_page.html` of `report_page.py`) count by their bytes.

What does not count: modules that the function cannot reach, other data files,
and the versions of libraries. `must_jax/__init__.py`, which can load all of the
package, counts only where something that it defines is imported.
"""

import ast
import functools
import hashlib
import inspect
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import must_jax

_PACKAGE = pathlib.Path(must_jax.__file__).parent


def code_version(function: Callable[..., Any]) -> str:
  """The digest, as 8 hexadecimal digits."""
  digest = hashlib.blake2b(digest_size=4)
  for name, path in sorted(modules(function).items()):
    digest.update(f"{name}\n{_read(path).text}\n".encode())
    for other in sorted(path.parent.glob(f"{path.stem}.*")):
      if other != path and other.is_file():
        digest.update(other.read_bytes())
  return digest.hexdigest()


def modules(function: Callable[..., Any]) -> dict[str, pathlib.Path]:
  """The files that count, by the names of their modules."""
  source = inspect.getsourcefile(function)
  assert source  # a function of a module
  start = pathlib.Path(source)
  package, *inner = function.__module__.split(".")
  packages = {"must_jax": _PACKAGE}
  if inner:
    packages.setdefault(package, start.parents[len(inner) - 1])
  found = {function.__module__: start}
  todo = [*_read(start).imports, *_parents(function.__module__)]
  while todo:
    name = todo.pop()
    package, *inner = name.split(".")
    if package not in packages:
      continue
    path = packages[package].joinpath(*inner)
    if not path.is_dir() and not path.with_suffix(".py").is_file():
      # A function or class of a module.
      name, path = name.rpartition(".")[0], path.parent
    for file in (path / "__init__.py", path.with_suffix(".py")):
      if file.is_file() and name not in found:
        found[name] = file
        todo += [*_read(file).imports, *_parents(name)]
  return found


def _parents(name: str) -> Iterator[str]:
  """The packages that a module's import runs, less the outermost."""
  parts = name.split(".")
  for length in range(2, len(parts)):
    yield ".".join(parts[:length])


class _Module(NamedTuple):
  """What counts of a file, and all in it that may be a module's name."""

  text: str
  imports: tuple[str, ...]


def _read(path: pathlib.Path) -> _Module:
  return _parse(path, path.stat().st_mtime_ns)


@functools.cache  # for several functions, and as long as a file is as it was
def _parse(path: pathlib.Path, unused_mtime: int) -> _Module:
  tree = ast.parse(path.read_bytes())
  imports: list[str] = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      imports += (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      imports += (f"{node.module}.{alias.name}" for alias in node.names)
    elif (
      isinstance(
        node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
      )
      and ast.get_docstring(node, clean=False) is not None
    ):
      del node.body[0]
  return _Module(_text(tree), tuple(imports))


def _text(node: Any) -> str:
  """As `ast.dump`, and the same for all versions of Python.

  Newer ones have more fields, which are empty.
  """
  if isinstance(node, ast.AST):
    fields = (
      f"{name}={_text(value)}"
      for name, value in ast.iter_fields(node)
      if value is not None and value != []
    )
    return f"{type(node).__name__}({', '.join(fields)})"
  if isinstance(node, list):
    return f"[{', '.join(map(_text, node))}]"
  return repr(node)
