import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from must_jax.importers import label_studio
from must_jax.storage.image_files import Rejected

SIZE = (40, 100)  # height and width
LENGTHS = (3, 4, 8, 16)  # bits


def encode(values, width=8):
  """Packs as the editor does: runs of one value, and values as they are."""
  text = f"{len(values):032b}{width - 1:05b}"
  text += "".join(f"{n - 1:04b}" for n in LENGTHS)

  def length(n):
    which = next(i for i, bits in enumerate(LENGTHS) if n - 1 < 1 << bits)
    return f"{which:02b}{n - 1:0{LENGTHS[which]}b}"

  def literal(values):
    if not values:
      return ""
    bits = "".join(f"{v:0{width}b}" for v in values)
    return f"0{length(len(values))}{bits}"

  pending = []
  for value, run in itertools.groupby(values):
    n = len(list(run))
    if n == 1:
      pending.append(value)
      continue
    text += literal(pending) + f"1{length(n)}{value:0{width}b}"
    pending = []
  text += literal(pending)
  text += "0" * (-len(text) % 8)
  return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


@given(
  st.lists(
    st.tuples(st.integers(0, 255), st.sampled_from([1, 1, 1, 2, 8, 9, 300])),
    min_size=1,
    max_size=12,
  )
)
def test_rle_is_unpacked(runs):
  values = [v for v, n in runs for _ in range(n)]
  found = label_studio.decode_rle(
    np.array(encode(values), np.uint8), len(values)
  )
  assert found.tolist() == values


def test_rle_by_hand():
  # 32 bits: 4 values; 5: 8 bits wide; lengths of 1 bit each; then a run of two
  # times 255 and the values 1 and 2.
  text = f"{4:032b}" + "00111" + "0000" * 4
  text += "1" + "00" + "1" + "11111111" + "0" + "00" + "1"
  text += "00000001" + "00000010"
  text += "0" * (-len(text) % 8)
  data = [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]
  found = label_studio.decode_rle(np.array(data, np.uint8), 4)
  assert found.tolist() == [255, 255, 1, 2]


@pytest.mark.parametrize("length", [0, 3, 8, 10, 11])
def test_broken_rle_is_rejected(length):
  data = np.array(encode([7] * 20 + [1, 2, 3]), np.uint8)
  with pytest.raises(Rejected, match="ends too early"):
    label_studio.decode_rle(data[:length], 23)


def test_rle_of_another_size_is_rejected():
  data = encode([7] * 20)
  with pytest.raises(Rejected, match="of 20 values of 8 bits; expected the 16"):
    label_studio.decode_rle(np.array(data, np.uint8), 16)
  data = encode([7] * 16, width=9)
  with pytest.raises(Rejected, match="of 16 values of 9 bits"):
    label_studio.decode_rle(np.array(data, np.uint8), 16)
  # The head says 16, a run of them is longer.
  long = f"{16:032b}"
  data = [int(long[i : i + 8], 2) for i in range(0, 32, 8)] + data[4:]
  data = data[:4] + encode([7] * 20)[4:]
  with pytest.raises(Rejected, match="more than 16 values"):
    label_studio.decode_rle(np.array(data, np.uint8), 16)


def region(kind, names, size=SIZE, number="r1", control="tool", **value):
  return {
    "id": number,
    "type": kind,
    "from_name": control,
    "to_name": "image",
    "original_height": size[0],
    "original_width": size[1],
    "image_rotation": 0,
    "value": {**value, kind: names},
  }


def rectangle(names=("cat",), x=10, y=25, width=20, height=50, **more):
  return region(
    "rectanglelabels", names, x=x, y=y, width=width, height=height, **more
  )


def choice(*names, control="weather"):
  return {
    "id": "c",
    "type": "choices",
    "from_name": control,
    "value": {"choices": list(names)},
  }


def task(place, *results, **more):
  return {
    "id": 1,
    "data": {"image": place},
    "annotations": [{"id": 1, "result": list(results), **more}],
    "predictions": [],
  }


