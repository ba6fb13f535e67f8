import numpy as np
import pytest
import scipy.stats

from benchmarks import __main__ as table
from benchmarks import directions, label_ranking, pipeline, train_step
from benchmarks.train_step import WHOLE, Row, Settings
from must_jax.input.geometry import AugmentOptions


@pytest.mark.parametrize(
  ("device", "peak"),
  [
    ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA H100 80GB HBM3", 989),
    ("NVIDIA L4", 121),
    ("NVIDIA L40S", None),
    ("Tesla T4", 65),
    ("TPU v4", 275),
    ("TPU v4 lite", None),
    ("TPU v5 lite", 197),
    ("TPU v5", 459),
    ("TPU v6 lite", 918),
    ("cpu", None),
  ],
)
def test_peaks_are_found_by_the_names_of_devices(device, peak):
  assert train_step.known_peak(device) == peak


def test_labels_are_those_that_the_tasks_ask_for():
  settings = Settings(image_size=64, batch=3)
  _, tasks = train_step.make_student(settings)
  labels = train_step.random_batch(settings, tasks)["labels"]
  assert {
    (task, field): set(arrays)
    for task, fields in labels.items()
    for field, arrays in fields.items()
  } == {
    ("classification", "label"): {"present", "probs"},
    ("depth", "depth"): {"present", "values", "valid"},
    ("detection", "objects"): {
      *("present", "known"),
      *("boxes", "classes", "scores", "valid", "ignore"),
    },
    ("segmentation", "mask"): {"present", "known", "classes"},
  }
  boxes = labels["detection"]["objects"]["boxes"]
  assert boxes.min() >= 0
  assert boxes.max() <= 64
  assert labels["segmentation"]["mask"]["classes"].shape == (3, 16, 16)


def test_the_report_tells_how_well_the_pieces_add_up():
  rows = {
    WHOLE: Row(float("nan"), 2.0, 6e9, float("nan"), 4.0),
    "trunk": Row(0.3, 1.0, 4e9, 1.0, 2.0),
    "head": Row(0.2, 0.6, 2e9, 0.5, 0.3),
  }
  lines = train_step.report("it", rows, 2.5, Settings(), (6e9, "peak"))
  table = {line[:24].strip(): line.split() for line in lines}
  assert "80.0%" in table["sum of these"]
  assert "2.00x" in table["trunk"]
  assert "0.50x" in table["head"]
  assert "2.00x" in table[WHOLE]


def test_input_is_measured_with_all_kinds_and_against_the_least(tmp_path):
  images = pipeline.write_set(tmp_path / "set", (48, 64), ("label", "depth"))
  batch = next(pipeline.train(tmp_path / "set", 32, ("label", "depth")))
  assert batch["image"].shape == (pipeline.BATCH_SIZE, 32, 32, 3)
  encoded = pipeline.encoded(images)
  least = pipeline.least(encoded, (48, 64), AugmentOptions(flip=True))
  assert next(least)["image"].shape == (pipeline.BATCH_SIZE, 224, 224, 3)


@pytest.mark.slow
def test_pieces_have_the_arithmetic_of_the_whole_step():
  settings = Settings("resnet18", image_size=64, batch=1, rois=8, rounds=1)
  rows, _ = train_step.profile(*train_step.make_student(settings), settings)
  whole = rows.pop(WHOLE)
  assert sum(row.flops for row in rows.values()) == pytest.approx(
    whole.flops, rel=0.02
  )


def test_rank_correlation_is_that_of_scipy():
  rng = np.random.default_rng(0)
  a, b = rng.integers(0, 5, (2, 100))  # with many equal ones
  b += a
  expected = scipy.stats.spearmanr(a, b).statistic
  assert label_ranking.spearman(a, b) == pytest.approx(expected)


def made_cell(values, paper, base=None):
  mean = np.mean(values)
  cell = {"column": "a", "runs": values, "mean": mean, "paper": paper}
  cell["deviation"] = np.std(values, ddof=1) if len(values) > 1 else None
  cell |= {"delta": None, "paper_delta": None, "agrees": None}
  if base:
    cell["delta"] = mean - base["mean"]
    cell["paper_delta"] = paper - base["paper"]
    cell["agrees"] = cell["delta"] * cell["paper_delta"] > 0
  return cell


def test_a_direction_is_as_likely_as_the_normal_distribution_says():
  base = made_cell([50.0, 52.0, 54.0], 60.0)
  rows = [{"row": "base", "recipe": "base", "cells": [base]}]
  for name, values, paper in (
    ("near", [51.0, 53.0, 55.0], 61.0),
    ("far", [40.0, 42.0, 44.0], 90.0),
    ("one", [40.0], 59.0),
  ):
    cells = [made_cell(values, paper, base)]
    rows.append({"row": name, "recipe": name, "cells": cells})
  results = {"tables": [{"table": "it", "baseline": "base", "rows": rows}]}
  compared = list(directions.comparisons(results))
  assert [c.row for c in compared] == ["near", "far", "one"]
  assert compared[0].noise == pytest.approx(8**0.5)
  again = [c._replace(table="again", keys=c.keys[::-1]) for c in compared]
  kept, first = directions.without_repeats([*compared, *again])
  assert kept == compared
  assert first.all()
  _, first = directions.without_repeats([*again[:1], *compared])
  assert first.tolist() == [True, False, True, True]
  assert np.isinf(compared[2].noise)
  deviations = directions.pooled_deviations(results)
  assert deviations == {"a": 2.0}
  for seeds, count in ((None, 3), (12, 12)):
    agrees, clear = directions.simulate(compared, deviations, seeds)
    spread = 2.0 * np.sqrt([2 / count, 2 / count, 1 / count + 1])
    expected = scipy.stats.norm.cdf(np.array([1, 30, 1]) / spread)
    np.testing.assert_allclose(agrees.mean(1), expected, atol=0.02)
    assert clear[1].all()
    assert not clear[2].any()


def test_the_page_shows_the_committed_figures():
  committed = table.read_committed()
  page = table.PAGE.read_text()
  assert page.partition(table.HEADING)[2] == table.to_markdown(committed)
  assert set(committed) <= set(table.MODULES)


def test_figures_keep_four_digits():
  found = [table.to_number(x) for x in (1234567.8, 148.26, 0.19049, 0.5, 0)]
  assert found == ["1,235,000", "148.3", "0.1905", "0.5", "0"]


def test_an_update_changes_what_was_measured_and_keeps_the_rest(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(table, "COMMITTED", tmp_path / "figures.json")
  monkeypatch.setattr(table, "PAGE", tmp_path / "speed.md")
  table.PAGE.write_text("# Speed\n\nWords.\n")
  speeds = iter((2.0, 3.0, 5.0))
  monkeypatch.setattr(
    table, "measure", lambda name: [(f"of {name}", next(speeds), "s")]
  )
  for names in (["ops", "fleet"], ["ops"]):
    table.main([*names, "--update"])
  words, _, tables = table.PAGE.read_text().partition(table.HEADING)
  assert words == "# Speed\n\nWords.\n"
  assert "| of ops | 5 | s |" in tables
  assert "| of fleet | 3 | s |" in tables
  # The last run shows what was committed before it.
  assert capsys.readouterr().out.splitlines()[-3].split()[-3:-1] == ["5", "2"]
