import dataclasses
import io
import types

import numpy as np
import pytest
from PIL import Image

from must_jax.annotations import exchange
from must_jax.cli import main
from must_jax.fields import make_field
from must_jax.fields.statistics import accumulate
from must_jax.importers import aligned
from must_jax.storage import label_sets, records, set_writer
from must_jax.storage.label_sets import LabelCommit
from must_jax.storage.path import Path
from must_jax.storage.sets import LabelSet
from must_jax.storage.tfrecord import RecordWriter

# What keys may hold: folders, spaces, other scripts, signs of paths and URLs.
KEYS = (
  "plain",
  "a/b/c",
  "with space/and (brackets)",
  "dots.in.it/v1.2",
  "ends.",
  " begins",
  "..",
  "a/../b",
  "/absolute",
  "double//slash",
  "ends/",
  "50%",
  "50%25",
  "q?a=1&b=2#c",
  "back\\slash",
  'co:lon*"<>|',
  "Zoë",
  "Zoe\u0308",  # the same name, as another system writes it
  "猫/кот",
  "images/labels/images",
)
CLASSES = ("person", "traffic light", "chat & chien")
FIELDS = {
  "things": {"kind": "Boxes", "classes": list(CLASSES)},
  "areas": {"kind": "ClassMap", "classes": ["background", *CLASSES]},
  "kind": {"kind": "ClassVector", "classes": ["in", "out"]},
  "depth": {"kind": "ValueMap"},
}


def encoded(pixels, form):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, form)
  return file.getvalue()


def random_labels(rng, size, fields):
  """Labels of all kinds with scores, some of them below 0.5."""
  labels = {}
  if "things" in fields:
    n = rng.integers(0, 6)
    low = rng.uniform(0, 0.6, (n, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.4, (n, 2))], 1)
    labels["things"] = {
      "boxes": boxes.astype(np.float32),
      "classes": rng.integers(0, 3, n),
      "scores": rng.uniform(0, 1, n).astype(np.float32),
      "ignore": rng.random(n) < 0.2,
    }
  if "areas" in fields:
    classes = rng.integers(0, 4, (size[0] // 5, size[1] // 5))
    classes = np.kron(classes, np.ones((5, 5), int))
    classes = np.pad(classes, [(0, s % 5) for s in size], "edge")
    classes[rng.random(size) < 0.1] = 255
    confidence = rng.integers(0, 256, size).astype(np.float32) / 255
    labels["areas"] = {"classes": classes, "confidence": confidence}
  if "kind" in fields:
    probs = rng.dirichlet([0.5, 0.5]).astype(np.float32)
    labels["kind"] = {"classes": np.arange(2), "probs": probs}
  if "depth" in fields:
    labels["depth"] = {"values": rng.uniform(1, 9, size)}
  return labels


def make_sets(directory, fields, keys=KEYS, seed=0, labels_of=random_labels):
  """An image set of these keys and a label set of it, by key too."""
  rng = np.random.default_rng(seed)
  sizes = [tuple(map(int, rng.integers(20, 40, 2))) for _ in keys]

  def examples():
    for i, (key, size) in enumerate(zip(keys, sizes, strict=True)):
      pixels = rng.integers(0, 256, (*size, 3), np.uint8)
      data = encoded(pixels, ("png", "jpeg")[i % 2])
      height, width = size
      yield {
        "key": key,
        "image": data,
        "height": height,
        "width": width,
        "labels": {},
      }

  images = set_writer.write_image_set(
    directory / "images", "w", "train", examples(), {}, records_per_shard=7
  )
  fields = {name: FIELDS[name] for name in fields}
  labels = {
    k: labels_of(rng, s, fields) for k, s in zip(keys, sizes, strict=True)
  }
  write_labels(directory / "labels", images, labels, fields)
  return types.SimpleNamespace(
    images=directory / "images",
    labels=directory / "labels",
    truth=labels,
    sizes=dict(zip(keys, sizes, strict=True)),
    directory=directory,
  )


def write_labels(directory, images, labels, fields):
  """A label set of what a teacher said of images, by key."""
  with aligned.open_stage(Path(directory)) as stage:
    commits = []
    for i, shard in enumerate(images.shards):
      sums = {}
      with RecordWriter(stage / shard.file, by_content=True) as writer:
        for record in images.reader(i):
          key = records.key_of(record).decode()
          found = labels.get(key, {})
          writer.write(records.encode_labels(key, "ok", found, fields=fields))
          for name, arrays in found.items():
            accumulate(sums, {name: make_field(fields[name]).sums(arrays)})
      shard = dataclasses.replace(
        shard,
        file=writer.path.name,
        num_bytes=writer.num_bytes,
        checksum=writer.checksum,
      )
      commits.append(LabelCommit(shard, "", "", (), sums))
    teacher = {"digest": aligned.content_of(commits)}
    job = label_sets.describe_job(images, fields, teacher, {})
    aligned.publish(Path(directory), images, job, commits, [])


def read_corrections(directory):
  """{key: (status, {field: arrays as they are stored})}."""
  labels = LabelSet.open(directory)
  fields = {n: make_field(d) for n, d in labels.fields.items()}
  mendable = {n: f for n, f in fields.items() if f.can_be_mended}
  return {
    records.key_of(record).decode(): (
      records.status_of(record),
      records.stored_labels(record, mendable),
    )
    for i in range(len(labels.shards))
    for record in labels.reader(i)
  }


@pytest.fixture
def run(capsys):
  """Runs `must-jax labels`; returns the status, output and errors."""

  def run(*words):
    capsys.readouterr()
    status = main(["labels", *map(str, words)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return status, printed.out, printed.err

  return run


@pytest.fixture
def export(run):
  def export(sets, form, out="out", *words):
    status, printed, error = run(
      "export",
      sets.labels,
      *("--images", sets.images, "--out", sets.directory / out),
      *("--format", form, *words),
    )
    assert (status, error) == (0, "")
    return sets.directory / out, printed

  return export


@pytest.fixture
def take_back(run):
  """Imports corrections; returns status, output and errors."""

  def take_back(sets, path, *words, out="corrections"):
    return run(
      "import",
      path,
      *("--labels", sets.labels, "--images", sets.images),
      *("--out", sets.directory / out, *words),
    )

  return take_back


@pytest.fixture
def make(tmp_path):
  """Makes sets with some of the fields, see `make_sets`.

  With `flat`, files of images lie in one folder.
  """

  def make(fields, directory="sets", flat=False, root=tmp_path, **options):
    if flat:
      keys = [key for key in KEYS if "/" not in exchange.file_name(key)]
      options["keys"] = keys
    return make_sets(Path(root) / directory, fields, **options)

  return make


@pytest.fixture
def corrections_of():
  return read_corrections
