"""Importing a folder of photographs against decoding them.

Commands are timed whole, as a user runs them; a process that starts TensorFlow
takes some seconds, of which the shorter import tells the share.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf

from benchmarks.pipeline import Figure, photo

NUM_PHOTOS, COUNTS = 128, (1_000, 16_000)


def write_folder(directory: pathlib.Path, count: int) -> None:
  """Photographs of 500 x 375; equal ones share their bytes on the disk."""
  directory.mkdir()
  rng = np.random.default_rng(0)
  for i in range(count):
    path = directory / f"{i:06d}.jpg"
    if i < NUM_PHOTOS:
      path.write_bytes(photo(rng, 375, 500))
    else:
      os.link(directory / f"{i % NUM_PHOTOS:06d}.jpg", path)


def seconds(images: pathlib.Path, out: pathlib.Path, workers: int) -> float:
  """Wall-clock time of `must-jax import folder --unlabelled`."""
  command = [sys.executable, "-m", "must_jax.cli", "import", "folder"]
  command += ["--unlabelled", "--images", str(images), "--out", str(out)]
  command += ["--name", "pile", "--split", "train", "--workers", str(workers)]
  start = time.monotonic()
  subprocess.run(command, check=True, capture_output=True)
  return time.monotonic() - start


def decoded_per_second(images: pathlib.Path) -> float:
  """`tf.io.decode_jpeg` in a loop, on one core."""
  files = [(images / f"{i:06d}.jpg").read_bytes() for i in range(NUM_PHOTOS)]
  decode = tf.function(lambda data: tf.shape(tf.io.decode_jpeg(data)))
  decode(tf.constant(files[0]))
  start = time.process_time()
  for data in files * 4:
    decode(tf.constant(data))
  return 4 * len(files) / (time.process_time() - start)


def run() -> list[Figure]:
  """(name, value, unit) of each figure."""
  with tempfile.TemporaryDirectory() as name:
    temp, rates = pathlib.Path(name), {}
    for count in COUNTS:
      write_folder(temp / f"{count}", count)
    for workers in (1, 2):
      short, long = (
        seconds(temp / f"{n}", temp / f"out-{n}-{workers}", workers)
        for n in COUNTS
      )
      rates[workers] = (COUNTS[1] - COUNTS[0]) / (long - short)
    decoded = decoded_per_second(temp / f"{COUNTS[0]}")
  return [
    ("import, 1 worker, after its start", rates[1], "images/s"),
    ("import, 2 workers, after its start", rates[2], "images/s"),
    ("decode_jpeg of the same, one core", decoded, "images/s"),
    ("import / decode_jpeg, one core", rates[1] / decoded, "ratio"),
    ("import, 2 workers / 1 worker", rates[2] / rates[1], "ratio"),
  ]
