"""A labelling job whose two workers are killed twenty times, with a network."""

import multiprocessing
import random
import time

import jax
import pytest

from must_jax.config import base_config, dataset, smoke, task
from must_jax.lab import world as world_lib
from must_jax.main import run_stage
from must_jax.storage.sets import ImageSet
from must_jax.train import checkpoint
from must_jax.train.build import build_model, build_tasks
from must_jax.train.state import init_variables

KILLS = 20
SHARDS = 60


@pytest.fixture(scope="module")
def processes():
  """Starts processes that have imported everything already."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["must_jax.main", "must_jax.pseudo_label"])
  return context


def make_job(tmp_path):
  """A teacher of two tasks, and a job of many small shards for one of them."""
  counts = {"pile": {"train": 4 * SHARDS}}
  world_lib.build(tmp_path / "world", 48, counts, SHARDS, workers=1)
  config = base_config()
  config.tasks.depth = task("depth", labels={})
  config = smoke(config)
  config.model.channels = 8
  model = build_model(config, build_tasks(config))
  init = jax.jit(lambda key: init_variables(model, (64, 64), key))
  variables = jax.device_get(init(jax.random.key(0)))
  checkpoint.write_variables(
    tmp_path / "teacher", config, dict(variables), {"kind": "test"}
  )
  job = smoke(base_config())
  job.stage = "label"
  job.datasets.images = dataset(tmp_path / "world/pile", "train")
  job.label.update(
    {"teacher": str(tmp_path / "teacher"), "dataset": "images"}
    | {"batch_size": 4, "lease_seconds": 2.0}
  )
  return job


@pytest.mark.slow
def test_killed_labelling_makes_the_files_of_an_undisturbed_job(
  fake, processes, tmp_path
):
  config = make_job(tmp_path)

  def start(name):
    process = processes.Process(
      target=run_stage, args=(config, str(tmp_path / name))
    )
    process.start()
    return process

  def committed():
    return len(list((tmp_path / "broken").glob("pile-*.json")))

  begin = time.monotonic()
  process = start("whole")
  process.join()
  assert process.exitcode == 0
  undisturbed = time.monotonic() - begin

  chance, begin, left = random.Random(0), time.monotonic(), 0
  workers = [start("broken"), start("broken")]
  for kill in range(KILLS):
    before, number = committed(), chance.randrange(2)
    if kill % 4:  # while they label, else wherever they are
      while committed() == before and workers[number].is_alive():
        workers[number].join(0.01)
    workers[number].join(chance.uniform(0, 0.2))
    assert workers[number].is_alive(), "the job is too short"
    workers[number].kill()
    workers[number].join()
    left += any((tmp_path / "broken").glob(".*.tmp"))
    workers[number] = start("broken")
  for worker in workers:
    worker.join()
    assert worker.exitcode == 0

  fake.verify(
    tmp_path / "broken", ImageSet.open(tmp_path / "world/pile", "train")
  )
  whole = fake.contents(tmp_path / "whole")
  assert len(whole) == 3 * SHARDS + 2
  assert fake.contents(tmp_path / "broken") == whole
  print(
    f"{KILLS} kills, {left} of them while a file was half written;"
    f" {time.monotonic() - begin:.0f} s, and {undisturbed:.0f} s undisturbed."
  )
