import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from must_jax.lab.stages import StageError, Stages


def count(directory, step):
  """Counts how often it was run, beside its result."""
  path = pathlib.Path(directory) / "runs"
  path.write_text(path.read_text() + "x" if path.exists() else "x")
  return step + 1


def nothing(directory):
  """Returns None, which is a result like any other."""
  count(directory, 0)


def fail(directory):
  raise ValueError("no luck")


def fail_once(directory):
  """As a stage that is killed half way."""
  half = directory / "half"
  if not half.exists():
    half.touch()
    raise ValueError("no luck")
  return "went on"


def wait(directory):
  (directory / "pid").write_text(str(os.getpid()))
  time.sleep(600)


def tunables(directory):
  return os.environ.get("GLIBC_TUNABLES")


def add(directory, *parents):
  values = [
    json.loads((pathlib.Path(p) / "stage.json").read_text())["result"]
    for p in parents
  ]
  return sum(values)


def build(workdir, jobs=2):
  stages = Stages(workdir, jobs)
  one = stages.add("one", count, 1)
  two = stages.add("two", count, 2)
  total = stages.add("sum", add, str(one), str(two), after=(one, two))
  return stages, one, total


def test_stages_run_once_and_in_order(tmp_path):
  stages, one, total = build(tmp_path)
  stages.run()
  assert stages[total].result == 5
  again, one_again, _ = build(tmp_path, jobs=1)
  again.run()
  assert one_again == one
  assert (one / "runs").read_text() == "x"
  assert again[total].seconds >= 0


def test_what_the_longest_chains_wait_for_goes_first(tmp_path, capsys):
  stages = Stages(tmp_path, jobs=1)
  stages.add("alone", count, 0)
  short = stages.add("short", count, 1)
  stages.add("last of short", count, 2, after=(short,))
  long = stages.add("long", count, 3)
  middle = stages.add("middle", count, 4, after=(long,))
  # Although more wait for it, they need not wait for each other.
  for i in range(3):
    stages.add(f"beside {i}", count, 5 + i, after=(short,))
  stages.add("last of long", count, 8, after=(middle, short))
  stages.run()
  lines = capsys.readouterr().out.splitlines()
  names = [line.split("]")[1].rsplit(maxsplit=2)[0].strip() for line in lines]
  assert names[:3] == ["long", "short", "middle"]
  assert names[-1] == "last of long"
  assert len(names) == len(stages)


def test_stage_without_a_result_is_done_as_well(tmp_path):
  for _ in range(2):
    stages = Stages(tmp_path, 1)
    directory = stages.add("nothing", nothing)
    stages.run()
  assert (directory / "runs").read_text() == "x"


@pytest.mark.parametrize("own", ["", "glibc.malloc.check=1"])
def test_workers_have_large_pages(tmp_path, monkeypatch, own):
  monkeypatch.setenv("GLIBC_TUNABLES", own)  # which is put back
  if not own:
    monkeypatch.delenv("GLIBC_TUNABLES")
  stages = Stages(tmp_path, jobs=1)
  directory = stages.add("it", tunables)
  stages.run()
  assert stages[directory].result == (own or "glibc.malloc.hugetlb=1")


def test_changed_arguments_are_another_stage(tmp_path):
  stages = Stages(tmp_path, 1)
  assert stages.add("a", count, 1) != stages.add("a", count, 2)
  moved = Stages(tmp_path / "elsewhere", 1)
  here = stages.add("a", count, str(tmp_path / "x"))
  there = moved.add("a", count, str(tmp_path / "elsewhere" / "x"))
  assert here.name == there.name


def test_failure_names_the_stage_and_keeps_the_others(tmp_path):
  stages = Stages(tmp_path, 1)
  good = stages.add("good", count, 1)
  bad = stages.add("bad", fail, after=(good,))
  with pytest.raises(StageError, match=r"'bad' failed: no luck") as info:
    stages.run()
  assert str(bad / "log.txt") in str(info.value)
  assert stages[good].result == 2
  assert not stages[bad].is_done


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_a_command_that_is_killed(tmp_path, number):
  code = (
    "import sys; from must_jax.lab.stages import Stages;"
    f"sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\n"
    "import test_stages\n"
    "if __name__ == '__main__':\n"
    f"  stages = Stages({str(tmp_path)!r}, 1)\n"
    "  stages.add('wait', test_stages.wait)\n"
    "  stages.run()\n"
  )
  script = tmp_path / "script.py"
  script.write_text(code)
  with subprocess.Popen([sys.executable, script]) as process:
    pid = int(until(lambda: [p.read_text() for p in tmp_path.rglob("pid")])[0])
    process.send_signal(number)
  until(lambda: not pathlib.Path(f"/proc/{pid}").exists())


