import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.train.optimizer import make_optimizer, make_schedule


def test_cosine_schedule_with_warmup():
  schedule = make_schedule(
    1.0, 110, schedule="cosine", warmup_steps=10, warmup_lr=0.5
  )
  expected = {
    0: 0.5,
    5: 0.75,
    10: 1.0,
    60: 0.5 * (1 + np.cos(np.pi * 0.5)),
    110: 0.0,
  }
  for step, value in expected.items():
    assert float(schedule(step)) == pytest.approx(value, abs=1e-6)


def test_steps_schedule_decays_at_fractions_of_the_run():
  schedule = make_schedule(
    0.32,
    100,
    schedule="steps",
    warmup_steps=10,
    boundaries=(0.5, 0.9),
    decay=0.1,
  )
  table = {10: 0.32, 49: 0.32, 51: 0.032, 89: 0.032, 91: 0.0032}
  for step, value in table.items():
    assert float(schedule(step)) == pytest.approx(value, rel=1e-5)


def test_decay_is_coupled_and_on_kernels_only():
  """Two steps of SGD with momentum against plain numpy."""
  optimizer = make_optimizer(
    lambda step: 0.1, momentum=0.9, weight_decay=0.5, clip_norm=0.0
  )
  params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
  grads = {"kernel": jnp.array([1.0]), "bias": jnp.array([1.0])}
  state = optimizer.init(params)
  kernel, bias, kernel_m, bias_m = 2.0, 2.0, 0.0, 0.0
  for _ in range(2):
    updates, state = optimizer.update(grads, state, params)
    params = {k: params[k] + updates[k] for k in params}
    kernel_m = 0.9 * kernel_m + 1.0 + 0.5 * kernel
    bias_m = 0.9 * bias_m + 1.0
    kernel, bias = kernel - 0.1 * kernel_m, bias - 0.1 * bias_m
  assert float(params["kernel"][0]) == pytest.approx(kernel)
  assert float(params["bias"][0]) == pytest.approx(bias)


def test_clipping_bounds_the_step():
  optimizer = make_optimizer(lambda step: 1.0, momentum=0.0, clip_norm=1.0)
  params = {"kernel": jnp.zeros(2)}
  updates, _ = optimizer.update(
    {"kernel": jnp.array([30.0, 40.0])}, optimizer.init(params), params
  )
  np.testing.assert_allclose(updates["kernel"], [-0.6, -0.8], rtol=1e-6)


def test_unknown_schedule():
  with pytest.raises(ValueError, match="'cosine' or 'steps'"):
    make_schedule(1.0, 10, schedule="linear")


def updates_of(params, **options):
  """One step of plain SGD with gradient 1 everywhere."""
  optimizer = make_optimizer(lambda step: 1.0, momentum=0.0, **options)
  grads = jax.tree.map(jnp.ones_like, params)
  return optimizer.update(grads, optimizer.init(params), params)[0]


def tree(*names):
  return {name: {"kernel": jnp.ones(())} for name in names}


@pytest.mark.parametrize(
  "names",
  [
    ("conv1", "c2_block1", "c2_block2", "c3_block1", "c5_block10"),
    ("stem_conv", "block1", "block2", "block10", "head_conv"),
    ("patch_embed", "c2_block1", "c4_block9", "block1", "c5_reassemble"),
  ],
)
def test_layers_of_backbones_decay_towards_the_stem(names):
  params = {"backbone": tree(*names), "fpn": tree("p2"), "head_a": tree("x")}
  updates = updates_of(
    params, parts={"backbone": 0.5, "heads": 2.0}, layer_decay=0.1
  )
  for i, name in enumerate(reversed(names)):
    got = float(updates["backbone"][name]["kernel"])
    assert got == pytest.approx(-0.5 * 0.1**i)
  assert float(updates["fpn"]["p2"]["kernel"]) == -1
  assert float(updates["head_a"]["x"]["kernel"]) == -2


def test_modules_of_a_stem_are_one_layer():
  params = {"backbone": tree("conv1", "norm1", "c2_block1"), "fpn": tree("p")}
  updates = updates_of(params, layer_decay=0.5)["backbone"]
  assert float(updates["conv1"]["kernel"]) == -0.5
  assert float(updates["norm1"]["kernel"]) == -0.5
  assert float(updates["c2_block1"]["kernel"]) == -1


def test_factor_zero_stops_weight_decay_as_well():
  params = {"backbone": tree("conv1"), "head_a": tree("x")}
  updates = updates_of(params, parts={"backbone": 0.0}, weight_decay=0.5)
  assert float(updates["backbone"]["conv1"]["kernel"]) == 0
  assert float(updates["head_a"]["x"]["kernel"]) == -1.5
