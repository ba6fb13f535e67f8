"""Docstrings say what a caller needs: what it does, errors, shapes.

They are read from the source, so that nothing is imported.
"""

import ast
import dataclasses
import pathlib
import re
from collections.abc import Iterator

import pytest

import must_jax

PACKAGE = pathlib.Path(must_jax.__file__).parent
# Flax calls these; what they do is its convention.
OF_FLAX = ("setup",)
# Of a bug of ours, and of what a base class asks for and a class has not.
OURS = ("AssertionError", "NotImplementedError")
ARRAYS = ("Array", "ndarray")
# Their values are described by whoever fills them, name by name.
MAPPINGS = ("dict", "Mapping", "Callable")
SHAPE = re.compile(r"\[[^\]]*\]|\bscalars?\b|\bany shape\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Function:
  """A function of the package, or a method."""

  name: str
  node: ast.FunctionDef
  owner: ast.ClassDef | None = None

  @property
  def doc(self) -> str:
    return ast.get_docstring(self.node) or ""


def defined(
  body: list[ast.stmt], prefix: str, owner: ast.ClassDef | None = None
) -> Iterator[Function]:
  """What is public in a module or class, with methods of its classes."""
  for node in body:
    if isinstance(node, ast.FunctionDef):
      if not node.name.startswith("_"):
        yield Function(prefix + node.name, node, owner)
    elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
      yield from defined(node.body, f"{prefix}{node.name}.", node)


def package() -> dict[str, ast.Module]:
  files = sorted(PACKAGE.rglob("*.py"))
  return {
    str(file.relative_to(PACKAGE)): ast.parse(file.read_text())
    for file in files
    if "configs" not in file.parts  # their docstring is the file's
  }


def classes(modules: dict[str, ast.Module]) -> dict[str, list[ast.ClassDef]]:
  found: dict[str, list[ast.ClassDef]] = {}
  for module in modules.values():
    for node in module.body:
      if isinstance(node, ast.ClassDef):
        found.setdefault(node.name, []).append(node)
  return found


def inherited(
  function: Function, known: dict[str, list[ast.ClassDef]]
) -> list[Function]:
  """The documented methods that a method overrides, or says to see."""
  if function.owner is None:
    return []
  found = []
  bases = [ast.unparse(base) for base in function.owner.bases]
  for base in [*bases, *re.findall(r"\bSee `(\w+)", function.doc)]:
    name = base.partition("[")[0].rpartition(".")[2]
    for owner in known.get(name, ()):
      above = [
        Function(node.name, node, owner)
        for node in owner.body
        if isinstance(node, ast.FunctionDef) and node.name == function.node.name
      ]
      found += [method for method in above if method.doc]
      stub = ast.FunctionDef(function.node.name, body=[])
      found += inherited(Function(function.name, stub, owner), known)
  return found


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
  """All below a node but what other functions do within it."""
  for child in ast.iter_child_nodes(node):
    if not isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
      yield child
      yield from own_nodes(child)


def raises(node: ast.FunctionDef) -> bool:
  """Whether it raises what a caller may meet."""
  raised = (
    n.exc for n in own_nodes(node) if isinstance(n, ast.Raise) and n.exc
  )
  names = {ast.unparse(exc).partition("(")[0] for exc in raised}
  return any(name not in OURS and name[0] != "_" for name in names)


def names_array(annotation: ast.expr | None) -> bool:
  """Whether values are arrays, or sequences of them."""
  if annotation is None:
    return False
  if isinstance(annotation, ast.Subscript):
    name = ast.unparse(annotation.value).rpartition(".")[2]
    return name not in MAPPINGS and names_array(annotation.slice)
  if isinstance(annotation, ast.Attribute | ast.Name):
    return ast.unparse(annotation).rpartition(".")[2] in ARRAYS
  return any(
    names_array(child)
    for child in ast.iter_child_nodes(annotation)
    if isinstance(child, ast.expr)
  )


def has_arrays(node: ast.FunctionDef) -> bool:
  args = node.args
  taken = [*args.posonlyargs, *args.args, *args.kwonlyargs]
  taken += [arg for arg in (args.vararg, args.kwarg) if arg]
  return any(names_array(arg.annotation) for arg in taken) or names_array(
    node.returns
  )


def faults(modules: dict[str, ast.Module]) -> dict[str, list[str]]:
  """By rule, the functions that break it."""
  known = classes(modules)
  found: dict[str, list[str]] = {"missing": [], "raises": [], "shapes": []}
  for path, module in modules.items():
    for function in defined(module.body, f"{path}: "):
      above = inherited(function, known)
      docs = "\n".join([function.doc, *(method.doc for method in above)])
      if not docs.strip():
        if function.node.name not in OF_FLAX:
          found["missing"].append(function.name)
        continue
      if raises(function.node) and "Raises:" not in docs:
        found["raises"].append(function.name)
      if has_arrays(function.node) and not SHAPE.search(docs):
        found["shapes"].append(function.name)
  return found


@pytest.fixture(scope="module")
def broken() -> dict[str, list[str]]:
  return faults(package())


def test_every_function_says_what_it_does(broken):
  assert not broken["missing"]


def test_every_exception_is_told(broken):
  assert not broken["raises"]


def test_every_array_has_a_shape(broken):
  assert not broken["shapes"]


@pytest.mark.parametrize(
  ("rule", "source"),
  [
    ("missing", "def f():\n  return 1"),
    ("missing", "class f:\n  def g(self):\n    return 1"),
    ("raises", "def f():\n  'Does.'\n  raise ValueError('no')"),
    ("shapes", "def f(a: np.ndarray | None):\n  'Does.'"),
    ("shapes", "def f() -> tuple[Array, Array]:\n  'Does.'"),
  ],
)
def test_rules_find(rule, source):
  found = faults({"a.py": ast.parse(source)})
  assert [name.partition(".py: f")[0] for name in found.pop(rule)] == ["a"]
  assert not any(found.values())


@pytest.mark.parametrize(
  "source",
  [
    "def _f():\n  raise ValueError",
    "def f():\n  'Does.\\n\\nRaises:\\n  ValueError: no.'\n  raise ValueError",
    "def f(a: Array):\n  'Of [n].'",
    "def f(a: dict[str, Array]):\n  'Does.'",
    "class A:\n  def f(self):\n    'Does.'\nclass B(A):\n  def f(self): pass",
  ],
)
def test_rules_leave_alone(source):
  assert not any(faults({"a.py": ast.parse(source)}).values())
