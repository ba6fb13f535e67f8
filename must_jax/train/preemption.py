"""SIGTERM as a question to ask, so that a run can end in good order."""

import signal
import threading
from typing import Any, Self

import jax


class Sigterm:
  """Within the block, SIGTERM sets `received` instead of ending the process.

  Only the main thread may handle signals; elsewhere nothing changes. Nor does
  it among the processes of `jax.distributed`, which handles the signal itself:
  see `Checkpoints.reached_preemption`.
  """

  def __init__(self) -> None:
    self.received = False

  def __enter__(self) -> Self:
    self._is_handled = (
      threading.current_thread() is threading.main_thread()
      and not jax.distributed.is_initialized()
    )
    if self._is_handled:
      self._previous = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *_: Any) -> None:
    if self._is_handled:
      signal.signal(signal.SIGTERM, self._previous)

  def _note(self, *_: Any) -> None:
    self.received = True
