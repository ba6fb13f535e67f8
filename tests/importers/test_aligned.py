"""Labels of photos that were imported before: a label set beside them."""

import json

import numpy as np
import pytest
from PIL import Image

from must_jax.fields import Boxes, ClassMap
from must_jax.input.batches import eval_batches
from must_jax.input.origins import SUPERVISED, Source
from must_jax.storage import verify
from must_jax.storage.sets import LabelSet, read_manifest

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def photos(tmp_path, picture, run_import):
  """An image set with boxes, of which a mask tool knows some images."""
  images = []
  for i, name in enumerate(NAMES):
    picture(tmp_path / f"photos/{name}.jpg", height=40, width=100)
    images.append({"id": i, "file_name": f"{name}.jpg"})
  coco = {
    "images": images,
    "annotations": [
      {"id": i, "image_id": i, "category_id": 1, "bbox": [10 * i, 0, 20, 40]}
      for i in range(len(NAMES))
    ],
    "categories": [{"id": 1, "name": "cat"}],
  }
  (tmp_path / "boxes.json").write_text(json.dumps(coco))
  words = ("--annotations", tmp_path / "boxes.json")
  words += ("--images", tmp_path / "photos", "--shards", 2)
  assert run_import("coco", *words, out="set")[0] == 0
  (tmp_path / "classes.txt").write_text("ground\nsky\n")
  (tmp_path / "masks").mkdir()
  for i, name in enumerate(NAMES[:4]):
    save_mask(tmp_path, name, np.eye(40, 100, i))
  return tmp_path / "set"


def save_mask(tmp_path, name, ids):
  path = tmp_path / f"masks/{name}.png"
  Image.fromarray(ids.astype(np.uint8)).save(path)


@pytest.fixture
def import_masks(tmp_path, photos, capsys):
  def run(*words, images="photos", out="labels", split="train"):
    from must_jax import cli

    words = [
      *("import", "masks", "--images", tmp_path / images),
      *("--masks", tmp_path / "masks"),
      *("--classes", tmp_path / "classes.txt", "--split", split),
      *("--labels-for", photos, "--out", tmp_path / out, *words),
    ]
    capsys.readouterr()
    status = cli.main([str(w) for w in words])
    printed = capsys.readouterr()
    return status, printed.out, printed.err

  return run


def test_boxes_and_masks_of_the_same_photos(
  import_masks, photos, tmp_path, capsys
):
  before = (photos / "index.json").read_bytes()
  status, out, err = import_masks("--max-rejected", 0.2)
  assert status == 0
  assert "e: has no mask" in err
  assert "labels of set-train: 4 of 5 images" in out
  assert (photos / "index.json").read_bytes() == before
  fields = {
    "boxes": {"objects": Boxes(1)},
    "scenes": {"mask": ClassMap(2)},
  }
  labels = {"boxes": SUPERVISED, "scenes": str(tmp_path / "labels")}
  seen = {}
  for batch in eval_batches(
    [Source(str(photos), "train", labels)],
    fields,
    batch_size=2,
    image_size=(40, 100),
    label_stride=1,
  ):
    for i in np.flatnonzero(batch["valid"]):
      key = bytes(batch["key"][i]).rstrip(b"\0").decode()
      seen[key] = {
        task: {
          name: {k: v[i] for k, v in arrays.items()}
          for name, arrays in found.items()
        }
        for task, found in batch["labels"].items()
      }
  assert set(seen) == set(NAMES)
  for i, name in enumerate(NAMES):
    boxes, mask = seen[name]["boxes"]["objects"], seen[name]["scenes"]["mask"]
    np.testing.assert_allclose(
      boxes["boxes"][0], [0, 10 * i, 40, 10 * i + 20], atol=1e-3
    )
    assert mask["present"] == (name != "e")
    if mask["present"]:
      np.testing.assert_array_equal(mask["classes"], np.eye(40, 100, i))
  manifest = read_manifest(tmp_path / "labels")
  assert manifest["teacher"]["importer"] == "masks"
  assert manifest["statistics"]["mask"]["examples"] == 4
  assert manifest["num_undecodable"] == 1
  rejected = (tmp_path / "labels/set-train.rejected.jsonl").read_text()
  assert json.loads(rejected)["key"] == "e"


