"""Makes the image set and the label sets that every later version must read.

  python tests/storage/make_golden_sets.py

It writes the last of `NAMES` into `golden/`: `images`, an image set with labels
of every kind; `labels`, a label set of it by one teacher; `unfinished`, the
same as a worker leaves it that was killed after the first shard.
(`golden/sets_v1.npz` are the batches that `test_golden.py` makes of all of
them, by the first code that wrote such sets.) Give a new name and run it for a
new schema version, or where bytes are meant to change: what is there stays as
it is, and is read.
"""

import io
import pathlib
import shutil
import tempfile

import numpy as np
from PIL import Image

GOLDEN = pathlib.Path(__file__).parent / "golden"
# Of the schema's version 1, with PNGs of libpng, and of `fields.maps`.
NAMES = ("sets_v1", "sets_v1_up")
CLASSES = ("cat", "dog", "bird")
SIZE = (12, 16)
COUNT = 7
FIELDS = {
  "label": {"kind": "ClassVector", "classes": list(CLASSES)},
  "objects": {"kind": "Boxes", "classes": list(CLASSES)},
  "mask": {"kind": "ClassMap", "classes": list(CLASSES)},
  "depth": {"kind": "ValueMap", "unit": "metres"},
  "normals": {"kind": "VectorMap"},
}


def make_labels(number):
  """Labels of every kind that follow from a number."""
  y, x = np.mgrid[: SIZE[0], : SIZE[1]]
  normals = np.stack([x - 8.0, y - 6.0, np.full(SIZE, -9.0)], -1)
  return {
    "label": {
      "classes": np.array([number % 3, (number + 1) % 3]),
      "probs": np.array([0.75, 0.25]),
    },
    "objects": {
      "boxes": np.array([[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1]])[: number % 3],
      "classes": np.array([number % 3, 1])[: number % 3],
      "scores": np.array([0.875, 0.375])[: number % 3],
    },
    "mask": {
      "classes": (x + y + number) % 3,
      "confidence": (x + 1) / SIZE[1],
    },
    "depth": {
      "values": 1.0 + 0.125 * x + number,
      "valid": (x + y) % 5 > 0,
    },
    "normals": {
      "vectors": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
      "valid": x > 2,
    },
  }


def make_examples():
  """Examples as `write_image_set` takes them; the last one has no labels."""
  for number in range(COUNT):
    pixels = np.full((*SIZE, 3), 20 * number, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    yield {
      "key": f"image-{number}",
      "image": file.getvalue(),
      "height": SIZE[0],
      "width": SIZE[1],
      "labels": make_labels(number) if number < COUNT - 1 else {},
    }


class Teacher:
  """Says of an image what `make_labels` says of its brightness."""

  def __init__(self):
    self.fields = FIELDS
    self.description = {"digest": "golden-1", "batch_size": 4, "lr": 0.5}

  def __call__(self, images):
    return [make_labels(1 + image[0, 0, 0] // 20) for image in images]


def flatten(batch, path=""):
  """{path: array} of a batch, without its keys."""
  if not isinstance(batch, dict):
    return {path: np.asarray(batch)}
  return {
    name: array
    for key, value in batch.items()
    if key != "key"
    for name, array in flatten(value, f"{path}/{key}").items()
  }


def main():
  from must_jax.pseudo_label import worker
  from must_jax.storage.set_writer import write_image_set

  with tempfile.TemporaryDirectory() as directory:
    root = pathlib.Path(directory)
    write_image_set(
      root / "images",
      "golden",
      "train",
      make_examples(),
      FIELDS,
      "CC0-1.0",
      num_shards=2,
    )
    worker.label_images(
      Teacher(), root / "images", "train", root / "labels", batch_size=4
    )
    shutil.copytree(root / "labels", root / "unfinished")
    for path in root.glob("unfinished/*00001-of-00002*"):
      path.unlink()
    (root / "unfinished" / "manifest.json").unlink()
    shutil.make_archive(str(GOLDEN / NAMES[-1]), "zip", root)


if __name__ == "__main__":
  main()
