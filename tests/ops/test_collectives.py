"""A batch that is sharded over devices stays where it is."""

import os
import re
import subprocess
import sys

import pytest

# Compiles each op, vmapped over a batch on four devices, and prints its HLO.
PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from must_jax.ops import matching, nms, resize, roi_align, topk

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
by_data = NamedSharding(mesh, PartitionSpec("data"))
B, A, N, G, R = 8, 500, 70, 5, 40


def array(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct((B, *shape), dtype, sharding=by_data)


keys = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
flags, classes = array(G, dtype=bool), array(G, dtype=jnp.int32)
pyramid = {level: array(64 >> level, 64 >> level, 4) for level in (3, 4, 5)}
anchors = np.random.default_rng(0).uniform(0, 64, (A, 4)).astype(np.float32)


def over_keys(function, key, *args):
  return jax.vmap(function)(*args, jax.random.split(key, B))


def roi_gradient(method, pyramid, rois):
  def loss(pyramid):
    align = lambda p, r: roi_align.multilevel_roi_align(p, r, method=method)
    return jnp.sum(jax.vmap(align)(pyramid, rois) ** 2, (1, 2, 3, 4))
  out, pull = jax.vjp(loss, pyramid)
  return pull(jnp.ones_like(out))


programs = {
  "top_k": (jax.vmap(lambda x: topk.top_k(x, 20)), array(A)),
  "nms": (
    jax.vmap(lambda b, s, v: nms.nms(b, s, v, 0.7, 30)),
    array(N, 4), array(N), array(N, dtype=bool),
  ),
  "batched_nms": (
    jax.vmap(lambda b, s, c, v: nms.batched_nms(b, s, c, v, 0.5, 30)),
    array(N, 4), array(N), array(N, dtype=jnp.int32), array(N, dtype=bool),
  ),
  "match_anchors": (
    jax.vmap(lambda *gt: matching.match_anchors(anchors, *gt)),
    array(G, 4), flags, flags,
  ),
  "sample": (
    lambda key, labels: over_keys(
      lambda x, k: matching.sample(x, k, 32, 0.5), key, labels
    ),
    keys, array(A, dtype=jnp.int32),
  ),
  "sample_rois": (
    lambda key, *args: over_keys(
      lambda *a: matching.sample_rois(*a, num_samples=16), key, *args
    ),
    keys, array(R, 4), array(R, dtype=bool), array(G, 4), classes, flags, flags,
  ),
  "resize_bilinear": (
    lambda x: resize.resize_bilinear(x, (16, 16)), array(8, 8, 4)
  ),
  "upsample_nearest_2x": (
    jax.vmap(lambda x: resize.upsample_nearest_2x(x, (16, 15))), array(8, 8, 4)
  ),
}
for method in ("gather", "matmul"):
  programs["roi_align " + method] = (
    lambda p, r, method=method: roi_gradient(method, p, r), pyramid, array(R, 4)
  )
# What must be found, were it there.
programs["control"] = (lambda x: x - x.mean(0), array(A))

for name, (function, *args) in programs.items():
  compiled = jax.jit(function).lower(*args).compile()
  print("\\n=== " + name)
  print(compiled.as_text())
"""

COLLECTIVE = re.compile(
  r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
)


@pytest.fixture(scope="module")
def programs():
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
  }
  result = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  parts = result.stdout.split("\n=== ")[1:]
  return dict(part.split("\n", 1) for part in parts)


@pytest.mark.parametrize(
  "name",
  ["top_k", "nms", "batched_nms", "match_anchors", "sample", "sample_rois"]
  + ["resize_bilinear", "upsample_nearest_2x"]
  + ["roi_align gather", "roi_align matmul"],
)
def test_no_collectives(programs, name):
  text = programs[name]
  assert "num_partitions=4" in text
  assert set(COLLECTIVE.findall(text)) == set()


def test_collectives_would_be_found(programs):
  assert set(COLLECTIVE.findall(programs["control"])) == {"all-reduce"}
