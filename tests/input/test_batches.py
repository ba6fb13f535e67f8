import dataclasses
import itertools
import json

import numpy as np
import pytest
import tensorflow as tf

from must_jax.fields import Boxes, ClassMap, ClassVector, ValueMap, VectorMap
from must_jax.input.batches import eval_batches, train_batches
from must_jax.input.geometry import AugmentOptions
from must_jax.input.loader import ReadOptions
from must_jax.input.origins import SUPERVISED, Source
from must_jax.input.quarantine import Quarantine, TooManyBad
from must_jax.storage import records, set_writer
from must_jax.storage.sets import ImageSet
from must_jax.storage.tfrecord import RecordWriter

CLASSES = ["cat", "dog", "bird"]
INPUT = (32, 48)
COUNT = 22
FIELDS = {
  "label": {"kind": "ClassVector", "classes": CLASSES},
  "objects": {"kind": "Boxes", "classes": CLASSES},
  "mask": {"kind": "ClassMap", "classes": CLASSES},
  "depth": {"kind": "ValueMap"},
  "normals": {"kind": "VectorMap"},
}
READ = {
  "label": ClassVector(3),
  "objects": Boxes(3, max_boxes=4),
  "mask": ClassMap(3),
  "depth": ValueMap(),
  "normals": VectorMap(),
}
LABEL = {"what": {"label": READ["label"]}}
AUGMENT = AugmentOptions(scale_jitter=(0.5, 2.0), flip=True)


def jpeg(index, size=INPUT):
  """A picture that tells its number by its brightness."""
  return tf.io.encode_jpeg(np.full((*size, 3), 5 * index, np.uint8)).numpy()


def example(index, image=None):
  """Example number `index`: its labels follow from the number."""
  normals = np.tile([0.0, 0.6, -0.8], (*INPUT, 1))
  boxes = [[0, 0, 0.5, 0.5], [0.25, 0.25, 1, 1]][: index % 3]
  return {
    "key": f"key{index}",
    "image": image or jpeg(index),
    "height": INPUT[0],
    "width": INPUT[1],
    "labels": {
      "label": {"classes": [index % 3]},
      "objects": {"boxes": boxes, "classes": [index % 3] * len(boxes)},
      "mask": {"classes": np.full(INPUT, index % 3)},
      "depth": {"values": np.full(INPUT, index + 1.0)},
      "normals": {"vectors": normals},
    },
  }


def write_images(directory, examples=None, fields=FIELDS, **kwargs):
  kwargs = {"num_shards": 3} | kwargs
  examples = examples or map(example, range(COUNT))
  return set_writer.write_image_set(
    directory, "toy", "train", examples, fields, **kwargs
  )


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  return write_images(tmp_path_factory.mktemp("images"))


def write_labels(directory, images, encode, fields=FIELDS):
  """A label set; `encode` makes a label record from a key."""
  directory.mkdir()
  shards = []
  for shard, listed in enumerate(images.shards):
    with RecordWriter(directory / listed.file) as writer:
      for record in images.reader(shard):
        writer.write(encode(records.parse_key(tf.constant(record)).numpy()))
    shards.append(
      dataclasses.asdict(
        dataclasses.replace(
          listed, num_bytes=writer.num_bytes, checksum=writer.checksum
        )
      )
    )
  manifest = {
    "schema_version": 1,
    "image_set": {"name": "toy", "split": "train"},
    "fields": fields,
    "teacher": {},
    "shards": shards,
  }
  (directory / "manifest.json").write_text(json.dumps(manifest))


def source(images, labels=SUPERVISED, tasks=("what",)):
  return Source(
    str(images.directory), images.split, dict.fromkeys(tasks, labels)
  )


def train(images, steps, fields=LABEL, **kwargs):
  kwargs = {
    "batch_size": 4,
    "image_size": INPUT,
    "augment": AUGMENT,
    "seed": 3,
    "block_size": 4,
    "window_blocks": 2,
  } | kwargs
  sources = kwargs.pop("sources", [source(images, tasks=tuple(fields))])
  batches = train_batches(sources, fields, **kwargs)
  return list(itertools.islice(batches, steps))


def evaluate(images, fields=LABEL, **kwargs):
  kwargs = {"batch_size": 4, "image_size": INPUT} | kwargs
  sources = kwargs.pop("sources", [source(images, tasks=tuple(fields))])
  return list(eval_batches(sources, fields, **kwargs))


def flatten(batch, prefix=""):
  if not isinstance(batch, dict):
    return {prefix: batch}
  return {
    k: v
    for name, value in batch.items()
    for k, v in flatten(value, f"{prefix}/{name}").items()
  }


def assert_equal(a, b):
  a, b = flatten(a), flatten(b)
  assert set(a) == set(b)
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def concatenate(parts):
  flat = [flatten(part) for part in parts]
  return {name: np.concatenate([f[name] for f in flat]) for name in flat[0]}


def keys(batches):
  return [key for batch in batches for key in batch["key"]]


def number_of(key):
  return int(key.decode().removeprefix("key"))


# What is in a batch.


