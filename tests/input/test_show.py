import argparse
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from must_jax.input import sheet, show
from must_jax.pictures import palette
from must_jax.storage import set_writer
from must_jax.storage.sets import ImageSet

SIZE = 24, 48
FIELDS = {
  "label": {"kind": "ClassVector", "classes": ["cat", "dog", "cow"]},
  "objects": {"kind": "Boxes", "classes": ["cat", "dog"]},
  "mask": {"kind": "ClassMap", "classes": ["sky", "floor"]},
  "depth": {"kind": "ValueMap", "unit": "metres"},
  "normals": {"kind": "VectorMap"},
  "flow": {"kind": "VectorMap"},
}


def example(i, fields):
  pixels = np.full((*SIZE, 3), 10 * i, np.uint8)
  mask = np.zeros(SIZE, int)
  mask[:6] = 255
  mask[6:12] = 1
  valid = np.ones(SIZE, bool)
  valid[:, :12] = False
  vectors = np.zeros((*SIZE, 3))
  vectors[..., 2] = -1
  labels = {
    "label": {"classes": [i % 2]},
    "objects": {
      "boxes": [[0.25, 0.25, 0.75, 0.5]] * (1 + i % 2),
      "classes": [1] * (1 + i % 2),
      "ignore": [False] * (i % 2) + [True],
    },
    "mask": {"classes": mask},
    "depth": {"values": np.full(SIZE, 2.0 + i), "valid": valid},
    "normals": {"vectors": vectors, "valid": valid},
    "flow": {"vectors": vectors},
  }
  return {
    "key": f"key{i}",
    "image": tf.io.encode_png(pixels).numpy(),
    "height": SIZE[0],
    "width": SIZE[1],
    "labels": {k: labels[k] for k in fields} if i else {},
  }


def write(directory, count=4, fields=FIELDS, **options):
  examples = [example(i, fields) for i in range(count)]
  return set_writer.write_image_set(
    directory, "toy", "train", examples, fields, **options
  )


def test_summary_counts_what_the_records_hold(tmp_path):
  images = write(
    tmp_path, licence="CC0", rejected=[{"key": "a", "reason": "broken"}]
  )
  lines = list(show.summarize(images))
  size = sum(shard.num_bytes for shard in images.shards) / 1e6
  assert lines[:3] == [
    f"toy: {tmp_path}",
    "licence: CC0",
    f"train: 4 records in 1 shards, {size:.1f} MB; 1 rejected when they were"
    " imported",
  ]
  assert lines[3:] == [
    "\nOf split train, 4 records were read:",
    "images: 24 x 48 pixels on average (height x width), heights 24 to 24,"
    " widths 48 to 48",
    "depth (ValueMap): 3 images have it",
    "  75.0% of the pixels are valid",
    "  values 3 to 5, median 4, unit metres",
    "flow (VectorMap): 3 images have it",
    "  100.0% of the pixels are valid",
    "label (ClassVector): 3 images have it",
    "  1 classes an image",
    f"    {'dog':<24} 2 images",
    f"    {'cat':<24} 1 images",
    f"    {'cow':<24} 0 images",
    "    1 of the 3 classes do not occur",
    "mask (ClassMap): 3 images have it",
    "  25.0% of the pixels are unknown",
    f"    {'sky':<24} 50.0%",
    f"    {'floor':<24} 25.0%",
    "normals (VectorMap): 3 images have it",
    "  75.0% of the pixels are valid",
    "objects (Boxes): 3 images have it",
    "  5 boxes, 1.67 an image, at most 2; 3 to be ignored",
    f"    {'dog':<24} 5 boxes",
    f"    {'cat':<24} 0 boxes",
    "    1 of the 2 classes do not occur",
  ]


def test_broken_records_are_counted_not_drawn(tmp_path):
  images = write(tmp_path, fields={})
  path = tmp_path / images.shards[0].file
  data = bytearray(path.read_bytes())
  data[-10] ^= 1
  path.write_bytes(data)
  lines = list(show.summarize(images))
  assert any(line.startswith("1 records cannot be read") for line in lines)
  row = np.asarray(sheet.draw(images, 4))[100, :, 0]
  assert {0, 10, 20, 30} & set(row.tolist()) == {0, 10, 20}


