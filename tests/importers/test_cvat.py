import numpy as np
import pytest

META = """<meta><{kind}><id>1</id><labels>
<label><name>cat</name><color>#ff0000</color><type>any</type></label>
<label><name>dog</name><type>rectangle</type></label>
<label><name>sunny</name><type>tag</type></label>
<label><name>lane</name><type>polyline</type></label>
<label><name>pose</name><type>skeleton</type></label>
<label><name>nose</name><type>points</type><parent>pose</parent></label>
</labels></{kind}></meta>"""


def box(xtl, ytl, xbr, ybr, label="dog", more=""):
  return (
    f'<box label="{label}" source="manual" occluded="0" xtl="{xtl}"'
    f' ytl="{ytl}" xbr="{xbr}" ybr="{ybr}" {more}>'
    '<attribute name="label">lane</attribute></box>'
  )


def polygon(points, label="cat", z_order=0):
  return f'<polygon label="{label}" points="{points}" z_order="{z_order}"/>'


def mask(rle, left, top, width, height, label="cat", z_order=0):
  return (
    f'<mask label="{label}" rle="{rle}" left="{left}" top="{top}"'
    f' width="{width}" height="{height}" z_order="{z_order}"/>'
  )


def image(name, content="", size=(100, 40), more=""):
  width, height = size
  return (
    f'<image id="0" name="{name}" width="{width}" height="{height}" {more}>'
    f"{content}</image>"
  )


@pytest.fixture
def run_cvat(run_import, tmp_path, picture):
  """Imports images of 40 x 100 (height x width)."""

  def run(*images, words=(), kind="task", meta=META, out="out", **options):
    (tmp_path / "images").mkdir(exist_ok=True)
    path = tmp_path / "annotations.xml"
    text = "".join(images)
    path.write_text(
      '<?xml version="1.0" encoding="utf-8"?><annotations>'
      f"<version>1.1</version>{meta.format(kind=kind)}{text}</annotations>"
    )
    return run_import(
      *("cvat", "--annotations", path, "--images", tmp_path / "images"),
      *words,
      out=out,
      **options,
    )

  for name in ("a.jpg", "b.jpg"):
    picture(tmp_path / "images" / name, height=40, width=100)
  return run


def boxes_of(record):
  boxes = np.reshape(record["objects/boxes"], (-1, 4))
  return boxes * [40, 100, 40, 100]


@pytest.mark.parametrize("kind", ["task", "project", "job"])
def test_boxes(run_cvat, read_back, kind):
  status, out, err = run_cvat(
    image("a.jpg", box(10, 20, 30, 40) + box(0.5, 0, 100.4, 4, "cat")),
    image("b.jpg"),
    kind=kind,
  )
  assert (status, err) == (0, "")
  assert "objects: 2," in out
  records, image_set = read_back()
  # Labels of tags, lines and skeletons are no classes of objects.
  assert image_set.fields == {
    "objects": {"kind": "Boxes", "classes": ["cat", "dog"]}
  }
  assert records["a"]["objects/classes"] == [1, 0]
  np.testing.assert_allclose(
    boxes_of(records["a"]),
    [[20, 10, 40, 30], [0, 0.5, 4, 100]],
    atol=1e-4,
  )
  assert records["b"]["objects/present"] == [1]


def test_turned_boxes_have_a_box_around_them(run_cvat, read_back):
  turned = box(40, 15, 60, 25, more='rotation="90"')
  slanted = box(40, 10, 60, 30, more='rotation="45"')
  assert run_cvat(image("a.jpg", turned + slanted))[0] == 0
  half = 10 * 2**0.5
  np.testing.assert_allclose(
    boxes_of(read_back()[0]["a"]),
    [[10, 45, 30, 55], [20 - half, 50 - half, 20 + half, 50 + half]],
    atol=1e-4,
  )


def test_polygons_masks_and_ellipses(run_cvat, read_back, decode8):
  status, _, err = run_cvat(
    image(
      "a.jpg",
      polygon("10,10;30,10;30,30;10,30")
      + mask("1, 3, 2", left=20, top=20, width=2, height=3, label="dog")
      + '<ellipse label="dog" cx="70" cy="20" rx="10" ry="5"/>',
    )
  )
  assert (status, err) == (0, "")
  records, image_set = read_back()
  assert image_set.fields["mask"]["classes"] == ["background", "cat", "dog"]
  expected = np.zeros((40, 100), np.uint8)
  expected[10:30, 10:30] = 1
  # Runs go row by row, the first of them outside: .X / XX / ..
  expected[20, 21] = expected[21, 20:22] = 2
  y, x = np.mgrid[:40, :100] + 0.5
  expected[((x - 70) / 10) ** 2 + ((y - 20) / 5) ** 2 < 1] = 2
  found = decode8(records["a"]["mask/png"][0])
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_allclose(
    boxes_of(records["a"]),
    [[10, 10, 30, 30], [20, 20, 22, 22], [15, 60, 25, 80]],
    atol=0.01,
  )