def until(found, seconds=60):
  """What a function returns, once that is something."""
  end = time.monotonic() + seconds
  while not (result := found()):
    assert time.monotonic() < end
    time.sleep(0.05)
  return result


def test_what_was_cut_short_is_called_again_in_the_same_directory(tmp_path):
  stages = Stages(tmp_path, 1)
  directory = stages.add("half", fail_once)
  with pytest.raises(StageError):
    stages.run()
  assert not stages[directory].is_done
  again = Stages(tmp_path, 1)
  assert again.add("half", fail_once) == directory
  again.run()
  assert again[directory].result == "went on"


# --- Changed code -------------------------------------------------------------


MODULES = {
  "__init__": "",
  "first": "def first(directory):\n  return 1\n",
  "second": (
    "from stages_of_a_test.helper import FACTOR\n\n\n"
    "def second(directory, other):\n  return FACTOR\n"
  ),
  "helper": "FACTOR = 2\n",
  "unrelated": "X = 1\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A package with the functions of two stages; its name is `package.name`."""
  directory = tmp_path / "stages_of_a_test"
  directory.mkdir()
  for name, text in MODULES.items():
    (directory / f"{name}.py").write_text(text)
  monkeypatch.syspath_prepend(tmp_path)
  yield directory
  for name in [n for n in sys.modules if n.startswith(directory.name)]:
    del sys.modules[name]


@pytest.fixture
def chain(package, tmp_path):
  """Adds two stages, the second after the first; gives their directories."""

  def make():
    importlib.invalidate_caches()
    first = importlib.import_module(f"{package.name}.first").first
    second = importlib.import_module(f"{package.name}.second").second
    stages = Stages(tmp_path / "run", 1)
    one = stages.add("first", first)
    two = stages.add("second", second, str(one), after=(one,))
    return stages, one, two

  return make


def edit(path, text):
  """Writes a module anew, with another time of change."""
  before = path.stat().st_mtime_ns
  path.write_text(text)
  while path.stat().st_mtime_ns == before:
    path.touch()


def test_changed_code_runs_in_a_new_directory(package, chain, capsys):
  stages, one, two = chain()
  stages.run()
  assert not stages.outdated
  edit(package / "helper.py", "FACTOR = 3\n")
  stages, one_again, two_again = chain()
  assert one_again == one
  assert two_again != two
  assert [stage.name for stage in stages.outdated] == ["second"]
  capsys.readouterr()
  stages.run()
  assert capsys.readouterr().out.splitlines()[:2] == [
    "1 of 2 stages are there from an earlier run.",
    "1 of 2 stages were made by other code and run again.",
  ]
  assert stages[two_again].result == 3
  assert not stages.outdated
  assert json.loads((two / "stage.json").read_text())["result"] == 2

  edit(package / "helper.py", "FACTOR = 2\n")
  stages, _, two_again = chain()
  assert two_again == two
  assert stages[two].is_done


def test_stages_after_changed_code_run_again(package, chain):
  stages, one, two = chain()
  stages.run()
  edit(package / "first.py", "def first(directory):\n  return 10\n")
  stages, one_again, two_again = chain()
  assert one_again != one
  assert two_again != two
  assert [stage.name for stage in stages.outdated] == ["first", "second"]


@pytest.mark.parametrize(
  ("module", "text"),
  [
    ("helper", '"""About it."""\n\nFACTOR = 2  # why\n'),
    ("unrelated", "X = 2\n"),
  ],
)
def test_comments_and_other_modules_change_nothing(
  package, chain, module, text
):
  before = chain()[1:]
  edit(package / f"{module}.py", text)
  assert chain()[1:] == before


def test_code_that_changes_while_stages_run_fails_them(
  package, chain, monkeypatch
):
  stages, one, _ = chain()
  # Only this process asks; the cache of compiled programs is another's.
  monkeypatch.setattr("must_jax.lab.stages._set_up", lambda cache: None)
  edit(package / "first.py", "def first(directory):\n  return 10\n")
  with pytest.raises(StageError, match="code was changed while stages ran"):
    stages.run_one(one)
  assert not stages[one].is_done
