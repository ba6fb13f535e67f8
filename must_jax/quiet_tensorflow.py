"""TensorFlow, imported without its greetings."""

import contextlib
import faulthandler
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps what C++ libraries write to stderr to itself, unless the block fails.

  TensorFlow greets before it reads TF_CPP_MIN_LOG_LEVEL, and takes a machine
  without a GPU for an error. Whoever sets that variable to 0 hears it all. Of a
  crash, as where it was compiled for another processor, only the place is told.
  """
  try:
    saved = os.dup(2)
  except OSError:  # there is no stderr
    saved = -1
  if saved < 0 or os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
    yield
    return
  sys.stderr.flush()
  tells_crashes = not faulthandler.is_enabled()
  if tells_crashes:
    faulthandler.enable(saved)
  with tempfile.TemporaryFile() as said:
    os.dup2(said.fileno(), 2)
    try:
      yield
    except BaseException:
      said.seek(0)
      os.write(saved, said.read())
      raise
    finally:
      if tells_crashes:
        faulthandler.disable()
      sys.stderr.flush()
      os.dup2(saved, 2)
      os.close(saved)


with quiet():
  import tensorflow as tf

  tf.config.list_physical_devices()  # it looks for them once

__all__ = ["quiet", "tf"]
