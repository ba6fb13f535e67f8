import unicodedata

import numpy as np
import pytest
from PIL import Image

OBJECT = """
  <object>
    <name>{name}</name>
    <difficult>{difficult}</difficult>
    <bndbox>
      <xmax>{xmax}</xmax><xmin>{xmin}</xmin>
      <ymin>{ymin}</ymin><ymax>{ymax}</ymax>
    </bndbox>
    <part>
      <name>head</name>
      <bndbox>
        <xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>
      </bndbox>
    </part>
  </object>"""


def objects(*boxes, name="dog", difficult=0):
  """Objects with xmin, ymin, xmax, ymax, as VOC orders and counts them."""
  return "".join(
    OBJECT.format(
      name=name, difficult=difficult, xmin=a, ymin=b, xmax=c, ymax=d
    )
    for a, b, c, d in boxes
  )


@pytest.fixture
def annotate(tmp_path, picture):
  """Writes an image of 40 x 100 (height x width) and its annotation."""

  def write(name, content="", size=(100, 40), **options):
    picture(
      tmp_path / f"VOC/JPEGImages/{name}.jpg", height=40, width=100, **options
    )
    path = tmp_path / f"VOC/Annotations/{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    path.write_text(
      "<annotation><filename>../../secret.jpg</filename>"
      f"<size><width>{width}</width><height>{height}</height></size>"
      f"{content}</annotation>"
    )
    return path

  return write


@pytest.fixture
def run_voc(run_import, tmp_path):
  def run(*words, **options):
    return run_import(
      *("voc", "--images", tmp_path / "VOC/JPEGImages"),
      *("--annotations", tmp_path / "VOC/Annotations", *words),
      **options,
    )

  return run


def write_ids(tmp_path, text, name="trainval.txt"):
  path = tmp_path / "VOC/ImageSets/Main" / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


def test_boxes_include_their_edges_and_count_from_1(
  run_voc, read_back, annotate, tmp_path
):
  annotate(
    "2008_000001",
    objects((11, 21, 40, 30))
    + objects((1, 1, 100, 40), name="cat")
    + objects((50.5, 11, 75.25, 30), difficult=1),
  )
  annotate("2008_000002")
  status, out, err = run_voc()
  assert (status, err) == (0, "")
  assert "objects: 3, of these to be ignored: 1, clipped to the image: 0" in out
  records, image_set = read_back()
  assert image_set.fields == {
    "objects": {"kind": "Boxes", "classes": ["cat", "dog"]}
  }
  record = records["2008_000001"]
  path = tmp_path / "VOC/JPEGImages/2008_000001.jpg"
  assert record["image"] == [path.read_bytes()]
  assert record["objects/classes"] == [1, 0, 1]
  assert record["objects/ignore"] == [0, 0, 1]
  np.testing.assert_allclose(
    np.reshape(record["objects/boxes"], (-1, 4)),
    [[0.5, 0.1, 0.75, 0.4], [0, 0, 1, 1], [0.25, 0.495, 0.75, 0.7525]],
    atol=1e-6,
  )
  # An image without an object is known to have none.
  assert records["2008_000002"]["objects/present"] == [1]
  assert records["2008_000002"]["objects/boxes"] == []


@pytest.mark.parametrize(
  ("box", "expected", "clipped"),
  [
    ((0, 0, 50, 20), [0, 0, 0.5, 0.5], 0),  # counted from 0
    ((51, 21, 120, 60), [0.5, 0.5, 1, 1], 1),
  ],
)
def test_boxes_are_clipped_and_counted(
  run_voc, read_back, annotate, box, expected, clipped
):
  annotate("a", objects(box))
  status, out, err = run_voc()
  assert (status, err) == (0, "")
  assert f"clipped to the image: {clipped}\n" in out
  np.testing.assert_allclose(
    read_back()[0]["a"]["objects/boxes"], expected, atol=1e-6
  )


@pytest.mark.parametrize(
  ("bad", "reason"),
  [
    (objects((5, 5, 5, 9)), "[5.0, 5.0, 9.0, 5.0] (yxyx) has no area"),
    (objects((9, 5, 5, 9)), "has no area"),
    (objects((102, 5, 109, 9)), "lies outside the image"),
    (objects((1, 5, "nan", 9)), "no bndbox with numbers"),
    (objects((1, 5, "", 9)), "no bndbox with numbers"),
    ("<object><name>dog</name></object>", "no bndbox with numbers"),
    (objects((1, 1, 9, 9), name=""), "class '' is none of ['cat', 'dog']"),
    (objects((1, 1, 9, 9), name="cow"), "class 'cow' is none of"),
  ],
)
def test_bad_objects_are_rejected(
  run_voc, read_back, annotate, tmp_path, bad, reason
):
  (tmp_path / "classes.txt").write_text("dog\ncat\n")
  annotate("a", objects((11, 21, 40, 30)) + bad)
  words = ("--classes", tmp_path / "classes.txt")
  status, _, err = run_voc(*words)
  assert status == 1
  assert "  a: object 2: " in err
  assert reason in err
  assert run_voc(*words, "--max-rejected", 1)[0] == 0
  records, image_set = read_back()
  assert records["a"]["objects/classes"] == [0]  # kept without the object
  assert image_set.fields["objects"]["classes"] == ["dog", "cat"]


