"""The data pipeline against bare JPEG decoding of the same images."""

import io
import pathlib
import tempfile
import time

import numpy as np
import tensorflow as tf
from PIL import Image

from must_jax.data import pipeline
from must_jax.data.records import ImageSet, write_image_set
from must_jax.types import ClassVector

NUM_IMAGES, WIDTH, HEIGHT = 256, 500, 375
SIZE, BATCH_SIZE, NUM_BATCHES = 224, 64, 24


def write_photos(directory: pathlib.Path) -> ImageSet:
  """Noisy pictures that compress like photographs, about 50 kB each."""
  rng = np.random.default_rng(0)

  def examples():
    for i in range(NUM_IMAGES):
      coarse = rng.integers(0, 255, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
      smooth = Image.fromarray(coarse).resize((WIDTH, HEIGHT))
      noise = rng.normal(0, 9, (HEIGHT, WIDTH, 3))
      image = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
      buffer = io.BytesIO()
      Image.fromarray(image).save(buffer, "JPEG", quality=85)
      yield {
        "key": f"photo-{i:05d}",
        "image": buffer.getvalue(),
        "height": HEIGHT,
        "width": WIDTH,
        "labels": {"label": {"classes": np.array([i % 10])}},
      }

  classes = [f"class {k}" for k in range(10)]
  fields = {"label": {"kind": "ClassVector", "classes": classes}}
  return write_image_set(
    directory, "photos", "train", examples(), fields, num_shards=2
  )


def images_per_cpu_second(batches, count: int) -> float:
  """Images per second of processor time, after a first batch."""
  batches = iter(batches)
  next(batches)
  start, images = time.process_time(), 0
  for _ in range(count):
    images += len(next(batches)["image"])
  return images / (time.process_time() - start)


def bare(encoded: list[bytes], resize: bool):
  """`tf.io.decode_jpeg` and nothing else, in batches."""

  def decode(data):
    image = tf.io.decode_jpeg(data, channels=3)
    if resize:
      image = tf.image.resize(image, (SIZE, SIZE))
    return {"image": tf.cast(image, tf.uint8)}

  dataset = tf.data.Dataset.from_tensor_slices(encoded).repeat()
  dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
  return dataset.batch(BATCH_SIZE).prefetch(2).as_numpy_iterator()


def run() -> list[tuple[str, float, str]]:
  """(name, value, unit) of each figure."""
  with tempfile.TemporaryDirectory() as temp:
    images = write_photos(pathlib.Path(temp) / "photos")
    encoded = [
      tf.train.Example.FromString(images.read(i))
      .features.feature["image"]
      .bytes_list.value[0]
      for i in range(NUM_IMAGES)
    ]
    fields = {"label": {"label": ClassVector(10)}}
    source = pipeline.Source(
      str(pathlib.Path(temp) / "photos"), "train", {"label": "supervised"}
    )
    batches = pipeline.train_batches(
      [source],
      fields,
      batch_size=BATCH_SIZE,
      image_size=(SIZE, SIZE),
      augment=pipeline.AugmentOptions((1.0, 2.0), flip=True),
    )
    ours = images_per_cpu_second(batches, NUM_BATCHES)
    decoded = images_per_cpu_second(bare(encoded, False), NUM_BATCHES)
    resized = images_per_cpu_second(bare(encoded, True), NUM_BATCHES)
  unit = "images per core-second"
  return [
    ("pipeline, 500x375 JPEG to 224, jitter, flip", ours, unit),
    ("bare decode_jpeg", decoded, unit),
    ("decode_jpeg + resize to 224", resized, unit),
    ("pipeline / bare decode_jpeg", ours / decoded, "ratio"),
    ("pipeline / (decode_jpeg + resize)", ours / resized, "ratio"),
  ]
