import importlib
import os
import subprocess
import sys

import pytest

from must_jax.lab.code_version import code_version, modules
from must_jax.lab.demo import write_report
from must_jax.lab.render import render
from must_jax.lab.train_and_label import label, train

FILES = {
  "__init__.py": "",
  "work.py": '''\
"""Work."""

from PACKAGE.helpers import tool


def work(directory):
  """Works."""
  from PACKAGE import late

  return tool.use() + late.VALUE
''',
  "work.html": "<p>",
  "helpers/__init__.py": "KINDS = ()\n",
  "helpers/tool.py": "def use():\n  return 1\n",
  "late.py": "VALUE = 1\n",
  "unrelated.py": "VALUE = 1\n",
  "helpers/unrelated.py": "VALUE = 1\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A package of a name of its own, as modules are imported once."""
  name = f"code_version_{os.urandom(4).hex()}"
  directory = tmp_path / name
  for path, text in FILES.items():
    (directory / path).parent.mkdir(parents=True, exist_ok=True)
    (directory / path).write_text(text.replace("PACKAGE", name))
  monkeypatch.syspath_prepend(tmp_path)
  importlib.invalidate_caches()
  return directory


def work_of(package):
  return importlib.import_module(f"{package.name}.work").work


def edit(path, old, new):
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new))


def test_a_package_counts_where_something_of_it_is_imported(package):
  (package / "__init__.py").write_text("def load():\n  pass\n")
  function = work_of(package)
  assert package.name not in modules(function)
  edit(package / "late.py", "VALUE", f"from {package.name} import load\nVALUE")
  assert package.name in modules(function)


def test_counted_are_the_modules_that_a_function_reaches(package):
  found = modules(work_of(package))
  name = package.name
  assert set(found) == {
    f"{name}.work",
    f"{name}.helpers",
    f"{name}.helpers.tool",
    f"{name}.late",
  }


@pytest.mark.parametrize(
  ("path", "old", "new"),
  [
    ("work.py", "tool.use() +", "tool.use() -"),
    ("work.py", "directory", "folder"),
    ("work.html", "<p>", "<b>"),
    ("helpers/__init__.py", "()", "(1,)"),
    ("helpers/tool.py", "return 1", "return 2"),
    ("late.py", "VALUE = 1", "VALUE = 2"),
    ("late.py", "VALUE = 1", "VALUE = 1.0"),
  ],
)
def test_other_code_is_another_version(package, path, old, new):
  before = code_version(work_of(package))
  edit(package / path, old, new)
  assert code_version(work_of(package)) != before
  edit(package / path, new, old)
  assert code_version(work_of(package)) == before


@pytest.mark.parametrize(
  ("path", "old", "new"),
  [
    ("work.py", '"""Works."""', '"""Works hard.\n\n  Really.\n  """'),
    ("work.py", '"""Work."""\n', ""),
    ("work.py", "  return", "  # Why.\n\n  return"),
    ("work.py", "tool.use() + late.VALUE", "(tool.use()\n    + late.VALUE)"),
    ("helpers/tool.py", "return 1", "return 1  # one"),
    ("unrelated.py", "1", "2"),
    ("helpers/unrelated.py", "1", "2"),
    ("__init__.py", "", "X = 1"),
  ],
)
def test_the_same_code_is_the_same_version(package, path, old, new):
  before = code_version(work_of(package))
  edit(package / path, old, new)
  assert code_version(work_of(package)) == before


def rooms(function):
  """What of the package a function reaches, to two levels."""
  return {".".join(name.split(".")[1:3]) for name in modules(function)}


def test_stages_depend_on_what_they_run():
  assert "lab.world" in rooms(render)
  assert "storage.set_writer" in rooms(render)
  for function in (train, label):
    assert {
      "losses.dense",
      "models.resnet",
      "input.geometry",
      "tasks.detection",
      "weighting.pcgrad",
      "train.loop",
      "pseudo_label.worker",
      "storage.tfrecord",
    } <= rooms(function)
  assert {"lab.report_page", "lab.galleries"} <= rooms(write_report)


def test_stages_do_not_depend_on_other_rooms():
  assert not {name.split(".")[0] for name in rooms(render)} & {
    "train",
    "models",
    "losses",
    "preflight",
    "export",
    "importers",
  }
  for function in (train, label):
    found = rooms(function)
    assert not {n.split(".")[0] for n in found} & {
      *("preflight", "export", "importers", "convert", "cli")
    }
    assert {n for n in found if n.startswith("lab")} == {
      "lab",
      "lab.train_and_label",
    }


def test_what_rendering_imports_is_counted(tmp_path):
  code = f"""
import pathlib, sys
from must_jax.lab.render import render
render(pathlib.Path({str(tmp_path)!r}), "src_det", {{"train": 1}})
imported = {{
  name for name, module in sys.modules.items()
  if name.startswith("must_jax.") and module.__file__
}}
from must_jax.lab.code_version import modules
missing = imported - modules(render).keys()
assert not missing, missing
"""
  subprocess.run([sys.executable, "-c", code], check=True)
