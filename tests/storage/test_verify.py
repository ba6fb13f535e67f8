import argparse
import json

import numpy as np
import pytest
import tensorflow as tf

from must_jax.fields import ClassMap
from must_jax.storage import set_writer, verify
from must_jax.storage.records import make_feature
from must_jax.storage.sets import key_digest
from must_jax.storage.tfrecord import RecordWriter, ShardReader

FIELDS = {
  "label": {"kind": "ClassVector", "classes": ["cat", "dog"]},
  "objects": {"kind": "Boxes", "classes": ["cat", "dog"]},
  "mask": {"kind": "ClassMap", "classes": ["sky", "floor"]},
  "depth": {"kind": "ValueMap", "unit": "metres"},
  "normals": {"kind": "VectorMap"},
}
SIZE = 6, 8
SHARD = "toy-train-00000-of-00002.tfrecord"
ONE_SHARD = "toy-train-00000-of-00001.tfrecord"


def jpeg(seed, size=SIZE):
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3))
  return tf.io.encode_jpeg(pixels.astype(np.uint8)).numpy()


def example(i):
  vectors = np.zeros((*SIZE, 3))
  vectors[..., 2] = -1
  labels = {
    "label": {"classes": [i % 2]},
    "objects": {"boxes": [[0.0, 0.25, 0.5, 1.0]], "classes": [1]},
    "mask": {"classes": np.full(SIZE, i % 2)},
    "depth": {"values": np.full(SIZE, 1.5)},
    "normals": {"vectors": vectors},
  }
  return {
    "key": f"key{i}",
    "image": jpeg(i),
    "height": SIZE[0],
    "width": SIZE[1],
    "labels": labels if i != 3 else {},  # an image may have no labels
  }


@pytest.fixture
def directory(tmp_path):
  for split, first, count in (("train", 0, 6), ("val", 100, 2)):
    examples = (example(first + i) for i in range(count))
    set_writer.write_image_set(
      tmp_path, "toy", split, examples, FIELDS, records_per_shard=3
    )
  return tmp_path


def edit_index(directory, edit):
  path = directory / "index.json"
  index = json.loads(path.read_text())
  edit(index)
  path.write_text(json.dumps(index))


def rewrite(directory, edits, file=SHARD):
  """Changes features of records by place; file and index go on to agree."""
  contents = list(ShardReader(directory / file))
  for place, edit in edits.items():
    record = tf.train.Example.FromString(contents[place])
    edit(record.features.feature)
    contents[place] = record.SerializeToString()
  with RecordWriter(directory / file) as writer:
    for content in contents:
      writer.write(content)

  def fit(index):
    shard = index["splits"]["train"]["shards"][0]
    shard["num_bytes"] = writer.num_bytes
    shard["checksum"] = writer.checksum

  edit_index(directory, fit)


def problems(directory, **options):
  reports = verify.verify(directory, **options)
  return [problem for report in reports for problem in report.problems]


def found(directory, **options):
  return [
    (p.shard, p.index, p.key, p.reason) for p in problems(directory, **options)
  ]


@pytest.mark.parametrize("decode", [True, False])
def test_what_was_written_has_no_problems(directory, decode):
  reports = list(verify.verify(directory, decode=decode, workers=2))
  assert [r.split for r in reports] == ["train", "train", "val"]
  assert [r.num_records for r in reports] == [3, 3, 2]
  assert [r.num_good for r in reports] == [3, 3, 2]
  assert all(not r.problems for r in reports)
  files = sorted(directory.glob("*.tfrecord"))
  assert [r.num_bytes for r in reports] == [f.stat().st_size for f in files]


def png16(shape):
  return tf.io.encode_png(np.ones(shape, np.uint16)).numpy()


def replace(name, feature):
  def edit(features):
    features[name].CopyFrom(feature)

  return edit


