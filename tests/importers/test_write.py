"""How images become an image set: order, rejection, resuming, processes."""

import dataclasses
import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from must_jax.importers import write
from must_jax.importers.items import Imported, Labels, Plan
from must_jax.storage import set_writer
from must_jax.storage.commits import Commit, CommitDirectory
from must_jax.storage.image_files import Picture
from must_jax.storage.path import Path

FOLDER = "folder", "--unlabelled", "--images"


@pytest.fixture
def pile(tmp_path, picture):
  for i in range(12):
    picture(tmp_path / f"pile/{i:02d}.jpg")
  return tmp_path / "pile"


def break_images(pile, numbers):
  for i in numbers:
    (pile / f"{i:02d}.jpg").write_bytes(b"broken")


def contents(directory):
  return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


def in_order(names):
  """Order of images in a set: by blake2b-16 of their keys."""
  return sorted(
    names,
    key=lambda name: hashlib.blake2b(name.encode(), digest_size=16).digest(),
  )


KEYS = in_order(f"{i:02d}" for i in range(12))


def test_bytes_do_not_depend_on_threads(run_import, pile, tmp_path):
  break_images(pile, [5])
  words = (*FOLDER, pile, "--max-rejected", 0.1, "--shards", 3)
  for workers in (1, 2, 7):
    status, *_ = run_import(*words, "--workers", workers, out=f"w{workers}")
    assert status == 0
  one = contents(tmp_path / "w1")
  # Three shards, their offsets, the index, and what was rejected.
  assert len(one) == 8
  assert contents(tmp_path / "w2") == one
  assert contents(tmp_path / "w7") == one


@pytest.mark.parametrize(
  "workers", [2, pytest.param(3, marks=pytest.mark.slow)]
)
def test_bytes_do_not_depend_on_processes(
  run_import, pile, tmp_path, monkeypatch, workers
):
  monkeypatch.setattr(write, "IMAGES_PER_PROCESS", 1)
  break_images(pile, [5])
  words = (*FOLDER, pile, "--max-rejected", 0.1, "--records-per-shard", 2)
  for number in (1, workers):
    status, _, err = run_import(*words, "--workers", number, out=f"w{number}")
    assert status == 0
    assert (
      err
      == "1 rejected:\n  05: cannot be decoded: neither JPEG nor PNG: "
      + ("it begins with b'broken'\n")
    )
  assert contents(tmp_path / f"w{workers}") == contents(tmp_path / "w1")


@pytest.mark.parametrize(
  ("words", "expected"),
  [
    (["--records-per-shard", 5], [KEYS[:5], KEYS[5:10], KEYS[10:]]),
    (["--shards", 5], [KEYS[i::5] for i in range(5)]),
    (["--shards", 99], [[key] for key in KEYS]),
  ],
)
def test_shards_are_cut_from_keys_in_hashed_order(
  run_import, read_back, pile, words, expected
):
  assert run_import(*FOLDER, pile, *words)[0] == 0
  assert list(read_back()[0]) == [key for keys in expected for key in keys]
  shards = read_back()[1].shards
  assert [s.num_records for s in shards] == list(map(len, expected))


def test_rejected_images_make_their_shard_shorter(run_import, read_back, pile):
  break_images(pile, [int(key) for key in (*KEYS[3:6], KEYS[8])])
  words = (*FOLDER, pile, "--records-per-shard", 3, "--max-rejected", 0.5)
  assert run_import(*words)[0] == 0
  kept, image_set = read_back()
  assert list(kept) == KEYS[:3] + KEYS[6:8] + KEYS[9:]
  # The second part has no record and vanishes.
  assert [(s.file, s.num_records) for s in image_set.shards] == [
    ("set-train-00000-of-00003.tfrecord", 3),
    ("set-train-00001-of-00003.tfrecord", 2),
    ("set-train-00002-of-00003.tfrecord", 3),
  ]


