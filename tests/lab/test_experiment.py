import collections
import dataclasses
import io
import json
import pathlib

import pytest
from PIL import Image

from must_jax import config as config_lib
from must_jax import weighting
from must_jax.lab import experiment as experiment_lib
from must_jax.lab import paper_tables, result_table, scale_mini
from must_jax.lab.experiment import Experiment
from must_jax.lab.paper_tables import TABLES, Setting, Table
from must_jax.lab.scale_mini import MINI
from must_jax.lab.scale_paper import PaperScale
from must_jax.lab.stages import StageError, Stages
from must_jax.storage.set_writer import write_image_set


def build(workdir, names=tuple(TABLES), seeds=(0,), scale=MINI, sweep=False):
  experiment = Experiment(Stages(workdir, 1), scale, seeds, sweep)
  for name in names:
    for table in TABLES[name]:
      experiment.add(table)
  return experiment


@pytest.fixture(scope="module")
def paper_experiment(tmp_path_factory):
  return build(tmp_path_factory.mktemp("paper"), scale=PaperScale("data"))


def stages(experiment, prefix):
  found = experiment.stages.values()
  return [stage for stage in found if stage.name.startswith(prefix)]


def config_of(experiment, name):
  (stage,) = [s for s in stages(experiment, name) if s.name == name]
  return config_lib.from_json(stage.args[0])


@pytest.mark.parametrize(
  "scale", [MINI, PaperScale("data")], ids=lambda s: s.name
)
def test_no_two_stages_do_the_same(tmp_path, scale):
  experiment = build(tmp_path, seeds=(0, 1), scale=scale)
  found = experiment.stages.values()
  work = [
    (s.function, json.dumps([s.args, list(map(str, s.after))])) for s in found
  ]
  assert len(set(work)) == len(work)
  assert len({stage.name for stage in found}) == len(found)


def test_stages_are_the_same_whatever_tables_are_asked_for(tmp_path):
  whole = set(build(tmp_path).stages)
  apart = [set(build(tmp_path, [name]).stages) for name in TABLES]
  assert set.union(*apart) == whole
  assert sum(map(len, apart)) > len(whole)


def test_every_stage_comes_after_those_it_waits_for(tmp_path):
  seen = set()
  for directory, stage in build(tmp_path).stages.items():
    assert set(stage.after) <= seen
    seen.add(directory)


def test_a_stage_waits_for_all_that_it_reads(tmp_path):
  experiment = build(tmp_path)
  for stage in experiment.stages.values():
    text = json.dumps(stage.args)
    read = {p for p in experiment.stages if str(p) in text}
    assert read <= set(stage.after), stage.name


def test_seeds_share_teachers_and_labels(tmp_path):
  one, three = (build(tmp_path, seeds=tuple(range(n))) for n in (1, 3))
  counts = [
    collections.Counter(
      stage.name.split("-")[0] + "-teacher" * ("teacher" in stage.name)
      for stage in experiment.stages.values()
    )
    for experiment in (one, three)
  ]
  for kind in ("pretrain-teacher", "label-teacher", "render"):
    assert counts[0][kind] == counts[1][kind] > 0
  assert 3 * counts[0]["transfer"] == counts[1]["transfer"]


def test_a_seed_is_of_pretraining_and_of_fine_tuning(tmp_path):
  experiment = build(tmp_path, ["table2"], seeds=(0, 1))
  seeds = {
    name: config_of(experiment, name).seed
    for name in (
      "pretrain-teacher-detection",
      "pretrain-must-0",
      "pretrain-must-1",
      "transfer-must-det-1",
    )
  }
  assert list(seeds.values()) == [0, 100, 101, 201]


def test_supervised_multitask_has_labels_of_one_task_on_each_set(tmp_path):
  config = config_of(build(tmp_path, ["table5"]), "pretrain-multitask-0")
  assert {n: dict(e.labels) for n, e in config.tasks.items()} == {
    "classification": {"imagenet": "supervised"},
    "detection": {"objects365": "supervised"},
    "segmentation": {"coco_panoptic": "supervised"},
  }
  assert config.sampling == "equal"
  assert config.train_on == ("imagenet", "objects365", "coco_panoptic")


def test_students_of_one_teacher_are_measured_where_it_is(tmp_path):
  experiment = build(tmp_path, ["table4"])
  for name in ("pretrain-teacher-detection", "pretrain-detection-jft-0"):
    config = config_of(experiment, name)
    assert config.evaluate_on == ("validation",)
    assert config.datasets.validation.dir.endswith("/src_det")
    assert config.tasks.detection.labels["validation"] == "supervised"


