"""What people said, as label sets; and what cannot be what they said."""

import json
import types
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from must_jax.annotations import exchange
from must_jax.cli import main
from must_jax.pseudo_label import worker
from must_jax.storage.sets import read_manifest


def coco_of(path):
  return path / "annotations" / "instances_default.json"


@pytest.fixture
def boxes(make):
  """Three images with two boxes each."""

  def labels_of(rng, size, fields):
    del rng, size, fields
    return {
      "things": {
        "boxes": np.array([[0.1, 0.2, 0.5, 0.6], [0.3, 0.3, 0.9, 0.8]]),
        "classes": np.array([0, 1]),
        "scores": np.array([0.75, 0.25], np.float32),
      }
    }

  return make(["things"], keys=("a", "b", "c/d"), labels_of=labels_of)


@pytest.fixture
def edit(boxes, export):
  """Exports to COCO, all scores, and writes what an edit makes of the file."""

  def edit(change):
    path, _ = export(boxes, "coco", "out", "--min-score", 0)
    value = json.loads(coco_of(path).read_text())
    change(value)
    coco_of(path).write_text(json.dumps(value))
    return path

  return edit


def selection_of(sets, **changes):
  manifest = read_manifest(sets.labels)
  value = {
    "schema_version": 1,
    "what": "must_jax selection",
    "image_set": {
      n: manifest["image_set"][n] for n in ("name", "split", "num_records")
    },
    "label_sets": [{"name": "x", "teacher": manifest["teacher"]["digest"]}],
    "min_score": {"things": 0.2},
    "images": [
      {"key": "a", "decision": "accept", "note": ""},
      {"key": "b", "decision": "reject", "note": "blurred"},
      {"key": "c/d", "decision": "correct", "note": ""},
    ],
  }
  path = sets.labels.parent / "selection.json"
  path.write_text(json.dumps({**value, **changes}))
  return path


def test_only_images_to_be_corrected_are_exported(boxes, export):
  path = selection_of(boxes)
  folder, printed = export(boxes, "coco", "out", "--selection", path)
  value = json.loads(coco_of(folder).read_text())
  assert [image["key"] for image in value["images"]] == ["c/d"]
  assert len(value["annotations"]) == 2  # at the threshold that was shown
  assert '"things": 0.2' in printed
  folder, _ = export(
    boxes, "coco", "all", "--selection", path, "--decision", "accept", "reject"
  )
  value = json.loads(coco_of(folder).read_text())
  assert {image["key"] for image in value["images"]} == {"a", "b"}


def test_a_selection_is_a_correction(boxes, take_back, corrections_of):
  path = selection_of(boxes, min_score={"things": 0.5})
  status, printed, error = take_back(boxes, path, "--by", "ann")
  assert (status, error) == (0, "")
  assert "images that are still to be corrected: 1" in printed
  assert "by ann: 1 images corrected, 1 rejected, 1 of 3 not looked" in printed
  found = corrections_of(boxes.directory / "corrections")
  assert {k: status for k, (status, _) in found.items()} == {
    "a": "corrected",
    "b": "rejected",
    "c/d": "ok",
  }
  assert main(["data", "verify", str(boxes.directory / "corrections")]) == 0
  np.testing.assert_array_equal(found["a"][1]["things"]["scores"], [0.75])
  assert not found["b"][1] and not found["c/d"][1]


def test_fields_that_nobody_draws_are_accepted_as_they_are(make, take_back):
  sets = make(["things", "depth"], keys=("a", "b", "c/d"))
  status, _, error = take_back(sets, selection_of(sets))
  assert (status, error) == (0, "")
  manifest = read_manifest(sets.directory / "corrections")
  assert manifest["statistics"]["depth"]["examples"] == 1
  before = read_manifest(sets.labels)["statistics"]["depth"]
  assert before["examples"] == 3


