"""In a bucket a checkpoint has its name before it is finished."""

import jax
import numpy as np
import pytest

import must_jax
from must_jax.config import base_config, smoke, task
from must_jax.storage import path as path_lib
from must_jax.storage.path import Path, read_file
from must_jax.train import checkpoint
from must_jax.train.build import build_model, build_tasks
from must_jax.train.state import init_variables


def copy_step(root, source, target, without=""):
  for name in path_lib.list_tree(root / source):
    if name != without:
      with path_lib.publish(root / target / name) as file:
        file.write(read_file(root / source / name))


def test_an_unfinished_last_step_is_passed_over(bucket):
  workdir = f"{bucket.root}/run"
  config = base_config()
  config.tasks.depth = task("depth", labels={})
  config = smoke(config)
  config.model.channels = 8
  model = build_model(config, build_tasks(config))
  variables = jax.device_get(init_variables(model, (64, 64), jax.random.key(0)))
  checkpoint.write_variables(workdir, config, dict(variables), {})
  root = Path(workdir) / "checkpoints"
  last = "commit_success.txt"
  assert path_lib.is_file(root / "0" / last)  # orbax still says so
  copy_step(root, "0", "5", without=last)

  assert checkpoint.find(workdir) == root / "0"
  with pytest.raises(FileNotFoundError, match="5 was not saved to its end"):
    checkpoint.find(root / "5")
  loaded = must_jax.load(workdir)
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)

  copy_step(root, "0", "7")
  assert checkpoint.find(workdir) == root / "7"
