"""Stages of a long computation: they run side by side and keep their results.

A stage is a call `function(directory, *args)` of a module's function, which
writes into its directory only and returns JSON. The directory's name has two
digests. The first is of what is asked for: the function's name, the arguments
and the stages it waits for. The second is of the code that it and those stages
run (`code_version` says what of it counts). So:

- A stage that has finished, which its `stage.json` says, is not run again, and
  asking for something else, or for the same of changed code, takes another
  directory. Results of different code are never mixed; `Stages.outdated` names
  what is there of other code only. Nothing is deleted: with the code as it was,
  the old results count again.
- A stage that failed or was killed leaves its directory without `stage.json`.
  The next run calls the function again with the same directory and all that is
  in it. To go on from there, or to begin anew over it, is the function's
  matter: training goes on from its last checkpoint, labelling keeps finished
  shards, rendering finished splits.
- Two commands must not run the same stage at the same time; nothing keeps them
  from it.

The code must stay as it is while stages run: a worker that finds it changed
fails its stage.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tqdm import tqdm

from must_jax.lab.code_version import code_version
from must_jax.storage.path import (
  Path,
  absolute,
  is_local,
  make_directory,
  publish,
  read_files,
)

# After "3 of 8", for people.
MADE_BY_OTHER_CODE = "stages were made by other code and run again."


class StageError(RuntimeError):
  """A stage failed; the message names it and its log."""


@dataclasses.dataclass(frozen=True)
class Stage:
  """One unit of work; see the module's docstring.

  Attributes:
    name: for people; also begins the directory's name.
    function: of a module.
    args: JSON values.
    after: directories of the stages it waits for.
    code: version of the function's code.
    task_name: of the directory, without the digest of the code.
    directory: for all that it writes.
  """

  name: str
  function: Callable[..., Any]
  args: tuple[Any, ...]
  after: tuple[Path, ...]
  code: str
  task_name: str
  directory: Path

  @property
  def is_done(self) -> bool:
    """Whether it has finished, in this run or an earlier one."""
    return (self.directory / "stage.json").exists()

  @property
  def is_outdated(self) -> bool:
    """Whether it has finished with other code, and not with this one."""
    others = self.directory.parent.glob(f"{self.task_name}-*/stage.json")
    return not self.is_done and any(others)

  @property
  def result(self) -> Any:
    """What the function of the finished stage returned."""
    return json.loads((self.directory / "stage.json").read_text())["result"]

  @property
  def seconds(self) -> float:
    """How long the finished stage took, in the call that finished it."""
    return json.loads((self.directory / "stage.json").read_text())["seconds"]


class Stages(Mapping[Path, Stage]):
  """Stages under one directory, by their directories; they may share inputs."""

  def __init__(self, workdir: Path, jobs: int):
    """Makes an empty collection.

    Args:
      workdir: holds `stages/` and the compilation cache.
      jobs: stages that may run at a time, each in a process of its own.
    """
    self.workdir = absolute(workdir)
    self._jobs = jobs
    self._stages: dict[Path, Stage] = {}
    self._code = functools.cache(code_version)

  def __getitem__(self, directory: Path) -> Stage:
    return self._stages[directory]

  def __iter__(self) -> Iterator[Path]:
    return iter(self._stages)

  def __len__(self) -> int:
    return len(self._stages)

  def add(
    self,
    name: str,
    function: Callable[..., Any],
    *args: Any,
    after: tuple[Path, ...] = (),
  ) -> Path:
    """Adds a stage and returns the directory its outputs will be in.

    Args:
      name: for people; also begins the directory's name.
      function: of a module.
      *args: JSON values.
      after: directories of the stages it waits for, all whose files it reads
        among them.
    """
    asked = [
      f"{function.__module__}.{function.__qualname__}",
      args,
      [path.name for path in after],
    ]
    # A moved workdir keeps its stages.
    text = json.dumps(asked, sort_keys=True).replace(str(self.workdir), "")
    code = self._code(function)
    # The names of the stages before have the digests of their code.
    code_digest = _digest(f"{code} {text}", 4)
    for path in after:
      text = text.replace(path.name, self[path].task_name)
    task_name = f"{name}-{_digest(text, 5)}"
    directory = self.workdir / "stages" / f"{task_name}-{code_digest}"
    self._stages[directory] = Stage(
      name, function, args, after, code, task_name, directory
    )
    return directory

  @property
  def outdated(self) -> tuple[Stage, ...]:
    """The stages that have finished with other code only."""
    return tuple(stage for stage in self.values() if stage.is_outdated)

  def run_one(self, directory: Path) -> None:
    """Runs a stage in this process, if it is not finished.

    Raises:
      ValueError: others have to be finished first.
      StageError: it failed.
    """
    stage = self[directory]
    if stage.is_done:
      return
    if missing := [
      self[path].name for path in stage.after if not self[path].is_done
    ]:
      raise ValueError(
        f"Stage {stage.name!r} needs the results of {', '.join(missing)};"
        " run these first."
      )
    _set_up(str(self.workdir / "xla_cache"))
    try:
      _run(stage)
    except Exception as error:
      raise StageError(_failure(stage, error)) from error

  def run(self) -> None:
    """Runs all unfinished stages.

    Those that the longest chains of others wait for go first, so that there is
    work for all processes until the end.

    Raises:
      StageError: one failed. Those that run beside it are ended by SIGTERM, at
        which training saves itself; the next run goes on with them.
      KeyboardInterrupt: Ctrl-C, which ends them likewise.
    """
    following = self._chains()
    waiting = {
      d: self[d]
      for d in sorted(self, key=following.__getitem__, reverse=True)
      if not self[d].is_done
    }
    total, done = len(self), len(self) - len(waiting)
    if done:
      print(f"{done} of {total} stages are there from an earlier run.")
    if outdated := len(self.outdated):
      print(f"{outdated} of {total} {MADE_BY_OTHER_CODE}")
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
            running[pool.submit(_run, stage)] = waiting.pop(directory)
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

  def _chains(self) -> dict[Path, int]:
    """How many stages of the longest chain wait for each."""
    following = dict.fromkeys(self, 0)
    for directory in reversed(self._stages):  # the last ones are known
      for path in self[directory].after:
        following[path] = max(following[path], following[directory] + 1)
    return following


def _digest(text: str, size: int) -> str:
  return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


def _failure(stage: Stage, error: BaseException) -> str:
  return (
    f"Stage {stage.name!r} failed: {error}\n"
    f"Its log: {stage.directory / 'log.txt'}"
  )


@contextlib.contextmanager
def _pool(
  workdir: Path, jobs: int
) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
  # Large pages for buffers that XLA takes and gives back at each step, on Linux
  # (docs/speed.md). The C library reads this when a process starts.
  os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
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
  """Gives the worker its share of the cores and the compilation cache.

  Ctrl-C is for the process that waits: it ends the others.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()
  # On CPUs, stages side by side with a share of the cores each are faster
  # than one stage on all: small programs do not scale over threads.
  if jobs > 1 and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    share = cores[turns.get() :: jobs]
    if share:
      os.sched_setaffinity(0, share)
  _set_up(cache)


