import numpy as np
import pytest
from PIL import Image

# Unit vectors that face the camera: z < 0.
FACING = np.array(
  [[0, 0, -1], [0.6, 0, -0.8], [0, -0.6, -0.8], [0.36, 0.48, -0.8]]
)


@pytest.fixture
def run_normals(run_import, picture, tmp_path, rgb16):
  """Imports one 1 x n image with the given normals."""

  def run(codes, *words, suffix=".png"):
    codes = np.asarray(codes)[None]
    picture(tmp_path / "images/a.jpg", height=1, width=codes.shape[1])
    (tmp_path / "normals").mkdir(exist_ok=True)
    path = tmp_path / f"normals/a{suffix}"
    if suffix == ".npy":
      np.save(path, codes)
    elif codes.dtype == np.uint16:
      path.write_bytes(rgb16(codes))
    else:
      Image.fromarray(codes).save(path)
    return run_import(
      *("normals", "--images", tmp_path / "images"),
      *("--normals", tmp_path / "normals", *words),
    )

  return run


@pytest.fixture
def read_normals(read_back, decode16):
  """Vectors, and where they are valid, by the rule of the format."""

  def read():
    records, image_set = read_back()
    assert image_set.fields == {"normals": {"kind": "VectorMap"}}
    codes = decode16(records["a"]["normals/png"][0])[0].astype(float)
    return (codes - 1) / 65534 * 2 - 1, codes.any(-1)

  return read


def encode(vectors, dtype):
  return np.rint((vectors + 1) / 2 * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize(
  ("codes", "suffix", "degrees"),
  [
    (encode(FACING, np.uint8), ".png", 0.5),
    (encode(FACING, np.uint16), ".png", 0.005),
    (FACING, ".npy", 0.005),
    (FACING.astype(np.float16), ".npy", 0.05),
    (FACING * 0.8, ".npy", 0.005),  # brought to length 1
  ],
)
def test_vectors(run_normals, read_normals, codes, suffix, degrees):
  status, out, err = run_normals(codes, suffix=suffix)
  assert (status, err) == (0, "")
  vectors, valid = read_normals()
  assert valid.all()
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-4)
  angles = np.degrees(np.arccos(np.clip((vectors * FACING).sum(-1), -1, 1)))
  assert angles.max() < degrees
  assert "100.0% of the pixels are valid, 0.0% of these face away" in out
  assert "warning" not in out


@pytest.mark.parametrize(
  ("codes", "suffix"),
  [
    ([[128, 128, 128], [0, 0, 0], [127, 128, 127], [255] * 3], ".png"),
    ([[0, 0, 0], [np.nan] * 3, [0, 0, np.inf], [128, 128, 0]], ".npy"),
  ],
)
@pytest.mark.parametrize("wide", [False, True])
def test_invalid_pixels(run_normals, read_normals, codes, suffix, wide):
  codes = np.array([*codes, [0, 0, -1]])
  if suffix == ".png":
    codes[-1] = [128, 128, 0]
    codes = codes.astype(np.uint16 if wide else np.uint8)
    codes *= 257 if wide else 1
  else:
    codes = codes.astype(np.float64 if wide else np.float32)
  assert run_normals(codes, suffix=suffix)[0] == 0
  vectors, valid = read_normals()
  np.testing.assert_array_equal(valid, [False] * 4 + [True])
  np.testing.assert_allclose(vectors[-1], [0, 0, -1], atol=0.01)


def test_flip_axes(run_normals, read_normals):
  # OpenGL's frame: y up, z backward.
  theirs = FACING * [1, -1, -1]
  status, out, _ = run_normals(theirs, suffix=".npy")
  assert status == 0
  assert "100.0% of these face away" in out
  assert (
    "warning: normals: most vectors have z > 0 (x > 0 in 50.0%,"
    " y > 0 in 25.0%, z > 0 in 100.0% of the pixels)" in out
  )
  words = ("--flip-axes", "yz", "--overwrite")
  status, out, _ = run_normals(theirs, *words, suffix=".npy")
  assert status == 0
  assert "warning" not in out
  vectors, _ = read_normals()
  np.testing.assert_allclose(vectors, FACING, atol=1e-4)


def test_bad_maps_are_rejected(run_normals):
  def reason(codes, suffix=".png"):
    status, _, err = run_normals(codes, suffix=suffix)
    assert status == 1
    return err

  assert "no vector of length 1" in reason(np.full((4, 3), 128, np.uint8))
  assert "expected an RGB PNG" in reason(np.zeros(4, np.uint8))
  assert "expected an RGB PNG" in reason(np.zeros((4, 2), np.uint8))


