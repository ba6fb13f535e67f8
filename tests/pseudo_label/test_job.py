"""The labelling job, with a teacher that is a few lines of numpy."""

import errno
import json
import os
import random
import signal
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from must_jax.config import base_config, to_json
from must_jax.input.batches import eval_batches
from must_jax.input.loader import ReadOptions
from must_jax.input.origins import Source
from must_jax.pseudo_label import job as job_lib
from must_jax.pseudo_label import status as status_lib
from must_jax.storage.commits import CommitDirectory
from must_jax.storage.label_sets import open_directory, read_job
from must_jax.storage.path import list_names
from must_jax.storage.sets import LabelSet
from must_jax.storage.tfrecord import RecordWriter, plain_name
from must_jax.storage.work_queue import Worker
from must_jax.train.runtime import SignOfLife

SHARD = "w-train-{:05d}-of-00003"


@pytest.fixture(scope="module")
def nursery(fake):
  nursery = fake.Nursery()
  yield nursery
  nursery.close()


@pytest.fixture
def images(fake, tmp_path):
  return fake.make_images(tmp_path / "images")


def read_labels(directory, file):
  """Key, status and features of all records of a shard, read by tf.data."""
  found = []
  (path,) = map(str, directory.glob(f"{file}.*.tfrecord"))
  for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
    feature = tf.train.Example.FromString(record).features.feature
    key, status = (feature[k].bytes_list.value[0] for k in ("key", "status"))
    found.append((key, status, feature))
  return found


def test_labels_say_what_the_teacher_said(fake, images, tmp_path):
  summary = fake.run(fake.make_job(images, tmp_path / "labels"))
  assert (summary.num_records, summary.alarms, summary.exit_code) == (15, (), 0)
  place = 0
  for shard in range(3):
    for key, status, feature in read_labels(
      tmp_path / "labels", SHARD.format(shard)
    ):
      assert (key, status) == (f"image-0-{place}".encode(), b"ok")
      image = tf.train.Example.FromString(images.read(place))
      pixels = tf.io.decode_png(
        image.features.feature["image"].bytes_list.value[0]
      ).numpy()
      colour = pixels.reshape(-1, 3).mean(0)
      np.testing.assert_allclose(
        feature["label/probs"].float_list.value,
        colour / colour.sum(),
        rtol=1e-5,
      )
      halves = [pixels[:, :4].mean() / 255, pixels[:, 4:].mean() / 255]
      np.testing.assert_allclose(
        feature["objects/scores"].float_list.value,
        [h for h in halves if h > 0.45],
        rtol=1e-5,
      )
      place += 1
  assert place == 15
  labels = LabelSet.open(tmp_path / "labels")
  labels.check_images(images)
  assert labels.manifest["teacher"] == fake.TEACHER
  assert labels.manifest["settings"] == {"batch_size": 2}


def test_leaves_nothing_but_the_set(fake, images, tmp_path):
  fake.run(fake.make_job(images, tmp_path / "labels"))
  expected = {"job.json", "manifest.json"}
  for shard in LabelSet.open(tmp_path / "labels").shards:
    expected |= {shard.file, shard.file.replace("tfrecord", "offsets")}
    expected.add(plain_name(shard.file).replace("tfrecord", "json"))
  assert set(fake.contents(tmp_path / "labels")) == expected


def test_bytes_do_not_depend_on_directory_or_share(fake, images, tmp_path):
  fake.run(fake.make_job(images, tmp_path / "a"))
  fake.run(fake.make_job(images, tmp_path / "b", worker=Worker(2, 5)))
  first = fake.contents(tmp_path / "a")
  assert fake.contents(tmp_path / "b") == first
  summary = fake.run(fake.make_job(images, tmp_path / "b"))  # nothing to do
  assert summary.num_records == 0 and summary.manifest is not None
  assert fake.contents(tmp_path / "b") == first


def test_killed_workers_leave_no_trace(fake, nursery, tmp_path):
  images = fake.make_images(tmp_path / "images", num_shards=24, per_shard=5)
  fake.run(fake.make_job(images, tmp_path / "whole"))
  output, chance, kills = tmp_path / "labels", random.Random(0), 0
  for count in (1, 2, 3, 1, 2, 3, 2):
    pids = [nursery.start(images, output, i, count, 0.03) for i in range(count)]
    time.sleep(chance.uniform(0.1, 0.3))
    for pid in pids:
      os.kill(pid, signal.SIGKILL)
      kills += nursery.wait(pid) == -signal.SIGKILL
  assert kills >= 6
  committed = list(output.glob("w-*.json"))
  assert 0 < len(committed) < 24  # kills hit a job that was under way
  pids = [nursery.start(images, output, i, 2) for i in range(2)]
  assert all(nursery.wait(pid) in (0, 100) for pid in pids)
  assert fake.contents(output) == fake.contents(tmp_path / "whole")
  fake.verify(output, images)


