"""Runs as Weights & Biases and MLflow see them, without a network."""

import json

import numpy as np
import pytest

from must_jax.config import base_config, validate
from must_jax.train import trackers
from must_jax.train.metric_logger import MetricWriter


@pytest.fixture
def offline(monkeypatch, tmp_path):
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def write(config, workdir, step, value):
  writer = MetricWriter(config, workdir, step)
  writer.write_scalars(step + 1, {"loss": value, "val/cls/IoU/a:b": 0.5})
  writer.write_pictures(step + 1, {"val/cls": np.zeros((2, 8, 8, 3), np.uint8)})
  writer.close()


def test_mlflow_gets_numbers_pictures_and_options(offline, tmp_path):
  mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
  config = base_config()
  config.trackers = ("mlflow",)
  workdir = tmp_path / "run"
  workdir.mkdir()
  write(config, workdir, 0, 2.0)
  write(config, workdir, 1, 1.0)  # goes on in the same run
  ids = json.loads((workdir / "trackers.json").read_text())
  client = mlflow.MlflowClient()
  history = client.get_metric_history(ids["mlflow"], "loss")
  assert [(m.step, m.value) for m in history] == [(1, 2.0), (2, 1.0)]
  run = client.get_run(ids["mlflow"])
  assert run.data.metrics["val/cls/IoU/a_b"] == 0.5
  assert run.data.params["optimizer.lr"] == str(config.optimizer.lr)
  assert run.info.status == "FINISHED"
  assert len(client.list_artifacts(ids["mlflow"], "val/cls")) == 4
  assert not list(workdir.glob("events*"))


def test_wandb_writes_offline(offline, tmp_path, monkeypatch):
  pytest.importorskip("wandb", reason="wandb is not installed")
  monkeypatch.setattr(trackers.tempfile, "tempdir", str(tmp_path / "local"))
  (tmp_path / "local").mkdir()
  config = base_config()
  config.trackers = ("wandb", "tensorboard")
  workdir = tmp_path / "run"
  workdir.mkdir()
  write(config, workdir, 0, 2.0)
  run_id = json.loads((workdir / "trackers.json").read_text())["wandb"]
  (file,) = (tmp_path / "local").rglob(f"run-{run_id}.wandb")
  assert b"val/cls/IoU/a:b" in file.read_bytes()
  assert list(workdir.glob("events*"))


def test_a_service_that_fails_ends_no_run(tmp_path, caplog):
  def fail():
    raise OSError("no network")

  writer = trackers.MlflowWriter.__new__(trackers.MlflowWriter)
  trackers.ServiceWriter.__init__(writer, "mlflow", fail)
  assert writer.run_id == ""
  writer.write_scalars(1, {"loss": 1.0})
  writer.write_images(1, {"x": np.zeros((1, 8, 8, 3), np.uint8)})
  writer.write_hparams({})
  assert caplog.text.count("The tracker mlflow gets nothing more") == 1


def test_missing_libraries_and_names(monkeypatch):
  config = base_config()
  config.trackers = ("tensorbord",)
  with pytest.raises(ValueError, match="trackers is 'tensorbord'"):
    validate(config)
  monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(ValueError, match=r"pip install 'must_jax\[wandb\]'"):
    trackers.check_installed(("wandb",))
  trackers.check_installed(("tensorboard",))
