"""Reading that is killed goes on with the same batches."""

import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from must_jax.storage import set_writer

PROGRAM = pathlib.Path(__file__).parent / "reader_program.py"
STEPS = 60  # of 8 examples; the sets have 23 and 14
FIELDS = {"label": {"kind": "ClassVector", "classes": ["a", "b", "c"]}}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
  directories = []
  for name, size in (("first", 23), ("second", 14)):
    directory = tmp_path_factory.mktemp(name)
    rng = np.random.default_rng(size)
    set_writer.write_image_set(
      directory,
      name,
      "train",
      (
        {
          "key": f"{name}{i}",
          "image": tf.io.encode_png(
            rng.integers(0, 256, (16, 24, 3), np.uint8)
          ).numpy(),
          "height": 16,
          "width": 24,
          "labels": {"label": {"classes": [i % 3]}},
        }
        for i in range(size)
      ),
      FIELDS,
      num_shards=2,
    )
    directories.append(str(directory))
  return directories


def read(log):
  """{step: rows} of whole lines; the last may be cut off."""
  text = log.read_text() if log.exists() else ""
  lines = text[: text.rfind("\n") + 1].splitlines()
  return dict(map(json.loads, lines))


def start(sources, log, first, steps, index=0, count=1):
  arguments = {"sources": sources, "log": str(log), "start": first}
  arguments |= {"steps": steps, "index": index, "count": count}
  return subprocess.Popen(
    [sys.executable, str(PROGRAM), json.dumps(arguments)],
    stderr=subprocess.DEVNULL,
  )


def test_killed_in_mid_epoch_and_gone_on_by_two_processes(sources, tmp_path):
  whole = tmp_path / "whole"
  undisturbed = start(sources, whole, 0, STEPS)
  killed = start(sources, tmp_path / "killed", 0, 10**9)
  while len(read(tmp_path / "killed")) < 7:
    assert killed.poll() is None
    time.sleep(0.01)
  killed.kill()
  killed.wait()
  seen = {s: r for s, r in read(tmp_path / "killed").items() if s < STEPS}
  rest = [tmp_path / f"rest{i}" for i in range(2)]
  running = [undisturbed] + [
    start(sources, log, len(seen), STEPS - len(seen), i, 2)
    for i, log in enumerate(rest)
  ]
  assert [process.wait() for process in running] == [0, 0, 0]
  first, second = map(read, rest)
  seen |= {step: first[step] + second[step] for step in first}
  assert seen == read(whole)
  assert len(seen) == STEPS
