"""The page of labels, in a real browser."""

import base64
import importlib.util
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from must_jax.cli import main
from must_jax.curation import agreement, page, ranking, selection
from must_jax.storage.sets import LabelSet, read_manifest

OBJECTS = {"kind": "Boxes", "classes": ["cat", "dog", "owl"]}
MASK = {"kind": "ClassMap", "classes": ["sky", "cat"]}
FIELDS = {"objects": OBJECTS, "mask": MASK}
NUMBER = 60
CELLS, BOXES = 0, 1  # layers, by their place


def _load(name):
  path = pathlib.Path(__file__).with_name(f"{name}.py")
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


browser_module = _load("browser")
needs_browser = pytest.mark.skipif(
  not browser_module.find(), reason="needs chromium or google-chrome"
)


def draw(seed, count=NUMBER):
  """Labels of images at random, those of a few images missing or empty."""
  rng = np.random.default_rng(seed)
  labels = []
  for i in range(count):
    n = int(rng.integers(0, 7))
    low = rng.random((n, 2)) * 0.6
    found = {
      "objects": {
        "boxes": np.concatenate([low, low + 0.1 + 0.3 * rng.random((n, 2))], 1),
        "classes": rng.integers(0, 3, n),
        # Some lie on the thresholds of the slider, as 32 bits.
        "scores": np.float32(rng.integers(1, 100, n) / 100),
      },
      "mask": {
        "classes": rng.integers(0, 2, (6, 8)),
        "confidence": rng.integers(0, 256, (6, 8)) / 255,
      },
    }
    if i % 11 == 5:
      del found["mask"]
    labels.append(found)
  return labels


@pytest.fixture(scope="module")
def made(scribbles, tmp_path_factory):
  """Two label sets of one image set, their labels, and a page of both."""
  root = tmp_path_factory.mktemp("page")
  sizes = [(30 + i, 40 + 2 * (i % 7)) for i in range(NUMBER)]
  images = scribbles.make_images(root / "images", sizes)
  first, second = draw(1), [{"objects": x["objects"]} for x in draw(2)]
  scribbles.label(root / "one", images, first, FIELDS, "one")
  scribbles.label(root / "two", images, second, {"objects": OBJECTS}, "two")
  assert (
    main(
      [
        *("inspect", str(root / "one"), str(root / "two")),
        *("--images", str(root / "images"), "--out", str(root / "page")),
      ]
    )
    == 0
  )
  # In the order of the records, which two shards have.
  keys = [f"i-{i:04}" for i in [*range(0, NUMBER, 2), *range(1, NUMBER, 2)]]
  numbers = [int(key[2:]) for key in keys]
  return {
    "root": root,
    "keys": keys,
    "one": [first[i] for i in numbers],
    "two": [second[i] for i in numbers],
    "sizes": [sizes[i] for i in numbers],
  }


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
  if not browser_module.find():
    pytest.skip("needs chromium or google-chrome")
  browser = browser_module.Browser(tmp_path_factory.mktemp("browser"))
  yield browser
  browser.close()


@pytest.fixture
def shown(browser, made):
  """The page, opened from the disk, as nobody has used it before."""
  url = (made["root"] / "page" / "index.html").as_uri()
  browser.open(url)
  browser.run("localStorage.clear()")
  browser.open(url)
  browser.errors.clear()
  yield browser
  assert not browser.errors


def all_drawn(shown, layer):
  """What the browser has drawn of a layer on all pages, by key."""
  drawn = {}
  pages = shown.run("Math.ceil(order.length / PER_PAGE)")
  shown.run("setPlace(0)")
  for number in range(pages):
    shown.wait("document.body.dataset.ready === 'yes'")
    found = shown.run(
      "[...cards].map(([n, card]) => [PAGE.images[n].key, card.dataset.drawn])"
    )
    for key, value in found:
      drawn[key] = json.loads(value).get(str(layer), 0)
    if number + 1 < pages:
      shown.press("n")
  return drawn


def keys_shown(shown):
  return shown.run("order.map((n) => PAGE.images[n].key)")


