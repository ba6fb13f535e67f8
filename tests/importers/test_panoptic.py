import json

import numpy as np
import pytest
from PIL import Image

from must_jax import importers
from must_jax.importers import panoptic

CATEGORIES = [
  {"id": 200, "name": "rug-merged", "isthing": 0},
  {"id": 1, "name": "person", "isthing": 1},
  {"id": 7, "name": "train", "isthing": 1},
]
SEGMENTS = [
  {"id": 5, "category_id": 7, "iscrowd": 0},
  {"id": 3 + 256 * 2, "category_id": 200, "iscrowd": 0},
  {"id": 1 + 65536 * 9, "category_id": 1, "iscrowd": 1},
  {"id": 6, "category_id": 7, "iscrowd": 0},
]
VOID, TRAIN, RUG, CROWD = (0, 0, 0), (5, 0, 0), (3, 2, 0), (1, 0, 9)
COLOURS = [[VOID, TRAIN, RUG], [CROWD, (6, 0, 0), TRAIN]]
CLASSES = [[255, 1, 2], [0, 1, 1]]


@pytest.fixture
def value(tmp_path, picture):
  """A dataset of one image of 2 x 3 (height x width)."""
  value = {"images": [], "annotations": [], "categories": CATEGORIES}
  add(value, tmp_path, "000000000139")
  return value


def add(value, tmp_path, name, colours=COLOURS, segments=SEGMENTS, **options):
  for folder in ("val2017", "panoptic_val2017"):
    (tmp_path / folder).mkdir(exist_ok=True)
  height, width = np.shape(colours)[:2]
  image = Image.new(options.pop("mode", "RGB"), (width, height))
  image.save(tmp_path / f"val2017/{name}.jpg", **options)
  mask = Image.fromarray(np.asarray(colours, np.uint8))
  mask.save(tmp_path / f"panoptic_val2017/{name}.png")
  number = len(value["images"]) + 1
  value["images"].append({"id": number, "file_name": f"{name}.jpg"})
  value["annotations"].append(
    {
      "image_id": number,
      "file_name": f"{name}.png",
      "segments_info": segments,
    }
  )


@pytest.fixture
def run(run_import, tmp_path, monkeypatch):
  monkeypatch.setitem(importers.IMPORTERS, "panoptic", panoptic)

  def run(value, *words):
    path = tmp_path / "panoptic_val2017.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return run_import(
      *("panoptic", "--annotations", path),
      *("--masks", tmp_path / "panoptic_val2017"),
      *("--images", tmp_path / "val2017", *words),
    )

  return run


def test_segments_have_the_classes_of_their_categories(
  run, read_back, decode8, value
):
  status, _, err = run(value)
  assert (status, err) == (0, "")
  records, image_set = read_back()
  assert image_set.fields == {
    "mask": {"kind": "ClassMap", "classes": ["person", "train", "rug-merged"]}
  }
  mask = decode8(records["000000000139"]["mask/png"][0])
  np.testing.assert_array_equal(mask, CLASSES)


def test_133_classes_of_coco(run, read_back, decode8, value, tmp_path):
  # 80 things with ids up to 90 and 53 kinds of stuff from 92 to 200.
  skipped = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
  stuff = [*range(92, 145), 200][1:]
  ids = [i for i in range(1, 92) if i not in skipped] + stuff
  value["categories"] = [{"id": i, "name": f"c{i}"} for i in reversed(ids)]
  add(
    value,
    tmp_path,
    "all",
    [[(i, 1, 0) for i in range(133)]],
    [{"id": 256 + i, "category_id": c} for i, c in enumerate(ids)],
  )
  assert run(value)[0] == 0
  records, image_set = read_back()
  assert image_set.fields["mask"]["classes"][-1] == "c200"
  mask = decode8(records["all"]["mask/png"][0])
  np.testing.assert_array_equal(mask, [range(133)])


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_images_that_are_not_rgb(
  run, read_back, decode8, value, tmp_path, mode
):
  add(value, tmp_path, "a", mode=mode)
  assert run(value)[0] == 0
  mask = decode8(read_back()[0]["a"]["mask/png"][0])
  np.testing.assert_array_equal(mask, CLASSES)


