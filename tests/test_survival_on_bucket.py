"""Runs in a bucket that are killed, while requests fail: the same bits."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from must_jax.storage import path as path_lib
from must_jax.storage.set_writer import write_image_set
from must_jax.storage.sets import ImageSet
from must_jax.train import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
KILLS = 10
FAULTS = {"rate": 0.05, "kinds": ("503", "429", "cut", "cut_after")}
pytestmark = pytest.mark.slow


def write_images(fake, directory):
  rng = np.random.default_rng(0)

  def examples():
    for i in range(32):
      pixels = rng.integers(0, 100, (32, 32, 3), np.uint8)
      pixels[:16, :, i % 2] += 150
      yield {
        "key": str(i),
        "image": fake.png(pixels),
        "height": 32,
        "width": 32,
        "labels": {"label": {"classes": [i % 2]}},
      }

  fields = {"label": {"kind": "ClassVector", "classes": ["red", "green"]}}
  write_image_set(directory, "two", "train", examples(), fields, num_shards=4)


def start_training(root, name):
  arg = f"data={root}/two,validation=train,smoke"
  return subprocess.Popen(
    [
      *(sys.executable, "main.py", f"--workdir={root}/{name}"),
      f"--config=configs/teacher_classification.py:{arg}",
      *("--config.train.steps=60", "--config.train.checkpoint_every=4"),
      *("--config.evaluate_on=()", "--config.train.log_every=1"),
    ],
    cwd=ROOT,
    env=os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  _, log = process.communicate(timeout=600)
  assert process.returncode == 0, log[-3000:]
  return log


def test_training_in_a_bucket_survives_kills_and_faults(fake, bucket):
  root = bucket.root
  write_images(fake, f"{root}/two")
  finish(start_training(root, "whole"))

  bucket.set(**FAULTS)
  chance, kills, torn, steps = random.Random(0), 0, 0, set()

  def saved(finished):
    root = path_lib.Path(f"{bucket.root}/broken/checkpoints")
    steps = {int(n) for n in path_lib.list_names(root) if n.isdigit()}
    if finished:
      steps = {
        step for step in steps if checkpoint.is_finished(root / str(step))
      }
    return steps

  while kills < KILLS:
    # While a checkpoint is written, or after it.
    finished = kills % 2 == 0
    process, before = start_training(root, "broken"), saved(finished)
    while process.poll() is None and not saved(finished) - before:
      time.sleep(0.02)
    time.sleep(chance.uniform(0, 0.5))
    assert process.poll() is None, "the run is too short"
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kills += 1
    steps |= saved(True)
    torn += bool(saved(False) - saved(True))
  assert torn and steps
  log = finish(start_training(root, "broken"))
  assert "Resumed at step" in log
  bucket.set()

  whole, broken = (
    checkpoint.fingerprint(f"{root}/{name}") for name in ("whole", "broken")
  )
  assert broken == whole
  for name in ("whole", "broken"):
    lines = path_lib.read_appended(f"{root}/{name}/metrics.jsonl")
    assert lines.endswith(b"\n")
  print(f"{kills} kills, {torn} of them in a checkpoint; {sorted(steps)}")


def test_labelling_in_a_bucket_survives_kills_and_faults(fake, bucket):
  root = bucket.root
  images = fake.make_images(f"{root}/images", num_shards=24, per_shard=5)
  fake.run(fake.make_job(images, f"{root}/whole"))

  bucket.set(**FAULTS)
  nursery = fake.Nursery()
  chance, kills, output = random.Random(0), 0, f"{root}/labels"

  def committed():
    return [n for n in path_lib.list_names(output) if n.endswith(".json")]

  try:
    while kills < KILLS or len(committed()) < 2:
      count = 1 + kills % 3
      pids = [
        nursery.start(images, output, i, count, 0.05) for i in range(count)
      ]
      # Longer and longer: a busy machine gets somewhere, too.
      time.sleep(chance.uniform(0.3, 0.8) + kills / 20)
      for pid in pids:
        os.kill(pid, signal.SIGKILL)
        kills += nursery.wait(pid) == -signal.SIGKILL
    done = len(committed()) - 1
    assert 0 < done < 24  # kills hit a job that was under way
    pids = [nursery.start(images, output, i, 2) for i in range(2)]
    assert all(nursery.wait(pid) in (0, 100) for pid in pids)
  finally:
    nursery.close()
  bucket.set()

  fake.verify(output, ImageSet.open(f"{root}/images", "train"))
  files = {
    name: [
      (path_lib.Path(f"{root}/{name}") / file).read_bytes()
      for file in sorted(path_lib.list_names(f"{root}/{name}"))
    ]
    for name in ("whole", "labels")
  }
  assert files["labels"] == files["whole"]
  print(f"{kills} kills with {done} of 24 shards done")