def test_a_batch_is_as_the_glossary_says(images):
  fields = {f"task_{name}": {name: field} for name, field in READ.items()}
  (batch,) = train(images, 1, fields, label_stride=4)
  got = {k: (v.shape, str(v.dtype)) for k, v in flatten(batch).items()}
  present = {"present": ((4,), "bool")}
  maps = (4, 8, 12)
  expected = {
    "image": ((4, 32, 48, 3), "uint8"),
    "valid": ((4,), "bool"),
    "content_size": ((4, 2), "float32"),
    "original_size": ((4, 2), "float32"),
    "position": ((4,), "int32"),
    "key": ((4,), "object"),
    "labels": {
      "task_label": {"label": {"probs": ((4, 3), "float32"), **present}},
      "task_objects": {
        "objects": {
          "boxes": ((4, 4, 4), "float32"),
          "classes": ((4, 4), "int32"),
          "scores": ((4, 4), "float32"),
          "valid": ((4, 4), "bool"),
          "ignore": ((4, 4), "bool"),
          "known": ((4, 3), "bool"),
          **present,
        }
      },
      "task_mask": {
        "mask": {
          "classes": (maps, "int32"),
          "known": ((4, 3), "bool"),
          **present,
        }
      },
      "task_depth": {
        "depth": {"values": (maps, "float32"), "valid": (maps, "bool")}
        | present
      },
      "task_normals": {
        "normals": {
          "vectors": ((*maps, 3), "float32"),
          "valid": (maps, "bool"),
          **present,
        }
      },
    },
  }
  assert got == flatten(expected)
  assert batch["position"].tolist() == [0, 1, 2, 3]
  scale = batch["content_size"] / batch["original_size"]  # of what is seen
  assert (scale > 0.45).all() and (scale < 2.2).all()
  assert (batch["original_size"] <= INPUT).all()
  batch = evaluate(images)[0]
  assert batch["original_size"].tolist() == [list(INPUT)] * 4


def test_labels_are_those_of_their_image(images):
  fields = {"all": READ}
  seen = 0
  for batch in evaluate(images, fields, label_stride=4):
    labels = batch["labels"]["all"]
    for i in np.flatnonzero(batch["valid"]):
      number = number_of(batch["key"][i])
      kind = number % 3
      assert np.abs(batch["image"][i].astype(int) - 5 * number).max() <= 1
      assert batch["content_size"][i].tolist() == [32, 48]
      assert labels["label"]["probs"][i].tolist() == np.eye(3)[kind].tolist()
      boxes = [[0, 0, 16, 24], [8, 12, 32, 48]][:kind]
      assert labels["objects"]["present"][i]
      assert labels["objects"]["valid"][i].sum() == len(boxes)
      assert labels["objects"]["boxes"][i, : len(boxes)].tolist() == boxes
      assert (labels["mask"]["classes"][i] == kind).all()
      np.testing.assert_allclose(labels["depth"]["values"][i], number + 1)
      np.testing.assert_allclose(
        labels["normals"]["vectors"][i, 3, 5], [0, 0.6, -0.8], atol=1e-4
      )
      seen += 1
  assert seen == COUNT


def test_evaluation_covers_every_record_once(images):
  batches = evaluate(images)
  assert [b["valid"].sum() for b in batches] == [4, 4, 4, 4, 4, 2]
  valid = np.concatenate([b["valid"] for b in batches])
  assert sorted(np.array(keys(batches))[valid]) == sorted(
    f"key{i}".encode() for i in range(COUNT)
  )
  last = batches[-1]
  assert last["position"].tolist() == [20, 21, -1, -1]
  assert last["labels"]["what"]["label"]["present"].tolist() == [1, 1, 0, 0]
  assert (last["image"][2:] == (124, 116, 104)).all()


def test_a_shard_by_itself(images):
  batches = evaluate(images, fields={}, shard=1)
  positions = np.concatenate([b["position"] for b in batches])
  assert positions.tolist() == [0, 1, 2, 3, 4, 5, 6, -1]
  # Examples were dealt out to the shards in turn.
  expected = [f"key{i}".encode() for i in range(1, COUNT, 3)]
  assert keys(batches)[:7] == expected
  with pytest.raises(ValueError, match="Shard 3 is asked for"):
    evaluate(images, shard=3)


# The order.


def test_every_epoch_is_a_permutation(images):
  got = np.array(keys(train(images, 22)))
  for epoch in range(4):
    part = got[epoch * COUNT : (epoch + 1) * COUNT]
    assert len(set(part)) == COUNT
  assert got[:COUNT].tolist() != got[COUNT : 2 * COUNT].tolist()


def test_resuming_continues_exactly(images):
  fields = {"all": READ}
  whole = train(images, 9, fields)
  assert len({b["image"].tobytes() for b in whole}) == 9
  for start in (1, 7):
    for a, b in zip(
      whole[start:],
      train(images, 9 - start, fields, start_step=start),
      strict=True,
    ):
      assert_equal(a, b)


