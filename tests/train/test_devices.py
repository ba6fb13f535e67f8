"""The number of devices, and their mesh, change speed and not results."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from must_jax.train import mesh as mesh_lib

# Trains on eight devices in several meshes, and on one of them; prints JSON.
PROGRAM = """
import json, sys
import jax, numpy as np
from must_jax.config import base_config, smoke, task
from must_jax.input.abstract import abstract_batch
from must_jax.train import checkpoint, mesh as mesh_lib
from must_jax.train.build import build

options, workdir = json.loads(sys.argv[1]), sys.argv[2]
CLASSES = {"classification": 3, "detection": 2, "segmentation": 4}


def make_program(data, fsdp):
  config = base_config()
  for kind in options["tasks"]:
    names = tuple("abcd"[: CLASSES.get(kind, 0)])
    config.tasks[kind] = task(kind, labels={}, classes=names)
  config = smoke(config)
  config.model.width = 16  # so that parameters are large enough to be split
  config.data.update({"batch_size": 16, "image_size": (32, 32)})
  config.train.accumulate = options["accumulate"]
  config.optimizer.update(
    {"lr": 1e-3, "warmup_lr": 1e-3, "warmup_steps": 1, "ema_decay": 0.9}
  )
  config.mesh.update({"data": data, "fsdp": fsdp})
  return build(config, devices=jax.devices()[: data * fsdp])


def fill(path, x, rng, kind):
  name = path[-1].key
  if x.dtype == bool:
    # Some examples lack the labels of a task.
    return rng.random(x.shape) < 0.8 if name == "present" else np.ones(
      x.shape, bool
    ) & (name != "ignore")
  if name == "boxes":
    start = rng.uniform(0, 20, (*x.shape[:2], 2))
    return np.concatenate(
      [start, start + rng.uniform(6, 12, start.shape)], -1
    ).astype(x.dtype)
  if name == "probs":
    return np.eye(x.shape[-1])[rng.integers(x.shape[-1], size=len(x))]
  if name == "classes":
    return rng.integers(0, CLASSES[kind], x.shape)
  if name == "vectors":
    vectors = rng.normal(size=x.shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
  if name == "image":
    return rng.integers(0, 256, x.shape)
  return rng.uniform(1, 3, x.shape)


def make_batch(program, step):
  rng = np.random.default_rng(step)
  shapes = abstract_batch(
    {name: task.fields for name, task in program.tasks.items()},
    program.config.data.batch_size, (32, 32),
    program.config.data.label_stride,
  )
  return jax.tree_util.tree_map_with_path(
    lambda path, x: fill(
      path, x, rng, path[1].key if len(path) > 1 else ""
    ).astype(x.dtype),
    shapes,
  )


def parts(tree):
  return [
    (x.shape, x.addressable_shards[0].data.shape) for x in jax.tree.leaves(tree)
  ]


results = {}
for data, fsdp in options["meshes"]:
  program = make_program(data, fsdp)
  state, losses = program.create_state(), []
  for step in range(options["steps"]):
    batch = mesh_lib.to_device(make_batch(program, step), program.mesh)
    state, metrics = program.train_step(state, batch, program.key)
    losses.append(float(metrics["loss"]))
  results[f"{data}x{fsdp}"] = {
    "losses": losses,
    "parameters": parts(state.params),
    "optimizer": parts((state.opt_state, state.ema["params"])),
  }
  if [data, fsdp] == options["saves"]:
    checkpoints = checkpoint.Checkpoints(workdir, program.config)
    checkpoints.save(state)
    saved = checkpoint.digest(state)
    checkpoints.close()

for data, fsdp in options["restores"]:
  program = make_program(data, fsdp)
  checkpoints = checkpoint.Checkpoints(workdir, program.config)
  state = checkpoints.restore(program.abstract_state)
  checkpoints.close()
  results.setdefault(f"{data}x{fsdp}", {}).update(
    restored=checkpoint.digest(state) == saved,
    restored_parameters=parts(state.params),
  )
print(json.dumps(results))
"""


def train(tmp_path, tasks, **options):
  options = {
    "tasks": tasks,
    "accumulate": 1,
    "saves": None,
    "restores": [],
  } | options
  flags = "--xla_force_host_platform_device_count=8"
  result = subprocess.run(
    [sys.executable, "-c", PROGRAM, json.dumps(options), str(tmp_path)],
    env=os.environ
    | {"XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0"},
    capture_output=True,
    text=True,
    check=False,
    timeout=600,
  )
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
  """Of one task, on one device and in two meshes."""
  return train(
    tmp_path_factory.mktemp("meshes"),
    ["classification"],
    steps=3,
    meshes=[[1, 1], [4, 2]],
    accumulate=2,
    saves=[4, 2],
    restores=[[1, 1], [4, 2], [2, 4]],
  )


# The order of summation differs, so the last bits do, and training amplifies
# them; small steps keep that small.
def test_a_mesh_gives_the_losses_of_one_device(results):
  one = results["1x1"]["losses"]
  assert len(set(one)) == 3
  np.testing.assert_allclose(results["4x2"]["losses"], one, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("tasks", "steps", "rtol"),
  [
    (["classification", "segmentation", "depth", "normals"], 6, 1e-4),
    # A detector turns the last bit of a score into another proposal, after
    # which the losses are those of another sample: it is compared before.
    (["classification", "detection", "segmentation", "depth"], 2, 1e-5),
  ],
)
def test_all_tasks_have_the_losses_of_one_device(tmp_path, tasks, steps, rtol):
  meshes = [[1, 1], [8, 1], [4, 2], [2, 4]]
  found = train(tmp_path, tasks, steps=steps, meshes=meshes)
  for data, fsdp in meshes:
    np.testing.assert_allclose(
      found[f"{data}x{fsdp}"]["losses"], found["1x1"]["losses"], rtol=rtol
    )


def assert_split(arrays, fsdp, large):
  """Of arrays [(whole, local)] so many are large, and they alone are split."""
  for whole, local in arrays:
    is_large = np.prod(whole) >= mesh_lib.MIN_SPLIT_SIZE
    assert np.prod(whole) == np.prod(local) * (fsdp if is_large else 1)
    large -= is_large
  assert not large


@pytest.mark.parametrize(("mesh", "fsdp"), [("1x1", 1), ("4x2", 2)])
def test_large_arrays_are_split_along_fsdp(results, mesh, fsdp):
  # Four convolutions of the last stage; velocities and averages of them.
  assert_split(results[mesh]["parameters"], fsdp, 4)
  assert_split(results[mesh]["optimizer"], fsdp, 8)


@pytest.mark.parametrize(("mesh", "fsdp"), [("1x1", 1), ("4x2", 2), ("2x4", 4)])
def test_checkpoint_of_one_mesh_is_restored_on_another(results, mesh, fsdp):
  assert results[mesh]["restored"]
  assert_split(results[mesh]["restored_parameters"], fsdp, 4)


@pytest.mark.parametrize("size", [7])
def test_batch_that_devices_cannot_share_is_refused(size):
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
  mesh_lib.check_batch_size("data.batch_size", size, mesh)
  with pytest.raises(ValueError, match=r"config\.mesh\.data to -1"):
    mesh_lib.make_mesh(data=2, devices=jax.devices()[:1])
