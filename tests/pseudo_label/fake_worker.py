"""A tiny image set, a teacher without a network, and workers to kill.

As a program it is a nursery: it imports once and forks a worker for every line
of JSON it reads, so that killing and restarting workers takes no time.
"""

import io
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import tensorflow as tf

from must_jax.pseudo_label import job as job_lib
from must_jax.storage import set_writer
from must_jax.storage import verify as verify_lib
from must_jax.storage.sets import ImageSet, LabelSet, read_manifest
from must_jax.storage.tfrecord import CorruptRecord
from must_jax.storage.work_queue import Worker

FIELDS = {
  "label": {"kind": "ClassVector", "classes": ["red", "green", "blue"]},
  "objects": {"kind": "Boxes", "classes": ["dark", "light"]},
}
TEACHER = {"digest": "c0ffee", "config": {"batch_size": 8, "lr": 0.1}}


ROOT = pathlib.Path(__file__).parents[2]


def png(pixels):
  file = io.BytesIO()
  PIL.Image.fromarray(pixels).save(file, "png")
  return file.getvalue()


def make_images(directory, num_shards=3, per_shard=5, seed=0, bad=(), name="w"):
  """Writes random images; those in `bad` end in the middle."""
  rng = np.random.default_rng(seed)

  def examples():
    for i in range(num_shards * per_shard):
      pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
      data = png(pixels)
      yield {
        "key": f"image-{seed}-{i}",
        "image": data[:60] if i in bad else data,
        "height": 6,
        "width": 8,
        "labels": {},
      }

  return set_writer.write_image_set(
    directory, name, "train", examples(), {}, records_per_shard=per_shard
  )


def make_job(images, output, **options):
  defaults = {
    "fields": FIELDS,
    "teacher": TEACHER,
    "settings": {"batch_size": 2},
    "lease_seconds": 60,
  }
  return job_lib.LabelJob(images, output, **(defaults | options))


def batches(images, shard, size=2, delay=0.0):
  """What the data pipeline makes of a shard, without its start-up time."""
  reader = images.reader(shard)
  for begin in range(0, len(reader), size):
    time.sleep(delay)
    batch = {
      "image": np.zeros((size, 6, 8, 3), np.uint8),
      "valid": np.zeros(size, bool),
      "content_size": np.full((size, 2), [6, 8], np.float32),
      "position": np.full(size, -1, np.int32),
      "key": np.full(size, b"", object),
    }
    for row, place in enumerate(range(begin, min(begin + size, len(reader)))):
      batch["position"][row] = place
      try:
        example = tf.train.Example.FromString(reader.read(place))
        feature = example.features.feature
        image = io.BytesIO(feature["image"].bytes_list.value[0])
        batch["image"][row] = np.asarray(PIL.Image.open(image))
      except (CorruptRecord, OSError):
        continue
      batch["key"][row] = feature["key"].bytes_list.value[0]
      batch["valid"][row] = True
    yield batch


def predict(batch):
  """Mean colours decide the class; a box for each half that is light."""
  colour = batch["image"].mean((1, 2)) / 255
  halves = np.stack(
    [h.mean((1, 2, 3)) / 255 for h in np.split(batch["image"], 2, 2)], 1
  )
  return {"colour": colour.astype(np.float32), "halves": halves}


def to_labels(prediction, batch, row):
  np.testing.assert_array_equal(batch["content_size"][row], [6, 8])
  halves = prediction["halves"]
  keep = halves > 0.45
  return {
    "label": {
      "classes": np.arange(3),
      "probs": prediction["colour"] / prediction["colour"].sum(),
    },
    "objects": {
      "boxes": np.array([[0, 0, 1, 0.5], [0, 0.5, 1, 1]])[keep],
      "classes": (halves > 0.5).astype(int)[keep],
      "scores": halves[keep],
    },
  }


def run(job, delay=0.0, predict=predict, to_labels=to_labels, **options):
  return job_lib.run(
    job,
    lambda shard: batches(job.image_set, shard, delay=delay),
    predict,
    to_labels,
    **options,
  )


def verify(directory, images=None):
  """The manifest of a label set; raises `ValueError` for all that is wrong."""
  if images is not None:
    LabelSet.open(directory).check_images(images)
  reports = verify_lib.verify(directory)
  if problems := [str(p) for report in reports for p in report.problems]:
    raise ValueError("\n".join(problems))
  return read_manifest(directory)


def contents(directory):
  """{path: bytes} of all files below a directory."""
  directory = pathlib.Path(directory)
  return {
    str(p.relative_to(directory)): p.read_bytes()
    for p in sorted(directory.rglob("*"))
    if p.is_file()
  }


class Nursery:
  """Workers in processes of their own, see `fake_worker`."""

  def __init__(self):
    self._process = subprocess.Popen(
      [sys.executable, __file__],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env=os.environ | {"PYTHONPATH": str(ROOT)},
      text=True,
    )
    assert self._process.stdout.readline() == "ready\n"

  def _ask(self, request):
    self._process.stdin.write(json.dumps(request) + "\n")
    self._process.stdin.flush()
    return int(self._process.stdout.readline())

  def start(self, images, output, index=0, count=1, delay=0.0):
    return self._ask(
      {
        "images": str(images.directory),
        "output": str(output),
        "worker": [index, count],
        "lease_seconds": 1,
        "delay": delay,
      }
    )

  def wait(self, pid):
    return self._ask({"wait": pid})

  def close(self):
    self._process.communicate()


def _nursery():
  for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
      answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
    elif not (answer := os.fork()):
      images = ImageSet.open(request.pop("images"), "train")
      delay = request.pop("delay")
      request["worker"] = Worker(*request["worker"])
      summary = run(make_job(images, **request), delay)
      os._exit(100 if summary.num_records else 0)
    print(answer, flush=True)


if __name__ == "__main__":
  print("ready", flush=True)
  _nursery()
