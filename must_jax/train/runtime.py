"""The processes of a run: who takes part, who is stuck, when all must end."""

import contextlib
import faulthandler
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from must_jax.config import PREEMPTED
from must_jax.input.quarantine import Quarantine
from must_jax.signals import EndSignals
from must_jax.storage.path import Path, PathLike, make_directory, publish

T = TypeVar("T")


def gather(payload: bytes) -> list[bytes]:
  """What every process passes here, in the order of their ids."""
  if jax.process_count() == 1:
    return [payload]
  sizes = multihost_utils.process_allgather(np.array(len(payload)))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: len(payload)] = np.frombuffer(payload, np.uint8)
  gathered = multihost_utils.process_allgather(padded)
  return [
    one[: int(size)].tobytes()
    for one, size in zip(gathered, sizes, strict=True)
  ]


def report() -> str:
  """A line for every process: its machine and its devices."""
  devices = jax.local_devices()
  mine = f"{_name()}: {len(devices)} x {devices[0].device_kind}"
  lines = [line.decode() for line in gather(mine.encode())]
  return f"{len(lines)} processes, {jax.device_count()} devices\n" + "\n".join(
    f"  process {i}, {line}" for i, line in enumerate(lines)
  )


def compiles_aloud(name: str, function: Callable[..., T]) -> Callable[..., T]:
  """A function that says when its first call begins and ends, which compiles.

  Args:
    name: of what is compiled.
    function: compiled when it is called first.
  """
  is_compiled = False

  def call(*args: Any) -> T:
    nonlocal is_compiled
    if is_compiled:
      return function(*args)
    logging.info("Compiling %s, which may take minutes.", name)
    begin = time.monotonic()
    result = function(*args)
    logging.info("Compiled %s in %s.", name, duration(time.monotonic() - begin))
    is_compiled = True
    return result

  return call


class SignOfLife:
  """Says now and then how far something is that takes long."""

  def __init__(self, seconds: float = 30.0):
    """The first time comes after `seconds`, as does each after the last."""
    self._seconds, self._said = seconds, time.monotonic()

  def say(self, message: str, *values: Any) -> None:
    """Logs, if it is time to."""
    now = time.monotonic()
    if now - self._said >= self._seconds:
      self._said = now
      logging.info(message, *values)


def duration(seconds: float) -> str:
  """About how long, for people."""
  for unit, length in (("days", 86400.0), ("hours", 3600.0), ("min", 60.0)):
    if seconds >= 1.5 * length:
      number = seconds / length
      return f"{number:.{int(number < 10 and unit != 'min')}f} {unit}"
  return f"{math.ceil(seconds)} s"


def metric_table(metrics: Mapping[str, float]) -> str:
  """Metrics as text, one a line."""
  width = max(map(len, metrics), default=0)
  return "\n".join(f"  {k:<{width}}  {v:.4f}" for k, v in metrics.items())


def _name() -> str:
  return f"{socket.gethostname()} (pid {os.getpid()})"


def keep_tensorflow_off_accelerators() -> None:
  """It reads data only, and would take the memory that others need.

  Where it has devices already, it is used for more, and keeps them.
  """
  from must_jax.quiet_tensorflow import quiet, tf

  with quiet():
    for kind in ("GPU", "TPU"):
      with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], kind)


def open_quarantine(workdir: PathLike) -> Quarantine:
  """Where this process writes down the records that it cannot use."""
  name = f"{jax.process_index():05d}.jsonl"
  return Quarantine(Path(workdir) / "quarantine" / name)


