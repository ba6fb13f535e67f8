"""Our convolutions against those of XLA."""

import functools
import os
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from must_jax.models.conv import Conv
from must_jax.ops import convolution

NUMBERS = ("NHWC", "HWIO", "NHWC")


def normal(seed, shape, dtype=np.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def pair(**options):
  """Ours and XLA's, of a map and a kernel."""
  options = {"window_strides": (1, 1), "padding": "SAME"} | options
  options["dimension_numbers"] = NUMBERS

  def xla(x, kernel):
    padding = options["padding"]
    if isinstance(padding, str) or np.min(padding) >= 0:
      return jax.lax.conv_general_dilated(x, kernel, **options)
    # XLA's own is wrong on a CPU where one side is negative.
    pads = [(0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)]
    padded = jax.lax.pad(x, jnp.zeros((), x.dtype), pads)
    return jax.lax.conv_general_dilated(
      padded, kernel, **options | {"padding": "VALID"}
    )

  return functools.partial(convolution.conv_general_dilated, **options), xla


def assert_close(actual, expected, tolerance=1e-5):
  assert actual.shape == expected.shape
  assert actual.dtype == expected.dtype
  actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
  scale = np.abs(expected).max(initial=1e-6)
  np.testing.assert_allclose(actual / scale, expected / scale, 0, tolerance)


def assert_same(ours, xla, x, kernel, tolerance=1e-5):
  """Outputs, both gradients, and the derivative in a direction."""
  y, pull = jax.vjp(xla, x, kernel)
  g = normal(2, y.shape, y.dtype)
  actual, actual_pull = jax.vjp(ours, x, kernel)
  assert_close(actual, y, tolerance)
  for found, expected in zip(actual_pull(g), pull(g), strict=True):
    assert_close(found, expected, tolerance)
  along = (x, kernel), (x[:, ::-1], kernel[::-1])
  assert_close(jax.jvp(ours, *along)[1], jax.jvp(xla, *along)[1], tolerance)


pads = st.tuples(st.integers(-1, 3), st.integers(-1, 3))


@settings(max_examples=25, deadline=None)
@given(
  size=st.tuples(st.integers(1, 19), st.integers(1, 9)),
  kernel=st.tuples(st.integers(1, 5), st.integers(1, 3)),
  strides=st.tuples(st.integers(1, 3), st.integers(1, 2)),
  dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
  padding=st.sampled_from(["SAME", "VALID"]) | st.tuples(pads, pads),
  # Channels of a group, groups, features of a group.
  channels=st.sampled_from(
    [(1, 4, 1), (3, 1, 5), (1, 1, 1), (2, 2, 3), (1, 3, 2)]
  ),
)
@example((35, 9), (5, 3), (2, 1), (1, 1), "SAME", (1, 4, 1))  # parts of rows
@example((2, 2), (3, 3), (1, 1), (1, 1), "SAME", (3, 1, 5))  # larger kernel
@example((5, 4), (1, 1), (2, 2), (1, 1), ((0, 0), (0, 0)), (3, 1, 5))
@example((4, 4), (2, 2), (1, 1), (1, 1), ((-1, 0), (-1, 1)), (3, 1, 5))
def test_equals_xla(size, kernel, strides, dilation, padding, channels):
  inputs, groups, outputs = channels
  ours, xla = pair(
    window_strides=strides,
    padding=padding,
    rhs_dilation=dilation,
    feature_group_count=groups,
  )
  x = normal(0, (2, *size, inputs * groups))
  w = normal(1, (*kernel, inputs, outputs * groups))
  try:
    shape = jax.eval_shape(xla, x, w).shape
  except (TypeError, ValueError):  # more is cut off than is there
    assume(False)
  assume(np.prod(shape))
  assert_same(ours, xla, x, w)


# A shape for each form, (map, kernel, groups).
FORMS = {
  "depthwise": ((2, 8, 9, 6), (3, 3, 1, 6), 6),
  "pixel": ((2, 8, 9, 6), (1, 1, 6, 4), 1),
  "small map": ((2, 2, 2, 6), (3, 3, 6, 4), 1),
}
forms = pytest.mark.parametrize("name", FORMS)


def arrays(name, dtype=np.float32):
  shape, kernel_shape, groups = FORMS[name]
  ours, xla = pair(feature_group_count=groups)
  return ours, xla, normal(0, shape, dtype), normal(1, kernel_shape, dtype)


def text(function, x, kernel, platform):
  """The program of outputs and gradients, without names of functions."""

  def loss(x, kernel):
    return jnp.sum(function(x, kernel) ** 2)

  traced = jax.jit(jax.value_and_grad(loss, (0, 1))).trace(x, kernel)
  lowered = traced.lower(lowering_platforms=(platform,))
  return re.sub(r"@\w+", "@", lowered.as_text())


@settings(max_examples=25, deadline=None)
@given(
  size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
  kernel=st.tuples(st.integers(4, 7), st.integers(4, 7)),
  strides=st.tuples(st.integers(2, 3), st.integers(2, 3)),
  padding=st.tuples(pads, pads),
)
@example((12, 13), (7, 7), (2, 2), ((3, 3), (3, 3)))  # ResNet's
@example((11, 12), (3, 3), (2, 2), ((0, 1), (0, 1)))  # EfficientNet's
@example((9, 9), (5, 5), (2, 2), ((-1, 3), (-1, 3)))
def test_stem_of_a_tpu_equals_xla(size, kernel, strides, padding):
  _, xla = pair(window_strides=strides, padding=padding)
  x, w = normal(0, (2, *size, 3)), normal(1, (*kernel, 3, 5))
  try:
    shape = jax.eval_shape(xla, x, w).shape
  except (TypeError, ValueError):  # more is cut off than is there
    assume(False)
  assume(np.prod(shape))
  geometry = convolution.Geometry(
    size, kernel, strides, padding, (1, 1), 1, None
  )

  def form(wanted):
    found = convolution.tpu_form(wanted, geometry, 3, 5)
    assert found is not None
    return found

  y, pull = jax.vjp(xla, x, w)
  assert_close(form("output")(x, w, geometry), y)
  g = normal(2, y.shape)
  assert_close(form("kernel")(x, g, geometry), pull(g)[1])


def test_only_the_stem_is_another_program_for_a_tpu():
  ours, xla = pair(window_strides=(2, 2), padding=((3, 3), (3, 3)))
  x, w = normal(0, (2, 32, 32, 3)), normal(1, (7, 7, 3, 4))
  program = text(ours, x, w, "tpu")
  assert program.count("tensor<4x4x12x4xf32>") > 1
  # That of the kernel's gradient is a product.
  assert program.count("stablehlo.convolution") == 2
  assert text(xla, x, w, "tpu").count("stablehlo.convolution") == 3
  assert "tensor<4x4x12x4xf32>" not in text(xla, x, w, "tpu")
  for platform in ("cpu", "cuda"):
    assert text(ours, x, w, platform) == text(xla, x, w, platform)
  with convolution.plain():
    assert text(ours, x, w, "tpu") == text(xla, x, w, "tpu")


@forms
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_programs_for_other_devices_are_those_of_xla(name, platform):
  ours, xla, x, kernel = arrays(name)
  assert text(ours, x, kernel, platform) == text(xla, x, kernel, platform)


@forms
def test_program_for_a_cpu_is_another(name):
  ours, xla, x, kernel = arrays(name)
  assert text(ours, x, kernel, "cpu") != text(xla, x, kernel, "cpu")
  with convolution.plain():
    assert text(ours, x, kernel, "cpu") == text(xla, x, kernel, "cpu")


@forms
def test_bfloat16(name):
  # XLA rounds now and then on the way.
  assert_same(*arrays(name, jnp.bfloat16), tolerance=2e-2)


@forms
def test_float64(name):
  with jax.enable_x64(True):
    assert_same(*arrays(name, np.float64), tolerance=1e-13)


@forms
def test_second_derivatives(name):
  ours, xla, x, kernel = arrays(name)

  def norm_of_gradients(function, x, kernel):
    gradients = jax.grad(
      lambda x, kernel: jnp.sum(jnp.sin(function(x, kernel))), (0, 1)
    )(x, kernel)
    return sum(jnp.sum(g**2) for g in gradients)

  found, expected = (
    jax.grad(functools.partial(norm_of_gradients, f), (0, 1))(x, kernel)
    for f in (ours, xla)
  )
  jax.tree.map(assert_close, found, expected)


@forms
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, 3)])
def test_vmap(name, axes):
  ours, xla, x, kernel = arrays(name)
  x, kernel = (
    v if axis is None else jnp.stack([v, 2 - v, v / 3], axis)
    for v, axis in zip((x, kernel), axes, strict=True)
  )
  mapped = (jax.vmap(f, axes) for f in (ours, xla))
  assert_same(*mapped, x, kernel)


