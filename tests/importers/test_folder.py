import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def tree(tmp_path, picture):
  names = ["cat/1.jpg", "cat/deep/2.png", "ant/1.jpg", "bee/3.JPG"]
  return {name: picture(tmp_path / "tree" / name) for name in names}


def test_folders_become_classes(run_import, read_back, tmp_path, tree):
  status, out, err = run_import("folder", "--images", tmp_path / "tree")
  assert (status, err) == (0, "")
  assert "4 of 4 images" in out
  records, image_set = read_back()
  assert image_set.fields == {
    "label": {"kind": "ClassVector", "classes": ["ant", "bee", "cat"]}
  }
  given = {k: r["label/classes"] for k, r in records.items()}
  assert given == {"cat/1": [2], "cat/deep/2": [2], "ant/1": [0], "bee/3": [1]}
  for name in tree:
    record = records[name.rpartition(".")[0]]
    assert record["image"] == [(tmp_path / "tree" / name).read_bytes()]
    assert (record["height"], record["width"]) == ([6], [8])
  pixels = np.asarray(Image.open(io.BytesIO(records["cat/deep/2"]["image"][0])))
  np.testing.assert_array_equal(pixels, tree["cat/deep/2.png"])


def test_unlabelled(run_import, read_back, tmp_path, tree):
  words = ("folder", "--images", tmp_path / "tree", "--unlabelled")
  assert run_import(*words)[0] == 0
  records, image_set = read_back()
  assert image_set.fields == {}
  assert {frozenset(r) for r in records.values()} == {
    frozenset({"key", "image", "height", "width"})
  }
  assert set(records) == {name.rpartition(".")[0] for name in tree}


def test_classes_keep_ids_where_a_split_lacks_one(
  run_import, read_back, tmp_path, tree, picture
):
  (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
  words = ("--classes", tmp_path / "classes.txt")
  tree = tmp_path / "tree"
  assert run_import("folder", "--images", tree, *words)[0] == 0
  picture(tmp_path / "val/cat/9.jpg")
  words = ("folder", "--images", tmp_path / "val", *words)
  status, out, _ = run_import(*words, split="val")
  assert status == 0
  assert (
    "warning: label: 2 of the 3 classes never occur: 'ant' (0), 'bee' (1)"
    in out
  )
  assert read_back(split="val")[0]["cat/9"]["label/classes"] == [2]
  # Without the list the classes would differ, which is an error.
  status, _, err = run_import(
    "folder", "--images", tmp_path / "val", split="other"
  )
  assert status == 2
  assert "fields" in err and "--classes names" in err


def test_errors(run_import, tmp_path, tree, picture):
  def error(*words, status=2):
    given, _, err = run_import("folder", "--images", *words)
    assert given == status
    return err

  assert "cannot be read" in error(tmp_path / "missing")
  (tmp_path / "empty").mkdir()
  assert "holds no image" in error(tmp_path / "empty")
  (tmp_path / "classes.json").write_text('["ant", "bee"]')
  classes = ("--classes", tmp_path / "classes.json")
  assert "Folders ['cat']" in error(tmp_path / "tree", *classes)
  picture(tmp_path / "tree/stray.jpg")
  assert "--unlabelled" in error(tmp_path / "tree")
  picture(tmp_path / "tree/stray.png")
  assert "same key 'stray'" in error(tmp_path / "tree")


def test_folders_are_classes_by_their_composed_names(
  run_import, read_back, tmp_path, picture
):
  for split, name in (("train", "caf\u00e9"), ("val", "cafe\u0301")):
    picture(tmp_path / split / name / "1.jpg")
    picture(tmp_path / split / "bar/1.jpg")
    words = ("folder", "--images", tmp_path / split)
    assert run_import(*words, split=split)[0] == 0
    records, image_set = read_back(split=split)
    assert image_set.fields["label"]["classes"] == ["bar", "caf\u00e9"]
    assert records["caf\u00e9/1"]["label/classes"] == [1]


def test_splits_are_not_taken_for_classes(run_import, tmp_path, picture):
  for name in ("train/cat/1.jpg", "train/ant/1.jpg", "Val/cat/1.jpg"):
    picture(tmp_path / "all" / name)
  words = ("folder", "--images", tmp_path / "all")
  status, _, err = run_import(*words)
  assert status == 2
  assert "has the folders ['Val', 'train'], which are splits" in err
  assert f"--images {tmp_path}/all/Val" in err
  (tmp_path / "names.txt").write_text("train\nVal\n")
  assert run_import(*words, "--classes", tmp_path / "names.txt")[0] == 0
  picture(tmp_path / "all/bus/1.jpg")  # a train may be a train
  assert run_import(*words, out="other")[0] == 0


def test_folders_of_programs_are_no_classes(
  run_import, read_back, tmp_path, tree, picture
):
  picture(tmp_path / "tree/__MACOSX/cat/1.jpg")
  picture(tmp_path / "tree/cat/@eaDir/1.jpg/THUMB.jpg")
  picture(tmp_path / "tree/.thumbs/cat/1.jpg")
  (tmp_path / "tree/cat/up").symlink_to("..")
  status, out, _ = run_import("folder", "--images", tmp_path / "tree")
  assert status == 0
  assert "files in folders of programs: 2, as __MACOSX/cat/1.jpg" in out
  assert "hidden folders, which are no classes: 1, as .thumbs" in out
  records, image_set = read_back()
  assert image_set.fields["label"]["classes"] == ["ant", "bee", "cat"]
  assert len(records) == len(tree)


def test_names_that_nearly_agree_are_told(run_import, tmp_path, tree, picture):
  picture(tmp_path / "tree/Cat/1.jpg")
  words = ("folder", "--images", tmp_path / "tree")
  status, out, _ = run_import(*words)
  assert status == 0
  assert (
    "classes differ by case, spaces or signs alone: ['Cat', 'cat']; are they"
    " the same?" in out
  )
  picture(tmp_path / "tree/bee /1.jpg")
  status, _, err = run_import(*words, split="val")
  assert status == 2
  assert "'bee' and 'bee ', which differ by spaces" in err
