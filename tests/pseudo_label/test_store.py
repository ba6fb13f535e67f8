"""Label sets on disk: what is written, compared and verified."""

import dataclasses
import json
import threading

import numpy as np
import pytest
from etils import epath

from must_jax.pseudo_label import statistics, store
from must_jax.pseudo_label.verify import verify
from must_jax.storage.sets import LabelSet
from must_jax.storage.tfrecord import RecordWriter, ShardReader


@pytest.fixture(scope="module")
def finished(fake, tmp_path_factory):
  """Images and a finished label set of them, not to be changed."""
  directory = tmp_path_factory.mktemp("finished")
  images = fake.make_images(directory / "images", bad=(6,))
  job = fake.make_job(images, directory / "labels", max_undecodable=0.1)
  fake.run(job)
  return images, directory / "labels"


@pytest.fixture
def copied(fake, finished, tmp_path):
  """The same, to be changed."""
  images, labels = finished
  for name, data in fake.contents(labels).items():
    (tmp_path / name).write_bytes(data)
  return images, tmp_path


def test_manifest_adds_up(finished):
  images, directory = finished
  manifest = verify(directory, images)
  sizes = [p.stat().st_size for p in sorted(directory.glob("*.tfrecord"))]
  assert manifest["num_records"] == 15
  assert manifest["num_bytes"] == sum(sizes)
  assert manifest["bytes_per_image"] == round(sum(sizes) / 15, 1)
  assert manifest["num_undecodable"] == 1
  assert manifest["undecodable"][0]["key"] == "image-0-6"
  assert manifest["statistics"]["label"]["examples"] == 14
  assert sum(manifest["statistics"]["label"]["classes"].values()) == 14
  assert [s["keys"] for s in manifest["shards"]] == [
    s.keys for s in images.shards
  ]


def test_manifest_tells_no_time_or_place(finished):
  _, directory = finished
  text = (directory / "manifest.json").read_text()
  assert str(directory) not in text
  assert set(json.loads(text)) == {
    "schema_version",
    "image_set",
    "fields",
    "teacher",
    "settings",
    "versions",
    "shards",
    "num_records",
    "num_bytes",
    "bytes_per_image",
    "num_undecodable",
    "undecodable",
    "statistics",
    "alarms",
  }


@pytest.mark.parametrize("suffix", ["tfrecord", "offsets", "json"])
@pytest.mark.parametrize("where", [0.02, 0.5, 0.98])
def test_verify_finds_a_flipped_bit(copied, suffix, where):
  images, directory = copied
  path = directory / f"w-train-00001-of-00003.{suffix}"
  data = bytearray(path.read_bytes())
  data[int(where * len(data))] ^= 1
  path.write_bytes(bytes(data))
  # A bit in a reason is found by comparing with the manifest.
  where = r"damaged:\n.*(00001-of-00003|manifest\.json\.undecodable\[0\])"
  with pytest.raises(ValueError, match=where):
    verify(directory, images)


def test_verify_finds_a_changed_manifest(copied):
  images, directory = copied
  path = directory / "manifest.json"
  path.write_text(path.read_text().replace('"elements": 14', '"elements": 15'))
  with pytest.raises(ValueError, match=r"label\.elements was 14, is 15"):
    verify(directory, images)


def test_verify_finds_swapped_records(copied):
  images, directory = copied
  path = directory / "w-train-00000-of-00003.tfrecord"
  examples = list(ShardReader(path))
  with RecordWriter(path) as writer:
    for example in reversed(examples):
      writer.write(example)
  commit = store.Commit.read(directory, path.name)
  shard = dataclasses.replace(
    commit.shard, checksum=writer.checksum, num_bytes=writer.num_bytes
  )
  dataclasses.replace(commit, shard=shard).write(epath.Path(directory))
  with pytest.raises(ValueError, match="has keys"):
    verify(directory, images)


