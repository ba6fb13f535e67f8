import dataclasses
import hashlib
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from must_jax.storage import set_writer, tfrecord
from must_jax.storage.path import publish
from must_jax.storage.sets import ImageSet, LabelSet, key_digest
from must_jax.storage.tfrecord import CorruptRecord, RecordWriter, ShardReader

FIELDS = {"label": {"kind": "ClassVector", "classes": ["cat", "dog"]}}
RECORDS = [b"", b"a", b"0123456789" * 5, bytes(range(256))]


def write(path, contents=RECORDS):
  with RecordWriter(path) as writer:
    for record in contents:
      writer.write(record)
  return writer


def example(key, classes=(0,)):
  image = tf.io.encode_png(np.zeros((2, 3, 3), np.uint8)).numpy()
  return {
    "key": key,
    "image": image,
    "height": 2,
    "width": 3,
    "labels": {"label": {"classes": list(classes)}},
  }


def write_set(directory, count=10, split="train", **kwargs):
  kwargs = {"num_shards": 3, "licence": "CC0"} | kwargs
  examples = (example(f"key{i}", [i % 2]) for i in range(count))
  fields = kwargs.pop("fields", FIELDS)
  return set_writer.write_image_set(
    directory, "toy", split, examples, fields, **kwargs
  )


def read_outcomes(reader):
  """What each record reads as; None where it is corrupt."""
  outcomes = []
  for i in range(len(reader)):
    try:
      outcomes.append(reader.read(i))
    except CorruptRecord as error:
      assert error.index == i
      outcomes.append(None)
  return outcomes


def test_files_are_those_of_tensorflow(tmp_path):
  writer = write(tmp_path / "ours.tfrecord")
  with tf.io.TFRecordWriter(str(tmp_path / "theirs.tfrecord")) as theirs:
    for record in RECORDS:
      theirs.write(record)
  ours = (tmp_path / "ours.tfrecord").read_bytes()
  assert ours == (tmp_path / "theirs.tfrecord").read_bytes()
  assert writer.num_records == 4
  assert writer.num_bytes == len(ours)
  assert writer.checksum == hashlib.blake2b(ours, digest_size=16).hexdigest()
  offsets = (tmp_path / "ours.offsets").read_bytes()
  assert np.frombuffer(offsets, "<u8").tolist() == [0, 16, 33, 99, 371]
  assert list(ShardReader(tmp_path / "ours.tfrecord")) == RECORDS


def test_any_flipped_bit_costs_its_own_record_only(tmp_path):
  path = tmp_path / "x.tfrecord"
  write(path)
  data = path.read_bytes()
  starts = [0, 16, 33, 99, 371]
  reader = ShardReader(path)
  for place in range(len(data)):
    broken = bytearray(data)
    broken[place] ^= 1 << place % 8
    path.write_bytes(broken)
    hit = np.searchsorted(starts, place, side="right") - 1
    expected = [None if i == hit else r for i, r in enumerate(RECORDS)]
    assert read_outcomes(reader) == expected


def test_truncated_shard_keeps_its_beginning(tmp_path):
  path = tmp_path / "x.tfrecord"
  write(path)
  path.write_bytes(path.read_bytes()[:100])
  outcomes = read_outcomes(ShardReader(path))
  assert outcomes == [*RECORDS[:3], None]


def test_lengths_are_capped(tmp_path, monkeypatch):
  path = tmp_path / "x.tfrecord"
  write(path)
  monkeypatch.setattr(tfrecord, "MAX_RECORD_BYTES", 100)
  assert read_outcomes(ShardReader(path)) == [*RECORDS[:3], None]
  with pytest.raises(ValueError, match="at most 100"):
    write(tmp_path / "y.tfrecord", [b"x" * 101])
  assert not (tmp_path / "y.tfrecord").exists()


def test_offsets_that_lie_are_corrupt_records(tmp_path):
  path = tmp_path / "x.tfrecord"
  write(path)
  lies = np.array([0, 16, 8, 2**63, 371], "<u8")
  (tmp_path / "x.offsets").write_bytes(lies.tobytes())
  assert read_outcomes(ShardReader(path)) == [b"", None, None, None]


@pytest.mark.parametrize("content", [None, b"", b"1234567"])
def test_bad_offsets_file(tmp_path, content):
  write(tmp_path / "x.tfrecord")
  if content is None:
    (tmp_path / "x.offsets").unlink()
  else:
    (tmp_path / "x.offsets").write_bytes(content)
  with pytest.raises(ValueError, match=r"x\.offsets"):
    ShardReader(tmp_path / "x.tfrecord")


def test_nothing_remains_of_a_failed_write(tmp_path, monkeypatch):
  def fail():
    with RecordWriter(tmp_path / "x.tfrecord") as writer:
      writer.write(b"abc")
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fail()
  assert list(tmp_path.iterdir()) == []
  # Also where the offsets cannot be written.
  monkeypatch.setattr(tfrecord, "offsets_path", lambda p: tmp_path / "no" / "x")
  with pytest.raises(FileNotFoundError):
    write(tmp_path / "x.tfrecord")
  assert list(tmp_path.iterdir()) == []


