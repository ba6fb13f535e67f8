"""Ctrl-C and SIGTERM."""

import os
import signal
import sys
import threading
from typing import Any, Self


def heed_ctrl_c() -> None:
  """Makes Ctrl-C (SIGINT) end this process where a shell told it not to.

  Shells let background jobs of a script ignore the signal; whoever sends it to
  one of ours means it. Nor is it lost in a destructor or in garbage collection,
  whose exceptions Python drops.
  """
  if sys.unraisablehook is sys.__unraisablehook__:
    sys.unraisablehook = _raise_again
  if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
  ):
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _raise_again(dropped: "sys.UnraisableHookArgs") -> None:
  if dropped.exc_type is KeyboardInterrupt:
    # Later, for what is raised in here would be dropped, too.
    main_thread = threading.main_thread().ident
    args = (main_thread, signal.SIGINT)
    threading.Timer(0.01, signal.pthread_kill, args).start()
  else:
    sys.__unraisablehook__(dropped)


class EndSignals:
  """Within the block, SIGTERM and Ctrl-C set `received` and end nothing.

  A second Ctrl-C is a KeyboardInterrupt, as ever. Only the main thread may
  handle signals; elsewhere nothing changes. Nor does it for SIGTERM among the
  processes of `jax.distributed`, which handles it itself (see
  `train.runtime.Preemption`); there Ctrl-C is passed on as SIGTERM.
  """

  def __init__(self) -> None:
    self.received = False

  def __enter__(self) -> Self:
    import jax

    self._previous: dict[int, Any] = {}
    self._is_distributed = jax.distributed.is_initialized()
    if threading.current_thread() is threading.main_thread():
      self._handle(signal.SIGINT, self._interrupt)
      if not self._is_distributed:
        self._handle(signal.SIGTERM, self._receive)
    return self

  def __exit__(self, *_: Any) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number: int, handler: Any) -> None:
    # A handler that is not of Python is None, and cannot be put back.
    self._previous[number] = signal.signal(number, handler) or signal.SIG_DFL

  def _interrupt(self, *_: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # In a handler nothing else is sure to print.
    os.write(2, b"\nInterrupted: ends as soon as it can go on from there;")
    os.write(2, b" Ctrl-C again ends at once.\n")
    if self._is_distributed:
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      self.received = True

  def _receive(self, *_: Any) -> None:
    self.received = True