def test_rejected_images_are_listed(
  run_import, read_back, pile, index_of, tmp_path
):
  break_images(pile, range(11))
  status, out, err = run_import(*FOLDER, pile, "--max-rejected", 0.95)
  assert status == 0
  assert "1 of 12 images" in out
  assert "11 rejected:" in err
  assert "  00: cannot be decoded" in err
  assert "... and 1 more" in err  # ten are shown
  assert list(read_back()[0]) == ["11"]
  split = index_of()["splits"]["train"]
  rejected = split["rejected"]
  assert split["num_rejected"] == 11
  assert [r["key"] for r in rejected] == [f"{i:02d}" for i in range(11)]
  assert all("neither JPEG nor PNG" in r["reason"] for r in rejected)
  lines = (tmp_path / "out/set-train.rejected.jsonl").read_text().splitlines()
  assert list(map(json.loads, lines)) == rejected


def test_the_same_input_gives_the_same_index(
  run_import, read_back, pile, tmp_path
):
  """Whatever process reads it: reasons name no address, no order of a set."""
  signature = b"\x89PNG\r\n\x1a\n"
  header = b"\0\0\0\x0dIHDR\0\0\0\x08\0\0\0\x06\xff"
  (pile / "03.jpg").write_bytes(signature + header + bytes(40))
  for i in range(12):
    path = tmp_path / f"masks/{i:02d}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((6, 8), 20 * i, np.uint8)).save(path)
  Image.new("L", (8, 6)).save(tmp_path / "masks/05.png", "JPEG")
  (tmp_path / "masks/06.png").write_bytes(signature + header + bytes(40))
  (tmp_path / "classes.txt").write_text("a\nb\n")
  words = ("masks", "--images", pile, "--masks", tmp_path / "masks")
  words += ("--classes", tmp_path / "classes.txt", "--max-rejected", 1)
  assert run_import(*words, out="here")[0] == 0
  output = ("--out", tmp_path / "there", "--name", "set", "--split", "train")
  command = [sys.executable, "-m", "must_jax.cli", "import", *words, *output]
  subprocess.run([str(word) for word in command], check=True)
  assert contents(tmp_path / "here") == contents(tmp_path / "there")
  reasons = (tmp_path / "here/set-train.rejected.jsonl").read_text()
  assert "05.png is a JPEG" in reasons
  assert len(reasons.splitlines()) == 11
  assert " at 0x" not in reasons


@pytest.mark.parametrize(
  ("broken", "allowed", "status"),
  [(1, None, 1), (1, 1 / 12, 0), (2, 1 / 12, 1), (0, 0, 0), (1, 0, 1)],
)
def test_too_many_rejected_fail(
  run_import, pile, tmp_path, reads, broken, allowed, status
):
  break_images(pile, range(broken))
  words = [*FOLDER, pile, "--records-per-shard", 5]
  if allowed is not None:
    words += ["--max-rejected", allowed]
  given, _, err = run_import(*words)
  assert given == status
  if status:
    assert f"error: {broken} of 12 images were rejected" in err
    assert "No image set was written" in err
    assert [*tmp_path.glob("out/*")] == [stage_of(tmp_path)]
    # Doing as the message says mends it, and reads nothing again.
    words += ["--max-rejected", err.rpartition(" ")[2].strip().rstrip(".")]
    assert len(reads) == 12
    assert run_import(*words)[0] == 0
    assert len(reads) == 12
  assert not [*tmp_path.glob("out/.train.import*")]


def test_mended_images_are_read_again(
  run_import, read_back, picture, pile, reads
):
  break_images(pile, [int(KEYS[4])])
  words = (*FOLDER, pile, "--records-per-shard", 3)
  assert run_import(*words)[0] == 1
  picture(pile / f"{KEYS[4]}.jpg")
  reads.clear()
  status, out, err = run_import(*words)
  assert (status, err) == (0, "")
  assert "3 of 4 parts are read already" in out
  assert sorted(reads) == sorted(f"{key}.jpg" for key in KEYS[3:6])
  assert list(read_back()[0]) == KEYS


