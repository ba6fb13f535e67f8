"""Whatever bytes are read, the outcome is a documented error or valid data.

Set FUZZ=10 for ten times as many inputs.
"""

import argparse
import contextlib
import copy
import json
import os
import random
import resource
import struct
import zlib

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from etils import epath
from hypothesis import strategies as st

from must_jax.fields import (
  Boxes,
  ClassMap,
  ClassVector,
  ValueMap,
  VectorMap,
  check_descriptions,
)
from must_jax.importers import coco_json, files
from must_jax.input import geometry as geometry_lib
from must_jax.input.batches import eval_batches
from must_jax.input.loader import ReadOptions
from must_jax.input.origins import Source
from must_jax.storage import image_files, records, set_writer
from must_jax.storage.sets import ImageSet, LabelSet
from must_jax.storage.tfrecord import (
  CorruptRecord,
  RecordWriter,
  ShardReader,
  offsets_path,
)

FACTOR = int(os.environ.get("FUZZ", "1"))
SPECS = {
  "label": {"kind": "ClassVector", "classes": ["cat", "dog", "cow"]},
  "objects": {"kind": "Boxes", "classes": ["cat", "dog"]},
  "mask": {"kind": "ClassMap", "classes": ["sky", "floor", "wall"]},
  "depth": {"kind": "ValueMap", "unit": "metres"},
  "normals": {"kind": "VectorMap"},
}
FIELDS = {
  "label": ClassVector(3),
  "objects": Boxes(2, min_score=0.5),
  "mask": ClassMap(3, min_score=0.5),
  "depth": ValueMap("inverse"),
  "normals": VectorMap(),
}
NUM_RECORDS = 24


def fuzz(examples):
  """Runs a test with `chance`, another random generator each time."""

  def decorate(test):
    given = hypothesis.given(
      chance=st.integers(0, 2**64 - 1).map(random.Random)
    )
    settings = hypothesis.settings(
      max_examples=examples * FACTOR,
      derandomize=True,
      database=None,
      deadline=None,
      suppress_health_check=list(hypothesis.HealthCheck),
    )
    return settings(given(test))

  return decorate


def mutate(data, chance, other=b""):
  """Bytes with a few random damages; `other` is spliced in now and then."""
  data = bytearray(data)
  for _ in range(chance.choice((1, 1, 1, 2, 8))):
    place = chance.randrange(len(data) + 1)
    end = min(len(data), place + chance.choice((1, 2, 4, 8, 64)))
    match chance.randrange(8):
      case 0 | 1 if place < len(data):
        data[place] ^= 1 << chance.randrange(8)
      case 2:
        del data[place:]
      case 3:
        data[place:place] = chance.randbytes(end - place)
      case 4:
        data[place:place] = data[place:end]
      case 5:
        data[place:] = other[chance.randrange(len(other) + 1) :]
      case 6:
        data[place:end] = chance.choice((b"\xff", b"\0")) * (end - place)
      case 7 if chance.random() < 0.1:
        data[:] = chance.randbytes(chance.randrange(200))
  return bytes(data)


def example(i, size=(12, 16)):
  rng = np.random.default_rng(i)
  pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
  encode = tf.io.encode_png if i % 2 else tf.io.encode_jpeg
  vectors = rng.normal(size=(*size, 3))
  vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
  labels = {
    "label": {"classes": [0, 2], "probs": [0.25, 0.75]},
    "objects": {
      "boxes": [[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]],
      "classes": [1, 0],
      "scores": [0.9, 0.2],
    },
    "mask": {
      "classes": rng.choice([0, 1, 2, 255], size),
      "confidence": rng.random(size),
    },
    "depth": {
      "values": rng.uniform(0.5, 9, size),
      "valid": rng.random(size) > 0.1,
    },
    "normals": {"vectors": vectors},
  }
  return {
    "key": f"key{i}",
    "image": encode(pixels).numpy(),
    "height": size[0],
    "width": size[1],
    "labels": labels,
  }


def record(i):
  return records.encode_example(**example(i), fields=SPECS)