def left(labels, threshold, k=None):
  objects = labels["objects"]
  kept = objects["scores"] >= np.float32(threshold)
  return int((kept & ((objects["classes"] == k) | (k is None))).sum())


def mask_left(labels, threshold):
  if "mask" not in labels:
    return 0
  codes = np.rint(255 * labels["mask"]["confidence"])
  return int(
    (np.float32(codes) / np.float32(255) >= np.float32(threshold)).sum()
  )


@pytest.mark.parametrize("threshold", [0, 0.07, 0.29, 0.5, 0.57, 1])
def test_a_threshold_redraws_and_recounts(shown, made, threshold):
  shown.run(f"setThreshold('objects', null, {threshold})")
  shown.run(f"setThreshold('mask', null, {threshold})")
  boxes, cells = all_drawn(shown, BOXES), all_drawn(shown, CELLS)
  assert len(boxes) == NUMBER
  for key, labels in zip(made["keys"], made["one"], strict=True):
    assert boxes[key] == left(labels, threshold), key
    assert cells[key] == mask_left(labels, threshold), key
  counts = shown.run("countClasses(1).map((c) => [c.stored, c.left, c.images])")
  for k, (stored, kept, images) in enumerate(counts):
    by_image = [left(x, threshold, k) for x in made["one"]]
    assert stored == sum(left(x, 0, k) for x in made["one"])
    assert (kept, images) == (sum(by_image), np.count_nonzero(by_image))
  text = shown.run("panels[1].left.textContent")
  assert text.startswith(f"{sum(boxes.values())} of ")


def test_a_class_has_a_threshold_of_its_own(shown, made):
  # As people do: the slider in the row of "dog".
  shown.run("""{
    const slider = panels[1].rows.find(({k}) => k === 1).slider;
    slider.value = 0.8;
    slider.dispatchEvent(new Event("input"));
  }""")
  drawn = all_drawn(shown, BOXES)
  for key, labels in zip(made["keys"], made["one"], strict=True):
    expected = (
      left(labels, 0.5, 0) + left(labels, 0.8, 1) + left(labels, 0.5, 2)
    )
    assert drawn[key] == expected
  assert shown.run("selection().min_score") == {
    "objects": {"cat": 0.5, "dog": 0.8, "owl": 0.5},
    "mask": 0.5,
  }


def test_what_is_drawn_is_on_the_canvas(shown, made):
  """Where a box's edge is, there is its colour."""
  number = next(
    i for i, x in enumerate(made["one"]) if left(x, 0.5) == 1 and "mask" in x
  )
  labels = made["one"][number]["objects"]
  shown.run("setLayer(0, false)")
  shown.run(f"setPlace(order.indexOf({number}))")
  shown.wait("document.body.dataset.ready === 'yes'")
  (which,) = np.flatnonzero(labels["scores"] >= np.float32(0.5))
  top, x0, _, x1 = labels["boxes"][which]
  color = shown.run(f"PAGE.layers[1].colors[{labels['classes'][which]}]")
  found = shown.run(
    f"""(() => {{
    const canvas = cards.get({number}).querySelector("canvas");
    const [x, y] = [{(x0 + x1) / 2} * canvas.width, {top} * canvas.height];
    const area = canvas.getContext("2d").getImageData(x, y - 1, 1, 3).data;
    return [...area];
  }})()"""
  )
  rows = np.reshape(found, (3, 4))[:, :3]
  assert np.abs(rows - color).max(1).min() <= 30  # lines have soft edges
  shown.run("setLayer(1, false)")
  shown.wait("document.body.dataset.ready === 'yes'")
  blank = f"""cards.get({number}).querySelector("canvas").getContext("2d")
    .getImageData(0, 0, 999, 999).data.every((value) => value === 0)"""
  assert shown.run(blank)


