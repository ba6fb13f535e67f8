import json

import numpy as np
import pytest
from PIL import Image

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


@pytest.fixture
def dataset(tmp_path, picture):
  """Two images of 40 x 100 (height x width), without annotations yet."""
  for name in ("a.jpg", "sub/b.jpg"):
    picture(tmp_path / "images" / name, height=40, width=100)
  picture(tmp_path / "images/unlisted.jpg")
  return {
    "images": [
      {"id": 1, "file_name": "a.jpg", "height": 40, "width": 100},
      {"id": 2, "file_name": "sub/b.jpg", "height": 40, "width": 100},
    ],
    "annotations": [],
    "categories": CATEGORIES,
  }


@pytest.fixture
def run_coco(run_import, tmp_path):
  def run(value, *words):
    text = value if isinstance(value, str) else json.dumps(value)
    (tmp_path / "coco.json").write_text(text)
    return run_import(
      *("coco", "--annotations", tmp_path / "coco.json"),
      *("--images", tmp_path / "images", *words),
    )

  return run


def annotate(dataset, *bboxes, **more):
  for bbox in bboxes:
    number = len(dataset["annotations"])
    entry = {"id": number, "image_id": 1, "category_id": 3, "bbox": bbox}
    dataset["annotations"].append(entry | more)


def test_objects(run_coco, read_back, dataset, tmp_path):
  annotate(dataset, [10, 20, 30, 10])
  annotate(dataset, [0.5, 0, 99.5, 40], category_id=7, iscrowd=1)
  annotate(dataset, [50, 10, 50, 30], category_id=7, iscrowd=0, ignore=1)
  status, out, err = run_coco(dataset)
  assert (status, err) == (0, "")
  assert "objects: 3, of these to be ignored: 2, clipped to the image: 0" in out
  records, image_set = read_back()
  assert image_set.fields == {
    "objects": {"kind": "Boxes", "classes": ["dog", "cat"]}
  }
  assert set(records) == {"a", "sub/b"}
  record = records["a"]
  assert record["image"] == [(tmp_path / "images/a.jpg").read_bytes()]
  assert record["objects/classes"] == [1, 0, 0]
  assert record["objects/ignore"] == [0, 1, 1]
  np.testing.assert_allclose(
    np.reshape(record["objects/boxes"], (-1, 4)),
    [[0.5, 0.1, 0.75, 0.4], [0, 0.005, 1, 1], [0.25, 0.5, 1, 1]],
    atol=1e-6,
  )
  # An image without annotations is known to have no objects.
  assert records["sub/b"]["objects/present"] == [1]
  assert records["sub/b"]["objects/boxes"] == []


@pytest.mark.parametrize(
  ("bbox", "expected", "clipped"),
  [
    ([90, 30, 10.8, 10.9], [0.75, 0.9, 1, 1], 0),  # rounding
    ([90, 30, 50, 10], [0.75, 0.9, 1, 1], 1),
    ([-20, -8, 30, 18], [0, 0, 0.25, 0.1], 1),
  ],
)
def test_boxes_are_clipped_and_counted(
  run_coco, read_back, dataset, bbox, expected, clipped
):
  annotate(dataset, bbox)
  status, out, err = run_coco(dataset)
  assert (status, err) == (0, "")
  assert f"clipped to the image: {clipped}\n" in out
  boxes = read_back()[0]["a"]["objects/boxes"]
  np.testing.assert_allclose(boxes, expected, atol=1e-6)