@pytest.fixture(scope="module")
def image_set(tmp_path_factory):
  directory = tmp_path_factory.mktemp("images")
  return set_writer.write_image_set(
    directory,
    "toy",
    "train",
    (example(i) for i in range(NUM_RECORDS)),
    SPECS,
    num_shards=2,
  )


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
  return epath.Path(tmp_path_factory.mktemp("scratch"))


def test_damaged_shards_give_their_records_or_say_which_is_corrupt(scratch):
  contents = [b"", b"a", *(bytes([i]) * 20 * i for i in range(1, 8))]
  path = scratch / "x.tfrecord"
  with RecordWriter(path) as writer:
    for content in contents:
      writer.write(content)
  data, offsets = path.read_bytes(), offsets_path(path).read_bytes()
  starts = np.frombuffer(offsets, "<u8").tolist()

  @fuzz(400)
  def check(chance):
    damaged = mutate(data, chance, data)
    path.write_bytes(damaged)
    for i, found in enumerate(outcomes(ShardReader(path))):
      frame = slice(starts[i], starts[i + 1])
      # A frame of another place may come to lie there, whole.
      assert found is None or found in contents
      assert damaged[frame] != data[frame] or found == contents[i]

  @fuzz(400)
  def check_offsets(chance):
    offsets_path(path).write_bytes(mutate(offsets, chance, data))
    try:
      reader = ShardReader(path)
    except ValueError:
      return
    assert all(found is None or found in contents for found in outcomes(reader))

  check()
  path.write_bytes(data)
  check_offsets()


def outcomes(reader):
  """Each record, or None where it is corrupt."""
  for i in range(len(reader)):
    try:
      yield reader.read(i)
    except CorruptRecord as error:
      assert error.index == i
      yield None


JUNK = (
  None, True, -1, 0, 1.5, 10**30, -(2**63), float("nan"), float("inf"), "",
  "..", "../x", "/etc/passwd", "a\0b", "x" * 300, "\ud800", "-1", [], [[]],
  {}, {"": 0}, [0], [None], ["a", "a"], "train", [1, 2, 3, 4],
)  # fmt: skip


def edit_json(value, chance):
  """A copy with a few entries replaced, dropped, doubled or renamed."""
  value = copy.deepcopy(value)
  for _ in range(chance.choice((1, 1, 2, 5))):
    parent, name = None, None
    node = value
    while isinstance(node, dict | list) and node and chance.random() < 0.8:
      parent = node
      name = chance.choice(
        list(node) if isinstance(node, dict) else range(len(node))
      )
      node = parent[name]
    if parent is None:
      return chance.choice(JUNK) if chance.random() < 0.1 else value
    match chance.randrange(4):
      case 0:
        del parent[name]
      case 1 if isinstance(parent, dict):
        parent[chance.choice(["", "x", "../x", *parent])] = node
      case 1:
        parent.append(copy.deepcopy(node))
      case _:
        parent[name] = copy.deepcopy(chance.choice(JUNK))
  return value


def damaged_json(value, chance):
  if chance.random() < 0.8:
    return json.dumps(edit_json(value, chance)).encode()
  data = json.dumps(value).encode()
  return chance.choice(
    [mutate(data, chance, data), b"[" * 100_000, b"9" * 5000]
  )


def test_damaged_indexes_are_refused_or_read(image_set):
  path = image_set.directory / "index.json"
  index, text = json.loads(path.read_text()), path.read_bytes()

  @fuzz(500)
  def check(chance):
    path.write_bytes(damaged_json(index, chance))
    try:
      opened = ImageSet.open(image_set.directory, "train")
    except ValueError:
      return
    assert opened.num_records == sum(s.num_records for s in opened.shards)
    with contextlib.suppress(ValueError):
      check_descriptions(opened.fields)
    for shard in opened.shards:
      file = image_set.directory / shard.file
      assert file.parent == image_set.directory
      assert file.exists()
    for i in range(opened.num_records):
      assert opened.read(i)

  try:
    check()
  finally:
    path.write_bytes(text)


