import numpy as np
import pytest
from PIL import Image

YAML = """
path: {path}
train: images/train
val: images/val
test:
names:
  0: cat
  1: dog
"""
LINE = "0 0.5 0.5 0.2 0.4\n"


@pytest.fixture
def root(tmp_path):
  path = tmp_path / "pets"
  path.mkdir()
  (path / "data.yaml").write_text(YAML.format(path="."))
  return path


@pytest.fixture
def label(root, picture):
  """Writes an image of 40 x 100 (height x width) and its label file."""

  def write(name, text, images="images/train", **options):
    picture(root / images / f"{name}.jpg", height=40, width=100, **options)
    if text is not None:
      path = root / images.replace("images", "labels") / f"{name}.txt"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(text if isinstance(text, bytes) else text.encode())

  return write


@pytest.fixture
def run_yolo(run_import, root):
  def run(*words, **options):
    return run_import("yolo", "--data", root / "data.yaml", *words, **options)

  return run


def boxes_of(record):
  return np.reshape(record["objects/boxes"], (-1, 4))


def test_boxes_are_parts_of_width_and_height(run_yolo, read_back, label):
  label("a", "1 0.3 0.5 0.2 0.4\n\n0 0.5 0.5 1 1\n")
  label("b", "")
  status, out, err = run_yolo()
  assert (status, err) == (0, "")
  assert "objects: 2," in out
  records, image_set = read_back()
  assert image_set.fields == {
    "objects": {"kind": "Boxes", "classes": ["cat", "dog"]}
  }
  assert records["a"]["objects/classes"] == [1, 0]
  np.testing.assert_allclose(
    boxes_of(records["a"]), [[0.3, 0.2, 0.7, 0.4], [0, 0, 1, 1]], atol=1e-6
  )
  # An empty file says that there is nothing.
  assert records["b"]["objects/present"] == [1]
  assert records["b"]["objects/boxes"] == []


def test_missing_label_files_are_counted(run_yolo, read_back, label, root):
  label("a", LINE)
  label("b", None)
  label("sub/c", None)
  status, out, _ = run_yolo()
  assert status == 0
  assert "images without a label file, taken to have no objects: 2 of 3" in out
  assert read_back()[0]["sub/c"]["objects/present"] == [1]
  (root / "labels/train/a.txt").unlink()
  status, _, err = run_yolo("--overwrite")
  assert status == 2
  assert "None of 3 images has a label file" in err
  assert f"expected is {root}/labels/train/a.txt" in err


def test_label_files_without_an_image_are_counted(run_yolo, label, root):
  label("a", LINE)
  (root / "labels/train/gone.txt").write_text(LINE)
  status, out, _ = run_yolo()
  assert status == 0
  assert "label files of no image here: 1, such as gone.txt" in out


def test_polygons_give_boxes_and_masks(
  run_yolo, read_back, label, decode8, picture
):
  label(
    "a",
    "1 0.1 0.25 0.3 0.25 0.3 0.75 0.1 0.75\n"  # small, before the large one
    "0 0 0 0.5 0 0.5 1 0 1\n",
  )
  label("b", "0 0.7 0.5 0.2 0.5\n1 0.7 0.5 0.7 0.75 0.9 0.5\n")
  status, out, err = run_yolo()
  assert (status, err) == (0, "")
  assert "objects without an outline, unknown in masks: 1" in out
  records, image_set = read_back()
  assert image_set.fields["mask"]["classes"] == ["background", "cat", "dog"]
  np.testing.assert_allclose(
    boxes_of(records["a"]),
    [[0.25, 0.1, 0.75, 0.3], [0, 0, 1, 0.5]],
    atol=1e-6,
  )
  mask = decode8(records["a"]["mask/png"][0])
  expected = np.zeros((40, 100), np.uint8)
  expected[:, :50] = 1
  expected[10:30, 10:30] = 2
  np.testing.assert_array_equal(mask, expected)
  mask = decode8(records["b"]["mask/png"][0])
  # Of a box the outline is not known; that of the triangle is.
  assert set(np.unique(mask[10:30, 60:80])) == {2, 255}
  assert mask[10, 60] == 255
  assert mask[20, 70] == 2
  assert (mask[:10] == 0).all()