@pytest.mark.parametrize(
  ("entry", "reason"),
  [
    ({"bbox": [10, 10, 0, 5]}, "has no area"),
    ({"bbox": [10, 10, 5, -5]}, "has no area"),
    ({"bbox": [101, 10, 5, 5]}, "lies outside the image"),
    ({"bbox": [10, -9, 5, 9]}, "lies outside the image"),
    ({"bbox": [1, 2, 3]}, "expected [x, y, width, height]"),
    ({"bbox": None}, "expected [x, y, width, height]"),
    ({"bbox": [1, 2, 3, float("nan")]}, "not finite"),
    (
      {"bbox": [1, 2, 3, 4], "category_id": 9},
      "category 9 is none of the 2 listed, such as 7, 3",
    ),
  ],
)
def test_bad_objects_are_rejected(
  run_coco, read_back, dataset, index_of, entry, reason
):
  annotate(dataset, [10, 20, 30, 10])
  annotate(dataset, [0, 0, 1, 1], **entry)
  status, _, err = run_coco(dataset)
  assert status == 1  # one of two images
  assert "  a: annotation 1: " in err
  assert reason in err
  status, out, err = run_coco(dataset, "--max-rejected", 0.5)
  assert status == 0
  assert "2 of 2 images" in out  # the image is kept, without the object
  assert read_back()[0]["a"]["objects/classes"] == [1]
  (rejected,) = index_of()["splits"]["train"]["rejected"]
  assert rejected["key"] == "a"
  assert rejected["reason"].startswith("annotation 1: ")
  assert reason in rejected["reason"]


def test_bad_images_are_rejected(run_coco, read_back, dataset, tmp_path):
  dataset["images"].append({"id": 3, "file_name": "missing.jpg"})
  path = tmp_path / "images/a.jpg"
  path.write_bytes(path.read_bytes()[:-100])
  dataset["images"][1]["width"] = 101
  status, _, err = run_coco(dataset, "--max-rejected", 0.9)
  assert status == 1
  assert "  a: cannot be decoded" in err
  assert "  missing: there is no file" in err
  assert "  sub/b: the JSON gives 40 x 101" in err


def test_boxes_of_turned_images(run_coco, read_back, dataset, tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  path = tmp_path / "images/a.jpg"
  Image.new("RGB", (100, 40)).save(path, exif=exif)
  for height, width, box in (
    (100, 40, [10, 20, 30, 10]),  # of the picture as viewers show it
    (40, 100, [20, 0, 10, 30]),  # of the file: its bottom is then on the left
  ):
    dataset["images"][0] |= {"height": height, "width": width}
    dataset["annotations"].clear()
    annotate(dataset, box)
    status, out, _ = run_coco(dataset, "--overwrite")
    assert status == 0
    assert ("clipped to the image: 0, turned with it: 1\n" in out) == (
      height == 40
    )
    record = read_back()[0]["a"]
    assert (record["height"], record["width"]) == ([100], [40])
    np.testing.assert_allclose(
      record["objects/boxes"], [0.2, 0.25, 0.3, 1], atol=1e-6
    )


@pytest.mark.parametrize(
  ("listed", "referred"),
  [
    ((1, 2), ("1", "2")),
    (("1", "2"), (1, 2)),
    (("1", 2), (1.0, "2")),
    (("000001", "000002"), (1, "2")),
    (("a", "b"), ("a", "b ")),
    (("1", "01"), (1, "01")),
  ],
)
def test_ids_of_other_types(run_coco, read_back, dataset, listed, referred):
  """Boxes find their images, and categories their classes, by value."""
  for entry, number in zip(dataset["images"], listed, strict=True):
    entry["id"] = number
  dataset["categories"] = [
    {"id": number, "name": name}
    for number, name in zip(listed, ("dog", "cat"), strict=True)
  ]
  for i, number in enumerate(referred):
    box = [10 * i, 0, 10, 40]
    annotate(dataset, box, image_id=number, category_id=number)
  status, _, err = run_coco(dataset)
  assert (status, err) == (0, "")
  for i, record in enumerate((read_back()[0]["a"], read_back()[0]["sub/b"])):
    assert record["objects/classes"] == [i]
    np.testing.assert_allclose(
      record["objects/boxes"], [0, 0.1 * i, 1, 0.1 * (i + 1)], atol=1e-6
    )


def test_scores_that_are_left_are_told(run_coco, dataset):
  annotate(dataset, [10, 20, 30, 10], [0, 0, 30, 10], score=0.5)
  annotate(dataset, [20, 20, 30, 10])
  status, out, _ = run_coco(dataset)
  assert status == 0 and "scores, which are not read: 2" in out


def test_annotations_of_no_image(run_coco, dataset):
  """As of ids that are one off: all but one would go to other images."""
  for number in (2, 3):
    annotate(dataset, [1, 2, 3, 4], image_id=number)
  status, _, err = run_coco(dataset)
  assert status == 2
  assert "1 of 2 annotations of" in err
  assert "refer to no image, such as image_id 3" in err
  status, out, _ = run_coco(dataset, "--max-rejected", 0.5)
  assert status == 0
  assert "warning: 1 of 2 annotations of" in out


def test_file_names_in_another_form_of_unicode(
  run_coco, read_back, dataset, picture, tmp_path
):
  picture(tmp_path / "images/cafe\u0301.jpg", height=40, width=100)
  dataset["images"][0]["file_name"] = "caf\u00e9.jpg"
  annotate(dataset, [10, 20, 30, 10])
  assert run_coco(dataset)[0] == 0
  assert read_back()[0]["caf\u00e9"]["objects/classes"] == [1]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("{", "not valid JSON"),
    ("[]", "no list 'images'"),
    ({"annotations": None}, "no list 'annotations'"),
    ({"categories": []}, "'categories': it is empty"),
    ({"categories": CATEGORIES * 2}, "the id 7 comes 2 times"),
    ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "['a'"),
    ({"images": []}, "'images': it is empty"),
    ({"images": [{"id": 1}]}, "lacks 'file_name', a text"),
    (
      {"images": [{"id": i, "file_name": f"{i}"} for i in (1, "1")]},
      "the id 1 comes 2 times",
    ),
    ({"annotations": [{"image_id": 0.5, "category_id": 7}]}, "'image_id', a w"),
    ({"annotations": [{"image_id": 1, "category_id": True}]}, "'category_id'"),
    ({"images": [{"id": 1, "file_name": "../a.jpg"}]}, "below --images"),
    ({"images": [{"id": 1, "file_name": "/a.jpg"}]}, "below --images"),
    (
      {
        "images": [
          {"id": 1, "file_name": "a.jpg"},
          {"id": 2, "file_name": "a.png"},
        ]
      },
      "two images with key 'a'",
    ),
    ({"annotations": [{"image_id": 1}]}, "lacks 'category_id'"),
    ({"annotations": [7]}, "lacks 'image_id'"),
  ],
)
def test_wrong_files(run_coco, dataset, tmp_path, change, message):
  value = change if isinstance(change, str) else dataset | change
  status, _, err = run_coco(value)
  assert status == 2
  assert err.startswith("error: ")
  assert message in err
  assert not list(tmp_path.glob("out/*"))