def test_old_file_stays_until_the_new_one_is_complete(tmp_path):
  path = tmp_path / "file"
  path.write_bytes(b"old")
  with publish(path) as file:
    file.write(b"new")
    file.flush()
    assert path.read_bytes() == b"old"
  assert path.read_bytes() == b"new"
  assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_image_set(tmp_path):
  images = write_set(tmp_path / "set")
  assert images.num_records == 10
  assert [s.num_records for s in images.shards] == [4, 3, 3]
  assert images.fields["label"]["classes"] == ["cat", "dog"]
  assert (images.name, images.split, images.licence) == ("toy", "train", "CC0")
  places = [images.locate(i) for i in range(10)]
  assert places == [(s, i) for s, n in enumerate([4, 3, 3]) for i in range(n)]
  assert images.read(5) == images.reader(1).read(1)
  files = [str(images.directory / s.file) for s in images.shards]
  assert pathlib.Path(files[1]).name == "toy-train-00001-of-00003.tfrecord"
  theirs = list(tf.data.TFRecordDataset(files).as_numpy_iterator())
  assert theirs == [images.read(i) for i in range(10)]
  for shard in images.shards:
    data = (images.directory / shard.file).read_bytes()
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    assert shard.checksum == digest
  keys = [f"key{i}".encode() for i in range(0, 10, 3)]
  assert images.shards[0].keys == key_digest(keys)
  with pytest.raises(IndexError, match="10 records"):
    images.read(10)


def test_key_digest_tells_keys_apart():
  digests = [
    key_digest(keys)
    for keys in ([b"ab", b"c"], [b"a", b"bc"], [b"c", b"ab"], [b"abc"], [])
  ]
  assert len(set(digests)) == 5


def test_shards_are_filled_in_order(tmp_path):
  images = write_set(tmp_path, num_shards=None, records_per_shard=4)
  assert [s.num_records for s in images.shards] == [4, 4, 2]
  keys = [
    tf.train.Example.FromString(images.read(i)).features.feature["key"]
    for i in range(10)
  ]
  assert [k.bytes_list.value[0] for k in keys] == [
    f"key{i}".encode() for i in range(10)
  ]


