import json
import pathlib

import pytest

from must_jax.lab.stages import Pipeline, StageError


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


def add(directory, *parents):
  values = [
    json.loads((pathlib.Path(p) / "stage.json").read_text())["result"]
    for p in parents
  ]
  return sum(values)


def build(workdir, jobs=2):
  pipeline = Pipeline(workdir, jobs)
  one = pipeline.add("one", count, 1)
  two = pipeline.add("two", count, 2)
  total = pipeline.add("sum", add, str(one), str(two), after=(one, two))
  return pipeline, one, total


def test_stages_run_once_and_in_order(tmp_path):
  pipeline, one, total = build(tmp_path)
  pipeline.run()
  assert pipeline.stages[total].result == 5
  again, one_again, _ = build(tmp_path, jobs=1)
  again.run()
  assert one_again == one
  assert (one / "runs").read_text() == "x"
  assert again.stages[total].seconds >= 0


def test_stage_without_a_result_is_done_as_well(tmp_path):
  for _ in range(2):
    pipeline = Pipeline(tmp_path, 1)
    directory = pipeline.add("nothing", nothing)
    pipeline.run()
  assert (directory / "runs").read_text() == "x"


def test_changed_arguments_are_another_stage(tmp_path):
  pipeline = Pipeline(tmp_path, 1)
  assert pipeline.add("a", count, 1) != pipeline.add("a", count, 2)
  moved = Pipeline(tmp_path / "elsewhere", 1)
  here = pipeline.add("a", count, str(tmp_path / "x"))
  there = moved.add("a", count, str(tmp_path / "elsewhere" / "x"))
  assert here.name == there.name


def test_failure_names_the_stage_and_keeps_the_others(tmp_path):
  pipeline = Pipeline(tmp_path, 1)
  good = pipeline.add("good", count, 1)
  bad = pipeline.add("bad", fail, after=(good,))
  with pytest.raises(StageError, match=r"'bad' failed: no luck") as info:
    pipeline.run()
  assert str(bad / "log.txt") in str(info.value)
  assert pipeline.stages[good].result == 2
  assert not pipeline.stages[bad].is_done