def test_missing_files(run_import, tmp_path, dataset):
  words = ("coco", "--annotations", tmp_path / "none.json", "--images")
  status, _, err = run_import(*words, tmp_path / "images")
  assert status == 2
  assert "none.json cannot be read" in err
  status, _, err = run_import(*words, tmp_path / "none")
  assert status == 2
  assert "no directory" in err


@pytest.mark.parametrize(("count", "folder"), [(0, "images/v1/"), (2, "")])
def test_folders_of_file_names(
  run_coco, read_back, dataset, picture, tmp_path, count, folder
):
  name = "patch8/objects365_v1_00420917.jpg"
  picture(tmp_path / f"images/{folder}{name}", height=40, width=100)
  file_name = f"images/v1/{name}"
  dataset["images"] = [{"id": 1, "file_name": file_name}]
  annotate(dataset, [10, 20, 30, 10], isfake=0, isreflected=1, iscrowd=0)
  annotate(dataset, [10, 20, 30, 10], isfake=1, isreflected=0, iscrowd=1)
  assert run_coco(dataset, "--strip-folders", count)[0] == 0
  (key,), (record,) = zip(*read_back()[0].items(), strict=True)
  assert key == f"{folder}patch8/objects365_v1_00420917"
  assert record["objects/ignore"] == [0, 1]


@pytest.mark.parametrize(
  ("count", "message"), [(1, "after --strip-folders 1"), (-1, "is -1")]
)
def test_bad_numbers_of_folders(run_coco, dataset, count, message):
  status, _, err = run_coco(dataset, "--strip-folders", count)
  assert status == 2
  assert message in err