def test_label_set_is_whole(import_masks, photos, tmp_path):
  import argparse

  assert import_masks("--max-rejected", 0.2)[0] == 0
  parser = argparse.ArgumentParser()
  verify.add_arguments(parser)
  args = parser.parse_args([str(tmp_path / "labels")])
  assert verify.run(args) == 0
  names = {path.name for path in (tmp_path / "labels").iterdir()}
  assert "leases" not in names
  labels = LabelSet.open(tmp_path / "labels")
  assert [s.num_records for s in labels.shards] == [3, 2]


def test_same_labels_give_the_same_bytes(import_masks, tmp_path):
  for out, workers in (("one", 1), ("two", 4)):
    words = ("--max-rejected", 0.2, "--workers", workers)
    assert import_masks(*words, out=out)[0] == 0
  one, two = (
    {path.name: path.read_bytes() for path in (tmp_path / out).iterdir()}
    for out in ("one", "two")
  )
  assert one == two


def test_labels_stay_unless_they_are_to_be_replaced(import_masks, tmp_path):
  words = ("--max-rejected", 0.2)
  assert import_masks(*words)[0] == 0
  digest = read_manifest(tmp_path / "labels")["teacher"]["digest"]
  save_mask(tmp_path, "e", np.ones((40, 100)))
  status, _, err = import_masks(*words)
  assert status == 2
  assert "holds imported labels. Give --overwrite" in err
  assert import_masks("--overwrite")[0] == 0  # nothing is rejected any more
  manifest = read_manifest(tmp_path / "labels")
  assert manifest["teacher"]["digest"] != digest
  assert manifest["statistics"]["mask"]["examples"] == 5


def test_imports_that_were_broken_off_begin_anew(import_masks, tmp_path):
  words = ("--max-rejected", 0.2)
  assert import_masks(*words)[0] == 0
  labels = tmp_path / "labels"
  first = {p.name: p.read_bytes() for p in labels.iterdir()}
  (labels / "manifest.json").unlink()
  (labels / ".import").mkdir()
  (labels / ".import/x.tfrecord").touch()
  assert import_masks(*words)[0] == 0
  assert {p.name: p.read_bytes() for p in labels.iterdir()} == first


def test_two_imports_at_a_time_do_not_mix(
  import_masks, tmp_path, lease_of_another_host
):
  stage = tmp_path / "labels/.import"
  lease_of_another_host(stage / "leases/job.json", 30)
  status, _, err = import_masks("--max-rejected", 0.2)
  assert status == 2
  assert "is in use by another import (process 1 on elsewhere.example" in err
  assert [p.name for p in stage.iterdir()] == ["leases"]


def test_failed_imports_replace_nothing(import_masks, tmp_path):
  assert import_masks("--max-rejected", 0.2)[0] == 0
  labels = tmp_path / "labels"
  first = {p.name: p.read_bytes() for p in labels.iterdir()}
  assert import_masks("--overwrite")[0] == 1
  (tmp_path / "classes.txt").unlink()
  assert import_masks("--overwrite")[0] == 2
  assert {p.name: p.read_bytes() for p in labels.iterdir()} == first


def test_labels_that_look_wrong_are_told(import_masks, tmp_path):
  for name in NAMES:
    save_mask(tmp_path, name, np.ones((40, 100)))
  status, _, err = import_masks()
  assert status == 0
  for name in NAMES:
    save_mask(tmp_path, name, np.full((40, 100), 255))
  status, _, err = import_masks("--overwrite")
  assert status == 0
  assert "LABELS LOOK WRONG" in err
  assert read_manifest(tmp_path / "labels")["alarms"]


def test_too_many_rejected(import_masks, tmp_path):
  status, _, err = import_masks()
  assert status == 1
  assert "The labels of 1 of 5 images were rejected" in err
  assert not list((tmp_path / "labels").iterdir())