def test_what_does_not_fit_is_rejected(run, read_back, value, tmp_path):
  add(value, tmp_path, "unlisted", [[(5, 0, 0), (5, 0, 1), (4, 0, 0)]])
  add(value, tmp_path, "grey", [[0, 5, 5]])
  segments = [{"id": 5, "category_id": 99}]
  add(value, tmp_path, "category", [[TRAIN]], segments)
  add(value, tmp_path, "missing")
  (tmp_path / "panoptic_val2017/missing.png").unlink()
  add(value, tmp_path, "gone")
  (tmp_path / "val2017/gone.jpg").unlink()
  exif = Image.Exif()
  exif[0x0112] = 2
  add(value, tmp_path, "turned", exif=exif)
  add(value, tmp_path, "alone")
  value["annotations"].pop()
  status, _, err = run(value, "--max-rejected", 0.9)
  assert status == 0
  assert "  unlisted: unlisted.png has ids [4, 65541] of no class" in err
  assert "  grey: grey.png is uint8 (1, 3); expected an RGB PNG" in err
  assert "  category: has segments of categories [99], not listed" in err
  assert "  missing: missing.png cannot be decoded" in err
  assert "  gone: there is no file" in err
  assert "  turned: its EXIF or XMP asks for a turn (orientation 2)" in err
  assert "  alone: has no annotation" in err
  assert set(read_back()[0]) == {"000000000139"}


def test_images_of_void_only(run, read_back, decode8, value, tmp_path):
  add(value, tmp_path, "void", [[VOID] * 3], [])
  assert run(value)[0] == 0
  mask = decode8(read_back()[0]["void"]["mask/png"][0])
  np.testing.assert_array_equal(mask, [[255] * 3])


def test_masks_of_no_image(run, value):
  value["annotations"].append(value["annotations"][0] | {"image_id": 99})
  status, _, err = run(value)
  assert status == 2
  assert "1 of 2 annotations of" in err
  assert "refer to no image, such as image_id 99" in err
  status, out, _ = run(value, "--max-rejected", 0.5)
  assert status == 0
  assert "warning: 1 of 2 annotations of" in out


def test_ids_of_other_types(run, read_back, decode8, value):
  """Cityscapes has text; others write numbers as text."""
  for image, annotation in (("frankfurt_0", "frankfurt_0"), ("01", 1)):
    value["images"][0]["id"] = image
    value["annotations"][0]["image_id"] = annotation
    value["categories"] = [c | {"id": str(c["id"])} for c in CATEGORIES]
    assert run(value, "--overwrite")[0] == 0
    mask = decode8(read_back()[0]["000000000139"]["mask/png"][0])
    np.testing.assert_array_equal(mask, CLASSES)


def change(value, **fields):
  """The value with fields of its only image or annotation replaced."""
  for name in ("images", "annotations"):
    if name in fields:
      fields[name] = [value[name][0] | fields[name]]
  return value | fields


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"images": {"file_name": "../a.jpg"}}, "'../a.jpg' is no path below"),
    ({"images": {"file_name": 7}}, "7 is no path below"),
    ({"images": {"id": None}}, "not in COCO's panoptic format"),
    ({"annotations": {"file_name": "/a.png"}}, "'/a.png' is no path below"),
    ({"annotations": {"segments_info": None}}, "panoptic format"),
    ({"annotations": {"segments_info": [{"id": 1}]}}, "'category_id'"),
    ({"categories": []}, "'categories': it is empty"),
    ({"categories": CATEGORIES * 2}, "'categories': the id 200 comes 2 times"),
    ({"categories": [{"id": 1.5, "name": "a"}]}, "1.5 is no id"),
    ({"categories": [{"id": 1, "name": 7}]}, "panoptic format"),
    (
      {"categories": [{"id": i, "name": str(i)} for i in range(256)]},
      "a map holds at most 255",
    ),
  ],
)
def test_wrong_files(run, value, fields, message):
  status, _, err = run(change(value, **fields))
  assert status == 2
  assert message in err


@pytest.mark.parametrize(
  ("text", "message"),
  [("{", "not valid JSON"), ("[]", "panoptic format"), ("{}", "'images'")],
)
def test_files_of_another_format(run, value, text, message):
  status, _, err = run(text)
  assert status == 2
  assert message in err


def test_two_masks_of_an_image(run, value):
  value["annotations"] *= 2
  status, _, err = run(value)
  assert status == 2
  assert "'annotations': the id 1 comes 2 times" in err


def test_keys_that_come_twice(run, value):
  value["images"].append({"id": 2, "file_name": "000000000139.png"})
  status, _, err = run(value)
  assert status == 2
  assert "two images with key '000000000139'" in err


def test_missing_directories(run, value, tmp_path):
  (tmp_path / "panoptic_val2017").rename(tmp_path / "elsewhere")
  status, _, err = run(value)
  assert status == 2
  assert "panoptic_val2017 is no directory" in err
