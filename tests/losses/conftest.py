import numpy as np
import pytest


def _numeric_gradient(function, x, eps=1e-6):
  """Central differences of a float64 function of an array."""
  gradient = np.zeros(x.shape)
  for i in np.ndindex(x.shape):
    step = np.zeros(x.shape)
    step[i] = eps
    gradient[i] = (function(x + step) - function(x - step)) / (2 * eps)
  return gradient


@pytest.fixture
def numeric_gradient():
  return _numeric_gradient