def test_verify_finds_shards_of_another_job(fake, copied, tmp_path):
  images, directory = copied
  other = fake.make_job(
    images, tmp_path / "b", teacher={"digest": "0"}, max_undecodable=0.1
  )
  fake.run(other)
  for path in (tmp_path / "b").glob("w-train-00002-*"):
    (directory / path.name).write_bytes(path.read_bytes())
  with pytest.raises(ValueError, match=r"00002-of-00003.*another job"):
    verify(directory, images)


def test_damage_is_mended_as_verify_says(fake, copied):
  images, directory = copied
  before = fake.contents(directory)
  path = directory / "w-train-00001-of-00003.tfrecord"
  path.write_bytes(path.read_bytes()[:-1] + b"?")
  with pytest.raises(ValueError, match=r"Delete the \.json files"):
    verify(directory, images)
  path.with_suffix(".json").unlink()
  (directory / "manifest.json").unlink()
  job = fake.make_job(images, directory, max_undecodable=0.1)
  assert fake.run(job).num_records == 5
  assert fake.contents(directory) == before


def test_a_lost_shard_is_no_finished_set(fake, copied):
  images, directory = copied
  (directory / "w-train-00001-of-00003.tfrecord").unlink()
  with pytest.raises(ValueError, match=r"00001-of-00003.tfrecord is missing"):
    fake.run(fake.make_job(images, directory, max_undecodable=0.1))


def test_labels_of_other_images_name_both_shards(fake, finished, tmp_path):
  _, directory = finished
  others = fake.make_images(tmp_path / "others", seed=1)
  file = "w-train-00000-of-00003.tfrecord"
  for check in (LabelSet.open(directory).check_images, None):
    with pytest.raises(ValueError) as caught:
      check(others) if check else verify(directory, others)
    assert str(directory / file) in str(caught.value)
    assert str(others.directory / file) in str(caught.value)


def test_digest_is_of_the_value_not_its_writing():
  a = {"lr": 0.1, "tasks": [1, 2]}
  assert store.config_digest(a) == store.config_digest(
    dict(reversed(a.items()))
  )
  assert store.config_digest(a) != store.config_digest({**a, "lr": 0.2})
  # blake2b-16 of '{}', from `b2sum -l 128`
  assert store.config_digest({}) == "2afb9b83f9314e5d029766197f539792"


def test_differences_name_the_place():
  old = {"a": 1, "b": {"c": [1, {"d": "x"}]}, "e": 0}
  new = {"a": 1, "b": {"c": [1, {"d": "y"}]}}
  assert store.differences(old, new) == [
    "b.c[1].d was 'x', is 'y'",
    "e was 0, is None",
  ]
  assert store.differences(old, old) == []
  assert store.differences([1], [1, 2], "n") == ["n was [1], is [1, 2]"]


@pytest.mark.parametrize("links", [True, False])
def test_one_of_many_creates_a_file(tmp_path, monkeypatch, links):
  if not links:
    monkeypatch.setattr(
      "os.link", lambda *_: (_ for _ in ()).throw(OSError("no links"))
    )
  path, barrier, made = epath.Path(tmp_path / "f"), threading.Barrier(8), []

  def create(i):
    barrier.wait()
    made.append((i, store.create(path, {"by": i})))

  threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  winners = [i for i, won in made if won]
  assert json.loads(path.read_text())["by"] in winners
  assert len(winners) == 1 or not links
  assert [p.name for p in tmp_path.iterdir()] == ["f"]
  assert not store.create(path, {"by": 9})


def test_garbage_is_what_is_old(tmp_path):
  names = {".a-1.tfrecord.2-3.tmp", ".a-11.json.2-3.tmp", "a-1.tfrecord"}
  for name in names:
    (tmp_path / name).touch()

  def left():
    return {path.name for path in tmp_path.iterdir()}

  store.collect_garbage(epath.Path(tmp_path), 60)
  assert left() == names
  store.collect_garbage(epath.Path(tmp_path), 0, "a-1.tfrecord")
  assert left() == names - {".a-1.tfrecord.2-3.tmp"}
  store.collect_garbage(epath.Path(tmp_path))
  assert left() == {"a-1.tfrecord"}


