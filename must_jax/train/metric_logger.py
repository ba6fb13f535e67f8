"""What a run says of its steps: metrics, skipped steps, a progress bar."""

import contextlib
import json
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import metric_writers
from ml_collections import ConfigDict
from tqdm import tqdm

from must_jax.config import TENSORBOARD
from must_jax.storage.path import (
  Appender,
  Path,
  PathLike,
  drop_lines,
  is_local,
  read_range,
)
from must_jax.train.guard import Streak
from must_jax.train.runtime import duration, metric_table
from must_jax.train.trackers import ServiceWriter, open_trackers

METRICS_FILE = "metrics.jsonl"


class MetricLogger:
  """Keeps the steps' metrics on the device until they are asked for."""

  def __init__(self, config: ConfigDict, workdir: PathLike, first_step: int):
    """Opens the files of metrics and the progress bar, until the `with` ends.

    Args:
      config: of the run.
      workdir: of the run.
      first_step: of this start of it.
    """
    self._batch_size = config.data.batch_size
    self._last_step = config.train.steps
    self._tasks = sorted(config.tasks)
    self._max_skipped = config.train.max_skipped
    self._writer = MetricWriter(config, workdir, first_step)
    self._bar = tqdm(
      initial=first_step,
      total=config.train.steps,
      unit="step",
      disable=jax.process_index() != 0 or not sys.stderr.isatty(),
      leave=False,
    )
    self._forget(first_step)

  def __enter__(self) -> "MetricLogger":
    return self

  def __exit__(self, kind: Any, error: BaseException | None, trace: Any):
    """Closes what was opened; trackers are told of an error.

    Raises:
      OSError: the metrics cannot be written.
    """
    self._bar.close()
    self._writer.close(error)

  def restart(self, step: int) -> None:
    """Goes back to a step: forgets what was added and written after it."""
    self._writer.go_back(step)
    self._forget(step)

  def _forget(self, step: int) -> None:
    self._unread: list[tuple[int, Any, dict[str, Any]]] = []
    self._latest: dict[str, float] = {}
    self._unusable = 0.0
    self._bar.update(step - self._bar.n)
    self._restart_clock()

  def _restart_clock(self) -> None:
    self._clock, self._steps = time.monotonic(), 0

  def add(self, step: int, keys: Any, metrics: dict[str, Any]) -> None:
    """Remembers what a step will say, and the keys of its batch."""
    if not self._steps:  # it may have waited for more than a step
      self._clock = time.monotonic()
    self._unread.append((step, keys, metrics))
    self._steps += 1
    self._bar.update()

  def read(self) -> Streak | None:
    """Waits for the steps that were added, and warns of those skipped.

    Returns:
      The streak at whose end the run must go back, if there is one.
    """
    too_long: Streak | None = None
    for step, keys, metrics in self._unread:
      latest = {k: float(v) for k, v in jax.device_get(metrics).items()}
      self._latest = latest
      self._unusable += latest["unusable_examples"]
      length = int(latest["skipped_in_a_row"])
      if length:
        streak = Streak(step, length, keys, latest)
        logging.warning("Skipped: %s", streak.describe())
        if length >= self._max_skipped:
          too_long = streak
    self._unread = []
    return too_long

  @property
  def is_skipping(self) -> bool:
    """Whether the latest step that was read was skipped."""
    return bool(self._latest.get("skipped_in_a_row"))

  def write(self, step: int, more: Mapping[str, float]) -> None:
    """Writes the latest metrics that were read, and more of the run's own.

    Args:
      step: steps done.
      more: by name.

    Raises:
      OSError: they cannot be written.
    """
    rate = self._steps / (time.monotonic() - self._clock)  # steps a second
    scalars = self._latest | {
      "unusable_examples": self._unusable,
      "images_per_second": rate * self._batch_size,
      **more,
    }
    self._unusable = 0.0
    self._restart_clock()
    self._writer.write_scalars(step, scalars)
    logging.info("%s", self._line(step, rate, scalars))
    self._bar.set_postfix(loss=f"{scalars['loss']:.4f}")

  def _line(self, step: int, rate: float, scalars: Mapping[str, float]) -> str:
    """How far the run is, and how well it goes."""
    found = f"step {step}/{self._last_step}"
    if step < self._last_step and rate:
      found += f", {duration((self._last_step - step) / rate)} left"
    shown = {
      "loss": scalars["loss"],
      **{
        name: scalars[f"{name}/loss"]
        for name in self._tasks
        if len(self._tasks) > 1
      },
      "lr": scalars["lr"],
      "images/s": scalars["images_per_second"],
    }
    words = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
    if self.is_skipping:
      words += ", this step was skipped"
    return f"{found}: {words}"

  def write_evaluation(
    self,
    step: int,
    metrics: dict[str, float],
    pictures: Mapping[str, np.ndarray],
  ) -> None:
    """Writes an evaluation's metrics; its time counts for no step.

    Args:
      step: steps done.
      metrics: by name; without any nothing is written.
      pictures: likewise, for the trackers.

    Raises:
      OSError: they cannot be written.
    """
    if metrics:
      self._writer.write_scalars(step, metrics)
      self._writer.write_pictures(step, pictures)
      logging.info("Evaluation at step %d\n%s", step, metric_table(metrics))
    self._restart_clock()


