import argparse
import functools
import json

import pytest

from must_jax.lab import stage_costs, tables_command
from must_jax.lab.experiment import Experiment
from must_jax.lab.paper_tables import TABLES
from must_jax.lab.scale_paper import TRANSFERS, PaperScale
from must_jax.lab.stages import Stages
from must_jax.preflight.chips import CHIPS


def make_experiment(tmp_path, name, seeds=(0,)):
  experiment = Experiment(
    Stages(tmp_path, 1), PaperScale(str(tmp_path / "data")), seeds
  )
  for table in TABLES[name]:
    experiment.add(table)
  return experiment


@pytest.fixture
def traced(monkeypatch):
  """The networks that would be traced; each has as many operations, in tera, as
  letters in the names of its tasks."""
  networks = []

  def flops(network, task=""):
    networks.append(network)
    return 1e12 * sum(map(len, json.loads(network)["tasks"]))

  for name in ("_training_flops", "_labelling_flops"):
    monkeypatch.setattr(stage_costs, name, functools.cache(flops))
  return networks


def test_the_command_knows_all_chips():
  parser = argparse.ArgumentParser()
  tables_command.add_arguments(parser)
  (option,) = (a for a in parser._actions if a.dest == "chip")
  assert tuple(option.choices) == tuple(CHIPS)


@pytest.mark.usefixtures("traced")
def test_prices_are_operations_over_what_is_hoped_for(tmp_path):
  experiment = make_experiment(tmp_path, "table5")
  found = {
    experiment.stages[path].name: hours
    for path, hours in stage_costs.chip_hours(experiment, CHIPS["v5e"])
  }
  config = json.loads(
    next(
      stage.args[0]
      for stage in experiment.stages.values()
      if stage.name == "pretrain-multitask-0"
    )
  )
  images = config["train"]["steps"] * config["data"]["batch_size"]
  # classification + detection + segmentation
  hours = images * 35e12 / 197e12 / 3600
  assert found["pretrain-multitask-0"] == pytest.approx(
    (hours / 0.35, hours / 0.17)
  )
  # 1,281,167 images of ImageNet
  hours = 1_281_167 * len("detection") * 1e12 / 197e12 / 3600
  assert found["label-imagenet-teacher-detection"] == pytest.approx(
    (hours / 0.35, hours / 0.17)
  )
  floors = {f"floor-{transfer.name}" for transfer in TRANSFERS}
  assert {s.name for s in experiment.stages.values()} - {*found} == floors


def test_a_network_is_traced_once(tmp_path, traced):
  list(
    stage_costs.chip_hours(
      make_experiment(tmp_path, "table2", (0, 1)), CHIPS["v4"]
    )
  )
  assert len(set(traced)) == len(traced)
  # SimCLR, ImageNet, MuST and the two other teachers in training; three
  # teachers that label; six transfers.
  assert len(traced) == 5 + 3 + 6


@pytest.mark.usefixtures("traced")
def test_what_is_not_counted_has_no_price(tmp_path):
  experiment = make_experiment(tmp_path, "table5")
  for stage in experiment.counts:
    experiment.counts[stage] = None
  unknown = {
    path
    for path, hours in stage_costs.chip_hours(experiment, CHIPS["v5e"])
    if hours is None
  }
  assert unknown == set(experiment.counts)


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
def test_all_networks_of_the_paper_trace(tmp_path, table):
  """With their numbers of classes, at their sizes."""
  for path, hours in stage_costs.chip_hours(
    make_experiment(tmp_path, table), CHIPS["v5e"]
  ):
    assert hours is None or hours[0] > 0, path
