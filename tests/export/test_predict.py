"""`must-jax predict`: files of whatever a folder of photos holds."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import must_jax
from must_jax.cli import main
from must_jax.config import base_config, dataset, task
from must_jax.main import run_stage
from must_jax.storage.image_files import decode_png
from must_jax.storage.set_writer import write_image_set


@pytest.fixture
def checkpoint(make_checkpoint):
  classes = ("cat", "dog")
  return make_checkpoint(
    {
      "kind": task("classification", labels={}, classes=classes),
      "distance": task("depth", labels={}),
    }
  )


def photo(path, size=(40, 60), seed=0, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  Image.fromarray(pixels).save(path, **options)


def test_what_cannot_be_read_is_named_and_passed_over(
  checkpoint, tmp_path, capsys
):
  photos = tmp_path / "photos"
  photo(photos / "a.jpg")
  photo(photos / "sub/a.jpg", (30, 20))
  photo(photos / "ext.jpg")
  photo(photos / "ext.png")
  (photos / "empty.jpg").write_bytes(b"")
  (photos / "cut.jpg").write_bytes((photos / "a.jpg").read_bytes()[:300])
  (photos / "._a.jpg").write_bytes(b"\0\5\x16\7Mac OS X")
  (photos / "notes.txt").write_text("none")
  photo(photos / ".cache/b.jpg")
  png = bytearray((photos / "ext.png").read_bytes())
  png[40] ^= 255  # in the first chunk after the header's
  (photos / "bad.png").write_bytes(png)
  Image.new("L", (20000, 10000)).save(photos / "huge.png")
  codes = np.linspace(0, 4095, 1200).astype(np.uint16).reshape(30, 40)
  Image.fromarray(codes).save(photos / "deep.png")  # 12 of 16 bits
  out = tmp_path / "out"
  assert main(["predict", str(checkpoint), str(photos), "--out", str(out)]) == 0
  pictures = out / "pictures"
  drawn = sorted(
    p.relative_to(pictures).as_posix() for p in pictures.rglob("*.png")
  )
  names = ("a", "deep", "ext", "ext.png", "sub/a")
  assert drawn == sorted(f"{n}-{t}.png" for n in names for t in TASKS)
  result = json.loads((out / "predictions.json").read_text())
  listed = {image["file_name"]: image for image in result["images"]}
  assert {*listed} == {"a.jpg", "deep.png", "ext.jpg", "ext.png", "sub/a.jpg"}
  assert (listed["sub/a.jpg"]["height"], listed["sub/a.jpg"]["width"]) == (
    *(30, 20),
  )
  seen = Image.open(photos / "sub/a.jpg").convert("RGB")
  shown = np.asarray(Image.open(out / "pictures/sub/a-kind.png"))
  assert (shown[:30, :20] == np.asarray(seen)).all()  # its own pixels
  assert len(shown) > 30  # and a legend
  said = capsys.readouterr()
  assert "5 images ->" in said.out
  reasons = {x["path"]: x["reason"] for x in result["passed_over"]}
  assert len(reasons) == 7
  assert reasons[str(photos / ".cache")] == "hidden"
  for name, reason in (
    ("empty.jpg", "cannot be decoded: the file is empty"),
    ("bad.png", "cannot be decoded: broken JPEG or PNG data"),
    ("._a.jpg", "hidden"),
    (".cache", "hidden"),
    ("cut.jpg", "cannot be decoded"),
    ("notes.txt", "no image"),
    ("huge.png", "20000"),
  ):
    (line,) = (x for x in said.err.splitlines() if f"/{name}:" in x)
    assert reason in line
  assert "5 predicted, 7 passed over" in said.err
  assert "1 images of 16 bits have at most" in said.err


TASKS = ("distance", "kind")


def test_a_file_that_was_named_must_be_readable(checkpoint, tmp_path, capsys):
  photo(tmp_path / "good.jpg")
  (tmp_path / "bad.jpg").write_bytes(b"no image")
  files = [str(tmp_path / name) for name in ("bad.jpg", "gone.jpg", "good.jpg")]
  out = tmp_path / "out"
  assert main(["predict", str(checkpoint), *files, "--out", str(out)]) == 1
  assert len(list((out / "pictures").iterdir())) == 2
  # Said again by a command that has nothing left to do.
  assert main(["predict", str(checkpoint), *files, "--out", str(out)]) == 1
  assert "there is no file" in capsys.readouterr().err


def test_nothing_to_draw_is_an_error(checkpoint, tmp_path, capsys):
  (tmp_path / "none").mkdir()
  (tmp_path / "none/a.txt").write_text("")
  command = ["predict", str(checkpoint), str(tmp_path / "none"), "--out", "x"]
  assert main(command) == 2
  assert "has no images" in capsys.readouterr().err


def test_equal_names_of_several_folders_stay_apart(checkpoint, tmp_path):
  for i, folder in enumerate(("a", "b", "c")):
    photo(tmp_path / folder / "img.jpg", seed=i)
  folders = [str(tmp_path / name) for name in "abc"]
  out = tmp_path / "out"
  assert main(["predict", str(checkpoint), *folders, "--out", str(out)]) == 0
  assert len({p.read_bytes() for p in out.glob("pictures/*-distance.png")}) == 3
  result = json.loads((out / "predictions.json").read_text())
  names = [image["file_name"] for image in result["images"]]
  assert names == [f"{folder}/img.jpg" for folder in folders]


def test_pictures_have_a_longest_side(checkpoint, tmp_path):
  photo(tmp_path / "a.jpg", (300, 400))
  command = ["predict", str(checkpoint), str(tmp_path / "a.jpg"), "--max-side"]
  assert main([*command, "200", "--out", str(tmp_path / "out")]) == 0
  with Image.open(tmp_path / "out/pictures/a-distance.png") as picture:
    pixels = np.asarray(picture.convert("RGB"))
  assert (pixels[:150, 200:] == 255).all()
  assert (pixels[:150, :200] != 255).any((1, 2)).all()
  assert np.load(tmp_path / "out/maps/distance/a.npy").shape == (300, 400)


def test_codes_of_16_bits_are_told_and_can_be_given(
  checkpoint, tmp_path, capsys
):
  codes = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60)  # of 12 bits
  Image.fromarray(codes).save(tmp_path / "a.png")
  command = ["predict", str(checkpoint), str(tmp_path / "a.png"), "--out"]
  assert main([*command, str(tmp_path / "dark")]) == 0
  assert "1 up to 4095. Give --code-range LOW HIGH" in capsys.readouterr().err
  told = [*command, str(tmp_path / "out"), "--code-range"]
  assert main([*told, "0", "4095"]) == 0
  assert "warning" not in capsys.readouterr().err
  dark, out = (
    np.asarray(Image.open(tmp_path / name / "pictures/a-kind.png"), float)[
      :40, :60
    ]
    for name in ("dark", "out")
  )
  assert dark.mean() + 20 < out.mean()
  assert main([*told, "4095", "0"]) == 2
  assert "--code-range is 4095 0" in capsys.readouterr().err


def all_tasks(**detector):
  detector = {
    "fc_dims": 16,
    "num_rois": 16,
    "rpn_pre_nms": 32,
    "rpn_post_nms": 16,
    "max_detections": 8,
    "score_threshold": 0.0,
    "anchor_scale": 3.5,
    "roi_canonical_size": 32.0,
  } | detector
  names = {"classes": ("cat", "dog")}
  return {
    "boxes": task("detection", labels={}, **names, **detector),
    "depth": task("depth", labels={}),
    "mask": task("segmentation", labels={}, classes=("sky", "cat", "dog")),
    "slope": task("normals", labels={}),
  }


def read(out):
  return json.loads((out / "predictions.json").read_text())


def test_average_precision_is_that_of_the_evaluation(
  make_checkpoint, tmp_path, monkeypatch
):
  """Truth is some of what is found, moved; pycocotools reads the files."""
  coco = pytest.importorskip("pycocotools.coco", reason="pip install .[dev]")
  path = make_checkpoint({"boxes": all_tasks()["boxes"]})
  sizes = [(64, 64), (48, 90), (120, 80), (70, 70), (33, 61)]
  photos = tmp_path / "photos"
  for i, size in enumerate(sizes):
    photo(photos / f"{i}.png", size, seed=i)
  command = ["predict", str(path), str(photos), "--format", "json", "--out"]
  assert main([*command, str(tmp_path / "out")]) == 0
  result = read(tmp_path / "out")
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["predictions.json"]

  rng = np.random.default_rng(0)
  truth, examples = [], []
  for i, (height, width) in enumerate(sizes):
    boxes, classes = [], []
    for found in result["annotations"]:
      x, y, w, h = found["bbox"]
      if found["image_id"] != i + 1 or min(w, h) < 4 or rng.random() < 0.4:
        continue
      x1 = min(width, x + w * rng.uniform(0.5, 1.3))
      y1 = min(height, y + h * rng.uniform(0.7, 1.2))
      boxes.append([y / height, x / width, y1 / height, x1 / width])
      classes.append(found["category_id"] - 1)
      box = [x, y, x1 - x, y1 - y]
      truth.append(
        {
          "id": len(truth) + 1,
          "image_id": i + 1,
          "category_id": found["category_id"],
          "bbox": box,
          "area": box[2] * box[3],
          "iscrowd": 0,
        }
      )
    label = {
      "boxes": np.array(boxes, np.float32).reshape(-1, 4),
      "classes": np.array(classes, np.int64),
    }
    examples.append(
      {
        "key": str(i),
        "image": (photos / f"{i}.png").read_bytes(),
        "height": height,
        "width": width,
        "labels": {"objects": label},
      }
    )
  fields = {"objects": {"kind": "Boxes", "classes": ["cat", "dog"]}}
  write_image_set(tmp_path / "set", "it", "val", examples, fields)
  config = base_config()
  config.stage, config.evaluate_from = "evaluate", str(path)
  config.datasets.it = dataset(tmp_path / "set", "val")
  config.evaluate_on = ("it",)
  config.tasks.boxes = task("detection", labels={"it": "supervised"})
  config.data.eval_batch_size = 2
  expected = run_stage(config, str(tmp_path / "evaluation"))

  # Whoever made the truth has other ids.
  names = [image["file_name"] for image in result["images"]]
  for annotation in truth:
    annotation["image_id"] = 205 - annotation["image_id"]
    annotation["category_id"] = 20 - annotation["category_id"]
  (tmp_path / "instances_val.json").write_text(
    json.dumps(
      {
        "info": {},
        "images": [
          {"id": 204 - i, "file_name": name} for i, name in enumerate(names)
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 19, "name": "cat"}],
        "annotations": truth,
      }
    )
  )
  monkeypatch.chdir(tmp_path)
  run = in_docs("average precision", result=result)["evaluation"]
  # The file is a data set of its own, too.
  written = coco.COCO("out/predictions.json")
  assert len(written.getAnnIds()) == len(result["annotations"])
  numbers = ("AP", "AP50", "AP75", "APs", "APm")
  found = dict(zip(numbers, run.stats, strict=False))
  assert 0.1 < found["AP"] < 0.9
  for name, value in found.items():
    other = expected[f"it/boxes/{name}"]
    assert max(value, 0) == pytest.approx(other, abs=1e-6), name


def in_docs(title, **names):
  """Runs an example of the documentation; what it made."""
  page = pathlib.Path(__file__).parents[2] / "docs" / "predictions.md"
  form = rf"<!-- test: {title} -->\n```python\n(.*?)```"
  code = re.search(form, page.read_text(), re.DOTALL).group(1)
  exec(compile(code, str(page), "exec"), names)
  return names


def test_maps_are_read_back(make_checkpoint, tmp_path, monkeypatch):
  """By what predictions.json says, without must_jax."""
  path = make_checkpoint(all_tasks())
  exif = Image.Exif()
  exif[0x0112] = 6  # a quarter to the right
  photo(tmp_path / "a.jpg", (40, 60), exif=exif)
  command = ["predict", str(path), str(tmp_path / "a.jpg"), "--out"]
  out = tmp_path / "seen"
  assert main([*command, str(out)]) == 0
  (image,) = read(out)["images"]
  assert (image["height"], image["width"]) == (60, 40)
  (found,) = must_jax.load(path).predict([tmp_path / "a.jpg"])
  told = image["predictions"]

  how = told["depth"]["png"]
  codes = decode_png((out / how["file"]).read_bytes())
  assert codes.dtype == np.uint16
  values = found["depth"]["values"]
  assert values.shape == codes.shape == (60, 40)
  monkeypatch.chdir(tmp_path)
  error = np.abs(in_docs("read maps")["depth"] - values)
  assert error.max() <= how["scale"] * 0.501
  assert how["unit"] == "inverse" and how["unknown"] == 0
  assert told["depth"]["range"] == pytest.approx(
    [values.min(), values.max()], rel=1e-6
  )
  (npy,) = told["depth"]["npy"]
  np.testing.assert_allclose(np.load(out / npy), values, atol=1e-5)
  assert np.load(out / npy).dtype == np.float32

  codes = decode_png((out / told["slope"]["png"]["file"]).read_bytes())
  vectors = 2 * (codes.astype(float) - 1) / 65534 - 1
  error = np.abs(vectors - found["slope"]["vectors"])
  assert error.max() < 1e-4  # of steps of 3e-5, and of two predictions
  (npy,) = told["slope"]["npy"]
  assert np.load(out / npy).shape == (60, 40, 3)

  classes = found["mask"]["classes"]
  with Image.open(out / told["mask"]["png"]["file"]) as map_:
    assert map_.mode == "P"
    assert (np.asarray(map_) == classes).all()
    palette = np.array(map_.getpalette()).reshape(-1, 3)
  names = (out / "maps/mask/classes.txt").read_text().split()
  assert names == ["sky", "cat", "dog"]
  shares = {name: (classes == i).mean() for i, name in enumerate(names)}
  assert told["mask"]["shares"] == pytest.approx(
    {name: share for name, share in shares.items() if share}, abs=1e-6
  )
  # The cat of the boxes has the colour of the cat of the map.
  colors = {name: x["colors"] for name, x in read(out)["info"]["tasks"].items()}
  assert colors["mask"] == palette[:3].tolist()
  assert colors["boxes"] == palette[1:3].tolist()


def test_scores_below_the_threshold_are_left_out(make_checkpoint, tmp_path):
  path = make_checkpoint(
    all_tasks() | {"kind": task("classification", labels={}, classes=SEVEN)}
  )
  photo(tmp_path / "a.png", (70, 90))
  command = ["predict", str(path), str(tmp_path / "a.png"), "--out"]
  assert main([*command, str(tmp_path / "all")]) == 0
  everything = read(tmp_path / "all")
  scores = sorted(x["score"] for x in everything["annotations"])
  told = everything["images"][0]["predictions"]["kind"]["classes"]
  assert len(told) == 5
  assert [x["name"] for x in told] == [SEVEN[x["id"]] for x in told]
  probs = [x["probability"] for x in told]
  assert probs == sorted(probs, reverse=True)

  middle = scores[len(scores) // 2]
  cut = [*command, str(tmp_path / "some"), "--min-score", str(middle)]
  assert main(cut) == 0
  some = read(tmp_path / "some")
  kept = [x for x in everything["annotations"] if x["score"] >= middle]
  assert 0 < len(kept) < len(scores)
  strip = [{k: v for k, v in x.items() if k != "id"} for x in kept]
  assert [{**x, "id": 0} for x in strip] == [
    {**x, "id": 0} for x in some["annotations"]
  ]

  none = [*command, str(tmp_path / "none"), "--min-score", "1"]
  assert main(none) == 0
  (image,) = read(tmp_path / "none")["images"]
  assert read(tmp_path / "none")["annotations"] == []
  assert [x["name"] for x in read(tmp_path / "none")["categories"]] == [
    *("cat", "dog"),
  ]
  assert image["predictions"]["kind"]["classes"] == []
  assert image["predictions"]["boxes"]["num_objects"] == 0
  map_ = Image.open(tmp_path / "none/maps/mask/a.png")
  assert (np.asarray(map_) == 255).all()

  zero = [*command, str(tmp_path / "zero"), "--min-score", "0"]
  assert main([*zero, "--tasks", "kind", "--format", "json"]) == 0
  (image,) = read(tmp_path / "zero")["images"]
  assert list(image["predictions"]) == ["kind"]
  told = image["predictions"]["kind"]["classes"]
  assert len(told) == 7
  assert sum(x["probability"] for x in told) == pytest.approx(1, abs=1e-5)


SEVEN = ("a", "b", "c", "d", "e", "f", "g")


def test_a_list_names_photos(checkpoint, tmp_path):
  for name in ("x/1.jpg", "y/1.jpg", "2.jpg"):
    photo(tmp_path / "deep" / name)
  lines = ["x/1.jpg", "", "./y/1.jpg", str(tmp_path / "deep/2.jpg")]
  (tmp_path / "deep/list.txt").write_text("\r\n".join(lines) + "\r\n")
  listed = str(tmp_path / "deep/list.txt")
  out = tmp_path / "out"
  assert main(["predict", str(checkpoint), listed, "--out", str(out)]) == 0
  names = [image["file_name"] for image in read(out)["images"]]
  assert names == ["x/1.jpg", "y/1.jpg", "2.jpg"]
  assert (out / "maps/distance/y/1.png").exists()


def tree(out):
  return {
    p.relative_to(out).as_posix(): p.read_bytes()
    for p in out.rglob("*")
    if p.is_file()
  }


@pytest.fixture
def many(checkpoint, tmp_path):
  """A command that predicts ten photos, four at a time; one is broken."""
  for i in range(10):
    photo(tmp_path / f"photos/{i}.jpg", (40 + i, 60), seed=i)
  (tmp_path / "photos/5.jpg").write_bytes(b"no image")
  command = ["predict", str(checkpoint), str(tmp_path / "photos")]
  return [*command, "--batch-size", "4", "--out"]


def test_what_was_broken_off_goes_on(many, tmp_path, monkeypatch, capsys):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  assert main([*many, str(whole)]) == 0
  assert len(read(whole)["images"]) == 9

  from must_jax.export import predict
  from must_jax.train.load import LoadedModel

  original = predict._Run._publish
  predicted = []
  predict_batch = LoadedModel.predict_batch

  def note(self, photos, tasks):
    predicted.append(len(photos))
    return predict_batch(self, photos, tasks)

  def break_off(self, target, data):
    if target.name == "6.npy":
      raise KeyboardInterrupt
    return original(self, target, data)

  monkeypatch.setattr(LoadedModel, "predict_batch", note)
  monkeypatch.setattr(predict._Run, "_publish", break_off)
  assert main([*many, str(parts)]) == 130
  assert not (parts / "predictions.json").exists()
  monkeypatch.setattr(predict._Run, "_publish", original)
  # As a kill leaves them.
  with open(parts / "predictions.partial.jsonl", "ab") as file:
    file.write(b'{"batch":1,"ima')
  (parts / "maps/distance/.6.npy.17-0123abcd.tmp").write_bytes(b"half")
  predicted.clear()
  assert main([*many, str(parts)]) == 0
  assert predicted == [3, 2]  # not the first four
  assert tree(parts) == tree(whole)
  # Nothing is left to do.
  predicted.clear()
  assert main([*many, str(parts)]) == 0
  assert "is complete" in capsys.readouterr().out
  assert not predicted
  assert tree(parts) == tree(whole)


@pytest.mark.slow
def test_a_kill_at_any_moment_changes_nothing(many, tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  many[many.index("--batch-size") + 1] = "1"
  assert main([*many, str(whole)]) == 0
  program = [sys.executable, "-m", "must_jax.cli", *many, str(parts)]
  for number in (2, 6):
    process = subprocess.Popen(program, stderr=subprocess.DEVNULL)
    log = parts / "predictions.partial.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < number:
      assert process.poll() is None
      time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
  assert not (parts / "predictions.json").exists()
  assert subprocess.run(program, check=False).returncode == 0
  assert tree(parts) == tree(whole)


def test_another_command_is_told_apart(many, make_checkpoint, tmp_path, capsys):
  out = str(tmp_path / "out")
  assert main([*many, out]) == 0
  before = tree(tmp_path / "out")
  assert main([*many, out, "--min-score", "0.5"]) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert "--min-score (was None, is 0.5)" in error
  assert "another --out" in error
  photo(tmp_path / "photos/more.jpg")
  assert main([*many, out]) == 2
  assert "photos (was 10 files" in capsys.readouterr().err
  (tmp_path / "photos/more.jpg").unlink()
  classes = ("cat", "cow")
  other = make_checkpoint(
    {
      "kind": task("classification", labels={}, classes=classes),
      "distance": task("depth", labels={}, unit="metres", objective="l1"),
    },
    name="other",
  )
  many[1] = str(other)
  assert main([*many, out, "--tasks", "kind"]) == 2
  assert "--tasks" in capsys.readouterr().err
  assert tree(tmp_path / "out") == before


def test_own_pictures_are_no_photos(many, tmp_path):
  inside = tmp_path / "photos/out"
  assert main([*many, str(inside)]) == 0
  before = tree(inside)
  assert main([*many, str(inside)]) == 0
  assert tree(inside) == before


def test_photos_may_lie_beside_the_results(many, tmp_path, capsys):
  photos = tmp_path / "photos"
  assert main([*many, str(photos)]) == 0
  before = tree(photos)
  assert main([*many, str(photos)]) == 0
  assert tree(photos) == before
  many[2] = str(photos / "pictures")
  assert main([*many, str(photos)]) == 2
  assert "is where predictions are written" in capsys.readouterr().err


@pytest.mark.parametrize(
  "options, message",
  [
    (["--min-score", "2"], "--min-score is 2.0; expected 0 to 1"),
    (["--batch-size", "0"], "--batch-size is 0; expected 1 or more"),
    (["--max-side", "-1"], "--max-side is -1; expected 0 or more"),
    (
      ["--format", "pdf"],
      "expected some of ['json', 'png', 'npy', 'pictures']",
    ),
    (["--tasks", "sounds"], "['distance', 'kind']"),
  ],
)
def test_wrong_options_are_told(many, options, message, tmp_path, capsys):
  assert main([*many, str(tmp_path / "out"), *options]) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_photos_and_results_may_be_in_a_bucket(checkpoint, tmp_path, bucket):
  from must_jax.storage.path import Path, publish, read_file

  for i in range(3):
    photo(tmp_path / f"photos/{i}.jpg", seed=i)
    with publish(Path(f"{bucket.root}/photos/{i}.jpg")) as file:
      file.write((tmp_path / f"photos/{i}.jpg").read_bytes())
  for root in (str(tmp_path), bucket.root):
    command = ["predict", str(checkpoint), f"{root}/photos", "--out"]
    assert main([*command, f"{root}/out"]) == 0
    assert main([*command, f"{root}/out"]) == 0
  there = json.loads(read_file(Path(f"{bucket.root}/out/predictions.json")))
  here = read(tmp_path / "out")
  for image in (*there["images"], *here["images"]):
    del image["path"]
  assert there["images"] == here["images"]
  for name in ("maps/distance/1.png", "pictures/2-kind.png"):
    data = read_file(Path(f"{bucket.root}/out/{name}"))
    assert data == (tmp_path / "out" / name).read_bytes()
