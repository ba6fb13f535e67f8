"""The one way to files keeps its promises on a disk and in a bucket."""

import errno
import os
import subprocess
import sys
import threading
import time

import pytest

import must_jax.storage.gcs as gcs_lib
from must_jax.storage import path as path_lib
from must_jax.storage.path import Appender, Path


@pytest.fixture(params=["disk", "bucket"])
def root(request, tmp_path):
  if request.param == "disk":
    return Path(tmp_path)
  return Path(request.getfixturevalue("bucket").root) / "below"


@pytest.fixture
def no_pauses(monkeypatch):
  async def sleep(seconds):
    del seconds

  monkeypatch.setattr(gcs_lib.asyncio, "sleep", sleep)


def write(path, data):
  with path_lib.publish(path) as file:
    file.write(data)


def test_a_file_appears_whole_or_not_at_all(root):
  with pytest.raises(RuntimeError), path_lib.publish(root / "a") as file:
    file.write(b"half")
    assert not path_lib.is_file(root / "a")
    raise RuntimeError
  assert path_lib.list_names(root) == set()
  write(root / "a", b"whole")
  assert (root / "a").read_bytes() == b"whole"
  with path_lib.publish(root / "b", lambda: root / "c") as file:
    file.write(b"named at the end")
  assert path_lib.list_names(root) == {"a", "c"}