def _end_with_parent() -> None:
  """A parent that is killed would leave its workers to go on for hours."""
  parent = multiprocessing.parent_process()
  assert parent
  parent.join()
  os.kill(os.getpid(), signal.SIGTERM)


def _set_up(cache: str) -> None:
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  import jax

  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


# Once a process: what it has imported stays as it was.
_code_here = functools.cache(code_version)


def _run(stage: Stage) -> None:
  make_directory(stage.directory)
  start = time.monotonic()
  with _log_to(stage.directory / "log.txt"):
    if _code_here(stage.function) != stage.code:
      raise ValueError(
        "The code was changed while stages ran; start the command again."
      )
    result = stage.function(stage.directory, *stage.args)
  record = {"seconds": time.monotonic() - start, "result": result}
  with publish(stage.directory / "stage.json") as file:
    file.write(json.dumps(record, indent=2).encode())


@contextlib.contextmanager
def _log_to(path: Path) -> Iterator[None]:
  """Sends what the process prints to a file, C++ libraries included.

  A bucket gets it when the stage ends; one that is killed loses it.
  """
  from absl import logging

  logging.set_verbosity(logging.INFO)
  sys.stdout.flush()
  sys.stderr.flush()
  saved = os.dup(1), os.dup(2)
  local = is_local(path)
  with open(path, "ab") if local else tempfile.TemporaryFile() as log:
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
      if not local:
        log.seek(0)
        (before,) = read_files([path])
        with publish(path) as file:
          file.write((before or b"") + log.read())
