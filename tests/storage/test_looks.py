"""In a large directory one worker looks, and tells the others."""

import time

import pytest

from must_jax.storage import path as path_lib
from must_jax.storage.commits import Commit, CommitDirectory
from must_jax.storage.sets import Shard
from must_jax.storage.work_queue import Worker, WorkQueue

FILES = [f"a-train-{i:05d}-of-01200.tfrecord" for i in range(1200)]
NOBODY = Worker(-1, 0)


@pytest.fixture
def directory(tmp_path):
  made = CommitDirectory(tmp_path, "job", Commit)
  made.prepare()
  return made


@pytest.fixture
def listings(monkeypatch):
  """The directories that were listed."""
  listed = []
  for name in ("list_names", "list_sizes"):
    function = getattr(path_lib, name)

    def count(path, *args, function=function):
      listed.append(path)
      return function(path, *args)

    monkeypatch.setattr(path_lib, name, count)
  return listed


def work(directory, files, commit=True):
  for file in files:
    directory.lease_if_new(file, 600)
    if commit:
      directory.commit(Commit(Shard(file, 1, 1, "", ""), "job"))


def claim_all(queue):
  claimed = []
  while (found := queue.claim()) is not None:
    claimed.append(FILES[found[0]])
  return sorted(claimed)


def test_the_second_hears_what_the_first_saw(directory, listings):
  first, second = (
    WorkQueue(directory, FILES, 600, NOBODY, is_new=True) for _ in range(2)
  )
  work(directory, FILES[:1000])
  work(directory, FILES[1000:1190], commit=False)
  listings.clear()
  assert first.look()
  assert len(listings) == 2  # leases and commits
  assert second.look()
  assert len(listings) == 2
  assert second.done == first.done == set(FILES[:1000])
  # Nobody has seen more meanwhile, and it is too early to look again.
  assert not first.look()
  assert not second.look()
  assert claim_all(second) == FILES[1190:]
  assert claim_all(first) == []
  assert len(listings) == 2


def test_whoever_starts_hears_it_too(directory, listings):
  work(directory, FILES[:100])
  WorkQueue(directory, FILES, 600, NOBODY).look()
  listings.clear()
  queue = WorkQueue(directory, FILES, 600, Worker(1, 4))
  assert not listings
  assert len(queue.done) == 100
  # Its own share comes first.
  assert [queue.claim()[0] for _ in range(3)] == [101, 105, 109]


def test_old_news_are_no_news(directory, monkeypatch):
  queue = WorkQueue(directory, FILES, 600, NOBODY, is_new=True)
  assert queue.look()
  work(directory, FILES)
  now = time.time() + 1000
  monkeypatch.setattr(time, "time", lambda: now)
  assert queue.look()
  assert queue.is_done


def test_a_finished_directory_is_left_as_it_is(directory, tmp_path):
  work(directory, FILES)
  path_lib.remove_tree(tmp_path / "leases")
  directory.prepare()
  queue = WorkQueue(directory, FILES, 600, NOBODY)
  assert queue.is_done
  assert queue.look()
  assert path_lib.list_names(tmp_path / "leases") == set()