def test_a_network_from_nowhere_is_not_trained(tmp_path):
  config = config_of(build(tmp_path, ["table2"]), "transfer-none-cls-0")
  assert config.init_from == ""


def test_a_round_labels_with_the_student_of_the_round_before(tmp_path):
  experiment = build(tmp_path, ["rounds"])
  labels = {
    stage.name: config_lib.from_json(stage.args[0]).label
    for stage in stages(experiment, "label-imagenet-must-")
  }
  (student,) = stages(experiment, "pretrain-must-0")
  assert {entry.teacher for entry in labels.values()} == {
    str(student.directory)
  }
  tasks = sorted(entry.task for entry in labels.values())
  assert tasks == ["depth", "detection", "segmentation"]


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("depth-quarter", {"tasks.depth.weight": 0.25}),
    ("depth-fourfold", {"tasks.depth.weight": 4.0}),
    (
      "score-0.3",
      {"tasks.detection.min_score": 0.3, "tasks.segmentation.min_score": 0.3},
    ),
    (
      "score-0.7",
      {"tasks.detection.min_score": 0.7, "tasks.segmentation.min_score": 0.7},
    ),
    ("hard-classes", {"tasks.classification.soft_labels": False}),
    ("equal-sets", {"sampling": "equal"}),
  ],
)
def test_the_recipe_is_trained_but_for_what_a_row_is_about(
  tmp_path, name, expected
):
  experiment = build(tmp_path, ["recipe"])
  base, other = (
    config_lib.options(config_of(experiment, f"pretrain-recipe{suffix}-0"))
    for suffix in ("", f"-{name}")
  )
  assert {k: v for k, v in other.items() if base.get(k) != v} == expected


def test_the_papers_rule_gives_the_depth_of_the_recipe_a_weight_of_1(tmp_path):
  experiment = build(tmp_path, ["recipe"])
  student = config_of(experiment, "pretrain-recipe-0")
  teacher = config_of(experiment, "pretrain-teacher-depth")
  assert student.balancing.method == "paper"
  assert student.tasks.depth.weight is None
  weights = weighting.paper_weights(
    student.data.batch_size,
    student.optimizer.lr,
    {"depth": (teacher.data.batch_size, teacher.optimizer.lr)},
  )
  assert weights == {"depth": 1.0}


def test_a_floor_is_measured_as_the_networks_are(tmp_path):
  """Neither a sweep nor a network changes it."""
  floors = []
  for sweep in (False, True):
    scale = dataclasses.replace(MINI, sweep=sweep)
    experiment = build(tmp_path, ["table2"], scale=scale, sweep=sweep)
    floors.append({s.name: s.args for s in stages(experiment, "floor-")})
  assert floors[0] == floors[1]
  assert len(floors[0]) == 6
  experiment = build(tmp_path, ["table2"])
  config = config_of(experiment, "floor-depth")
  network = config_of(experiment, "transfer-must-depth-0")
  for key in ("data", "datasets", "tasks", "train_on", "evaluate_on"):
    assert config[key] == network[key], key


# --- Scale "paper" ------------------------------------------------------------


def test_paper_configs_build_with_the_published_classes(paper_experiment):
  from must_jax.train.build import build as build_program

  built = 0
  for directory, stage in paper_experiment.stages.items():
    config = config_lib.from_json(stage.args[0])
    config_lib.validate(config)
    if config.stage == "label":
      continue
    for name, count in paper_experiment.classes[directory].items():
      config.tasks[name].classes = tuple(f"class_{i}" for i in range(count))
    program = build_program(config)
    built += 1
    for task in program.tasks.values():
      for field in task.fields.values():
        assert getattr(field, "num_classes", 1) > 0
  assert built > 100


def test_paper_networks_of_a_table_are_alike(tmp_path):
  experiment = build(
    tmp_path, ["table2", "table4", "table6"], scale=PaperScale("data")
  )
  backbones = {
    config_lib.from_json(s.args[0]).model.backbone
    for s in experiment.stages.values()
    if s.function is experiment_lib.train
  }
  assert backbones == {"resnet152"}


def test_paper_fine_tuning_fits_the_checkpoint(tmp_path):
  experiment = build(tmp_path, ["figure5"], scale=PaperScale("data"))
  config = config_of(experiment, "transfer-must-checkpoint-seg-0")
  assert config.model.backbone == "efficientnet_b7_align"
  assert config.model.image_mean == (0.5, 0.5, 0.5)
  config = config_of(experiment, "transfer-checkpoint-imagenet-seg-0")
  assert config.model.backbone == "efficientnet_b7"
  assert config.init_from == "checkpoints/imagenet_b7"