def test_a_student_reads_what_people_said_first(boxes, edit, take_back):
  from must_jax.fields import Boxes
  from must_jax.input.batches import eval_batches
  from must_jax.input.origins import Source

  decisions = [
    {"key": "a", "decision": "accept"},
    {"key": "b", "decision": "reject"},
  ]
  path = selection_of(boxes, images=decisions)
  assert take_back(boxes, path, out="selected")[0] == 0

  def change(value):  # all images but `a` are left out
    (kept,) = (i for i in value["images"] if i["key"] == "a")
    value["images"] = [kept]
    value["annotations"] = [
      {**annotation, "category_id": 3}
      for annotation in value["annotations"]
      if annotation["image_id"] == kept["id"]
    ]

  assert take_back(boxes, edit(change), out="corrected")[0] == 0
  sets = [boxes.directory / n for n in ("corrected", "selected", "labels")]
  source = Source(
    str(boxes.images), "train", {"what": tuple(str(path) for path in sets)}
  )
  (batch,) = eval_batches(
    [source],
    {"what": {"things": Boxes(3)}},
    batch_size=3,
    image_size=(64, 64),
  )
  things = batch["labels"]["what"]["things"]
  found = {
    key.decode(): sorted(classes[valid].tolist()) if present else None
    for key, classes, valid, present in zip(
      batch["key"],
      *map(things.get, ("classes", "valid", "present")),
      strict=True,
    )
  }
  # Corrected, rejected, and the teacher's at its threshold of 0.5.
  assert found == {"a": [2, 2], "b": None, "c/d": [0]}


def test_who_and_when_are_told(boxes, export, take_back, edit, run):
  status, _, _ = take_back(boxes, edit(lambda value: None), "--by", "ann")
  assert status == 0
  manifest = read_manifest(boxes.directory / "corrections")
  told = manifest["teacher"]["corrections"]
  assert told["by"] == "ann" and told["format"] == "coco"
  assert told["of"] == read_manifest(boxes.labels)["teacher"]["digest"]
  assert told["when"].endswith("+00:00")
  # Corrections can be mended, too.
  words = ["--format", "cvat", "--out", boxes.directory / "again"]
  words += ["--images", boxes.images]
  assert run("export", boxes.directory / "corrections", *words)[0] == 0


