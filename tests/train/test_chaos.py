"""A run that is killed twenty times, wherever it just is."""

import collections
import json
import multiprocessing
import random
import time

import pytest

from must_jax.main import run_stage
from must_jax.train import checkpoint

KILLS = 20
STEPS = 200
LOG_EVERY, CHECKPOINT_EVERY = 2, 5


@pytest.fixture(scope="module")
def processes():
  """Starts processes that have imported everything already."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["must_jax.main", "must_jax.train.loop"])
  return context


def losses(workdir):
  """[(step, loss)] in the order of writing."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True) if path.exists() else []
  metrics = [json.loads(line) for line in lines if line.endswith("\n")]
  return [(m["step"], m["loss"]) for m in metrics if "loss" in m]


@pytest.mark.slow
def test_killed_training_ends_with_the_bits_of_an_undisturbed_run(
  make_config, processes, tmp_path
):
  config = make_config(
    "classification",
    steps=STEPS,
    **{
      "model.channels": 8,
      "data.image_size": (32, 32),
      "data.batch_size": 4,
      "optimizer.ema_decay": 0.99,
      "train.log_every": LOG_EVERY,
      "train.checkpoint_every": CHECKPOINT_EVERY,
    },
  )

  def start(name):
    process = processes.Process(
      target=run_stage, args=(config, str(tmp_path / name))
    )
    process.start()
    return process

  begin = time.monotonic()
  process = start("whole")
  process.join()
  assert process.exitcode == 0
  undisturbed = time.monotonic() - begin

  chance, begin, saving = random.Random(0), time.monotonic(), 0
  broken = tmp_path / "broken"
  for kill in range(KILLS):
    process, before = start("broken"), len(losses(broken))
    if kill % 4:  # while it trains and saves, else while it starts
      while process.is_alive() and len(losses(broken)) == before:
        process.join(0.01)
    process.join(chance.uniform(0, 0.3 if kill % 4 else 3))
    assert process.is_alive(), "the run is too short to be killed so often"
    process.kill()
    process.join()
    saving += any((broken / "checkpoints").glob("*-tmp*"))
  process = start("broken")
  process.join()
  assert process.exitcode == 0

  expected, found = dict(losses(tmp_path / "whole")), losses(broken)
  assert set(dict(found)) == set(expected) == set(range(2, STEPS + 1, 2))
  for step, loss in found:  # those that were done again, too
    assert loss == expected[step], step
  digests = [
    json.loads(
      (checkpoint.find(tmp_path / name) / "meta/metadata").read_text()
    )["digest"]
    for name in ("whole", "broken")
  ]
  assert digests[0] == digests[1]
  again = sum(n - 1 for n in collections.Counter(s for s, _ in found).values())
  print(
    f"{KILLS} kills, {saving} of them while saving; about {again * LOG_EVERY}"
    f" steps of {STEPS} done again; {time.monotonic() - begin:.0f} s, and"
    f" {undisturbed:.0f} s undisturbed."
  )