@pytest.mark.parametrize(
  ("size", "status"),
  [((100, 40), 0), ((0, 0), 0), (("", ""), 0), ((101, 40), 1), ((40, 100), 1)],
)
def test_sizes_are_checked_where_they_are_given(
  run_voc, annotate, size, status
):
  annotate("a", objects((1, 1, 9, 9)), size=size)
  given, _, err = run_voc()
  assert given == status
  assert ("  a: the XML gives" in err) == bool(status)


@pytest.mark.parametrize(
  ("size", "reason"),
  [
    ((40, 100), None),  # annotated upright
    ((100, 41), "100 x 40 (turned by its EXIF or XMP)"),
    ((0, 0), "no size tells whether its labels are turned"),
  ],
)
def test_boxes_of_turned_images(run_voc, read_back, annotate, size, reason):
  exif = Image.Exif()
  exif[0x0112] = 6
  annotate("a", objects((11, 21, 20, 50)), size=size, exif=exif)
  status, _, err = run_voc()
  if reason:
    assert status == 1
    assert reason in err
  else:
    assert status == 0
    record = read_back()[0]["a"]
    assert (record["height"], record["width"]) == ([100], [40])
    np.testing.assert_allclose(
      record["objects/boxes"], [0.2, 0.25, 0.5, 0.5], atol=1e-6
    )


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_images_that_are_not_rgb(run_voc, read_back, annotate, tmp_path, mode):
  annotate("a", objects((1, 1, 50, 40)))
  path = tmp_path / "VOC/JPEGImages/a.jpg"
  Image.new(mode, (100, 40)).save(path)
  assert run_voc()[0] == 0
  record = read_back()[0]["a"]
  np.testing.assert_allclose(record["objects/boxes"], [0, 0, 1, 0.5])


def test_lists_of_ids(run_voc, read_back, annotate, tmp_path):
  for name in ("a", "b", "c", "d", "photo 7"):
    annotate(name, objects((1, 1, 9, 9), name=f"class of {name}"))
  train = write_ids(tmp_path, "a\nb\n\nphoto 7\n")
  status, *_ = run_voc("--ids", train)
  assert status == 0
  records, image_set = read_back()
  assert set(records) == {"a", "b", "photo 7"}
  # A split that lacks a class has the classes of the others.
  assert len(image_set.fields["objects"]["classes"]) == 5
  flags = write_ids(tmp_path, "a -1\nb  1\nc  0\nd -1\n", "dog_train.txt")
  assert run_voc("--ids", flags, out="dog")[0] == 0
  assert set(read_back("dog")[0]) == {"b", "c"}
  assert run_voc("--ids", train, flags, out="both")[0] == 0
  assert set(read_back("both")[0]) == {"a", "b", "c", "photo 7"}


def test_ids_that_end_in_a_number_keep_their_boxes(
  run_voc, read_back, annotate, tmp_path
):
  """Each id has the image and the box of its own name."""
  names = ("photo", "photo 1", "photo 0", "photo -1", "Cafe\u0301")
  for i, name in enumerate(names):
    annotate(name, objects((1, 1, 10 * (i + 1), 40)))
  text = "\ufeff" + "\r\n".join(names[:4]) + "\r\nJPEGImages/Caf\u00e9.jpg\r\n"
  assert run_voc("--ids", write_ids(tmp_path, text))[0] == 0
  records, _ = read_back()
  assert set(records) == {*names[:4], "Caf\u00e9"}
  for i, name in enumerate(names):
    record = records[unicodedata.normalize("NFC", name)]
    path = tmp_path / f"VOC/JPEGImages/{name}.jpg"
    assert record["image"] == [path.read_bytes()]
    np.testing.assert_allclose(
      record["objects/boxes"], [0, 0, 1, 0.1 * (i + 1)], atol=1e-6
    )


def test_composed_and_decomposed_names_are_one(
  run_voc, read_back, annotate, tmp_path
):
  annotate("cafe\u0301", objects((1, 1, 9, 9), name="the\u0301"))
  path = tmp_path / "VOC/Annotations/cafe\u0301.xml"
  path.rename(path.with_name("caf\u00e9.xml"))
  (tmp_path / "classes.txt").write_text("dog\nth\u00e9\n")
  assert run_voc("--classes", tmp_path / "classes.txt")[0] == 0
  records, image_set = read_back()
  assert records["caf\u00e9"]["objects/classes"] == [1]
  assert image_set.fields["objects"]["classes"] == ["dog", "th\u00e9"]