STATISTICS = [
  (
    "ClassVector",
    {"classes": np.array([4, 7]), "probs": np.array([0.2, 0.6])},
    {"elements": 1, "classes": {"7": 1}, "score_sum": 153, "constant": 0},
  ),
  (
    "ClassVector",
    {"classes": np.arange(4), "probs": np.full(4, 0.25)},
    {"elements": 1, "constant": 1},
  ),
  (
    "Boxes",
    {
      "boxes": np.zeros((3, 4)),
      "classes": np.array([1, 0, 1]),
      "scores": np.array([0.05, 1.0, 0.5]),
    },
    {
      "elements": 3,
      "classes": {"0": 1, "1": 2},
      "scores": [1, 0, 0, 0, 0, 1, 0, 0, 0, 1],
      "score_sum": 13 + 255 + 128,
      "empty": 0,
    },
  ),
  (
    "Boxes",
    {
      "boxes": np.zeros((0, 4)),
      "classes": np.zeros(0, int),
      "scores": np.zeros(0),
    },
    {"elements": 0, "classes": {}, "scores": [0] * 10, "empty": 1},
  ),
  (
    "ClassMap",
    {
      "classes": np.array([[2, 2], [2, 255]]),
      "confidence": np.array([[1.0, 0.2], [0.2, 0.9]]),
    },
    {
      "elements": 3,
      "classes": {"2": 3},
      "scores": [0, 0, 2, 0, 0, 0, 0, 0, 0, 1],
      "constant": 1,
    },
  ),
  (
    "ValueMap",
    {
      "values": np.array([[1.0, 2.0], [np.nan, 1.0]]),
      "valid": np.array([[True, True], [False, True]]),
    },
    {"elements": 3, "constant": 0},
  ),
  ("ValueMap", {"values": np.ones((2, 3))}, {"elements": 6, "constant": 1}),
  (
    "VectorMap",
    {"vectors": np.tile(np.array([0.0, 0.0, -1.0]), (2, 2, 1))},
    {"elements": 4, "constant": 1},
  ),
  (
    "VectorMap",
    {"vectors": np.ones((1, 2, 3)), "valid": np.zeros((1, 2), bool)},
    {"elements": 0, "empty": 1, "constant": 0},
  ),
]


@pytest.mark.parametrize("kind, arrays, expected", STATISTICS)
def test_statistics_of_one_example(kind, arrays, expected):
  sums = statistics.measure(kind, arrays)
  assert sums["examples"] == 1
  assert {k: sums[k] for k in expected} == expected
  json.dumps(sums)


def test_statistics_add_up():
  boxes = [statistics.measure(k, a) for k, a, _ in STATISTICS if k == "Boxes"]
  both = statistics.add({"f": boxes[0]}, {"f": boxes[1]})["f"]
  assert (both["examples"], both["elements"], both["empty"]) == (2, 3, 1)
  assert statistics.add({"f": boxes[0]}, {}) == {"f": boxes[0]}
  assert statistics.add(
    {"classes": {"1": 2}}, {"classes": {"1": 3, "5": 1}}
  ) == {"classes": {"1": 5, "5": 1}}


@pytest.mark.parametrize(
  "kind, sums, alarm",
  [
    ("Boxes", None, "not one image"),
    ("Boxes", {"elements": 0}, "all 20 labels are empty"),
    ("Boxes", {"elements": 1}, None),
    ("ClassMap", {"elements": 9, "constant": 20}, "one value"),
    ("ClassMap", {"elements": 9, "constant": 19}, None),
    ("ValueMap", {"elements": 9, "constant": 20}, "one value"),
    ("ClassVector", {"elements": 20, "classes": {"1": 20}}, "class 'b'"),
    ("ClassVector", {"elements": 20, "classes": {"0": 1, "1": 19}}, None),
    ("ClassVector", {"elements": 20, "constant": 20}, "one value"),
  ],
)
def test_alarms(kind, sums, alarm):
  fields = {"f": {"kind": kind, "classes": ["a", "b"]}}
  total = {} if sums is None else {"f": {"examples": 20, "constant": 0} | sums}
  found = statistics.alarms(fields, total)
  assert len(found) == (alarm is not None)
  assert alarm is None or alarm in found[0]
