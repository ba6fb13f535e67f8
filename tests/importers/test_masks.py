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


def test_ids_that_begin_with_1(run_masks, read_back, decode8):
  ids = np.array([[1, 2, 3, 3], [255, 1, 1, 2]], np.uint8)
  status, _, err = run_masks(ids)
  assert status == 1
  assert (
    "has class ids [3]; expected [0, 1, 2, 255]. See --classes, --fi" in err
  )
  status, out, _ = run_masks(ids.clip(max=2))  # the last class is rare
  assert status == 0
  assert "none of the 1 masks has the id 0; do ids begin with 1? Then" in out
  assert "1 of the 3 classes never occur: 'sky' (0)" in out
  status, out, _ = run_masks(ids, "--first-id", 1, "--overwrite")
  assert status == 0
  assert "warning" not in out
  given = decode8(read_back()[0]["a"]["mask/png"][0])
  np.testing.assert_array_equal(given, [[0, 1, 2, 2], [255, 0, 0, 1]])
  ids[0, 0] = 0
  status, _, err = run_masks(ids, "--first-id", 1, "--overwrite")
  assert status == 1
  assert "has class ids [0]; expected [1, 2, 3, 255]" in err
  words = ("--first-id", 1, "--ignore-id", 0, "--overwrite")
  assert run_masks(ids, *words)[0] == 0


@pytest.mark.parametrize(
  "words", [("-1",), ("1", "--map", "x.json"), ("65534",)]
)
def test_bad_first_id(run_masks, words):
  status, _, err = run_masks(np.array(IDS, np.uint8), "--first-id", *words)
  assert status == 2
  assert f"--first-id is {words[0]}" in err


def test_masks_of_0_and_255(run_masks, read_back, decode8, tmp_path):
  ids = np.array([[0, 255, 0, 0]] * 2, np.uint8)
  status, out, _ = run_masks(ids, classes=("background", "cell"))
  assert status == 0
  assert "all pixels are 'background' or unknown (25.0% are 255)" in out
  assert 'give --map with {"0": 0, "255": 1}.' in out
  (tmp_path / "map.json").write_text('{"0": 0, "255": 1}')
  words = ("--map", tmp_path / "map.json", "--overwrite")
  status, out, _ = run_masks(ids, *words, classes=("background", "cell"))
  assert status == 0
  assert "warning" not in out
  given = decode8(read_back()[0]["a"]["mask/png"][0])
  np.testing.assert_array_equal(given, [[0, 1, 0, 0]] * 2)


@pytest.mark.parametrize("same", [True, False])
def test_palettes_that_differ_are_told(
  run_masks, run_import, picture, tmp_path, same
):
  """A program that saves used colours only numbers them anew in each file."""
  red, green = [250, 0, 0], [0, 250, 0]
  run_masks(np.array([[0, 0, 1, 1], [2, 2, 2, 2]], np.uint8), mode="P")
  (tmp_path / "masks/a.png").unlink()
  (tmp_path / "images/a.jpg").unlink()
  for name, palette, ids in (
    ("b", [0, 0, 0, *red, *green], [0, 1, 2, 2]),
    ("c", [0, 0, 0, *red, *green] if same else [0, 0, 0, *green], [0, 1, 1, 1]),
    ("d", [0, 0, 0, *red, 1, 2, 3], [0, 1, 1, 1]),  # colour 2 is not used
  ):
    picture(tmp_path / f"images/{name}.jpg", height=2, width=4)
    image = Image.fromarray(np.array([ids] * 2, np.uint8), "L")
    image.putpalette(palette)
    image.save(tmp_path / f"masks/{name}.png")
  status, out, _ = run_import(
    *("masks", "--images", tmp_path / "images", "--masks", tmp_path / "masks"),
    *("--classes", tmp_path / "classes.json", "--overwrite"),
  )
  assert status == 0
  told = "id 1 (#fa0000 in 2, #00fa00 in 1)." in out
  assert told == ("palettes differ from file to file" in out) == (not same)


@pytest.mark.parametrize("number", [3, 6])
@pytest.mark.parametrize("policy", ["upright", "stored", None])
def test_masks_turn_with_their_image(
  run_import, read_back, decode8, tmp_path, number, policy
):
  """A square image and one upside down do not tell by their size."""
  exif = Image.Exif()
  exif[0x0112] = number
  for name in ("images", "masks"):
    (tmp_path / name).mkdir()
  Image.new("RGB", (2, 2)).save(tmp_path / "images/a.jpg", exif=exif)
  ids = np.array([[0, 1], [2, 2]], np.uint8)
  Image.fromarray(ids).save(tmp_path / "masks/a.png")
  (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
  status, out, err = run_import(
    *("masks", "--images", tmp_path / "images", "--masks", tmp_path / "masks"),
    *("--classes", tmp_path / "classes.txt"),
    *(("--labels-of-turned", policy) if policy else ()),
  )
  if policy is None:
    assert status == 1
    assert f"(orientation {number}), and no size tells" in err
    return
  assert (status, err) == (0, "")
  assert "images turned as EXIF or XMP asks: 1" in out
  expected = {3: ids[::-1, ::-1], 6: np.array([[2, 0], [2, 1]])}[number]
  given = decode8(read_back()[0]["a"]["mask/png"][0])
  np.testing.assert_array_equal(given, expected if policy == "stored" else ids)
