"""Ctrl-C reaches whoever waits for a command."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
  "where", ["gc.callbacks.append(ctrl_c); gc.collect()", "Dropped()"]
)
def test_ctrl_c_is_not_lost_where_exceptions_are(where):
  code = f"""
import gc, signal, time
from must_jax.signals import heed_ctrl_c

def ctrl_c(*_):
  gc.callbacks.clear()
  signal.raise_signal(signal.SIGINT)

class Dropped:
  __del__ = ctrl_c

heed_ctrl_c()
try:
  {where}
  time.sleep(20)
except KeyboardInterrupt:
  print("ended")
"""
  command = [sys.executable, "-c", code]
  done = subprocess.run(command, capture_output=True, text=True, timeout=40)
  assert (done.stdout, done.stderr) == ("ended\n", "")
