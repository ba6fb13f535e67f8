"""The modules of docs/architecture.md: one way in, one name for one thing."""

import ast
import collections
import pathlib
import signal
import subprocess
import sys

import pytest

import must_jax
from must_jax.fields import KINDS

PACKAGE = pathlib.Path(must_jax.__file__).parent
# A line may import the lines above it, and its own.
LAYERS = (
  "types",
  "ranges",
  "signals",
  "fields",
  "pictures",
  "ops",
  "models",
  "losses",
  "weighting",
  "metrics",
  "tasks",
  "config",
  "quiet_tensorflow",
  "storage",
  "input",
  "importers",
  "annotations",
  "train",
  "pseudo_label",
  "curation",
  "convert",
  "export",
  "preflight",
  "stage",
  "main",
  "lab",
  "cli",
)
# These run where TensorFlow is not installed.
CORE = LAYERS[: LAYERS.index("config")]
CORE_FILES = tuple(
  f"train/{name}.py"
  for name in (
    "mesh",
    "compile_options",
    "optimizer",
    "guard",
    "state",
    "gradients",
    "step",
  )
)
CORE_LIBRARIES = {"jax", "flax", "optax", "numpy", "must_jax"}

# Names that several modules have, and why that is one thing.
SAME_SUBJECT = {
  "boxes": "the field, and operations on it",
  "classification": "the task, and its losses",
  "coco": "the metric, and a format of annotations",
  "contrastive": "the task, and its loss",
  "cvat": "a format of annotations, and an importer of it",
  "depth": "the task, its metric, and an importer of it",
  "detection": "the task, and its losses",
  "label_studio": "a format of annotations, and an importer of it",
  "masks": "a format of annotations, and an importer of it",
  "midas": "the published networks, and their weights",
  "normals": "the task, its metric, and an importer of it",
  "voc": "the dataset, and its metric",
  "yolo": "a format of annotations, and an importer of it",
}
SAME_CLASS = {"Block": "of ResNet, and of EfficientNet"}


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
  """All modules, but for the package's own."""
  return sorted({*PACKAGE.rglob("*.py")} - {PACKAGE / "__init__.py"})


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.name))
def test_imports_go_one_way(path):
  layer = room(path)
  allowed = LAYERS[: LAYERS.index(layer) + 1]
  for name in imports(path):
    if name.startswith("must_jax."):
      assert name.split(".")[1] in allowed, f"{layer} imports {name}"


def room(path):
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize(
  "path",
  [p for p in files() if room(p) in CORE]
  + [PACKAGE / "fields" / "__init__.py", PACKAGE / "tasks" / "__init__.py"]
  + [PACKAGE / f for f in CORE_FILES],
  ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_core_needs_few_libraries(path):
  for name in imports(path, top_level_only=True):
    library = name.split(".")[0]
    assert library in CORE_LIBRARIES or library in sys.stdlib_module_names


def names_of_kinds(path):
  """Kinds of label field that a module names, outside of its prose."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Name):
      yield node.id
    elif isinstance(node, ast.Attribute):
      yield node.attr
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      yield node.value
    elif isinstance(node, ast.ImportFrom):
      yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.name))
def test_only_fields_tasks_and_formats_know_kinds(path):
  """`lab/world` is the importer of its own scenes."""
  where = path.relative_to(PACKAGE)
  if room(path) in ("fields", "tasks", "importers", "annotations") or (
    where.parts[:2] == ("lab", "world")
  ):
    return
  assert not {*KINDS} & {*names_of_kinds(path)}


def test_every_room_is_a_package():
  for path in files():
    assert (path.parent / "__init__.py").exists(), path.parent


def test_files_are_reached_through_storage():
  for path in files():
    if path.relative_to(PACKAGE).parts != ("storage", "path.py"):
      assert not any(name.startswith("etils") for name in imports(path)), path


def test_nothing_else_imports_the_lab():
  for path in files():
    if room(path) not in ("lab", "cli"):
      assert not any(name.startswith("must_jax.lab") for name in imports(path))


def test_one_name_is_one_thing():
  modules, classes = collections.Counter(), collections.Counter()
  for path in files():
    modules[path.stem] += path.stem != "__init__"
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        classes[node.name] += 1
  assert {n for n, count in modules.items() if count > 1} == {*SAME_SUBJECT}
  assert {n for n, count in classes.items() if count > 1} == {*SAME_CLASS}
  assert not {*modules} & {"base", "utils", "common", "helpers", "command"}


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
    "from must_jax import cli\n"
    "cli.make_parser()  # which every command waits for\n"
    "assert 'tensorflow' not in sys.modules\n"
  )
  assert result.returncode == 0, result.stderr


def test_tensorflow_is_imported_quietly():
  result = run(
    "import must_jax.pseudo_label.worker, must_jax.train.loop\n"
    "import must_jax.importers.parts, must_jax.storage.verify\n"
    "from must_jax.quiet_tensorflow import tf\n"
    "tf.constant(0)\n"
  )
  assert (result.returncode, result.stderr) == (0, "")


def test_one_module_imports_tensorflow():
  """But for the core, whose kinds of field are asked by the others.

  A program that stands alone cannot import the one that does.
  """
  found = {
    str(path.relative_to(PACKAGE))
    for path in files()
    if room(path) not in CORE
    and path.name != "runner.py"
    and any(name.split(".")[0] == "tensorflow" for name in imports(path))
  }
  assert found == {"quiet_tensorflow.py"}


def test_what_fails_while_stderr_is_kept_is_told():
  result = run(
    "import os\n"
    "from must_jax.quiet_tensorflow import quiet\n"
    "with quiet():\n"
    "  os.write(2, b'a greeting')\n"
    "with quiet():\n"
    "  os.write(2, b'a reason')\n"
    "  raise SystemExit(3)\n"
  )
  assert (result.returncode, result.stderr) == (3, "a reason")


def test_where_it_crashes_while_stderr_is_kept_is_told():
  result = run(
    "import os\n"
    "from must_jax.quiet_tensorflow import quiet\n"
    "with quiet():\n"
    "  os.abort()\n"
  )
  assert result.returncode == -signal.SIGABRT
  assert "Fatal Python error: Aborted" in result.stderr
  assert "line 4 in <module>" in result.stderr