def test_filters(shown, made):
  shown.set("class", "1:1")
  expected = {
    k for k, x in zip(made["keys"], made["one"], strict=True) if left(x, 0.5, 1)
  }
  assert {*keys_shown(shown)} == expected
  assert shown.run("document.getElementById('found').textContent") == (
    f"{len(expected)} of {NUMBER} images"
  )
  shown.set("high", 0.7)

  def has(labels):
    objects = labels["objects"]
    scores = objects["scores"][objects["classes"] == 1]
    return ((scores >= np.float32(0.5)) & (scores <= 0.7)).any()

  assert {*keys_shown(shown)} == {
    k for k, x in zip(made["keys"], made["one"], strict=True) if has(x)
  }
  # The threshold moves what passes, too.
  shown.run("setThreshold('objects', null, 0.9)")
  shown.wait("document.body.dataset.ready === 'yes'")
  assert keys_shown(shown) == []
  assert not shown.run("document.getElementById('nothing').hidden")
  shown.run("document.getElementById('reset').click()")
  shown.wait("order.length === PAGE.images.length")
  shown.set("small", 45)
  shown.set("large", 60)
  assert {*keys_shown(shown)} == {
    key
    for key, size in zip(made["keys"], made["sizes"], strict=True)
    if 45 <= max(size) <= 60
  }
  shown.run("document.getElementById('reset').click()")
  shown.set("search", "I-0007")
  assert keys_shown(shown) == ["i-0007"]


def test_orders(shown, made):
  root = made["root"]
  worst = ranking.rank([root / "one", root / "two"], root / "images")
  assert keys_shown(shown) == worst
  shown.set("sort", "record")
  assert keys_shown(shown) == made["keys"]
  field = agreement.fields_as_read(LabelSet.open(root / "one"))["objects"]
  unsure = {
    key: field.uncertainty(x["objects"])
    for key, x in zip(made["keys"], made["one"], strict=True)
  }
  shown.set("sort", "unsure1")
  found = [round(unsure[key], 5) for key in keys_shown(shown)]
  assert found == sorted(found, reverse=True)

  def mean_score(labels):
    scores = labels["objects"]["scores"]
    kept = scores[scores >= np.float32(0.5)]
    return kept.mean() if len(kept) else None

  means = {
    key: mean_score(x) for key, x in zip(made["keys"], made["one"], strict=True)
  }
  for sort, sign in (("low1", 1), ("high1", -1)):
    shown.set("sort", sort)
    found = [means[key] for key in keys_shown(shown)]
    known = [sign * m for m in found if m is not None]
    assert known == pytest.approx(sorted(known), abs=1e-6)
    assert all(m is None for m in found[len(known) :])
  shown.set("sort", "random")
  once = keys_shown(shown)
  assert once != made["keys"] and sorted(once) == sorted(made["keys"])
  shown.set("sort", "record")
  shown.set("sort", "random")
  assert keys_shown(shown) != once


def test_least_agreement_comes_first_and_can_be_asked_for(shown, made):
  """Dice of boxes of one class with an IoU of 0.5, counted here anew."""
  agreement = {}
  for key, *both in zip(made["keys"], made["one"], made["two"], strict=True):
    sides = []
    for labels in both:
      objects = labels["objects"]
      kept = objects["scores"] >= np.float32(0.5)
      sides.append((objects["boxes"][kept], objects["classes"][kept]))
    (a, ka), (b, kb) = sides
    low = np.maximum(a[:, None, :2], b[:, :2])
    high = np.minimum(a[:, None, 2:], b[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), -1)
    area = [np.prod(x[:, 2:] - x[:, :2], -1) for x in (a, b)]
    iou = shared / (area[0][:, None] + area[1] - shared)
    match = (iou >= 0.5) & (ka[:, None] == kb)
    assert (match.sum(0) <= 1).all() and (match.sum(1) <= 1).all()
    total = len(a) + len(b)
    agreement[key] = 2 * match.sum() / total if total else 1.0
  pair = shown.run(
    "PAGE.pairs.findIndex((p) => p.layers[0] === 1 && p.layers[1] === 2)"
  )
  shown.set("sort", f"pair{pair}")
  found = [agreement[key] for key in keys_shown(shown)]
  assert found == sorted(found)
  shown.set("pair", pair)
  shown.set("agreement", 0.9)
  assert {*keys_shown(shown)} == {k for k, v in agreement.items() if v <= 0.9}


