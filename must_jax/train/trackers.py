"""Trackers of experiments, behind clu's writer interface.

TensorBoard's writer is clu's own, see `metric_logger`. Nothing that a service
says, or does not say, ends a run: a writer that fails warns, and is silent from
then on.
"""

import importlib.util
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from absl import logging
from clu.metric_writers import MetricWriter
from ml_collections import ConfigDict
from PIL import Image

from must_jax import config as config_lib
from must_jax.config import TENSORBOARD
from must_jax.storage.path import Path, PathLike, publish_json, read_files

TRACKERS_FILE = "trackers.json"  # the run's id at each service


class ServiceWriter(MetricWriter):
  """Numbers, pictures and options of a run, for a service.

  Attributes:
    run_id: of the run at the service; "" if that cannot be reached.
  """

  def __init__(self, name: str, start: Callable[[], str]):
    """Starts or continues a run.

    Args:
      name: of the service.
      start: does so, and returns the id.
    """
    self._name = name
    self.run_id = ""
    self._works = True
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

  def __init__(self, name: str, run_id: str | None):
    import wandb

    def start() -> str:
      # Local files do not go beside the run, which may be in a bucket.
      self._run = wandb.init(
        id=run_id, name=name, resume="allow", dir=tempfile.mkdtemp()
      )
      # A run that went back writes steps again, which wandb's own would lose.
      self._run.define_metric("*", step_metric="step")
      return self._run.id

    self._wandb = wandb
    super().__init__("wandb", start)

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

  def close(self):
    """See `MetricWriter`."""
    self._try(self._run.finish)


class MlflowWriter(ServiceWriter):
  """MLflow, where MLFLOW_TRACKING_URI says."""

  def __init__(self, name: str, run_id: str | None):
    import mlflow

    def start() -> str:
      self._client = mlflow.MlflowClient()
      run = mlflow.start_run(run_id, run_name=None if run_id else name)
      return run.info.run_id

    self._end = mlflow.end_run

    super().__init__("mlflow", start)

  def write_scalars(self, step, scalars):
    """See `MetricWriter`."""

    def write() -> None:
      for name, value in scalars.items():
        self._client.log_metric(
          self.run_id,
          _plain(name),
          float(value),
          step=int(step),
          synchronous=False,
        )

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

    # Those that are there already may not change, and say so.
    def write() -> None:
      there = self._client.get_run(self.run_id).data.params
      for name, value in hparams.items():
        if name not in there:
          self._client.log_param(self.run_id, _plain(name), str(value)[:500])

    self._try(write)

  def close(self):
    """See `MetricWriter`."""
    self._try(self._end)


_WRITERS = {"wandb": WandbWriter, "mlflow": MlflowWriter}


def check_installed(names: tuple[str, ...]) -> None:
  """Raises `ValueError` for a tracker whose library is not installed.

  Args:
    names: of trackers.
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
    writer = _WRITERS[name](Path(workdir).name, ids.get(name))
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
