import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def run_masks(run_import, picture, tmp_path):
  """Imports one 2 x 4 image with the given ids."""

  def run(ids, *words, classes=("sky", "road", "car"), mode=None):
    picture(tmp_path / "images/a.jpg", height=2, width=4)
    (tmp_path / "masks").mkdir(exist_ok=True)
    image = ids
    if not isinstance(ids, Image.Image):
      image = Image.fromarray(np.asarray(ids))
    if mode == "P":
      image = Image.fromarray(np.asarray(ids, np.uint8))
      image.putpalette([9, 9, 9] * 256)
    image.save(tmp_path / "masks/a.png")
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    return run_import(
      *("masks", "--images", tmp_path / "images"),
      *("--masks", tmp_path / "masks"),
      *("--classes", tmp_path / "classes.json", *words),
    )

  return run


IDS = [[0, 1, 2, 2], [255, 0, 0, 1]]


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_ids(run_masks, read_back, decode8, mode):
  dtype = np.uint16 if mode == "I;16" else np.uint8
  status, _, err = run_masks(np.array(IDS, dtype), mode=mode)
  assert (status, err) == (0, "")
  records, image_set = read_back()
  assert image_set.fields == {
    "mask": {"kind": "ClassMap", "classes": ["sky", "road", "car"]}
  }
  np.testing.assert_array_equal(decode8(records["a"]["mask/png"][0]), IDS)


@pytest.mark.parametrize(
  "mapping",
  [
    {"0": 1, "1": 0, "2": None, "300": 0},
    [1, 0, None],
  ],
)
def test_map_and_ignored_ids(run_masks, read_back, decode8, tmp_path, mapping):
  (tmp_path / "map.json").write_text(json.dumps({"groups": mapping}))
  high = 300 if isinstance(mapping, dict) else 1
  ids = np.array([[0, 1, 2, high], [255, 7, 0, 9]], np.uint16)
  words = ("--map", f"{tmp_path / 'map.json'}:groups", "--ignore-id", 7, 9)
  status, _, err = run_masks(ids, *words, classes=("a", "b"))
  assert (status, err) == (0, "")
  given = decode8(read_back()[0]["a"]["mask/png"][0])
  np.testing.assert_array_equal(given, [[1, 0, 255, 0], [255, 255, 1, 255]])


def test_map_may_hold_255(run_masks, read_back, decode8, tmp_path):
  (tmp_path / "map.json").write_text('{"255": 1, "0": 0}')
  ids = np.array([[0, 255, 0, 0]] * 2, np.uint8)
  assert run_masks(ids, "--map", tmp_path / "map.json")[0] == 0
  given = decode8(read_back()[0]["a"]["mask/png"][0])
  np.testing.assert_array_equal(given, [[0, 1, 0, 0]] * 2)


def test_unknown_ids_are_rejected(run_masks, tmp_path):
  ids = np.array([[0, 3, 9, 0]] * 2, np.uint8)
  status, _, err = run_masks(ids)
  assert status == 1
  assert "a.png has class ids [3, 9]; expected [0, 1, 2, 255]" in err
  (tmp_path / "map.json").write_text('{"0": 0, "3": 1}')
  status, _, err = run_masks(ids, "--map", tmp_path / "map.json")
  assert status == 1
  assert "a.png has class ids [9]; expected [0, 3, 255]" in err


def test_colours_are_rejected(run_masks):
  status, _, err = run_masks(Image.new("RGB", (4, 2)))
  assert status == 1
  assert "a.png has 3 channels" in err


def test_truncated_masks_are_rejected(run_import, run_masks, tmp_path):
  rng = np.random.default_rng(0)
  assert run_masks(np.array(IDS, np.uint8))[0] == 0
  path = tmp_path / "masks/a.png"
  Image.new("RGB", (64, 64)).save(tmp_path / "images/a.jpg")
  Image.fromarray(rng.integers(0, 3, (64, 64)).astype(np.uint8)).save(path)
  path.write_bytes(path.read_bytes()[:-200])
  status, _, err = run_import(
    *("masks", "--images", tmp_path / "images", "--masks", path.parent),
    *("--classes", tmp_path / "classes.json", "--overwrite"),
  )
  assert status == 1
  assert "a.png cannot be decoded" in err


@pytest.mark.parametrize(
  ("mapping", "message"),
  [
    ('{"0": 3}', "maps 0 to 3"),
    ('{"a": 0}', "maps 'a' to 0"),
    ('{"70000": 0}', "maps 70000 to 0"),
    ('{"0": "sky"}', "maps 0 to 'sky'"),
    ("{}", "maps nothing"),
    ("3", "maps nothing"),
    ("{", "not valid JSON"),
  ],
)
def test_bad_maps(run_masks, tmp_path, mapping, message):
  (tmp_path / "map.json").write_text(mapping)
  words = ("--map", tmp_path / "map.json")
  status, _, err = run_masks(np.array(IDS, np.uint8), *words)
  assert status == 2
  assert message in err


def test_bad_ignored_id(run_masks):
  status, _, err = run_masks(np.array(IDS, np.uint8), "--ignore-id", 70000)
  assert status == 2
  assert "--ignore-id is 70000" in err
