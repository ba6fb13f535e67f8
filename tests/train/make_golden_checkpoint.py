"""Makes the checkpoint that every later version must read.

  python tests/train/make_golden_checkpoint.py

It writes `golden/checkpoint_v2.zip`, and what its model predicts. Run it for a
new format version only: the files of released formats stay as they are. (That
of version 1 was made likewise, by the last code that wrote it.) Values follow
from their place, so that the tests know them and they take no room.
"""

import json
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import must_jax
from must_jax.config import base_config, task
from must_jax.train import checkpoint
from must_jax.train.build import build

GOLDEN = pathlib.Path(__file__).parent / "golden"
STEP = 7


def make_config():
  """The smallest model, of two tasks."""
  config = base_config()
  config.model.update(
    {"backbone": "resnet18", "width": 8, "channels": 8, "dtype": "float32"}
  )
  config.data.update({"image_size": (32, 32), "batch_size": 2})
  config.train.steps = 10
  config.optimizer.update({"warmup_steps": 1, "ema_decay": 0.9})
  config.tasks.color = task(
    "classification", labels={}, classes=("red", "green", "blue")
  )
  config.tasks.depth = task("depth", labels={}, classes=())
  return config


def value_at(path, array):
  """The value of an array of a state, known from its place."""
  name = jax.tree_util.keystr(path)
  places = np.arange(array.size).reshape(array.shape)
  if name == ".step":
    return np.full(array.shape, STEP, array.dtype)
  if not jnp.issubdtype(array.dtype, jnp.floating):
    return (places % 3).astype(array.dtype)
  values = ((7 * places + len(name)) % 16 - 7.5) / 64
  return (abs(values) + 0.5 if "'var'" in name else values).astype(array.dtype)


def make_images():
  """uint8 [2, 32, 32, 3]."""
  places = np.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3)
  return (places * 5 % 251).astype(np.uint8)


def summarize(predictions):
  """{task: {name: its first values, as a list}}."""
  return {
    name: {k: np.ravel(v)[:8].tolist() for k, v in arrays.items()}
    for name, arrays in predictions.items()
  }


def main():
  config = make_config()
  program = build(config, devices=jax.devices()[:1])
  state = jax.tree_util.tree_map_with_path(value_at, program.create_state())
  state = jax.device_put(state)
  with tempfile.TemporaryDirectory() as workdir:
    checkpoints = checkpoint.Checkpoints(workdir, config)
    checkpoints.save(state)
    checkpoints.close()
    name = f"checkpoint_v{checkpoint.FORMAT_VERSION}"
    shutil.make_archive(str(GOLDEN / name), "zip", workdir)
    predictions = must_jax.load(workdir).predictor()(make_images())
  path = GOLDEN / f"{name}.json"
  path.write_text(json.dumps(summarize(predictions), indent=2) + "\n")


if __name__ == "__main__":
  main()
