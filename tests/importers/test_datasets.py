import argparse
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import must_jax
from must_jax import importers
from must_jax.importers import datasets, tfds, tfrecords
from must_jax.importers.items import Item, Plan

# Table 1 of the paper, in thousands of images.
TABLE_1 = {
  ("imagenet", "train"): ("classification", 1_200),
  ("objects365", "train"): ("detection", 600),
  ("coco_panoptic", "train"): ("segmentation", 118),
  ("jft", "train"): ("classification", None),  # 300M, not public
  ("cifar100", "train"): ("classification", 50),
  ("voc_detection", "trainval"): ("detection", 16.5),
  ("voc_segmentation", "train"): ("segmentation", 1.5),
  ("nyu_depth", "train"): ("depth", 47),
  ("ade20k", "training"): ("segmentation", 20),
  ("diode_normals", "train"): ("normals", 17),
}
# What results are reported on, as published with the datasets.
TEST_SIZES = {
  ("imagenet", "validation"): 50_000,
  ("coco_panoptic", "val"): 5_000,
  ("coco_detection", "val"): 5_000,
  ("cifar100", "test"): 10_000,
  ("voc_detection", "test"): 4_952,
  ("voc_segmentation", "val"): 1_449,
  ("nyu_depth", "test"): 654,
  ("ade20k", "validation"): 2_000,
}


@pytest.fixture
def parse():
  parser = argparse.ArgumentParser()
  datasets.add_arguments(parser.add_subparsers(dest="kind", required=True))
  return lambda *words: parser.parse_args([str(word) for word in words])


@pytest.fixture
def seen(monkeypatch):
  """Arguments that reach the importer of TFDS datasets."""
  arguments = []

  def plan(args):
    arguments.append(args)
    return Plan({}, [], None, num_images=4_952)

  monkeypatch.setattr(tfds, "plan", plan)
  return arguments


@pytest.mark.parametrize("name", TABLE_1)
def test_training_splits_are_those_of_table_1(name):
  task, thousands = TABLE_1[name]
  dataset = datasets.DATASETS[name[0]]
  assert dataset.task == task
  given = dataset.splits[name[1]].num_images
  if thousands is None:
    assert given is None
  else:
    assert given / 1000 == pytest.approx(thousands, rel=0.07)


def test_splits_to_report_on_have_their_published_sizes():
  given = {
    (name, split): datasets.DATASETS[name].splits[split].num_images
    for name, split in TEST_SIZES
  }
  assert given == TEST_SIZES


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_the_listed_options_are_all_that_a_command_needs(parse, name):
  dataset = datasets.DATASETS[name]
  for split in dataset.splits:
    words = (*shlex.split(dataset.options), "--split", split, "--out", "x")
    args = parse(name, *words)
    assert (args.name, args.licence) == (name, dataset.licence)


def test_other_splits_are_refused(parse, capsys):
  with pytest.raises(SystemExit):
    parse("voc_detection", "--split", "train", "--out", "x")
  assert re.search("choose from '?trainval'?, '?test", capsys.readouterr().err)


@pytest.mark.parametrize(
  ("name", "split", "read"),
  [
    ("imagenet", "train", ["imagenet2012:train"]),
    ("cifar100", "test", ["cifar100:test"]),
    (
      "voc_detection",
      "trainval",
      ["voc/2007:train+validation", "voc/2012:train+validation"],
    ),
    ("voc_detection", "test", ["voc/2007:test"]),
    ("nyu_depth", "test", ["nyu_depth_v2:validation"]),
  ],
)
def test_a_split_stands_for_splits_of_tfds(parse, seen, name, split, read):
  args = parse(name, "--split", split, "--out", "x")
  args.plan(args)
  assert list(seen[0].dataset) == read


def test_an_option_overrides_what_a_name_stands_for(parse, seen):
  words = ("--dataset", "cifar100:train[:9]", "--split", "train", "--out", "x")
  args = parse("cifar100", *words)
  args.plan(args)
  assert seen[0].dataset == ["cifar100:train[:9]"]


def test_another_number_of_images_than_published_is_noted(parse, seen):
  args = parse("voc_detection", "--split", "test", "--out", "x")
  assert args.plan(args).notes == ()
  args = parse("voc_detection", "--split", "trainval", "--out", "x")
  assert args.plan(args).notes == [
    "4,952 images found; voc_detection was published with 16,551 in trainval"
  ]


def test_a_number_that_nobody_knows_is_not_compared(parse, monkeypatch):
  items = [Item(str(i), None) for i in range(3)]
  plan = Plan({}, items, None, shard_per_item=True)
  monkeypatch.setattr(tfrecords, "plan", lambda args: plan)
  words = ("--records", "x", "--unlabelled", "--split", "train", "--out", "x")
  args = parse("jft", *words)
  assert args.plan(args) is plan


def test_a_dataset_is_imported_by_its_name(
  parse, picture, tmp_path, index_of, capsys
):
  for i in range(3):
    picture(tmp_path / "unlabeled2017" / f"{i}.jpg")
  words = ("--images", tmp_path / "unlabeled2017", "--split", "train")
  args = parse("coco_unlabeled", *words, "--out", tmp_path / "out")
  assert importers.run(args) == 0
  assert "3 images found; coco_unlabeled was published with 123,403" in (
    capsys.readouterr().out
  )
  index = index_of()
  assert (index["name"], index["fields"]) == ("coco_unlabeled", {})
  assert "cocodataset.org" in index["licence"]


def test_the_list_names_every_dataset_with_its_sizes(capsys):
  datasets.print_list()
  lines = capsys.readouterr().out.splitlines()
  words = [line.split() for line in lines[1 : 1 + len(datasets.DATASETS)]]
  assert [row[0] for row in words] == list(datasets.DATASETS)
  [voc] = [line for line in lines if line.startswith("voc_detection")]
  assert "trainval 16,551, test 4,952" in voc


def test_help_does_not_load_tensorflow():
  code = (
    "import argparse, sys; from must_jax.importers import datasets;"
    " p = argparse.ArgumentParser();"
    " datasets.add_arguments(p.add_subparsers());"
    " datasets.print_list(); sys.exit('tensorflow' in sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def commands(text):
  """Imports of named datasets in a document, loops written out."""
  for block in re.findall(r"```sh\n(.*?)```", text.replace("\\\n", " "), re.S):
    splits = [""]
    for line in block.splitlines():
      if loop := re.fullmatch(r"for split in (.*); do", line):
        splits = loop[1].split()
      for split in splits:
        words = shlex.split(re.sub(r"\$\{?split\}?", split, line))
        if words[:2] == ["must-jax", "import"]:
          yield words[2:]
      splits = [""] if line == "done" else splits


def test_the_document_has_a_command_for_every_split_of_table_1(parse):
  root = pathlib.Path(must_jax.__file__).parents[1]
  found = set()
  for words in commands((root / "docs" / "datasets.md").read_text()):
    if words[0] in datasets.DATASETS:
      args = parse(*words)
      found.add((args.kind, args.split))
  named = {name for name, _ in TABLE_1}
  assert found == {
    (name, split)
    for name in named
    for split in datasets.DATASETS[name].splits
    if (name, split) != ("voc_segmentation", "trainval")
  }
