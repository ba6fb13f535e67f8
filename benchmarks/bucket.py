"""What a run and a labelling job ask of a bucket, and how fast one is read.

    python -m benchmarks.bucket

The bucket is an emulator on this machine (`tests/bucket.py`, of the extra
`dev`), which counts requests and can delay each. Numbers of requests are
differences between runs of different length, so that what a start costs is a
figure of its own.
"""

import contextlib
import importlib.util
import io
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import numpy as np
import PIL.Image

from must_jax.config import base_config, dataset, smoke, task
from must_jax.fields import Boxes
from must_jax.input.batches import train_batches
from must_jax.input.loader import ReadOptions
from must_jax.input.origins import Source
from must_jax.input.union import Union
from must_jax.pseudo_label.worker import label_images
from must_jax.stage import run as run_stage
from must_jax.storage.set_writer import write_image_set

Figure = tuple[str, float, str]
LATENCY = 0.05  # seconds added to each request
_SIDE = 320  # of images of noise: about 100 kB as JPEG
_TASKS = ("boxes", "objects", "things")


def _load_emulator() -> Any:
  path = pathlib.Path(__file__).parents[1] / "tests" / "bucket.py"
  spec = importlib.util.spec_from_file_location("bucket_emulator", path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  return module


@contextlib.contextmanager
def start_bucket() -> Iterator[Any]:
  """A bucket, to which this process's requests go."""
  emulator = _load_emulator()
  with (
    tempfile.TemporaryDirectory() as temp,
    emulator.start_bucket(temp) as bucket,
  ):
    os.environ.update(bucket.environ)
    yield bucket


def write_images(
  directory: str, count: int, num_shards: int, side: int
) -> None:
  """An image set of noise, with one of two classes each."""
  rng = np.random.default_rng(0)

  def examples() -> Iterator[dict[str, Any]]:
    for i in range(count):
      file = io.BytesIO()
      pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
      PIL.Image.fromarray(pixels).save(file, "JPEG", quality=85)
      yield {
        "key": str(i),
        "image": file.getvalue(),
        "height": side,
        "width": side,
        "labels": {"label": {"classes": [i % 2]}},
      }

  fields = {"label": {"kind": "ClassVector", "classes": ["a", "b"]}}
  write_image_set(
    directory, "noise", "train", examples(), fields, num_shards=num_shards
  )


class _Anywhere:
  """A teacher that sees a box in every image; equal ones raise the alarm."""

  def __init__(self):
    self.fields = {"objects": {"kind": "Boxes", "classes": ["cat"]}}
    self.description = {"digest": "anywhere"}

  def __call__(self, images: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
      {
        "objects": {
          "boxes": np.array([[0, 0, *rng.uniform(0.2, 1, 2)]]),
          "classes": np.array([0]),
          "scores": np.array([0.9]),
        }
      }
      for _ in images
    ]


def count_requests(bucket: Any) -> Iterator[Figure]:
  """Requests for the parts of a run, and for a shard that is labelled."""
  images = f"{bucket.root}/small"
  write_images(images, 64, 4, 32)
  config = base_config()
  config.datasets.train = dataset(images, "train")
  config.train_on = config.evaluate_on = ("train",)
  config.tasks.label = task("classification", labels={"train": "supervised"})
  config = smoke(config)
  config.train.evaluate_every = 0
  runs = iter(range(100))

  def requests(work: Callable[[], Any]) -> int:
    bucket.reset()
    work()
    return sum(bucket.counts().values())

  def train(
    steps: int, log_every: int, checkpoint_every: int, evaluate_every: int = 0
  ) -> int:
    run = config.copy_and_resolve_references()
    run.train.update(
      {"steps": steps, "log_every": log_every, "keep_checkpoints": 100}
      | {"checkpoint_every": checkpoint_every, "evaluate_every": evaluate_every}
    )
    workdir = f"{bucket.root}/run{next(runs)}"
    return requests(lambda: run_stage(run, workdir))

  base = train(20, 20, 20)
  yield "requests of a step of 8 examples", (train(60, 60, 60) - base) / 40, ""
  yield "requests of a log line", (train(20, 1, 20) - base) / 19, ""
  each = (train(20, 20, 2) - base) / 9
  yield "requests of a checkpoint", each, ""
  evaluation = (train(20, 20, 20, 2) - train(20, 20, 20, 10)) / 8
  yield "requests of an evaluation on 64 examples", evaluation, ""
  yield "requests of all else of a run, an evaluation included", base - each, ""

  def label(num_shards: int) -> int:
    pile = f"{bucket.root}/pile{num_shards}"
    write_images(pile, 16 * num_shards, num_shards, 32)
    return requests(
      lambda: label_images(_Anywhere(), pile, "train", f"{pile}-labels")
    )

  few, many = label(4), label(20)
  yield "requests of a shard of 16 images, labelled", (many - few) / 16, ""


def read_with_latency(bucket: Any, count: int) -> Iterator[Figure]:
  """Examples a second from a bucket, of what a disk gives."""
  with tempfile.TemporaryDirectory() as temp:
    rates = {}
    for root in (temp, bucket.root):
      images = f"{root}/noise"
      write_images(images, count, 8, _SIDE)
      for name in _TASKS:
        label_images(_Anywhere(), images, "train", f"{root}/{name}")
      if root == bucket.root:
        bucket.set(latency=LATENCY)
      rates[root] = _rate(root, count), _read_rate(root, count, 64)
    one = _read_rate(bucket.root, count, 1)
  bucket.set()
  (disk, disk_read), (far, far_read) = rates.values()
  yield "batches of a disk", disk, "examples/s"
  yield f"batches of a bucket with {1000 * LATENCY:.0f} ms", far / disk, "ratio"
  yield "records of a disk", disk_read, "examples/s"
  yield "records of the bucket", far_read / disk_read, "ratio"
  yield "records of the bucket, as before", one / disk_read, "ratio"


def _source(root: str) -> Source:
  return Source(
    f"{root}/noise", "train", {name: f"{root}/{name}" for name in _TASKS}
  )


def _rate(root: str, count: int) -> float:
  """Examples a second of training batches, without the start."""
  batches = train_batches(
    [_source(root)],
    {name: {"objects": Boxes(1, 5)} for name in _TASKS},
    batch_size=32,
    image_size=(64, 64),
    options=ReadOptions(),
  )
  for _ in range(4):
    next(batches)
  steps = max(1, count // 32)
  begin = time.perf_counter()
  for _ in range(steps):
    next(batches)
  return 32 * steps / (time.perf_counter() - begin)


def _read_rate(root: str, count: int, together: int) -> float:
  """Examples a second of reading alone.

  Args:
    root: of the sets.
    count: examples.
    together: that are asked for at a time. 64 by 4 threads is what the loader
      does; before it did one after the other, by 16 threads.
  """
  union = Union(
    [_source(root)], {name: {"objects": Boxes(1, 5)} for name in _TASKS}
  )
  numbers = np.random.default_rng(0).permutation(count).tolist()
  calls = [numbers[i : i + 64] for i in range(0, count, 64)]

  def read(call: list[int]) -> None:
    for i in range(0, len(call), together):
      union.read_many(call[i : i + together])

  begin = time.perf_counter()
  with futures.ThreadPoolExecutor(4 if together > 1 else 16) as pool:
    list(pool.map(read, calls))
  return count / (time.perf_counter() - begin)


def run(count: int = 512) -> Iterator[Figure]:
  """The figures; none where there is no emulator."""
  try:
    with start_bucket() as bucket:
      yield from count_requests(bucket)
      yield from read_with_latency(bucket, count)
  except FileNotFoundError as error:
    print(f"No figures of a bucket: {error}", file=sys.stderr)


if __name__ == "__main__":
  for name, value, unit in run(2048):
    print(f"{name:<60} {value:>10.2f}  {unit}", flush=True)
