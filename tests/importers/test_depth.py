import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def run_depth(run_import, picture, tmp_path):
  """Imports one 2 x 3 image with the given depth map."""

  def run(codes, *words, suffix=".png"):
    picture(tmp_path / "images/a.jpg", height=2, width=3)
    (tmp_path / "depths").mkdir(exist_ok=True)
    path = tmp_path / f"depths/a{suffix}"
    if suffix == ".npy":
      np.save(path, codes)
    else:
      Image.fromarray(np.asarray(codes)).save(path)
    return run_import(
      *("depth", "--images", tmp_path / "images"),
      *("--depths", tmp_path / "depths", *words),
    )

  return run


@pytest.fixture
def read_depth(read_back, decode16):
  """Values, and where they are valid, by the rule of the format."""

  def read():
    records, image_set = read_back()
    record = records["a"]
    codes = decode16(record["depth/png"][0])[..., 0]
    (scale,), (shift,) = record["depth/scale"], record["depth/shift"]
    values = scale * codes + shift
    if "depth/bend" in record:
      values = record["depth/bend"][0] * np.sinh(values)
    return values, codes > 0, image_set.fields["depth"]

  return read


MILLIMETRES = np.array([[0, 500, 1234], [60000, 2000, 1]], np.uint16)
METRES = MILLIMETRES / 1000.0


@pytest.mark.parametrize(
  ("codes", "suffix", "words", "metres"),
  [
    (MILLIMETRES, ".png", [], METRES),
    (MILLIMETRES, ".npy", [], METRES),
    (MILLIMETRES, ".png", ["--scale", 0.01], METRES * 10),
    (METRES.astype(np.float32), ".npy", [], METRES),
    (METRES[..., None], ".npy", [], METRES),
    (METRES * 1000, ".npy", ["--scale", 0.001], METRES),
    (MILLIMETRES, ".png", ["--invalid", 0, 60000], METRES),
    ((MILLIMETRES % 251).astype(np.uint8), ".png", ["--scale", 0.1], None),
  ],
)
def test_metres(run_depth, read_depth, codes, suffix, words, metres):
  status, out, err = run_depth(codes, *words, suffix=suffix)
  assert (status, err) == (0, "")
  values, valid, spec = read_depth()
  assert spec == {"kind": "ValueMap", "unit": "metres"}
  expected_valid = np.asarray(codes).reshape(2, 3) > 0
  if 60000 in words:
    expected_valid[1, 0] = False
  np.testing.assert_array_equal(valid, expected_valid)
  if metres is None:
    metres = codes * 0.1
  step = np.ptp(metres[valid]) / 65534  # of 16 bits
  error = np.abs(values - metres)[valid]
  assert (error <= np.minimum(0.51 * step, 0.004 * metres[valid]) + 1e-6).all()
  assert f"depth (metres): mean {metres[valid].mean():.4g}," in out
  assert f"{valid.mean():.1%} of the pixels are valid" in out


def test_pixels_without_depth(run_depth, read_depth):
  values = np.array([[np.nan, np.inf, -np.inf], [-1.0, 0.0, 2.5]])
  assert run_depth(values, suffix=".npy")[0] == 0
  values, valid, _ = read_depth()
  np.testing.assert_array_equal(valid, [[False] * 3, [False, False, True]])
  assert values[1, 2] == 2.5


def test_inverse_depth_has_no_unit(run_depth, read_depth):
  inverse = np.array([[0, 0.25, 700], [3, 2, 1]])
  status, out, _ = run_depth(inverse, "--inverse", suffix=".npy")
  assert status == 0
  values, valid, spec = read_depth()
  assert spec == {"kind": "ValueMap", "unit": "inverse"}
  assert valid.sum() == 5
  np.testing.assert_allclose(values[valid], inverse[valid], rtol=0.004)
  assert "depth (inverse): mean 141.2" in out
  codes = np.array([[0, 1, 255], [3, 2, 1]], np.uint8)
  assert run_depth(codes, "--inverse", "--overwrite")[0] == 2  # two files


def test_bad_maps_are_rejected(run_depth):
  def reason(codes, suffix=".png"):
    status, _, err = run_depth(codes, suffix=suffix)
    assert status == 1
    return err

  given = reason(MILLIMETRES * 0)
  assert "no valid pixel: its values are 0 to 0; expected some above 0" in given
  assert "8 bits" in reason(np.ones((2, 3), np.uint8))
  assert "(2, 3, 3)" in reason(np.ones((2, 3, 3), np.uint8))
  assert "a.png is 3 x 2" in reason(MILLIMETRES.T)


@pytest.mark.parametrize(
  "array", [np.ones((2, 3), complex), np.ones((2, 3, 2)), np.ones(6)]
)
def test_bad_arrays_are_rejected(run_depth, array):
  status, _, err = run_depth(array, suffix=".npy")
  assert status == 1
  assert "a.npy is " in err


