import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.weighting import METHODS, Balancer, make_balancer
from must_jax.weighting.balancer import dot

KEY = jax.random.key(0)


def assert_close(got, expected, rtol=1e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6),
    got,
    expected,
  )


def test_fixed_weights_stay():
  balancer = Balancer({"a": 2.0, "b": 0.5})
  state = balancer.init()
  state = balancer.update(state, {}, {}, {})
  assert balancer.weigh(state) == {"a": 2.0, "b": 0.5}


def test_fixed_merge_is_the_gradient_of_the_weighted_sum(toy):
  weights = {"a": 2.0, "b": 0.5, "c": 1.0}
  got, norms = Balancer(weights).merge(*toy.pieces(weights), KEY)
  assert_close(got, toy.plain(weights))
  assert norms == {}


@pytest.mark.parametrize("method", METHODS)
def test_one_task_is_plain_training(method, toy):
  balancer = make_balancer(method, {"b": 0.5})
  state = balancer.init()
  for loss in (3.0, 2.0):
    weights = balancer.weigh(state)
    got, norms = balancer.merge(*toy.pieces(weights), KEY)
    assert_close(got, toy.plain(weights))
    if method != "uncertainty":
      np.testing.assert_allclose(weights["b"], 0.5, rtol=1e-6)
    state = balancer.update(
      state, {"b": jnp.float32(loss)}, {"b": jnp.bool_(True)}, norms
    )


@pytest.mark.parametrize("method", METHODS)
def test_weights_start_as_given(method):
  weights = {"b": 0.5, "a": 2.0}
  balancer = make_balancer(method, weights)
  got = balancer.weigh(balancer.init())
  assert {k: float(v) for k, v in got.items()} == pytest.approx(weights)


@pytest.mark.parametrize("method", METHODS)
def test_compiled_steps_keep_the_types_of_state_and_parameters(method, toy):
  """With activations in bfloat16."""
  balancer = make_balancer(method, {"a": 2.0, "b": 0.5, "c": 1.0})

  @jax.jit
  def step(state, losses, present, key):
    weights = balancer.weigh(state)
    merged, norms = balancer.merge(*toy.pieces(weights, jnp.bfloat16), key)
    return merged, balancer.update(state, losses, present, norms)

  losses = {"a": jnp.float32(1), "b": jnp.float32(2), "c": jnp.float32(3)}
  present = jax.tree.map(lambda x: x < 3, losses)
  state = balancer.init()
  merged, new_state = step(state, losses, present, KEY)
  assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)
  for old, new in zip(*map(jax.tree.leaves, (state, new_state)), strict=True):
    assert new.dtype == jnp.asarray(old).dtype
  plain = toy.plain(balancer.weigh(state))
  assert jax.tree.structure(merged) == jax.tree.structure(plain)
  assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype("float32")}
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((merged, new_state)))


def test_dot_of_bfloat16_is_summed_in_float32():
  """A sum of ones in bfloat16 ends at 256."""
  ones = {"x": jnp.ones((1000,), jnp.bfloat16), "y": jnp.ones((3, 1))}
  assert dot(ones, ones) == 1003
  assert dot({}, {}) == 0


def test_a_method_takes_the_options_that_it_has():
  options = {"lr": 0.5, "alpha": 2.0, "bound": 9.0, "leak": 0.25}
  made = {m: make_balancer(m, {"a": 1.0}, **options) for m in METHODS}
  assert (made["uncertainty"].lr, made["uncertainty"].bound) == (0.5, 9.0)
  assert (made["gradnorm"].lr, made["gradnorm"].alpha) == (0.5, 2.0)
  assert made["graddrop"].leak == 0.25


def test_unknown_method():
  with pytest.raises(ValueError, match=r"'mgda'; expected one of .*'pcgrad'"):
    make_balancer("mgda", {"a": 1.0})


@pytest.mark.parametrize("method", ["uncertainty", "gradnorm"])
@pytest.mark.parametrize(
  ("weight", "lr", "message"),
  [
    (0.0, 0.1, "expected positive ones"),
    (-1.0, 0.1, "expected positive ones"),
    (1.0, 0.0, "Learning rate .* is 0.0"),
  ],
)
def test_learned_weights_need_positive_numbers(method, weight, lr, message):
  with pytest.raises(ValueError, match=message):
    make_balancer(method, {"a": 1.0, "b": weight}, lr=lr)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_step_does_not_change_the_type_of_the_state(method):
  """Else the train step is compiled again."""
  balancer = make_balancer(method, {"a": 1.0, "b": 2.0})
  state = balancer.init()
  ones = {"a": jnp.ones(()), "b": jnp.ones(())}
  flags = {"a": jnp.array(True), "b": jnp.array(False)}
  after = balancer.update(state, ones, flags, ones)
  for before, now in zip(
    jax.tree.leaves(state), jax.tree.leaves(after), strict=True
  ):
    assert jax.typeof(before) == jax.typeof(now)
