"""What configs read, and what is said of it where it is not there."""

import dataclasses
import io
import os
import pathlib
import re
import shlex

import pytest
from PIL import Image

from must_jax import config as config_lib
from must_jax import convert, main
from must_jax.cli import make_parser
from must_jax.importers.datasets import DATASETS, import_command
from must_jax.preflight import places
from must_jax.storage import label_sets
from must_jax.storage.path import publish_json
from must_jax.storage.set_writer import write_image_set
from must_jax.storage.sets import ImageSet

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
KINDS = ("classification", "depth", "detection", "segmentation")
STUDENTS = [name for name in CONFIGS if name.startswith("student")]


def load(name, arg=""):
  return config_lib.load(
    f"{ROOT}/configs/{name}.py" + (f":{arg}" if arg else "")
  )


def labels_of(config):
  return {
    task: dict(entry.labels)["images"] for task, entry in config.tasks.items()
  }


@pytest.fixture
def empty(tmp_path, monkeypatch):
  """The current directory, with nothing in it."""
  directory = tmp_path / "empty"
  directory.mkdir()
  monkeypatch.chdir(directory)
  return directory


def write_images(directory):
  file = io.BytesIO()
  Image.new("RGB", (8, 8)).save(file, "PNG")
  example = {"image": file.getvalue(), "height": 8, "width": 8, "labels": {}}
  examples = [{"key": f"image-{i}", **example} for i in range(4)]
  write_image_set(directory, "pile", "train", examples, {})


def write_labels(directory, images):
  """A label set that says no more than that it is finished."""
  job = begin_labels(directory, images)
  shards = [dataclasses.asdict(shard) for shard in images.shards]
  publish_json(directory / "manifest.json", job | {"shards": shards})


def begin_labels(directory, images):
  job = label_sets.describe_job(images, {}, {"digest": "0"}, {"batch_size": 8})
  label_sets.claim_directory(directory, job)
  return job


def problem(config, workdir="run"):
  """The error before anything runs; nothing is written."""
  before = sorted(pathlib.Path().rglob("*"))
  with pytest.raises(ValueError) as error:
    main.run_stage(config, workdir)
  assert sorted(pathlib.Path().rglob("*")) == before
  return str(error.value)


def commands(text):
  return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def check_command(command):
  """That a command is understood; returns where it writes."""
  program, verb, *words = shlex.split(command)
  assert program == "must-jax"
  if verb not in config_lib.STAGES:
    args = make_parser().parse_args([verb, *words])
    if args.command == "convert":
      convert.get_kind(args.kind)
    return str(args.out)
  name, workdir = words
  config = config_lib.load(name)
  config_lib.validate(config)
  assert config.stage == verb
  return workdir.removeprefix("--workdir=")


def no_checkpoint(place):
  raise FileNotFoundError


# The shipped configs


@pytest.mark.parametrize("root", ["", "/mnt/must", "gs://bucket/must", "here"])
@pytest.mark.parametrize("name", CONFIGS)
def test_all_places_of_a_config_are_under_its_root(name, root):
  config = load(name, f"root={root}" if root else "")
  config_lib.validate(config)
  found = places.places(config)
  assert found
  for place in found:
    path = place.path.removeprefix(f"{root}/" if root else "")
    assert re.match("(data|labels|runs|checkpoints)/", path), place


def test_configs_that_train_without_arguments_are_known():
  assert set(places.RUNS) == {
    name for name in CONFIGS if not name.startswith(("label", "finetune"))
  }


@pytest.mark.parametrize("name", CONFIGS)
def test_all_that_is_missing_is_named_with_what_makes_it(empty, name):
  config = load(name)
  text = problem(config)
  missing = [(p.path, getattr(p, "split", "")) for p in places.places(config)]
  made = [check_command(command) for command in commands(text)]
  assert made == [path for path, _ in missing]
  assert len(set(missing)) == len(missing)
  assert str(empty) in text


