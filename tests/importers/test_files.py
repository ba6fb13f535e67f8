import collections
import io
import os
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from etils import epath
from PIL import Image, ImageOps

from must_jax.importers import files
from must_jax.storage import image_files, orientation, records
from must_jax.storage.image_files import ImageOptions, Picture, Rejected

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
  assert image_files.read_image(path) == Picture(data, (24, 32))


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
  picture = image_files.read_image(path)
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
  assert image_files.read_image(path_of(path, exif)).data == path.read_bytes()


def path_of(path, exif):
  save(Image.fromarray(PIXELS), path, exif=exif)
  return path


def test_cmyk_becomes_rgb(tmp_path):
  path = tmp_path / "a.jpg"
  save(Image.fromarray(BLOCKS).convert("CMYK"), path, quality=95)
  picture = image_files.read_image(path)
  assert Image.open(io.BytesIO(picture.data)).mode == "RGB"
  np.testing.assert_allclose(decode(picture)[8, 12], R, atol=12)


def test_palette_becomes_rgb(tmp_path):
  image = Image.new("P", (2, 1))
  image.putpalette([10, 20, 30, 40, 50, 60])
  image.putdata([1, 0])
  save(image, tmp_path / "a.png")
  given = decode(image_files.read_image(tmp_path / "a.png"))
  np.testing.assert_array_equal(given, [[[40, 50, 60], [10, 20, 30]]])


def test_transparent_becomes_white(tmp_path):
  rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
  save(Image.fromarray(rgba), tmp_path / "a.png")
  given = decode(image_files.read_image(tmp_path / "a.png"))
  np.testing.assert_array_equal(given, [[[10, 20, 30], [255, 255, 255]]])
  image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
  save(image, tmp_path / "b.png", transparency=(1, 2, 3))
  given = decode(image_files.read_image(tmp_path / "b.png"))
  np.testing.assert_array_equal(given, [[[255, 255, 255], [4, 5, 6]]])


def test_16_bits_become_8(tmp_path, rgb16):
  codes = np.array([[0, 255, 256, 65535]], np.uint16)
  save(Image.fromarray(codes), tmp_path / "a.png")
  given = decode(image_files.read_image(tmp_path / "a.png"))
  np.testing.assert_array_equal(given, [[0, 0, 1, 255]])
  (tmp_path / "b.png").write_bytes(rgb16(PIXELS.astype(np.uint16) * 256 + 7))
  picture = image_files.read_image(tmp_path / "b.png")
  np.testing.assert_array_equal(decode(picture), PIXELS)
  assert picture.data[24] == 8  # bits, as the header says


@pytest.mark.parametrize("array", [PIXELS, PIXELS[..., 0]])
def test_arrays_become_png(tmp_path, array):
  np.save(tmp_path / "a.npy", array)
  picture = image_files.read_image(tmp_path / "a.npy")
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
    image_files.read_image(path)


def test_other_bad_images_are_rejected(tmp_path):
  def reason(name):
    with pytest.raises(Rejected) as error:
      image_files.read_image(tmp_path / name)
    return str(error.value)

  Image.fromarray(PIXELS).save(tmp_path / "a.jpg", format="WEBP")
  assert "neither JPEG nor PNG" in reason("a.jpg")
  (tmp_path / "empty.png").write_bytes(b"")
  assert "the file is empty" in reason("empty.png")
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
  assert image_files.picture_of(data) == Picture(data, (24, 32))
  with pytest.raises(Rejected, match="cannot be decoded"):
    image_files.picture_of(data[:-30])


def test_exif_after_the_pixels_of_a_png_is_carried_out(tmp_path):
  data = save(Image.fromarray(PIXELS), tmp_path / "a.png")
  exif = Image.Exif()
  exif[0x0112] = 3
  tag = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
  picture = image_files.picture_of(data[:-12] + tag + data[-12:])
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
      picture = image_files.read_image(tmp_path / name)
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
    with pytest.raises(Rejected, match=r"5 x 7 .* 7 x 6 \(turned by"):
      files.read_map(tmp_path / name, Picture(b"", (7, 6), orientation=6))