@pytest.mark.parametrize(
  ("name", "steps"),
  [
    ("teacher-classification", 112_603),  # tpu, 90 epochs
    ("must-0", 450_000),  # paper: 90 epochs at 256
    ("simclr-0", 250_228),  # 800 x 1,281,167 / 4,096
    ("supervised-jft-0", 2_929_688),  # 10 x 300M / 1,024
    ("must-jft-0", 2_929_688),  # 2.5 x 300M / 256
    ("must-jft-supervised-0", 2_343_750),  # 2 x 300M / 256
    ("detection-jft-0", 450_000),  # "the same training iterations"
    ("must-checkpoint-0", 1_171_875),  # 300M / 256
  ],
)
def test_paper_rows_train_as_long_as_published(paper_experiment, name, steps):
  assert config_of(paper_experiment, f"pretrain-{name}").train.steps == steps


def test_published_depth_labels_are_written_at_half_the_resolution(
  paper_experiment,
):
  assert {
    config_lib.from_json(stage.args[0]).label.map_stride
    for stage in stages(paper_experiment, "label-imagenet-teacher-depth")
  } == {2}


def test_missing_datasets_block_all_that_needs_them(tmp_path):
  buffer = io.BytesIO()
  Image.new("RGB", (1, 1)).save(buffer, "PNG")
  example = {"key": "a", "image": buffer.getvalue(), "labels": {}}
  example |= {"height": 1, "width": 1}
  data = tmp_path / "data"
  for name, splits in (
    ("coco_panoptic", ("train", "val")),
    ("cifar100", ("train", "test")),
    ("imagenet", ("train",)),  # without its validation split
  ):
    for split in splits:
      write_image_set(data / name, name, split, [example], {})
  experiment = build(
    tmp_path, ["table3", "table4"], scale=PaperScale(str(data))
  )
  state = {
    stage.name: experiment.state(path)
    for path, stage in experiment.stages.items()
  }
  assert state["pretrain-teacher-segmentation"] == "to do"
  assert state["transfer-teacher-segmentation-cls-0"] == "to do"
  assert state["transfer-teacher-segmentation-ade-0"] == "blocked"
  assert state["pretrain-supervised-0"] == "blocked"
  assert state["transfer-supervised-cls-0"] == "blocked"
  (path,) = [
    p for p, s in experiment.stages.items() if s.name == "pretrain-supervised-0"
  ]
  (missing,) = experiment.unmet(path)
  assert missing.path == str(data / "imagenet")
  assert "must-jax import imagenet --split train" in missing.how


# --- Results ------------------------------------------------------------------


def finish(stage, result):
  stage.directory.mkdir(parents=True)
  record = {"seconds": 1.0, "result": result}
  (stage.directory / "stage.json").write_text(json.dumps(record))


TRANSFER = dataclasses.replace(
  scale_mini.TRANSFERS[0], sweep=(Setting(0.1, 100), Setting(0.2, 100))
)
TABLE = Table(
  "Table",
  (
    paper_tables.Row(paper_tables.NONE, "None", (50.0,)),
    paper_tables.Row(paper_tables.IMAGENET, "Supervised", (60.0,)),
  ),
  baseline=paper_tables.NONE,
  highlight=paper_tables.IMAGENET,
)


def test_a_sweep_selects_on_its_split_and_reports_on_the_other(tmp_path):
  scale = dataclasses.replace(MINI, transfers=(TRANSFER,), sweep=True)
  experiment = Experiment(Stages(tmp_path, 1), scale, (0, 1), sweep=True)
  experiment.add(TABLE)
  # (setting, seed) -> (select, validation)
  results = {
    ("0.1", 0): (0.5, 0.9),
    ("0.1", 1): (0.6, 0.8),
    ("0.2", 0): (0.7, 0.3),
    ("0.2", 1): (0.5, 0.4),
  }
  for (lr, seed), (select, validation) in results.items():
    name = f"transfer-supervised-cls-{seed}-lr{lr}-steps100"
    (stage,) = stages(experiment, name)
    finish(
      stage,
      {"select/cls/top1": select, "validation/cls/top1": validation},
    )
  table = experiment.results(TABLE)
  assert table.row("Supervised").values == ((0.3, 0.4),)
  assert table.row("None").values == (None,)
  assert experiment.runs(paper_tables.IMAGENET, TRANSFER).setting == Setting(
    0.2, 100
  )
  assert any("on the split 'select': Classif." in r for r in table.remarks)