@pytest.fixture
def run_label_studio(run_import, tmp_path, picture):
  """Imports images of 40 x 100 (height x width)."""

  def run(*tasks, words=(), **options):
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    return run_import(
      *("label_studio", "--annotations", tmp_path / "export.json"),
      *("--images", tmp_path / "images", *words),
      **options,
    )

  for name in ("a.jpg", "b.jpg"):
    picture(tmp_path / "images" / name, height=40, width=100)
  return run


def boxes_of(record):
  return np.reshape(record["objects/boxes"], (-1, 4)) * [40, 100, 40, 100]


def test_rectangles(run_label_studio, read_back):
  status, out, err = run_label_studio(
    task("a.jpg", rectangle(), rectangle(["dog", "cat"], 50, 0, 50, 100)),
    task("b.jpg"),
  )
  assert (status, err) == (0, "")
  assert "objects: 3," in out
  records, image_set = read_back()
  assert image_set.fields == {
    "objects": {"kind": "Boxes", "classes": ["cat", "dog"]}
  }
  assert records["a"]["objects/classes"] == [0, 1, 0]
  np.testing.assert_allclose(
    boxes_of(records["a"]),
    [[10, 10, 30, 30], [0, 50, 40, 100], [0, 50, 40, 100]],
    atol=1e-4,
  )
  # It was looked at and has nothing.
  assert records["b"]["objects/present"] == [1]


def test_turned_rectangles_have_a_box_around_them(run_label_studio, read_back):
  # 20 x 10 pixels about their top left corner at x 50, y 20.
  results = [
    rectangle(x=50, y=50, width=20, height=25, rotation=angle)
    for angle in (90, 30, 359)
  ]
  assert run_label_studio(task("a.jpg", *results))[0] == 0
  boxes = boxes_of(read_back()[0]["a"])
  np.testing.assert_allclose(boxes[0], [20, 40, 40, 50], atol=1e-4)
  s, c = 0.5, 3**0.5 / 2
  np.testing.assert_allclose(
    boxes[1], [20, 50 - 10 * s, 20 + 20 * s + 10 * c, 50 + 20 * c], atol=1e-4
  )
  s, c = np.sin(np.pi / 180), np.cos(np.pi / 180)
  np.testing.assert_allclose(
    boxes[2], [20 - 20 * s, 50, 20 + 10 * c, 50 + 20 * c + 10 * s], atol=1e-4
  )


def test_polygons_brushes_and_ellipses(run_label_studio, read_back, decode8):
  rgba = np.zeros((*SIZE, 4), np.uint8)
  rgba[5:15, 20:40] = 255, 0, 0, 255
  rgba[20, 21] = 9, 9, 9, 0  # transparent
  rgba[30, 31] = 0, 0, 0, 1
  status, _, err = run_label_studio(
    task(
      "a.jpg",
      region(
        "polygonlabels",
        ["dog"],
        points=[[10, 25], [30, 25], [30, 75], [10, 75]],
      ),
      region(
        "brushlabels",
        ["cat"],
        format="rle",
        rle=encode(rgba.ravel().tolist()),
      ),
      region("ellipselabels", ["dog"], x=70, y=50, radiusX=10, radiusY=12.5),
    )
  )
  assert (status, err) == (0, "")
  records, image_set = read_back()
  assert image_set.fields["mask"]["classes"] == ["background", "cat", "dog"]
  expected = np.zeros(SIZE, np.uint8)
  expected[10:30, 10:30] = 2
  expected[5:15, 20:40] = 1  # later, so on top
  expected[30, 31] = 1
  y, x = np.mgrid[:40, :100] + 0.5
  expected[((x - 70) / 10) ** 2 + ((y - 20) / 5) ** 2 < 1] = 2
  found = decode8(records["a"]["mask/png"][0])
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_allclose(
    boxes_of(records["a"])[:2], [[10, 10, 30, 30], [5, 20, 31, 40]], atol=1e-4
  )


def test_regions_labelled_by_another_control(run_label_studio, read_back):
  """<Rectangle> with <Labels>: the region comes twice, with one id."""
  labelled = region("labels", ["cat"], x=10, y=25, width=20, height=50)
  bare = {**labelled, "type": "rectangle"}
  lonely = {**bare, "id": "other"}
  status, out, _ = run_label_studio(task("a.jpg", bare, labelled, lonely))
  assert status == 0
  assert "results left out: {'rectangle': 1}" in out
  assert read_back()[0]["a"]["objects/classes"] == [0]


