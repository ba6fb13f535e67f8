import io
import os
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from etils import epath
from PIL import Image

from must_jax.importers import files
from must_jax.importers.files import Picture, Rejected
from must_jax.storage import records

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 32, 3)).astype(np.uint8)
# The top left quarter of each block of colour survives a JPEG.
BLOCKS = np.repeat(
  np.repeat(
    np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]]), 16, 0
  ),
  24,
  1,
).astype(np.uint8)  # 32 high, 48 wide: red, green / blue, yellow


def chunk(kind, data):
  crc = zlib.crc32(kind + data)
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def raw_png(height, width, depth, colour, rows):
  """A PNG put together by hand; `rows` hold filter byte and packed codes."""
  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + chunk(b"IDAT", zlib.compress(rows))
    + chunk(b"IEND", b"")
  )


def save(image, path, **options):
  image.save(path, **options)
  return path.read_bytes()


def decode(picture):
  return np.asarray(Image.open(io.BytesIO(picture.data)))


@pytest.mark.parametrize(
  ("name", "mode", "options"),
  [
    ("a.jpg", "RGB", {}),
    ("a.JPEG", "RGB", {}),
    ("a.jpg", "L", {}),
    ("a.jpg", "RGB", {"progressive": True}),
    ("a.png", "RGB", {}),
    ("a.png", "L", {}),
  ],
)
def test_plain_images_keep_their_bytes(tmp_path, name, mode, options):
  path = tmp_path / name
  data = save(Image.fromarray(PIXELS).convert(mode), path, **options)
  assert files.read_image(path) == Picture(data, (24, 32), False)


# Colours at top left, top right, bottom left, bottom right, once upright, from
# the definition of the tag in EXIF 2.3 (where row 0 and column 0 are).
R, G, B, Y = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
UPRIGHT = {
  2: (G, R, Y, B),
  3: (Y, B, G, R),
  4: (B, Y, R, G),
  5: (R, B, G, Y),
  6: (B, R, Y, G),
  7: (Y, G, B, R),
  8: (G, Y, R, B),
}


