"""Two workers on one shard who make other bytes, in every order of writes.

Workers differ in the last bits where their libraries or devices do.
"""

import contextlib
import dataclasses
import itertools
import threading

import pytest

from must_jax.storage import path as path_lib
from must_jax.storage import tfrecord
from must_jax.storage.commits import Commit, CommitDirectory
from must_jax.storage.sets import Shard, key_digest
from must_jax.storage.tfrecord import ShardReader, file_checksum

FILE = "w-train-00000-of-00001.tfrecord"
RECORDS = {
  "A": [b"a" * 10, b"b" * 20, b"c" * 30, b"d" * 40],
  # As long in sum: neither sizes nor the last offset tell them apart.
  "B": [b"a" * 10, b"B" * 30, b"C" * 40, b"D" * 20],
}
WRITES = 3  # offsets, records, commit record
ORDERS = sorted(
  {
    order
    for a, b in itertools.product(range(WRITES + 1), repeat=2)
    if WRITES in (a, b)  # who stops earlier has died
    for order in itertools.permutations("A" * a + "B" * b)
  }
)


class Turns:
  """Lets writes happen in a given order; who has no more turns dies."""

  def __init__(self, order):
    self._order, self._done = order, 0
    self._changed = threading.Condition()

  @contextlib.contextmanager
  def turn(self):
    name = threading.current_thread().name
    with self._changed:
      if name not in self._order[self._done :]:
        raise SystemExit  # of the thread
      self._changed.wait_for(lambda: self._order[self._done] == name)
      try:
        yield
      finally:
        self._done += 1
        self._changed.notify_all()


@pytest.fixture(params=["disk", "bucket"])
def root(request, tmp_path):
  if request.param == "disk":
    return str(tmp_path)
  return request.getfixturevalue("bucket").root


def write(directory, records):
  with directory.writer(FILE) as writer:
    for record in records:
      writer.write(record)
  keys = key_digest([str(i).encode() for i in range(len(records))])
  shard = Shard(
    writer.path.name,
    writer.num_records,
    writer.num_bytes,
    writer.checksum,
    keys,
  )
  return directory.commit(Commit(shard, "job"))


def run(root, order, monkeypatch):
  """Writes of both workers in an order; returns the directory."""
  directory = CommitDirectory(root, "job", Commit)
  path_lib.make_directory(root)
  turns = Turns(order)

  @contextlib.contextmanager
  def publish(path, final=None):
    # A file appears at the end of the block, whatever happens in it before.
    inner = path_lib.publish(path, final)
    file = inner.__enter__()
    try:
      yield file
    except BaseException as error:
      with contextlib.suppress(type(error)):
        inner.__exit__(type(error), error, error.__traceback__)
      raise
    try:
      with turns.turn():
        inner.__exit__(None, None, None)
    except SystemExit as error:
      with contextlib.suppress(SystemExit):
        inner.__exit__(SystemExit, error, None)
      raise

  create = path_lib.create_json

  def create_json(path, value):
    with turns.turn():
      return create(path, value)

  with monkeypatch.context() as patch:
    patch.setattr(tfrecord, "publish", publish)
    patch.setattr(path_lib, "create_json", create_json)

    def work(name):
      with contextlib.suppress(SystemExit):
        write(directory, RECORDS[name])

    workers = [
      threading.Thread(target=work, args=(name,), name=name) for name in RECORDS
    ]
    for worker in workers:
      worker.start()
    for worker in workers:
      worker.join(30)
      assert not worker.is_alive()
  return directory


def test_no_order_of_writes_mixes_two_workers(root, monkeypatch):
  winners = set()
  for number, order in enumerate(ORDERS):
    directory = run(f"{root}/{number}", order, monkeypatch)
    shard = directory.read(FILE).shard
    found = list(ShardReader(directory.path / shard.file))
    winner = next(name for name in RECORDS if RECORDS[name] == found)
    winners.add(winner)
    # The first to commit.
    ends = {
      len(order) - order[::-1].index(name): name
      for name in RECORDS
      if order.count(name) == WRITES
    }
    assert winner == ends[min(ends)], order
    path = directory.path / shard.file
    assert file_checksum(path) == (shard.checksum, shard.num_bytes)
    # Nothing of the other one stays.
    directory.clean_up([shard])
    assert path_lib.list_names(directory.path) == {
      FILE.replace("tfrecord", "json"),
      shard.file,
      shard.file.replace("tfrecord", "offsets"),
    }, order
  assert winners == set(RECORDS)
  assert len(ORDERS) == 50


def test_the_first_commit_counts(root):
  directory = CommitDirectory(root, "job", Commit)
  assert write(directory, RECORDS["A"])
  commit = directory.read(FILE)
  assert not write(directory, RECORDS["B"])
  assert directory.read(FILE) == commit
  other = dataclasses.replace(commit, job="other")
  assert not directory.commit(other)
