"""Labelling jobs against bare inference of their models."""

import dataclasses
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from must_jax import config as config_lib
from must_jax.config import base_config, task
from must_jax.input.batches import eval_batches
from must_jax.input.origins import Source
from must_jax.lab import world
from must_jax.pseudo_label import job as job_lib
from must_jax.pseudo_label.teacher import describe_fields
from must_jax.storage.sets import ImageSet
from must_jax.train import mesh as mesh_lib
from must_jax.train.build import build_model, build_tasks
from must_jax.train.state import init_variables
from must_jax.train.step import make_predict_step


@dataclasses.dataclass(frozen=True)
class Case:
  """A teacher and what it labels.

  Attributes:
    name: of the teacher.
    kind: of its task.
    size: of the images and the network's input, pixels a side.
    num_images: in two shards.
    batch_size: images that it gets at a time.
    is_small: whether the network has the size of the tests'.
    rounds: turns, after one that compiles.
  """

  name: str
  kind: str
  size: int
  num_images: int
  batch_size: int
  is_small: bool
  rounds: int

  def config(self) -> ConfigDict:
    """The teacher's, of no data."""
    config = base_config()
    config.tasks.it = task(self.kind, labels={}, classes=tuple("abcdefghijk"))
    if self.is_small:
      config = config_lib.small(config)
    config.model.dtype = "float32"
    return config


CASES = (
  Case("small segmentation model", "segmentation", 64, 512, 32, True, 3),
  Case("ResNet-50 detector at 640 pixels", "detection", 640, 8, 4, False, 2),
)


def run() -> list[tuple[str, float, str]]:
  """(name, value, unit) of each figure."""
  return [figure for case in CASES for figure in measure(case)]


def measure(case: Case) -> list[tuple[str, float, str]]:
  """Likewise, of one case."""
  size = (case.size, case.size)
  with tempfile.TemporaryDirectory() as temp:
    root = pathlib.Path(temp)
    counts = {"pile": {"train": case.num_images}}
    world.build(root, case.size, counts, num_shards=2, workers=1)
    images = ImageSet.open(root / "pile", "train")
    config = case.config()
    tasks = build_tasks(config)
    model = build_model(config, tasks)
    variables = jax.jit(lambda key: init_variables(model, size, key))(
      jax.random.key(0)
    )
    step = make_predict_step(model, tasks, mesh_lib.local_mesh())

    def predict(images: np.ndarray) -> dict:
      return jax.device_get(step(variables, images))["it"]

    batch = np.zeros((case.batch_size, *size, 3), np.uint8)

    def infer() -> None:
      for _ in range(case.num_images // case.batch_size):
        predict(batch)

    def batches(shard: int) -> Iterator[dict[str, Any]]:
      return eval_batches(
        [Source(str(root / "pile"), "train")],
        {},
        batch_size=case.batch_size,
        image_size=size,
        shard=shard,
      )

    def read() -> None:
      for shard in range(len(images.shards)):
        for _ in batches(shard):
          pass

    def run_job() -> None:
      output = pathlib.Path(tempfile.mkdtemp(dir=root)) / "labels"
      job_lib.run(
        job_lib.LabelJob(
          image_set=images,
          output=output,
          fields=describe_fields(tasks["it"]),
          teacher={"digest": "benchmark"},
          settings={},
        ),
        batches,
        lambda batch: predict(batch["image"]),
        lambda prediction, batch, row: tasks["it"].to_labels(
          prediction, batch["content_size"][row], size
        ),
      )

    # The first turn compiles, and traces the input, which a real job does once.
    runs = {"labelling job": run_job, "bare inference": infer, "reading": read}
    rounds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(case.rounds + 1):
      for name, run_it in runs.items():
        start = time.process_time()
        run_it()
        rounds[name].append(case.num_images / (time.process_time() - start))
    rates = {name: statistics.median(r[1:]) for name, r in rounds.items()}
  job, bare, _ = rates.values()
  return [
    *(
      (f"{case.name}, {name}", rate, "images per core-second")
      for name, rate in rates.items()
    ),
    (f"{case.name}, labelling job / bare inference", job / bare, "ratio"),
  ]