def test_workers_share_the_work(fake, nursery, tmp_path):
  images = fake.make_images(tmp_path / "images", num_shards=8)
  output = tmp_path / "labels"
  pids = [nursery.start(images, output, i, 2, 0.05) for i in range(2)]
  # 100 says that the worker labelled something.
  assert [nursery.wait(pid) for pid in pids] == [100, 100]
  fake.run(fake.make_job(images, tmp_path / "whole"))
  assert fake.contents(output) == fake.contents(tmp_path / "whole")


def test_a_worker_takes_the_share_of_one_that_never_came(fake, tmp_path):
  images = fake.make_images(tmp_path / "images", num_shards=7)
  job = fake.make_job(images, tmp_path / "labels", worker=Worker(1, 3))
  order = []

  def batches(shard):
    order.append(shard)
    return fake.batches(images, shard)

  job_lib.run(job, batches, fake.predict, fake.to_labels)
  assert order[:2] == [1, 4]
  assert sorted(order[2:]) == [0, 2, 3, 5, 6]


def test_waits_for_a_silent_worker_then_does_its_shard(
  lease_of_another_host, fake, images, tmp_path
):
  lease = tmp_path / "labels" / "leases" / f"{SHARD.format(1)}.tfrecord"
  lease_of_another_host(lease, silent=0)
  begin = time.monotonic()
  job = fake.make_job(images, tmp_path / "labels", lease_seconds=0.8)
  assert fake.run(job).num_records == 15
  assert time.monotonic() - begin > 0.7


def test_a_slow_worker_gives_up_what_others_finished(
  lease_of_another_host, fake, images, tmp_path
):
  output = tmp_path / "labels"

  def overtaken(batch):
    if not (output / "manifest.json").exists():
      for lease in (output / "leases").iterdir():
        lease_of_another_host(lease, silent=1000)
      assert fake.run(fake.make_job(images, output)).num_records == 15
    return fake.predict(batch)

  # The second worker finishes all and sweeps up, the temporary file of the
  # first one included.
  summary = fake.run(fake.make_job(images, output), predict=overtaken)
  assert summary.num_records == 0 and summary.manifest is not None
  fake.run(fake.make_job(images, tmp_path / "whole"))
  assert fake.contents(output) == fake.contents(tmp_path / "whole")


def test_a_worker_taken_for_dead_goes_on(fake, images, tmp_path):
  output, swept = tmp_path / "labels", []

  def sweeping(batch):
    if not swept:
      swept.extend(output.glob(".*.tmp"))
      open_directory(output, read_job(output)).collect_garbage()
    return fake.predict(batch)

  fake.run(fake.make_job(images, output), predict=sweeping)
  assert len(swept) == 1
  fake.run(fake.make_job(images, tmp_path / "whole"))
  assert fake.contents(output) == fake.contents(tmp_path / "whole")


def test_temporary_files_of_a_worker_that_died_go_with_its_lease(
  lease_of_another_host, fake, images, tmp_path
):
  output = tmp_path / "labels"
  for shard in range(2):
    lease = output / "leases" / f"{SHARD.format(shard)}.tfrecord"
    lease_of_another_host(lease, silent=90)
    temp = output / f".{SHARD.format(shard)}.tfrecord.1-2.tmp"
    temp.touch()
    os.utime(temp, (time.time() - 90,) * 2)
  asked = []

  def stop():
    asked.append(1)
    return len(list(output.glob("w-*.json"))) == 1 and len(asked) > 20

  fake.run(fake.make_job(images, output, lease_seconds=60), stop=stop)
  assert not list(output.glob(".*"))


def test_stops_when_told_and_goes_on_later(fake, images, tmp_path):
  asked = []

  def stop():
    asked.append(1)
    return len(asked) > 6

  output = tmp_path / "labels"
  summary = fake.run(fake.make_job(images, output), stop=stop)
  assert summary.manifest is None and summary.num_records == 5
  assert summary.exit_code == 0
  # The lease of the shard that was given up is free, that of a finished one
  # stays until all are.
  assert [p.name for p in output.glob("leases/*")] == [
    f"{SHARD.format(0)}.tfrecord"
  ]
  assert not list(output.glob(".*"))
  assert fake.run(fake.make_job(images, output)).num_records == 10