def test_higher_shapes_lie_on_top_then_later_ones(run_cvat, read_back, decode8):
  square = "{0},0;{1},0;{1},40;{0},40"
  assert (
    run_cvat(
      image(
        "a.jpg",
        polygon(square.format(0, 30), "dog", z_order=1)
        + polygon(square.format(20, 60), "cat")
        + polygon(square.format(50, 80), "dog")
        + polygon(square.format(75, 90), "cat", z_order=-1),
      )
    )[0]
    == 0
  )
  row = decode8(read_back()[0]["a"]["mask/png"][0])[5]
  assert row.tolist() == [2] * 30 + [1] * 20 + [2] * 30 + [1] * 10 + [0] * 10


def test_what_is_a_box_only_is_unknown_in_masks(run_cvat, read_back, decode8):
  square = polygon("10,10;30,10;30,30;10,30")
  status, out, _ = run_cvat(image("a.jpg", square + box(20, 0, 40, 40)))
  assert status == 0
  assert "objects without an outline, unknown in masks: 1" in out
  row = decode8(read_back()[0]["a"]["mask/png"][0])[15]
  assert row.tolist() == [0] * 10 + [1] * 20 + [255] * 10 + [0] * 60


def test_tags(run_cvat, read_back):
  tags = '<tag label="sunny" source="manual"/><tag label="cat"/>'
  status, out, err = run_cvat(image("a.jpg", tags), image("b.jpg"))
  assert (status, err) == (0, "")
  assert "images with classes: 1, without: 1" in out
  records, image_set = read_back()
  assert image_set.fields == {
    "label": {"kind": "ClassVector", "classes": ["cat", "sunny"]}
  }
  assert records["a"]["label/classes"] == [0, 1]
  assert "label/present" not in records["b"]


def test_tags_and_boxes(run_cvat, read_back):
  content = '<tag label="sunny"/>' + box(1, 1, 9, 9)
  assert run_cvat(image("a.jpg", content))[0] == 0
  records, image_set = read_back()
  assert set(image_set.fields) == {"objects", "label"}
  assert records["a"]["objects/classes"] == [1]
  assert records["a"]["label/classes"] == [1]
  words = ("--fields", "label")
  assert run_cvat(image("a.jpg", content), words=words, out="tags")[0] == 0
  assert set(read_back("tags")[1].fields) == {"label"}


def test_what_is_left_out_is_counted(run_cvat):
  lines = '<polyline label="lane" points="1,1;2,2"/>' * 2
  cuboid = '<cuboid label="cat" xtl1="1"/>'
  status, out, err = run_cvat(image("a.jpg", lines + cuboid + box(1, 1, 9, 9)))
  assert (status, err) == (0, "")
  assert "elements left out: {'polyline': 2, 'cuboid': 1}" in out
  assert "images that are not annotated: 1" in out
  status, _, err = run_cvat(image("a.jpg", lines), out="none")
  assert status == 2
  assert "has no annotation that can be imported" in err


def test_subsets_of_projects(run_cvat, read_back, tmp_path, picture):
  picture(tmp_path / "images/Val/a.jpg", height=40, width=100)
  images = [
    image("b.jpg", box(1, 1, 9, 9), more='subset="Train"'),
    image("a.jpg", box(1, 1, 9, 9), more='subset="Val"'),
  ]
  (tmp_path / "images/a.jpg").unlink()
  status, out, _ = run_cvat(*images)
  assert status == 0
  assert "images of all subsets, {'Train': 1, 'Val': 1}; see --subset" in out
  assert set(read_back()[0]) == {"b", "Val/a"}
  assert run_cvat(*images, words=("--subset", "Val"), out="val")[0] == 0
  assert set(read_back("val")[0]) == {"Val/a"}
  status, _, err = run_cvat(*images, words=("--subset", "Test"))
  assert status == 2
  assert "has no image of subset 'Test'" in err