def test_what_is_missing_in_a_bucket_is_made_in_the_bucket(empty, monkeypatch):
  monkeypatch.setattr(places, "is_file", lambda path: False)
  monkeypatch.setattr(places.CheckpointPlace, "open", no_checkpoint)
  text = problem(load("student_align_b7", "root=gs://bucket/must"))
  assert len(commands(text)) == 6
  for command in commands(text):
    assert check_command(command)
    for word in re.findall(
      r"[=\s,]([^\s,=]*(?:data|labels|runs)/\w+)", command
    ):
      assert word.startswith(("gs://bucket/must/", "--")), command
  assert (
    "must-jax label label:teacher=gs://bucket/must/runs/teacher_detection_align_b7,"
    "images=gs://bucket/must/data/jft"
    " --workdir=gs://bucket/must/labels/jft_align_b7/detection"
  ) in text
  label = problem(load("label", "root=gs://bucket/must,kind=segmentation"))
  assert (
    "must-jax train teacher_segmentation:root=gs://bucket/must"
    " --workdir=gs://bucket/must/runs/teacher_segmentation"
  ) in label


def test_a_command_makes_what_the_student_reads(empty):
  """Down the chain, until there are imports and published weights only."""
  todo, made = [load("student_jft")], []
  while todo:
    for command in commands(problem(todo.pop())):
      if command not in made:
        made.append(command)
        run = re.match(r"must-jax (?:train|label) (\w+):?(\S*)", command)
        if run:
          todo.append(load(*run.groups()))
  outputs = {check_command(command) for command in made}
  assert outputs == {
    *("data/jft", "data/imagenet", "data/objects365", "data/coco_panoptic"),
    *(f"labels/jft/{kind}" for kind in KINDS),
    *(f"runs/teacher_{kind}" for kind in KINDS if kind != "depth"),
    "checkpoints/midas",
  }


# Students


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_learns_all_tasks_of_the_paper(name):
  config = load(name)
  assert set(config.tasks) == {*KINDS}
  labels = {
    "student": "labels/imagenet",
    "student_imagenet": "labels/imagenet",
    "student_align_b7": "labels/jft_align_b7",
  }.get(name, "labels/jft")
  expected = {kind: f"{labels}/{kind}" for kind in KINDS}
  if name == "student_imagenet":
    expected["classification"] = "supervised"
  assert labels_of(config) == expected


@pytest.mark.parametrize(
  ("arg", "expected"),
  [
    ("tasks=depth", {"depth": "labels/imagenet/depth"}),
    (
      "tasks=depth+detection,images=/data/pile/,detection=supervised",
      {"depth": "labels/pile/depth", "detection": "supervised"},
    ),
    (
      "tasks=depth+detection,labels=runs/labels/,depth=gs://b/midas,root=/r",
      {"depth": "gs://b/midas", "detection": "/r/runs/labels/detection"},
    ),
  ],
)
def test_labels_are_where_the_arguments_say(arg, expected):
  assert labels_of(load("student", arg)) == expected


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    (
      "tasks=detectoin",
      "Config argument tasks='detectoin': 'detectoin' is no kind of task;"
      " expected some of classification, detection, segmentation, depth, joined"
      " by '+'. Did you mean 'detection'?",
    ),
    ("tasks=", "'' is no kind of task"),
    ("tasks=depth,detection=L", "expected tasks=depth+detection, or no"),
  ],
)
def test_wrong_tasks_are_an_error_of_one_line(arg, message):
  with pytest.raises(ValueError) as error:
    load("student", arg)
  assert message in str(error.value)
  assert "\n" not in str(error.value)


# What is there


@pytest.fixture
def pile(empty):
  write_images("data/pile")
  return ImageSet.open("data/pile", "train")


def test_one_label_set_that_is_missing_is_named_alone(pile):
  for kind in KINDS:
    if kind != "segmentation":
      write_labels(pathlib.Path("labels/pile") / kind, pile)
  text = problem(load("student", "images=data/pile"))
  (command,) = commands(text)
  assert check_command(command) == "labels/pile/segmentation"
  assert "labels/pile/segmentation, labels of task 'segmentation': no" in text
  assert "tasks=" in text
  config = load("student", "images=data/pile,tasks=depth+detection")
  assert not places.missing(places.places(config))


