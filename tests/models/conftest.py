import jax
import numpy as np
import pytest


def draw(init, *args, **kwargs):
  """Draws a module's variables; compiling its `init` takes many times longer.

  None is neutral, as norms' fresh 0 and 1 are.
  """
  shapes = jax.eval_shape(lambda: init(jax.random.key(0), *args, **kwargs))
  rng = np.random.default_rng(0)

  def draw_one(path, x):
    name = path[-1].key
    if name in ("var", "scale"):
      return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
    std = 1 / np.sqrt(np.prod(x.shape[:-1])) if name == "kernel" else 0.3
    return (std * rng.normal(size=x.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw_one, shapes)


@pytest.fixture(scope="session")
def draw_variables():
  return draw
