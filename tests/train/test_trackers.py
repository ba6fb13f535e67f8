"""Runs as Weights & Biases and MLflow see them, without a network."""

import contextlib
import importlib.util
import json
import os
import pathlib
import socket
import sys
import types

import numpy as np
import pytest

from must_jax.config import PREEMPTED, base_config, validate
from must_jax.storage.path import Path
from must_jax.train import trackers
from must_jax.train.metric_logger import MetricLogger, MetricWriter


@pytest.fixture
def offline(monkeypatch, tmp_path):
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.setenv("WANDB_SILENT", "true")
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


@pytest.fixture
def fake_wandb(monkeypatch):
  """Notes the arguments of each call; `init` fails if told so."""
  calls = {}

  class Run:
    id, offline = "abc", False

    def __getattr__(self, name):
      return lambda *args, **_: calls.setdefault(name, args)

  def init(**options):
    calls["init"] = options
    if "fails" in calls:
      raise OSError("no account")
    return Run()

  module = types.SimpleNamespace(init=init, Image=np.asarray)
  monkeypatch.setitem(sys.modules, "wandb", module)
  monkeypatch.delenv("WANDB_DIR", raising=False)
  return calls


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


@pytest.mark.parametrize("given", [False, True])
def test_wandb_writes_offline(offline, tmp_path, monkeypatch, given):
  pytest.importorskip("wandb", reason="wandb is not installed")
  place = tmp_path / ("chosen" if given else "run")
  place.mkdir()
  monkeypatch.delenv("WANDB_DIR", raising=False)
  if given:
    monkeypatch.setenv("WANDB_DIR", str(place))
  config = base_config()
  config.trackers = ("wandb", "tensorboard")
  workdir = tmp_path / "run"
  workdir.mkdir(exist_ok=True)
  write(config, workdir, 0, 2.0)
  run_id = json.loads((workdir / "trackers.json").read_text())["wandb"]
  (file,) = (place / "wandb").rglob(f"run-{run_id}.wandb")
  assert b"val/cls/IoU/a:b" in file.read_bytes()
  assert list(workdir.glob("events*"))


def fail(*_, **__):
  raise OSError("no network")


def test_a_service_that_fails_ends_no_run(tmp_path, caplog, fake_wandb):
  fake_wandb["fails"] = True
  config = base_config()
  config.trackers = ("wandb",)
  write(config, tmp_path, 0, 1.0)
  assert caplog.text.count("The tracker wandb gets nothing more") == 1
  assert "finish" not in fake_wandb and "log" not in fake_wandb
  assert not (tmp_path / "trackers.json").exists()
  assert (tmp_path / "metrics.jsonl").exists()


def test_a_service_that_fails_later_is_left_alone(
  offline, tmp_path, caplog, monkeypatch
):
  mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
  config = base_config()
  config.trackers = ("mlflow",)
  writer = MetricWriter(config, tmp_path, 0)
  monkeypatch.setattr(mlflow.MlflowClient, "log_batch", fail)
  for step in (1, 2):
    writer.write_scalars(step, {"loss": 1.0})
  writer.close()
  assert caplog.text.count("The tracker mlflow gets nothing more") == 1
  assert mlflow.active_run() is None  # or the next run here could not begin


@pytest.mark.parametrize(
  ("error", "status", "exit_code"),
  [
    (None, "FINISHED", 0),
    (SystemExit(PREEMPTED), "KILLED", 1),
    (RuntimeError("diverged"), "FAILED", 1),
  ],
)
def test_how_a_run_ended(
  offline, tmp_path, fake_wandb, error, status, exit_code
):
  config = base_config()
  config.trackers = ("wandb",)
  mlflow = None
  if importlib.util.find_spec("mlflow"):
    import mlflow

    config.trackers = ("wandb", "mlflow")
  raises = pytest.raises(type(error)) if error else contextlib.nullcontext()
  with raises, MetricLogger(config, tmp_path, 0):
    if error:
      raise error
  assert fake_wandb["finish"] == (exit_code,)
  assert ("mark_preempting" in fake_wandb) == (status == "KILLED")
  if mlflow:
    ids = json.loads((tmp_path / "trackers.json").read_text())
    assert mlflow.MlflowClient().get_run(ids["mlflow"]).info.status == status


def test_what_wandb_keeps_of_a_run_in_a_bucket_goes(
  tmp_path, monkeypatch, fake_wandb
):
  monkeypatch.setattr(trackers.tempfile, "tempdir", str(tmp_path))
  writer = trackers.WandbWriter(Path("gs://bucket/run"), None)
  assert list(tmp_path.iterdir()) == [pathlib.Path(fake_wandb["init"]["dir"])]
  writer.close()
  assert not list(tmp_path.iterdir())
  fake_wandb["fails"] = True
  trackers.WandbWriter(Path("gs://bucket/run"), None).close()
  assert not list(tmp_path.iterdir())


def test_a_server_that_is_not_there_holds_up_nobody(
  tmp_path, monkeypatch, caplog
):
  pytest.importorskip("mlflow", reason="mlflow is not installed")
  with socket.create_server(("localhost", 0)) as server:  # closed again
    port = server.getsockname()[1]
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://localhost:{port}")
  monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
  retries = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
  monkeypatch.setenv(retries, "1")  # what the user set stays
  config = base_config()
  config.trackers = ("mlflow",)
  write(config, tmp_path, 0, 1.0)
  assert os.environ[retries] == "1"
  assert int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) <= 60
  assert "The tracker mlflow gets nothing more" in caplog.text


def test_missing_libraries_and_names(monkeypatch):
  config = base_config()
  config.trackers = ("tensorbord",)
  with pytest.raises(ValueError, match="trackers is 'tensorbord'"):
    validate(config)
  monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(ValueError, match=r"pip install 'must_jax\[wandb\]'"):
    trackers.check_installed(("wandb",))
  trackers.check_installed(("tensorboard",))