def test_find(tmp_path):
  for name in ("b/x.jpg", "a.PNG", ".hidden.jpg", ".git/c.jpg", "b/notes.txt"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  wanted, others = files.find_files(tmp_path, image_files.IMAGE_SUFFIXES)
  assert wanted == ["a.PNG", "b/x.jpg"]
  assert others == ["b/notes.txt"]
  images, notes = files.find_images(tmp_path, "b/*")
  assert images == {"b/x": tmp_path / "b/x.jpg"}
  assert notes == ["files that are no images: 1 .PNG, 1 .txt"]


def test_find_on_an_object_store(tmp_path, monkeypatch):
  for name in ("b/c/x.jpg", "a.PNG", ".hidden.jpg", ".git/c.jpg", "b/y.txt"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  monkeypatch.setattr(image_files, "is_local", lambda path: False)
  wanted, others = files.find_files(
    epath.Path(tmp_path), image_files.IMAGE_SUFFIXES
  )
  assert wanted == ["a.PNG", "b/c/x.jpg"]
  assert others == ["b/y.txt"]


def test_arrays_on_an_object_store(tmp_path, monkeypatch):
  monkeypatch.setattr(image_files, "is_local", lambda path: False)
  np.save(tmp_path / "a.npy", PIXELS)
  given = decode(image_files.read_image(epath.Path(tmp_path / "a.npy")))
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


# What a file says, and what it does not.


XMP = (
  '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF'
  ' xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description'
  ' rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" {}'
  "</rdf:RDF></x:xmpmeta>"
)
ATTRIBUTE = 'tiff:Orientation="{}"/>'
ELEMENT = "><tiff:Orientation>{}</tiff:Orientation></rdf:Description>"


def with_xmp(path, form, xmp, exif=None):
  """An image whose XMP (XMP specification, part 3) says how it stands."""
  options = {"exif": exif} if exif else {}
  data = save(Image.fromarray(BLOCKS), path, **options)
  if form == "jpg":
    segment = b"http://ns.adobe.com/xap/1.0/\0" + xmp.encode()
    head = b"\xff\xe1" + struct.pack(">H", 2 + len(segment))
    data = data[:2] + head + segment + data[2:]
  else:
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp.encode()
    data = data[:33] + chunk(b"iTXt", text) + data[33:]
  path.write_bytes(data)


@pytest.mark.parametrize("form", ["jpg", "png"])
@pytest.mark.parametrize("kind", [ATTRIBUTE, ELEMENT])
def test_xmp_rotation_is_carried_out_where_exif_has_none(tmp_path, form, kind):
  path = tmp_path / f"a.{form}"
  with_xmp(path, form, XMP.format(kind.format(6)))
  picture = image_files.read_image(path)
  assert (picture.orientation, picture.size) == (6, (48, 32))
  pixels = decode(picture).astype(int)
  given = [pixels[12, 8], pixels[12, -8], pixels[-12, 8], pixels[-12, -8]]
  np.testing.assert_allclose(given, UPRIGHT[6], atol=8)
  exif = Image.Exif()
  exif[0x0112] = 3
  with_xmp(path, form, XMP.format(kind.format(6)), exif)
  assert image_files.read_image(path).orientation == 3
  with_xmp(path, form, XMP.format(kind.format(9)))
  assert image_files.read_image(path).orientation == 1


def test_turns_agree_with_pillow():
  """Maps, boxes and vectors turn as Pillow turns images."""
  boxes = np.array([[0, 0, 2, 5], [3, 1, 4, 7], [0, 6, 1, 7]])  # of 4 x 7
  for number in range(1, 9):
    exif = Image.Exif()
    exif[0x0112] = number

    def upright(array, exif=exif):
      image = Image.fromarray(array)
      image.getexif().update(exif)
      return np.asarray(ImageOps.exif_transpose(image))

    ids = RNG.integers(0, 256, (4, 7)).astype(np.uint8)
    np.testing.assert_array_equal(
      orientation.turn_map(ids, number), upright(ids)
    )
    size = upright(ids).shape
    for y0, x0, y1, x1 in boxes:
      inside = np.zeros((4, 7), np.uint8)
      inside[y0:y1, x0:x1] = 1
      y0, x0, y1, x1 = orientation.turn_box(
        np.array([y0, x0, y1, x1]), number, size
      )
      expected = np.zeros(size, np.uint8)
      expected[y0:y1, x0:x1] = 1
      np.testing.assert_array_equal(expected, upright(inside))
    # A surface's normal is the opposite gradient of its depth.
    depth = RNG.random((4, 7)).astype(np.float32)
    slopes = [
      np.stack(np.gradient(d)[::-1], -1) for d in (depth, upright(depth))
    ]
    turned = orientation.turn_vectors(
      orientation.turn_map(slopes[0], number), number
    )
    np.testing.assert_allclose(turned, slopes[1], atol=1e-6)


@pytest.mark.parametrize(
  ("number", "given", "policy", "turn"),
  [
    (1, (4, 7), "", 1),
    (1, None, "stored", 1),
    (6, (7, 4), "", 1),  # upright
    (6, (4, 7), "", 6),  # as it is stored
    (6, (4, 7), "upright", 6),  # sizes tell more than an option
    (6, None, "", None),
    (6, None, "upright", 1),
    (6, None, "stored", 6),
    (3, (4, 7), "", None),
    (3, (4, 7), "stored", 3),
    (3, (7, 4), "stored", None),
    (6, (5, 7), "stored", None),
  ],
)
def test_of_which_picture_labels_are(number, given, policy, turn):
  size = (7, 4) if number > 4 else (4, 7)
  picture = Picture(b"", size, number, labels_of_turned=policy)
  if turn is not None:
    assert picture.turn_of_labels(given, "a.png is") == turn
    return
  wrong = given is not None and given not in (size, size[::-1])
  wrong |= number < 5 and given == (7, 4)
  message = "expected the size of its image" if wrong else "--labels-of-turned"
  with pytest.raises(Rejected, match=message):
    picture.turn_of_labels(given, "a.png is")


RAMP = np.arange(64, dtype=np.uint16)[None].repeat(2, 0)


def of_16_bits(codes, chunks=b"", colour=0):
  """A PNG of codes [h, w, ...], written by hand."""
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in codes)
  data = raw_png(*codes.shape[:2], 16, colour, rows)
  return data[:33] + chunks + data[33:]


@pytest.mark.parametrize(
  ("bits", "chunks", "code_range", "levels"),
  [
    (16, b"", None, 256),
    (12, b"", None, 16),
    (12, chunk(b"sBIT", b"\x0c"), None, 256),
    (16, chunk(b"sBIT", b"\x0c"), None, 256),  # spread, as the standard says
    (12, b"", (0, 4095), 256),
    (14, b"", (0, 16383), 256),
    (14, chunk(b"sBIT", b"\x0e"), None, 256),
    (14, chunk(b"sBIT", b"\x10"), (0, 4095), 256),
  ],
)
@pytest.mark.parametrize("colour", [0, 2])
def test_12_and_14_bits_in_16(bits, chunks, code_range, levels, colour):
  codes = RAMP.astype(np.int64) * (2**bits - 1) // 63
  codes = np.stack([codes] * 3, -1) if colour else codes

  if colour and chunks:
    chunks = chunk(b"sBIT", chunks[8:9] * 3)
  data = of_16_bits(codes, chunks, colour)
  picture = image_files.picture_of(data, ImageOptions(code_range))
  top = 2**bits if code_range is None and levels != 256 else None
  if top is None:
    low, high = code_range or (0, 2**bits - 1)
    expected = ((codes - low) * 256 // (high - low + 1)).clip(0, 255)
    assert picture.top is None
  else:
    expected = codes >> 8
    assert picture.top == top - 1
    assert picture.counts
  given = decode(picture)
  np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("rule", ["repeat", "shift", "round"])
def test_dark_images_that_are_spread_stay_dark(bits, rule):
  """Of a standard PNG, however dark, 16 bits are taken."""
  codes = np.arange(2 ** (bits - 4))[None]
  spread = {
    "repeat": codes << 16 - bits | codes >> 2 * bits - 16,
    "shift": codes << 16 - bits,
    "round": np.rint(codes * 65535 / (2**bits - 1)).astype(int),
  }[rule]
  said = chunk(b"sBIT", bytes([bits]))
  picture = image_files.picture_of(of_16_bits(spread, said))
  np.testing.assert_array_equal(decode(picture), spread >> 8)
  assert picture.top is None


def test_alpha_of_16_bits_becomes_white():
  codes = np.array([[[1000, 40000, 65535, 65535], [9, 9, 9, 0]]])
  given = decode(image_files.picture_of(of_16_bits(codes, colour=6)))
  np.testing.assert_array_equal(given, [[[3, 156, 255], [255] * 3]])
  codes = np.array([[[40000, 65535], [9, 0]]])
  given = decode(image_files.picture_of(of_16_bits(codes, colour=4)))
  np.testing.assert_array_equal(given, [[[156] * 3, [255] * 3]])
  clear = chunk(b"tRNS", struct.pack(">H", 300))
  codes = np.array([[300, 40000, 301]])
  given = decode(image_files.picture_of(of_16_bits(codes, clear)))
  np.testing.assert_array_equal(given, [[[255] * 3, [156] * 3, [1] * 3]])


def test_images_of_few_levels_are_told():
  assert image_files.warn({"objects": 3}) == []
  counts = collections.Counter()
  for bits in (12, 12, 14, 16):
    codes = RAMP.astype(np.int64) * (2**bits - 1) // 63
    counts.update(image_files.picture_of(of_16_bits(codes)).counts)
  (warning,) = image_files.warn(counts)
  assert warning.startswith("3 images of 16 bits have at most 64 of 256")
  assert "2 up to 4095, 1 up to 16383. Give --code-range" in warning
  assert "such as 0 4095" in warning


def test_maps_with_channels_first_and_jpegs_called_png(tmp_path):
  array = RNG.random((3, 5, 7))
  np.save(tmp_path / "a.npy", array)
  given = read_map(tmp_path / "a.npy", (5, 7))
  np.testing.assert_array_equal(given, array.transpose(1, 2, 0))
  np.save(tmp_path / "a.npy", array[:1])
  given = read_map(tmp_path / "a.npy", (5, 7))
  np.testing.assert_array_equal(given, array[0])
  Image.new("L", (7, 5)).save(tmp_path / "a.png", format="JPEG")
  with pytest.raises(Rejected, match=r"a\.png is a JPEG, .*expected a PNG"):
    read_map(tmp_path / "a.png", (5, 7))


def test_links_back_are_not_followed(tmp_path):
  for name in ("in/a/x.jpg", "in/b/y.jpg"):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
  for link, target in (
    ("in/a/self", "."),
    ("in/a/up", ".."),
    ("in/above", "../.."),
    ("in/a/b", "../b"),
    ("in/b/a", "../a"),  # and back by a/b
    ("in/c", "b"),
  ):
    (tmp_path / link).symlink_to(target)
  found, _ = files.find_files(epath.Path(tmp_path / "in"), (".jpg",))
  assert found == [
    *("a/b/y.jpg", "a/x.jpg", "b/a/x.jpg", "b/y.jpg"),
    *("c/a/x.jpg", "c/y.jpg"),
  ]


def test_folders_of_programs_are_passed_over(tmp_path):
  for name in ("a/x.jpg", "a/@eaDir/x.jpg/T.jpg", "__MACOSX/a/x.jpg"):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
  images, notes = files.find_images(epath.Path(tmp_path))
  assert list(images) == ["a/x"]
  assert notes == ["files in folders of programs: 2, as __MACOSX/a/x.jpg"]