def test_one_of_many_makes_a_file(root):
  barrier, made = threading.Barrier(12), []

  def make(i):
    barrier.wait()
    if path_lib.create_json(root / "f", {"by": i}):
      made.append(i)

  threads = [threading.Thread(target=make, args=(i,)) for i in range(12)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(made) == 1
  assert path_lib.read_version(root / "f").value == {"by": made[0]}


def test_a_lost_answer_is_no_refusal(bucket, no_pauses):
  """What was made by a request whose answer was cut is made by us."""
  bucket.set(rate=0.5, kinds=("cut_after",))
  for i in range(20):
    assert path_lib.create_json(f"{bucket.root}/{i}", {"token": i})
    assert not path_lib.create_json(f"{bucket.root}/{i}", {"token": -1})


def test_a_version_is_replaced_once(root):
  assert path_lib.read_version(root / "f") is None
  first = path_lib.replace_json(root / "f", None, {"n": 1})
  assert first.value == {"n": 1}
  assert path_lib.replace_json(root / "f", None, {"n": 2}) is None
  assert path_lib.read_version(root / "f") == first
  second = path_lib.replace_json(root / "f", first, {"n": 2})
  assert path_lib.replace_json(root / "f", first, {"n": 3}) is None
  assert path_lib.read_version(root / "f") == second


def test_ranges(root, tmp_path):
  data = os.urandom(1 << 20)
  write(root / "a", data)
  write(root / "b", data[::-1])
  write(tmp_path / "here", data)
  wanted = [
    (root / "a", 10, 20),
    (root / "b", 0, 1 << 20),
    (tmp_path / "here", 5, 6),
    (root / "a", 15, 300_000),
    (root / "a", 700_000, 700_001),
    (root / "a", (1 << 20) - 3, (1 << 20) + 50),
    (root / "a", (1 << 20) + 500_000, (1 << 20) + 500_010),
  ]
  found = path_lib.read_ranges(wanted)
  for (path, begin, end), part in zip(wanted, found, strict=True):
    whole = data[::-1] if path == root / "b" else data
    assert part == whole[begin:end]
  assert path_lib.read_ranges([]) == []


def test_near_ranges_are_one_request(bucket):
  path = f"{bucket.root}/f"
  write(path, bytes(1 << 20))
  bucket.reset()
  path_lib.read_ranges([(path, i * 1000, i * 1000 + 10) for i in range(100)])
  assert bucket.counts() == {"get_range": 1}
  path_lib.read_ranges([(path, 0, 10), (path, 500_000, 500_010)])
  assert bucket.counts() == {"get_range": 3}


def test_many_files(root):
  for i in range(5):
    write(root / str(i), str(i).encode())
  paths = [root / str(i) for i in (4, 9, 0)]
  assert path_lib.read_files(paths) == [b"4", None, b"0"]
  path_lib.remove_all(paths)
  assert path_lib.list_names(root) == {"1", "2", "3"}
  path_lib.remove(root / "9")
  path_lib.move(root / "1", root / "5")
  assert path_lib.list_sizes(root) == {"2": 1, "3": 1, "5": 1}
  assert abs(path_lib.modified(root / "5") - time.time()) < 60


def test_listing(root):
  path_lib.make_directory(root / "d" / ".hidden")
  for name in ("d/x.json", "d/y.json", "z", "d/.hidden/no"):
    write(root / name, b"12")
  assert path_lib.list_names(root) == {"d", "z"}
  assert path_lib.list_sizes(root) == {"d": None, "z": 2}
  write(root / ".no", b"")
  assert sorted(path_lib.list_tree(root)) == ["d/x.json", "d/y.json", "z"]
  assert sorted(path_lib.list_tree(root, hidden=True)) == sorted(
    [".no", "d/.hidden", "d/x.json", "d/y.json", "z"]
  )
  path_lib.remove(root / ".no")
  assert path_lib.is_file(root / "z") and not path_lib.is_file(root / "d")
  assert not path_lib.is_file(root / "d" / "x.jso")
  path_lib.remove_tree(root / "d")
  assert path_lib.list_names(root) == {"z"}


def test_large_directories_are_listed_in_parts(bucket, monkeypatch):
  names = [f"w-train-{i:05d}-of-00040" for i in range(40)]
  for name in names:
    write(f"{bucket.root}/d/{name}.json", b"")
  write(f"{bucket.root}/d/job.json", b"")
  monkeypatch.setattr(path_lib, "_PAGE", 10)
  bucket.reset()
  expected = [f"{name}.tfrecord" for name in names]
  found = path_lib.list_sizes(f"{bucket.root}/d", expected)
  assert set(found) == {f"{name}.json" for name in names}
  assert bucket.counts()["list"] == 40  # by two digits: 00, ... 39


def test_fingerprints_change_with_files(root):
  names = ["a", "b", "below/c", "none", "nowhere/d"]
  paths = [root / name for name in names]
  for path in paths[:3]:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, b"old")
  before = path_lib.fingerprints(paths)
  assert [mark is None for mark in before] == [False] * 3 + [True] * 2
  assert path_lib.fingerprints(paths[::-1]) == before[::-1]
  assert path_lib.fingerprints([]) == []
  write(paths[0], b"other")
  write(paths[2], b"new")  # of the same size
  if path_lib.is_local(root):  # a clock may be coarse
    os.utime(paths[2], (1, 2))
  after = path_lib.fingerprints([*paths, paths[2]])
  assert [a != b for a, b in zip(after, before, strict=False)] == [
    *(True, False, True),
    *(False, False),
  ]
  assert after[5] == after[2]


def test_fingerprints_of_a_bucket_cost_a_listing(bucket):
  paths = [f"{bucket.root}/d/{i}" for i in range(20)]
  for path in paths:
    write(path, b"")
  bucket.reset()
  assert None not in path_lib.fingerprints(paths)
  assert bucket.counts() == {"list": 1}


def test_what_was_appended_is_there(root):
  path = root / "m.jsonl"
  first = Appender(path, piece_bytes=20)
  for i in range(6):
    first.write(f"line {i}\n".encode())
    assert path_lib.read_appended(path).endswith(f"line {i}\n".encode())
  first.close()  # or is killed
  again = Appender(path)
  again.write(b"again\n")
  again.close()
  lines = path_lib.read_appended(path).splitlines()
  assert lines == [*(f"line {i}".encode() for i in range(6)), b"again"]
  assert path_lib.read_appended(root / "none") == b""


def test_a_full_disk_says_which_file(tmp_path, monkeypatch):
  def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match=f"No space .*: '{tmp_path}/m.json'"):
    path_lib.publish_json(tmp_path / "m.json", 1)
  assert not list(tmp_path.iterdir())