def test_choices(run_label_studio, read_back):
  status, out, err = run_label_studio(
    task("a.jpg", choice("sunny", "day"), rectangle()), task("b.jpg")
  )
  assert (status, err) == (0, "")
  assert "images with classes: 1, without: 1" in out
  records, image_set = read_back()
  assert image_set.fields["label"] == {
    "kind": "ClassVector",
    "classes": ["day", "sunny"],
  }
  assert records["a"]["label/classes"] == [0, 1]
  assert records["a"]["objects/classes"] == [0]
  assert "label/present" not in records["b"]


def test_choices_that_are_named_and_missing(run_label_studio):
  words = ("--fields", "objects", "label")
  status, _, err = run_label_studio(task("a.jpg", rectangle()), words=words)
  assert status == 2
  assert "lists no classes of images for the field 'label'" in err


def test_controls(run_label_studio, read_back):
  results = [choice("sunny"), choice("blurred", control="quality")]
  words = ("--from-name", "quality")
  assert run_label_studio(task("a.jpg", *results), words=words)[0] == 0
  assert read_back()[1].fields["label"]["classes"] == ["blurred"]
  words = ("--from-name", "qualty")
  status, _, err = run_label_studio(task("a.jpg", *results), words=words)
  assert status == 2
  assert "--from-name ['qualty']; it has ['quality', 'weather']" in err


def annotation(name, **more):
  return {"result": [rectangle([name])], **more}


@pytest.mark.parametrize(
  ("annotations", "taken"),
  [
    ([annotation("x", was_cancelled=True), annotation("y")], "y"),
    ([annotation("x"), annotation("y")], "y"),
    (
      [
        annotation("x", updated_at="2024-02-01T10:00:00Z"),
        annotation("y", updated_at="2024-01-01T10:00:00Z"),
      ],
      "x",
    ),
    (
      [
        annotation("x", ground_truth=True, updated_at="2023-01-01T10:00:00Z"),
        annotation("y", updated_at="2024-01-01T10:00:00Z"),
      ],
      "x",
    ),
  ],
)
def test_one_annotation_of_a_task_counts(
  run_label_studio, read_back, annotations, taken
):
  one = {**task("a.jpg"), "annotations": annotations}
  status, out, _ = run_label_studio(one)
  assert status == 0
  cancelled = sum("was_cancelled" in a for a in annotations)
  assert ("tasks with several annotations" in out) == (not cancelled)
  assert ("annotations that were skipped, left out: 1" in out) == bool(
    cancelled
  )
  assert read_back()[1].fields["objects"]["classes"] == [taken]


def test_tasks_that_nobody_annotated_are_left_out(run_label_studio, read_back):
  guessed = {
    **task("b.jpg"),
    "annotations": [],
    "predictions": [{"result": [rectangle(["wrong"])], "score": 0.9}],
  }
  status, out, _ = run_label_studio(task("a.jpg", rectangle()), guessed)
  assert status == 0
  assert "tasks without an annotation, left out: 1" in out
  assert "predictions, left out: 1" in out
  assert "images that are not annotated: 1" in out
  records, image_set = read_back()
  assert set(records) == {"a"}
  assert image_set.fields["objects"]["classes"] == ["cat"]
  status, _, err = run_label_studio(guessed, out="none")
  assert status == 2
  assert "no annotation of one that was not skipped" in err


@pytest.mark.parametrize(
  ("place", "key"),
  [
    ("/data/upload/3/1b2c3d4e-a.jpg", "a"),
    ("/data/local-files/?d=sets/photos/a.jpg", "a"),
    ("s3://bucket/photos/a.jpg", "a"),
    ("https://example.com/x/a.jpg?X-Amz-Signature=1", "a"),
    ("/data/local-files/?d=in%20folder/c.jpg", "in folder/c"),
    ("gs://bucket/more/in%20folder/c.jpg", "in folder/c"),
    ("in folder\\c.jpg", "in folder/c"),
  ],
)
def test_images_are_found_by_the_end_of_their_place(
  run_label_studio, read_back, tmp_path, picture, place, key
):
  picture(tmp_path / "images/in folder/c.jpg", height=40, width=100)
  assert run_label_studio(task(place, rectangle()))[0] == 0
  assert set(read_back()[0]) == {key}


