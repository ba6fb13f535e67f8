"""The number of devices changes speed, not results."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import json, sys
from must_jax import config as config_lib
from must_jax.train import loop
config = config_lib.from_json(open(sys.argv[1]).read())
loop.train(config, sys.argv[2])
"""


def train(config_file, workdir, devices):
  env = os.environ | {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
    " --xla_backend_optimization_level=0"
  }
  subprocess.run(
    [sys.executable, "-c", SCRIPT, str(config_file), str(workdir)],
    env=env,
    check=True,
    capture_output=True,
  )
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [
    record["loss"] for record in map(json.loads, lines) if "loss" in record
  ]


@pytest.mark.parametrize(
  ("kinds", "steps", "rtol"),
  [
    # The order of summation differs, so the last bits do, and training
    # amplifies them; small steps keep that small.
    (("classification", "segmentation", "normals"), 6, 1e-4),
    # A detector turns the last bit of a score into another proposal, after
    # which the losses are those of another sample: it is compared before.
    (("classification", "detection", "segmentation", "depth"), 2, 1e-5),
  ],
)
def test_four_devices_give_the_losses_of_one(
  make_config, tmp_path, kinds, steps, rtol
):
  from must_jax import config as config_lib

  config = make_config(
    *kinds,
    steps=steps,
    **{
      "optimizer.lr": 1e-3,
      "optimizer.warmup_lr": 1e-3,
      "optimizer.warmup_steps": 1,
    },
  )
  (tmp_path / "config.json").write_text(config_lib.to_json(config))
  one = train(tmp_path / "config.json", tmp_path / "one", 1)
  four = train(tmp_path / "config.json", tmp_path / "four", 4)
  assert len(one) == steps
  np.testing.assert_allclose(four, one, rtol=rtol)


@pytest.mark.parametrize("size", [7])
def test_batch_that_devices_cannot_share_is_refused(size):
  import jax

  from must_jax.train import mesh as mesh_lib

  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  mesh_lib.check_batch_size("data.batch_size", size, mesh)
  with pytest.raises(ValueError, match=r"config\.mesh\.data to -1"):
    mesh_lib.make_mesh(data=2, devices=jax.devices()[:1])
