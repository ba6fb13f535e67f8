import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def test_polynomial_schedule_ends_at_zero():
  schedule = make_schedule(
    0.02, 110, schedule="polynomial", warmup_steps=10, warmup_lr=0.01
  )
  table = {0: 0.01, 5: 0.015, 10: 0.02, 60: 0.02 * 0.5**0.9}
  for step, value in (table | {109: 0.02 * 0.01**0.9, 110: 0.0}).items():
    assert float(schedule(step)) == pytest.approx(value, rel=1e-4, abs=1e-8)


LRS = (0.1, 0.2, 0.05)
DECAY = 0.5


def sgd(w, g, state, lr, decay, nesterov=False):
  """TensorFlow's MomentumOptimizer with L2 in the loss."""
  g = g + decay * w
  state["v"] = 0.9 * state.get("v", 0) + g
  return w - lr * (g + 0.9 * state["v"] if nesterov else state["v"])


def adamw(w, g, state, lr, decay):
  """Loshchilov & Hutter, algorithm 2, the decay times the learning rate."""
  t = state["t"] = state.get("t", 0) + 1
  m = state["m"] = 0.8 * state.get("m", 0) + 0.2 * g
  v = state["v"] = 0.95 * state.get("v", 0) + 0.05 * g**2
  adam = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
  return w - lr * (adam + decay * w)


def lars(w, g, state, lr, decay, nesterov=False):
  """SimCLR's LARSOptimizer with classic momentum; `decay` marks kernels."""
  g = g + decay * w
  norms = np.linalg.norm(w), np.linalg.norm(g)
  trust = 1e-3 * norms[0] / norms[1] if decay and all(norms) else 1.0
  v = state["v"] = 0.9 * state.get("v", 0) + lr * trust * g
  return w - (0.9 * v + lr * trust * g if nesterov else v)


def rmsprop(w, g, state, lr, decay):
  """TensorFlow 1's RMSPropOptimizer: mean squares begin at 1."""
  g = g + decay * w
  s = state["s"] = 0.9 * state.get("s", 1) + 0.1 * g**2
  v = state["v"] = 0.9 * state.get("v", 0) + lr * g / np.sqrt(s + 1e-3)
  return w - v


@pytest.mark.parametrize(
  ("oracle", "options"),
  [
    (sgd, {}),
    (sgd, {"nesterov": True}),
    (adamw, {"betas": (0.8, 0.95)}),
    (lars, {}),
    (lars, {"nesterov": True}),
    (rmsprop, {}),
  ],
)
def test_three_steps_are_the_published_ones(oracle, options):
  """Kernels, of which one is zero, decay and adapt; biases do not."""
  rng = np.random.default_rng(0)
  arrays = {
    (f"head_{name}", leaf): rng.normal(size=(2, 3))
    for name in "ab"
    for leaf in ("kernel", "bias")
  }
  arrays["head_b", "kernel"] *= 0
  params = {}
  for (part, leaf), value in arrays.items():
    params.setdefault(part, {"conv": {}})["conv"][leaf] = jnp.float32(value)
  optimizer = make_optimizer(
    lambda step: jnp.array(LRS)[step],
    name=oracle.__name__,
    weight_decay=DECAY,
    **options,
  )
  state, states = optimizer.init(params), {key: {} for key in arrays}
  nesterov = {k: v for k, v in options.items() if k == "nesterov"}
  for lr in LRS:
    gradients = {key: rng.normal(size=(2, 3)) for key in arrays}
    grads = jax.tree_util.tree_map_with_path(
      lambda path, _, g=gradients: jnp.float32(g[path[0].key, path[-1].key]),
      params,
    )
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    for key in arrays:
      decay = DECAY if key[1] == "kernel" else 0.0
      arrays[key] = oracle(
        arrays[key], gradients[key], states[key], lr, decay, **nesterov
      )
      got = params[key[0]]["conv"][key[1]]
      np.testing.assert_allclose(got, arrays[key], rtol=1e-5, atol=1e-6)


def test_unknown_optimizer():
  with pytest.raises(ValueError, match="'adam'; expected 'sgd', 'adamw'"):
    make_optimizer(lambda step: 0.1, name="adam")


def test_clipping_bounds_the_step():
  optimizer = make_optimizer(lambda step: 1.0, momentum=0.0, clip_norm=1.0)
  params = {"kernel": jnp.zeros(2)}
  updates, _ = optimizer.update(
    {"kernel": jnp.array([30.0, 40.0])}, optimizer.init(params), params
  )
  np.testing.assert_allclose(updates["kernel"], [-0.6, -0.8], rtol=1e-6)


