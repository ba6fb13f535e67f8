"""The whole chain, every path of it in a bucket, against the same on a disk."""

import io
import json
import os

import numpy as np
import pytest
from PIL import Image

import must_jax
from must_jax import config as config_lib
from must_jax.cli import main as must_jax_command
from must_jax.main import run_stage
from must_jax.pseudo_label.job import ALARM
from must_jax.storage import path as path_lib
from must_jax.storage.path import Path, publish
from must_jax.train import checkpoint

KINDS = ("classification", "detection", "segmentation")


def write_photos(root):
  """Red and green rectangles, in the layouts that importers read."""
  rng = np.random.default_rng(0)
  images, boxes = [], []
  for i in range(16):
    name, red = f"{i:03d}", i % 2
    pixels = rng.integers(0, 100, (48, 64, 3), np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    y, x = rng.integers(0, 20, 2)
    pixels[y : y + 24, x : x + 32, 1 - red] = 255
    mask[y : y + 24, x : x + 32] = 1 + red
    for place, array, kind in (
      ("photos", pixels, "JPEG"),
      (f"classes/{('green', 'red')[red]}", pixels, "JPEG"),
      ("masks", mask, "PNG"),
    ):
      path_lib.make_directory(f"{root}/raw/{place}")
      suffix = {"JPEG": "jpg", "PNG": "png"}[kind]
      with publish(f"{root}/raw/{place}/{name}.{suffix}") as file:
        Image.fromarray(array).save(file, kind)
    size = {"height": 48, "width": 64}
    images.append({"id": i, "file_name": f"{name}.jpg"} | size)
    boxes.append(
      {"id": i + 1, "image_id": i, "category_id": red + 1}
      | {"bbox": [int(x), int(y), 32, 24], "area": 768, "iscrowd": 0}
    )
  categories = [{"id": 1, "name": "green"}, {"id": 2, "name": "red"}]
  path_lib.publish_json(
    f"{root}/raw/boxes.json",
    {"images": images, "annotations": boxes, "categories": categories},
  )
  path_lib.publish_json(f"{root}/raw/classes.json", ["nothing", "green", "red"])


def command(*words):
  assert must_jax_command([str(word) for word in words]) == 0, words


def run(config, workdir, *overrides):
  loaded = config_lib.load(f"configs/{config}", overrides)
  try:
    return run_stage(loaded, workdir)
  except SystemExit as end:  # what six steps teach may look like nothing
    assert end.code == ALARM


def import_all(root):
  raw = f"{root}/raw"
  sources = {
    "classification": ("folder", "--images", f"{raw}/classes"),
    "detection": (
      *("coco", "--annotations", f"{raw}/boxes.json"),
      *("--images", f"{raw}/photos"),
    ),
    "segmentation": (
      *("masks", "--images", f"{raw}/photos", "--masks", f"{raw}/masks"),
      *("--classes", f"{raw}/classes.json"),
    ),
    "pile": ("folder", "--unlabelled", "--images", f"{raw}/photos"),
  }
  for name, words in sources.items():
    out = f"{root}/data/{name}"
    command("import", *words, "--out", out, "--name", name, "--split", "train")
    command("data", "verify", out)


def run_chain(root):
  """Everything that a user does, below one root."""
  write_photos(root)
  import_all(root)
  command("data", "show", f"{root}/data/detection", "--out", f"{root}/s.png")
  for kind in KINDS:
    teacher, labels = (
      f"{root}/runs/teacher_{kind}",
      f"{root}/labels/pile/{kind}",
    )
    arg = f"root={root},data=data/{kind},validation=train,smoke"
    run(f"teacher_{kind}.py:{arg}", teacher, "--config.train.steps=6")
    arg = f"root={root},kind={kind},images=data/pile,batch_size=8"
    run(f"label.py:{arg}", labels)
    command("data", "verify", labels)
    command("inspect", labels, "--status")
    command(
      *("inspect", labels, "--images", f"{root}/data/pile"),
      *("--gallery", f"{root}/{kind}.png"),
    )
  arg = f"root={root},images=data/pile,tasks={'+'.join(KINDS)},smoke"
  student = f"{root}/runs/student"
  command(
    *("doctor", f"--config=configs/student.py:{arg}", f"--workdir={student}")
  )
  run(f"student.py:{arg}", student, "--config.train.steps=6")
  # A run that goes on, and its metrics again.
  resumed = f"{root}/runs/resumed"
  run(f"student.py:{arg}", resumed, "--config.train.steps=6")
  arg = (
    f"kind=detection,root={root},data=data/detection,validation=train,"
    f"init=runs/student,smoke"
  )
  tuned = f"{root}/runs/finetune"
  result = run(f"finetune.py:{arg}", tuned, "--config.train.steps=6")
  again = run(
    f"finetune.py:{arg}",
    tuned,
    *("--config.train.steps=6", "--config.stage=evaluate"),
  )
  assert again == result
  command("predict", tuned, f"{root}/raw/photos", "--out", f"{root}/pictures")
  command("card", student, "--out", f"{root}/card.md")
  weights = f"{root}/student.safetensors"
  command("convert", "must_jax", student, "--out", weights)
  command("convert", "must_jax", weights, "--out", f"{root}/checkpoints/back")
  return result


def read_tree(root):
  """Contents of what lies below a root, without its name."""
  return {
    name: (Path(root) / name).read_bytes().replace(root.encode(), b"ROOT")
    for name in path_lib.list_tree(root)
  }


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
  root = str(tmp_path_factory.mktemp("disk"))
  return root, run_chain(root)


def test_a_bucket_gives_what_a_disk_gives(on_disk, bucket, capfd):
  disk, result = on_disk
  assert run_chain(bucket.root) == result
  here, there = read_tree(disk), read_tree(bucket.root)

  # Image sets: every byte. Label sets: every record; the rest says where the
  # teacher's data lie, and so has another digest.
  for name, data in here.items():
    if name.startswith("data/") or name.endswith((".tfrecord", ".offsets")):
      assert there[name] == data, name
  assert {n for n in here if n.startswith(("data/", "labels/"))} == {
    n for n in there if n.startswith(("data/", "labels/"))
  }
  for kind in KINDS:
    one, other = (
      json.loads(tree[f"labels/pile/{kind}/manifest.json"])
      for tree in (here, there)
    )
    for key in ("shards", "statistics", "teacher", "fields", "settings"):
      assert one[key] == other[key], (kind, key)

  # Parameters: every bit.
  for run_name in (
    *(f"runs/teacher_{kind}" for kind in KINDS),
    *("runs/student", "runs/resumed", "runs/finetune", "checkpoints/back"),
  ):
    assert checkpoint.fingerprint(f"{disk}/{run_name}") == (
      checkpoint.fingerprint(f"{bucket.root}/{run_name}")
    ), run_name

  # Metrics, pictures, and weights that leave.
  def losses(root):
    lines = path_lib.read_appended(f"{root}/runs/student/metrics.jsonl")
    return [json.loads(line)["loss"] for line in lines.splitlines()]

  assert losses(disk) == losses(bucket.root) != []
  assert here["card.md"] == there["card.md"]
  assert any("tfevents" in name for name in there)
  for name in here:
    if name.endswith(".png"):
      assert there[name] == here[name], name

  def predictions(tree, root):
    told = json.loads(tree["pictures/predictions.json"].replace(root, b""))
    del told["info"]  # when photos were made, among others
    return told

  drawn = [name for name in there if name.startswith("pictures/pictures/")]
  assert len(drawn) == 16
  told = predictions(there, bucket.root.encode())
  assert told == predictions(here, str(disk).encode())
  assert len(told["images"]) == 16
  assert not [name for name in there if name.endswith(".tmp")]
  # Nothing but the bucket: no directory of the name of a URL.
  assert not os.path.exists("gs:")

  model = must_jax.load(f"{bucket.root}/runs/student")
  photo = Image.open(io.BytesIO(there["raw/photos/000.jpg"])).resize((64, 64))
  found = model.predictor()(np.asarray(photo)[None])
  assert set(found) == set(KINDS)
