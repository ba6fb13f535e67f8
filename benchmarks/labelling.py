"""The labelling job against bare inference of the same model."""

import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from must_jax import config as config_lib
from must_jax.config import base_config, dataset, task
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

NUM_IMAGES, BATCH_SIZE, SIZE = 512, 32, (64, 64)
ROUNDS = 3


def run() -> list[tuple[str, float, str]]:
  """(name, value, unit) of each figure."""
  with tempfile.TemporaryDirectory() as temp:
    root = pathlib.Path(temp)
    world.build(
      root, SIZE[0], {"pile": {"train": NUM_IMAGES}}, num_shards=2, workers=1
    )
    images = ImageSet.open(root / "pile", "train")
    config = base_config()
    config.datasets.pile = dataset(str(root / "pile"), "train")
    config.tasks.mask = task(
      "segmentation", labels={}, classes=tuple("abcdefghijk")
    )
    config = config_lib.small(config)
    tasks = build_tasks(config)
    model = build_model(config, tasks)
    variables = jax.jit(lambda key: init_variables(model, SIZE, key))(
      jax.random.key(0)
    )
    step = make_predict_step(model, tasks, mesh_lib.local_mesh())

    def predict(batch: np.ndarray) -> dict:
      return jax.device_get(step(variables, batch))["mask"]

    batch = np.zeros((BATCH_SIZE, *SIZE, 3), np.uint8)

    def infer() -> None:
      for _ in range(NUM_IMAGES // BATCH_SIZE):
        predict(batch)

    def batches(shard: int) -> Iterator[dict[str, Any]]:
      return eval_batches(
        [Source(str(root / "pile"), "train")],
        {},
        batch_size=BATCH_SIZE,
        image_size=SIZE,
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
          fields=describe_fields(tasks["mask"]),
          teacher={"digest": "benchmark"},
          settings={},
        ),
        batches,
        lambda batch: predict(batch["image"]),
        lambda prediction, batch, row: tasks["mask"].to_labels(
          prediction, batch["content_size"][row], SIZE
        ),
      )

    # The first turn compiles, and traces the input, which a real job does once.
    cases = {
      "labelling job, small segmentation model": run_job,
      "bare inference of the same model": infer,
      "reading of the same images": read,
    }
    rounds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS + 1):
      for name, run_case in cases.items():
        start = time.process_time()
        run_case()
        rounds[name].append(NUM_IMAGES / (time.process_time() - start))
    rates = {name: statistics.median(r[1:]) for name, r in rounds.items()}
  job, bare, _ = rates.values()
  return [
    *((name, rate, "images per core-second") for name, rate in rates.items()),
    ("labelling job / bare inference", job / bare, "ratio"),
  ]
