"""The data pipeline against bare JPEG decoding of the same images."""

import dataclasses
import functools
import gc
import io
import itertools
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from benchmarks.resume import resident
from must_jax.fields import (
  Boxes,
  ClassMap,
  ClassVector,
  Field,
  ValueMap,
  VectorMap,
)
from must_jax.fields.placement import Placement
from must_jax.input import geometry
from must_jax.input.batches import train_batches
from must_jax.input.geometry import AugmentOptions
from must_jax.input.origins import SUPERVISED, Source
from must_jax.storage import records, set_writer
from must_jax.storage.sets import LABEL_SCHEMA_VERSION, MANIFEST_FILE, ImageSet
from must_jax.storage.tfrecord import RecordWriter

NUM_IMAGES = 384
BATCH_SIZE = 64
MAP_STRIDE = 4  # pixels of the image for a value of a map, as teachers label
ROUNDS = 5
CLASSES = [f"class {k}" for k in range(20)]
SPECS: dict[str, dict[str, Any]] = {
  "label": {"kind": "ClassVector", "classes": CLASSES},
  "objects": {"kind": "Boxes", "classes": CLASSES},
  "mask": {"kind": "ClassMap", "classes": CLASSES},
  "depth": {"kind": "ValueMap"},
  "normals": {"kind": "VectorMap"},
}
FIELDS: dict[str, Field] = {
  "label": ClassVector(len(CLASSES)),
  "objects": Boxes(len(CLASSES)),
  "mask": ClassMap(len(CLASSES)),
  "depth": ValueMap(),
  "normals": VectorMap(),
}
Figure = tuple[str, float, str]