@pytest.mark.parametrize("count", [2, 4])
def test_global_batches_do_not_depend_on_the_processes(images, count):
  parts = [
    train(images, 5, process_index=i, process_count=count) for i in range(count)
  ]
  for whole, *rows in zip(train(images, 5), *parts, strict=True):
    assert_equal(flatten(whole), concatenate(rows))
  parts = [
    evaluate(images, process_index=i, process_count=count) for i in range(count)
  ]
  for whole, *rows in zip(evaluate(images), *parts, strict=True):
    assert_equal(flatten(whole), concatenate(rows))


def test_threads_change_nothing(images):
  one = ReadOptions(num_threads=1, prefetch=1)
  many = ReadOptions(num_threads=5, prefetch=4)
  for a, b in zip(
    train(images, 6, options=one), train(images, 6, options=many), strict=True
  ):
    assert_equal(a, b)


def test_seeds_change_order_and_augmentation(images):
  (a,), (b,) = train(images, 1), train(images, 1, seed=4)
  assert a["key"].tolist() != b["key"].tolist()
  (c,) = train(images, 1, batch_size=COUNT)
  (d,) = train(images, 1, batch_size=COUNT, seed=4)
  order = [np.argsort(x["key"]) for x in (c, d)]
  c, d = (x["image"][o] for x, o in zip((c, d), order, strict=True))
  assert (c != d).any((1, 2, 3)).mean() > 0.3


def test_two_views_of_each_image(images):
  options = {"augment": AugmentOptions(resize="inception_crop")}
  one = train(images, 5, **options)
  two = train(images, 5, views=2, **options)
  for a, b in zip(one, two, strict=True):
    assert b["image"].shape == (4, 2, *INPUT, 3)
    np.testing.assert_array_equal(a.pop("image"), b.pop("image")[:, 0])
    a, b = flatten(a), flatten(b)
    for name, value in a.items():
      np.testing.assert_array_equal(value, b[name])


def test_views_see_other_parts_of_the_image(tmp_path):
  photo = tf.random.stateless_uniform((6, 8, 3), [1, 2]) * 255
  photo = tf.cast(tf.image.resize(photo, INPUT), tf.uint8)
  data = tf.io.encode_jpeg(photo).numpy()
  noise = write_images(tmp_path, (example(i, data) for i in range(4)))
  (batch,) = train(
    noise,
    1,
    views=3,
    augment=AugmentOptions(resize="inception_crop"),
  )
  first, second, third = np.moveaxis(batch["image"].astype(float), 1, 0)
  for a, b in itertools.combinations((first, second, third), 2):
    assert (np.abs(a - b).mean((1, 2, 3)) > 3).all()


# Unusable records.


def break_record(directory, shard, index):
  path = directory / f"toy-train-{shard:05d}-of-00003.tfrecord"
  offsets = np.frombuffer(path.with_suffix(".offsets").read_bytes(), "<u8")
  data = bytearray(path.read_bytes())
  data[int(offsets[index]) + 20] ^= 1
  path.write_bytes(data)


def assert_only_differ_at(clean, broken, lost):
  """All examples are the same but for the lost ones, which are empty."""
  for a, b in zip(clean, broken, strict=True):
    gone = np.array([key in lost for key in a["key"]])
    np.testing.assert_array_equal(b["valid"], a["valid"] & ~gone)
    a, b = flatten(a), flatten(b)
    for name, value in a.items():
      np.testing.assert_array_equal(value[~gone], b[name][~gone])
      if name.endswith("/present"):
        assert not b[name][gone].any()


def test_a_corrupt_record_costs_itself_only(images, tmp_path):
  write_images(tmp_path)
  break_record(tmp_path, 1, 2)  # key7
  broken = ImageSet.open(tmp_path, "train")
  noted = []
  options = ReadOptions(on_bad=noted.append)
  got = train(broken, 12, options=options)  # twice
  assert_only_differ_at(train(images, 12), got, {b"key7"})
  (bad,) = noted
  assert bad.shard.endswith("toy-train-00001-of-00003.tfrecord")
  assert (bad.index, bad.key) == (2, b"")
  assert "checksum" in bad.reason
  got = evaluate(broken, options=options)
  assert_only_differ_at(evaluate(images), got, {b"key7"})
  assert np.concatenate([b["position"] for b in got])[:COUNT].tolist() == [
    *range(COUNT)
  ]


def test_undecodable_images_cost_themselves_only(images, tmp_path):
  lost = {
    3: jpeg(3)[:-30],  # its end is missing
    4: jpeg(4)[:200],
    9: damaged_png(),  # header and pixels disagree
    17: tf.io.encode_png(np.zeros((*INPUT, 3), np.uint8)).numpy()[:60],
  }
  broken = write_images(
    tmp_path, (example(i, lost.get(i)) for i in range(COUNT))
  )
  noted = []
  options = ReadOptions(on_bad=noted.append)
  names = {f"key{i}".encode() for i in lost}
  got = train(broken, 12, options=options)
  assert_only_differ_at(train(images, 12), got, names)
  assert sorted(bad.key for bad in noted) == sorted(names)
  assert all("Invalid" in bad.reason for bad in noted)
  got = evaluate(broken, options=options)
  assert_only_differ_at(evaluate(images), got, names)
  # The keys are known, so that a label record can be written.
  assert set(keys(got)[:COUNT]) == {f"key{i}".encode() for i in range(COUNT)}


