"""Trackers of experiments, behind clu's writer interface.

TensorBoard's writer is clu's own, see `metric_logger`. Nothing that a service
says, or does not say, ends a run: a writer that fails warns, and is silent from
then on. How long it waits before is bounded, see `_PATIENCE`.
"""

import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from absl import logging
from clu.metric_writers import MetricWriter
from ml_collections import ConfigDict
from PIL import Image

from must_jax import config as config_lib
from must_jax.config import PREEMPTED, TENSORBOARD
from must_jax.storage.path import (
  Path,
  PathLike,
  is_local,
  publish_json,
  read_files,
)

TRACKERS_FILE = "trackers.json"  # the run's id at each service
# By default the services' libraries wait for a server for many minutes, at the
# end for days. These are their own settings; those that are there stay.
_PATIENCE = {
  "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
  "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds, of each
  "WANDB_FINISH_TIMEOUT": "120",  # seconds; 90 to begin, as it is
}
_MLFLOW_BATCH = 100  # what its servers take at once


class ServiceWriter(MetricWriter):
  """Numbers, pictures and options of a run, for a service.

  Attributes:
    run_id: of the run at the service; "" if that cannot be reached.
    error: what ends the run before its time, if anything; set before `close`.
  """

  def __init__(
    self, name: str, start: Callable[[], str], end: Callable[[str], None]
  ):
    """Starts or continues a run.

    Args:
      name: of the service.
      start: does so, and returns the id.
      end: ends it: "finished", "preempted" or "failed".
    """
    self._name, self._end = name, end
    self.run_id = ""
    self.error: BaseException | None = None
    self._works = True
    for setting, value in _PATIENCE.items():
      os.environ.setdefault(setting, value)
    with self._forgiven():
      self.run_id = start()

  @contextmanager
  def _forgiven(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:  # of many kinds: network, account, disk
      self._works = False
      logging.warning(
        "The tracker %s gets nothing more of this run: %s", self._name, error
      )

  def _try(self, write: Callable[[], Any]) -> None:
    if self._works:
      with self._forgiven():
        write()

  def close(self):
    """See `MetricWriter`."""
    how = "finished" if self.error is None else "failed"
    if isinstance(self.error, SystemExit) and self.error.code == PREEMPTED:
      how = "preempted"
    if self.run_id:  # else none has begun
      with self._forgiven():
        self._end(how)

  # What no run of ours has.

  def write_summaries(self, step: int, values: Any, metadata: Any = None):
    """Not offered."""
    raise NotImplementedError

  def write_videos(self, step: int, videos: Any):
    """Not offered."""
    raise NotImplementedError

  def write_audios(self, step: int, audios: Any, *, sample_rate: int):
    """Not offered."""
    raise NotImplementedError

  def write_texts(self, step: int, texts: Any):
    """Not offered."""
    raise NotImplementedError

  def write_histograms(self, step: int, arrays: Any, num_buckets: Any = None):
    """Not offered."""
    raise NotImplementedError

  def flush(self):
    """Services send by themselves."""


class WandbWriter(ServiceWriter):
  """Weights & Biases; without a network by WANDB_MODE=offline."""

  def __init__(self, workdir: Path, run_id: str | None):
    import wandb

    # What is sent, or is not, lies in WANDB_DIR/wandb, or WORKDIR/wandb.
    given = os.environ.get("WANDB_DIR")
    own = None if given or is_local(workdir) else tempfile.mkdtemp()

    def start() -> str:
      self._run = wandb.init(
        id=run_id,
        name=workdir.name,
        resume="allow",
        dir=given or own or str(workdir),
      )
      # A run that went back writes steps again, which wandb's own would lose.
      self._run.define_metric("*", step_metric="step")
      return self._run.id

    def end(how: str) -> None:
      if how == "preempted":
        self._run.mark_preempting()
      self._run.finish(0 if how == "finished" else 1)
      if own and self._run.offline:
        logging.warning(
          "What is for `wandb sync` is in %s; WANDB_DIR chooses a place.", own
        )
      elif own:
        shutil.rmtree(own, ignore_errors=True)

    self._wandb = wandb
    super().__init__("wandb", start, end)
    if own and not self.run_id:
      shutil.rmtree(own, ignore_errors=True)

  def write_scalars(self, step, scalars):
    """See `MetricWriter`."""
    self._try(lambda: self._run.log({**scalars, "step": int(step)}))

  def write_images(self, step, images):
    """See `MetricWriter`."""
    pictures = {
      name: [self._wandb.Image(np.asarray(image)) for image in batch]
      for name, batch in images.items()
    }
    self._try(lambda: self._run.log({**pictures, "step": int(step)}))

  def write_hparams(self, hparams):
    """See `MetricWriter`."""
    self._try(
      lambda: self._run.config.update(dict(hparams), allow_val_change=True)
    )


class MlflowWriter(ServiceWriter):
  """MLflow, where MLFLOW_TRACKING_URI says."""

  def __init__(self, workdir: Path, run_id: str | None):
    import mlflow

    def start() -> str:
      self._client = mlflow.MlflowClient()
      name = None if run_id else workdir.name
      return mlflow.start_run(run_id, run_name=name).info.run_id

    def end(how: str) -> None:
      statuses = {"preempted": "KILLED", "failed": "FAILED"}
      mlflow.end_run(statuses.get(how, "FINISHED"))

    self._entities = mlflow.entities
    super().__init__("mlflow", start, end)

  def write_scalars(self, step, scalars):
    """See `MetricWriter`."""
    now = int(1000 * time.time())
    self._log(
      "metrics",
      [
        self._entities.Metric(_plain(name), float(value), now, int(step))
        for name, value in scalars.items()
      ],
    )

  def _log(self, kind: str, values: list[Any]) -> None:
    """Sends at once, not by mlflow's threads, whose errors nobody sees."""

    def write() -> None:
      for i in range(0, len(values), _MLFLOW_BATCH):
        some: dict[str, Any] = {kind: values[i : i + _MLFLOW_BATCH]}
        self._client.log_batch(self.run_id, **some)

    self._try(write)

  def write_images(self, step, images):
    """See `MetricWriter`."""

    def write() -> None:
      for name, batch in images.items():
        for i, image in enumerate(batch):
          self._client.log_image(
            self.run_id,
            Image.fromarray(np.asarray(image)),
            f"{_plain(name)}/{i}_{step:08d}.png",
          )

    self._try(write)

  def write_hparams(self, hparams):
    """See `MetricWriter`."""

    # Those that are there already may not change.
    def new() -> list[Any]:
      there = self._client.get_run(self.run_id).data.params
      return [
        self._entities.Param(_plain(name), str(value)[:500])
        for name, value in hparams.items()
        if _plain(name) not in there
      ]

    self._try(lambda: self._log("params", new()))


_WRITERS = {"wandb": WandbWriter, "mlflow": MlflowWriter}


def check_installed(names: tuple[str, ...]) -> None:
  """Checks that the libraries of trackers are installed.

  Args:
    names: of trackers.

  Raises:
    ValueError: one is not; it says what to install.
  """
  for name in names:
    if name != TENSORBOARD and not importlib.util.find_spec(name):
      raise ValueError(
        f"config.trackers has {name!r}, which is not installed: pip install"
        f" 'must_jax[{name}]'."
      )


def open_trackers(config: ConfigDict, workdir: PathLike) -> list[ServiceWriter]:
  """Writers of `config.trackers`, but for TensorBoard's.

  A run that goes on continues its run at the service. Project, server and
  account are said by the services' own environment variables, such as
  WANDB_PROJECT and MLFLOW_TRACKING_URI.

  Args:
    config: of the run; its options are written.
    workdir: of the run, which keeps the ids.
  """
  path = Path(workdir) / TRACKERS_FILE
  (text,) = read_files([path])
  ids: dict[str, str] = json.loads(text) if text else {}
  writers = []
  for name in config.trackers:
    if name == TENSORBOARD:
      continue
    writer = _WRITERS[name](Path(workdir), ids.get(name))
    if writer.run_id and ids.get(name) != writer.run_id:
      ids[name] = writer.run_id
      publish_json(path, ids)
    writer.write_hparams(_flat(config_lib.options(config)))
    writers.append(writer)
  return writers


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in options.items() if value is not None}


def _plain(name: str) -> str:
  """A name with nothing but what MLflow takes."""
  return re.sub(r"[^\w\-. /]", "_", name)
