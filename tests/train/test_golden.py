"""Checkpoints of every format that was ever written can be read for ever."""

import importlib.util
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

import must_jax
from must_jax.train import checkpoint
from must_jax.train.build import build

VERSIONS = (1, 2)


def _script():
  path = pathlib.Path(__file__).with_name("make_golden_checkpoint.py")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


golden = _script()


@pytest.fixture(scope="module", params=VERSIONS)
def version(request):
  return request.param


@pytest.fixture(scope="module")
def workdir(version, tmp_path_factory):
  directory = tmp_path_factory.mktemp("golden")
  archive = golden.GOLDEN / f"checkpoint_v{version}.zip"
  shutil.unpack_archive(archive, directory)
  return directory


@pytest.fixture(scope="module")
def program():
  return build(golden.make_config(), devices=jax.devices()[:1])


def expected(state):
  return jax.tree_util.tree_map_with_path(golden.value_at, state)


def test_there_is_one_of_every_readable_version():
  assert checkpoint._READABLE == VERSIONS
  assert VERSIONS[-1] == checkpoint.FORMAT_VERSION


def test_variables_are_those_that_were_saved(version, workdir, program):
  state = expected(program.abstract_state)
  if version == 1:  # it kept no averages
    state = state.replace(ema={})
  variables = checkpoint.load_variables(workdir)
  assert set(variables) == {"params", "batch_stats"}
  for kind, tree in variables.items():
    jax.tree.map(np.testing.assert_array_equal, tree, state.variables[kind])


def test_predicts_what_it_predicted(version, workdir):
  model = must_jax.load(workdir)
  assert model.tasks["color"].classes == ("red", "green", "blue")
  found = golden.summarize(model.predictor()(golden.make_images()))
  file = golden.GOLDEN / f"checkpoint_v{version}.json"
  for name, arrays in json.loads(file.read_text()).items():
    for key, values in arrays.items():
      np.testing.assert_allclose(found[name][key], values, atol=1e-4)


def test_training_goes_on_from_the_current_version_only(
  version, workdir, program, tmp_path
):
  # Opening a directory of checkpoints to go on from it may change it.
  copy = shutil.copytree(workdir, tmp_path / "run")
  checkpoints = checkpoint.Checkpoints(copy, program.config)
  if version == checkpoint.FORMAT_VERSION:
    state = checkpoints.restore(program.abstract_state)
    jax.tree.map(
      np.testing.assert_array_equal, state, expected(program.abstract_state)
    )
  else:
    with pytest.raises(checkpoint.OtherFormatError, match=r"config.init_from"):
      checkpoints.restore(program.abstract_state)
    assert checkpoint.find(copy).name == "7"
  checkpoints.close()


def test_warm_start_takes_all_of_it(workdir, program):
  start = checkpoint.WarmStart(
    program.abstract_state,
    workdir,
    ("backbone", "fpn", "heads"),
    {name: task.classes for name, task in program.tasks.items()},
    program.config.model,
  )
  assert start.table.count("loaded") == 4
  assert "fresh" not in start.table and "unused" not in start.table
  state = start(program.create_state())
  loaded = checkpoint.load_variables(workdir)
  assert checkpoint.digest(state.params) == checkpoint.digest(loaded["params"])