def test_decisions_by_keyboard_last_and_are_exported(shown, made, tmp_path):
  order = keys_shown(shown)
  shown.press(
    "a", "ArrowRight", "r", "j", "c", "ArrowRight", "a", "u", "k", "k"
  )
  assert shown.run("PAGE.images[order[state.place]].key") == order[1]
  stamps = shown.run(
    "[...document.querySelectorAll('.stamp')].map((x) => x.textContent)"
  )
  assert stamps == ["accepted", "rejected", "to correct"]
  shown.press("r", "r")  # back, and again
  shown.press("ArrowRight", "Enter")
  assert shown.run("document.getElementById('large-view').open")
  shown.set("note", "two owls", "change")
  shown.press("Enter")
  assert not shown.run("document.getElementById('large-view').open")
  shown.call(
    "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path)
  )
  shown.run("document.getElementById('export').click()")
  file = tmp_path / "selection-shots-train.json"
  for _ in range(500):
    if file.exists():
      break
    shown.run("new Promise((done) => setTimeout(done, 20))")
  root = made["root"]
  expected = [
    {"key": order[0], "decision": "accept", "note": ""},
    {"key": order[1], "decision": "reject", "note": ""},
    {"key": order[2], "decision": "correct", "note": "two owls"},
  ]
  assert json.loads(file.read_text()) == {
    "schema_version": 1,
    "what": "must_jax selection",
    "image_set": {"name": "shots", "split": "train", "num_records": NUMBER},
    "label_sets": [
      {"name": name, "teacher": read_manifest(root / name)["teacher"]["digest"]}
      for name in ("one", "two")
    ],
    "min_score": {"objects": 0.5, "mask": 0.5},
    "images": sorted(expected, key=lambda image: image["key"]),
  }
  # Whatever set of the page it is used with.
  for name, fields in (("one", {"objects", "mask"}), ("two", {"objects"})):
    read = selection.read(file, read_manifest(root / name))
    assert read.decisions == {e["key"]: e["decision"] for e in expected}
    assert {*read.min_score} == fields
  # What was decided is there when the page is opened again.
  shown.run("setThreshold('objects', null, 0.35)")
  shown.wait("document.body.dataset.ready === 'yes'")
  shown.open((root / "page" / "index.html").as_uri())
  assert shown.run("selection().images.length") == 3
  assert shown.run("selection().min_score.objects") == 0.35
  shown.set("decision", "reject")
  assert keys_shown(shown) == [order[1]]
  # And elsewhere, once the file is imported.
  shown.run("localStorage.clear()")
  shown.open((root / "page" / "index.html").as_uri())
  assert shown.run("selection().images.length") == 0
  shown.run(f"importSelection({json.dumps(file.read_text())})")
  assert shown.run("selection()") == json.loads(file.read_text())
  shown.press("u")
  assert shown.run("selection().images") == []


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"what": "a letter"}, "no selection"),
    ({"image_set": {"name": "other"}}, "of other-"),
    ({"label_sets": [{"name": "one", "teacher": "x"}]}, "other label sets"),
    ({"images": [{"key": "moon", "decision": "accept"}]}, "moon"),
    ({"images": [{"key": "i-0001", "decision": "burn"}]}, "burn"),
  ],
)
def test_a_selection_of_something_else_is_refused(shown, change, told):
  text = json.dumps(shown.run("selection()") | change)
  shown.run(f"importSelection({json.dumps(text)})")
  assert told in shown.run("document.getElementById('toast').textContent")
  assert shown.run("state.decisions.size") == 0
  shown.run("importSelection('{')")
  assert "no JSON" in shown.run("document.getElementById('toast').textContent")
  assert (
    shown.run("document.getElementById('toast').className") == "shown error"
  )


def test_keys_switch_layers_and_show_help(shown):
  assert shown.run("[...state.shown]") == [0, 1]
  shown.press("3", "1")
  assert shown.run("[...state.shown].sort()") == [1, 2]
  shown.press("?")
  assert shown.run("document.getElementById('keys').open")
  shown.press("a")
  assert shown.run("state.decisions.size") == 0
  shown.press("?")
  assert not shown.run("document.getElementById('keys').open")
  shown.press("l")
  shown.wait("document.body.dataset.ready === 'yes'")
  assert {*all_drawn(shown, BOXES).values()} == {0}


