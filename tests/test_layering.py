"""The house of docs/architecture.md: imports go one way."""

import ast
import pathlib
import subprocess
import sys

import pytest

import must_jax

PACKAGE = pathlib.Path(must_jax.__file__).parent
# A line may import the lines above it, and its own.
LAYERS = (
  "types",
  "ops",
  "models",
  "losses",
  "weighting",
  "metrics",
  "tasks",
  "config",
  "storage",
  "input",
  "importers",
  "train",
  "pseudo_label",
  "convert",
  "export",
  "main",
  "preflight",
  "lab",
  "cli",
)
# These run where TensorFlow is not installed.
CORE = ("types", "ops", "models", "losses", "weighting", "metrics", "tasks")
CORE_FILES = tuple(
  f"train/{name}.py"
  for name in ("mesh", "optimizer", "guard", "state", "gradients", "step")
)
CORE_LIBRARIES = {"jax", "flax", "optax", "numpy", "must_jax"}


def imports(path, top_level_only=False):
  tree = ast.parse(path.read_text())
  nodes = tree.body if top_level_only else ast.walk(tree)
  for node in nodes:
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files():
  return sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.name))
def test_imports_go_one_way(path):
  layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
  allowed = LAYERS[: LAYERS.index(layer) + 1]
  for name in imports(path):
    if name.startswith("must_jax."):
      assert name.split(".")[1] in allowed, f"{layer} imports {name}"


@pytest.mark.parametrize(
  "path",
  [p for p in files() if p.relative_to(PACKAGE).parts[0] in CORE]
  + [PACKAGE / "types.py"]
  + [PACKAGE / f for f in CORE_FILES],
  ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_core_needs_few_libraries(path):
  for name in imports(path, top_level_only=True):
    library = name.split(".")[0]
    assert library in CORE_LIBRARIES or library in sys.stdlib_module_names


def run(code):
  return subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )


def test_import_starts_neither_tensorflow_nor_a_backend():
  result = run(
    "import sys, must_jax\n"
    "assert 'tensorflow' not in sys.modules\n"
    "assert 'jax' not in sys.modules\n"
    "import must_jax.tasks, must_jax.train.step, must_jax.train.mesh\n"
    "assert 'tensorflow' not in sys.modules\n"
    "from jax._src import xla_bridge\n"
    "assert not xla_bridge._backends, 'a JAX backend was started'\n"
  )
  assert result.returncode == 0, result.stderr
