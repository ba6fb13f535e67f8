import numpy as np
import pytest
from PIL import Image

from must_jax import importers
from must_jax.importers import diode_depth, diode_normals

# x right, y up, z backward, as the dataset has them; the last is invalid.
THEIRS = [[0, 0, 1], [0.6, 0, 0.8], [0, 0.6, 0.8], [0, 0, 0]]
OURS = [[0, 0, -1], [0.6, 0, -0.8], [0, -0.6, -0.8]]
NAME = "scene_00011/scan_00118/00011_00118_{}_000_000"
OUTDOOR = f"outdoor/{NAME.format('outdoor')}"
INDOORS = f"indoors/{NAME.format('indoors')}"


@pytest.fixture
def root(tmp_path):
  """An image of 1 x 4 (height x width) indoors and one outdoors."""
  for key in (OUTDOOR, INDOORS):
    write(tmp_path / "diode", key)
  return tmp_path / "diode"


def write(root, key, depth=(1, 2, 4, 8), mask=(1, 0, 1, 1), normal=THEIRS):
  path = root / f"train/{key}"
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (4, 1)).save(f"{path}.png")
  np.save(f"{path}_depth.npy", np.array([depth], np.float32)[..., None])
  np.save(f"{path}_depth_mask.npy", np.array([mask], np.float32))
  np.save(f"{path}_normal.npy", np.array([normal], np.float32))


@pytest.fixture
def run(run_import, root, monkeypatch):
  monkeypatch.setitem(importers.IMPORTERS, "diode-normals", diode_normals)
  monkeypatch.setitem(importers.IMPORTERS, "diode-depth", diode_depth)
  return lambda kind, *words, **options: run_import(
    f"diode-{kind}", "--root", root, *words, **options
  )


def test_normals_come_into_our_frame(run, read_back, decode16):
  status, out, err = run("normals")
  assert (status, err) == (0, "")
  assert "75.0% of the pixels are valid, 0.0% of these face away" in out
  records, image_set = read_back()
  assert image_set.fields == {"normals": {"kind": "VectorMap"}}
  assert set(records) == {OUTDOOR}
  codes = decode16(records[OUTDOOR]["normals/png"][0])[0].astype(float)
  np.testing.assert_array_equal(codes.any(-1), [True] * 3 + [False])
  np.testing.assert_allclose((codes[:3] - 1) / 32767 - 1, OURS, atol=1e-4)


def test_flip_axes(run, read_back, decode16):
  status, out, _ = run("normals", "--flip-axes", "x")
  assert status == 0
  assert "warning: normals: most vectors have z > 0" in out
  codes = decode16(read_back()[0][OUTDOOR]["normals/png"][0])[0].astype(float)
  np.testing.assert_allclose(
    (codes[:3] - 1) / 32767 - 1, np.multiply(THEIRS[:3], [-1, 1, 1]), atol=1e-4
  )
  status, _, err = run("normals", "--flip-axes", "w", out="other")
  assert status == 2
  assert "--flip-axes is 'w'" in err


def test_depth_is_valid_where_its_mask_says_so(run, read_back, decode16):
  status, out, err = run("depth")
  assert (status, err) == (0, "")
  assert "depth (metres): mean 4.333, 75.0% of the pixels are valid" in out
  records, image_set = read_back()
  assert image_set.fields == {"depth": {"kind": "ValueMap", "unit": "metres"}}
  record = records[OUTDOOR]
  codes = decode16(record["depth/png"][0])[0, :, 0].astype(float)
  np.testing.assert_array_equal(codes > 0, [True, False, True, True])
  values = codes * record["depth/scale"][0] + record["depth/shift"][0]
  np.testing.assert_allclose(values[[0, 2, 3]], [1, 4, 8], atol=1e-3)