def test_what_a_person_changed_is_sure(boxes, edit, take_back, corrections_of):
  def change(value):
    first, second, *_ = value["annotations"]
    first["bbox"][2] += 1  # moved: another object
    second["category_id"] = 3  # another class
    value["annotations"] = value["annotations"][:-2]  # of the last image
    value["annotations"].append(
      {"id": 99, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
    )

  path = edit(change)
  images = json.loads(coco_of(path).read_text())["images"]
  assert take_back(boxes, path)[0] == 0
  found = corrections_of(boxes.directory / "corrections")
  changed = found[images[0]["key"]][1]["things"]
  assert changed["scores"].tolist() == [1, 1, 1]
  assert changed["classes"].tolist() == [0, 2, 0]
  same = found[images[1]["key"]][1]["things"]
  assert same["scores"].tolist() == [0.75, 0.25]
  status, empty = found[images[2]["key"]]
  assert status == "corrected"  # "nothing here" is a label
  assert len(empty["things"]["classes"]) == 0


def test_half_of_the_images_is_fine(boxes, edit, take_back, corrections_of):
  def change(value):
    (kept,) = value["images"] = value["images"][:1]
    value["annotations"] = [
      a for a in value["annotations"] if a["image_id"] == kept["id"]
    ]

  status, printed, error = take_back(boxes, edit(change))
  assert (status, error) == (0, "")
  assert "1 images corrected, 0 rejected, 2 of 3 not looked at" in printed
  found = corrections_of(boxes.directory / "corrections")
  assert sorted(status for status, _ in found.values()) == [
    "corrected",
    "ok",
    "ok",
  ]


@pytest.mark.parametrize("change", [{"category_id": 3}, {"iscrowd": 1}])
def test_images_as_they_were_are_passed_over(change, boxes, edit, take_back):
  def mend(value):
    value["annotations"][0].update(change)

  status, printed, _ = take_back(
    boxes, edit(mend), "--only-changed", "--min-score", 0
  )
  assert status == 0 and "images that came back as they were: 2" in printed
  assert "1 images corrected, 0 rejected, 2 of 3 not looked at" in printed


def test_a_selection_tells_at_what_it_was_exported(boxes, export, take_back):
  chosen = selection_of(boxes)
  path, _ = export(boxes, "coco", "out", "--selection", chosen)
  status, _, error = take_back(
    boxes, path, "--only-changed", "--min-score", chosen
  )
  assert status == 2 and "1 came back as they were" in error


def test_nothing_is_made_of_what_nobody_looked_at(boxes, edit, take_back):
  path = edit(lambda value: None)
  words = "--only-changed", "--min-score", 0
  status, _, error = take_back(boxes, path, *words)
  assert status == 2 and "3 came back as they were" in error
  assert not (boxes.directory / "corrections" / "manifest.json").exists()


def test_predictions_and_skipped_tasks_are_not_looked_at(
  boxes, export, take_back, corrections_of
):
  path, _ = export(boxes, "label-studio")
  tasks = json.loads((path / "tasks.json").read_text())
  tasks[0]["annotations"] = [
    {"result": [], "completed_by": 7, "updated_at": "2026-01-02T03:04:05Z"}
  ]
  tasks[1]["annotations"] = [{"result": [], "was_cancelled": True}]
  (path / "tasks.json").write_text(json.dumps(tasks))
  status, printed, _ = take_back(boxes, path)
  assert status == 0
  assert "tasks that nobody has looked at: 2" in printed
  assert "annotations that were skipped, left out: 1" in printed
  assert "by Label Studio's user 7: 1 images corrected" in printed
  found = corrections_of(boxes.directory / "corrections")
  status, labels = found[tasks[0]["data"]["key"]]
  assert status == "corrected" and len(labels["things"]["classes"]) == 0
  told = read_manifest(boxes.directory / "corrections")["teacher"]
  assert told["corrections"]["when"] == "2026-01-02T03:04:05+00:00"


def test_images_may_lie_elsewhere(boxes, export):
  path, _ = export(
    boxes,
    "label-studio",
    "out",
    "--no-images",
    *("--image-url", "https://example.org/photos/"),
  )
  tasks = json.loads((path / "tasks.json").read_text())
  assert not (path / "images").exists()
  assert {task["data"]["image"] for task in tasks} == {
    "https://example.org/photos/a.png",
    "https://example.org/photos/b.jpg",
    "https://example.org/photos/c/d.png",
  }


def test_images_are_written_as_they_are_stored(boxes, export):
  path, _ = export(boxes, "coco")
  data = (path / "images" / "a.png").read_bytes()
  assert data[:4] == b"\x89PNG"
  assert (path / "images" / "c" / "d.png").exists()


WRONG_FILES = [
  (
    lambda v: v["images"][0].update(key="aa", file_name="aa.jpg"),
    "1 unknown images: 'aa'; is 'a' meant?",
  ),
  (
    lambda v: v["categories"][0].update(name="persom"),
    "class 'persom' is none of",
  ),
  (
    lambda v: v["annotations"][0].update(bbox=[900, 1, 5, 5]),
    "lies outside the image",
  ),
  (lambda v: v["annotations"][0].update(score="high"), "score 'high'"),
  (lambda v: v["annotations"][0].update(score=1.5), "score 1.5"),
  (lambda v: v["annotations"][0].update(bbox=[1, 2]), "expected [x, y, width"),
  (lambda v: v["images"][0].update(height=7), "expected the size of its image"),
  (lambda v: v["annotations"][0].update(category_id=9), "category 9 is none"),
  (lambda v: v["annotations"][0].update(image_id=77), "refer to no image"),
  (lambda v: v.pop("categories"), "has no list 'categories'"),
  (lambda v: v["images"].append(v["images"][0]), "comes 2 times"),
]


@pytest.mark.parametrize(("change", "expected"), WRONG_FILES)
def test_wrong_files_are_told_in_a_line(
  change, expected, boxes, edit, take_back
):
  status, _, error = take_back(boxes, edit(change))
  assert status == 2 and expected in error
  assert not (boxes.directory / "corrections" / "manifest.json").exists()


def test_what_cannot_be_read_can_be_left_out(
  boxes, edit, take_back, corrections_of
):
  path = edit(lambda v: v["annotations"][0].update(bbox=[900, 1, 5, 5]))
  assert take_back(boxes, path, "--max-rejected", 0.2)[0] == 2
  status, printed, error = take_back(boxes, path, "--max-rejected", 0.5)
  assert status == 0 and "lies outside the image" in error
  assert "2 images corrected, 0 rejected, 1 of 3 not looked at" in printed


def test_unknown_images_can_be_left_out(boxes, edit, take_back):
  path = edit(
    lambda v: v["images"][0].update(key="aa", file_name="else/aa.jpg")
  )
  assert take_back(boxes, path, "--max-rejected", 0.3)[0] == 2
  status, printed, error = take_back(boxes, path, "--max-rejected", 0.4)
  assert (status, error) == (0, "")
  assert "unknown images, left out: 1: 'aa'" in printed
  assert "2 images corrected, 0 rejected, 1 of 3 not looked at" in printed


def test_no_option_is_named_that_does_not_help(boxes, edit, take_back):
  path = edit(lambda v: v["annotations"][0].update(image_id=77))
  status, _, error = take_back(boxes, path, "--max-rejected", 1)
  assert status == 2 and error.endswith("They would be lost. Mend the file.\n")


@pytest.mark.parametrize("text", ['{"images": [', "", "[1, 2}"])
def test_broken_json_is_told_as_such(text, boxes, take_back, tmp_path):
  path = tmp_path / "broken.json"
  path.write_text(text)
  status, _, error = take_back(boxes, path)
  assert status == 2 and "is no JSON (" in error and error.count("\n") == 1


@pytest.mark.parametrize("form", ["coco", "yolo", "cvat", "label-studio"])
def test_missing_files_are_told_for_each_format(form, boxes, take_back):
  path = boxes.directory / "missing"
  status, _, error = take_back(boxes, path, "--format", form)
  assert status == 2 and f"{path} is not there; expected a file" in error


def test_names_in_place_of_numbers_are_told(boxes, export, take_back):
  path, _ = export(boxes, "yolo")
  (path / "labels" / "train" / "a.txt").write_text("person 0.5 0.5 0.1 0.1\n")
  status, _, error = take_back(boxes, path)
  assert status == 2 and "line 1: class 'person'; expected a number" in error


@pytest.mark.parametrize(
  "change",
  [
    {"value": {"x": 1, "y": 1, "width": 5, "height": 5, "rotation": 0}},
    {
      "type": "keypointlabels",
      "value": {"x": 1, "y": 1, "keypointlabels": ["person"]},
    },
  ],
  ids=["no class", "a point"],
)
def test_regions_that_are_no_labels_are_told(change, boxes, export, take_back):
  path, _ = export(boxes, "label-studio")
  tasks = json.loads((path / "tasks.json").read_text())
  (prediction,) = tasks[0]["predictions"]
  prediction["result"][0] |= change
  tasks[0]["annotations"] = [{"result": prediction["result"]}]
  (path / "tasks.json").write_text(json.dumps(tasks))
  status, _, error = take_back(boxes, path)
  assert status == 2 and "objects-0: expected a class, and a rect" in error


def test_accepting_no_labels_confirms_nothing(make, take_back, corrections_of):
  box = {"boxes": np.array([[0.1, 0.2, 0.5, 0.6]]), "classes": np.array([0])}
  labels = [{}, {"things": box}, {"things": box}]
  sets = make(
    ["things"],
    keys=("a", "b", "c/d"),
    labels_of=lambda *_: labels.pop(0),
  )
  status, printed, _ = take_back(sets, selection_of(sets))
  assert status == 0
  assert "accepted without labels, not looked at: 1" in printed
  assert "0 images corrected, 1 rejected, 2 of 3 not looked at" in printed
  assert corrections_of(sets.directory / "corrections")["a"] == ("ok", {})


def test_damaged_labels_are_told(boxes, edit, run, take_back):
  path = edit(lambda value: None)
  (shard,) = boxes.labels.glob("*.tfrecord")
  data = bytearray(shard.read_bytes())
  data[len(data) // 2] ^= 255
  shard.write_bytes(data)
  words = ["--images", boxes.images, "--out", boxes.directory / "new"]
  for status, _, error in (
    run("export", boxes.labels, *words, "--format", "coco"),
    take_back(boxes, path),
  ):
    assert status == 2 and "does not match. Copy the set again" in error


def test_an_interrupted_export_is_not_in_its_own_way(
  boxes, run, export, monkeypatch
):
  written = []

  def interrupted(path, data, write=exchange.write_file):
    write(path, data)
    written.append(path)
    if len(written) == 2:
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(exchange, "write_file", interrupted)
    words = ("--images", boxes.images, "--format", "coco")
    out = boxes.directory / "new"
    status, _, error = run("export", boxes.labels, *words, "--out", out)
  assert status == 130 and "The same command continues" in error
  assert written[0].name and not out.exists()
  assert "labels of 3 images" in export(boxes, "coco", "new")[1]


def test_an_export_of_nothing_leaves_nothing(boxes, run, take_back):
  rejected = [{"key": "a", "decision": "reject"}]
  path = selection_of(boxes, images=rejected)
  assert take_back(boxes, path)[0] == 0
  for _ in range(2):
    status, _, error = run(
      "export",
      boxes.directory / "corrections",
      *("--images", boxes.images, "--format", "coco"),
      *("--out", boxes.directory / "new"),
    )
    assert status == 2 and "None of 3 images has labels" in error
  assert not (boxes.directory / "new").exists()


def test_the_truth_counts_where_there_are_labels(
  scribbles, tmp_path, run, capsys
):
  fields = {"objects": {"kind": "Boxes", "classes": ["cat"]}}
  boxes = {"boxes": np.array([[0.1, 0.1, 0.6, 0.7]]), "classes": np.array([0])}
  true = [{"objects": boxes}] * 4
  truth = scribbles.make_images(tmp_path / "t", [(64, 64)] * 4, true, fields)
  images = scribbles.make_images(tmp_path / "images", [(64, 64)] * 4)
  sets = types.SimpleNamespace(labels=tmp_path / "labels")
  scribbles.label(sets.labels, images, true, fields)

  def quality(decision):
    chosen = [{"key": "i-0002", "decision": decision}]
    path = selection_of(sets, images=chosen, min_score={"objects": 0.5})
    out = tmp_path / decision
    words = ["--labels", sets.labels, "--images", tmp_path / "images"]
    words += ["--out", out]
    assert run("import", path, *words)[0] == 0
    capsys.readouterr()
    return main(["inspect", str(out), "--truth", str(truth.directory)])

  assert quality("accept") == 0
  found = read_manifest(tmp_path / "accept")["quality"]["metrics"]
  assert found["AP"] == pytest.approx(1)  # of one image, not of four
  assert quality("reject") == 2
  assert "no 'objects' of any image" in capsys.readouterr().err
  assert "quality" not in read_manifest(tmp_path / "reject")
  words = ["--against", str(sets.labels)]
  assert main(["inspect", str(tmp_path / "reject"), *words]) == 0
  assert "no image that both have labelled" in capsys.readouterr().out


def test_wrong_masks_are_told(make, export, take_back):
  sets = make(["areas"], keys=("a", "b"))
  path, _ = export(sets, "masks")
  names = "sky", "person", "traffic light", "chat & chien"
  (path / "classes.txt").write_text("\n".join(names))
  status, _, error = take_back(sets, path)
  assert status == 2 and "class ids [\"0 ('sky')\"]" in error


def test_wrong_xml_is_told(boxes, export, take_back):
  path, _ = export(boxes, "cvat")
  tree = ElementTree.parse(path / "annotations.xml")
  (box, *_) = tree.getroot().iter("box")
  box.set("label", "traffic lights")
  box.find("attribute").text = "0,9"
  tree.write(path / "annotations.xml")
  status, _, error = take_back(boxes, path)
  assert status == 2 and "score '0,9'" in error
  box.find("attribute").text = ""
  tree.write(path / "annotations.xml")
  status, _, error = take_back(boxes, path)
  assert status == 2 and "is 'traffic light' meant?" in error
  box.tag = "polyline"
  tree.write(path / "annotations.xml")
  status, _, error = take_back(boxes, path)
  assert status == 2 and "polyline 1: expected one of box, ellipse" in error


def test_a_selection_of_several_label_sets_has_their_thresholds(
  boxes, take_back, corrections_of
):
  path = selection_of(boxes)
  listed = json.loads(path.read_text())["label_sets"]
  thresholds = {"things": {"person": 0.8, "zebra": 0.1}, "other": 0.9}
  path = selection_of(
    boxes,
    label_sets=[{"name": "y", "teacher": "beef"}, *listed],
    min_score=thresholds,
  )
  assert take_back(boxes, path)[0] == 0
  found = corrections_of(boxes.directory / "corrections")
  assert len(found["a"][1]["things"]["classes"]) == 0


class Blind:
  """A teacher that finds nothing."""

  fields = {"things": {"kind": "Boxes", "classes": ["person"]}}  # noqa: RUF012
  description = {"digest": "blind"}  # noqa: RUF012

  def __call__(self, images):
    nothing = {"boxes": np.zeros((0, 4)), "classes": np.zeros(0, int)}
    return [{"things": nothing}] * len(images)


def test_images_that_cannot_be_read_keep_their_places(
  boxes, take_back, corrections_of
):
  (path,) = boxes.images.glob("*.tfrecord")
  offsets = np.frombuffer(path.with_suffix(".offsets").read_bytes(), "<u8")
  data = bytearray(path.read_bytes())
  data[int(offsets[1]) + 20] ^= 1
  path.write_bytes(data)
  boxes.labels = boxes.directory / "blind"
  with pytest.raises(SystemExit):  # the alarm that nothing was found
    worker.label_images(
      Blind(), boxes.images, "train", boxes.labels, max_undecodable=1.0
    )
  said = [{"key": "a", "decision": "accept"}]
  path = selection_of(boxes, images=said)
  assert take_back(boxes, path)[0] == 0
  found = corrections_of(boxes.directory / "corrections")
  assert {k: status for k, (status, _) in found.items()} == {
    "a": "corrected",
    "": "undecodable",
    "c/d": "ok",
  }
  manifest = read_manifest(boxes.directory / "corrections")
  assert [(r["index"], r["key"]) for r in manifest["undecodable"]] == [(1, "")]
  assert main(["data", "verify", str(boxes.directory / "corrections")]) == 0


WRONG_SELECTIONS = [
  ({"what": "something"}, "is no selection"),
  ({"schema_version": 2}, "schema_version 2"),
  (
    {"label_sets": [{"name": "other", "teacher": "beef"}]},
    "a selection of label sets other (teacher beef); the one given is of",
  ),
  ({"label_sets": []}, "a selection of label sets none"),
  (
    {"image_set": {"name": "v", "split": "train", "num_records": 3}},
    "a selection of split 'train' of image set 'v', 3 images",
  ),
  (
    {"images": [{"key": "c/e", "decision": "accept"}]},
    "1 unknown images: 'c/e'; is 'c/d' meant?",
  ),
  ({"images": [{"key": "a", "decision": "maybe"}]}, "expected a key, and a"),
  ({"images": {}}, "has images '{}'; expected list"),
  ({"min_score": {"thing": 0.5}}, "'thing'; is 'things' meant?"),
  ({"min_score": {"things": {"persn": 1}}}, "'persn'; is 'person' meant?"),
  ({"min_score": {"things": 2}}, "has things: 2; expected"),
]


@pytest.mark.parametrize(("changes", "expected"), WRONG_SELECTIONS)
def test_wrong_selections_are_told_in_a_line(changes, expected, boxes, run):
  path = selection_of(boxes, **changes)
  words = ["--images", boxes.images, "--out", boxes.directory / "out"]
  words += ["--format", "coco", "--selection", path]
  status, _, error = run("export", boxes.labels, *words)
  assert status == 2 and expected in error
  assert error.count("\n") == 1


def test_folders_that_hold_other_things_stay_as_they_are(
  boxes, edit, run, take_back
):
  path = edit(lambda value: None)
  (boxes.directory / "file").write_text("mine")
  status, _, error = take_back(boxes, path, "--overwrite", out="file")
  assert status == 2 and "file is a file; expected a directory" in error
  words = ["--images", boxes.images, "--out", path, "--format", "cvat"]
  status, _, error = run("export", boxes.labels, *words)
  assert status == 2 and "expected a new folder" in error
  status, _, error = take_back(boxes, path, out="labels")
  assert status == 2 and "is not of corrections" in error
  assert take_back(boxes, path)[0] == 0
  status, _, error = take_back(boxes, path)
  assert status == 2 and "Give --overwrite" in error
  assert take_back(boxes, path, "--overwrite")[0] == 0


def test_other_arguments_that_do_not_fit(boxes, make, run, take_back, tmp_path):
  words = ["--images", boxes.images, "--out", tmp_path / "out"]
  status, _, error = run("export", boxes.labels, *words, "--format", "masks")
  assert status == 2 and "this format can hold ClassMap" in error
  words += ["--format", "coco"]
  depth = make(["depth"], "depth", keys=("a",))
  status, _, error = run(
    "export",
    depth.labels,
    *words[:-2],
    "--format",
    "cvat",
    "--images",
    depth.images,
  )
  assert status == 2 and "None can hold others" in error
  status, _, error = run("export", boxes.labels, *words, "--fields", "thing")
  assert status == 2 and "'thing' cannot be mended" in error
  status, _, error = run("export", boxes.labels, *words, "--min-score", "x")
  assert status == 2 and "--min-score is 'x'" in error
  (tmp_path / "job.zip").write_bytes(b"PK")
  status, _, error = take_back(boxes, tmp_path / "job.zip")
  assert status == 2 and "is an archive; unpack it" in error
  for option, told in (
    (("--decision", "accept"), "--decision needs --selection"),
    (("--image-url", "https://x/"), "--image-url needs --format label-studio"),
  ):
    status, _, error = run("export", boxes.labels, *words, *option)
    assert status == 2 and told in error
  assert not (tmp_path / "out").exists()
  status, _, error = take_back(boxes, tmp_path / "nothing")
  assert status == 2 and "is not there" in error
  others = make(["things"], "others", keys=("x", "y"))
  words[1] = others.images
  status, _, error = run("export", boxes.labels, *words)
  assert status == 2 and "does not line up" in error


def test_options_that_would_do_nothing_are_told(boxes, run, take_back):
  chosen, file = selection_of(boxes), coco_of(boxes.directory)
  words = ["--images", boxes.images, "--out", boxes.directory / "out"]
  words += ["--format", "coco"]
  for option in (["--image-url", "https://x/"], ["--decision", "accept"]):
    status, _, error = run("export", boxes.labels, *words, *option)
    assert status == 2 and f"{option[0]} needs " in error
  for path, *options in (
    (file, "--min-score", "0.5"),
    (chosen, "--only-changed"),
    (chosen, "--fields", "things"),
  ):
    status, _, error = take_back(boxes, path, *options)
    assert status == 2 and f"{options[0]} " in error
    assert error.count("\n") == 1


def test_thresholds_by_class(boxes, export):
  path = boxes.directory / "thresholds.json"
  path.write_text('{"things": {"person": 0.8, "traffic light": 0.2}}')
  folder, _ = export(boxes, "coco", "out", "--min-score", path)
  value = json.loads(coco_of(folder).read_text())
  assert {a["category_id"] for a in value["annotations"]} == {2}
