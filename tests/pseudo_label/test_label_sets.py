"""Label sets on disk: what is written, compared and verified."""

import dataclasses
import json

import pytest

from must_jax.cli import main
from must_jax.config import differences
from must_jax.storage import label_sets
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


def shard_path(directory, number, suffix="tfrecord"):
  """Label shards are named by their content, too."""
  if suffix == "json":
    return directory / f"w-train-{number:05d}-of-00003.json"
  (path,) = directory.glob(f"w-train-{number:05d}-of-00003.*.{suffix}")
  return path


def test_manifest_adds_up(fake, finished):
  images, directory = finished
  manifest = fake.verify(directory)
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
    "left",
    "alarms",
  }


@pytest.mark.parametrize("suffix", ["tfrecord", "offsets", "json"])
@pytest.mark.parametrize("where", [0.02, 0.5, 0.98])
def test_verify_finds_a_flipped_bit(fake, copied, suffix, where):
  _, directory = copied
  path = shard_path(directory, 1, suffix)
  data = bytearray(path.read_bytes())
  data[int(where * len(data))] ^= 1
  path.write_bytes(bytes(data))
  # A bit in a reason is found by comparing with the manifest.
  where = r"00001-of-00003|manifest\.json\.undecodable\[0\]"
  with pytest.raises(ValueError, match=where):
    fake.verify(directory)


def test_verify_finds_a_changed_manifest(fake, copied):
  _, directory = copied
  path = directory / "manifest.json"
  path.write_text(path.read_text().replace('"elements": 14', '"elements": 15'))
  with pytest.raises(ValueError, match=r"label\.elements was 14, is 15"):
    fake.verify(directory)


def test_verify_finds_swapped_records(fake, copied):
  _, directory = copied
  path = shard_path(directory, 0)
  examples = list(ShardReader(path))
  with RecordWriter(path) as writer:
    for example in reversed(examples):
      writer.write(example)
  labels = label_sets.open_directory(directory, label_sets.read_job(directory))
  commit = labels.read(path.name)
  shard = dataclasses.replace(
    commit.shard, checksum=writer.checksum, num_bytes=writer.num_bytes
  )
  labels.discard(path.name)
  assert labels.commit(dataclasses.replace(commit, shard=shard))
  with pytest.raises(ValueError, match="has keys"):
    fake.verify(directory)


def test_verify_finds_shards_of_another_job(fake, copied, tmp_path):
  images, directory = copied
  other = fake.make_job(
    images, tmp_path / "b", teacher={"digest": "0"}, max_undecodable=0.1
  )
  fake.run(other)
  for path in (tmp_path / "b").glob("w-train-00002-*"):
    (directory / path.name).write_bytes(path.read_bytes())
  with pytest.raises(ValueError, match=r"00002-of-00003.*another job"):
    fake.verify(directory)


def test_damage_is_mended_as_verify_says(fake, copied, capsys):
  images, directory = copied
  before = fake.contents(directory)
  path = shard_path(directory, 1)
  path.write_bytes(path.read_bytes()[:-1] + b"?")
  assert main(["data", "verify", str(directory)]) == 1
  assert "Move the .json files" in capsys.readouterr().out
  shard_path(directory, 1, "json").unlink()
  (directory / "manifest.json").unlink()
  job = fake.make_job(images, directory, max_undecodable=0.1)
  assert fake.run(job).num_records == 5
  assert fake.contents(directory) == before


def test_a_lost_shard_is_no_finished_set(fake, copied):
  images, directory = copied
  path = shard_path(directory, 1)
  path.unlink()
  with pytest.raises(ValueError, match=f"{path.name} is missing"):
    fake.run(fake.make_job(images, directory, max_undecodable=0.1))


def test_labels_of_other_images_name_both_shards(fake, finished, tmp_path):
  _, directory = finished
  others = fake.make_images(tmp_path / "others", seed=1)
  file = "w-train-00000-of-00003.tfrecord"
  for check in (LabelSet.open(directory).check_images, None):
    with pytest.raises(ValueError) as caught:
      check(others) if check else fake.verify(directory, others)
    assert str(shard_path(directory, 0)) in str(caught.value)
    assert str(others.directory / file) in str(caught.value)


def test_digest_is_of_the_value_not_its_writing():
  a = {"lr": 0.1, "tasks": [1, 2]}
  assert label_sets.json_digest(a) == label_sets.json_digest(
    dict(reversed(a.items()))
  )
  assert label_sets.json_digest(a) != label_sets.json_digest({**a, "lr": 0.2})
  # blake2b-16 of '{}', from `b2sum -l 128`
  assert label_sets.json_digest({}) == "2afb9b83f9314e5d029766197f539792"


def test_differences_name_the_place():
  old = {"a": 1, "b": {"c": [1, {"d": "x"}]}, "e": 0}
  new = {"a": 1, "b": {"c": [1, {"d": "y"}]}}
  assert differences(old, new) == [
    "b.c[1].d was 'x', is 'y'",
    "e was 0, is None",
  ]
  assert differences(old, old) == []
  assert differences([1], [1, 2], "n") == ["n was [1], is [1, 2]"]
