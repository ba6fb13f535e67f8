import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def pile(tmp_path, picture):
  for i in range(12):
    picture(tmp_path / f"pile/{i:02d}.jpg")
  return tmp_path / "pile"


def contents(directory):
  return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


def test_bytes_do_not_depend_on_workers(run_import, pile, tmp_path):
  (pile / "05.jpg").write_bytes(b"broken")
  words = ("folder", "--images", pile, "--unlabelled", "--max-rejected", 0.1)
  for workers in (1, 2, 7):
    status, *_ = run_import(
      *words, "--workers", workers, "--shards", 3, out=f"w{workers}"
    )
    assert status == 0
  one = contents(tmp_path / "w1")
  assert len(one) == 7  # three shards, their offsets, the index
  assert contents(tmp_path / "w2") == one
  assert contents(tmp_path / "w7") == one


def test_neighbours_in_the_dataset_are_not_neighbours(
  run_import, read_back, pile
):
  assert run_import("folder", "--images", pile, "--unlabelled")[0] == 0
  keys = list(read_back()[0])
  assert sorted(keys) == [f"{i:02d}" for i in range(12)]
  assert keys != sorted(keys)


def test_rejected_images_are_listed(run_import, read_back, pile, index_of):
  for i in range(11):
    (pile / f"{i:02d}.jpg").write_bytes(b"broken")
  words = ("folder", "--images", pile, "--unlabelled")
  status, out, err = run_import(*words, "--max-rejected", 0.95)
  assert status == 0
  assert "1 of 12 images" in out
  assert "11 rejected:" in err
  assert "  00: cannot be decoded" in err
  assert "... and 1 more" in err  # ten are shown
  assert list(read_back()[0]) == ["11"]
  rejected = index_of()["splits"]["train"]["rejected"]
  assert [r["key"] for r in rejected] == [f"{i:02d}" for i in range(11)]
  assert all("neither JPEG nor PNG" in r["reason"] for r in rejected)


@pytest.mark.parametrize(
  ("broken", "allowed", "status"),
  [(1, None, 1), (1, 1 / 12, 0), (2, 1 / 12, 1), (0, 0, 0), (1, 0, 1)],
)
def test_too_many_rejected_fail(
  run_import, pile, tmp_path, broken, allowed, status
):
  for i in range(broken):
    (pile / f"{i:02d}.jpg").write_bytes(b"broken")
  words = ["folder", "--images", pile, "--unlabelled"]
  if allowed is not None:
    words += ["--max-rejected", allowed]
  given, _, err = run_import(*words)
  assert given == status
  if status:
    assert f"error: {broken} of 12 images were rejected" in err
    assert "Nothing was written" in err
    assert not list(tmp_path.glob("out/*"))
    # Doing as the message says mends it.
    words += ["--max-rejected", err.rpartition(" ")[2].strip().rstrip(".")]
    assert run_import(*words)[0] == 0


def test_all_rejected_is_an_error(run_import, pile):
  for path in pile.iterdir():
    path.write_bytes(b"broken")
  words = ("folder", "--images", pile, "--unlabelled", "--max-rejected", 1)
  status, _, err = run_import(*words)
  assert status == 2
  assert "no examples" in err
  assert "12 were rejected" in err


def test_second_import_of_a_split(run_import, read_back, pile):
  words = ("folder", "--images", pile, "--unlabelled")
  assert run_import(*words)[0] == 0
  status, _, err = run_import(*words)
  assert status == 2
  assert "has a split 'train' already" in err
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
  ],
)
def test_bad_options(run_import, pile, option, value):
  words = ("folder", "--images", pile, "--unlabelled", option, value)
  status, _, err = run_import(*words)
  assert status == 2
  assert err.startswith(f"error: {option} is {value}; expected ")


def test_shards_and_licence(run_import, read_back, pile):
  words = ("folder", "--images", pile, "--unlabelled", "--licence", "CC0")
  assert run_import(*words, "--records-per-shard", 5)[0] == 0
  image_set = read_back()[1]
  assert [s.num_records for s in image_set.shards] == [5, 5, 2]
  assert image_set.licence == "CC0"
  assert image_set.name == "set"


# Pairs of images and label files, for all importers of those.


def save_mask(path, size=(6, 8)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.zeros(size, np.uint8)).save(path)