BROKEN = [
  (replace("image", make_feature(b"GIF89a")), "image: neither JPEG nor PNG"),
  (replace("image", make_feature(b"")), "image: image is not"),
  (replace("image", make_feature(jpeg(1)[:40])), "image: the image ends"),
  (replace("image", make_feature(jpeg(1)[:-60])), "image: "),
  (replace("image", make_feature(jpeg(1, (8, 6)))), "image: it has 8 x 6"),
  (replace("height", make_feature(np.array([60]))), "image: it has 6 x 8"),
  (
    replace("height", make_feature(np.array([1 << 40]))),
    "image: size of the image",
  ),
  (replace("width", make_feature(np.array([8, 8]))), "image: "),
  (
    replace("label/classes", make_feature(np.array([2]))),
    "field 'label': label: class",
  ),
  (
    replace("label/classes", make_feature(np.array([-1]))),
    "field 'label': label: class",
  ),
  (
    replace("label/probs", make_feature(np.array([1.5], float))),
    "field 'label': label/prob",
  ),
  (
    replace("objects/boxes", make_feature(np.array([0, 0, 0.5, 1.01], float))),
    "field 'objects': objects/boxes",
  ),
  (
    replace("objects/boxes", make_feature(np.array([0, 0, np.nan, 1], float))),
    "field 'objects': objects/boxes",
  ),
  (
    replace("objects/boxes", make_feature(np.array([0, 0, 1], float))),
    "field 'objects': objects/boxes",
  ),
  (
    replace("objects/scores", make_feature(np.array([0.5, 0.5], float))),
    "field 'objects': objects/scores",
  ),
  (
    replace(
      "mask/png",
      make_feature(ClassMap(8).encode({"classes": np.full(SIZE, 7)})["png"]),
    ),
    "field 'mask': mask: class id",
  ),
  (replace("mask/png", make_feature(b"broken")), "field 'mask': PNG"),
  (
    replace("depth/scale", make_feature(np.array([np.inf], float))),
    "field 'depth': depth/",
  ),
  (
    replace("depth/png", make_feature(png16((8, 6, 1)))),
    "field 'depth': values are 8 x 6",
  ),
  (
    replace("normals/png", make_feature(png16((6, 16, 3)))),
    "field 'normals': vectors are 6 x 16",
  ),
  (
    replace("flow/png", make_feature(b"")),
    "features ['flow/png'] are of no",
  ),
  (replace("comment", make_feature(b"")), "features ['comment'] are of no"),
  (
    lambda features: features.pop("label/present"),
    "features ['label/classes'] are not read",
  ),
]


def test_records_that_training_would_not_read_are_reported(tmp_path):
  examples = (example(4 + i) for i in range(len(BROKEN)))
  set_writer.write_image_set(tmp_path, "toy", "train", examples, FIELDS)
  rewrite(tmp_path, {i: edit for i, (edit, _) in enumerate(BROKEN)}, ONE_SHARD)
  reported = problems(tmp_path)
  assert [p.index for p in reported] == list(range(len(BROKEN)))
  for problem, (_, reason) in zip(reported, BROKEN, strict=True):
    assert problem.key == f"key{4 + problem.index}"
    assert problem.reason.startswith(reason), problem


def test_all_that_is_wrong_with_a_record_is_reported(directory):
  def edit(features):
    features["image"].CopyFrom(make_feature(b"GIF89a"))
    features["label/classes"].CopyFrom(make_feature(np.array([9])))
    features["comment"].CopyFrom(make_feature(b""))

  rewrite(directory, {1: edit})
  reasons = [
    problem.reason.partition(" ")[0] for problem in problems(directory)
  ]
  assert reasons == ["features", "image:", "field"]
  report = next(verify.verify(directory))
  assert (report.num_records, report.num_good) == (3, 2)


def test_only_decoding_finds_broken_pixels(directory):
  data = jpeg(1)[:-60]
  rewrite(directory, {1: replace("image", make_feature(data))})
  assert problems(directory, decode=False) == []
  assert len(problems(directory)) == 1


def test_keys_are_those_of_the_index_and_unique(directory):
  rewrite(directory, {1: replace("key", make_feature(b"key5"))})
  shards = [f"toy-train-0000{i}-of-00002.tfrecord" for i in range(2)]
  keys = [b"key0", b"key5", b"key2"], [b"key0", b"key1", b"key2"]
  digests = [key_digest(k) for k in keys]
  assert found(directory) == [
    (SHARD, None, "", f"has keys {digests[0]}; expected {digests[1]}"),
    (shards[1], 2, "key5", f"record 1 of {SHARD} has this key too"),
  ]
  rewrite(directory, {1: lambda features: features.pop("key")})
  assert found(directory) == [(SHARD, 1, "", "it has no key")]


def test_a_damaged_record_costs_itself_only(directory):
  path = directory / SHARD
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1  # in the second of three records
  path.write_bytes(data)
  file, record = problems(directory)
  assert file.index is None and file.reason.startswith("has checksum")
  assert (record.index, record.key) == (1, "")
  assert record.reason == "its checksum does not match"
  assert next(verify.verify(directory)).num_good == 2


def test_a_shorter_shard_is_reported_with_its_missing_records(directory):
  path = directory / SHARD
  path.write_bytes(path.read_bytes()[:-1])
  reasons = [(p.index, p.reason.partition(";")[0]) for p in problems(directory)]
  size = path.stat().st_size
  assert (None, f"has bytes {size}") in reasons
  assert (None, f"has an end of the last record at {size + 1}") in reasons
  assert (2, "the shard ends before it") in reasons
  assert len(reasons) == 4