@pytest.mark.parametrize(
  ("bad", "reason"),
  [
    (box(9, 1, 9, 9), "has no area"),
    (box(101, 1, 110, 9), "lies outside the image"),
    (box("x", 1, 9, 9), "'xtl': 'x'"),
    ('<box label="dog"/>', "expected numbers"),
    (box(1, 1, 9, 9, "cow"), "class 'cow' is none of ['cat', 'dog']"),
    (box(1, 1, 9, 9, "sunny"), "class 'sunny' is none of"),
    (polygon("1,1;9,9"), "has 2 corners"),
    (polygon("1,1;9"), "has points '1,1;9'"),
    (polygon("1,1;9,nan;4,4"), "near the image"),
    (polygon("1,1;9,1e300;4,4"), "near the image"),
    (mask("1, 99999999999999", 0, 0, 10**7, 10**7), "at most"),
    (polygon(""), "has points ''"),
    (mask("1, 4", 0, 0, 2, 2), "has runs of 5 pixels together; expected 2 x 2"),
    (mask("4", 0, 0, 2, 2), "has no pixel"),
    (mask("1, -1, 4", 0, 0, 2, 2), "has runs of"),
    (mask("a", 0, 0, 2, 2), "has rle 'a'"),
    (mask("0, 4", -1, 0, 2, 2), "begins at column -1.0"),
    (mask("0, 4", 200, 0, 2, 2), "lies outside the image"),
    (mask("0, 1", 0, 0, "1e400", 2), "expected numbers"),
  ],
)
def test_bad_elements_are_rejected(run_cvat, read_back, bad, reason):
  good = polygon("10,10;30,10;30,30")
  status, _, err = run_cvat(image("a.jpg", good + bad))
  assert status == 1
  assert "  a: " in err
  assert " 2: " in err
  assert reason in err
  words = ("--max-rejected", 1)
  assert run_cvat(image("a.jpg", good + bad), words=words)[0] == 0
  record = read_back()[0]["a"]
  assert record["objects/classes"] == [0]
  assert "mask/png" not in record


def test_masks_that_reach_beyond_the_image_are_cut(
  run_cvat, read_back, decode8
):
  runs = mask("0, 16", left=98, top=38, width=4, height=4)
  assert run_cvat(image("a.jpg", runs))[0] == 0
  record = read_back()[0]["a"]
  np.testing.assert_allclose(boxes_of(record), [[38, 98, 40, 100]], atol=1e-4)
  assert decode8(record["mask/png"][0]).sum() == 4


@pytest.mark.parametrize(
  ("images", "reason"),
  [
    (
      [image("a.jpg", box(1, 1, 9, 9), (40, 100))],
      "the XML gives 100 x 40",
    ),
    (
      [image("a.jpg", box(1, 1, 9, 9), ("", 40))],
      "no numbers width and height",
    ),
    ([image("c.jpg", box(1, 1, 9, 9))], "there is no file"),
  ],
)
def test_bad_images_are_rejected(run_cvat, images, reason):
  status, _, err = run_cvat(*images)
  assert status == 1
  assert reason in err


@pytest.mark.parametrize(
  ("images", "options", "message"),
  [
    ([], {}, "has no images; expected images"),
    (["<track id='0' label='cat'/>"], {}, "has tracks; expected images"),
    ([image("../a.jpg", box(1, 1, 9, 9))], {}, "is no path below"),
    ([image("a.jpg")], {}, "has no annotation that can be imported"),
    (
      [image("a.jpg", box(1, 1, 9, 9))] * 2,
      {},
      "has two images with key 'a'",
    ),
    ([image("a.jpg", box(1, 1, 9, 9))], {"meta": ""}, "lists no labels"),
    (
      [image("a.jpg", box(1, 1, 9, 9))],
      {
        "words": ("--fields", "objects", "label"),
        "meta": "<meta><task><labels><label><name>cat</name><type>rectangle"
        "</type></label></labels></task></meta>",
      },
      "lists no classes of images",
    ),
    (
      ["<!DOCTYPE x>", image("a.jpg")],
      {},
      "declares a document type",
    ),
  ],
)
def test_bad_files(run_cvat, images, options, message):
  status, _, err = run_cvat(*images, **options)
  assert status == 2
  assert message in err


def test_classes_of_a_file(run_cvat, read_back, tmp_path):
  (tmp_path / "classes.txt").write_text("dog\ncat\n")
  words = ("--classes", tmp_path / "classes.txt")
  assert run_cvat(image("a.jpg", box(1, 1, 9, 9)), words=words, meta="")[0] == 0
  assert read_back()[0]["a"]["objects/classes"] == [0]