def test_a_sweep_without_a_split_of_its_own_says_so(tmp_path):
  experiment = build(tmp_path, ["table5"], scale=PaperScale("data"), sweep=True)
  (table,) = TABLES["table5"]
  remarks = " ".join(experiment.results(table).remarks)
  assert "selected on the reported split itself: CIFAR-100, Pascal" in remarks


def test_table_holds_finished_seeds_and_the_own_column(tmp_path):
  experiment = build(tmp_path, ["table4"], seeds=(0, 1))
  for name, result in (
    ("pretrain-teacher-detection", {"validation/detection/AP": 0.5}),
    ("pretrain-detection-imagenet-0", {"validation/detection/AP": 0.4}),
    ("pretrain-detection-imagenet-1", {"validation/detection/AP": 0.3}),
    ("transfer-detection-imagenet-det-1", {"validation/det/AP50": 0.2}),
    ("floor-seg", {"validation/seg/mIoU": 0.1}),
  ):
    (stage,) = [s for s in stages(experiment, name) if s.name == name]
    finish(stage, result)
  table = experiment.results(TABLES["table4"][0])
  assert [c.name for c in table.columns[:3]] == [
    "Objects365",
    "Classif.",
    "Detection",
  ]
  assert table.row("Teacher on Objects365").values[:2] == ((0.5,), None)
  values = table.row("Student on ImageNet").values
  assert values[:3] == ((0.4, 0.3), None, (0.2,))
  assert table.row("Student on ImageNet").paper[:2] == (0.206, 0.832)
  # That of the own column is not known.
  assert table.floors == (None, None, None, 0.1, None, None, None)
  # 35 against 50, and 20.6 against 26.1 in the paper.
  assert any(
    "direction: Student on ImageNet in 1 of 1 columns." in r
    for r in table.remarks
  )


def test_agreements_beyond_the_deviations_need_deviations():
  table = result_table.ResultTable(
    columns=(
      result_table.ResultColumn("a", "AP"),
      result_table.ResultColumn("b", "AP"),
    ),
    rows=(
      result_table.ResultRow("base", ((0.50, 0.52), (0.50, 0.52)), (0.5, 0.5)),
      result_table.ResultRow("three", ((0.60, 0.61), (0.50, 0.50)), (0.6, 0.6)),
      result_table.ResultRow("one", ((0.60,), (0.60,)), (0.4, 0.6)),
    ),
    baseline="base",
  )
  (sentence,) = experiment_lib.agreements(table)
  assert sentence.endswith(
    ": three in 1 of 2 columns, 1 of 1 beyond the seeds' deviations;"
    " one in 1 of 2 columns."
  )


# --- Continuing ---------------------------------------------------------------


def fake_stage(directory, *args):
  """Counts its runs; fails once where a file says so."""
  directory = pathlib.Path(directory)
  runs = directory / "runs"
  runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
  trap = directory.parent / "trap"
  if directory.name.startswith("pretrain-must-cross") and trap.exists():
    trap.unlink()
    raise ValueError("killed")
  metrics = ("top1", "AP50", "mIoU", "delta1", "within_11.25")
  names = ("cls", "det", "seg", "depth", "ade", "normals")
  return {f"validation/{n}/{m}": 0.5 for n in names for m in metrics}


@pytest.fixture
def fake_stages(monkeypatch):
  monkeypatch.setattr(experiment_lib, "train", fake_stage)
  monkeypatch.setattr(experiment_lib, "label", fake_stage)
  monkeypatch.setattr(experiment_lib, "floor", fake_stage)
  monkeypatch.setattr(scale_mini, "render", fake_stage)


def test_a_broken_run_continues_without_repeating(tmp_path, fake_stages):
  (tmp_path / "stages").mkdir()
  (tmp_path / "stages" / "trap").touch()
  with pytest.raises(StageError, match="'pretrain-must-cross-0' failed"):
    build(tmp_path, ["table5"]).stages.run()
  before = {p.parent for p in tmp_path.glob("stages/*/stage.json")}
  assert before
  experiment = build(tmp_path, ["table5"])
  experiment.stages.run()
  again = {
    path.name
    for path in experiment.stages
    if (path / "runs").read_text() != "x"
  }
  (must_cross,) = stages(experiment, "pretrain-must-cross-0")
  assert again == {must_cross.directory.name}
  assert before < set(experiment.stages)
  assert all(stage.is_done for stage in experiment.stages.values())