def test_classes_of_files(run_label_studio, read_back, tmp_path):
  (tmp_path / "classes.txt").write_text("dog\ncat\n")
  (tmp_path / "choices.txt").write_text("sunny\nrainy\n")
  words = ("--classes", tmp_path / "classes.txt")
  words += ("--choices", tmp_path / "choices.txt")
  results = choice("rainy"), rectangle()
  assert run_label_studio(task("a.jpg", *results), words=words)[0] == 0
  record = read_back()[0]["a"]
  assert (record["objects/classes"], record["label/classes"]) == ([1], [1])
  results = choice("foggy"), rectangle(["cow"])
  status, _, err = run_label_studio(
    task("a.jpg", *results), words=words, out="bad"
  )
  assert status == 1
  assert "class 'cow' is none of ['cat', 'dog']" in err
  assert "class 'foggy' is none of ['rainy', 'sunny']" in err


@pytest.mark.parametrize(
  ("bad", "reason"),
  [
    (rectangle(width=0), "50.0 % high and 0.0 % wide"),
    (rectangle(x="a"), "'x': 'a'"),
    (rectangle(x=101), "lies outside the image"),
    (rectangle(size=(100, 40)), "the JSON gives 100 x 40"),
    (rectangle(size=(None, 100)), "'original_height': None"),
    ({**rectangle(), "image_rotation": 90}, "turned by 90 degrees"),
    (region("polygonlabels", ["cat"], points=[[1, 1], [2, 2]]), "2 corners"),
    (region("polygonlabels", ["cat"], points=[[1, 1], [2]]), "no pairs"),
    (region("polygonlabels", ["cat"], points=None), "no pairs"),
    (region("brushlabels", ["cat"], rle=[1, 2]), "ends too early"),
    (region("brushlabels", ["cat"], rle="x"), "no list of bytes"),
    (region("brushlabels", ["cat"], rle=[300]), "no list of bytes"),
    (region("brushlabels", ["cat"], rle=[], format="png"), "format 'png'"),
    (
      region("brushlabels", ["cat"], rle=encode([0] * 16000)),
      "has no pixel",
    ),
    (
      region("brushlabels", ["cat"], rle=encode([9] * 400)),
      "an rle of 400 values of 8 bits; expected the 16000",
    ),
  ],
)
def test_bad_regions_are_rejected(run_label_studio, read_back, bad, reason):
  one = task("a.jpg", rectangle(), {**bad, "id": "bad"})
  status, _, err = run_label_studio(one)
  assert status == 1
  assert f"  a: {bad['type']} bad: " in err
  assert reason in err
  assert run_label_studio(one, words=("--max-rejected", 1))[0] == 0
  assert read_back()[0]["a"]["objects/classes"] == [0]


@pytest.mark.parametrize(
  ("tasks", "message"),
  [
    ([], "has 0 tasks and no annotation"),
    ([{"id": 1, "image": "a.jpg", "label": []}], "not as JSON-MIN"),
    ([{**task("a.jpg"), "annotations": [{"result": [3]}]}], "is no list of"),
    ([task("a.jpg")], "has no annotation that can be imported"),
    ([task("a.jpg", rectangle())] * 2, "has two tasks with image"),
    ([task("zzz.jpg", rectangle())], "has none of the 1 images"),
    ([task("../a.jpg", rectangle())], "--image-key"),
    (
      [{**task("a.jpg", rectangle()), "data": {"l": "a.jpg", "r": "b.jpg"}}],
      "of which ['l', 'r'] name images; expected one, or --image-key",
    ),
  ],
)
def test_bad_files(run_label_studio, tasks, message):
  status, _, err = run_label_studio(*tasks)
  assert status == 2
  assert message in err


def test_image_key(run_label_studio, read_back):
  one = {**task("a.jpg", rectangle()), "data": {"l": "a.jpg", "r": "b.jpg"}}
  assert run_label_studio(one, words=("--image-key", "r"))[0] == 0
  assert set(read_back()[0]) == {"b"}