def test_images_of_another_size_are_rejected(import_masks, tmp_path, picture):
  picture(tmp_path / "other/a.jpg", height=20, width=50)
  save_mask(tmp_path, "a", np.zeros((20, 50)))
  status, out, err = import_masks("--max-rejected", 0.2, images="other")
  assert status == 0
  assert "the image is 20 x 50 (height x width); that of the image set" in err
  assert "images of the set that have no labels here: 4" in out


def test_keys_must_be_those_of_the_images(import_masks, tmp_path, picture):
  picture(tmp_path / "elsewhere/photos/z.jpg", height=40, width=100)
  (tmp_path / "masks/photos").mkdir()
  save_mask(tmp_path, "photos/z", np.zeros((40, 100)))
  status, _, err = import_masks(images="elsewhere")
  assert status == 2
  assert "No image of" in err
  assert "those of the labels are ['photos/z'] and so on" in err
  assert not list((tmp_path / "labels").iterdir())


@pytest.mark.parametrize(
  ("words", "options", "message"),
  [
    (("--runner", "DirectRunner"), {}, "do not go together"),
    ((), {"split": "val"}, "has no split 'val'"),
    ((), {"out": "set"}, "expected a new directory as --out"),
    (("--max-rejected", 2), {}, "--max-rejected is 2.0"),
  ],
)
def test_bad_options(import_masks, photos, words, options, message):
  status, _, err = import_masks(*words, **options)
  assert status == 2
  assert message in err
  assert (photos / "index.json").exists()


def test_a_teachers_labels_are_never_replaced(import_masks, tmp_path):
  (tmp_path / "labels").mkdir()
  job = {"schema_version": 1, "teacher": {"digest": "1"}}
  (tmp_path / "labels/job.json").write_text(json.dumps(job))
  status, _, err = import_masks("--overwrite")
  assert status == 2
  assert "expected a new directory as --out" in err
  assert (tmp_path / "labels/job.json").exists()


def test_importers_that_do_not_know_their_keys(
  run_import, photos, tmp_path, capsys
):
  from must_jax import cli

  words = ["import", "folder", "--unlabelled", "--images", tmp_path / "photos"]
  words += ["--labels-for", photos, "--split", "train"]
  words += ["--out", tmp_path / "labels"]
  assert cli.main([str(w) for w in words]) == 2
  assert "takes the labels of importers" in capsys.readouterr().err


def test_a_bucket_is_like_a_disk(bucket, tmp_path):
  """The same image set and label set, of YOLO's files and of masks."""
  import io

  from must_jax import cli
  from must_jax.storage import path as path_lib

  made = {}
  for root in (bucket.root, str(tmp_path)):
    for i in range(3):
      buffer = io.BytesIO()
      Image.fromarray(np.full((40, 100, 3), i, np.uint8)).save(buffer, "PNG")
      mask = io.BytesIO()
      Image.fromarray(np.full((40, 100), i % 2, np.uint8)).save(mask, "PNG")
      for name, data in {
        f"images/train/{i}.png": buffer.getvalue(),
        f"masks/{i}.png": mask.getvalue(),
        f"labels/train/{i}.txt": b"0 0.1 0.1 0.5 0.1 0.5 0.5",
        "data.yaml": b"path: .\ntrain: images/train\nnames: [cat]",
        "names.txt": b"ground\nsky",
      }.items():
        path_lib.make_directory((path_lib.Path(root) / name).parent)
        with path_lib.publish(f"{root}/{name}") as file:
          file.write(data)
    common = ("--split", "train", "--out")
    yolo = ("yolo", "--data", f"{root}/data.yaml", *common, f"{root}/set")
    assert cli.main(["import", *yolo, "--name", "set"]) == 0
    masks = ("masks", "--images", f"{root}/images/train")
    masks += ("--masks", f"{root}/masks", "--classes", f"{root}/names.txt")
    masks += ("--labels-for", f"{root}/set", *common, f"{root}/beside")
    assert cli.main(["import", *masks]) == 0
    assert cli.main(["import", *masks, "--overwrite"]) == 0
    made[root] = {
      f"{place}/{name}": path_lib.read_file(f"{root}/{place}/{name}")
      for place in ("set", "beside")
      for name in path_lib.list_names(f"{root}/{place}")
    }
  on_bucket, on_disk = made.values()
  assert on_bucket == on_disk
