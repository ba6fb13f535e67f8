"""Stages with cached results, run in parallel where they don't wait.

A stage is a module-level function `f(directory, *args)` that returns JSON. Its
directory is named by what goes into it (function, arguments, the stages it
waits for), so a finished stage is never run twice and a changed one never
meets stale results. Ctrl-C and the same command again continue.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm


class StageError(RuntimeError):
  """A stage failed; the message names it and its log."""


@dataclasses.dataclass(frozen=True)
class Stage:
  """One unit of work; see the module's docstring."""

  name: str
  function: Callable[..., Any]
  args: tuple[Any, ...]
  after: tuple[pathlib.Path, ...]
  directory: pathlib.Path

  @property
  def is_done(self) -> bool:
    """Whether it has finished, in this run or an earlier one."""
    return (self.directory / "stage.json").exists()

  @property
  def result(self) -> Any:
    """What the function of the finished stage returned."""
    return json.loads((self.directory / "stage.json").read_text())["result"]

  @property
  def seconds(self) -> float:
    """How long the finished stage took."""
    return json.loads((self.directory / "stage.json").read_text())["seconds"]


class Pipeline:
  """A graph of stages under one directory."""

  def __init__(self, workdir: pathlib.Path, jobs: int):
    """Makes an empty graph.

    Args:
      workdir: holds `stages/` and the compilation cache.
      jobs: stages that may run at a time, each in a process of its own.
    """
    self.workdir = workdir.absolute()
    self._jobs = jobs
    self.stages: dict[pathlib.Path, Stage] = {}

  def add(
    self,
    name: str,
    function: Callable[..., Any],
    *args: Any,
    after: tuple[pathlib.Path, ...] = (),
  ) -> pathlib.Path:
    """Adds a stage and returns the directory its outputs will be in.

    Args:
      name: for people; also begins the directory's name.
      function: module-level function.
      *args: JSON values.
      after: directories of the stages it waits for.
    """
    identity = [
      f"{function.__module__}.{function.__qualname__}",
      args,
      [path.name for path in after],
    ]
    text = json.dumps(identity, sort_keys=True)
    # A moved workdir keeps its stages.
    text = text.replace(str(self.workdir), "")
    key = hashlib.blake2b(text.encode(), digest_size=5).hexdigest()
    directory = self.workdir / "stages" / f"{name}-{key}"
    self.stages[directory] = Stage(name, function, args, after, directory)
    return directory

  def run_one(self, directory: pathlib.Path) -> None:
    """Runs a stage in this process, if it is not finished.

    Raises:
      ValueError: others have to be finished first.
      StageError: it failed.
    """
    stage = self.stages[directory]
    if stage.is_done:
      return
    if missing := [
      self.stages[path].name
      for path in stage.after
      if not self.stages[path].is_done
    ]:
      raise ValueError(
        f"Stage {stage.name!r} needs the results of {', '.join(missing)};"
        " run these first."
      )
    _set_up(str(self.workdir / "xla_cache"))
    try:
      _run(stage.function, stage.directory, stage.args)
    except Exception as error:
      raise StageError(_failure(stage, error)) from error

  def run(self) -> None:
    """Runs all unfinished stages.

    Raises:
      StageError: one failed; those that were running are finished first.
      KeyboardInterrupt: Ctrl-C; finished stages are kept.
    """
    waiting = {d: s for d, s in self.stages.items() if not s.is_done}
    total, done = len(self.stages), len(self.stages) - len(waiting)
    if done:
      print(f"{done} of {total} stages are there from an earlier run.")
    running: dict[concurrent.futures.Future, Stage] = {}
    with (
      _pool(self.workdir, self._jobs) as pool,
      tqdm(
        total=total,
        initial=done,
        unit="stage",
        disable=not sys.stderr.isatty(),
      ) as bar,
    ):
      while waiting or running:
        for directory, stage in list(waiting.items()):
          blocked = any(
            path in waiting or path in {s.directory for s in running.values()}
            for path in stage.after
          )
          if not blocked and len(running) < self._jobs:
            future = pool.submit(
              _run, stage.function, stage.directory, stage.args
            )
            running[future] = waiting.pop(directory)
        finished, _ = concurrent.futures.wait(
          running, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in finished:
          stage = running.pop(future)
          if error := future.exception():
            raise StageError(_failure(stage, error)) from error
          done += 1
          bar.update()
          tqdm.write(
            f"[{done:>{len(str(total))}}/{total}] {stage.name:<32}"
            f" {stage.seconds:7.1f} s"
          )


def _failure(stage: Stage, error: BaseException) -> str:
  return (
    f"Stage {stage.name!r} failed: {error}\n"
    f"Its log: {stage.directory / 'log.txt'}"
  )


@contextlib.contextmanager
def _pool(
  workdir: pathlib.Path, jobs: int
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
  context = multiprocessing.get_context("spawn")
  turns = context.Queue()
  for turn in range(jobs):
    turns.put(turn)
  pool = concurrent.futures.ProcessPoolExecutor(
    jobs,
    mp_context=context,
    initializer=_start_worker,
    initargs=(turns, jobs, str(workdir / "xla_cache")),
  )
  try:
    yield pool
  except BaseException:
    pool.shutdown(wait=False, cancel_futures=True)
    # Training saves itself on SIGTERM.
    for process in multiprocessing.active_children():
      process.terminate()
    raise
  pool.shutdown()


def _start_worker(turns: Any, jobs: int, cache: str) -> None:
  """Gives the worker its share of the cores and the compilation cache."""
  # On CPUs, stages side by side with a share of the cores each are faster
  # than one stage on all: small programs do not scale over threads.
  if jobs > 1 and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    share = cores[turns.get() :: jobs]
    if share:
      os.sched_setaffinity(0, share)
  _set_up(cache)


def _set_up(cache: str) -> None:
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  import jax

  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _run(
  function: Callable[..., Any], directory: pathlib.Path, args: tuple[Any, ...]
) -> None:
  directory.mkdir(parents=True, exist_ok=True)
  start = time.monotonic()
  with _log_to(directory / "log.txt"):
    result = function(directory, *args)
  record = {"seconds": time.monotonic() - start, "result": result}
  temporary = directory / "stage.json.tmp"
  temporary.write_text(json.dumps(record, indent=2))
  os.replace(temporary, directory / "stage.json")


@contextlib.contextmanager
def _log_to(path: pathlib.Path) -> Iterator[None]:
  """Sends what the process prints to a file, C++ libraries included."""
  from absl import logging

  logging.set_verbosity(logging.INFO)
  sys.stdout.flush()
  sys.stderr.flush()
  saved = os.dup(1), os.dup(2)
  with path.open("ab") as log:
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    try:
      yield
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      os.dup2(saved[0], 1)
      os.dup2(saved[1], 2)
      os.close(saved[0])
      os.close(saved[1])