def test_a_shard_is_made_as_the_whole_set_is(tmp_path):
  lost = {3: jpeg(3)[:-30], 9: damaged_png()}
  broken = write_images(
    tmp_path, (example(i, lost.get(i)) for i in range(COUNT)), num_shards=1
  )
  noted = [], []
  whole, shard = (
    evaluate(broken, shard=shard, options=ReadOptions(on_bad=bad.append))
    for shard, bad in zip((None, 0), noted, strict=True)
  )
  for a, b in zip(whole, shard, strict=True):
    assert_equal(a, b)
  for bad in noted:
    assert sorted(record.key for record in bad) == [b"key3", b"key9"]


def damaged_png():
  image = bytearray(tf.io.encode_png(np.zeros((*INPUT, 3), np.uint8)).numpy())
  image[-30] ^= 255
  return bytes(image)


def test_images_larger_than_they_say(images, tmp_path):
  def encode(key):
    record = records.encode_example(**example(number_of(key)), fields=FIELDS)
    if key != b"key5":
      return record
    message = tf.train.Example.FromString(record)
    message.features.feature["height"].int64_list.value[0] = 31
    return message.SerializeToString()

  write_labels(tmp_path / "x", images, encode)
  (tmp_path / "x" / "manifest.json").unlink()
  index = dict(images.index)
  shards = []
  for listed in images.shards:
    path = tmp_path / "x" / listed.file
    shards.append(
      dataclasses.asdict(listed) | {"num_bytes": path.stat().st_size}
    )
  index["splits"] = {"train": {**index["splits"]["train"], "shards": shards}}
  (tmp_path / "x" / "index.json").write_text(json.dumps(index))
  noted = []
  broken = ImageSet.open(tmp_path / "x", "train")
  evaluate(broken, options=ReadOptions(on_bad=noted.append))
  assert [bad.key for bad in noted] == [b"key5"]
  assert "size in the header is not as it must be" in noted[0].reason


@pytest.mark.parametrize(
  "change, reason",
  [
    (lambda f: f.pop("image"), "image is not as it must be"),
    (lambda f: f.pop("mask/png"), "mask/png is not as it must be"),
    (
      lambda f: f["height"].int64_list.value.__setitem__(0, 1 << 62),
      "size of the image",
    ),
  ],
)
def test_incomplete_records_are_no_examples(tmp_path, change, reason):
  images = write_images(tmp_path / "clean")
  message = tf.train.Example.FromString(images.read(5))
  change(message.features.feature)
  key = message.features.feature["key"].bytes_list.value[0]
  (tmp_path / "broken").mkdir()
  shards = []
  for number, listed in enumerate(images.shards):
    with RecordWriter(tmp_path / "broken" / listed.file) as writer:
      for record in images.reader(number):
        same = records.parse_key(tf.constant(record)).numpy() == key
        writer.write(message.SerializeToString() if same else record)
    shards.append(dataclasses.asdict(listed) | {"num_bytes": writer.num_bytes})
  index = {**images.index}
  index["splits"] = {"train": {**index["splits"]["train"], "shards": shards}}
  (tmp_path / "broken/index.json").write_text(json.dumps(index))
  noted = []
  batches = evaluate(
    ImageSet.open(tmp_path / "broken", "train"),
    {"what": {"mask": READ["mask"]}},
    options=ReadOptions(on_bad=noted.append),
  )
  assert [bad.key for bad in noted] == [key]
  assert reason in noted[0].reason
  assert sum(b["valid"].sum() for b in batches) == COUNT - 1


def test_what_stops_a_read_costs_the_broken_record_only(images, tmp_path):
  def without_image(record):
    message = tf.train.Example.FromString(record)
    if message.features.feature["key"].bytes_list.value[0] == b"key9":
      del message.features.feature["image"]
    return message.SerializeToString()

  shards = []
  for number, listed in enumerate(images.shards):
    with RecordWriter(tmp_path / listed.file) as writer:
      for record in images.reader(number):
        writer.write(without_image(record))
    shards.append(dataclasses.asdict(listed) | {"num_bytes": writer.num_bytes})
  index = dict(images.index)
  index["splits"] = {"train": {**index["splits"]["train"], "shards": shards}}
  (tmp_path / "index.json").write_text(json.dumps(index))
  broken = ImageSet.open(tmp_path, "train")
  noted = []
  # Many steps share a read, and some steps begin one.
  for kwargs in ({"batch_size": 1}, {"batch_size": 6, "process_count": 3}):
    options = ReadOptions(on_bad=noted.append)
    got = train(broken, 150, options=options, **kwargs)
    assert_only_differ_at(train(images, 150, **kwargs), got, {b"key9"})
  assert [bad.key for bad in noted] == [b"key9"] * 2
  assert {bad.reason for bad in noted} == {"image is not as it must be"}