@pytest.mark.parametrize(
  ("words", "fields", "outside"),
  [
    (("--fields", "mask"), {"mask"}, 0),
    (("--fields", "objects"), {"objects"}, None),
    (("--outside", "unknown"), {"objects", "mask"}, 255),
  ],
)
def test_fields_and_background(
  run_yolo, read_back, label, decode8, words, fields, outside
):
  label("a", "1 0.1 0.25 0.3 0.25 0.3 0.75\n")
  assert run_yolo(*words)[0] == 0
  records, image_set = read_back()
  assert set(image_set.fields) == fields
  if outside is not None:
    mask = decode8(records["a"]["mask/png"][0])
    assert mask[0, 0] == outside
    names = image_set.fields["mask"]["classes"]
    assert names == (["background"] * (outside == 0)) + ["cat", "dog"]
    assert mask[12, 25] == names.index("dog")


def test_classes_may_have_their_own_background(
  run_yolo, read_back, label, root, decode8
):
  (root / "data.yaml").write_text(
    "train: images/train\nnames: [dog, background]\nnc: 2\n"
  )
  label("a", "0 0.1 0.25 0.3 0.25 0.3 0.75\n")
  assert run_yolo()[0] == 0
  records, image_set = read_back()
  assert image_set.fields["mask"]["classes"] == ["dog", "background"]
  mask = decode8(records["a"]["mask/png"][0])
  assert (mask[0, 0], mask[12, 25]) == (1, 0)


@pytest.mark.parametrize(
  ("bad", "reason"),
  [
    ("2 0.5 0.5 0.2 0.4", "class 2 of 2, which are 0 to 1"),
    ("-1 0.5 0.5 0.2 0.4", "class -1 of 2"),
    ("0.5 0.5 0.5 0.2 0.4", "class 0.5 of 2"),
    ("dog 0.5 0.5 0.2 0.4", "has words that are no numbers"),
    ("0,0.5,0.5,0.2,0.4", "has words that are no numbers"),
    ("0 50 20 20 16", "These look like pixels."),
    ("0 -0.1 0.5 0.2 0.4", "is not within 0 and 1"),
    ("0 nan 0.5 0.2 0.4", "is not within 0 and 1"),
    ("0 0.5 0.5 0 0.4", "has no area"),
    ("0 0.5 0.5 -0.2 0.4", "is not within 0 and 1"),
    ("0 0.5 0.5 0.2", "has 3 numbers after the class"),
    ("0 0.5 0.5 0.2 0.4 0.9", "has 5 numbers after the class"),  # a score
    ("0 0.1 0.1 0.2 0.2 0.3", "has 5 numbers after the class"),
    ("0 0.1 0.1 0.1 0.2 0.1 0.3", "has no area"),
    ("0 0.1 0.1 0.2 0.2 5 0.3", "These look like pixels."),
  ],
)
def test_bad_lines_are_rejected(run_yolo, read_back, label, bad, reason):
  label("a", f"{LINE}{bad}\n")
  status, _, err = run_yolo()
  assert status == 1
  assert "  a: line 2: " in err
  assert reason in err
  assert run_yolo("--max-rejected", 1, "--fields", "objects", "mask")[0] == 0
  record = read_back()[0]["a"]
  assert record["objects/classes"] == [0]
  assert "mask/png" not in record  # it would miss an object


def test_mended_label_files_are_read_again(run_yolo, read_back, label):
  label("a", LINE)
  label("b", "7 0.5 0.5 0.2 0.4\n")
  assert run_yolo()[0] == 1
  label("b", "1 0.5 0.5 0.2 0.4 \n")
  assert run_yolo()[0] == 0
  assert read_back()[0]["b"]["objects/classes"] == [1]


def test_boxes_that_are_rounded_over_the_edge_are_clipped(
  run_yolo, read_back, label
):
  label("a", "0 0.9999 0.5 0.2 0.4\n1 1.004 0.5 0.1 0.1\n")
  status, out, err = run_yolo()
  assert (status, err) == (0, "")
  assert "clipped to the image: 2" in out
  assert boxes_of(read_back()[0]["a"])[:, 3].tolist() == [1, 1]