def test_only_the_page_that_is_shown_is_loaded(shown):
  assert shown.run("cards.size") == 48
  assert shown.run("drawings.size") == 48
  shown.press("n")
  shown.wait("document.body.dataset.ready === 'yes'")
  assert shown.run("cards.size") == NUMBER - 48
  assert shown.run("document.getElementById('place').textContent") == "2 / 2"


@needs_browser
def test_one_file_shows_the_same(browser, made, tmp_path):
  root = made["root"]
  page.write(
    [root / "one"],
    root / "images",
    tmp_path / "page",
    options=page.PageOptions(single_file=True),
  )
  assert [p.name for p in (tmp_path / "page").iterdir()] == ["index.html"]
  browser.open((tmp_path / "page" / "index.html").as_uri())
  drawn = all_drawn(browser, BOXES)
  assert sum(drawn.values()) == sum(left(x, 0.5) for x in made["one"])
  browser.run("setPlace(0)")
  browser.wait("document.querySelector('.picture img').naturalWidth > 0")


# --- What Python writes, without a browser ----------------------------------


def read_index(folder):
  text = (folder / "index_files" / "index.js").read_text()
  return json.loads(text.removeprefix("const PAGE = ").removesuffix(";\n"))


def read_drawings(folder, number):
  text = (folder / "index_files" / f"{number:06}.js").read_text()
  found = text.removeprefix("addDrawings(").removesuffix(");\n")
  return json.loads(f"[{found}]")[1]


def test_maps_are_pictures_of_codes(made):
  folder = made["root"] / "page"
  for number, labels in enumerate(made["one"]):
    mask, objects, other = read_drawings(folder, number)
    assert len(objects["boxes"]) == left(labels, 0)
    assert other is not None
    assert (mask is None) == ("mask" not in labels)
    if mask is None:
      continue
    data = base64.b64decode(mask["png"].partition(",")[2])
    codes = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(codes[..., 0], labels["mask"]["classes"])
    confidence = np.rint(255 * labels["mask"]["confidence"])
    np.testing.assert_array_equal(codes[..., 1], confidence)


def test_pictures_are_reduced(made, tmp_path):
  root = made["root"]
  options = page.PageOptions(max_side=32, count=10, seed=3)
  summary = page.write(
    [root / "one"], root / "images", tmp_path / "page", options=options
  )
  assert (summary.num_images, summary.num_records) == (10, NUMBER)
  index = read_index(tmp_path / "page")
  assert len(index["images"]) == 10
  for row in index["images"]:
    file = tmp_path / "page" / "index_files" / f"{row['id']:06}.jpg"
    with Image.open(file) as picture:
      assert max(picture.size) == 32
    assert tuple(row["size"]) == made["sizes"][row["id"]]
    assert row["key"] == made["keys"][row["id"]]


def test_names_cannot_end_the_script(scribbles, tmp_path):
  images = scribbles.make_images(tmp_path / "images", [(20, 20)] * 2)
  fields = {"objects": {"kind": "Boxes", "classes": ["</script><b>"]}}
  labels = {
    "boxes": [[0, 0, 1, 1]],
    "classes": [0],
    "scores": np.float32([0.9]),
  }
  labels = [{"objects": {k: np.array(v) for k, v in labels.items()}}] * 2
  scribbles.label(tmp_path / "labels", images, labels, fields)
  page.write(
    [tmp_path / "labels"],
    tmp_path / "images",
    tmp_path / "page",
    options=page.PageOptions(single_file=True),
  )
  text = (tmp_path / "page" / "index.html").read_text()
  assert "</script><b>" not in text and "\\u003c/script>" in text


def inspect(capsys, *arguments):
  """The status and the message of a call that must fail."""
  assert main(["inspect", *map(str, arguments)]) == 2
  return capsys.readouterr().err


