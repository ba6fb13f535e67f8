"""A trace of some steps, for TensorBoard's profiler and Perfetto."""

import contextlib
import tempfile
from collections.abc import Iterator

import jax
from absl import logging

from must_jax.storage.path import (
  Path,
  PathLike,
  list_tree,
  make_directory,
  publish,
)

PROFILE_DIRECTORY = "profile"


class Profiler:
  """Traces the first process's steps into `WORKDIR/profile`."""

  def __init__(self, workdir: PathLike, first: int, last: int):
    """Begins nothing yet.

    Args:
      workdir: of the run.
      first: step that the trace begins with, counted from 1.
      last: step that it ends with; 0 for no trace.
    """
    self._target = Path(workdir) / PROFILE_DIRECTORY
    self._first, self._last = first, last
    if jax.process_index():
      self._last = 0
    self._directory: tempfile.TemporaryDirectory[str] | None = None

  @contextlib.contextmanager
  def step(self, step: int) -> Iterator[None]:
    """Around the computation of a step.

    Args:
      step: steps done before it.
    """
    number = step + 1
    if not self._first <= number <= self._last:
      yield
      return
    if self._directory is None:
      self._directory = tempfile.TemporaryDirectory()
      jax.profiler.start_trace(self._directory.name)
    with jax.profiler.StepTraceAnnotation("train", step_num=number):
      yield
    if number == self._last:
      self.close()

  def close(self) -> None:
    """Ends the trace, if one runs, and writes it."""
    if self._directory is None:
      return
    for array in jax.live_arrays():  # steps compute while the host goes on
      array.block_until_ready()
    jax.profiler.stop_trace()
    folder, self._directory = self._directory, None
    with folder:
      for name in list_tree(folder.name):
        make_directory((self._target / name).parent)
        with publish(self._target / name) as file:
          file.write((Path(folder.name) / name).read_bytes())
    logging.info("The trace of the steps is in %s.", self._target)
