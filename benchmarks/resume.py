"""How long it takes to stand at step 1,000,000 of 300 million records.

The index is real, the shards are empty files of the right sizes: what is timed
is everything up to the bytes of the first batch. Each case runs in a process
of its own, so that its memory can be told.
"""

import dataclasses
import json
import pathlib
import resource
import subprocess
import sys
import tempfile

NUM_RECORDS, NUM_SHARDS = 300_000_000, 10_240
STEP, BATCH_SIZE = 1_000_000, 256
_RECORD_BYTES = 100_000  # of a JPEG at 640 pixels


def write_index(directory: pathlib.Path, labels: pathlib.Path) -> None:
  """An image set and a label set for it, of nothing but holes."""
  from must_jax.storage import sets

  ends = [NUM_RECORDS * (i + 1) // NUM_SHARDS for i in range(NUM_SHARDS)]
  fields = {"label": {"kind": "ClassVector", "classes": ["a", "b"]}}
  for place, size in ((directory, _RECORD_BYTES), (labels, 200)):
    place.mkdir()
    shards = []
    for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
      file = sets.shard_file("big", "train", i, NUM_SHARDS)
      listed = sets.Shard(file, end - start, (end - start) * size, "0", "0")
      shards.append(dataclasses.asdict(listed))
      for path, length in (
        (place / file, listed.num_bytes),
        ((place / file).with_suffix(".offsets"), 8 * (end - start + 1)),
      ):
        with path.open("wb") as hole:
          hole.truncate(length)
    head = {"schema_version": 1, "fields": fields}
    if place == directory:
      split = {"num_records": NUM_RECORDS, "shards": shards, "rejected": []}
      value = {
        **head,
        "name": "big",
        "licence": "",
        "splits": {"train": split},
      }
      (place / "index.json").write_text(json.dumps(value))
    else:
      image_set = {"name": "big", "split": "train"}
      value = {**head, "image_set": image_set, "teacher": {}, "shards": shards}
      (place / "manifest.json").write_text(json.dumps(value))


def resident() -> float:
  """Memory of this process, MB."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * resource.getpagesize() / 2**20


def measure(directory: str, labels: str) -> tuple[float, float]:
  """Seconds and MB from nothing open to the records of the first batch."""
  import time

  import numpy as np

  from must_jax.fields import ClassVector
  from must_jax.input.batches import train_batches
  from must_jax.input.loader import ReadOptions
  from must_jax.input.origins import Source

  before, start = resident(), time.monotonic()
  batches = train_batches(
    [Source(directory, "train", {"task": labels})],
    {"task": {"label": ClassVector(2)}},
    batch_size=BATCH_SIZE,
    image_size=(64, 64),
    start_step=STEP,
    options=ReadOptions(max_bad=None, on_bad=lambda bad: None),
  )
  batch = next(batches)  # holes: every record is looked up, none is there
  assert not np.any(batch["valid"])
  return time.monotonic() - start, resident() - before


def run() -> list[tuple[str, float, str]]:
  """(name, value, unit) of each figure."""
  figures = []
  with tempfile.TemporaryDirectory() as temp:
    directory, labels = pathlib.Path(temp) / "images", pathlib.Path(temp) / "l"
    write_index(directory, labels)
    for name, origin in (
      ("images only", "supervised"),
      ("with a label set", str(labels)),
    ):
      code = (
        "from benchmarks import resume;"
        f"print(*resume.measure({str(directory)!r}, {origin!r}))"
      )
      done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
      )
      seconds, megabytes = map(float, done.stdout.split()[-2:])
      what = f"resume at step 1M of 300M records, {name}"
      figures += [(what, seconds, "s"), (what, megabytes, "MB more")]
  return figures