def test_bad_input_is_told(made, scribbles, tmp_path, capsys):
  root = made["root"]
  one, images = root / "one", ("--images", root / "images")
  out = ("--out", tmp_path / "page")
  assert "needs --images" in inspect(capsys, one, *out)
  assert "given twice" in inspect(capsys, one, one, *images, *out)
  assert "--max-side is 0" in inspect(
    capsys, one, *images, *out, "--max-side", 0
  )
  others = scribbles.make_images(
    tmp_path / "others", [(20, 20)] * 3, name="others"
  )
  told = inspect(capsys, one, "--images", others.directory, *out)
  assert "has no split" in told or "image set 'shots'" in told
  labels = [{"objects": draw(3, 1)[0]["objects"]}] * 3
  scribbles.label(
    tmp_path / "strange", others, labels, {"objects": OBJECTS}, "s"
  )
  told = inspect(capsys, one, tmp_path / "strange", *images, *out)
  assert "was made for split 'train' of image set 'others'" in told
  told = inspect(capsys, one, *images, *out, "--min-score", 1.5)
  assert "--min-score is 1.5; expected 0 to 1" in told
  assert "--single-file needs --out" in inspect(capsys, one, "--single-file")
  told = inspect(capsys, one, "--against", one, "--worst", -1)
  assert "--worst is -1; expected 0 or more" in told
  told = inspect(capsys, tmp_path / "missing", *images, *out)
  assert "missing is no directory. Give the directory that a lab" in told
  told = inspect(capsys, one, *images, "--out", str(one / "job.json"))
  assert "job.json is a file; expected a directory as --out" in told
  (tmp_path / "unfinished").mkdir()
  job = (one / "job.json").read_text()
  (tmp_path / "unfinished" / "job.json").write_text(job)
  told = inspect(capsys, tmp_path / "unfinished", *images, *out)
  assert "no finished label set" in told
  manifest = json.loads((one / "manifest.json").read_text())
  for sums in manifest["statistics"].values():
    sums["examples"] = 0
  empty = tmp_path / "empty"
  empty.mkdir()
  for file in one.iterdir():
    (empty / file.name).write_bytes(file.read_bytes())
  (empty / "manifest.json").write_text(json.dumps(manifest))
  told = inspect(capsys, empty, *images, *out)
  assert "no label of any of its 60 images" in told
  assert not (tmp_path / "page").exists()


def test_another_folder_is_left_alone(made, tmp_path, capsys):
  root = made["root"]
  arguments = [root / "one", "--images", root / "images", "--out"]
  mine = tmp_path / "mine"
  mine.mkdir()
  (mine / "thesis.txt").write_text("mine")
  assert "holds thesis.txt" in inspect(capsys, *arguments, mine)
  (mine / "thesis.txt").rename(mine / "index.html")
  assert "holds index.html" in inspect(capsys, *arguments, mine)
  assert (mine / "index.html").read_text() == "mine"
  for _ in range(2):  # an earlier page is replaced
    assert main(["inspect", *map(str, arguments), str(tmp_path / "page")]) == 0
    stray = tmp_path / "page" / "index_files" / "999999.js"
    assert not stray.exists()
    stray.write_text("")


def test_sets_and_page_may_be_in_a_bucket(made, bucket, tmp_path):
  from must_jax.storage import path as path_lib

  root = made["root"]
  for name in ("images", "one"):
    for file in (root / name).iterdir():
      path_lib.copy(file, f"{bucket.root}/{name}/{file.name}")
  for here in (str(tmp_path), bucket.root):
    for _ in range(2):  # the second one replaces the first
      page.write(
        [f"{bucket.root}/one"],
        f"{bucket.root}/images",
        f"{here}/page",
        options=page.PageOptions(count=5),
      )
  names = path_lib.list_tree(tmp_path / "page")
  assert len(names) == 1 + 2 + 2 * 5
  assert sorted(path_lib.list_tree(f"{bucket.root}/page")) == sorted(names)
  for name in names:
    there = path_lib.read_file(path_lib.Path(f"{bucket.root}/page/{name}"))
    assert there == (tmp_path / "page" / name).read_bytes(), name


