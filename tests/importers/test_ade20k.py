import numpy as np
import pytest
from PIL import Image

from must_jax import importers
from must_jax.importers import ade20k

# As in the dataset, with its stray blanks.
NAMES = (
  "Idx\tRatio\tTrain\tVal\tName\n"
  "1\t0.1576\t11664\t1172\twall\n"
  "2\t0.1072\t6046\t612\tbuilding, edifice\n"
  "3 \t0.0231\t1906\t199\tbed \n"
)
CLASSES = ["wall", "building, edifice", "bed"]


@pytest.fixture
def root(tmp_path):
  root = tmp_path / "ADEChallengeData2016"
  for split in ("training", "validation"):
    write(root, f"ADE_{split}_1", [[0, 1], [2, 3]], split)
  (root / "objectInfo150.txt").write_text(NAMES)
  return root


def write(root, name, ids, split="training", mode="RGB", **options):
  """Writes an image of 2 x 2 and a mask."""
  for folder in ("images", "annotations"):
    (root / folder / split).mkdir(parents=True, exist_ok=True)
  image = Image.new(mode, (2, 2))
  image.save(root / f"images/{split}/{name}.jpg", **options)
  mask = Image.fromarray(np.asarray(ids, np.uint8))
  mask.save(root / f"annotations/{split}/{name}.png")


@pytest.fixture
def run(run_import, root, monkeypatch):
  monkeypatch.setitem(importers.IMPORTERS, "ade", ade20k)
  return lambda *words, split="training", **options: run_import(
    "ade", "--root", root, *words, split=split, **options
  )


@pytest.mark.parametrize("split", ["training", "validation"])
@pytest.mark.parametrize("place", [".", ".."])
def test_ids_count_from_1_and_0_is_unknown(
  run, read_back, decode8, root, split, place
):
  (root / "objectInfo150.txt").rename(root / place / "objectInfo150.txt")
  status, _, err = run(split=split)
  assert (status, err) == (0, "")
  records, image_set = read_back(split=split)
  assert image_set.fields == {"mask": {"kind": "ClassMap", "classes": CLASSES}}
  assert set(records) == {f"ADE_{split}_1"}
  mask = decode8(records[f"ADE_{split}_1"]["mask/png"][0])
  np.testing.assert_array_equal(mask, [[255, 0], [1, 2]])


def test_what_does_not_fit_is_rejected(run, read_back, root):
  write(root, "grey", [[1, 1]] * 2, mode="L")
  write(root, "cmyk", [[1, 1]] * 2, mode="CMYK")
  write(root, "strange", [[0, 4], [255, 1]])
  write(root, "maskless", [[0, 0]] * 2)
  (root / "annotations/training/maskless.png").unlink()
  exif = Image.Exif()
  exif[0x0112] = 6  # the same size, turned
  write(root, "turned", [[0, 0]] * 2, exif=exif)
  status, _, err = run("--max-rejected", 0.5)
  assert status == 0
  assert "  strange: strange.png has ids [4, 255] of no class" in err
  assert "  maskless: has no mask" in err
  assert "  turned: its EXIF or XMP asks for a turn (orientation 6)" in err
  records, _ = read_back(split="training")
  assert set(records) == {"ADE_training_1", "grey", "cmyk"}


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (None, "There is no objectInfo150.txt"),
    ("", "cannot be read"),
    ("Idx\tName\n", "cannot be read"),
    ("Idx\tTitle\n1\twall\n", "cannot be read"),
    ("Idx\tName\none\twall\n", "cannot be read"),
    ("Idx\tName\n1\n", "cannot be read"),
    ("Idx,Name\n1,wall\n", "cannot be read"),
    ("Idx\tName\n2\twall\n1\tbed\n", "has ids (2, 1)"),
    ("Idx\tName\n1\twall\n2\twall\n", "expected a list of different names"),
  ],
)
def test_bad_lists_of_classes(run, root, text, message):
  path = root / "objectInfo150.txt"
  path.unlink()
  if text is not None:
    path.write_text(text)
  status, _, err = run()
  assert status == 2
  assert message in err


def test_splits_that_are_not_there(run):
  status, _, err = run(split="train")
  assert status == 2
  assert "images/train cannot be read" in err