@pytest.mark.parametrize(
  "change, named",
  [
    ({"teacher": {"digest": "dec0de"}}, "teacher.digest was 'c0ffee', is 'dec"),
    ({"settings": {"batch_size": 4}}, "settings.batch_size was 2, is 4"),
    ({"fields": {}}, "fields.label was"),
  ],
)
def test_refuses_the_directory_of_another_job(
  fake, images, tmp_path, change, named
):
  fake.run(fake.make_job(images, tmp_path / "labels"))
  before = fake.contents(tmp_path / "labels")
  with pytest.raises(ValueError, match=f"(?s){named}.*another directory"):
    fake.run(fake.make_job(images, tmp_path / "labels", **change))
  assert fake.contents(tmp_path / "labels") == before


def test_refuses_the_directory_of_other_images(fake, images, tmp_path):
  fake.run(fake.make_job(images, tmp_path / "labels"))
  others = fake.make_images(tmp_path / "others", seed=1)
  with pytest.raises(ValueError, match=r"image_set\.shards\[0\]\.checksum was"):
    fake.run(fake.make_job(others, tmp_path / "labels"))


def test_refuses_to_label_into_the_images(fake, images):
  before = fake.contents(images.directory)
  with pytest.raises(ValueError, match=r"no label set.*another directory"):
    fake.run(fake.make_job(images, images.directory))
  assert fake.contents(images.directory) == before


def test_refuses_an_unknown_version(fake, images, tmp_path):
  fake.run(fake.make_job(images, tmp_path / "labels"))
  path = tmp_path / "labels" / "job.json"
  path.write_text(
    json.dumps(json.loads(path.read_text()) | {"schema_version": 9})
  )
  with pytest.raises(ValueError, match=r"job\.json has schema_version 9"):
    fake.run(fake.make_job(images, tmp_path / "labels"))


def test_warns_of_other_library_versions(fake, images, tmp_path, caplog):
  fake.run(fake.make_job(images, tmp_path / "labels"))
  path = tmp_path / "labels" / "job.json"
  job = json.loads(path.read_text())
  job["versions"]["jax"] = "0.0.1"
  path.write_text(json.dumps(job))
  (tmp_path / "labels" / "manifest.json").unlink()
  summary = fake.run(fake.make_job(images, tmp_path / "labels"))
  assert summary.manifest["versions"]["jax"] == "0.0.1"
  assert "jax was '0.0.1'" in caplog.text


def damage_records(images, shard, place):
  """Flips a byte within a record's payload."""
  path = images.directory / images.shards[shard].file
  begin = int(np.fromfile(path.with_suffix(".offsets"), "<u8")[place])
  data = bytearray(path.read_bytes())
  data[begin + 40] ^= 1
  path.write_bytes(bytes(data))


def test_undecodable_images_keep_their_place(fake, tmp_path):
  # 7 is the third of shard 1, 14 the last of all; 2 cannot even be read.
  images = fake.make_images(tmp_path / "images", bad=(7, 14))
  damage_records(images, 0, 2)
  job = fake.make_job(images, tmp_path / "labels", max_undecodable=0.2)
  manifest = fake.run(job).manifest
  bad = {(0, 2): b"", (1, 2): b"image-0-7", (2, 4): b"image-0-14"}
  for shard in range(3):
    labels = read_labels(tmp_path / "labels", SHARD.format(shard))
    assert len(labels) == 5
    for place, (key, status, feature) in enumerate(labels):
      good = (shard, place) not in bad
      assert status == (b"ok" if good else b"undecodable")
      assert good == ("label/present" in feature)
      default = f"image-0-{5 * shard + place}".encode()
      assert key == bad.get((shard, place), default)
  assert manifest["num_undecodable"] == 3
  listed = [
    (int(r["shard"][8:13]), r["index"], r["key"].encode())
    for r in manifest["undecodable"]
  ]
  assert listed == [(*place, key) for place, key in bad.items()]
  assert "checksum" in manifest["undecodable"][0]["reason"]
  assert manifest["statistics"]["label"]["examples"] == 12
  fake.verify(tmp_path / "labels", images)


def test_stops_beyond_the_budget_of_undecodable_images(fake, tmp_path):
  images = fake.make_images(tmp_path / "images", bad=(3, 8, 9))
  job = fake.make_job(images, tmp_path / "labels", max_undecodable=2 / 15)
  with pytest.raises(
    ValueError, match=r"3 of the 15 images .* label\.max_undecodable.*image-0-9"
  ):
    fake.run(job)
  assert not (tmp_path / "labels" / "manifest.json").exists()
  assert not list((tmp_path / "labels").glob(".*.tmp"))
  # A larger budget goes on where the job stopped.
  job = fake.make_job(images, tmp_path / "labels", max_undecodable=0.2)
  assert fake.run(job).num_records == 10