def test_what_people_and_accidents_have_done_is_told(
  browser, scribbles, tmp_path
):
  """Corrected labels are shown whatever their score; others say why not."""
  from must_jax.storage import records

  images = scribbles.make_images(tmp_path / "images", [(40, 50)] * 4)
  labels = draw(5, 4)
  for found in labels:
    found["objects"] = {
      "boxes": np.array([[0.1, 0.1, 0.5, 0.5]]),
      "classes": np.array([1]),
      "scores": np.float32([0.3]),
    }
  scribbles.label(tmp_path / "labels", images, labels, FIELDS)
  statuses = iter(["ok", "corrected", "rejected", "undecodable"])
  read = {}

  def status_of(record):
    key = records.key_of(record)
    if key not in read:
      read[key] = next(statuses)
    return read[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(records, "status_of", status_of)
    page.write([tmp_path / "labels"], images.directory, tmp_path / "page")
  browser.open((tmp_path / "page" / "index.html").as_uri())
  drawn = all_drawn(browser, BOXES)
  keys = browser.run("PAGE.images.map((row) => row.key)")
  assert [drawn[key] for key in keys] == [0, 1, 0, 0]
  assert browser.run("countClasses(1)[1].left") == 1
  chips = browser.run(
    "PAGE.images.map((_, n) =>"
    " cards.get(n).querySelector('.status')?.textContent ?? '')"
  )
  assert chips == ["", "corrected", "rejected", "undecodable"]


def test_a_broken_image_keeps_its_place(browser, scribbles, tmp_path, capsys):
  images = scribbles.make_images(
    tmp_path / "images", [(40, 50)] * 4, broken=[2]
  )
  scribbles.label(tmp_path / "labels", images, draw(5, 4), FIELDS)
  command = ["inspect", str(tmp_path / "labels"), "--images"]
  command += [str(images.directory), "--out", str(tmp_path / "page")]
  assert main(command) == 0
  told = capsys.readouterr()
  assert "cannot be shown: i-0002: image: " in told.err
  assert f"4 images -> {tmp_path / 'page' / 'index.html'}" in told.out
  browser.open((tmp_path / "page" / "index.html").as_uri())
  assert {*all_drawn(browser, BOXES)} == {f"i-{i:04}" for i in range(4)}
  chips = browser.run(
    "[...cards.values()].map("
    "(card) => card.querySelector('.status')?.textContent)"
  )
  assert sum("undecodable" in chip for chip in chips if chip) == 1


def test_truth_is_a_layer_that_no_threshold_hides(browser, scribbles, tmp_path):
  boxes = {"boxes": np.array([[0.1, 0.1, 0.6, 0.6]]), "classes": np.array([2])}
  none = {"boxes": np.zeros((0, 4)), "classes": np.zeros(0, int)}
  true = [{"objects": none if i % 2 else boxes} for i in range(6)]
  images = scribbles.make_images(
    tmp_path / "images", [(40, 50)] * 6, true, {"objects": OBJECTS}
  )
  scores = np.float32([0.9])
  labels = [{"objects": boxes | {"scores": scores}}] * 6
  scribbles.label(
    tmp_path / "labels", images, labels, {"objects": OBJECTS}, "t"
  )
  page.write(
    [tmp_path / "labels"],
    images.directory,
    tmp_path / "page",
    truth=images.directory,
  )
  browser.open((tmp_path / "page" / "index.html").as_uri())
  browser.run("localStorage.clear()")
  browser.open((tmp_path / "page" / "index.html").as_uri())
  # Where there is nothing in truth, the label is wrong.
  worst = keys_shown(browser)
  assert {*worst[:3]} == {"i-0001", "i-0003", "i-0005"}
  assert browser.run("PAGE.pairs.map((pair) => pair.classes)") == [
    {"owl": [6, 9]}
  ]
  assert browser.run("panels[1].slider") is None
  browser.run("setLayer(1, true); setThreshold('objects', null, 0.95)")
  browser.wait("document.body.dataset.ready === 'yes'")
  assert {*all_drawn(browser, 0).values()} == {0}
  drawn = all_drawn(browser, 1)
  assert drawn == {f"i-{i:04}": 1 - i % 2 for i in range(6)}
  told = browser.run("selection()")
  assert told["label_sets"] == [{"name": "labels", "teacher": "t"}]
  assert told["min_score"] == {"objects": 0.95}


def test_a_selection_becomes_corrections_that_the_page_shows(
  shown, browser, made, tmp_path
):
  order = keys_shown(shown)
  shown.run("setThreshold('objects', null, 0.4)")
  shown.press("a", "j", "r")
  file = tmp_path / "selection.json"
  file.write_text(json.dumps(shown.run("selection()")))
  root = made["root"]
  command = ["labels", "import", str(file), "--labels", str(root / "one")]
  command += ["--images", str(root / "images")]
  assert main([*command, "--out", str(tmp_path / "corrections")]) == 0
  page.write(
    [root / "one", tmp_path / "corrections"],
    root / "images",
    tmp_path / "page",
  )
  browser.open((tmp_path / "page" / "index.html").as_uri())
  layer = browser.run(
    "PAGE.layers.findIndex((l) => l.set === 1 && l.field === 'objects')"
  )
  browser.run(f"setLayer({layer}, true); setThreshold('objects', null, 1)")
  browser.wait("document.body.dataset.ready === 'yes'")
  drawn = all_drawn(browser, layer)
  labels = dict(zip(made["keys"], made["one"], strict=True))
  expected = dict.fromkeys(made["keys"], 0)
  expected[order[0]] = left(labels[order[0]], 0.4)
  assert drawn == expected
  rows = browser.run("PAGE.images.filter((row) => row.statuses)")
  assert {row["key"]: row["statuses"] for row in rows} == {
    order[0]: {"1": "corrected"},
    order[1]: {"1": "rejected"},
  }


KINDS = {
  "label": {"kind": "ClassVector", "classes": ["a", "b", "c"]},
  "depth": {"kind": "ValueMap", "unit": "metres"},
  "normals": {"kind": "VectorMap"},
}


def test_every_kind_is_drawn(browser, scribbles, tmp_path):
  images = scribbles.make_images(tmp_path / "images", [(40, 60)] * 3)
  valid = np.ones((4, 6), bool)
  valid[0] = False
  toward = np.zeros((4, 6, 3))
  toward[..., 2] = -1
  labels = {
    "label": {"classes": [2, 0], "probs": np.float32([0.7, 0.2])},
    "depth": {"values": np.arange(24.0).reshape(4, 6) + 1, "valid": valid},
    "normals": {"vectors": toward, "valid": valid},
  }
  labels = {
    name: {k: np.array(v) for k, v in arrays.items()}
    for name, arrays in labels.items()
  }
  scribbles.label(tmp_path / "labels", images, [labels] * 3, KINDS)
  page.write([tmp_path / "labels"], images.directory, tmp_path / "page")
  browser.open((tmp_path / "page" / "index.html").as_uri())
  for i in range(3):
    browser.run(f"setLayer({i}, true)")
  browser.wait("document.body.dataset.ready === 'yes'")
  layers = browser.run("PAGE.layers.map((layer) => layer.field)")
  drawn = json.loads(browser.run("cards.get(0).dataset.drawn"))
  assert {layers[int(i)]: n for i, n in drawn.items()} == {
    "label": 1,  # of probability 0.5 or more, or the most probable
    "depth": 18,
    "normals": 18,
  }
  chips = browser.run(
    "[...cards.get(0).querySelectorAll('.chip')].map((x) => x.textContent)"
  )
  assert chips == ["c0.70", "a0.20"]

  def codes(name):
    found = read_drawings(tmp_path / "page", 0)[layers.index(name)]
    data = base64.b64decode(found["png"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data))).astype(int), found

  near, drawing = codes("depth")
  assert (near[0] == 0).all() and (near[1:] > 0).all()
  assert (np.diff(near[1:, :, 0].ravel()) <= 0).all()  # nearest first
  far, close = drawing["range"]
  assert close == pytest.approx(7, rel=0.1) and far == pytest.approx(
    24, rel=0.1
  )
  colors, _ = codes("normals")
  assert (colors[1:] == (128, 128, 255)).all() and (colors[0] == 0).all()
