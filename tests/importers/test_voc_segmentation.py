import numpy as np
import pytest
from PIL import Image

from must_jax import importers
from must_jax.importers import voc_segmentation

CLASSES = [
  "background",
  "aeroplane",
  "bicycle",
  "bird",
  "boat",
  "bottle",
  "bus",
  "car",
  "cat",
  "chair",
  "cow",
  "diningtable",
  "dog",
  "horse",
  "motorbike",
  "person",
  "pottedplant",
  "sheep",
  "sofa",
  "train",
  "tvmonitor",
]
IDS = [[0, 1, 20, 255], [255, 15, 15, 0]]


@pytest.fixture
def root(tmp_path, picture):
  """VOC2012 of two images of 2 x 4 (height x width)."""
  root = tmp_path / "VOCdevkit/VOC2012"
  for name in ("2007_000032", "2011_003271"):
    picture(root / f"JPEGImages/{name}.jpg", height=2, width=4)
    write_mask(root, name, IDS)
  write_ids(root, "2007_000032\n2011_003271\n")
  return root


def write_ids(root, text, split="train"):
  path = root / f"ImageSets/Segmentation/{split}.txt"
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)


def write_mask(root, name, ids):
  path = root / f"SegmentationClass/{name}.png"
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(np.asarray(ids, np.uint8))
  image.putpalette([(i * 7) % 256 for i in range(768)])
  image.save(path)


@pytest.fixture
def run(run_import, root, monkeypatch):
  monkeypatch.setitem(importers.IMPORTERS, "voc-masks", voc_segmentation)
  return lambda *words, **options: run_import(
    "voc-masks", "--root", root, *words, **options
  )


def test_palette_indices_are_classes_and_255_is_void(
  run, read_back, decode8, root
):
  status, _, err = run()
  assert (status, err) == (0, "")
  records, image_set = read_back()
  assert image_set.fields == {"mask": {"kind": "ClassMap", "classes": CLASSES}}
  assert set(records) == {"2007_000032", "2011_003271"}
  record = records["2007_000032"]
  assert record["image"] == [(root / "JPEGImages/2007_000032.jpg").read_bytes()]
  np.testing.assert_array_equal(decode8(record["mask/png"][0]), IDS)


def test_splits_are_lists_of_ids(run, read_back, root):
  write_ids(root, "2011_003271", "val")
  assert run(split="val")[0] == 0
  assert set(read_back(split="val")[0]) == {"2011_003271"}


def test_ids_that_end_in_a_number(run, read_back, decode8, root, picture):
  names = ["photo", "photo 1", "photo 0"]
  for i, name in enumerate(names):
    picture(root / f"JPEGImages/{name}.png", height=2, width=4)
    write_mask(root, name, [[i] * 4] * 2)
  write_ids(root, "\ufeff" + "\r\n".join(names) + "\r\n2007_000032.jpg\r\n")
  assert run()[0] == 0
  records, _ = read_back()
  assert set(records) == {*names, "2007_000032"}
  for i, name in enumerate(names):
    assert (decode8(records[name]["mask/png"][0]) == i).all()


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_images_that_are_not_rgb(run, read_back, decode8, root, mode):
  Image.new(mode, (4, 2)).save(root / "JPEGImages/2007_000032.jpg")
  assert run()[0] == 0
  mask = read_back()[0]["2007_000032"]["mask/png"][0]
  np.testing.assert_array_equal(decode8(mask), IDS)


def test_what_does_not_fit_is_rejected(run, read_back, root):
  names = ["missing", "maskless", "strange", "wide", "colour", "flip"]
  write_ids(root, "\n".join(["2007_000032", *names]))
  for name in names[1:]:
    Image.new("RGB", (4, 2)).save(root / f"JPEGImages/{name}.jpg")
    write_mask(root, name, IDS)
  write_mask(root, "missing", IDS)
  (root / "SegmentationClass/maskless.png").unlink()
  write_mask(root, "strange", [[0, 21, 254, 0]] * 2)
  write_mask(root, "wide", [[0] * 5] * 2)
  Image.new("RGB", (4, 2)).save(root / "SegmentationClass/colour.png")
  exif = Image.Exif()
  exif[0x0112] = 3
  Image.new("RGB", (4, 2)).save(root / "JPEGImages/flip.jpg", exif=exif)
  status, _, err = run("--max-rejected", 0.9)
  assert status == 0
  assert "  missing: there is no file" in err
  assert "  maskless: has no mask" in err
  assert "  strange: strange.png has ids [21, 254] of no class" in err
  assert "  wide: wide.png is 2 x 5" in err
  assert "  colour: colour.png has 3 channels" in err
  # Upside down has the same size.
  assert "  flip: its EXIF or XMP asks for a turn (orientation 3)" in err
  assert set(read_back()[0]) == {"2007_000032"}


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("../2007_000032", "train.txt has id '../2007_000032'"),
    ("", "train.txt names no image"),
    (None, "train.txt cannot be read"),
  ],
)
def test_bad_lists(run, root, text, message):
  if text is None:
    (root / "ImageSets/Segmentation/train.txt").unlink()
  else:
    write_ids(root, text)
  status, _, err = run()
  assert status == 2
  assert message in err


def test_masks_that_were_not_unpacked(run, root):
  (root / "SegmentationClass").rename(root / "elsewhere")
  status, _, err = run()
  assert status == 2
  assert "SegmentationClass cannot be read" in err