@pytest.fixture
def import_masks(run_import, tmp_path):
  (tmp_path / "classes.txt").write_text("only\n")

  def run(images, masks, *words):
    return run_import(
      *("masks", "--images", tmp_path / images, "--masks", tmp_path / masks),
      *("--classes", tmp_path / "classes.txt", *words),
    )

  return run


@pytest.mark.parametrize(
  ("images", "masks", "words", "keys"),
  [
    (["i/a.jpg", "i/b/c.png"], ["m/a.png", "m/b/c.PNG"], [], ["a", "b/c"]),
    (["i/a.jpg"], ["i/a_mask.png"], ["--label-suffix", "_mask"], ["a"]),
    (["i/a.png"], ["i/m/a.png"], [], ["a"]),
    (
      ["i/1_rgb.jpg", "i/2_rgb.png"],
      ["i/1_seg.png", "i/2_seg.png", "i/1_depth.png"],
      ["--image-suffix", "_rgb", "--label-suffix", "_seg"],
      ["1_rgb", "2_rgb"],
    ),
    (["i/a.jpg"], ["i/a.png"], ["--image-glob", "*.jpg"], ["a"]),
  ],
)
def test_pairs(
  import_masks, read_back, tmp_path, picture, images, masks, words, keys
):
  for name in images:
    picture(tmp_path / name)
  for name in masks:
    save_mask(tmp_path / name)
  labels = {
    "i/m/a.png": "i/m",
    "i/a.png": "i",
    "i/a_mask.png": "i",
    "i/1_seg.png": "i",
  }.get(masks[0], "m")
  status, _, err = import_masks("i", labels, *words)
  assert (status, err) == (0, "")
  records, _ = read_back()
  assert sorted(records) == keys
  assert all(r["mask/present"] == [1] for r in records.values())


def test_image_without_label_is_rejected(import_masks, tmp_path, picture):
  picture(tmp_path / "i/a.jpg")
  picture(tmp_path / "i/b.jpg")
  save_mask(tmp_path / "m/a.png")
  status, _, err = import_masks("i", "m")
  assert status == 1
  assert "  b: has no mask" in err


def test_label_of_another_size_is_rejected(import_masks, tmp_path, picture):
  picture(tmp_path / "i/a.jpg")
  save_mask(tmp_path / "m/a.png", (8, 6))
  status, _, err = import_masks("i", "m")
  assert status == 1
  assert "a.png is 8 x 6" in err
  assert "6 x 8" in err


def test_turned_image_needs_turned_label(import_masks, tmp_path, picture):
  exif = Image.Exif()
  exif[0x0112] = 6
  picture(tmp_path / "i/a.jpg", exif=exif)  # 6 x 8 in the file, 8 x 6 upright
  save_mask(tmp_path / "m/a.png", (6, 8))
  status, _, err = import_masks("i", "m")
  assert status == 1
  assert "8 x 6 once turned as its EXIF tells" in err
  save_mask(tmp_path / "m/a.png", (8, 6))
  assert import_masks("i", "m")[0] == 0


def test_pair_errors(import_masks, tmp_path, picture):
  status, _, err = import_masks("i", "m")
  assert status == 2
  assert err.startswith(f"error: {tmp_path / 'i'} cannot be read")
  picture(tmp_path / "i/a.jpg")
  status, _, err = import_masks("i", "m")
  assert status == 2
  assert err.startswith(f"error: {tmp_path / 'm'} cannot be read")
  save_mask(tmp_path / "m/z.png")
  status, _, err = import_masks("i", "m", "--label-suffix", "_x")
  assert status == 2
  assert "expected is a_x.png" in err
  assert "['z.png']" in err
  status, _, err = import_masks("i", "m", "--image-suffix", "_rgb")
  assert status == 2
  assert "ends in '_rgb'" in err
  save_mask(tmp_path / "m/a.png")
  save_mask(tmp_path / "m/a.PNG")
  status, _, err = import_masks("i", "m")
  assert status == 2
  assert "several label files" in err


@pytest.mark.parametrize(
  "kind", ["coco", "folder", "masks", "depth", "normals"]
)
def test_help_needs_no_tensorflow(kind):
  code = f"""
import argparse, sys
from must_jax.data import importers
parser = argparse.ArgumentParser()
importers.add_arguments(parser.add_subparsers(dest="kind"))
try:
  parser.parse_args([{kind!r}, "--help"])
finally:
  assert "tensorflow" not in sys.modules
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  for option in ("--out", "--name", "--split", "--max-rejected", "--images"):
    assert option in done.stdout