@pytest.mark.parametrize(
  "size", [(-1, -1), (0, 0), (None, None), ("40", "100"), (40.0, 100.0), ()]
)
def test_sizes_that_are_none_or_numbers(run_coco, read_back, dataset, size):
  image = dataset["images"][0]
  image |= dict(zip(("height", "width"), size, strict=False))
  if not size:
    del image["height"], image["width"]
  annotate(dataset, [10, 20, 30, 10])
  status, _, err = run_coco(dataset)
  assert (status, err) == (0, "")
  boxes = read_back()[0]["a"]["objects/boxes"]
  np.testing.assert_allclose(boxes, [0.5, 0.1, 0.75, 0.4], atol=1e-6)


@pytest.mark.parametrize("size", [(100, 40), (40.4, 100)])
def test_sizes_of_another_image(run_coco, dataset, size):
  dataset["images"][0] |= {"height": size[0], "width": size[1]}
  status, _, err = run_coco(dataset)
  assert status == 1
  assert f"the JSON gives {size[0]:g} x {size[1]:g} (height x width)" in err


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("sizes", [True, False])
def test_turns_that_no_size_tells(
  run_coco, read_back, dataset, tmp_path, number, sizes
):
  exif = Image.Exif()
  exif[0x0112] = number
  Image.new("RGB", (100, 40)).save(tmp_path / "images/a.jpg", exif=exif)
  if not sizes:
    del dataset["images"][0]["height"]
  assert run_coco(dataset)[0] == 0  # nothing turns
  annotate(dataset, [10, 20, 30, 10])
  status, _, err = run_coco(dataset, "--overwrite")
  assert status == 1
  assert "  a: its EXIF or XMP asks for a turn" in err
  assert "--labels-of-turned upright or stored" in err
  y, x, turned_y, turned_x = [0.5, 0.75], [0.1, 0.4], [0.25, 0.5], [0.6, 0.9]
  for policy in ("upright", "stored"):
    words = ("--labels-of-turned", policy, "--overwrite")
    status, out, _ = run_coco(dataset, *words)
    assert status == 0
    assert "images turned as EXIF or XMP asks: 1" in out
    turn = policy == "stored"
    (y0, y1) = turned_y if turn and number in (3, 4) else y
    (x0, x1) = turned_x if turn and number in (2, 3) else x
    boxes = read_back()[0]["a"]["objects/boxes"]
    np.testing.assert_allclose(boxes, [y0, x0, y1, x1], atol=1e-6)


@pytest.mark.parametrize(
  ("given", "ignored"),
  [
    (("0", "false"), 0),
    ((False, None), 0),
    ((0.0, ""), 0),
    (("1", 0), 1),
    ((0, "True"), 1),
    ((1.0, 0), 1),
    (("maybe", 0), None),
    ((2, 0), None),
  ],
)
def test_flags(run_coco, read_back, dataset, given, ignored):
  annotate(dataset, [10, 20, 30, 10], iscrowd=given[0], ignore=given[1])
  status, _, err = run_coco(dataset)
  if ignored is None:
    assert status == 1
    assert f"annotation 0: iscrowd is {given[0]!r}; expected 0 or 1" in err
  else:
    assert (status, err) == (0, "")
    assert read_back()[0]["a"]["objects/ignore"] == [ignored]


def test_boxes_in_parts_of_the_image_are_rejected(run_coco, dataset):
  annotate(dataset, [0.1, 0.5, 0.3, 0.25])
  status, _, err = run_coco(dataset)
  assert status == 1
  assert "lies within the first pixel; expected pixels, not parts of the" in err


def test_boxes_that_look_like_corners_are_told(run_coco, dataset):
  annotate(dataset, [60, 20, 90, 35], [50, 10, 99, 40], [10, 5, 80, 20])
  status, out, _ = run_coco(dataset)
  assert status == 0
  assert (
    "warning: 2 of 3 boxes leave their image; 100% of these would not if the"
    " file had corners, x0 y0 x1 y1, in place of x y width height." in out
  )
  dataset["annotations"].clear()
  annotate(dataset, *[[10, 10, 20, 20]] * 20, [90, 20, 30, 10])
  status, out, _ = run_coco(dataset, "--overwrite")
  assert status == 0
  assert "leave their image" not in out