def test_too_many_bad_records_stop_the_run(tmp_path):
  broken = write_images(
    tmp_path,
    (example(i, jpeg(i)[: -30 if i % 7 == 0 else None]) for i in range(COUNT)),
  )  # 4 of 22
  options = ReadOptions(free_bad=0, max_bad=0.1, on_bad=lambda b: None)
  with pytest.raises(TooManyBad, match=r"(?s)records.*10.00%.*key0"):
    evaluate(broken, options=options)
  for allowed in ({"max_bad": 0.26}, {"max_bad": None}, {"free_bad": 4}):
    options = dataclasses.replace(options, **{"max_bad": 0.1, **allowed})
    assert len(evaluate(broken, options=options)) == 6


def test_bad_records_are_written_down_once(tmp_path):
  broken = write_images(
    tmp_path / "set",
    (example(i, jpeg(i)[: -30 if i == 9 else None]) for i in range(COUNT)),
  )
  path = tmp_path / "quarantine/00000.jsonl"
  for _ in range(2):  # a run, and the same again
    options = ReadOptions(on_bad=Quarantine(path))
    evaluate(broken, options=options)
    train(broken, 12, options=options)
  (line,) = path.read_text().splitlines()
  entry = json.loads(line)
  assert entry["key"] == "key9"
  assert entry["shard"].endswith("toy-train-00000-of-00003.tfrecord")
  assert entry["index"] == 3
  assert "JPEG" in entry["reason"]


# Label sets.


def pseudo(key, status="ok", **labels):
  return records.encode_labels(key, status, labels, fields=FIELDS)


def test_pseudo_labels_are_thresholded_when_read(images, tmp_path):
  def encode(key):
    return pseudo(
      key,
      objects={
        "boxes": [[0, 0, 1, 1], [0, 0, 0.5, 1]],
        "classes": [0, number_of(key) % 3],
        "scores": [0.3, 0.9],
      },
      mask={"classes": np.ones((2, 3), int), "confidence": CONFIDENCE},
      label={"classes": [0, 2], "probs": [0.25, 0.5]},
    )

  confidence = CONFIDENCE
  write_labels(tmp_path / "teacher", images, encode)
  sources = [source(images, str(tmp_path / "teacher"), ("low", "high"))]
  names = ("label", "objects", "mask")
  fields = {
    "low": {
      "objects": Boxes(3, 4, min_score=0.0),
      "mask": ClassMap(3, 0.0),
      "label": ClassVector(3),
    },
    "high": {name: READ[name] for name in names},
  }
  for batch in evaluate(images, fields, sources=sources, label_stride=16):
    for i in np.flatnonzero(batch["valid"]):
      kind = number_of(batch["key"][i]) % 3
      low, high = (batch["labels"][task] for task in ("low", "high"))
      # Best first.
      assert low["objects"]["valid"][i].tolist() == [1, 1, 0, 0]
      assert low["objects"]["classes"][i].tolist() == [kind, 0, 0, 0]
      assert high["objects"]["valid"][i].tolist() == [1, 0, 0, 0]
      assert high["objects"]["boxes"][i, 0].tolist() == [0, 0, 16, 48]
      np.testing.assert_allclose(
        high["objects"]["scores"][i], [0.9, 0, 0, 0], rtol=1e-6
      )
      assert (low["mask"]["classes"][i] == 1).all()
      np.testing.assert_array_equal(
        high["mask"]["classes"][i], np.where(confidence >= 0.5, 1, 255)
      )
      assert low["label"]["probs"][i].tolist() == [0.25, 0, 0.5]


CONFIDENCE = np.array([[0.1, 0.5, 0.9], [0.49, 0.51, 1.0]])


def test_an_image_without_labels_from_its_teacher(images, tmp_path):
  def encode(key):
    if key == b"key3":
      return pseudo(key, "undecodable")
    return pseudo(key, label={"classes": [1]})

  write_labels(tmp_path / "teacher", images, encode)
  sources = [source(images, str(tmp_path / "teacher"))]
  batches = evaluate(images, sources=sources)
  present = np.concatenate(
    [b["labels"]["what"]["label"]["present"] for b in batches]
  )
  names = np.array(keys(batches))
  assert set(names[~present]) == {b"key3", b""}
  assert all(b["valid"].any() for b in batches)


def test_labels_of_other_images_are_refused(images, tmp_path):
  def encode(key):
    return pseudo(b"other" if key == b"key4" else key, label={"classes": [1]})

  write_labels(tmp_path / "teacher", images, encode)
  sources = [source(images, str(tmp_path / "teacher"))]
  message = (
    "record 1 of .*images.*toy-train-00001.* has key b'key4',"
    " record 1 of .*teacher.*toy-train-00001.* has b'other'"
  )
  with pytest.raises(ValueError, match=message):
    evaluate(images, sources=sources)