@pytest.mark.parametrize(
  "array", [np.zeros((4, 2)), np.zeros((4, 4)), np.zeros(4)]
)
def test_bad_arrays_are_rejected(run_normals, array):
  status, _, err = run_normals(array, suffix=".npy")
  assert status == 1
  assert "a.npy is " in err


def test_bad_axes(run_normals):
  status, _, err = run_normals(FACING, "--flip-axes", "yw", suffix=".npy")
  assert status == 2
  assert err.startswith("error: --flip-axes is 'yw'")


@pytest.mark.parametrize(
  ("codes", "max_code"),
  [(encode(FACING, np.uint8) / 1.0, 255), ((FACING + 1) / 2, 1)],
)
def test_floats_that_are_codes(run_normals, read_normals, codes, max_code):
  status, _, err = run_normals(codes, suffix=".npy")
  assert status == 1
  assert f"100% as codes: give --max-code {max_code}" in err
  words = ("--max-code", max_code)
  assert run_normals(codes, *words, suffix=".npy")[0] == 0
  vectors, valid = read_normals()
  assert valid.all()
  np.testing.assert_allclose(vectors, FACING, atol=0.01)


@pytest.mark.parametrize(
  "vectors",
  [
    np.abs(FACING),  # of length 1 as they are
    FACING * [-1, -1, 0] + [0, 0, 0.6],
    np.where(FACING[:, :1] > 0, FACING, 0),
  ],
)
def test_vectors_are_not_taken_for_codes(run_normals, vectors):
  assert run_normals(vectors, suffix=".npy")[0] == 0


def test_integers_in_arrays_are_codes_as_in_images(run_normals, read_normals):
  for dtype in (np.uint8, np.uint16):
    codes = encode(FACING, dtype)
    assert run_normals(codes, "--overwrite", suffix=".npy")[0] == 0
    np.testing.assert_allclose(read_normals()[0], FACING, atol=0.01)


def test_transparent_pixels_are_invalid(run_normals, read_normals):
  codes = encode(FACING, np.uint8)
  alpha = np.array([255, 0, 255, 1], np.uint8)
  assert run_normals(np.concatenate([codes, alpha[:, None]], 1))[0] == 0
  vectors, valid = read_normals()
  np.testing.assert_array_equal(valid, [True, False, True, True])
  np.testing.assert_allclose(vectors[valid], FACING[valid], atol=0.01)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("number", [3, 6, 8])
def test_normals_turn_with_their_image(
  run_import, read_back, decode16, tmp_path, number, stored
):
  """A surface that leans to the right leans down once turned clockwise."""
  exif = Image.Exif()
  exif[0x0112] = number
  (tmp_path / "images").mkdir()
  image = Image.new("RGB", (5, 3))
  image.save(tmp_path / "images/a.jpg", exif=exif)
  right = np.array([0.6, 0, -0.8])
  (tmp_path / "normals").mkdir()
  shape = (3, 5) if stored or number == 3 else (5, 3)
  np.save(tmp_path / "normals/a.npy", np.tile(right, (*shape, 1)))
  words = ("--labels-of-turned", "stored" if stored else "upright")
  status, _, err = run_import(
    *("normals", "--images", tmp_path / "images"),
    *("--normals", tmp_path / "normals", *words),
  )
  assert (status, err) == (0, "")
  codes = decode16(read_back()[0]["a"]["normals/png"][0]).astype(float)
  assert codes.shape[:2] == ((3, 5) if number == 3 else (5, 3))
  turned = {3: [-0.6, 0], 6: [0, 0.6], 8: [0, -0.6]}[number]
  expected = [*turned, -0.8] if stored else right
  given = (codes - 1) / 65534 * 2 - 1
  np.testing.assert_allclose(
    given, np.broadcast_to(expected, given.shape), atol=1e-4
  )


@pytest.mark.parametrize(
  ("change", "warning"),
  [
    (lambda n: n, None),
    (lambda n: np.abs(n), "x and y always of one sign (x > 0 in 100.0%, y > 0"),
    (lambda n: n[..., ::-1], "x always of one sign (x > 0 in 0.0%"),  # BGR
    (lambda n: n * [1, -1, -1], "most vectors have z > 0 (x > 0 in"),
  ],
)
def test_normals_that_look_wrong_are_told(run_normals, change, warning):
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(2000, 3))
  vectors[:, 2] = -np.abs(vectors[:, 2]) - 0.5
  vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
  status, out, _ = run_normals(change(vectors), suffix=".npy")
  assert status == 0
  assert ("warning" in out) == (warning is not None)
  assert warning is None or warning in out


@pytest.mark.parametrize("number", ["0", "-1", "nan", "inf"])
def test_bad_max_code(run_normals, number):
  status, _, err = run_normals(FACING, f"--max-code={number}", suffix=".npy")
  assert status == 2
  assert err.startswith("error: --max-code is ")
