import argparse
import io
import json
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from must_jax import importers
from must_jax.importers import arguments
from must_jax.storage import image_files
from must_jax.storage.sets import ImageSet


@pytest.fixture
def run_import(tmp_path, capsys):
  """Runs `must-jax import ...`; returns the status and what was printed."""

  def run(*words, out="out", name="set", split="train"):
    parser = argparse.ArgumentParser()
    importers.add_arguments(parser.add_subparsers(dest="kind", required=True))
    words = [*words, "--out", tmp_path / out, "--name", name, "--split", split]
    capsys.readouterr()
    status = importers.run(parser.parse_args([str(w) for w in words]))
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return status, printed.out, printed.err

  return run


@pytest.fixture
def run_plan(tmp_path, capsys):
  """Runs an import of a `Plan`; returns the status and what was printed."""

  def run(plan, *words, out="out"):
    parser = argparse.ArgumentParser()
    arguments.add_output_arguments(parser, name="set")
    words = [*words, "--out", tmp_path / out, "--split", "train"]
    args = parser.parse_args([str(w) for w in words])
    args.plan = lambda args: plan
    capsys.readouterr()
    status = importers.run(args)
    printed = capsys.readouterr()
    return status, printed.out, printed.err

  return run


@pytest.fixture
def reads(monkeypatch):
  """Names of the image files that are read in this process."""
  names = []
  read_image = image_files.read_image

  def counted(path, *options):
    names.append(path.name)
    return read_image(path, *options)

  monkeypatch.setattr(image_files, "read_image", counted)
  return names


@pytest.fixture
def read_back(tmp_path):
  """Records of an image set by key: {feature: list of values}."""

  def read(out="out", split="train"):
    image_set = ImageSet.open(tmp_path / out, split)
    records = {}
    for i in range(image_set.num_records):
      example = tf.train.Example.FromString(image_set.read(i))
      values = {
        name: list(getattr(feature, feature.WhichOneof("kind") or "").value)
        if feature.WhichOneof("kind")
        else []
        for name, feature in example.features.feature.items()
      }
      records[values["key"][0].decode()] = values
    return records, image_set

  return read


@pytest.fixture
def index_of(tmp_path):
  return lambda out="out": json.loads(
    (tmp_path / out / "index.json").read_text()
  )


@pytest.fixture
def picture():
  """Saves a noise image; returns its pixels."""

  def save(path, height=6, width=8, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels

  return save


@pytest.fixture
def rgb16():
  """A 16-bit RGB PNG of codes [h, w, 3], which Pillow cannot write."""
  return lambda codes: tf.io.encode_png(codes.astype(np.uint16)).numpy()


@pytest.fixture
def decode16():
  """Codes of a 16-bit PNG."""
  return lambda data: tf.io.decode_png(data, dtype=tf.uint16).numpy()


@pytest.fixture
def decode8():
  return lambda data: np.asarray(Image.open(io.BytesIO(data)))