def test_damaged_manifests_are_refused_or_read(image_set, scratch):
  directory = scratch / "labels"
  directory.mkdir()
  shards = []
  for shard in image_set.index["splits"]["train"]["shards"]:
    with RecordWriter(directory / shard["file"]) as writer:
      for _ in range(shard["num_records"]):
        writer.write(b"x")
    shards.append(
      shard | {"num_bytes": writer.num_bytes, "checksum": writer.checksum}
    )
  manifest = {
    "schema_version": 1,
    "image_set": {"name": "toy", "split": "train"},
    "teacher": {"config": {}, "batch_size": 8, "lr": 0.1},
    "fields": {"label": SPECS["label"]},
    "shards": shards,
  }

  @fuzz(400)
  def check(chance):
    (directory / "manifest.json").write_bytes(damaged_json(manifest, chance))
    try:
      opened = LabelSet.open(directory)
      opened.check_images(image_set)
    except ValueError:
      return
    assert opened.num_records == NUM_RECORDS
    assert {opened.read(i) for i in range(NUM_RECORDS)} == {b"x"}

  check()


def test_damaged_coco_files_are_refused_or_give_boxes_within_the_image(scratch):
  images = scratch / "photos"
  images.mkdir()
  for i in range(2):
    (images / f"{i}.jpg").write_bytes(example(2 * i)["image"])
  value = {
    "images": [
      {"id": i, "file_name": f"{i}.jpg", "height": 12, "width": 16}
      for i in range(2)
    ],
    "annotations": [
      {"id": i, "image_id": i % 2, "category_id": 1 + i % 2, "iscrowd": 0,
       "bbox": [1.5, 2, 3 + i, 4]}
      for i in range(4)
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
  }  # fmt: skip
  path = scratch / "coco.json"
  parser = argparse.ArgumentParser()
  coco_json.add_arguments(parser)
  args = parser.parse_args(
    ["--annotations", str(path), "--images", str(images)]
  )
  args.max_rejected = 0.01  # an option of every import

  @fuzz(400)
  def check(chance):
    path.write_bytes(damaged_json(value, chance))
    try:
      plan = coco_json.plan(args)
    except ValueError:
      return
    for item in plan.items:
      assert os.path.commonpath([item.image, images]) == str(images)
      for image in plan.read(item):
        if image.picture is None:
          assert image.labels.rejected
          continue
        try:
          encoded = records.encode_example(
            image.key,
            image.picture.data,
            *image.picture.size,
            image.labels.arrays,
            fields=plan.fields,
          )
        except ValueError:  # which the importer reports
          continue
        num_classes = len(plan.fields["objects"]["classes"])
        labels = records.read_labels(encoded, {"objects": Boxes(num_classes)})
        check_labels({"objects": Boxes(num_classes)}, labels)

  check()


def check_labels(fields, labels):
  """Values are in the range that losses and metrics rely on."""
  for name, arrays in labels.items():
    match fields[name]:
      case ClassVector(num_classes):
        assert arrays["probs"].shape == (num_classes,)
        assert within(arrays["probs"], 0, 1)
      case Boxes(num_classes):
        assert arrays["boxes"].shape == (len(arrays["classes"]), 4)
        assert arrays["ignore"].shape == arrays["classes"].shape
        assert arrays["scores"].shape == arrays["classes"].shape
        assert within(arrays["boxes"], 0, 1)
        assert within(arrays["scores"], 0, 1)
        assert within(arrays["classes"], 0, num_classes - 1)
      case ClassMap(num_classes):
        known = arrays["classes"][arrays["classes"] != 255]
        assert within(known, 0, num_classes - 1)
      case ValueMap():
        assert np.isfinite(arrays["values"]).all()
        assert arrays["values"].shape == arrays["valid"].shape
      case VectorMap():
        norm = np.linalg.norm(arrays["vectors"], axis=-1)
        np.testing.assert_allclose(norm[arrays["valid"]], 1, atol=1e-3)


def within(values, low, high):
  return bool(((values >= low) & (values <= high)).all())


NUMBERS = (float("nan"), float("inf"), 3e38, -3e38, 1e-45, 1e-39, -1.0, 0.5, 2)
INTEGERS = (-(2**63), -1, 0, 1, 2, 255, 2**31, 2**33, 2**63 - 1)


def edit_features(data, chance, other):
  """A record with a few of its features changed, dropped or swapped."""
  example = tf.train.Example.FromString(data)
  features = example.features.feature
  theirs = tf.train.Example.FromString(other).features.feature
  for _ in range(chance.choice((1, 1, 2, 4))):
    name = chance.choice(sorted(features))
    feature = features[name]
    match chance.randrange(6):
      case 0:
        del features[name]
      case 1:
        feature.CopyFrom(chance.choice(list(theirs.values())))
      case 2:
        feature.float_list.value[:] = chance.choices(
          NUMBERS, k=chance.randrange(5)
        )
      case 3:
        feature.int64_list.value[:] = chance.choices(
          INTEGERS, k=chance.randrange(5)
        )
      case _:
        for values in (feature.float_list, feature.int64_list):
          if values.value:
            place = chance.randrange(len(values.value))
            known = NUMBERS if values is feature.float_list else INTEGERS
            values.value[place] = chance.choice(known)
        if feature.bytes_list.value:
          value = feature.bytes_list.value[0]
          feature.bytes_list.value[0] = damaged_image(value, chance)
  return example.SerializeToString()


def damaged_image(data, chance):
  """Bytes of a JPEG or PNG with damages, some of them of the header."""
  if data[12:16] == b"IHDR" and len(data) > 33 and chance.random() < 0.5:
    head = bytearray(data[12:29])
    if chance.random() < 0.5:  # another size
      size = chance.choices((0, 1, 9, 2**16, 2**31 - 1, 2**32 - 1), k=2)
      head[4:12] = struct.pack(">II", *size)
    else:  # another depth, colour, ...
      head[12 + chance.randrange(5)] = chance.choice((0, 1, 2, 3, 4, 6, 8, 16))
    head = bytes(head)
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
  return mutate(data, chance, data[::-1])


def damaged_record(chance):
  data, other = record(chance.randrange(4)), record(chance.randrange(4))
  damage = edit_features if chance.random() < 0.7 else mutate
  return damage(data, chance, other)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def read_record(data):
  head = records.parse_image(data)
  window = geometry_lib.whole_image(head["size"]).window
  pixels = records.decode_image(head["image"], head["size"], window)
  return head, pixels, records.parse_labels(data, FIELDS)


def test_damaged_records_are_refused_or_give_values_in_range():
  counts = {"refused": 0, "read": 0}

  @fuzz(700)
  def check(chance):
    damaged = damaged_record(chance)
    try:
      outcome = records.is_example(damaged) and read_record(damaged)
    except records.BROKEN:
      outcome = False
    counts["read" if outcome else "refused"] += 1
    if not outcome:
      return
    head, pixels, labels = outcome
    assert pixels.shape == (*head["size"].numpy(), 3)
    arrays = {
      name: {k: v.numpy() for k, v in value.items()}
      for name, value in labels.items()
    }
    check_labels(FIELDS, arrays)

  check()
  assert min(counts.values()) > 50 * FACTOR, counts


def read_all(directory):
  """Batch rows by position, and the places of bad records."""
  bad = []
  batches = eval_batches(
    [Source(str(directory), "train", {"all": "supervised"})],
    {"all": FIELDS},
    batch_size=8,
    image_size=(16, 16),
    options=ReadOptions(num_threads=1, max_bad=None, on_bad=bad.append),
  )
  rows = {}
  for batch in batches:
    for i, position in enumerate(batch["position"].tolist()):
      rows[position] = tf.nest.map_structure(lambda a, i=i: a[i], batch)
  return rows, {int(b.index) for b in bad}


def test_every_record_of_a_damaged_shard_is_delivered_or_reported(scratch):
  directory = scratch / "damaged"
  contents = [record(i) for i in range(NUM_RECORDS)]
  set_writer.write_image_set(
    directory, "toy", "train", map(example, range(NUM_RECORDS)), SPECS
  )
  expected, _ = read_all(directory)
  path = directory / "toy-train-00000-of-00001.tfrecord"
  index = json.loads((directory / "index.json").read_text())

  @fuzz(7)
  def check(chance):
    damaged = set(chance.sample(range(NUM_RECORDS), 8))
    with RecordWriter(path) as writer:
      for i, content in enumerate(contents):
        other = contents[chance.randrange(NUM_RECORDS)]
        damage = edit_features if chance.random() < 0.7 else mutate
        writer.write(
          damage(content, chance, other) if i in damaged else content
        )
    data = bytearray(path.read_bytes())
    starts = np.frombuffer(offsets_path(path).read_bytes(), "<u8")
    for i in list(damaged)[:2]:
      data[chance.randrange(int(starts[i]), int(starts[i + 1]))] ^= 0x10
    path.write_bytes(data)
    index["splits"]["train"]["shards"][0]["num_bytes"] = len(data)
    (directory / "index.json").write_text(json.dumps(index))
    rows, bad = read_all(directory)
    assert sorted(rows) == list(range(NUM_RECORDS))
    assert bad <= damaged
    for i, row in rows.items():
      assert row["valid"] == (i not in bad), f"record {i} vanished"
      if i not in damaged:
        tf.nest.map_structure(np.testing.assert_array_equal, row, expected[i])

  check()


def test_damaged_images_are_rejected_or_decode_to_their_size(scratch):
  originals = [example(i)["image"] for i in range(4)]

  @fuzz(500)
  def check(chance):
    path = scratch / chance.choice(["a.png", "a.jpg"])
    path.write_bytes(damaged_image(chance.choice(originals), chance))
    try:
      picture = image_files.read_image(path)
    except image_files.Rejected:
      return
    window = tf.constant([0, 0, *picture.size])
    pixels = records.decode_image(picture.data, window[2:], window)
    assert pixels.shape == (*picture.size, 3)

  check()


def test_damaged_maps_are_rejected_or_have_the_size_of_their_image(scratch):
  codes = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16, 1)
  originals = [
    tf.io.encode_png(codes).numpy(),
    tf.io.encode_png(codes.astype(np.uint8)).numpy(),
    tf.io.encode_png(np.repeat(codes, 3, -1)).numpy(),
  ]
  np.save(scratch / "a.npy", codes)
  arrays = (scratch / "a.npy").read_bytes()
  picture = image_files.Picture(b"", (12, 16))

  @fuzz(400)
  def check(chance):
    if chance.random() < 0.3:
      path = scratch / "b.npy"
      path.write_bytes(mutate(arrays, chance, arrays))
    else:
      path = scratch / "b.png"
      path.write_bytes(damaged_image(chance.choice(originals), chance))
    try:
      found = files.read_map(path, picture)
    except image_files.Rejected:
      return
    assert found.shape[:2] == picture.size

  check()