def test_labels_that_are_not_finished_say_how_to_go_on(pile):
  begin_labels(pathlib.Path("labels/pile/detection"), pile)
  text = problem(load("student", "images=data/pile,tasks=detection"))
  assert (
    "labels/pile/detection, labels of task 'detection': labelling is not"
    in text
  )
  (command,) = commands(text)
  assert ",batch_size=8 " in command
  assert check_command(command) == "labels/pile/detection"


@pytest.mark.parametrize("end", ["", "/"])
def test_a_slash_at_the_end_says_nothing(empty, end):
  place = places.LabelsPlace(
    f"labels/b/depth{end}", "a", "a", f"b{end}", "train"
  )
  assert "teacher=runs/teacher_a," in place.command()
  place = dataclasses.replace(place, path=f"/r/labels/b_x/depth{end}")
  assert "teacher=/r/runs/teacher_a_x," in place.command()


def test_labels_in_a_bucket_are_found_and_missed(bucket, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  root = f"{bucket.root}/must"
  write_images(f"{root}/data/pile")
  images = ImageSet.open(f"{root}/data/pile", "train")
  write_labels(label_sets.Path(f"{root}/labels/pile/depth"), images)
  arg = f"root={root},images=data/pile,tasks=depth+detection"
  (command,) = commands(problem(load("student", arg)))
  assert check_command(command) == f"{root}/labels/pile/detection"


def test_a_split_that_is_missing_says_which_there_are(pile):
  text = problem(load("teacher_depth", "data=data/pile"))
  assert "no split 'validation', it has ['train']" in text
  assert [check_command(c) for c in commands(text)] == ["data/pile"]


def test_a_run_that_goes_on_does_not_ask_for_its_start(empty):
  config = load("student_align_b7")
  assert "checkpoints/align_b7" in [
    p.path for p in places.places(config, "new")
  ]
  for part in ("state", "meta"):
    os.makedirs(f"run/checkpoints/5/{part}")
  again = [p.path for p in places.places(config, "run")]
  assert "checkpoints/align_b7" not in again


def test_a_stage_asks_for_what_it_reads_alone(pile):
  config = load("student", "images=data/nowhere,tasks=depth,depth=data/labels")
  with config.unlocked():
    config.datasets.unused = config_lib.dataset("data/unused", "train")
  assert [p.path for p in places.places(config)] == [
    "data/nowhere",
    "data/labels",
  ]
  config.stage = "evaluate"
  config.evaluate_on = ("unused",)
  assert [p.path for p in places.places(config, "runs/it")] == [
    "data/unused",
    "runs/it",
  ]
  config.evaluate_on, config.evaluate_from = ("images",), "runs/other"
  assert [p.path for p in places.places(config, "runs/it")] == [
    "data/nowhere",
    "runs/other",
    "data/labels",
  ]


# Commands


@pytest.mark.parametrize(
  ("name", "split"),
  [(name, split) for name, d in DATASETS.items() for split in d.splits],
)
def test_imports_of_known_datasets_are_understood(name, split):
  command = import_command(f"gs://b/data/{name}", split)
  assert command.startswith(f"must-jax import {name} --split {split} ")
  assert check_command(command) == f"gs://b/data/{name}"


def test_an_import_names_the_files_of_its_split():
  assert import_command("data/coco_panoptic", "val").endswith(
    "--annotations panoptic_val2017.json --masks panoptic_val2017"
    " --images val2017"
  )


@pytest.mark.parametrize(
  ("kinds", "importer"),
  [
    ((), "folder --unlabelled"),
    (("detection",), "coco"),
    (("segmentation",), "masks"),
    (("depth",), "depth"),
    (("normals",), "normals"),
    (("classification",), "folder"),
  ],
)
def test_other_image_sets_are_imported_by_what_they_hold(kinds, importer):
  command = import_command("my data/birds", "val", kinds)
  assert command.startswith(f"must-jax import {importer} ")
  assert check_command(command) == "my data/birds"


def test_checkpoints_of_configs_are_of_known_kinds():
  for name in convert.CHECKPOINTS:
    place = places.CheckpointPlace(f"elsewhere/{name}", "init_from")
    assert check_command(place.command()) == f"elsewhere/{name}"
  other = places.CheckpointPlace("runs/mine/checkpoints/7", "init_from")
  assert other.command() == "must-jax convert KIND FILE --out runs/mine"