def test_repeated_lines_count_once(run_yolo, read_back, label):
  label("a", LINE + "1 0.5 0.5 0.2 0.4\n" + LINE.replace(" ", "  "))
  status, out, _ = run_yolo()
  assert status == 0
  assert "lines that say the same again: 1" in out
  assert read_back()[0]["a"]["objects/classes"] == [0, 1]


@pytest.mark.parametrize(
  ("content", "reason"),
  [
    (b"\xff\xfe0", "is no UTF-8 text"),
    (b" " * (1 << 24) + b"0", "has more than 16777216 bytes"),
  ],
)
def test_bad_label_files_are_rejected(run_yolo, label, content, reason):
  label("a", LINE)
  label("b", content)
  status, _, err = run_yolo()
  assert status == 1
  assert f"  b: b.txt {reason}" in err


def test_files_of_other_systems(run_yolo, read_back, label):
  label("a", b"\xef\xbb\xbf" + LINE.replace("\n", "\r\n").encode())
  label("b", "0.0 0.5 0.5 0.2 4e-1")
  assert run_yolo()[0] == 0
  for record in read_back()[0].values():
    assert record["objects/classes"] == [0]


def test_keypoints_give_their_boxes(run_yolo, read_back, label, root):
  text = (root / "data.yaml").read_text()
  (root / "data.yaml").write_text(text + "kpt_shape: [2, 3]\n")
  label("a", "1 0.5 0.5 0.2 0.4 0.5 0.5 2 0 0 0\n")
  assert run_yolo()[0] == 0
  records, image_set = read_back()
  assert set(image_set.fields) == {"objects"}
  np.testing.assert_allclose(
    boxes_of(records["a"]), [[0.3, 0.4, 0.7, 0.6]], atol=1e-6
  )
  label("a", LINE)
  status, _, err = run_yolo("--overwrite")
  assert status == 1
  assert "expected 10 (x, y, width, height and 6 of keypoints)" in err


def test_labels_turn_with_their_image(run_yolo, read_back, label, decode8):
  exif = Image.Exif()
  exif[0x0112] = 6  # 40 x 100 as it is stored, 100 x 40 upright
  label("a", "0 0 0 1 0 1 0.5 0 0.5\n", exif=exif)
  status, _, err = run_yolo()
  assert status == 1
  assert "give --labels-of-turned" in err
  for given, expected in (
    ("upright", [0, 0, 0.5, 1]),
    # What is the upper half as it is stored is the right one upright.
    ("stored", [0, 0.5, 1, 1]),
  ):
    words = ("--labels-of-turned", given)
    assert run_yolo(*words, out=given)[0] == 0
    record = read_back(given)[0]["a"]
    assert (record["height"], record["width"]) == ([100], [40])
    np.testing.assert_allclose(boxes_of(record), [expected], atol=1e-6)
    mask = np.zeros((100, 40), np.uint8)
    y0, x0, y1, x1 = np.multiply(expected, [100, 40, 100, 40]).astype(int)
    mask[y0:y1, x0:x1] = 1
    np.testing.assert_array_equal(decode8(record["mask/png"][0]), mask)


def test_splits(run_yolo, read_back, label):
  label("a", LINE)
  label("b", LINE, images="images/val")
  for split in ("val", "validation"):
    assert run_yolo(split=split, out=split)[0] == 0
    assert set(read_back(split, split)[0]) == {"b"}
  status, _, err = run_yolo(split="test")
  assert status == 2
  assert "has no split 'test'; it has ['train', 'val']" in err


@pytest.mark.parametrize(
  "text",
  [
    "path: /content/elsewhere\ntrain: images/train",  # another machine's
    "path: pets\ntrain: images/train",  # Ultralytics' own: a name only
    "train: ../images/train",  # Roboflow
    "train: images/train/",
    "path:\ntrain: [images/train]",
  ],
)
def test_where_paths_begin(run_yolo, read_back, label, root, text):
  (root / "data.yaml").write_text(f"{text}\nnames: ['cat', 'dog']\n")
  label("a", LINE)
  assert run_yolo()[0] == 0
  assert set(read_back()[0]) == {"a"}