def test_a_corrupt_label_record_costs_itself_only(images, tmp_path):
  write_labels(
    tmp_path / "t", images, lambda key: pseudo(key, label={"classes": [1]})
  )
  break_record(tmp_path / "t", 2, 0)
  sources = [source(images, str(tmp_path / "t"))]
  noted = []
  options = ReadOptions(on_bad=noted.append)
  batches = evaluate(images, sources=sources, options=options)
  assert sum(b["valid"].sum() for b in batches) == COUNT - 1
  assert len(noted) == 1
  assert str(tmp_path / "t") in noted[0].reason


# Several sources.


def test_a_union_is_one_set(images, tmp_path):
  other = write_images(
    tmp_path,
    (example(i) | {"key": f"key{i + 100}"} for i in range(5)),
    num_shards=1,
  )
  sources = [source(images), source(other, labels=None)]
  batches = evaluate(images, sources=sources)
  assert sum(b["valid"].sum() for b in batches) == COUNT + 5
  present = np.concatenate(
    [b["labels"]["what"]["label"]["present"] for b in batches]
  )
  assert present[: COUNT + 5].tolist() == [True] * COUNT + [False] * 5
  got = keys(train(images, 27, sources=sources))
  assert len(set(got[:27])) == 27


def other_set(directory, classes=CLASSES, kind="ClassVector", label=None):
  fields = {"label": {"kind": kind, "classes": classes}}
  wanted = example(0) | {"key": "other"}
  wanted["labels"] = {} if label is None else {"label": {"classes": [label]}}
  return write_images(directory, [wanted], fields, num_shards=1)


@pytest.mark.parametrize(
  "kwargs, message",
  [
    ({"classes": ["cat", "dog", "fish"]}, r"\['bird'\].*\['fish'\]"),
    ({"classes": ["cat", "dog"]}, r"only the first has \['bird'\]"),
    ({"kind": "Boxes"}, "as ClassVector; in .* it is a Boxes"),
  ],
)
def test_sources_must_agree(images, tmp_path, kwargs, message):
  sources = [source(images), source(other_set(tmp_path, **kwargs))]
  with pytest.raises(ValueError, match=message):
    evaluate(images, sources=sources)


@pytest.mark.parametrize(
  "names, label", [(["dog", "bird", "cat"], 1), (["bird"], 0)]
)
def test_class_ids_are_matched_by_name(images, tmp_path, names, label):
  sources = [source(images), source(other_set(tmp_path, names, label=label))]
  batches = evaluate(images, sources=sources, classes={"what": CLASSES})
  probs = np.concatenate(
    [b["labels"]["what"]["label"]["probs"] for b in batches]
  )
  assert keys(batches)[COUNT] == b"other"
  assert probs[COUNT].tolist() == [0, 0, 1]  # bird
  clean = evaluate(images)
  expected = np.concatenate(
    [b["labels"]["what"]["label"]["probs"] for b in clean]
  )
  np.testing.assert_array_equal(probs[:COUNT], expected[:COUNT])


def test_boxes_and_maps_are_matched_by_name_too(tmp_path):
  reverse = CLASSES[::-1]
  fields = {
    "objects": {"kind": "Boxes", "classes": reverse},
    "mask": {"kind": "ClassMap", "classes": reverse},
  }
  mask = np.full(INPUT, 0)
  mask[:, 24:], mask[16:] = 255, 2
  wanted = example(1)
  wanted["labels"] = {
    "objects": wanted["labels"]["objects"],
    "mask": {"classes": mask},
  }
  images = write_images(tmp_path, [wanted], fields, num_shards=1)
  read = {"what": {name: READ[name] for name in fields}}
  (plain,) = evaluate(images, read, batch_size=1)
  (got,) = evaluate(images, read, batch_size=1, classes={"what": CLASSES})
  names = [plain, got]
  boxes, masks = (
    [batch["labels"]["what"][name]["classes"][0] for batch in names]
    for name in fields
  )
  assert boxes[0][0] == 1 and boxes[1][0] == 1  # the one in the middle
  swapped = np.array([2, 1, 0] + [255] * 253)[masks[0]]
  np.testing.assert_array_equal(masks[1], swapped)
  assert set(np.unique(masks[1])) == {0, 2, 255}


def test_label_sets_serve_images_without_labels(images, tmp_path):
  examples = [example(i) for i in range(COUNT)]
  for wanted in examples[::2]:
    del wanted["labels"]["label"]
  partly = write_images(tmp_path / "set", examples)
  write_labels(
    tmp_path / "t", partly, lambda key: pseudo(key, label={"classes": [2]})
  )
  origins = (SUPERVISED, str(tmp_path / "t"))
  assert labels_of(partly, origins) == {
    i: i % 3 if i % 2 else 2 for i in range(COUNT)
  }
  assert labels_of(partly, origins[::-1]) == dict.fromkeys(range(COUNT), 2)
  with pytest.raises(ValueError, match="where one comes twice"):
    labels_of(partly, (*origins, SUPERVISED))


def labels_of(images, origins, fields=LABEL):
  """{number: class} of the images that have a label."""
  batches = evaluate(images, fields, sources=[source(images, origins)])
  return {
    number_of(key): int(probs.argmax())
    for batch in batches
    for key, probs, present in zip(
      batch["key"],
      *map(batch["labels"]["what"]["label"].get, ("probs", "present")),
      strict=True,
    )
    if present
  }