def test_unknown_schedule():
  with pytest.raises(ValueError, match="'cosine', 'polynomial' or 'steps'"):
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
    params,
    parts={"backbone": 0.5, "heads": 2.0},
    layer_decay=0.1,
    layers=[(name,) for name in names[1:]],
  )
  for i, name in enumerate(reversed(names)):
    got = float(updates["backbone"][name]["kernel"])
    assert got == pytest.approx(-0.5 * 0.1**i)
  assert float(updates["fpn"]["p2"]["kernel"]) == -1
  assert float(updates["head_a"]["x"]["kernel"]) == -2


def test_modules_of_a_stem_are_one_layer():
  params = {"backbone": tree("conv1", "norm1", "c2_block1"), "fpn": tree("p")}
  layers = [("c2_block1",)]
  updates = updates_of(params, layer_decay=0.5, layers=layers)["backbone"]
  assert float(updates["conv1"]["kernel"]) == -0.5
  assert float(updates["norm1"]["kernel"]) == -0.5
  assert float(updates["c2_block1"]["kernel"]) == -1


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "rmsprop"])
def test_factor_zero_leaves_every_bit(name):
  """With weight decay, momentum, clipping and gradients of their own."""
  rng = np.random.default_rng(0)
  params = {
    part: {"conv": {k: jnp.float32(rng.normal(size=50)) for k in leaves}}
    for part, leaves in {
      "backbone": ("kernel", "bias"),
      "fpn": ("kernel", "scale"),
      "head_a": ("kernel",),
    }.items()
  }
  optimizer = make_optimizer(
    lambda step: 0.1,
    name=name,
    weight_decay=0.5,
    clip_norm=1.0,
    parts={"backbone": 0.0},
    layer_decay=0.5,
  )
  start, state = params, optimizer.init(params)
  for _ in range(3):
    grads = jax.tree.map(lambda x: jnp.float32(rng.normal(size=50)), params)
    updates, state = jax.jit(optimizer.update)(grads, state, params)
    params = optax.apply_updates(params, updates)
  for part in params:
    for leaf, value in params[part]["conv"].items():
      same = value == start[part]["conv"][leaf]
      assert np.all(same) if part == "backbone" else not np.any(same)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "rmsprop"])
def test_factors_scale_the_step_of_any_optimizer(name):
  params = {"backbone": tree("conv1"), "head_a": tree("x")}
  options = {"name": name, "momentum": 0.9, "weight_decay": 0.1}
  schedule = make_schedule(0.1, 10, schedule="cosine")
  steps = []
  for parts in ({}, {"backbone": 0.25}):
    optimizer = make_optimizer(schedule, parts=parts, **options)
    state = optimizer.init(params)
    for _ in range(2):
      updates, state = optimizer.update(params, state, params)
    steps.append(updates)
  assert float(steps[1]["backbone"]["conv1"]["kernel"]) == pytest.approx(
    0.25 * float(steps[0]["backbone"]["conv1"]["kernel"])
  )
  assert steps[1]["head_a"] == steps[0]["head_a"]


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "lars"])
def test_the_decay_is_part_of_the_clipped_gradient(name):
  """A bias is left of the norm 1 what the decayed kernel does not take."""
  params = {"kernel": jnp.array([40.0]), "bias": jnp.array([0.0])}
  grads = {"kernel": jnp.array([0.0]), "bias": jnp.array([15.0])}
  clipped, free = (
    make_optimizer(
      lambda step: 1.0, name=name, momentum=0.0, weight_decay=0.5, clip_norm=c
    )
    for c in (1.0, 0.0)
  )
  got, _ = clipped.update(grads, clipped.init(params), params)
  expected, _ = free.update(
    {"kernel": jnp.array([0.8 - 20]), "bias": jnp.array([0.6])},
    free.init(params),
    params,
  )
  np.testing.assert_allclose(got["bias"], expected["bias"], rtol=1e-6)
  np.testing.assert_allclose(got["kernel"], expected["kernel"], rtol=1e-5)


def test_the_decay_of_adamw_is_not_clipped():
  optimizer = make_optimizer(
    lambda step: 0.1, name="adamw", weight_decay=0.5, clip_norm=1e-3
  )
  params = {"kernel": jnp.array([40.0]), "bias": jnp.array([40.0])}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 40)
  assert float(updates["bias"][0]) == 0