@pytest.mark.parametrize("where", ["records", "commit"])
def test_full_disk_leaves_whole_shards_only(
  fake, images, tmp_path, monkeypatch, where
):
  output = tmp_path / "labels"
  write, commit = RecordWriter.write, CommitDirectory.commit

  def full(self, *args):
    if SHARD.format(1) in f"{self.path}{args}":
      raise OSError(errno.ENOSPC, "No space left on device")
    return (write if where == "records" else commit)(self, *args)

  with monkeypatch.context() as patch:
    if where == "records":
      patch.setattr(RecordWriter, "write", full)
    else:
      patch.setattr(CommitDirectory, "commit", full)
    with pytest.raises(OSError, match=f"{SHARD.format(1)}.*No space") as caught:
      fake.run(fake.make_job(images, output))
  assert caught.value.errno == errno.ENOSPC
  assert (output / f"{SHARD.format(0)}.json").exists()
  assert not (output / f"{SHARD.format(1)}.json").exists()
  assert not list(output.glob(".*"))
  assert not list(output.glob(f"leases/{SHARD.format(1)}*"))
  if where == "records":
    assert not list(output.glob(f"{SHARD.format(1)}*"))
  assert fake.run(fake.make_job(images, output)).num_records == 10
  fake.run(fake.make_job(images, tmp_path / "whole"))
  assert fake.contents(output) == fake.contents(tmp_path / "whole")


def test_a_teacher_that_finds_nothing_is_an_alarm(
  fake, images, tmp_path, caplog
):
  def blind(prediction, batch, row):
    labels = fake.to_labels(prediction, batch, row)
    none = {k: v[:0] for k, v in labels["objects"].items()}
    return labels | {"objects": none}

  job = fake.make_job(images, tmp_path / "labels")
  summary = fake.run(job, to_labels=blind)
  assert summary.exit_code == job_lib.ALARM != 0
  assert len(summary.alarms) == 1 and "objects: all 15" in summary.alarms[0]
  assert "LABELS LOOK WRONG" in caplog.text
  assert fake.run(job).alarms == summary.alarms  # not forgotten


def test_bad_predictions_name_the_example(fake, images, tmp_path):
  def confused(prediction, batch, row):
    labels = fake.to_labels(prediction, batch, row)
    labels["label"]["probs"] = labels["label"]["probs"] * np.nan
    return labels

  with pytest.raises(ValueError, match=r"image-0-0.*label.*probs"):
    fake.run(fake.make_job(images, tmp_path / "labels"), to_labels=confused)
  assert not list((tmp_path / "labels").glob("*.tfrecord"))


def test_status_follows_the_job(fake, images, tmp_path):
  output, seen = tmp_path / "labels", []

  def watched(batch):
    seen.append(status_lib.status(output))
    return fake.predict(batch)

  fake.run(fake.make_job(images, output), predict=watched)
  first, last = seen[0], seen[-1]
  assert (first.done, first.leased, first.pending) == (0, 1, 2)
  assert first.workers[0].shard == f"{SHARD.format(0)}.tfrecord"
  assert first.workers[0].name.endswith(f":{os.getpid()}")
  assert (last.done, last.leased, last.pending) == (2, 1, 0)
  assert (last.num_labelled, last.num_records) == (10, 15)
  assert not last.finished
  end = status_lib.status(output)
  assert (end.done, end.workers, end.finished) == (3, (), True)
  assert end.eta_seconds == 0 and end.num_labelled == 15


def test_status_estimates_the_time_to_go(
  lease_of_another_host, fake, images, tmp_path
):
  output = tmp_path / "labels"
  fake.run(fake.make_job(images, output), stop=lambda: True)  # job.json only
  assert status_lib.status(output).eta_seconds is None
  lease_of_another_host(
    output / "leases" / f"{SHARD.format(2)}.tfrecord", silent=3
  )
  found = status_lib.status(output)
  assert found.images_per_second == 4  # 40 in 10 s
  assert found.workers[0].silent_seconds == pytest.approx(3, abs=1)