class Watchdog:
  """Names the process that a run waits for.

  A dead process ends the others within the heartbeat's timeout; one that lives
  and does not move lets them wait forever. So every process keeps a note of
  what it does in `WORKDIR/progress`. One that has not moved for `seconds` logs
  all notes, the last process first, and where in the code it is itself; after
  three times as long it ends with the status that asks to be started again.
  One that compiles never does: that may take long, and comes to an end.
  """

  def __init__(self, workdir: PathLike, seconds: float):
    """Prepares to watch.

    Args:
      workdir: of the run.
      seconds: without a move that are suspicious; 0 for no watching.
    """
    self._directory = Path(workdir) / "progress"
    self._seconds = seconds
    self._interval = min(10.0, seconds / 10)
    self._who: dict[str, Any] = {
      "process": jax.process_index(),
      "name": _name(),
    }
    self._end = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self.moved(0, "starts")

  def __enter__(self) -> Self:
    if self._seconds:
      make_directory(self._directory)
      self._thread.start()
    return self

  def __exit__(self, *_: Any) -> None:
    self._end.set()
    if self._seconds:
      self._thread.join()

  def moved(self, step: int, doing: str, batch: int = 0) -> None:
    """Notes what this process begins to do.

    Args:
      step: of training.
      doing: "starts", "waits for data", "compiles" (the first step, which is
        computed then, too), "computes", "evaluates" or "saves".
      batch: of an evaluation.
    """
    self._note: dict[str, Any] = {
      "step": step,
      "batch": batch,
      "doing": doing,
      "since": time.time(),
    }

  def _watch(self) -> None:
    # Process 0 goes last: without it the others cannot end in good order.
    patience = 3 * self._seconds
    if jax.process_index() == 0:
      patience += 2 * self._interval
    noted: dict[str, Any] = {}
    while not self._end.wait(self._interval):
      # Clocks of machines may be set back or forth; this one only counts.
      now = time.monotonic()
      if self._note is not noted:
        noted, reports, since = self._note, 0, now
        self._write(noted)
      if now - since > (reports + 1) * self._seconds:
        reports += 1
        logging.error("%s", self.describe())
        faulthandler.dump_traceback(all_threads=True)
      if now - since > patience and noted["doing"] != "compiles":
        logging.error("Giving up; the same command goes on.")
        logging.flush()
        os._exit(PREEMPTED)

  def _write(self, note: dict[str, Any]) -> None:
    try:
      with publish(self._path(self._who["process"])) as file:
        file.write(json.dumps(self._who | note).encode())
    except OSError as error:  # the run itself may well be fine
      logging.warning("The note of progress cannot be written: %s", error)

  def describe(self) -> str:
    """What all processes do, those that are furthest behind first."""
    notes, silent = [], []
    for process in range(jax.process_count()):
      try:
        notes.append(json.loads(self._path(process).read_text()))
      except (OSError, ValueError):
        silent.append(process)
    # Who computes waits for the others; who does something else is waited for.
    notes.sort(
      key=lambda n: (
        n["step"],
        n["batch"],
        n["doing"] in ("compiles", "computes"),
        n["since"],
      )
    )
    now = time.time()
    lines = [f"  process {process} has left no note" for process in silent]
    for n in notes:
      where = f"step {n['step']}" + f", batch {n['batch']}" * bool(n["batch"])
      lines.append(
        f"  process {n['process']}, {n['name']}: {n['doing']} at {where}"
        f" for {now - n['since']:.0f} s"
      )
    return (
      f"Process {jax.process_index()} has not moved for"
      f" {now - self._note['since']:.0f} s. The first of these is likely the"
      " one that all wait for:\n" + "\n".join(lines)
    )

  def _path(self, process: int) -> Path:
    return self._directory / f"{process:05d}.json"


class Preemption(EndSignals):
  """SIGTERM, Ctrl-C, or the platform's notice that it ends the processes.

  Once `jax.distributed` is initialised it takes them, and tells every process
  the same moment to stop at.
  """

  def __init__(self) -> None:
    super().__init__()
    self._polls, self._reached = 0, False

  def reached(self) -> bool:
    """Whether to save and end now; once true, it stays so.

    Every process must ask equally often: they agree on a question to say yes
    to, and so do the same last step, or batch of an evaluation.
    """
    if self.received:
      return True
    self._polls += 1
    # The platform says yes to one question only.
    self._reached |= multihost_utils.reached_preemption_sync_point(self._polls)
    return self._reached