@pytest.mark.parametrize(
  "words", [("--scale", 0), ("--scale", "nan"), ("--inverse", "--scale", 1)]
)
def test_bad_scale(run_depth, words):
  status, _, err = run_depth(MILLIMETRES, *words)
  assert status == 2
  assert err.startswith("error: --scale is ")


def test_two_maps_for_an_image(run_depth):
  assert run_depth(MILLIMETRES)[0] == 0
  status, _, err = run_depth(METRES, suffix=".npy")
  assert status == 2
  assert "several label files" in err


@pytest.mark.parametrize(
  ("dtype", "top"),
  [(np.uint16, 65535), (np.int16, 32767), (np.float16, 65504.0)],
)
def test_the_greatest_code_of_a_type_is_no_depth(
  run_depth, read_depth, dtype, top
):
  codes = np.array([[0, 500, 1234], [top, 2000, 1]], dtype)
  assert run_depth(codes, "--scale", 0.001, suffix=".npy")[0] == 0
  _, valid, _ = read_depth()
  np.testing.assert_array_equal(valid, [[0, 1, 1], [0, 1, 1]])
  words = ("--scale", 0.001, "--invalid", 0, 1234, "--overwrite")
  status, out, _ = run_depth(codes, *words, suffix=".npy")
  assert status == 0
  assert "66.7% of the pixels are valid, 16.7% hold a code of invalid" in out
  values, valid, _ = read_depth()
  np.testing.assert_array_equal(valid, [[0, 1, 0], [1, 1, 1]])
  np.testing.assert_allclose(values[1, 0], top / 1000, rtol=0.004)


def test_the_nearest_pixel_of_inverse_depth_has_the_greatest_code(
  run_depth, read_depth
):
  codes = np.array([[0, 500, 1234], [65535, 2000, 1]], np.uint16)
  assert run_depth(codes, "--inverse")[0] == 0
  np.testing.assert_array_equal(read_depth()[1], [[0, 1, 1], [1, 1, 1]])


def test_a_code_of_floats_is_known_as_it_is_stored(run_depth, read_depth):
  codes = np.array([[1, 2, 65.535], [3, 4, 5]], np.float32)
  assert run_depth(codes, "--invalid", 65.535, suffix=".npy")[0] == 0
  np.testing.assert_array_equal(read_depth()[1], [[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(("factor", "words"), [(1, ()), (1000, (0.001,))])
def test_halves_are_summed_as_numbers(
  run_import, picture, tmp_path, factor, words
):
  picture(tmp_path / "images/a.jpg", height=240, width=320)
  metres = 2 + np.random.default_rng(0).random((240, 320))
  (tmp_path / "depths").mkdir()
  np.save(tmp_path / "depths/a.npy", (metres * factor).astype(np.float16))
  status, out, err = run_import(
    *("depth", "--images", tmp_path / "images"),
    *("--depths", tmp_path / "depths"),
    *(("--scale", *words) if words else ()),
  )
  assert (status, err) == (0, "")
  assert "depth (metres): mean 2.5, 100.0% of the pixels are valid" in out
  assert "warning" not in out


ROOM = np.linspace(1, 4, 600).reshape(2, 300)


@pytest.mark.parametrize(
  ("values", "words", "warning"),
  [
    (ROOM, (), None),
    (ROOM * 1000, ("--scale", 0.001), None),
    (ROOM * 1000, (), "half of the pixels are farther than about 2,"),
    (ROOM * 100, (), "half of the pixels are farther than about 2"),
    (ROOM / 10, (), "nine of ten pixels are nearer than about 0.3"),
    (
      np.where(ROOM > 3.99, 1e10, ROOM),
      (),
      "0.33% of the pixels are farther than 1,000 metres, up to about"
      " 9.78e+09, though half are nearer than 2.",
    ),
    (
      ROOM.clip(max=3),
      (),
      "33.3% of the valid pixels have the greatest value of their map, most"
      " often 3; ",
    ),
    (ROOM * 0 + 2, (), "each of the 1 labels has one value all over"),
    (ROOM * 1000, ("--inverse",), None),
  ],
)
def test_values_that_look_wrong_are_told(
  run_import, picture, tmp_path, index_of, values, words, warning
):
  picture(tmp_path / "images/a.jpg", height=2, width=300)
  (tmp_path / "depths").mkdir()
  np.save(tmp_path / "depths/a.npy", values)
  status, out, _ = run_import(
    *("depth", "--images", tmp_path / "images"),
    *("--depths", tmp_path / "depths", *words),
  )
  assert status == 0
  assert out.count("warning: ") == (warning is not None)
  kept = index_of()["splits"]["train"].get("warnings", [])
  assert [f"  warning: {text}\n" in out for text in kept] == [True] * len(kept)
  if warning:
    assert warning in kept[0]