def test_depth_that_is_none(run, read_back, decode16, root):
  write(root, OUTDOOR, depth=(np.nan, -1, 0, 3), mask=(1, 1, 1, 1))
  assert run("depth")[0] == 0
  codes = decode16(read_back()[0][OUTDOOR]["depth/png"][0])[0, :, 0]
  np.testing.assert_array_equal(codes > 0, [False] * 3 + [True])


@pytest.mark.parametrize("kind", ["normals", "depth"])
@pytest.mark.parametrize(
  ("scenes", "keys"),
  [
    ("outdoor", {OUTDOOR}),
    ("indoors", {INDOORS}),
    ("all", {OUTDOOR, INDOORS}),
  ],
)
def test_scenes(run, read_back, kind, scenes, keys):
  status, out, _ = run(kind, "--scenes", scenes)
  assert status == 0
  assert set(read_back()[0]) == keys
  assert "no images" not in out  # the label files beside them


def rename(root, suffix):
  path = root / f"train/{INDOORS}{suffix}"
  path.rename(path.with_name("away"))


@pytest.mark.parametrize(
  ("kind", "suffix", "reason"),
  [
    ("normals", "_normal.npy", "has no normal map"),
    ("depth", "_depth.npy", "has no depth map"),
    ("depth", "_depth_mask.npy", "_depth_mask.npy cannot be decoded"),
  ],
)
def test_missing_partners_are_rejected(
  run, read_back, root, kind, suffix, reason
):
  rename(root, suffix)
  words = ("--scenes", "all", "--max-rejected", 0.5)
  status, _, err = run(kind, *words)
  assert status == 0
  assert f"  {INDOORS}: " in err
  assert reason in err
  assert set(read_back()[0]) == {OUTDOOR}


@pytest.mark.parametrize(
  ("kind", "arrays", "reason"),
  [
    ("normals", {"normal": [[0, 0, 0]] * 4}, "length 1: lengths are 0 to 0"),
    ("normals", {"normal": [[0, 0, 1]] * 5}, "_normal.npy is 1 x 5"),
    ("normals", {"normal": [1, 0, 0, 0]}, "expected an RGB PNG or floats"),
    ("depth", {"mask": [0] * 4}, "values are 1 to 8, those of its mask 0 to 0"),
    (
      "depth",
      {"depth": [np.nan, -1, -1, np.inf]},
      "values are -1 to -1 where they are finite (50.0%), those of its mask 0",
    ),
    ("depth", {"depth": [np.nan] * 4}, "its values are no finite number"),
    ("depth", {"mask": [1] * 5}, "_depth_mask.npy is 1 x 5"),
    ("depth", {"mask": [[1, 1]] * 4}, "expected numbers [h, w]"),
    ("depth", {"depth": [[1, 1]] * 4}, "expected numbers [h, w]"),
  ],
)
def test_arrays_that_do_not_fit_are_rejected(run, root, kind, arrays, reason):
  write(root, OUTDOOR, **arrays)
  status, _, err = run(kind)
  assert status == 1
  assert f"  {OUTDOOR}: " in err
  assert reason in err


def test_mended_masks_of_depth_are_read_again(run, read_back, root):
  write(root, INDOORS, mask=(0, 0, 0, 0))
  words = ("--scenes", "all", "--records-per-shard", 1)
  assert run("depth", *words)[0] == 1
  write(root, INDOORS, mask=(1, 0, 0, 0))
  np.save(root / f"train/{OUTDOOR}_depth_mask.npy", np.eye(1, 4))
  assert run("depth", *words)[0] == 0
  assert run("depth", *words, out="fresh")[0] == 0
  assert read_back()[0] == read_back("fresh")[0]


def test_archives_that_were_not_unpacked(run, root):
  status, _, err = run("normals", split="val")
  assert status == 2
  assert "diode/val cannot be read" in err
  for path in root.rglob("*_normal.npy"):
    path.unlink()
  status, _, err = run("normals")
  assert status == 2
  assert "has a normal map" in err
