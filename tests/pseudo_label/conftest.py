import importlib.util
import pathlib
import sys

import pytest


@pytest.fixture(scope="session")
def fake():
  """The module `fake_worker`, which is a program, too."""
  path = pathlib.Path(__file__).with_name("fake_worker.py")
  spec = importlib.util.spec_from_file_location("fake_worker", path)
  module = importlib.util.module_from_spec(spec)
  sys.modules["fake_worker"] = module
  spec.loader.exec_module(module)
  return module