def test_equal_examples_give_equal_bytes(tmp_path):
  for name in ("a", "b"):
    write_set(tmp_path / name)
  names = sorted(p.name for p in (tmp_path / "a").iterdir())
  assert len(names) == 7
  assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
  for name in names:
    a, b = (tmp_path / d / name for d in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_second_split_joins_the_first(tmp_path):
  write_set(tmp_path)
  rejected = []

  def examples():
    yield example("a")
    rejected.append({"key": "b", "reason": "no image"})

  set_writer.write_image_set(
    tmp_path, "toy", "test", examples(), FIELDS, "CC0", rejected=rejected
  )
  index = ImageSet.open(tmp_path, "train").index
  assert sorted(index["splits"]) == ["test", "train"]
  assert index["splits"]["test"]["num_records"] == 1
  assert index["splits"]["test"]["rejected"] == [
    {"key": "b", "reason": "no image"}
  ]


def test_an_index_lists_the_first_of_many_rejected(tmp_path):
  rejected = [{"key": f"k{i:04d}", "reason": "broken"} for i in range(1500)]

  def write(rejected):
    set_writer.write_image_set(
      *(tmp_path, "toy", "train", [example("a")], FIELDS),
      rejected=rejected,
      overwrite=True,
    )
    return ImageSet.open(tmp_path, "train").index["splits"]["train"]

  split = write(rejected[::-1])
  assert split["num_rejected"] == 1500
  assert split["rejected"] == rejected[:1000]
  lines = (tmp_path / "toy-train.rejected.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == rejected
  # The list goes with the split that it belongs to.
  assert write([])["num_rejected"] == 0
  assert not (tmp_path / "toy-train.rejected.jsonl").exists()


def test_other_splits_keep_their_files(tmp_path):
  for split in ("train", "train-2", "val"):
    write_set(tmp_path, split=split)
  before = {p.name for p in tmp_path.iterdir()}
  write_set(tmp_path, num_shards=2, overwrite=True)
  after = {p.name for p in tmp_path.iterdir()}
  assert {name.rpartition("-of-")[0] for name in before ^ after} == {
    f"toy-train-0000{i}" for i in range(3)
  }
  for split in ("train", "train-2", "val"):
    assert ImageSet.open(tmp_path, split).num_records == 10


def test_sets_of_older_versions_are_read(tmp_path):
  write_set(tmp_path)
  _edit_index(tmp_path, lambda i: i["splits"]["train"].pop("num_rejected"))
  assert ImageSet.open(tmp_path, "train").num_records == 10


def test_a_split_is_replaced_only_on_demand(tmp_path):
  write_set(tmp_path)
  before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
  with pytest.raises(ValueError, match="overwrite"):
    write_set(tmp_path, count=4)
  assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
  again = write_set(tmp_path, count=4, num_shards=2, overwrite=True)
  assert again.num_records == 4
  assert ImageSet.open(tmp_path, "train").num_records == 4
  assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize(
  "kwargs, message",
  [
    ({"fields": {"label": {"kind": "ClassVector", "classes": ["cat"]}}}, "cat"),
    ({"licence": "other"}, "licence"),
    ({"split": "../x"}, r"'\.\./x' cannot name"),
    ({"count": 0, "split": "new"}, "no examples"),
    ({"fields": {"label": {"kind": "Vector"}}, "split": "new"}, "Vector"),
  ],
)
def test_refusals(tmp_path, kwargs, message):
  write_set(tmp_path)
  before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
  with pytest.raises(ValueError, match=message):
    write_set(tmp_path, **kwargs)
  assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


@pytest.mark.parametrize(
  "examples, message",
  [
    ([example("a"), example("a")], "'a' comes twice"),
    ([example("a"), example("b", [2])], "from 0 to 1"),
  ],
)
def test_nothing_remains_of_a_failed_import(tmp_path, examples, message):
  with pytest.raises(ValueError, match=message):
    set_writer.write_image_set(
      tmp_path, "toy", "train", examples, FIELDS, records_per_shard=1
    )
  assert list(tmp_path.iterdir()) == []


def _edit_index(directory, edit):
  path = directory / "index.json"
  index = json.loads(path.read_text())
  edit(index)
  path.write_text(json.dumps(index))


def _shorten_offsets(directory):
  path = directory / "toy-train-00001-of-00003.offsets"
  path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
  "damage, message",
  [
    (lambda d: (d / "index.json").unlink(), "is no image set"),
    (lambda d: (d / "index.json").write_text("{"), "not valid JSON"),
    (lambda d: (d / "index.json").write_text("[]"), "schema_version None"),
    (
      lambda d: _edit_index(d, lambda i: i.update(schema_version=7)),
      "schema_version 7; this must_jax reads 1",
    ),
    (
      lambda d: _edit_index(d, lambda i: i["splits"].clear()),
      r"no split 'train'; it has \[\]",
    ),
    (
      lambda d: (d / "toy-train-00001-of-00003.tfrecord").unlink(),
      "00001-of-00003.tfrecord is missing",
    ),
    (
      lambda d: (d / "toy-train-00002-of-00003.offsets").unlink(),
      "00002-of-00003.offsets is missing",
    ),
    (_shorten_offsets, "24 bytes; 32 are expected for the 3 records"),
    (
      lambda d: _edit_index(
        d, lambda i: i["splits"]["train"]["shards"][0].update(file="../x")
      ),
      "not a file name",
    ),
  ],
)
def test_damaged_sets_are_refused(tmp_path, damage, message):
  write_set(tmp_path)
  damage(tmp_path)
  with pytest.raises(ValueError, match=message):
    ImageSet.open(tmp_path, "train")


def test_missing_directory(tmp_path):
  with pytest.raises(ValueError, match="is no directory"):
    ImageSet.open(tmp_path / "nowhere", "train")


# Label sets.


def write_labels(directory, images, keys=None, shards=None, **image_set):
  directory.mkdir()
  listed = []
  for shard in images.shards[:shards]:
    with RecordWriter(directory / shard.file) as writer:
      for _ in range(shard.num_records):
        writer.write(b"")
    entry = dataclasses.replace(
      shard,
      num_bytes=writer.num_bytes,
      checksum=writer.checksum,
      keys=keys or shard.keys,
    )
    listed.append(dataclasses.asdict(entry))
  manifest = {
    "schema_version": 1,
    "image_set": {"name": images.name, "split": images.split} | image_set,
    "fields": FIELDS,
    "teacher": {},
    "shards": listed,
  }
  (directory / "manifest.json").write_text(json.dumps(manifest))


def test_label_set(tmp_path):
  images = write_set(tmp_path / "images")
  write_labels(tmp_path / "labels", images)
  labels = LabelSet.open(tmp_path / "labels")
  labels.check_images(images)
  assert labels.fields["label"]["classes"] == ["cat", "dog"]
  assert labels.num_records == 10


@pytest.mark.parametrize(
  "kwargs, message",
  [
    ({"keys": "0" * 32}, "(?s)labels/toy-train-00000.*images/toy-train-00000"),
    ({"shards": 1}, "1 of the 3 shards.*00001-of-00003"),
    ({"name": "other"}, "'other'"),
    ({"split": "test"}, "'test'"),
  ],
)
def test_label_set_of_other_images(tmp_path, kwargs, message):
  images = write_set(tmp_path / "images")
  write_labels(tmp_path / "labels", images, **kwargs)
  with pytest.raises(ValueError, match=message):
    LabelSet.open(tmp_path / "labels").check_images(images)


def test_unfinished_label_set(tmp_path):
  images = write_set(tmp_path / "images")
  write_labels(tmp_path / "labels", images, shards=2)
  (tmp_path / "labels" / "manifest.json").unlink()
  for shard in images.shards[:2]:
    (tmp_path / "labels" / shard.file).with_suffix(".json").touch()
  with pytest.raises(ValueError, match="2 of 3 shards are done"):
    LabelSet.open(tmp_path / "labels")