def test_lines_are_dropped_wherever_they_are(root):
  path = root / "m.jsonl"
  path_lib.drop_lines(path, lambda line: True)
  for start in range(2):
    appender = Appender(path, piece_bytes=20)
    for i in range(6):
      appender.write(f"start {start}, line {i}\n".encode())
    appender.close()
  path_lib.drop_lines(path, lambda line: line.endswith((b"2", b"3")))
  appender = Appender(path)
  appender.write(b"again\n")
  appender.close()
  lines = path_lib.read_appended(path).decode().splitlines()
  expected = [f"start {s}, line {i}" for s in range(2) for i in (0, 1, 4, 5)]
  assert lines == [*expected, "again"]


def test_a_line_costs_a_request_of_bounded_size(bucket):
  appender = Appender(f"{bucket.root}/m.jsonl", piece_bytes=100)
  bucket.reset()
  for _ in range(50):
    appender.write(b"x" * 10)
  assert bucket.counts() == {"upload": 50}
  sizes = path_lib.list_sizes(bucket.root).values()
  assert max(sizes) <= 110 and sum(sizes) == 500


@pytest.mark.parametrize("kind", ["503", "429", "cut", "cut_after"])
def test_requests_that_fail_are_tried_again(bucket, no_pauses, kind):
  bucket.set(rate=0.3, kinds=(kind,), seed=1)
  root = Path(bucket.root)
  for i in range(20):
    write(root / str(i), str(i).encode())
  assert path_lib.read_files([root / str(i) for i in range(20)]) == [
    str(i).encode() for i in range(20)
  ]
  assert path_lib.list_names(root) == {str(i) for i in range(20)}
  for i in range(20):
    path_lib.remove(root / str(i))
  bucket.set()
  assert path_lib.list_names(root) == set()


def test_what_lasts_is_named(bucket, no_pauses, monkeypatch, caplog):
  write(f"{bucket.root}/f", b"")
  bucket.set(rate=1.0)
  monkeypatch.setattr(gcs_lib, "_WARN_AFTER", 0.0)
  monkeypatch.setattr(gcs_lib, "_PATIENCE", 0.5)
  with pytest.raises(OSError, match=rf"{bucket.root}/f.*503.*same command"):
    Path(f"{bucket.root}/f").read_bytes()
  assert f"{bucket.root}/f: the service answers 503" in caplog.text


def test_a_bucket_that_is_not_there(bucket):
  absent = "gs://there-is-no-such-bucket/f"
  for use in (
    lambda: path_lib.check_reachable(absent),
    lambda: Path(absent).exists(),
    lambda: write(absent, b""),
    lambda: path_lib.list_names(absent),
    lambda: path_lib.create_json(absent, {}),
  ):
    with pytest.raises(
      OSError, match="no bucket gs://there-is-no-such-bucket"
    ) as caught:
      use()
    assert not isinstance(caught.value, FileNotFoundError)
  path_lib.check_reachable(f"{bucket.root}/f")  # a file may well be missing


def test_no_rights(bucket):
  bucket.set(forbidden=True)
  for use in (
    lambda: path_lib.check_reachable(f"{bucket.root}/f"),
    lambda: write(f"{bucket.root}/f", b""),
    lambda: path_lib.list_names(bucket.root),
  ):
    with pytest.raises(PermissionError, match=rf"{bucket.root}.*objectAdmin"):
      use()


def test_rights_on_objects_are_not_enough_for_checkpoints(bucket, monkeypatch):
  path_lib.check_bucket(f"{bucket.root}/run")
  call = gcs_lib.Gcs._call

  async def forbid_buckets(self, method, path, *args, **kwargs):
    if path == f"b/{bucket.name}":
      raise PermissionError("Forbidden")
    return await call(self, method, path, *args, **kwargs)

  monkeypatch.setattr(gcs_lib.Gcs, "_call", forbid_buckets)
  path_lib.check_reachable(f"{bucket.root}/run")
  with pytest.raises(PermissionError, match="legacyBucketReader"):
    path_lib.check_bucket(f"{bucket.root}/run")


