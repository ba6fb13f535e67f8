"""Options that importers share; pairs of images and label files."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


def save_mask(path, size=(6, 8)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.zeros(size, np.uint8)).save(path)


@pytest.fixture
def import_masks(run_import, tmp_path):
  (tmp_path / "classes.txt").write_text("only\n")

  def run(images, masks, *words, out="out"):
    return run_import(
      *("masks", "--images", tmp_path / images, "--masks", tmp_path / masks),
      *("--classes", tmp_path / "classes.txt", *words),
      out=out,
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


def test_turned_image_needs_a_label_of_one_of_its_sizes(
  import_masks, tmp_path, picture
):
  exif = Image.Exif()
  exif[0x0112] = 6
  picture(tmp_path / "i/a.jpg", exif=exif)  # 6 x 8 in the file, 8 x 6 upright
  save_mask(tmp_path / "m/a.png", (6, 9))
  status, _, err = import_masks("i", "m")
  assert status == 1
  assert "8 x 6 (turned by its EXIF or XMP)" in err
  for i, size in enumerate([(8, 6), (6, 8)]):
    save_mask(tmp_path / "m/a.png", size)
    assert import_masks("i", "m", out=f"fine{i}")[0] == 0


def test_pair_errors(import_masks, tmp_path, picture):
  status, _, err = import_masks("i", "m")
  assert status == 2
  assert err.startswith(f"error: {tmp_path / 'i'} cannot be read")
  picture(tmp_path / "i/a.jpg")
  status, _, err = import_masks("i", "m")
  assert status == 2
  assert err.startswith(f"error: {tmp_path / 'm'} cannot be read")
  (tmp_path / "m").mkdir()
  (tmp_path / "m/a.tif").touch()
  status, _, err = import_masks("i", "m")
  assert status == 2
  assert "m holds no mask (1 other files, such as ['a.tif'])" in err
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
from must_jax import importers
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
