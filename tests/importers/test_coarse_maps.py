"""`--map-stride`: maps that are stored as coarse as a student reads them."""

import json

import numpy as np
import pytest
from PIL import Image

from must_jax.fields import ClassMap, ValueMap, VectorMap
from must_jax.input.batches import eval_batches
from must_jax.input.origins import SUPERVISED, Source
from must_jax.storage.sets import LabelSet

HEIGHT, WIDTH, STRIDE = 32, 48, 4


def smooth(rng, channels):
  """Values [h, w, channels] that change slowly, in -1..1."""
  coarse = rng.uniform(-1, 1, (channels, 4, 6)).astype(np.float32)
  return np.stack(
    [np.array(Image.fromarray(c).resize((WIDTH, HEIGHT), 2)) for c in coarse],
    -1,
  )


def masks(tmp_path, rng):
  ids = rng.integers(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)
  ids[rng.uniform(size=ids.shape) < 0.2] = 255
  save(tmp_path / "labels/a.png", Image.fromarray(ids).save)
  (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
  words = ("masks", "--masks", tmp_path / "labels")
  return (*words, "--classes", tmp_path / "classes.txt"), "mask", ClassMap(3)


def depth(tmp_path, rng):
  metres = 3 + smooth(rng, 1)[..., 0]
  metres[rng.uniform(size=metres.shape) < 0.2] = 0
  save(tmp_path / "labels/a.npy", lambda path: np.save(path, metres))
  return ("depth", "--depths", tmp_path / "labels"), "depth", ValueMap()


def normals(tmp_path, rng):
  vectors = smooth(rng, 3) - (0, 0, 1.5)
  vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
  vectors[rng.uniform(size=vectors.shape[:2]) < 0.2] = 0
  save(tmp_path / "labels/a.npy", lambda path: np.save(path, vectors))
  return ("normals", "--normals", tmp_path / "labels"), "normals", VectorMap()


def save(path, write):
  path.parent.mkdir(exist_ok=True)
  write(path)


@pytest.fixture(params=[masks, depth, normals])
def labelled(request, tmp_path, picture):
  """Words of an import of one image with a map; its field and kind."""
  picture(tmp_path / "images/a.jpg", height=HEIGHT, width=WIDTH)
  words, name, kind = request.param(tmp_path, np.random.default_rng(0))
  return (*words, "--images", tmp_path / "images"), name, kind


def read_map(directory, name, kind, labels=SUPERVISED):
  """The map of the one image, as a student reads it."""
  (batch,) = eval_batches(
    [Source(str(directory), "train", {"it": str(labels)})],
    {"it": {name: kind}},
    batch_size=1,
    image_size=(HEIGHT, WIDTH),
    label_stride=STRIDE,
  )
  found = batch["labels"]["it"][name]
  assert found["present"].all()
  return found


def check_same(found, expected):
  assert found.keys() == expected.keys()
  for key, value in expected.items():
    if value.dtype.kind == "f":  # both are rounded to codes
      np.testing.assert_allclose(found[key], value, atol=2e-4)
    else:
      np.testing.assert_array_equal(found[key], value)


def test_a_student_reads_the_same_labels(labelled, run_import, tmp_path):
  words, name, kind = labelled
  status, whole, err = run_import(*words, out="whole")
  assert (status, err) == (0, ""), whole
  status, out, err = run_import(*words, "--map-stride", STRIDE, out="coarse")
  assert (status, err) == (0, "")
  note = "maps have one value for 4 x 4 pixels of their image"
  assert note in out
  assert note not in whole
  expected = read_map(tmp_path / "whole", name, kind)
  check_same(read_map(tmp_path / "coarse", name, kind), expected)


def test_labels_for_images_that_are_there(labelled, run_import, tmp_path):
  from must_jax import cli

  words, name, kind = labelled
  images = ("--unlabelled", "--images", tmp_path / "images")
  assert run_import("folder", *images, out="set")[0] == 0
  found = []
  for stride in (1, STRIDE):
    out = tmp_path / f"labels-{stride}"
    options = ("--labels-for", tmp_path / "set", "--split", "train")
    options += ("--out", out, "--map-stride", stride)
    assert cli.main([str(w) for w in ("import", *words, *options)]) == 0
    found.append(read_map(tmp_path / "set", name, kind, labels=out))
  check_same(found[1], found[0])
  sizes = [
    LabelSet.open(tmp_path / f"labels-{s}").shards[0].num_bytes
    for s in (1, STRIDE)
  ]
  assert sizes[1] < sizes[0]


def test_a_side_that_the_stride_does_not_divide(
  run_import, read_back, decode8, picture, tmp_path
):
  picture(tmp_path / "images/a.jpg", height=30, width=45)
  ids = np.random.default_rng(0).integers(0, 3, (30, 45)).astype(np.uint8)
  save(tmp_path / "masks/a.png", Image.fromarray(ids).save)
  (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
  status, _, err = run_import(
    *("masks", "--images", tmp_path / "images", "--masks", tmp_path / "masks"),
    *("--classes", tmp_path / "classes.txt", "--map-stride", 4),
  )
  assert (status, err) == (0, "")
  records, _ = read_back()
  stored = decode8(records["a"]["mask/png"][0])
  # A map covers its image: 8 x 12 cells of 3.75 pixels, from their centres.
  rows, cols = (int(3.75 * i + 1.875) for i in range(8)), range(12)
  expected = [[ids[y, int(3.75 * j + 1.875)] for j in cols] for y in rows]
  np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize(
  ("ids", "message"),
  [
    # A pixel that no cell takes its class from.
    (np.pad([[9]], ((0, HEIGHT - 1), (0, WIDTH - 1))), "9"),
    # Sampled for the image's proportions it would fit.
    (np.zeros((HEIGHT, HEIGHT)), f"{HEIGHT} x {WIDTH}"),
  ],
)
def test_what_is_wrong_with_a_whole_map_is_not_hidden(
  run_import, picture, tmp_path, ids, message
):
  for name in ("a", "b"):
    picture(tmp_path / f"images/{name}.jpg", height=HEIGHT, width=WIDTH)
    pixels = ids if name == "a" else np.zeros((HEIGHT, WIDTH))
    image = Image.fromarray(pixels.astype(np.uint8))
    save(tmp_path / f"masks/{name}.png", image.save)
  (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
  reasons = []
  for stride in (1, 4):
    status, _, err = run_import(
      *("masks", "--images", tmp_path / "images"),
      *("--masks", tmp_path / "masks", "--classes", tmp_path / "classes.txt"),
      *("--map-stride", stride, "--max-rejected", 1),
      out=f"out-{stride}",
    )
    assert status == 0
    assert "1 rejected" in err
    assert message in err
    reasons.append(err)
  assert reasons[0] == reasons[1]


def test_boxes_are_no_maps(run_import, picture, tmp_path):
  picture(tmp_path / "images/a.jpg")
  coco = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [
      {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}
    ],
    "categories": [{"id": 1, "name": "cat"}],
  }
  (tmp_path / "boxes.json").write_text(json.dumps(coco))
  words = ("coco", "--annotations", tmp_path / "boxes.json")
  words += ("--images", tmp_path / "images")
  status, _, err = run_import(*words, "--map-stride", 4)
  assert status == 2
  assert "--map-stride is 4; the labels that are imported (objects) are" in err
  assert run_import(*words, "--map-stride", 1)[0] == 0


def test_a_stride_is_a_number_of_pixels(labelled, run_import):
  words, *_ = labelled
  status, _, err = run_import(*words, "--map-stride", 0)
  assert status == 2
  assert "--map-stride is 0; expected 1 or more" in err


def test_an_import_of_another_stride_is_another_import(
  labelled, run_import, tmp_path, monkeypatch
):
  from must_jax.importers import write

  def fail(*_):
    raise OSError("the disk is full")

  words, name, kind = labelled
  with monkeypatch.context() as patched:
    patched.setattr(write, "_publish", fail)
    assert run_import(*words)[0] == 2  # all parts are read
  status, out, _ = run_import(*words, "--map-stride", STRIDE)
  assert status == 0
  assert "is of another import" in out
  assert read_map(tmp_path / "out", name, kind)
