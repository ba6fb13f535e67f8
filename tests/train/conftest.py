import pytest

from must_jax import config as config_lib
from must_jax.config import base_config, dataset, task
from must_jax.lab import world as world_lib


@pytest.fixture(scope="session")
def world(tmp_path_factory):
  """A few images of the embedded world."""
  directory = tmp_path_factory.mktemp("world")
  counts = {
    "pile_truth": {"train": 24},
    "src_cls": {"train": 24, "validation": 12},
  }
  world_lib.build(directory, 64, counts, num_shards=2, workers=1)
  return directory


@pytest.fixture
def make_config(world):
  """Makes the config of a short run on some kinds of tasks."""

  def make(*kinds, steps=6, **options):
    config = base_config()
    config.datasets.all = dataset(str(world / "pile_truth"), "train")
    config.train_on = ("all",)
    for kind in kinds:
      config.tasks[kind] = task(kind, labels={"all": "supervised"})
    config = config_lib.smoke(config)
    config.train.update({"steps": steps, "checkpoint_every": 3})
    config.train.log_every = 1
    config.update_from_flattened_dict(options)
    config_lib.validate(config)
    return config

  return make
