"""What a step sends between devices: sums, and parameters that are split."""

import json
import math
import os
import re
import subprocess
import sys

import pytest

# Compiles a step for four devices; prints its text and shapes as JSON.
PROGRAM = """
import json, sys
import jax
from must_jax.config import base_config, smoke, task
from must_jax.input.abstract import abstract_batch
from must_jax.preflight import compiled
from must_jax.train import mesh as mesh_lib
from must_jax.train.build import build
from must_jax.train.step import make_predict_step

options = json.loads(sys.argv[1])
mesh_lib.MIN_SPLIT_SIZE = 1024  # the model is small
config = base_config()
for kind, classes in options["tasks"].items():
  config.tasks[kind] = task(kind, labels={}, classes=tuple(classes))
config = smoke(config)
config.mesh.fsdp = options["fsdp"]
config.train.accumulate = options["accumulate"]
config.balancing.method = options["method"]

program = build(config)
state, size = program.abstract_state, tuple(config.data.image_size)
rows = mesh_lib.batch_sharding(program.mesh)
batch = abstract_batch(
  {name: task.fields for name, task in program.tasks.items()},
  config.data.batch_size, size, config.data.label_stride, rows,
)
if options["predict"]:
  step = make_predict_step(program.model, program.tasks, program.mesh, 1)
  step = step.lower(
    state.variables, batch["image"], batch["content_size"]
  )
else:
  step = program.train_step.lower(state, batch, program.key)
whole = [x.shape for x in jax.tree.leaves(state.params)]
parts = [x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(state.params)]
maps = jax.eval_shape(
  lambda variables, image: program.model.apply(
    variables, image, method="trunk"
  )[0],
  state.variables, batch["image"],
)
print(json.dumps({
  "text": step.compile().as_text(),
  "parameters": whole + parts,
  "maps": [x.shape[1:] for x in jax.tree.leaves(maps)],
  "estimate": compiled.sent_bytes(state.params, (), options["accumulate"], 4),
}))
"""

CLASSES = {
  "classification": ["a", "b", "c"],
  "detection": ["a", "b"],
  "segmentation": ["a", "b", "c", "d"],
  "depth": [],
  "normals": [],
}
COLLECTIVE = re.compile(
  r" = (\S+|\(.*?\)) (all-gather|all-reduce|all-to-all|collective-permute"
  r"|collective-broadcast|ragged-all-to-all|reduce-scatter)(?:-start)?\("
)


class Step:
  """A compiled step's collectives, as {kind: [shape of each array]}."""

  def __init__(
    self, *tasks, method="fixed", fsdp=1, accumulate=1, predict=False
  ):
    options = {
      "tasks": {name: CLASSES[name] for name in tasks or CLASSES},
      "method": method,
      "fsdp": fsdp,
      "accumulate": accumulate,
      "predict": predict,
    }
    flags = "--xla_force_host_platform_device_count=4"
    result = subprocess.run(
      [sys.executable, "-c", PROGRAM, json.dumps(options)],
      env=os.environ
      | {"XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0"},
      capture_output=True,
      text=True,
      check=False,
      timeout=600,
    )
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout.splitlines()[-1])
    assert "num_partitions=4" in printed["text"]
    self.parameters = {tuple(shape) for shape in printed["parameters"]}
    # A CPU takes kernels of one pixel as those of a dense layer; their
    # dimensions may be swapped.
    self.parameters |= {s[2:] for s in self.parameters if s[:2] == (1, 1)}
    self.parameters |= {s[::-1] for s in self.parameters if len(s) == 2}
    self.maps = {tuple(shape) for shape in printed["maps"]}
    self.estimate = printed["estimate"]
    self.sent = {}
    for types, kind in COLLECTIVE.findall(printed["text"]):
      for shape in re.findall(r"\w+\[([\d,]*)\]", types):
        sizes = tuple(int(size) for size in shape.split(",") if size)
        self.sent.setdefault(kind, []).append(sizes)

  def summed(self):
    """Shapes of what is summed, but for vectors and scalars."""
    return {shape for shape in self.sent["all-reduce"] if len(shape) > 1}


def test_training_sends_sums_of_gradients_norms_and_metrics_alone():
  step = Step()
  assert set(step.sent) == {"all-reduce"}
  assert step.summed() <= step.parameters
  # Sums over channels, and over all examples: nothing for each example.
  vectors = {shape for shape in step.sent["all-reduce"] if len(shape) == 1}
  assert vectors <= {shape for shape in step.parameters if len(shape) == 1}
  # `must-jax plan` estimates gradients alone; norms and metrics are little.
  elements = sum(math.prod(shape) for shape in step.sent["all-reduce"])
  sent = 2 * 3 / 4 * 4 * elements  # float32 on a ring of four
  assert step.estimate <= sent <= 1.1 * step.estimate


def test_prediction_sends_nothing():
  assert Step(predict=True).sent == {}


def test_split_parameters_are_gathered_and_nothing_else_is():
  step = Step("detection", "segmentation", fsdp=2, accumulate=2)
  assert set(step.sent) <= {"all-reduce", "all-gather", "reduce-scatter"}
  gathered = step.sent["all-gather"]
  assert set(gathered) <= step.parameters
  # Each once: not for every task, nor for every part of the batch.
  big = [shape for shape in gathered if shape == (7, 7, 3, 8)]
  assert len(big) == 1
  assert step.summed() <= step.parameters


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 2])
@pytest.mark.parametrize("method", ["uncertainty", "gradnorm", "pcgrad"])
def test_balancing_sends_sums_of_gradients_alone(method, fsdp):
  step = Step(method=method, fsdp=fsdp)
  assert set(step.sent) <= {"all-reduce", "all-gather", "reduce-scatter"}
  assert ("all-gather" in step.sent) == (fsdp > 1)
  assert set(step.sent.get("all-gather", [])) <= step.parameters
  assert step.summed() <= step.parameters


@pytest.mark.slow
def test_graddrop_sends_one_sum_over_the_batch_for_each_map_and_task():
  step = Step("segmentation", "depth", method="graddrop")
  assert set(step.sent) == {"all-reduce"}
  assert step.summed() <= step.parameters | step.maps
  for shape in step.maps:
    assert step.sent["all-reduce"].count(shape) == 2