def test_a_worker_says_how_far_it_is_within_a_shard(
  fake, images, tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(job_lib, "SignOfLife", lambda: SignOfLife(0.0))
  caplog.set_level("INFO")
  fake.run(fake.make_job(images, tmp_path / "labels"))
  said = [m for m in caplog.messages if "shards are done" in m]
  assert len(said) >= 4  # batches are smaller than shards
  counts = [m.partition(": ")[2].partition(";")[0] for m in said]
  assert counts[0] == "2 of 5 images"
  assert all(len(message) < 160 for message in caplog.messages)


def test_with_the_data_pipeline(fake, tmp_path):
  images = fake.make_images(tmp_path / "images", num_shards=2, bad=(4,))
  source = Source(str(images.directory), "train")
  seen = []

  def batches(shard):
    return eval_batches(
      [source],
      {},
      batch_size=2,
      image_size=(12, 16),
      shard=shard,
      options=ReadOptions(num_threads=1, max_bad=None),
    )

  def predict(batch):
    seen.append((threading.current_thread().name, batch["image"].shape))
    return {"size": batch["content_size"]}

  def to_labels(prediction, batch, row):
    np.testing.assert_array_equal(
      prediction["size"], batch["content_size"][row]
    )
    return {
      "label": {"classes": np.arange(3), "probs": np.array([0.2, 0.5, 0.3])}
    }

  job = fake.make_job(images, tmp_path / "labels", max_undecodable=0.2)
  summary = job_lib.run(job, batches, predict, to_labels)
  assert summary.num_records == 10
  assert {shape for _, shape in seen} == {(2, 12, 16, 3)}
  assert [r["key"] for r in summary.manifest["undecodable"]] == ["image-0-4"]
  fake.verify(tmp_path / "labels", images)


def test_goes_on_where_the_teachers_config_had_fewer_options(
  fake, images, tmp_path
):
  config = json.loads(to_json(base_config()))
  teacher = {"digest": "1", "config": config}
  job = fake.make_job(images, tmp_path / "labels", teacher=teacher)
  fake.run(job, stop=lambda: True)  # job.json only
  path = tmp_path / "labels" / "job.json"
  before = json.loads(path.read_text())
  del before["teacher"]["config"]["optimizer"]["layer_decay"]
  path.write_text(json.dumps(before))
  assert fake.run(job).num_records == 15
  config["optimizer"]["layer_decay"] = 0.5
  with pytest.raises(ValueError, match=r"layer_decay was 1\.0, is 0\.5"):
    fake.run(fake.make_job(images, tmp_path / "labels", teacher=teacher))


def test_who_was_silent_to_the_end_does_nothing_again(fake, bucket):
  """In a bucket no directory is missing once the set is finished."""
  images = fake.make_images(f"{bucket.root}/images", num_shards=8)
  output = f"{bucket.root}/labels"
  others = []

  def sleeping(batch):
    if not others:
      others.append(1)
      time.sleep(1.0)  # longer than its lease
      job = fake.make_job(images, output, lease_seconds=0.5)
      assert fake.run(job).num_records == 40
      time.sleep(0.6)
      bucket.reset()
    return fake.predict(batch)

  job = fake.make_job(images, output, lease_seconds=0.5)
  summary = fake.run(job, predict=sleeping)
  assert summary.num_records == 0 and summary.manifest is not None
  assert bucket.counts().get("upload", 0) <= 1  # a beat in vain
  assert "leases" not in list_names(output)
  fake.verify(output, images)


def test_shards_of_another_teacher_are_no_set(fake, images, tmp_path):
  job = fake.make_job(images, tmp_path / "labels")
  made = []

  def stop():
    made[:] = (tmp_path / "labels").glob("w-*.json")
    return len(made) == 1

  fake.run(job, stop=stop)
  commit = json.loads(made[0].read_text())
  made[0].write_text(json.dumps(commit | {"teacher": "other"}))
  with pytest.raises(ValueError, match="of teacher other, the job of c0ffee"):
    fake.run(job)
  made[0].unlink()
  assert fake.run(job).manifest is not None


def test_cleans_up_after_a_worker_that_died_over_it(
  fake, images, tmp_path, lease_of_another_host
):
  output = tmp_path / "labels"
  fake.run(fake.make_job(images, output))
  before = fake.contents(output)
  lease_of_another_host(output / "leases" / "some", silent=0)
  assert fake.run(fake.make_job(images, output)).num_records == 0
  assert fake.contents(output) == before


def test_a_missing_image_shard_is_an_error_even_beside_the_labels(
  fake, tmp_path
):
  images = fake.make_images(tmp_path / "pile-images")
  (tmp_path / "pile-images" / images.shards[0].file).unlink()
  with pytest.raises((OSError, ValueError)):
    fake.run(fake.make_job(images, tmp_path / "pile"))