@pytest.mark.parametrize(
  "name, kind",
  [
    ("label", "Classification"),
    ("objects", "Detection"),
    ("mask", "Segmentation"),
    ("depth", "Depth"),
    ("normals", "Normals"),
    ("flow", "NoneType"),
  ],
)
def test_a_field_is_drawn_by_the_task_with_its_name_and_kind(name, kind):
  assert type(sheet.find_task(name, FIELDS[name])).__name__ == kind


def test_a_task_needs_the_kind_too():
  assert sheet.find_task("mask", {"kind": "ValueMap"}) is None


def test_each_field_has_a_panel_beside_its_image(tmp_path):
  fields = {name: FIELDS[name] for name in ("objects", "mask")}
  picture = np.asarray(sheet.draw(write(tmp_path, 2, fields), 2))
  step, top = 256 + 8, 20 + 2 * 8  # of panels; below the title
  assert picture.shape[1] == 8 + 6 * step
  # Pictures are 128 x 256. Two panels of image 0 are blank, as it has no
  # labels; image 1 is grey 10, alone and below its boxes.
  places = range(8, 8 + 6 * step, step)
  panels = [picture[top : top + 128, left : left + 256] for left in places]
  middles = [np.median(panel.reshape(-1, 3), 0).tolist() for panel in panels]
  assert middles.count([224] * 3) == 2
  assert middles.count([0] * 3) == 1
  assert middles.count([10] * 3) == 2
  (boxes,) = (p for p in panels if (p == palette(2)[1]).all(-1).any())
  found = np.argwhere((boxes == palette(2)[1]).all(-1))
  assert found.min(0).tolist() == [32, 64]  # of yxyx 0.25, 0.25, 0.75, 0.5
  assert found.max(0).tolist() == [96, 128]


def run(*words):
  parser = argparse.ArgumentParser()
  show.add_arguments(parser)
  return show.run(parser.parse_args([str(word) for word in words]))


def test_command_writes_the_same_sheet_for_the_same_seed(tmp_path, capsys):
  write(tmp_path / "set")
  for name in ("a.png", "b.png"):
    out = tmp_path / name
    assert run(tmp_path / "set", "--out", out, "--count", 2) == 0
    assert f"Contact sheet: {out}" in capsys.readouterr().out
    with Image.open(out, formats=["PNG"]) as picture:
      assert picture.size[1] > 256
  assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_without_a_file_the_sheet_has_the_name_of_the_set(
  tmp_path, monkeypatch
):
  images = write(tmp_path / "set")
  monkeypatch.chdir(tmp_path)
  assert run(tmp_path / "set", "--count", 2) == 0
  (sheet_file,) = tmp_path.glob("*.png")
  assert sheet_file.name == f"{images.name}-{images.split}.png"


@pytest.mark.parametrize(
  "words, match",
  [
    (["none"], "no directory"),
    (["set", "--split", "val"], "no split 'val'"),
    (["set", "--count", 0], "--count is 0"),
  ],
)
def test_command_says_what_cannot_be_shown(tmp_path, words, match):
  write(tmp_path / "set")
  with pytest.raises(ValueError, match=match):
    run(tmp_path / words[0], *words[1:])


def test_what_looked_wrong_at_import_is_shown(tmp_path):
  images = write(tmp_path)
  index = json.loads((tmp_path / "index.json").read_text())
  index["splits"]["train"]["warnings"] = ["label: 'cow' never occurs. " * 9]
  plain = np.asarray(sheet.draw(images, 4))
  (tmp_path / "index.json").write_text(json.dumps(index))
  images = ImageSet.open(tmp_path, "train")
  assert f"  warning: {index['splits']['train']['warnings'][0]}" in list(
    show.summarize(images)
  )
  drawn = np.asarray(sheet.draw(images, 4))
  assert len(drawn) > len(plain)
  red = (drawn == (216, 32, 32)).all(-1)
  assert red.any()
  assert not (plain == (216, 32, 32)).all(-1).any()
  assert np.flatnonzero(red.any(1)).max() < 60  # below the title
