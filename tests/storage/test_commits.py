import dataclasses
import errno
import json
import os
import subprocess
import threading
import time

import pytest

from must_jax.storage import path as path_lib
from must_jax.storage.commits import Commit, CommitDirectory, Lease
from must_jax.storage.path import Path, create_json
from must_jax.storage.sets import Shard

SHARD = Shard("a.tfrecord", 3, 100, "c", "k")


@dataclasses.dataclass(frozen=True)
class Counted(Commit):
  count: int


def test_a_commit_reads_as_it_was_written(tmp_path):
  directory = CommitDirectory(tmp_path, "job", Counted)
  assert directory.read_all([SHARD.file]) == {}
  assert not directory.is_committed(SHARD.file)
  with pytest.raises(ValueError, match="not finished"):
    directory.read(SHARD.file)
  commit = Counted(SHARD, "job", 7)
  assert directory.commit(commit)
  assert not directory.commit(dataclasses.replace(commit, count=8))
  assert directory.is_committed(SHARD.file)
  assert directory.read_all([SHARD.file, "b.tfrecord"]) == {SHARD.file: commit}


@pytest.mark.parametrize(
  "change, message",
  [
    ({"job": "other"}, "another job"),
    ({"count": None}, "no commit record"),
    ({"shard": 3}, "no commit record"),
    ({"schema_version": 2}, "schema_version 2"),
  ],
)
def test_commits_that_do_not_count(tmp_path, change, message):
  value = Counted(SHARD, "job", 7).to_value() | change
  value = {k: v for k, v in value.items() if v is not None}
  (tmp_path / "a.json").write_text(json.dumps(value))
  with pytest.raises(ValueError, match=message):
    CommitDirectory(tmp_path, "job", Counted).read(SHARD.file)


def test_one_holder_at_a_time(tmp_path):
  directory = CommitDirectory(tmp_path, "job", Commit)
  directory.prepare()
  with directory.lease(SHARD.file, 60):
    assert directory.lease(SHARD.file, 60) is None
    assert directory.holder(SHARD.file)["pid"] == os.getpid()
    with directory.lease("b.tfrecord", 60) as other:
      assert other is not None
  assert directory.holder(SHARD.file) is None
  directory.clean_up([])
  assert not list(tmp_path.iterdir())


def test_a_thread_beats_for_work_without_steps(tmp_path):
  directory = CommitDirectory(tmp_path, "job", Commit)
  directory.prepare()
  with directory.lease(SHARD.file, 0.2) as lease:
    before = directory.holder(SHARD.file)["beat"]
    with lease.beating():
      time.sleep(0.3)
      assert directory.lease(SHARD.file, 0.2) is None
    assert directory.holder(SHARD.file)["beat"] > before


def test_takes_over_stale_leases_only(lease_of_another_host, tmp_path):
  path = tmp_path / "leases" / "shard"
  lease_of_another_host(path, silent=5)
  assert Lease.claim(Path(path), seconds=60) is None
  with Lease.claim(Path(path), seconds=4) as lease:
    assert json.loads(path.read_text())["pid"] == os.getpid()
    assert Lease.claim(lease.path, seconds=4) is None
  assert not path.exists()


def test_takes_over_at_once_from_a_dead_process_of_this_host(tmp_path):
  path = Path(tmp_path / "shard")
  with Lease.claim(path, seconds=60):
    holder = json.loads(path.read_text())
    dead = subprocess.Popen(["true"])
    dead.wait()
    path.write_text(json.dumps(holder | {"pid": dead.pid}))
    assert Lease.claim(path, seconds=60) is not None


def test_containers_of_one_name_do_not_know_each_others_processes(tmp_path):
  path = Path(tmp_path / "shard")
  with Lease.claim(path, seconds=60):
    holder = json.loads(path.read_text())
    dead = subprocess.Popen(["true"])
    dead.wait()
    other = {"pid": dead.pid, "machine": "of the same name"}
    path.write_text(json.dumps(holder | other))
    assert Lease.claim(path, seconds=60) is None


def test_a_lease_that_was_taken_over_is_left_alone(tmp_path):
  path = Path(tmp_path / "shard")
  with Lease.claim(path, seconds=0.01) as lease:
    time.sleep(0.02)
    with Lease.claim(path, seconds=0.01) as other:
      assert not lease.beat() and not lease.is_held() and other.is_held()
      lease.__exit__()
      assert other.is_held()
    assert not path.exists()


def test_a_full_disk_stops_no_work(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  path = Path(tmp_path / "shard")
  with Lease.claim(path, seconds=0.01) as lease:
    time.sleep(0.01)
    with monkeypatch.context() as patch:
      patch.setattr(path_lib, "publish_json", full)
      assert lease.is_due() and lease.beat()
    time.sleep(0.01)
    assert lease.beat() and lease.is_held()


def test_a_beating_lease_stays_its_holders(tmp_path):
  path = Path(tmp_path / "shard")
  with Lease.claim(path, seconds=0.5) as lease:
    before = json.loads(path.read_text())["beat"]
    assert not lease.is_due()
    time.sleep(0.06)
    assert lease.is_due() and lease.beat()
    assert json.loads(path.read_text())["beat"] > before


@pytest.mark.parametrize("links", [True, False])
def test_one_of_many_creates_a_file(tmp_path, monkeypatch, links):
  if not links:
    monkeypatch.setattr(
      "os.link", lambda *_: (_ for _ in ()).throw(OSError("no links"))
    )
  path, barrier, made = Path(tmp_path / "f"), threading.Barrier(8), []

  def create(i):
    barrier.wait()
    made.append((i, create_json(path, {"by": i})))

  threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  winners = [i for i, won in made if won]
  assert json.loads(path.read_text())["by"] in winners
  assert len(winners) == 1 or not links
  assert [p.name for p in tmp_path.iterdir()] == ["f"]
  assert not create_json(path, {"by": 9})


def test_garbage_is_what_is_old(tmp_path):
  names = {".a-1.tfrecord.2-3.tmp", ".a-11.json.2-3.tmp", "a-1.tfrecord"}
  for name in names:
    (tmp_path / name).touch()

  directory = CommitDirectory(tmp_path, "job", Commit)

  def left():
    return {path.name for path in tmp_path.iterdir()}

  directory.collect_garbage(60)
  assert left() == names
  directory.collect_garbage(0, "a-1.tfrecord")
  assert left() == names - {".a-1.tfrecord.2-3.tmp"}
  directory.collect_garbage()
  assert left() == {"a-1.tfrecord"}


def test_a_beat_whose_answer_was_lost_costs_no_lease(bucket, monkeypatch):
  path = Path(f"{bucket.root}/leases/shard")
  with Lease.claim(path, seconds=60) as lease:
    replace = path_lib.replace_json

    def lose(*args):
      assert replace(*args)
      raise OSError("no answer")

    with monkeypatch.context() as patch:
      patch.setattr(path_lib, "replace_json", lose)
      assert lease.beat()
    assert lease.beat() and lease.beat() and lease.is_held()


def test_cleaning_up_bears_others_who_claim(tmp_path):
  directory = CommitDirectory(tmp_path, "job", Commit)
  directory.prepare()
  for i in range(3000):
    (tmp_path / "leases" / str(i)).touch()
  end, errors = threading.Event(), []

  def claim():
    number = 0
    while not end.is_set():
      try:
        directory.lease_if_new(f"new-{number}", 60)
      except OSError as error:
        errors.append(error)
      number += 1

  thread = threading.Thread(target=claim)
  thread.start()
  directory.clean_up([])  # raises nothing
  end.set()
  thread.join()
  assert errors == []