def test_each_image_has_the_first_labels_that_it_is_in(images, tmp_path):
  examples = [example(i) for i in range(COUNT)]
  for wanted in examples:
    if number_of(wanted["key"].encode()) % 6:  # has 0, 6, ...
      del wanted["labels"]["label"]
  own = write_images(tmp_path / "set", examples)

  def people(key):
    number = number_of(key)
    if number % 6 == 1:
      return pseudo(key, "rejected")
    if number % 6 == 2:
      return pseudo(key, "corrected", label={"classes": [1]})
    if number % 6 == 3:
      return pseudo(key, "undecodable")
    return pseudo(key)  # nobody has looked

  def first(key):
    if number_of(key) % 6 == 4:
      return pseudo(key, label={"classes": [0]})
    return pseudo(key)

  write_labels(tmp_path / "people", own, people)
  write_labels(tmp_path / "first", own, first)
  write_labels(
    tmp_path / "last", own, lambda key: pseudo(key, label={"classes": [2]})
  )
  sets = [str(tmp_path / name) for name in ("people", "first", "last")]
  said = {0: 0, 2: 1, 3: 2, 4: 0, 5: 2}  # by the rest of division by 6
  expected = {i: said[i % 6] for i in range(COUNT) if i % 6 in said}
  assert labels_of(own, (SUPERVISED, *sets)) == expected
  # Own labels are as any other: here what people said of 1, 7, ... is first.
  assert labels_of(own, (*sets[:2], SUPERVISED, sets[2])) == expected
  # What nobody knows anything of has no label.
  assert set(labels_of(own, sets[:2])) == {
    i for i in range(COUNT) if i % 6 in (2, 4)
  }
  # A broken record of any of them costs its image alone.
  break_record(tmp_path / "first", 1, 0)
  found = labels_of(own, (SUPERVISED, *sets))
  assert len(found) in (len(expected) - 1, len(expected))
  assert found.items() <= expected.items()


def test_confidence_is_in_a_batch_where_a_task_asks_for_it(images, tmp_path):
  def encode(key):
    mask = {"classes": np.ones((2, 3), int), "confidence": CONFIDENCE}
    status = ["ok", "corrected", "undecodable"][number_of(key) % 3]
    return pseudo(key, status, **{"mask": mask} if status[0] != "u" else {})

  write_labels(tmp_path / "teacher", images, encode)
  field = ClassMap(3, min_score=0.5, with_confidence=True)
  plain = dataclasses.replace(field, with_confidence=False)
  sources = [source(images, (str(tmp_path / "teacher"), SUPERVISED))]
  batches, without = (
    evaluate(images, {"what": {"mask": f}}, sources=sources)
    for f in (field, plain)
  )
  for batch, other in zip(batches, without, strict=True):
    mask = batch["labels"]["what"]["mask"]
    np.testing.assert_array_equal(
      mask["classes"], other["labels"]["what"]["mask"]["classes"]
    )
    known = mask["classes"] != 255
    assert (mask["confidence"][~known] == 0).all()
    for key, found, where in zip(
      batch["key"], mask["confidence"], known, strict=True
    ):
      if key and number_of(key) % 3:  # people, and the set's own labels
        assert where.all() and (found == 1).all()
      elif key:
        stored = np.kron(CONFIDENCE, np.ones((16, 16)))
        assert (where == (stored >= 0.5)).all()
        np.testing.assert_allclose(found[where], stored[where], atol=1 / 510)


def test_a_set_tells_which_classes_it_knows(images, tmp_path):
  names = CLASSES
  some = {"objects": FIELDS["objects"] | {"classes": names[1:]}}

  def encode(key):
    labels = {"boxes": [[0, 0, 1, 1]], "classes": [1], "scores": [0.9]}
    status = "ok" if number_of(key) % 2 else "undecodable"
    found = {"objects": labels} if status == "ok" else {}
    return records.encode_labels(key, status, found, fields=some)

  write_labels(tmp_path / "some", images, encode, some)
  fields = {"what": {"objects": READ["objects"]}}
  origins = (str(tmp_path / "some"), SUPERVISED)
  batches = evaluate(
    images,
    fields,
    sources=[source(images, origins)],
    classes={"what": tuple(names)},
  )
  for batch in batches:
    objects = batch["labels"]["what"]["objects"]
    for key, known, classes, valid in zip(
      batch["key"],
      *map(objects.get, ("known", "classes", "valid")),
      strict=True,
    ):
      if not key:
        continue
      assert known.tolist() == [number_of(key) % 2 == 0, True, True]
      if number_of(key) % 2:
        assert classes[valid].tolist() == [2]  # its second is our third


def test_shares_of_the_sources(images, tmp_path):
  other = write_images(
    tmp_path,
    (example(i) | {"key": f"other{i}"} for i in range(5)),
    num_shards=1,
  )
  sources = [source(images), source(other)]
  got = keys(train(images, 20, sources=sources, shares=[1, 3]))
  assert sum(key.startswith(b"other") for key in got) == 60
  batches = train_batches(
    sources,
    LABEL,
    batch_size=4,
    image_size=INPUT,
    shares=[1, 3],
    block_size=4,
    window_blocks=2,
  )
  assert batches.counts(20).tolist() == [20, 60]


