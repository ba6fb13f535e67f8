import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from must_jax.preflight import compiled


def array(*shape, split=None, mesh):
  spec = PartitionSpec(split)
  return jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=NamedSharding(mesh, spec)
  )


@pytest.mark.parametrize(
  ("mesh", "split", "expected"),
  [
    # Of 64 elements, by hand: what is gathered, and what is summed.
    ((1, 1), None, (0, 0)),
    ((8, 1), None, (0, 2 * 64 * 7 / 8)),
    ((2, 4), None, (0, 2 * 64 * 7 / 8)),
    # Each chip has 16; 48 are the others', and its own are summed with one.
    ((2, 4), "fsdp", (48, 48 + 2 * 16 * 1 / 2)),
    ((1, 4), "fsdp", (48, 48)),
  ],
)
def test_sent_are_sums_of_gradients_and_what_is_gathered(mesh, split, expected):
  mesh = AbstractMesh(mesh, ("data", "fsdp"))
  params = {"fpn": {"kernel": array(4, 16, split=split, mesh=mesh)}}
  gathered, summed = expected
  # float32 parameters; bfloat16 gradients of three parts of a batch.
  sent = compiled.sent_bytes(params, (), parts=3, itemsize=2)
  assert sent == 4 * gathered + 3 * 2 * summed
  # What does not train is only gathered.
  assert compiled.sent_bytes(params, ("fpn",), 3, 2) == 4 * gathered


def test_arrays_add_up():
  mesh = AbstractMesh((2, 1), ("data", "fsdp"))
  params = {
    "backbone": {"a": array(3, mesh=mesh), "b": array(2, 5, mesh=mesh)},
    "head_depth": {"a": array(7, mesh=mesh)},
  }
  assert compiled.sent_bytes(params, (), parts=1, itemsize=4) == 4 * 20
  assert compiled.sent_bytes(params, ("backbone",), 1, 4) == 4 * 7
  assert compiled.tree_bytes(params) == 4 * 20