@forms
def test_remat_and_scan(name):
  ours, xla, x, kernel = arrays(name)
  kernels = jnp.stack([kernel, -kernel / 2])

  def twice(function, x, kernels):
    @jax.checkpoint
    def step(total, kernel):
      return total + jnp.mean(jnp.tanh(function(x, kernel))), None

    return jax.lax.scan(step, jnp.float32(0), kernels)[0]

  found, expected = (
    jax.jit(jax.grad(functools.partial(twice, f), (0, 1)))(x, kernels)
    for f in (ours, xla)
  )
  jax.tree.map(assert_close, found, expected)


def test_other_convolutions_are_left_to_xla():
  x, kernel = normal(0, (2, 5, 6)), normal(1, (3, 6, 4))
  line = Conv(4, (3,))
  variables = line.init(jax.random.key(0), x)
  assert line.apply(variables, x).shape == (2, 5, 4)
  options = {"window_strides": (1,), "padding": "SAME"}
  options["dimension_numbers"] = ("NWC", "WIO", "NWC")
  assert_same(
    functools.partial(convolution.conv_general_dilated, **options),
    functools.partial(jax.lax.conv_general_dilated, **options),
    x,
    kernel,
  )
  ours, xla = pair(lhs_dilation=(2, 2), padding=((0, 0), (0, 0)))
  assert_same(ours, xla, normal(0, (2, 5, 4, 3)), normal(1, (1, 1, 3, 3)))