def test_root_is_where_paths_begin(run_yolo, read_back, label, root, tmp_path):
  label("a", LINE)
  (root / "data.yaml").write_text("train: images/train\nnames: [cat]\n")
  moved = root.rename(tmp_path / "moved")
  root.mkdir()
  (moved / "data.yaml").rename(root / "data.yaml")
  status, _, err = run_yolo()
  assert status == 2
  assert "is not there. Mend its `path`, or give --root" in err
  assert run_yolo("--root", moved)[0] == 0
  assert set(read_back()[0]) == {"a"}


def test_lists_of_images(run_yolo, read_back, label, root):
  for name in ("a", "b", "c", "d"):
    label(name, LINE)
  (root / "data.yaml").write_text("train: train.txt\nnames: [cat]\n")
  (root / "train.txt").write_text(
    "./images/train/a.jpg\nimages/train/b.jpg\n\n"
    f"{root}/images/train/c.jpg\r\nimages/train/b.jpg\nimages/train/no.jpg\n"
  )
  status, out, err = run_yolo("--max-rejected", 0.3)
  assert status == 0
  assert "images that data.yaml lists again: 1" in out
  assert "  images/train/no: there is no file" in err
  assert set(read_back()[0]) == {f"images/train/{n}" for n in "abc"}
  (root / "train.txt").write_text("../secret/a.jpg\n")
  status, _, err = run_yolo("--overwrite")
  assert status == 2
  assert "'../secret/a.jpg' is no path below" in err


def test_several_directories(run_yolo, read_back, label, root):
  (root / "data.yaml").write_text(
    "train: [images/one, images/two]\nnames: [cat]\n"
  )
  label("a", LINE, images="images/one")
  label("a", LINE, images="images/two")
  assert run_yolo()[0] == 0
  assert set(read_back()[0]) == {"one/a", "two/a"}


def test_labels_lie_beside_images_outside_of_folder_images(
  run_yolo, read_back, label, root
):
  (root / "data.yaml").write_text("train: photos\nnames: [cat]\n")
  label("a", LINE, images="photos")
  assert run_yolo()[0] == 0
  assert read_back()[0]["a"]["objects/classes"] == [0]


def test_without_a_yaml_file(run_import, read_back, label, root):
  label("a", LINE, images="images")
  (root / "classes.txt").write_text("cat\ndog\n")
  words = ("yolo", "--images", root / "images")
  status, _, err = run_import(*words)
  assert status == 2
  assert "--images needs --classes" in err
  words += ("--classes", root / "classes.txt")
  assert run_import(*words)[0] == 0
  assert read_back()[0]["a"]["objects/classes"] == [0]
  (root / "labels").rename(root / "txt")
  status, _, err = run_import(*words, "--overwrite")
  assert status == 2
  assert "None of 1 images has a label file" in err
  words += ("--labels", root / "txt")
  assert run_import(*words, "--overwrite")[0] == 0


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("train: images/train", "has no key 'names'"),
    ("train: images/train\nnames: [a, a]", "'a' comes twice"),
    (
      "train: images/train\nnames: {1: a, 2: b}",
      "ids are 1, 2 and so on, not 0 to 1",
    ),
    ("train: images/train\nnames: [a]\nnc: 2", "has nc: 2 and 1 names"),
    ("train: images/train\nnames: a", "a is no list of names"),
    ("train: nowhere\nnames: [a]", "names nowhere, and"),
    ("train: [images/train, [x]]\nnames: [a]", "has no split 'train'"),
    ("train: images/train\nnames: [a]\nkpt_shape: 3", "has kpt_shape"),
    ("a: [", "is not valid YAML"),
    ("- a", "expected a data.yaml"),
    ("", "expected a data.yaml"),
    (None, "cannot be read"),
  ],
)
def test_bad_yaml(run_yolo, label, root, text, message):
  label("a", LINE)
  if text is None:
    (root / "data.yaml").unlink()
  else:
    (root / "data.yaml").write_text(text)
  status, _, err = run_yolo()
  assert status == 2
  assert message in err


def test_names_that_yaml_would_change(run_yolo, read_back, label, root):
  (root / "data.yaml").write_text("train: images/train\nnames: [no, 1, 1e3]\n")
  label("a", LINE)
  assert run_yolo()[0] == 0
  assert read_back()[1].fields["objects"]["classes"] == ["no", "1", "1e3"]
