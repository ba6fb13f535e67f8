"""Reads batches of a mixture and writes down what it saw, until it is killed.

Arguments: JSON {"sources": [directories], "log": file, "start": first step,
"steps": how many, "index": of this process, "count": of processes}.
"""

import hashlib
import json
import sys

from must_jax.fields import ClassVector
from must_jax.input.batches import train_batches
from must_jax.input.geometry import AugmentOptions
from must_jax.input.origins import Source

BATCH_SIZE = 8
NUM_CLASSES = 3


def main(sources, log, start, steps, index, count):
  batches = train_batches(
    [
      Source(directory, "train", {"what": "supervised"})
      for directory in sources
    ],
    {"what": {"label": ClassVector(NUM_CLASSES)}},
    shares=[2.0, 1.0],
    batch_size=BATCH_SIZE,
    image_size=(16, 24),
    augment=AugmentOptions(scale_jitter=(0.5, 2.0), flip=True),
    seed=5,
    start_step=start,
    block_size=4,
    window_blocks=2,
    process_index=index,
    process_count=count,
  )
  with open(log, "a") as file:
    for step, batch in zip(range(start, start + steps), batches, strict=False):
      rows = [
        key.decode() + ":" + hashlib.blake2b(image.tobytes()).hexdigest()[:16]
        for key, image in zip(batch["key"], batch["image"], strict=True)
      ]
      file.write(json.dumps([step, rows]) + "\n")
      file.flush()


if __name__ == "__main__":
  main(**json.loads(sys.argv[1]))
