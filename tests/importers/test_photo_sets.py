"""docs/photographs.md: its script, and that its commands are those given."""

import pathlib
import re
import runpy
import shlex

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from must_jax.cli import main
from must_jax.lab.scale_photos import PhotosScale
from must_jax.lab.stages import Stages
from must_jax.storage.path import Path
from must_jax.storage.sets import read_index

DOCS = pathlib.Path(__file__).parents[2] / "docs"
CAMERA = np.array([[250.0, 0, 15], [0, 240, 10], [0, 0, 1]])


@pytest.fixture(scope="module")
def script():
  return runpy.run_path(str(DOCS / "examples" / "photo_sets.py"))


def plane(normal, distance, size=(24, 32)):
  """Depth of the plane n P = distance that the camera sees, in metres."""
  y, x = np.mgrid[: size[0], : size[1]]
  rays = [(x - 15) / 250, (y - 10) / 240, np.ones(size)]
  return distance / np.tensordot(normal, rays, 1)


def unit(*vector):
  return np.array(vector) / np.linalg.norm(vector)


def angle(vectors, normal):
  return np.degrees(np.arccos(np.clip(vectors @ normal, -1, 1)))


@pytest.mark.parametrize(
  "away", [(0, 0, 1), (0.7, 0.1, 0.7), (-0.3, 0.8, 0.5)], ids=str
)
def test_normals_of_a_plane_face_the_camera(script, away):
  depth = plane(unit(*away), 2)
  depth[3:9, 20:23] = 0  # unknown
  vectors, valid = script["normals"](depth, CAMERA)
  assert np.array_equal(valid, depth > 0)
  assert angle(vectors[valid], -unit(*away)).max() < 0.01


def test_normals_of_two_planes_do_not_mix_at_an_edge(script):
  left, right = unit(0, 0, 1), unit(0.6, 0, 0.8)
  depth = plane(left, 3)
  depth[:, 16:] = plane(right, 1)[:, 16:]
  vectors, valid = script["normals"](depth, CAMERA)
  assert valid.all()
  assert angle(vectors[:, :16], -left).max() < 0.01
  assert angle(vectors[:, 16:], -right).max() < 0.01


def test_normals_are_not_known_where_depth_is_not(script):
  depth = np.zeros((24, 32))
  depth[12] = 2.0  # a line has no normal
  assert not script["normals"](depth, CAMERA)[1].any()
  depth[6:] = 2.0
  valid = script["normals"](depth, CAMERA)[1]
  assert valid[6:].all()
  assert not valid[:6].any()  # though there are neighbours


def save(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


def count(index, split):
  return index["splits"][split]["num_records"]


def test_frames_are_split_by_time(script, tmp_path):
  rng = np.random.default_rng(0)
  source, out = tmp_path / "in", tmp_path / "out"
  names = [f"{i:05d}.png" for i in range(0, 2 * 320, 2)]
  for name in names:
    depth = np.full((24, 32), 1500, np.uint16)
    depth[:, ::2] += 100  # what halving leaves out is not there
    depth[0] = 0
    save(source / "depth" / name, depth)
    save(source / "images" / name, rng.integers(0, 255, (24, 32, 3), np.uint8))
  np.savetxt(source / "K.txt", CAMERA)
  script["office"](Path(source), Path(out))
  found = {
    split: sorted(p.name for p in (out / split / "rgb").iterdir())
    for split in ("train", "test")
  }
  assert found["train"] == names[:296:4]
  assert found["test"] == names[300::4]  # and names[296] is in neither
  for split in found:
    for kind, label in (("depth", "depths"), ("normals", "normals")):
      images, labels = (str(out / split / f) for f in ("rgb", kind))
      words = f"import {kind} --images {images} --{label} {labels} --out"
      place = str(tmp_path / kind)
      words = [*words.split(), place, "--name", kind, "--split", split]
      assert main(words) == 0
      index = read_index(place)
      assert count(index, split) == len(found[split])
      assert not index.get("warnings")
  depth = np.asarray(Image.open(out / "train" / "depth" / names[0]))
  assert depth.shape == (12, 16)
  assert {*depth[1:].ravel()} == {1600}
  codes = np.asarray(Image.open(out / "train" / "normals" / names[0]))
  assert (codes[0] == 0).all()  # unknown
  assert np.abs(codes[1:] - np.array([127.5, 127.5, 0])).max() < 1


def test_masks_of_matlab_become_eight_classes(script, tmp_path):
  source, out = tmp_path / "in", tmp_path / "out"
  names = ["null", "skin", "t-shirt", "skirt", "romper", "wedges", "watch"]
  names += ["hair"]
  cells = np.empty((1, len(names)), object)
  cells[0] = [np.array([name]) for name in names]
  (source / "annotations" / "pixel-level").mkdir(parents=True)
  savemat(source / "label_list.mat", {"label_list": cells})
  truth = np.arange(8, dtype=np.uint8).repeat(2).reshape(4, 4)
  masks = source / "annotations" / "pixel-level"
  savemat(masks / "0001.mat", {"groundtruth": truth})
  for i in range(1, 1004):
    (masks / f"{i + 1:04d}.mat").hardlink_to(masks / "0001.mat")
  save(source / "photos" / "0001.jpg", np.zeros((4, 4, 3), np.uint8))
  for i in range(1, 1100):  # more than have masks
    photo = source / "photos" / f"{i + 1:04d}.jpg"
    photo.hardlink_to(source / "photos" / "0001.jpg")
  script["fashion"](Path(source), Path(out))
  files = {
    split: sorted(p.stem for p in (out / split).iterdir())
    for split in ("train", "val", "test")
  }
  assert {k: (v[0], v[-1], len(v)) for k, v in files.items()} == {
    "train": ("0001", "0804", 804),
    "val": ("0805", "0904", 100),
    "test": ("0905", "1004", 100),
  }
  words = f"import masks --images {out}/val --masks {out}/val_masks --classes"
  words += f" {out}/classes.txt --out {tmp_path}/set --name it --split val"
  assert main(words.split()) == 0
  index = read_index(tmp_path / "set")
  assert count(index, "val") == 100
  (field,) = index["fields"].values()
  mask = np.asarray(Image.open(out / "val_masks" / "0805.png"))
  found = [field["classes"][k] for k in mask.ravel()[::2]]
  assert found == [
    *("background", "skin", "upper", "lower", "onepiece", "shoes"),
    *("accessory", "hair"),
  ]


def test_every_listed_class_of_the_masks_comes_once(script):
  named = " ".join(script["GROUPS"].values()).split()
  assert len(named) == len({*named}) == 43


def test_a_dry_run_gives_the_commands_of_the_page(tmp_path):
  page = (DOCS / "photographs.md").read_text()
  text = " ".join(
    "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL))
    .replace("\\\n", " ")
    .split()
  )
  scale = PhotosScale("data")
  names = {transfer.images for transfer in scale.transfers}
  for name in sorted(names):
    made = scale.images(name, Stages(tmp_path, 1)).prerequisite
    for line in made.how.splitlines():
      for split in made.splits if line.startswith("must-jax") else ():
        line = line.replace(f"{split}_", "${split}_")
        line = re.sub(rf"(/|_| ){split}(?=[/. ]|$)", r"\1$split", line)
      assert line in text, line
      assert shlex.split(line)
