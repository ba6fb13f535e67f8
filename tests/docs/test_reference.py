"""The generated pages of the reference have all that there is."""

import argparse
import pathlib
import re
import sys

import pytest

from must_jax import cli
from must_jax import config as config_lib
from must_jax.fields import KINDS
from must_jax.tasks import TASKS, task_options
from must_jax.weighting import METHODS

pytest.importorskip(
  "sphinx", reason="the site is made by Sphinx: must_jax[docs]"
)
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reference():
  sys.path.insert(0, str(ROOT / "docs" / "extensions"))
  try:
    import reference
    import reference.config

    yield reference
  finally:
    sys.path.remove(str(ROOT / "docs" / "extensions"))


@pytest.fixture(scope="module")
def pages(reference):
  return reference.pages()


def commands(parser):
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction):
      for command in action.choices.values():
        yield command
        yield from commands(command)


def section(page, heading):
  """The text below a heading, up to the next one."""
  _, found, rest = page.partition(f"# {heading}\n")
  assert found, heading
  return rest.partition("\n#")[0]


def test_every_command_is_named(pages):
  page = pages["command-line.md"]
  known = [command.prog for command in commands(cli.make_parser())]
  assert "must-jax import coco" in known and "must-jax train" in known
  assert sorted(known) == sorted(
    re.findall(r"^#+ (must-jax .+)$", page, re.MULTILINE)
  )


def test_every_option_of_a_command_is_named(pages):
  page = pages["command-line.md"]
  shared = section(page, "Options of every import")
  for command in commands(cli.make_parser()):
    text = section(page, command.prog)
    if "#options-of-every-import" in text:
      text += shared
    # A dataset that has a name has the options of its importer.
    for other in re.findall(r"\(#must-jax-import-(\w+)\)", text):
      text += section(page, f"must-jax import {other}")
    for action in command._actions:
      for name in action.option_strings:
        if name not in ("-h", "--help"):
          assert re.search(rf"{{option}} (.*, )?{name}( |$|,)", text, re.M), (
            command.prog,
            name,
          )


def test_every_flag_of_a_run_is_named(pages, reference):
  text = section(pages["command-line.md"], "Flags of a run")
  names = [flag.name for flag in reference.command_line.run_flags()]
  assert {"config", "workdir", "runner"} <= {*names}
  for name in names:
    assert f"{{option}} --{name}=" in text


def test_every_option_of_a_config_is_explained(pages):
  page = pages["config.md"]
  for name in config_lib.options(config_lib.base_config()):
    assert re.search(
      rf"^```{{confval}} {re.escape(name)}\n\S.*\.\n\n(Default|Takes)",
      page,
      re.MULTILINE,
    ), f"{name} has no comment in base_config()"


def test_every_option_of_a_task_is_explained(pages):
  page = pages["config.md"]
  for kind in TASKS:
    for name in task_options(kind):
      assert re.search(
        rf"^```{{confval}} {kind}\.{name}\n\S.*\.\n\nDefault",
        page,
        re.MULTILINE,
      ), f"{kind}.{name} is not among the attributes of its class's docstring"


def test_ranges_and_words_are_of_options():
  names = config_lib.options(config_lib.base_config())
  assert {*config_lib.RANGES} | {*config_lib.CHOICES} <= {*names}
  for task in TASKS.values():
    known = task_options(next(k for k, t in TASKS.items() if t is task))
    assert {*task.ranges} | {*task.choices} <= {*known}


def test_what_an_option_takes(pages):
  page = pages["config.md"]
  assert "`resnet50`, `resnet101`" in page
  for words in (METHODS, config_lib.OPTIMIZERS):
    assert ", ".join(f"`{word}`" for word in words) in page
  assert (
    "Default: `(640, 640)`. Takes two whole numbers, 1 or more each" in page
  )
  assert "Default: `450_000`" in page and "Origin: paper: 90 epochs" in page


def test_entries_of_datasets_and_tasks(pages):
  page = pages["config.md"]
  for name, words in {
    "datasets.NAME.dir": "Where the image set is",
    "datasets.NAME.split": "Name of the split",
    "datasets.NAME.share": "How often its images are drawn",
    "tasks.NAME.kind": "What the task does",
    "tasks.NAME.labels": "Where the task's labels come from",
    "tasks.NAME.weight": "Factor of the task's loss",
    "tasks.NAME.classes": "Class names",
  }.items():
    assert f"```{{confval}} {name}\n{words}" in page
  assert "Default: `1.0`. Takes a number, more than 0." in page


def test_comments_are_read(reference):
  source = (
    "def f():\n  return C({\n    # Of a\n    # kind.\n    'a': 1,  # paper\n"
    "    # Group.\n    'g': {\n      # Below.\n      'b': (1,),\n    },\n  })\n"
  )
  told = reference.config.comments(source)
  assert told == {
    "a": ("Of a kind.", "paper"),
    "g": ("Group.", ""),
    "g.b": ("Below.", ""),
  }


def test_every_shipped_config_is_there(pages):
  page = pages["configs.md"]
  for name in config_lib.shipped():
    text = section(page, name)
    assert f"must-jax label {name}" in text or f"must-jax train {name}" in text
    assert "rguments" in text
  student = section(page, "student")
  assert "- `images=data/imagenet`, `split=train`: an imported" in student
  assert "[student](#student). Other defaults: `images=data/jft`" in page


def test_every_module_is_documented(pages):
  text = "\n".join(pages.values())
  found = re.findall(r"automodule:: (\S+)", text)
  files = (ROOT / "must_jax").rglob("*.py")
  parts = [file.relative_to(ROOT).with_suffix("").parts for file in files]
  known = {".".join(p) for p in parts if "configs" not in p}
  assert sorted(found) == sorted(n.removesuffix(".__init__") for n in known)


def test_what_users_call_comes_first(pages, reference):
  front = pages["api.md"]
  for names in reference.api.USED.values():
    for name in names:
      assert reference.api.find(name).__doc__
      assert f"`{name}`: " in front
  for kind in (*TASKS.values(), *KINDS.values()):
    assert f"{kind.__module__}.{kind.__name__}`" in front


def test_pages_are_the_same_each_time(pages, reference, monkeypatch):
  monkeypatch.setenv("COLUMNS", "40")  # of the terminal
  assert reference.pages() == pages
  text = "\n".join(pages.values())
  assert not re.search(r" at 0x[0-9a-f]{6}|/tmp/|/home/|/root/", text)


def test_only_changes_are_written(reference, tmp_path):
  reference.write(tmp_path)
  old = tmp_path / "api" / "old.md"
  old.write_text("of a part that is no more")
  changed = tmp_path / "config.md"
  changed.write_text("other")
  times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.md")}
  reference.write(tmp_path)
  assert not old.exists() and changed.read_text() != "other"
  for path in tmp_path.rglob("*.md"):
    assert (path.stat().st_mtime_ns == times[path]) == (path != changed)