def peak():
  """Most memory this process has held, bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def png_of_zeros(height, width):
  """A PNG of one bit a pixel, small whatever its size."""

  def chunk(kind, data):
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

  rows = zlib.compressobj(9)
  row = bytes(1 + -(-width // 8))
  data = b"".join([*(rows.compress(row) for _ in range(height)), rows.flush()])
  head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    [chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b"")]
  )


def test_bombs_do_not_go_off(scratch):
  read_record(record(0))  # the graph itself takes memory
  bomb = png_of_zeros(30_000, 30_000)
  assert len(bomb) < 1 << 20
  huge = example(0)["image"].replace(
    struct.pack(">HH", 12, 16), struct.pack(">HH", 65_000, 65_000)
  )
  assert len(huge) == len(example(0)["image"])
  before = peak()
  for data, size in ((bomb, (30_000, 30_000)), (huge, (65_000, 65_000))):
    path = scratch / "bomb.png"
    path.write_bytes(data)
    with pytest.raises(image_files.Rejected, match="at most"):
      image_files.read_image(path)
    with pytest.raises(image_files.Rejected):
      files.read_map(path, image_files.Picture(b"", size))
    parsed = tf.train.Example.FromString(record(0))
    features = parsed.features.feature
    features["image"].bytes_list.value[0] = data
    for claimed in (size, (12, 16)):
      features["height"].int64_list.value[0] = claimed[0]
      features["width"].int64_list.value[0] = claimed[1]
      with pytest.raises(records.BROKEN):
        read_record(parsed.SerializeToString())
  for name in ("mask/png", "mask/confidence", "depth/png", "normals/png"):
    parsed = tf.train.Example.FromString(record(0))
    parsed.features.feature[name].bytes_list.value[0] = bomb
    with pytest.raises(records.BROKEN):
      read_record(parsed.SerializeToString())
  assert peak() - before < 64 << 20