def test_offsets_that_lie_are_reported(directory):
  path = (directory / SHARD).with_suffix(".offsets")
  offsets = np.frombuffer(path.read_bytes(), "<u8").copy()
  offsets[0] = 3
  path.write_bytes(offsets.tobytes())
  first, record = problems(directory)
  assert first.reason == "has a first record at 3; expected 0"
  assert (record.index, record.reason) == (0, "its length is corrupt")


@pytest.mark.parametrize("suffix", [".tfrecord", ".offsets"])
def test_a_missing_file_is_reported_and_the_others_read(directory, suffix):
  (directory / SHARD).with_suffix(suffix).unlink()
  (problem,) = problems(directory)
  assert problem.index is None
  assert SHARD.removesuffix(".tfrecord") + suffix in problem.reason
  assert sum(r.num_good for r in verify.verify(directory)) == 5


def test_a_shard_outside_the_set_is_not_opened(directory):
  def edit(index):
    index["splits"]["train"]["shards"][0]["file"] = (
      f"../{directory.name}/{SHARD}"
    )

  edit_index(directory, edit)
  (problem,) = problems(directory)
  assert "not a file name" in problem.reason


@pytest.mark.parametrize(
  "edit, reason",
  [
    (lambda index: index.pop("name"), "name"),
    (lambda index: index.update(schema_version=2), "schema_version 2"),
    (lambda index: index["fields"]["mask"].update(kind="Mask"), "'Mask'"),
    (lambda index: index["fields"]["mask"].update(classes=["a", "a"]), "'a'"),
    (lambda index: index.update(splits=[]), "splits"),
    (lambda index: index["splits"]["val"].update(num_records=3), "3 records"),
    (lambda index: index["splits"]["val"].update(shards=[]), "0 shards"),
  ],
)
def test_a_broken_index_is_a_problem(directory, edit, reason):
  edit_index(directory, edit)
  (problem,) = problems(directory)
  assert (problem.shard, problem.index) == ("index.json", None)
  assert reason in problem.reason


def run(*words):
  parser = argparse.ArgumentParser()
  verify.add_arguments(parser)
  return verify.run(parser.parse_args([str(word) for word in words]))


def test_command_prints_counts_and_status(directory, capsys):
  assert run(directory, "--fast", "--workers", 2) == 0
  size = sum(f.stat().st_size for f in directory.glob("toy-train*.tfrecord"))
  assert f"train: 6 of 6 records are good, {size / 1e6:.1f} MB, 0 problems" in (
    capsys.readouterr().out
  )
  (directory / SHARD).unlink()
  assert run(directory, "--split", "val") == 0
  assert run(directory) == 1
  assert "train: 3 of 3 records are good" in capsys.readouterr().out


def test_command_shows_some_problems_and_reports_all(directory, capsys):
  features = {"key": make_feature(b"\x1b[31m\xff")}
  record = tf.train.Example(features=tf.train.Features(feature=features))
  with RecordWriter(directory / SHARD) as writer:
    for _ in range(40):
      writer.write(record.SerializeToString())
  report = directory / "report.jsonl"
  assert run(directory, "--report", report) == 1
  lines = [json.loads(line) for line in report.read_text().splitlines()]
  assert [line["index"] for line in lines].count(39) == 2  # image, key
  printed = capsys.readouterr().out
  assert f"... and {len(lines) - 20} more" in printed
  assert printed.count(SHARD) == 20
  assert "\x1b" not in printed


@pytest.mark.parametrize(
  "words, match",
  [
    (["missing"], "no directory"),
    ([], "no image set"),
    (["toy", "--split", "test"], r"no split 'test'; it has \['train', 'val'\]"),
    (["toy", "--workers", 0], "--workers is 0"),
  ],
)
def test_command_says_what_cannot_be_verified(tmp_path, words, match):
  for split in ("train", "val"):
    set_writer.write_image_set(
      tmp_path / "toy", "toy", split, [example(0)], FIELDS
    )
  where, *rest = words or [""]
  with pytest.raises(ValueError, match=match):
    run(tmp_path / where, *rest)


def test_progress_counts_all_records(directory):
  seen = []
  for _ in verify.verify(directory, progress=lambda *n: seen.append(n)):
    pass
  assert seen == [(1, 8)] * 8


def test_closing_stops_the_readers(directory):
  reports = verify.verify(directory, workers=2)
  next(reports)
  reports.close()