def test_a_missing_package_names_the_extra(tmp_path):
  (tmp_path / "gcsfs.py").write_text(
    "raise ModuleNotFoundError('no', name='gcsfs')"
  )
  result = subprocess.run(
    [sys.executable, "-m", "must_jax.cli", "inspect", "gs://b/labels"],
    env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.getcwd()}"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 2
  assert result.stderr.splitlines()[-1].startswith("error: gs:// needs gcsfs")
  assert "[gcs]" in result.stderr


def test_paths_stay_what_they_are():
  assert str(path_lib.absolute("gs://b/x")) == "gs://b/x"
  assert str(path_lib.absolute("x")) == os.path.abspath("x")


def test_many_files_are_deleted_as_google_does_it(bucket, monkeypatch):
  """gcsfs sends batches of deletes to Google, and to no emulator."""
  monkeypatch.setattr(gcs_lib.Gcs, "on_google", True)
  root = Path(bucket.root)
  for i in range(150):
    write(root / "d" / str(i), b"")
  bucket.reset()
  path_lib.remove_all([root / "d" / str(i) for i in range(60)])
  assert bucket.counts()["batch"] == 1
  path_lib.remove_all([root / "d" / "0", root / "d" / "60"])  # one is gone
  assert len(path_lib.list_names(root / "d")) == 89
  path_lib.remove_tree(root / "d")
  assert path_lib.list_names(root) == set()


@pytest.mark.parametrize(
  "path", ["gcs://b/x", "GS://b/x", "file:///x", "gs:/b/x", "http://b/x"]
)
def test_urls_of_other_kinds_are_an_error(path):
  with pytest.raises(ValueError, match="expected a local path, or gs://"):
    path_lib.is_local(path)
  if "://" in path:
    with pytest.raises(ValueError, match="expected a local path, or gs://"):
      Path(path)


def test_local_paths():
  for path in ("x", "/x", "a:b", "./gs:/x", "x/y:/z"):
    assert path_lib.is_local(path)


def test_two_writers_append_side_by_side(bucket):
  path = f"{bucket.root}/m.jsonl"
  one, two = Appender(path), Appender(path)
  for i in range(3):
    one.write(f"one {i}\n".encode())
    two.write(f"two {i}\n".encode())
  lines = path_lib.read_appended(path).decode().splitlines()
  assert sorted(lines) == [f"{w} {i}" for w in ("one", "two") for i in range(3)]
  third = Appender(path)
  third.write(b"three\n")
  assert path_lib.read_appended(path).endswith(b"three\n")


def test_reading_many_files_ends_at_the_first_error(bucket, monkeypatch):
  root = Path(bucket.root)
  write(root / "0", b"")
  bucket.set(rate=1.0)
  monkeypatch.setattr(gcs_lib, "_PATIENCE", 1.0)
  begin = time.monotonic()
  with pytest.raises(OSError, match="503"):
    path_lib.read_files([root / "0"] * 640)
  assert time.monotonic() - begin < 8  # not ten times the patience


def test_a_link_whose_answer_was_lost_was_made(tmp_path, monkeypatch):
  link = os.link

  def lose(source, target):
    link(source, target)
    raise FileExistsError

  monkeypatch.setattr(os, "link", lose)
  assert path_lib.create_json(tmp_path / "f", {})
  monkeypatch.undo()
  assert not path_lib.create_json(tmp_path / "f", {"other": 1})


def test_whether_files_are_made_by_one_only(root, monkeypatch):
  write(root / "f", b"{}")
  assert path_lib.is_exclusive(root / "f")
  assert path_lib.list_names(root) == {"f"}


def test_without_hard_links_files_are_not_made_by_one_only(
  tmp_path, monkeypatch
):
  def refuse(source, target):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(os, "link", refuse)
  write(tmp_path / "f", b"{}")
  assert not path_lib.is_exclusive(tmp_path / "f")
