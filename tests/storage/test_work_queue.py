"""Workers share shards, whoever they are, with few requests."""

import dataclasses
import threading

import pytest

from must_jax.storage import path as path_lib
from must_jax.storage.commits import Commit, CommitDirectory
from must_jax.storage.sets import Shard
from must_jax.storage.work_queue import Worker, WorkQueue

FILES = [f"w-train-{i:05d}-of-00060.tfrecord" for i in range(60)]
UNKNOWN = Worker(-1, 0)


def make_directory(root):
  directory = CommitDirectory(root, "job", Commit)
  directory.prepare()
  return directory


def commit(directory, file):
  assert directory.commit(Commit(Shard(file, 0, 0, "", ""), "job"))


def work(directory, worker, is_new=False, seconds=60.0, limit=None):
  """What one worker does until all is done, in order."""
  queue, order = WorkQueue(directory, FILES, seconds, worker, is_new), []
  while not queue.is_done and len(order) != limit:
    claimed = queue.claim()
    if claimed is None:
      if not queue.is_done:
        queue.wait()
      continue
    index, lease = claimed
    with lease:
      commit(directory, FILES[index])
      lease.kept = True
    queue.finished(FILES[index])
    order.append(index)
  return order


@pytest.mark.parametrize("worker", [Worker(0, 1), Worker(3, 4), UNKNOWN])
def test_one_worker_does_each_shard_once(tmp_path, worker):
  order = work(make_directory(tmp_path), worker)
  assert sorted(order) == list(range(60))
  own = list(range(60))[max(worker.index, 0) :: max(worker.count, 1)]
  if worker.count:
    assert order[: len(own)] == own  # its share first


@pytest.mark.parametrize("known", [True, False])
def test_many_workers_do_each_shard_once(tmp_path, known):
  directory, orders = make_directory(tmp_path), {}

  def run(i):
    worker = Worker(i, 8) if known else UNKNOWN
    orders[i] = work(directory, worker, is_new=True, seconds=4.0)

  threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  found = [i for order in orders.values() for i in order]
  assert sorted(found) == list(range(60))


def test_workers_that_nobody_numbers_begin_at_different_places(tmp_path):
  firsts = set()
  for i in range(8):
    directory = make_directory(tmp_path / str(i))
    firsts |= set(work(directory, UNKNOWN, is_new=True, limit=1))
  assert len(firsts) > 2


def test_goes_on_where_others_stopped(tmp_path):
  directory = make_directory(tmp_path)
  first = work(directory, Worker(0, 2), limit=20)
  assert sorted(first + work(directory, Worker(1, 2))) == list(range(60))


def test_shards_of_the_dead_come_last(tmp_path, lease_of_another_host):
  directory = make_directory(tmp_path)
  for i in (3, 7):
    lease_of_another_host(tmp_path / "leases" / FILES[i], silent=100)
  order = work(directory, Worker(0, 1), seconds=60)
  assert sorted(order) == list(range(60))
  assert set(order[-2:]) == {3, 7}


def test_requests_grow_with_shards_not_with_workers(bucket):
  """A shard costs a claim; what others do is looked at rarely."""
  root = path_lib.Path(bucket.root)
  counts = {}
  for workers in (1, 6):
    directory = make_directory(root / str(workers))
    bucket.reset()
    for i in range(workers):
      # One after the other: each does its share, the last what is left.
      share = None if i == workers - 1 else 60 // workers
      work(directory, Worker(i, workers), is_new=True, limit=share)
    counts[workers] = bucket.counts()
  for found in counts.values():
    assert found["upload"] == 120  # 60 claims, 60 commits
    assert found.get("delete", 0) == found.get("copy", 0) == 0
  assert sum(counts[1].values()) <= 120 + 4
  assert sum(counts[6].values()) <= 120 + 6 * 4


def test_a_lease_that_is_given_back_is_free(tmp_path):
  directory = make_directory(tmp_path)
  queue = WorkQueue(directory, FILES, 60, Worker(0, 1), is_new=True)
  index, lease = queue.claim()
  with lease:
    assert directory.leased(FILES) == {FILES[index]}
  assert directory.leased(FILES) == set()
  assert sorted(work(directory, Worker(0, 1))) == list(range(60))


def test_commits_of_another_job_do_not_count(tmp_path):
  directory = make_directory(tmp_path)
  other = dataclasses.replace(
    Commit(Shard(FILES[0], 0, 0, "", ""), "job"), job="other"
  )
  directory.commit(other)
  assert directory.keep_valid(FILES) == {}
  assert not directory.is_committed(FILES[0])
