import os
import pathlib

import pytest


@pytest.fixture
def parity_file():
  """What a full-size original gives, see docs/parity.md."""

  def find(name):
    directory = os.environ.get("MUST_JAX_PARITY")
    if not directory:
      pytest.skip("MUST_JAX_PARITY is not set, see docs/parity.md")
    return pathlib.Path(directory) / f"{name}.npz"

  return find