def test_ids_without_files_are_rejected(run_voc, read_back, annotate, tmp_path):
  annotate("a", objects((1, 1, 9, 9)))
  annotate("b").unlink()
  annotate("c")
  (tmp_path / "VOC/JPEGImages/c.jpg").unlink()
  ids = write_ids(tmp_path, "a\nb\nc\nd\n")
  status, _, err = run_voc("--ids", ids, "--max-rejected", 0.75)
  assert status == 0
  assert "  b: has no annotation" in err
  assert "  c: there is no file" in err
  assert "  d: there is no file" in err
  assert set(read_back()[0]) == {"a"}


def test_images_without_an_annotation_are_counted(run_voc, annotate):
  annotate("a", objects((1, 1, 9, 9)))
  annotate("b").unlink()
  status, out, _ = run_voc()
  assert status == 0
  assert "images without an annotation: 1" in out


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("a\n../a\n", "has id '../a'"),
    ("/etc/passwd\n", "has id '/etc/passwd'"),
    ("..\\a 1\n", r"has id '..\\a'"),
    ("a -1\n", "names no image"),
    ("\n", "names no image"),
    (b"\xe9\n", "is no UTF-8 text"),
    (None, "cannot be read"),
  ],
)
def test_bad_lists_of_ids(run_voc, annotate, tmp_path, text, message):
  annotate("a", objects((1, 1, 9, 9)))
  path = write_ids(tmp_path, "")
  if text is None:
    path.unlink()
  else:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
  status, _, err = run_voc("--ids", path)
  assert status == 2
  assert f"error: {path} {message}" in err


BOMB = """<?xml version="1.0"?>
<!DOCTYPE bomb [
  <!ENTITY a "dog">
  <!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
]>
<annotation><object><name>&b;</name></object></annotation>"""


@pytest.mark.parametrize(
  ("content", "reason"),
  [
    (BOMB.encode(), "declares a document type"),
    (BOMB.encode("utf-16"), "is no UTF-8"),
    (b"<annotation>", "is not valid XML"),
    (b"", "is not valid XML"),
    (b"<annotation>&who;</annotation>", "is not valid XML"),
    (b"<?xml version='1.0' encoding='nope'?><annotation/>", "not valid XML"),
    (b"<?xml version='1.0' encoding='gbk'?><annotation/>", "not valid XML"),
    (b"<html/>", "is <html>; expected <annotation>"),
    (b" " * (1 << 24) + b"<annotation/>", "has more than 16777216 bytes"),
  ],
)
def test_bad_xml_is_rejected(run_voc, read_back, annotate, content, reason):
  annotate("a", objects((1, 1, 9, 9)))
  annotate("b").write_bytes(content)
  status, _, err = run_voc("--max-rejected", 0.5)
  assert status == 0
  assert "  b: b.xml " in err
  assert reason in err
  records, image_set = read_back()
  assert set(records) == {"a"}
  assert image_set.fields["objects"]["classes"] == ["dog"]


def test_nothing_to_import(run_voc, annotate, tmp_path):
  path = annotate("a")
  status, _, err = run_voc()
  assert status == 2
  assert "name no object. Expected some names" in err
  path.write_bytes(BOMB.encode("utf-16"))
  annotate("b")
  status, _, err = run_voc()
  assert status == 2
  assert "1 of 2 cannot be read, such as a.xml is no UTF-8" in err
  (path.parent / "b.xml").unlink()
  path.unlink()
  status, _, err = run_voc()
  assert status == 2
  assert "holds no .xml file" in err


@pytest.mark.parametrize(
  ("given", "ignored"),
  [("0", 0), ("1", 1), ("true", 1), ("False", 0), ("", 0), ("2", None)],
)
def test_flags(run_voc, read_back, annotate, given, ignored):
  annotate("a", objects((11, 21, 20, 30), difficult=given))
  status, _, err = run_voc()
  if ignored is None:
    assert status == 1
    assert "object 1: difficult is '2'; expected 0 or 1" in err
  else:
    assert (status, err) == (0, "")
    assert read_back()[0]["a"]["objects/ignore"] == [ignored]


@pytest.mark.parametrize("policy", ["upright", "stored"])
def test_an_option_tells_where_sizes_do_not(
  run_voc, read_back, annotate, policy
):
  exif = Image.Exif()
  exif[0x0112] = 6
  annotate("a", objects((11, 21, 20, 30)), size=(0, 0), exif=exif)
  assert run_voc("--labels-of-turned", policy)[0] == 0
  boxes = read_back()[0]["a"]["objects/boxes"]
  expected = [20, 10, 30, 20]  # of 100 x 40, upright
  if policy == "stored":  # (y, x) goes to (x, 40 - y)
    expected = [10, 40 - 30, 20, 40 - 20]
  np.testing.assert_allclose(
    boxes, np.divide(expected, [100, 40] * 2), atol=1e-6
  )