def test_metres_do_not_follow_from_inverse_depth(tmp_path):
  fields = {"depth": {"kind": "ValueMap", "unit": "inverse"}}
  wanted = example(0)
  wanted["labels"] = {"depth": wanted["labels"]["depth"]}
  inverse = write_images(tmp_path, [wanted], fields, num_shards=1)
  read = {"what": {"depth": ValueMap(unit="metres")}}
  with pytest.raises(ValueError, match="inverse depth of unknown scale"):
    evaluate(inverse, read)


@pytest.mark.parametrize(
  "fields, kwargs, message",
  [
    ({"what": {"label": ClassVector(4)}}, {}, "has 4 classes"),
    ({"what": {"flow": ValueMap()}}, {}, "reads 'flow'; .*'depth'"),
    (LABEL, {"image_size": (32, 46), "label_stride": 4}, "multiples of"),
    (LABEL, {"batch_size": 4, "process_count": 3}, "3 processes"),
    (LABEL, {"sources": []}, "no sources"),
  ],
)
def test_what_does_not_fit_is_refused(images, fields, kwargs, message):
  with pytest.raises(ValueError, match=message):
    train(images, 1, fields, **kwargs)
  with pytest.raises(ValueError, match=message):
    evaluate(images, fields, **kwargs)


# Decoding.


@pytest.mark.parametrize("kind", ["png", "jpeg", "png16", "grey"])
def test_windows_of_images(kind):
  pixels = tf.random.stateless_uniform((37, 53, 3), [1, 2]) * 255
  pixels = tf.image.resize(pixels[::8, ::8], (37, 53))
  image = {
    "png": lambda: tf.io.encode_png(tf.cast(pixels, tf.uint8)),
    "png16": lambda: tf.io.encode_png(tf.cast(pixels * 257, tf.uint16)),
    "jpeg": lambda: tf.io.encode_jpeg(tf.cast(pixels, tf.uint8)),
    "grey": lambda: tf.io.encode_jpeg(tf.cast(pixels[..., :1], tf.uint8)),
  }[kind]()
  whole = tf.io.decode_image(image, channels=3, expand_animations=False)
  size = tf.constant([37, 53])
  for window in ([0, 0, 37, 53], [5, 7, 20, 31], [36, 52, 1, 1]):
    y, x, height, width = window
    got = records.decode_image(image, size, tf.constant(window))
    expected = whole[y : y + height, x : x + width]
    assert got.shape == expected.shape
    # A JPEG's colours are interpolated, but not across the window's border.
    inner = slice(1, -1) if kind == "jpeg" and width > 1 else slice(None)
    np.testing.assert_array_equal(got[:, inner], expected[:, inner])


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_windows_of_reduced_images(kind, reduction):
  pixels = tf.random.stateless_uniform((5, 6, 3), [1, 2]) * 255
  pixels = tf.cast(tf.image.resize(pixels, (67, 93)), tf.uint8)
  encode = {
    "png": tf.io.encode_png,
    "jpeg": lambda x: tf.io.encode_jpeg(x, quality=100),
  }[kind]
  window = np.array([1, 2, 5, 6]) * reduction
  got = records.decode_image(
    encode(pixels),
    tf.constant([67, 93]),
    tf.constant(window, tf.int32),
    reduction,
  ).numpy()
  y, x, height, width = window
  squares = pixels.numpy()[y : y + height, x : x + width].astype(float)
  squares = squares.reshape(5, reduction, 6, reduction, 3).mean((1, 3))
  assert got.shape == squares.shape
  # libjpeg drops high frequencies where the mean weighs them.
  assert np.abs(got - squares).max() <= (0.51 if kind == "png" else 12)
  assert np.abs(got - squares).mean() < 2


def test_images_may_keep_their_size(tmp_path):
  sizes = [(20, 30), (8, 50), (33, 7), (16, 16), (5, 9)]
  directory = tmp_path / "images"
  set_writer.write_image_set(
    directory,
    "sizes",
    "train",
    (
      example(i, jpeg(i + 1, size))
      | {"height": size[0], "width": size[1], "labels": {}}
      for i, size in enumerate(sizes)
    ),
    {},
    num_shards=1,
  )
  source = Source(str(directory), "train")
  batches = list(eval_batches([source], {}, batch_size=2, image_size=None))
  assert [batch["image"].shape[1:3] for batch in batches] == [
    (20, 50),
    (33, 16),
    (5, 9),
  ]
  seen = []
  for batch in batches:
    for row in np.flatnonzero(batch["valid"]):
      height, width = batch["content_size"][row].astype(int)
      seen.append((height, width))
      number = len(seen)
      content = batch["image"][row, :height, :width]
      np.testing.assert_allclose(content, 5 * number, atol=1)
      assert not batch["image"][row, height:].any()
  assert seen == sizes