class Block(nn.Module):
  """A convolution of each form, and one that is XLA's."""

  @nn.compact
  def __call__(self, x):
    x = Conv(8, (1, 1), name="expand")(x)
    x = Conv(8, (3, 3), feature_group_count=8, name="depthwise")(x)
    return Conv(5, (3, 3), strides=2, name="dense")(x)


def test_parameters_and_exports_are_the_same():
  image, model = normal(0, (2, 6, 5, 3)), Block()
  variables = model.init(jax.random.key(0), image)
  with convolution.plain():
    expected = model.init(jax.random.key(0), image)
    outputs = model.apply(variables, image)
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, expected)
  (batch,) = jax.export.symbolic_shape("b")
  exported = jax.export.export(
    jax.jit(functools.partial(model.apply, variables)),
    platforms=("cpu", "cuda", "tpu"),
  )(jax.ShapeDtypeStruct((batch, 6, 5, 3), np.float32))
  assert_close(exported.call(image), outputs)


# On four devices: prints each array's largest difference to one device's, and
# what is sent.
PROGRAM = """
import re
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tests.ops.test_convolution import FORMS, arrays

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
split, whole = (
  NamedSharding(mesh, PartitionSpec(*names)) for names in (("data",), ())
)
for name in FORMS:
  ours, xla, x, kernel = arrays(name)
  x = jnp.concatenate([x, -x, x / 2, x + 1])

  def step(f, x, kernel):
    y, pull = jax.vjp(f, x, kernel)
    return y, *pull(jnp.cos(y))

  args = jax.device_put(x, split), jax.device_put(kernel, whole)
  results = split, split, whole
  ours = jax.jit(step, static_argnums=0, out_shardings=results).lower(
    ours, *args
  ).compile()
  for a, b in zip(ours(*args), step(xla, x, kernel)):
    print(float(abs(a - b).max() / abs(b).max()))
  for shape, kind in re.findall(
    r" = (\\S+) ([a-z-]+)\\(", ours.as_text()
  ):
    if kind in {
      "all-gather", "all-reduce", "all-to-all", "collective-permute",
      "reduce-scatter",
    }:
      print(kind)
"""


def test_a_batch_on_four_devices_sends_sums_of_kernels_alone():
  result = subprocess.run(
    [sys.executable, "-c", PROGRAM],
    env=os.environ
    | {
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    },
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  lines = result.stdout.split()
  sent = [line for line in lines if not line[0].isdigit()]
  assert sent == ["all-reduce"] * len(FORMS)
  differences = [float(line) for line in lines if line[0].isdigit()]
  assert len(differences) == 3 * len(FORMS)
  assert max(differences) < 1e-5