def photo(rng: np.random.Generator, height: int, width: int) -> bytes:
  """A noisy picture that compresses like a photograph."""
  coarse = rng.integers(0, 255, (height // 16, width // 16, 3), np.uint8)
  smooth = Image.fromarray(coarse).resize((width, height))
  noise = rng.normal(0, 9, (height, width, 3))
  image = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "JPEG", quality=85)
  return buffer.getvalue()


def labels(
  rng: np.random.Generator, size: tuple[int, int], stride: int = MAP_STRIDE
) -> dict[str, Any]:
  """One of each kind; maps with a value for so many pixels a side."""
  height, width = size[0] // stride, size[1] // stride
  corner = rng.uniform(0, 0.6, (7, 2))
  y, x = np.mgrid[:height, :width] * (stride / MAP_STRIDE)
  mask = ((y // 24 + x // 24).astype(int) + rng.integers(20)) % 20
  normals = np.stack([np.sin(x / 30), np.cos(y / 30), np.full(y.shape, -2)], -1)
  normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
  return {
    "label": {"classes": rng.choice(20, 1)},
    "objects": {
      "boxes": np.concatenate([corner, corner + 0.3], 1),
      "classes": rng.integers(0, 20, 7),
      "scores": rng.uniform(0.5, 1, 7),
    },
    "mask": {"classes": mask, "confidence": np.full(mask.shape, 0.9)},
    "depth": {"values": 1 + y / y.max() + 0.1 * np.sin(x / 9)},
    "normals": {"vectors": normals},
  }


def write_set(
  directory: pathlib.Path,
  size: tuple[int, int],
  names: tuple[str, ...],
  stride: int = MAP_STRIDE,
) -> ImageSet:
  """Photographs with labels in these fields; see `labels`."""
  rng = np.random.default_rng(0)

  def examples() -> Iterator[dict[str, Any]]:
    for i in range(NUM_IMAGES):
      found = labels(rng, size, stride)
      yield {
        "key": f"photo-{i:05d}",
        "image": photo(rng, *size),
        "height": size[0],
        "width": size[1],
        "labels": {name: found[name] for name in names},
      }

  fields = {name: SPECS[name] for name in names}
  return set_writer.write_image_set(
    directory, "photos", "train", examples(), fields, num_shards=4
  )


def write_sidecars(
  directory: pathlib.Path, images: ImageSet, name: str
) -> None:
  """A label set with one field, as a teacher would write it."""
  directory.mkdir()
  rng, shards = np.random.default_rng(1), []
  for number, listed in enumerate(images.shards):
    with RecordWriter(directory / listed.file) as writer:
      for record in images.reader(number):
        key = tf.train.Example.FromString(record).features.feature["key"]
        found = {name: labels(rng, (480, 640))[name]}
        writer.write(
          records.encode_labels(
            key.bytes_list.value[0], "ok", found, fields=SPECS
          )
        )
    changed = dataclasses.replace(listed, num_bytes=writer.num_bytes)
    shards.append(dataclasses.asdict(changed))
  manifest = {
    "schema_version": LABEL_SCHEMA_VERSION,
    "image_set": {"name": images.name, "split": images.split},
    "fields": {name: SPECS[name]},
    "teacher": {},
    "shards": shards,
  }
  (directory / MANIFEST_FILE).write_text(json.dumps(manifest))


def encoded(images: ImageSet) -> list[bytes]:
  """The JPEGs of a set."""
  return [
    tf.train.Example.FromString(images.read(i))
    .features.feature["image"]
    .bytes_list.value[0]
    for i in range(256)
  ]


def bare(images: list[bytes]) -> Iterator[dict[str, Any]]:
  """`tf.io.decode_jpeg` and nothing else, in batches."""
  dataset = tf.data.Dataset.from_tensor_slices(images).repeat()
  dataset = dataset.map(
    lambda data: {"image": tf.io.decode_jpeg(data, channels=3)},
    num_parallel_calls=tf.data.AUTOTUNE,
  )
  return dataset.batch(BATCH_SIZE).prefetch(2).as_numpy_iterator()


def least(
  images: list[bytes], size: tuple[int, int], augment: AugmentOptions
) -> Iterator[dict[str, Any]]:
  """What no pipeline with this augmentation can leave out.

  Windows of images in memory are decoded, resized to 224 and batched; where
  they are was found before, and nothing is read, parsed, checked or labelled.
  """
  random = geometry.random_numbers(0, tf.range(len(images), dtype=tf.int64))
  sizes = tf.constant([size] * len(images))
  placements = geometry.choose_placement(sizes, (224, 224), augment, random)

  def make(
    image: tf.Tensor, placement: Placement, random: tf.Tensor
  ) -> dict[str, tf.Tensor]:
    def decode(ratio: int) -> tf.Tensor:
      window = placement.window // ratio
      return tf.io.decode_and_crop_jpeg(image, window, channels=3, ratio=ratio)

    ratios = (1, 2, 4, 8)
    pixels = tf.switch_case(
      tf.reduce_sum(
        tf.cast(placement.reduction > tf.constant(ratios[:-1]), tf.int32)
      ),
      [functools.partial(decode, ratio) for ratio in ratios],
    )
    pixels = geometry.transform_image(
      pixels, placement, (224, 224), augment, random
    )
    return {"image": pixels}

  dataset = tf.data.Dataset.from_tensor_slices((images, placements, random))
  dataset = dataset.repeat().map(make, num_parallel_calls=tf.data.AUTOTUNE)
  return dataset.batch(BATCH_SIZE).prefetch(2).as_numpy_iterator()


def images_per_core_second(
  cases: Mapping[str, Callable[[], Iterator[dict[str, Any]]]], batches: int
) -> dict[str, float]:
  """Images per second of processor time, the median of some rounds.

  The cases take turns, so that a busy neighbour slows all of them; one that
  has had its turn is closed, so that it makes nothing ahead meanwhile.
  """
  rounds: dict[str, list[float]] = {name: [] for name in cases}
  for _ in range(ROUNDS):
    for name, make in cases.items():
      iterator = iter(make())
      for _ in range(4):  # until as much is made ahead as at the end
        next(iterator)
      start = time.process_time()
      for _ in range(batches):
        next(iterator)
      seconds = time.process_time() - start
      rounds[name].append(batches * BATCH_SIZE / seconds)
      del iterator
      gc.collect()
  return {name: statistics.median(r) for name, r in rounds.items()}


def train(
  directory: pathlib.Path,
  size: int,
  names: tuple[str, ...] = (),
  sidecars: Mapping[str, pathlib.Path] | None = None,
  **augment: Any,
) -> Iterator[dict[str, Any]]:
  """Training batches with these of the set's fields and these label sets."""
  origins = dict.fromkeys(names, SUPERVISED)
  origins |= {name: str(path) for name, path in (sidecars or {}).items()}
  return train_batches(
    [Source(str(directory), "train", origins)],
    {name: {name: FIELDS[name]} for name in origins},
    batch_size=BATCH_SIZE,
    image_size=(size, size),
    augment=AugmentOptions(flip=True, **augment),
  )


def classification(temp: pathlib.Path, height: int, width: int) -> list[Figure]:
  """224 pixels from photographs of a size."""
  directory = temp / f"photos-{height}"
  images = encoded(write_set(directory, (height, width), ("label",)))
  cases = {"bare decode_jpeg": lambda: bare(images)}
  for name, options in (
    ("large-scale jitter", {"scale_jitter": (0.5, 2.0)}),
    ("Inception crop", {"resize": "inception_crop"}),
  ):
    augment = AugmentOptions(flip=True, **options)
    cases |= {
      f"{name}, records in memory": functools.partial(
        least, images, (height, width), augment
      ),
      f"{name}, no labels": functools.partial(train, directory, 224, **options),
      name: functools.partial(train, directory, 224, ("label",), **options),
    }
  rates = images_per_core_second(cases, batches=16)
  return _rates(f"{width}x{height} to 224", rates)


def multi_task(temp: pathlib.Path) -> list[Figure]:
  """640 pixels with labels of all kinds, in the image record and beside it."""
  directory = temp / "multi"
  set_ = write_set(directory, (480, 640), tuple(FIELDS))
  images = encoded(set_)
  whole = temp / "multi-whole"
  write_set(whole, (480, 640), tuple(FIELDS), stride=1)
  sidecars = {name: temp / f"labels-{name}" for name in FIELDS}
  for name, path in sidecars.items():
    write_sidecars(path, set_, name)
  four = {n: p for n, p in sidecars.items() if n != "normals"}
  jitter: dict[str, Any] = {"scale_jitter": (0.5, 2.0)}
  rates = images_per_core_second(
    {
      "bare decode_jpeg": lambda: bare(images),
      "images only": lambda: train(directory, 640, **jitter),
      **{
        f"with {name}": functools.partial(
          train, directory, 640, (name,), **jitter
        )
        for name in FIELDS
      },
      "with all five kinds": lambda: train(
        directory, 640, tuple(FIELDS), **jitter
      ),
      "with all five kinds, maps of full size": lambda: train(
        whole, 640, tuple(FIELDS), **jitter
      ),
      "with four label sets": lambda: train(
        directory, 640, sidecars=four, **jitter
      ),
    },
    batches=4,
  )
  return [
    *_rates("640x480 to 640", rates),
    (
      "640x480 to 640, with four label sets / images only",
      rates["with four label sets"] / rates["images only"],
      "ratio",
    ),
  ]


def memory(temp: pathlib.Path) -> list[Figure]:
  """Resident memory after 5,000 and after 50,000 images."""
  batches = train(temp / "photos-375", 64, ("label",))
  sizes = []
  for count in (5_000, 45_000):
    for _ in itertools.islice(batches, count // BATCH_SIZE):
      pass
    sizes.append(resident())
  return [
    ("resident memory after 5,000 images", sizes[0], "MB"),
    ("resident memory after 50,000 images", sizes[1], "MB"),
  ]


def _rates(what: str, rates: Mapping[str, float]) -> list[Figure]:
  """Rates, and their ratio to bare decoding."""
  base = rates["bare decode_jpeg"]
  figures = []
  for name, rate in rates.items():
    figures.append((f"{what}, {name}", rate, "images per core-second"))
    if rate != base:
      figures.append((f"{what}, {name} / bare", rate / base, "ratio"))
  return figures


def run() -> list[Figure]:
  """(name, value, unit) of each figure."""
  with tempfile.TemporaryDirectory() as name:
    temp = pathlib.Path(name)
    return [
      *classification(temp, 375, 500),
      *classification(temp, 480, 640),
      *classification(temp, 960, 1280),
      *multi_task(temp),
      *memory(temp),
    ]