@pytest.mark.parametrize("form", ["jpg", "png"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_rotation_is_carried_out(tmp_path, orientation, form):
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = tmp_path / f"a.{form}"
  save(Image.fromarray(BLOCKS), path, exif=exif)
  picture = files.read_image(path)
  assert picture.turned
  size = (48, 32) if orientation > 4 else (32, 48)
  assert picture.size == size
  # TensorFlow knows no EXIF, so the pixels themselves must be turned.
  pixels = tf.io.decode_image(picture.data, 3).numpy().astype(int)
  assert pixels.shape == (*size, 3)
  y, x = size[0] // 4, size[1] // 4
  given = [pixels[y, x], pixels[y, -x], pixels[-y, x], pixels[-y, -x]]
  np.testing.assert_allclose(given, UPRIGHT[orientation], atol=8)
  assert not Image.open(io.BytesIO(picture.data)).getexif()


def test_upright_exif_keeps_the_bytes(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 1
  path = tmp_path / "a.jpg"
  assert files.read_image(path_of(path, exif)).data == path.read_bytes()


def path_of(path, exif):
  save(Image.fromarray(PIXELS), path, exif=exif)
  return path


def test_cmyk_becomes_rgb(tmp_path):
  path = tmp_path / "a.jpg"
  save(Image.fromarray(BLOCKS).convert("CMYK"), path, quality=95)
  picture = files.read_image(path)
  assert Image.open(io.BytesIO(picture.data)).mode == "RGB"
  np.testing.assert_allclose(decode(picture)[8, 12], R, atol=12)


def test_palette_becomes_rgb(tmp_path):
  image = Image.new("P", (2, 1))
  image.putpalette([10, 20, 30, 40, 50, 60])
  image.putdata([1, 0])
  save(image, tmp_path / "a.png")
  given = decode(files.read_image(tmp_path / "a.png"))
  np.testing.assert_array_equal(given, [[[40, 50, 60], [10, 20, 30]]])


def test_transparent_becomes_white(tmp_path):
  rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
  save(Image.fromarray(rgba), tmp_path / "a.png")
  given = decode(files.read_image(tmp_path / "a.png"))
  np.testing.assert_array_equal(given, [[[10, 20, 30], [255, 255, 255]]])
  image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
  save(image, tmp_path / "b.png", transparency=(1, 2, 3))
  given = decode(files.read_image(tmp_path / "b.png"))
  np.testing.assert_array_equal(given, [[[255, 255, 255], [4, 5, 6]]])


def test_16_bits_become_8(tmp_path, rgb16):
  codes = np.array([[0, 255, 256, 65535]], np.uint16)
  save(Image.fromarray(codes), tmp_path / "a.png")
  given = decode(files.read_image(tmp_path / "a.png"))
  np.testing.assert_array_equal(given, [[0, 0, 1, 255]])
  (tmp_path / "b.png").write_bytes(rgb16(PIXELS.astype(np.uint16) * 256 + 7))
  picture = files.read_image(tmp_path / "b.png")
  np.testing.assert_array_equal(decode(picture), PIXELS)
  assert picture.data[24] == 8  # bits, as the header says


@pytest.mark.parametrize("array", [PIXELS, PIXELS[..., 0]])
def test_arrays_become_png(tmp_path, array):
  np.save(tmp_path / "a.npy", array)
  picture = files.read_image(tmp_path / "a.npy")
  assert picture.size == (24, 32)
  np.testing.assert_array_equal(decode(picture), array)


@pytest.mark.parametrize("cut", [2, 30, 100, 600])
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_truncated_images_are_rejected(tmp_path, name, cut):
  path = tmp_path / name
  data = save(Image.fromarray(PIXELS), path)
  if name == "a.png":
    cut += 16  # the end of a PNG holds no pixels
  path.write_bytes(data[:-cut])
  with pytest.raises(Rejected, match="cannot be decoded"):
    files.read_image(path)


def test_other_bad_images_are_rejected(tmp_path):
  def reason(name):
    with pytest.raises(Rejected) as error:
      files.read_image(tmp_path / name)
    return str(error.value)

  Image.fromarray(PIXELS).save(tmp_path / "a.jpg", format="WEBP")
  assert "neither JPEG nor PNG" in reason("a.jpg")
  (tmp_path / "empty.png").write_bytes(b"")
  assert "neither JPEG nor PNG" in reason("empty.png")
  (tmp_path / "head.png").write_bytes(b"\x89PNG\r\n\x1a\n")
  assert "header" in reason("head.png")
  assert "no file" in reason("missing.jpg")
  # 8.7 million pixels over the limit, in a file of 100 bytes.
  (tmp_path / "bomb.png").write_bytes(raw_png(8700, 8700, 8, 2, b"\0"))
  assert "8700 x 8700" in reason("bomb.png")
  np.save(tmp_path / "float.npy", PIXELS / 255)
  assert "float64" in reason("float.npy")
  np.save(tmp_path / "four.npy", np.zeros((4, 4, 4), np.uint8))
  assert "(4, 4, 4)" in reason("four.npy")
  np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
  assert "cannot be decoded" in reason("object.npy")
  np.lib.format.open_memmap(
    tmp_path / "large.npy", "w+", np.uint8, (8700, 8700)
  )
  assert "pixels" in reason("large.npy")


def test_pictures_are_read_from_bytes(tmp_path):
  data = save(Image.fromarray(PIXELS), tmp_path / "a.png")
  assert files.picture_of(data) == Picture(data, (24, 32))
  with pytest.raises(Rejected, match="cannot be decoded"):
    files.picture_of(data[:-30])


def test_exif_after_the_pixels_of_a_png_is_carried_out(tmp_path):
  data = save(Image.fromarray(PIXELS), tmp_path / "a.png")
  exif = Image.Exif()
  exif[0x0112] = 3
  tag = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
  picture = files.picture_of(data[:-12] + tag + data[-12:])
  assert picture.turned
  np.testing.assert_array_equal(decode(picture), PIXELS[::-1, ::-1])


def test_fuzzed_files_are_rejected_or_read(tmp_path):
  buffers = []
  for form in ("JPEG", "PNG"):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, form)
    buffers.append(("a." + form.lower(), buffer.getvalue()))
  buffer = io.BytesIO()
  np.save(buffer, PIXELS)
  buffers.append(("a.npy", buffer.getvalue()))
  rng = np.random.default_rng(1)
  outcomes = {"read": 0, "rejected": 0}
  for trial in range(300):
    name, data = buffers[trial % 3]
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
      data[rng.integers(len(data))] = rng.integers(256)
    if trial % 2:
      data = data[: rng.integers(len(data))]
    (tmp_path / name).write_bytes(data)
    try:
      picture = files.read_image(tmp_path / name)
    except Rejected:
      outcomes["rejected"] += 1
      continue
    outcomes["read"] += 1
    # What is stored can be decoded by Pillow and by the reader.
    decode(picture)
    window = tf.constant((0, 0, *picture.size))
    image = records.decode_image(picture.data, picture.size, window)
    assert image.shape[:2] == picture.size
  assert min(outcomes.values()) > 20


def read_map(path, size):
  return files.read_map(path, Picture(b"", size))


@pytest.mark.parametrize(
  ("depth", "row", "expected"),
  [
    (1, b"\0\xa0", [1, 0, 1]),
    (2, b"\0\x1b", [0, 1, 2]),
    (4, b"\0\x0f\x30", [0, 15, 3]),
    (8, b"\0\x00\x0f\xff", [0, 15, 255]),
    (16, b"\0\x00\x01\x01\x00\xff\xff", [1, 256, 65535]),
  ],
)
def test_grey_maps_keep_codes_of_any_depth(tmp_path, depth, row, expected):
  (tmp_path / "a.png").write_bytes(raw_png(1, 3, depth, 0, row))
  given = read_map(tmp_path / "a.png", (1, 3))
  np.testing.assert_array_equal(given, [expected])


@pytest.mark.parametrize(
  ("depth", "row", "expected"),
  [
    (1, b"\0\xa0", [1, 0, 1]),
    (2, b"\0\x1b", [0, 1, 2]),
    (4, b"\0\x0f\x30", [0, 15, 3]),
    (8, b"\0\x00\x0f\x02", [0, 15, 2]),
  ],
)
def test_palette_maps_give_indices(tmp_path, depth, row, expected):
  data = raw_png(1, 3, depth, 3, row)
  colours = chunk(b"PLTE", bytes(range(255, 255 - 3 * 2 ** min(depth, 4), -1)))
  (tmp_path / "a.png").write_bytes(data[:33] + colours + data[33:])
  given = read_map(tmp_path / "a.png", (1, 3))
  np.testing.assert_array_equal(given, [expected])


def test_maps_of_16_bit_rgb_keep_all_bits(tmp_path, rgb16):
  codes = RNG.integers(0, 65536, (5, 7, 3))
  (tmp_path / "a.png").write_bytes(rgb16(codes))
  np.testing.assert_array_equal(read_map(tmp_path / "a.png", (5, 7)), codes)
  (tmp_path / "a.png").write_bytes(rgb16(codes)[:-60])
  with pytest.raises(Rejected, match="cannot be decoded"):
    read_map(tmp_path / "a.png", (5, 7))


def test_maps_from_arrays(tmp_path):
  array = RNG.random((5, 7, 1)).astype(np.float32)
  np.save(tmp_path / "a.npy", array)
  given = read_map(tmp_path / "a.npy", (5, 7))
  np.testing.assert_array_equal(given, array[..., 0])
  (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00nonsense")
  with pytest.raises(Rejected, match="cannot be decoded"):
    read_map(tmp_path / "a.npy", (5, 7))


def test_maps_of_another_size_are_rejected(tmp_path):
  Image.new("L", (7, 5)).save(tmp_path / "a.png")
  np.save(tmp_path / "a.npy", np.zeros((5, 7)))
  for name in ("a.png", "a.npy"):
    with pytest.raises(Rejected, match=r"5 x 7 .* 7 x 5 once turned"):
      files.read_map(tmp_path / name, Picture(b"", (7, 5), turned=True))


def test_find(tmp_path):
  for name in ("b/x.jpg", "a.PNG", ".hidden.jpg", ".git/c.jpg", "b/notes.txt"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  wanted, others = files.find_files(tmp_path, files.IMAGE_SUFFIXES)
  assert wanted == ["a.PNG", "b/x.jpg"]
  assert others == ["b/notes.txt"]
  images, notes = files.find_images(tmp_path, "b/*")
  assert images == {"b/x": tmp_path / "b/x.jpg"}
  assert notes == ["files that are no images: 1 .PNG, 1 .txt"]


def test_find_on_an_object_store(tmp_path, monkeypatch):
  for name in ("b/c/x.jpg", "a.PNG", ".hidden.jpg", ".git/c.jpg", "b/y.txt"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  monkeypatch.setattr(files, "is_local", lambda path: False)
  wanted, others = files.find_files(epath.Path(tmp_path), files.IMAGE_SUFFIXES)
  assert wanted == ["a.PNG", "b/c/x.jpg"]
  assert others == ["b/y.txt"]


def test_arrays_on_an_object_store(tmp_path, monkeypatch):
  monkeypatch.setattr(files, "is_local", lambda path: False)
  np.save(tmp_path / "a.npy", PIXELS)
  given = decode(files.read_image(epath.Path(tmp_path / "a.npy")))
  np.testing.assert_array_equal(given, PIXELS)
  given = read_map(epath.Path(tmp_path / "a.npy"), (24, 32))
  np.testing.assert_array_equal(given, PIXELS)


def test_names_of_other_encodings(tmp_path):
  (tmp_path / "grün.jpg").touch()
  assert list(files.find_images(epath.Path(tmp_path))[0]) == ["grün"]
  with open(os.fsencode(tmp_path) + b"/gr\xfcn.jpg", "wb"):
    pass
  with pytest.raises(ValueError, match=r"gr\\xfcn.jpg' is no UTF-8 name"):
    files.find_images(epath.Path(tmp_path))


@pytest.mark.parametrize(
  ("root", "name", "path"),
  [
    ("/data", "a.jpg", "/data/a.jpg"),
    ("/data", "./b/a b.jpg", "/data/b/a b.jpg"),
    ("gs://bucket/data", "b/a.jpg", "gs://bucket/data/b/a.jpg"),
  ],
)
def test_names_inside(root, name, path):
  assert str(files.inside(epath.Path(root), name)) == path


@pytest.mark.parametrize(
  "name",
  [
    *("", ".", "/", "..", "../a", "a/../../b", "a/..", "/etc/passwd"),
    *("C:\\a.jpg", "..\\a.jpg", "gs://b/a.jpg", "a\0.jpg", None, 7, b"a"),
  ],
)
def test_names_that_may_lead_outside(name):
  with pytest.raises(Rejected, match="is no path below /data"):
    files.inside(epath.Path("/data"), name)


def test_find_errors(tmp_path):
  with pytest.raises(ValueError, match="missing cannot be read"):
    files.find_images(tmp_path / "missing")
  (tmp_path / "a.txt").touch()
  with pytest.raises(ValueError, match="cannot be read"):
    files.find_images(tmp_path / "a.txt")
  with pytest.raises(ValueError, match=r"holds no image .*a\.txt"):
    files.find_images(tmp_path)
  (tmp_path / "a.jpg").touch()
  (tmp_path / "a.png").touch()
  with pytest.raises(ValueError, match="same key 'a'"):
    files.find_images(tmp_path)