def write_boxes(tmp_path, kind, boxes):
  """Labels of {key: [x, y, width, height]} in a format."""
  if kind == "coco":
    value = {
      "images": [{"id": key, "file_name": f"{key}.jpg"} for key in boxes],
      "annotations": [
        {"image_id": key, "category_id": 1, "bbox": box}
        for key, box in boxes.items()
      ],
      "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(value))
    return "coco", "--annotations", tmp_path / "coco.json"
  (tmp_path / "xml").mkdir(exist_ok=True)
  for key, (x, y, width, height) in boxes.items():
    text = (
      f"<annotation><object><name>cat</name><bndbox><xmin>{x + 1}</xmin>"
      f"<ymin>{y + 1}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax>"
      "</bndbox></object></annotation>"
    )
    path = tmp_path / f"xml/{key}.xml"
    if not path.exists() or path.read_text() != text:
      path.write_text(text)
  return "voc", "--annotations", tmp_path / "xml"


@pytest.mark.parametrize("kind", ["voc", "coco"])
@pytest.mark.parametrize(("num_mended", "num_parts"), [(1, 1), (4, 2), (12, 4)])
def test_mended_labels_are_read_again(
  run_import, pile, tmp_path, reads, kind, num_mended, num_parts
):
  """The set is as if there had been no first run, which told of one image."""
  boxes = {key: [1, 1, 4, 4] for key in KEYS} | {KEYS[-1]: [1, 1, 0, 0]}
  words = (*write_boxes(tmp_path, kind, boxes), "--images", pile)
  words += ("--records-per-shard", 3)
  status, _, err = run_import(*words)
  assert status == 1
  assert "Mend the files and run the same command" in err
  boxes |= {key: [2, 1, 4, 4] for key in KEYS[-num_mended:]}
  write_boxes(tmp_path, kind, boxes)
  reads.clear()
  status, out, err = run_import(*words)
  assert (status, err) == (0, "")
  assert f"labels or files of {num_parts} of 4 parts have changed" in out
  assert sorted(reads) == sorted(f"{k}.jpg" for k in KEYS[-3 * num_parts :])
  assert run_import(*words, out="fresh")[0] == 0
  assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_changed_maps_and_images_are_read_again(
  run_import, picture, pile, tmp_path, reads
):
  """Whatever its importer, an item is read again if one of its files is new."""
  (tmp_path / "depths").mkdir()
  for key in KEYS:
    np.save(tmp_path / f"depths/{key}.npy", np.full((6, 8), 1.0))
  broken = tmp_path / f"depths/{KEYS[0]}.npy"
  np.save(broken, np.zeros((6, 8)))
  words = ("depth", "--images", pile, "--depths", tmp_path / "depths")
  words += ("--records-per-shard", 3)
  assert run_import(*words)[0] == 1
  np.save(broken, np.full((6, 8), 1.0))
  np.save(tmp_path / f"depths/{KEYS[4]}.npy", np.full((6, 8), 2.0))
  picture(pile / f"{KEYS[10]}.jpg", quality=20)
  reads.clear()
  assert run_import(*words)[0] == 0
  unchanged = {f"{key}.jpg" for key in KEYS[6:9]}
  assert sorted(reads) == sorted({f"{key}.jpg" for key in KEYS} - unchanged)
  assert run_import(*words, out="fresh")[0] == 0
  assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_changed_objects_of_a_bucket_are_read_again(
  run_import, pile, tmp_path, reads, bucket
):
  broken = KEYS[0]
  for key in KEYS:
    data = b"broken" if key == broken else (pile / f"{key}.jpg").read_bytes()
    Path(f"{bucket.root}/pile/{key}.jpg").write_bytes(data)
  words = (*FOLDER, f"{bucket.root}/pile", "--records-per-shard", 3)
  assert run_import(*words)[0] == 1
  # Another image of the same size.
  other = Path(f"{bucket.root}/pile/{KEYS[5]}.jpg")
  other.write_bytes(other.read_bytes()[:-3] + b"\0\xff\xd9")
  mended = (pile / f"{broken}.jpg").read_bytes()
  Path(f"{bucket.root}/pile/{broken}.jpg").write_bytes(mended)
  reads.clear()
  status, out, _ = run_import(*words)
  assert status == 0
  assert "2 of 4 parts are read already" in out
  assert sorted(reads) == sorted(f"{key}.jpg" for key in KEYS[:6])
  assert run_import(*words, out="fresh")[0] == 0
  assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_all_rejected_is_an_error(run_import, pile, tmp_path):
  break_images(pile, range(12))
  status, _, err = run_import(*FOLDER, pile)
  assert status == 1
  assert err.endswith("Mend the files and run the same command.\n")
  status, _, err = run_import(*FOLDER, pile, "--max-rejected", 1)
  assert status == 2
  assert "  00: cannot be decoded" in err
  assert "no examples" in err
  assert "12 were rejected" in err
  assert not list(tmp_path.glob("out/*"))


def test_second_import_of_a_split(run_import, read_back, pile, reads):
  words = (*FOLDER, pile)
  assert run_import(*words)[0] == 0
  reads.clear()
  status, _, err = run_import(*words)
  assert status == 2
  assert "has a split 'train' already" in err
  assert not reads
  (pile / "00.jpg").unlink()
  assert run_import(*words, "--overwrite")[0] == 0
  assert len(read_back()[0]) == 11
  assert run_import(*words, split="val")[0] == 0
  assert len(read_back(split="train")[0]) == 11
  status, _, err = run_import(*words, name="other", split="test")
  assert status == 2
  assert "name is 'set'" in err


@pytest.mark.parametrize(
  ("option", "value"),
  [
    ("--shards", 0),
    ("--records-per-shard", 0),
    ("--workers", 0),
    ("--max-rejected", 1.5),
    ("--max-rejected", "nan"),
    ("--beam-options", "--x"),
  ],
)
def test_bad_options(run_import, pile, tmp_path, option, value):
  status, _, err = run_import(*FOLDER, pile, f"{option}={value}")
  assert status == 2
  assert err.startswith(f"error: {option} is {value!r}"[: 7 + len(option) + 4])
  assert "; expected " in err or "expected both" in err
  assert not (tmp_path / "out").exists()


def test_licence(run_import, read_back, pile):
  assert run_import(*FOLDER, pile, "--licence", "CC0")[0] == 0
  image_set = read_back()[1]
  assert image_set.licence == "CC0"
  assert image_set.name == "set"


# Imports that were broken off.

INTERRUPTED = """
import os, sys
from must_jax import cli
from must_jax.storage import image_files

left, number, *words = sys.argv[1:]
read_image = image_files.read_image
count = 0

def read(path, *options):
  global count
  count += 1
  if count == int(left):
    os.kill(os.getpid(), int(number))
  return read_image(path, *options)

image_files.read_image = read
sys.exit(cli.main(words))
"""


def stage_of(tmp_path):
  """The directory of unfinished parts."""
  (stage,) = tmp_path.glob("out/.train.import-*")
  return stage


def parts_in(stage):
  return {
    str(p.relative_to(stage)): p.read_bytes()
    for p in stage.rglob("*")
    if p.is_file() and p.parent.name != "leases"
  }


# As shells do for the background jobs of a script.
IGNORES_CTRL_C = ("bash", "-c", 'trap "" INT; exec "$@"', "-")


@pytest.mark.parametrize(
  ("number", "before"),
  [
    (signal.SIGKILL, ()),
    (signal.SIGINT, ()),
    (signal.SIGINT, IGNORES_CTRL_C),
  ],
)
def test_same_command_continues(
  run_import, pile, tmp_path, reads, number, before
):
  words = (*FOLDER, pile, "--records-per-shard", 3, "--workers", 1)
  output = ("--out", tmp_path / "out", "--name", "set", "--split", "train")
  command = [
    *before,
    sys.executable,
    "-c",
    INTERRUPTED,
    8,
    int(number),
    "import",
  ]
  done = subprocess.run(
    [str(word) for word in (*command, *words, *output)],
    capture_output=True,
    text=True,
  )
  assert "Traceback" not in done.stderr
  if number == signal.SIGINT:
    assert done.returncode == 130
    assert "The same command continues" in done.stderr
  else:
    assert done.returncode == -signal.SIGKILL
  assert [*tmp_path.glob("out/*")] == [stage_of(tmp_path)]
  status, out, _ = run_import(*words)
  assert status == 0
  # The eighth image is of the third part.
  assert "2 of 4 parts are read already" in out
  assert sorted(reads) == sorted(f"{key}.jpg" for key in KEYS[6:])
  assert run_import(*words, out="undisturbed")[0] == 0
  assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_broken_off_while_shards_were_moved(
  run_import, pile, tmp_path, reads, monkeypatch
):
  words = (*FOLDER, pile, "--records-per-shard", 3)
  move = set_writer.NewSplit._move

  def broken_off(self, stage, there, shard, final):
    if shard.file.startswith("00002"):
      raise KeyboardInterrupt
    move(self, stage, there, shard, final)

  with monkeypatch.context() as patch:
    patch.setattr(set_writer.NewSplit, "_move", broken_off)
    with pytest.raises(KeyboardInterrupt):
      run_import(*words)
  reads.clear()
  status, out, _ = run_import(*words)
  assert status == 0
  assert "4 of 4 parts are read already" in out
  assert not reads
  assert run_import(*words, out="undisturbed")[0] == 0
  assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_changed_after_a_broken_off_publication(
  run_import, picture, pile, tmp_path, monkeypatch
):
  """Shards that have their names already are made again with the others."""
  words = (*FOLDER, pile, "--records-per-shard", 3, "--max-rejected", 0.3)
  break_images(pile, map(int, KEYS[:3]))  # this part has no shard
  move = set_writer.NewSplit._move

  def broken_off(self, stage, there, shard, final):
    if shard.file.startswith("00003"):
      raise KeyboardInterrupt
    move(self, stage, there, shard, final)

  with monkeypatch.context() as patch:
    patch.setattr(set_writer.NewSplit, "_move", broken_off)
    with pytest.raises(KeyboardInterrupt):
      run_import(*words)
  for key in KEYS[:3]:
    picture(pile / f"{key}.jpg")
  assert run_import(*words)[0] == 0
  assert run_import(*words, out="fresh")[0] == 0
  assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_full_disk_keeps_finished_parts(
  run_import, read_back, picture, pile, tmp_path, reads
):
  picture(pile / f"{KEYS[7]}.png", 300, 300)  # 270 kB
  (pile / f"{KEYS[7]}.jpg").unlink()
  words = (*FOLDER, pile, "--records-per-shard", 3)
  _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
  try:
    status, _, err = run_import(*words)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
  assert status == 2
  assert err.startswith("error: ")
  assert os.strerror(errno.EFBIG) in err
  reads.clear()
  status, out, _ = run_import(*words)
  assert status == 0
  assert "2 of 4 parts are read already" in out
  assert len(reads) == 6
  assert list(read_back()[0]) == KEYS


@pytest.mark.parametrize("change", ["images", "shards", "labels"])
def test_parts_of_another_import_are_discarded(
  run_import, read_back, picture, pile, tmp_path, reads, change
):
  (tmp_path / "depths").mkdir()
  for i in range(12):
    np.save(tmp_path / f"depths/{i:02d}.npy", np.ones((6, 8)))
  words = ["depth", "--images", pile, "--depths", tmp_path / "depths"]
  break_images(pile, [3])
  assert run_import(*words, "--records-per-shard", 3)[0] == 1
  reads.clear()
  picture(pile / "03.jpg")
  words += ["--records-per-shard", 4 if change == "shards" else 3]
  if change == "images":
    (pile / "07.jpg").unlink()
  if change == "labels":
    words += ["--scale", 7]
  status, out, _ = run_import(*words)
  assert status == 0
  assert "is of another import; it is begun anew" in out
  assert len(reads) == 11 if change == "images" else 12
  if change == "labels":
    assert "mean 7" in out


def test_files_of_a_dead_writer_vanish(run_import, pile, tmp_path):
  break_images(pile, [3])
  words = (*FOLDER, pile)
  assert run_import(*words)[0] == 1
  dead = stage_of(tmp_path) / ".00000.tfrecord.1-abc.tmp"
  dead.touch()
  assert run_import(*words)[0] == 1
  assert not dead.exists()


@pytest.mark.parametrize("same", [True, False])
def test_two_imports_at_once_are_refused(run_import, pile, tmp_path, same):
  """An import that lives keeps its parts, whatever the other one imports."""
  words = (*FOLDER, pile, "--records-per-shard", 5)
  break_images(pile, [3])
  assert run_import(*words)[0] == 1
  stage = stage_of(tmp_path)
  before = parts_in(stage)
  with CommitDirectory(stage, "any", Commit).lease("job.json", 600):
    status, _, err = run_import(*words[: None if same else -2])
    assert status == 2
    assert f"{stage} is in use by another import (process {os.getpid()}" in err
  assert parts_in(stage) == before
  assert run_import(*words, "--max-rejected", 0.5)[0] == 0
  assert not [*tmp_path.glob("out/.train.import*")]


def test_an_import_that_died_elsewhere_is_taken_over(
  run_import, pile, tmp_path
):
  break_images(pile, [3])
  assert run_import(*FOLDER, pile)[0] == 1
  lease = stage_of(tmp_path) / "leases" / "job.json"
  holder = {"host": "elsewhere", "pid": 1, "seconds": 0, "num_records": 0}
  lease.write_text(json.dumps(holder | {"beat": time.time() - 60}))
  status, _, err = run_import(*FOLDER, pile)
  assert status == 2
  assert "on elsewhere, last heard of 60 s ago" in err
  lease.write_text(json.dumps(holder | {"beat": time.time() - 6000}))
  assert run_import(*FOLDER, pile, "--max-rejected", 0.5)[0] == 0


# Plans of other kinds.


@dataclasses.dataclass(frozen=True)
class Source:
  key: str
  images: tuple
  files = ()


PNG = tf.io.encode_png(np.zeros((2, 3, 3), np.uint8)).numpy()


def read_source(source):
  for key, value in source.images:
    labels = Labels({"label": {"classes": [value]}}, (), {"sum": value})
    yield Imported(key, Picture(PNG, (2, 3)), labels)


def plan_of(*sources, **options):
  fields = {"label": {"kind": "ClassVector", "classes": ["cat", "dog"]}}
  items = [Source(f"source{i}", tuple(s)) for i, s in enumerate(sources)]
  return Plan(fields, items, read_source, shard_per_item=True, **options)


def test_items_may_be_shards(run_plan, read_back):
  plan = plan_of([("c", 0), ("b", 1), ("a", 0)], [], [("d", 1)])
  status, out, _ = run_plan(plan)
  assert status == 0
  assert "4 of 4 images in 2 shards" in out
  values, image_set = read_back()
  assert [(k, *v["label/classes"]) for k, v in values.items()] == [
    *(("c", 0), ("b", 1), ("a", 0)),
    ("d", 1),
  ]
  assert [s.num_records for s in image_set.shards] == [3, 1]
  status, _, err = run_plan(plan, "--shards", 2, "--overwrite")
  assert status == 2
  assert "--shards is 2; the source has 3" in err


@pytest.mark.parametrize(
  "sources",
  [[[("a", 0), ("b", 0)], [("c", 0)], [("b", 1)]], [[("b", 0), ("b", 0)]]],
)
def test_keys_that_come_twice_are_found(run_plan, tmp_path, sources):
  status, _, err = run_plan(plan_of(*sources))
  assert status == 2
  assert "Key b'b' comes twice" in err
  assert not list(tmp_path.glob("out/*"))


def test_different_keys_may_have_one_hash(run_plan, read_back, monkeypatch):
  from must_jax.importers import parts

  monkeypatch.setattr(parts, "_hash", lambda key, size: bytes(size))
  plan = plan_of([("a", 0), ("b", 0)], [("c", 0)])
  assert run_plan(plan)[0] == 0
  assert list(read_back()[0]) == ["a", "b", "c"]


def test_labels_that_do_not_fit_reject_their_image(
  run_plan, read_back, index_of
):
  plan = plan_of([("a", 0), ("b", 2)], [("c", 1)])
  assert run_plan(plan)[0] == 1
  assert run_plan(plan, "--max-rejected", 0.4)[0] == 0
  assert list(read_back()[0]) == ["a", "c"]
  (rejected,) = index_of()["splits"]["train"]["rejected"]
  assert rejected["key"] == "b"
  assert "class [2]; expected integers from 0 to 1" in rejected["reason"]


def test_counts_are_summed_over_images_that_are_kept(run_plan):
  plan = plan_of(
    [("a", np.int64(1)), ("b", 2)],
    [("c", 1)],
    summarize=lambda counts: [f"sum {counts['sum']}"],
    notes=["a note"],
  )
  status, out, _ = run_plan(plan, "--max-rejected", 0.4)
  assert status == 0
  assert "  a note\n  sum 2\n" in out


def fail(source):
  raise ValueError(f"{source.key} is damaged")


def test_errors_of_readers_end_the_import(run_plan):
  plan = dataclasses.replace(plan_of([("a", 0)]), read=fail)
  status, _, err = run_plan(plan)
  assert (status, err) == (2, "error: source0 is damaged\n")


def die(source):
  os._exit(9)


@pytest.mark.slow
def test_death_of_a_process_is_told(run_plan, monkeypatch):
  monkeypatch.setattr(write, "IMAGES_PER_PROCESS", 1)
  sources = [("a", 0)], [("b", 0)]
  plan = dataclasses.replace(plan_of(*sources, num_images=2), read=die)
  status, _, err = run_plan(plan, "--workers", 2)
  assert status == 2
  assert "process that read images died" in err


ENDED = """
import argparse, contextlib, dataclasses, os, sys, threading
from must_jax import cli
from must_jax import importers
from must_jax.importers import arguments
from must_jax.importers.items import Imported, Labels, Plan

@dataclasses.dataclass(frozen=True)
class Source:
  key: str
  files = ()

@dataclasses.dataclass(frozen=True)
class Read:
  fifo: str
  number: int
  parent: int

  def __call__(self, source):
    os.open(self.fifo, os.O_WRONLY)  # stays open while this process lives
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.parent, self.number)
    threading.Event().wait()
    yield

def plan(args):
  read = Read(sys.argv[1], int(sys.argv[2]), os.getpid())
  sources = [Source("a"), Source("b")]
  return Plan({}, sources, read, num_images=10_000, shard_per_item=True)

if __name__ == "__main__":
  importers.folder.plan = plan
  sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_their_parent(tmp_path, number):
  script, fifo = tmp_path / "script.py", tmp_path / "fifo"
  script.write_text(ENDED)
  os.mkfifo(fifo)
  words = (*FOLDER, tmp_path, "--out", tmp_path / "out", "--name", "set")
  words += ("--split", "train", "--workers", 2)
  command = [sys.executable, script, fifo, int(number), "import", *words]
  with subprocess.Popen(
    [str(word) for word in command], stderr=subprocess.PIPE, text=True
  ) as process:
    # Ends when no process has the other end open.
    subprocess.run(["cat", fifo], timeout=120, check=True)
    _, err = process.communicate()
  assert "Traceback" not in err
  if number == signal.SIGINT:
    assert process.returncode == 130
    assert "The same command continues" in err
