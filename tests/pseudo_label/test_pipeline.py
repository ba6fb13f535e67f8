"""Labelling by Apache Beam gives what workers give."""

import jax
import pytest

from must_jax.cli import main
from must_jax.config import base_config, dataset, smoke, task
from must_jax.lab import world as world_lib
from must_jax.main import run_stage
from must_jax.pseudo_label.job import ShardWriter
from must_jax.train import checkpoint
from must_jax.train.build import build_model, build_tasks
from must_jax.train.state import init_variables

pytest.importorskip("apache_beam")


@pytest.fixture(scope="module")
def job(tmp_path_factory, write_config_file):
  """The config of a job, and a file that has it."""
  directory = tmp_path_factory.mktemp("job")
  world_lib.build(directory, 48, {"pile": {"train": 24}}, 6, workers=1)
  config = base_config()
  config.tasks.depth = task("depth", labels={})
  config = smoke(config)
  config.model.channels = 8
  model = build_model(config, build_tasks(config))
  variables = jax.device_get(init_variables(model, (64, 64), jax.random.key(0)))
  checkpoint.write_variables(
    directory / "teacher", config, dict(variables), {"kind": "test"}
  )
  job = smoke(base_config())
  job.stage = "label"
  job.datasets.images = dataset(directory / "pile", "train")
  job.label.update({"teacher": str(directory / "teacher"), "batch_size": 4})
  job.label.dataset = "images"
  return job, write_config_file(directory, job)


@pytest.fixture(scope="module")
def by_workers(fake, job, tmp_path_factory):
  """Files of a label set that a worker made."""
  directory = tmp_path_factory.mktemp("workers")
  run_stage(job[0], str(directory))
  return fake.contents(directory)


def label(job, output, options=""):
  with pytest.raises(SystemExit) as end:
    main(
      [
        *("label", f"{job[1]}", f"--workdir={output}"),
        *("--runner", "DirectRunner", f"--beam-options={options}"),
      ]
    )
  return end.value.code or 0


@pytest.mark.parametrize(
  "options",
  [
    "",
    "--direct_num_workers=2 --direct_running_mode=multi_threading",
    pytest.param(
      "--direct_num_workers=2 --direct_running_mode=multi_processing",
      marks=pytest.mark.slow,
    ),
  ],
)
def test_bytes_are_those_of_workers(fake, job, by_workers, tmp_path, options):
  assert label(job, tmp_path, options) == 0
  assert fake.contents(tmp_path) == by_workers
  assert label(job, tmp_path, options) == 0  # nothing to do


def test_finished_shards_are_kept(fake, job, by_workers, tmp_path, monkeypatch):
  label_shard, labelled = ShardWriter.label, []

  def fail_at_the_third(self, index, *args):
    if len(labelled) == 2:
      raise ValueError("the accelerator melted")
    labelled.append(index)
    return label_shard(self, index, *args)

  with monkeypatch.context() as patch:
    patch.setattr(ShardWriter, "label", fail_at_the_third)
    assert "melted" in label(job, tmp_path)
  assert len(list(tmp_path.glob("pile-*.json"))) == 2
  assert not (tmp_path / "manifest.json").exists()

  def count(self, index, *args):
    labelled.append(index)
    return label_shard(self, index, *args)

  monkeypatch.setattr(ShardWriter, "label", count)
  assert label(job, tmp_path) == 0
  assert sorted(labelled) == list(range(6))
  assert fake.contents(tmp_path) == by_workers