class MetricWriter:
  """`metrics.jsonl` and trackers, from the first process only."""

  def __init__(self, config: ConfigDict, workdir: PathLike, step: int):
    """Opens the files, and the trackers.

    Args:
      config: of the run.
      workdir: of the run.
      step: that the run goes on from. Lines of later steps, which come again,
        are dropped, as is a last one that was half written.
    """
    self._workdir = Path(workdir)
    self._is_first = jax.process_index() == 0
    # A bucket's files cannot grow: events are written here, and sent.
    self._temporary = tempfile.TemporaryDirectory()
    has_events = self._is_first and TENSORBOARD in config.trackers
    self._sends = has_events and not is_local(workdir)
    self._trackers: list[metric_writers.MetricWriter] = []
    self._open(step)
    if has_events:
      self._trackers.append(
        metric_writers.SummaryWriter(
          self._temporary.name if self._sends else str(workdir)
        )
      )
    if self._is_first:
      self._trackers += open_trackers(config, workdir)
    if self._sends:
      name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
      self._sent, self._copy = 0, Appender(self._workdir / name)

  def _open(self, step: int) -> None:
    if self._is_first:
      path = self._workdir / METRICS_FILE
      with self._named_errors():
        drop_lines(path, lambda line: _step_of(line) > step)
        self._lines = Appender(path)

  def go_back(self, step: int) -> None:
    """Drops the lines after a step."""
    if self._is_first:
      self._lines.close()
    self._open(step)

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes a line, and tells the trackers."""
    if not self._is_first:
      return
    with self._named_errors():
      for tracker in self._trackers:
        tracker.write_scalars(step, scalars)
      line = json.dumps({"step": step, **scalars}) + "\n"
      self._lines.write(line.encode())
      self._send()

  def write_pictures(
    self, step: int, pictures: Mapping[str, np.ndarray]
  ) -> None:
    """Gives pictures uint8 [N, H, W, 3] to the trackers."""
    if self._is_first and pictures:
      with self._named_errors():
        for tracker in self._trackers:
          tracker.write_images(step, pictures)
        self._send()

  def _send(self) -> None:
    """Sends what was added to the events."""
    if self._sends:
      self._trackers[0].flush()
      (file,) = Path(self._temporary.name).iterdir()
      events = read_range(file, self._sent, file.stat().length)
      if events:
        self._copy.write(events)
        self._sent += len(events)

  def close(self, error: BaseException | None = None) -> None:
    """Closes the files.

    Args:
      error: that the run ends with.
    """
    with self._named_errors(), self._temporary:
      if self._is_first:
        self._lines.close()
        self._send()
        for tracker in self._trackers:
          if isinstance(tracker, ServiceWriter):
            tracker.error = error
          tracker.close()

  @contextlib.contextmanager
  def _named_errors(self) -> Iterator[None]:
    """An error of writing says where, and is of one kind."""
    try:
      yield
    except Exception as error:  # TensorFlow's are no OSError
      raise OSError(
        f"{self._workdir / METRICS_FILE} and the events beside it cannot be"
        f" written: {error}. Free some space, or mend what the message says;"
        " the same command goes on."
      ) from error


def _step_of(line: bytes) -> int:
  """The step of a line of metrics; 0 of a line that is none."""
  try:
    return int(json.loads(line)["step"])
  except (ValueError, LookupError, TypeError):
    return 0
