import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.weighting import make_balancer

ALL = {"a": True, "b": True}


def run(balancer, steps):
  """Weights after each of `steps`: pairs of losses and present."""
  update = jax.jit(lambda *args: balancer.update(*args, {}))
  state, history = balancer.init(), []
  for losses, present in steps:
    state = update(
      state,
      {k: jnp.float32(v) for k, v in losses.items()},
      {k: jnp.bool_(v) for k, v in present.items()},
    )
    weights = balancer.weigh(state)
    history.append({k: float(v) for k, v in weights.items()})
  return history


def test_steps_are_adam_on_the_log_variance(adam):
  rng = np.random.default_rng(0)
  start, lr = {"a": 0.5, "b": 2.0}, 0.1
  steps = [
    (dict(zip("ab", rng.uniform(0.1, 5, 2), strict=True)), ALL)
    for _ in range(20)
  ]
  got = run(make_balancer("uncertainty", start, lr=lr), steps)
  s = {task: -np.log(weight) for task, weight in start.items()}
  optimizers = {task: adam(lr) for task in s}
  for (losses, _), weights in zip(steps, got, strict=True):
    for task in s:
      gradient = 0.5 - np.exp(-s[task]) * losses[task]
      s[task] += optimizers[task](gradient)
      assert weights[task] == pytest.approx(np.exp(-s[task]), rel=1e-4)


def test_weights_tend_to_half_of_one_over_the_loss():
  """The weighted losses come to be equal: w L = 1/2."""
  losses = {"a": 4.0, "b": 0.1}
  got = run(
    make_balancer("uncertainty", {"a": 1.0, "b": 1.0}), [(losses, ALL)] * 600
  )
  assert got[-1] == pytest.approx({"a": 1 / 8, "b": 5.0}, rel=0.02)


def test_form_for_regression_starts_at_half_the_weight(adam):
  """exp(-s) L / 2 + s / 2 with s = 0 moves the weight exp(-s) / 2 alike."""
  losses = [3.0, 0.2, 1.0, 4.0, 0.7]
  got = run(
    make_balancer("uncertainty", {"a": 0.5}, lr=0.1),
    [({"a": loss}, {"a": True}) for loss in losses],
  )
  s, optimizer = 0.0, adam(0.1)
  for loss, weights in zip(losses, got, strict=True):
    s += optimizer(0.5 - 0.5 * np.exp(-s) * loss)
    assert weights["a"] == pytest.approx(0.5 * np.exp(-s), rel=1e-4)


def test_absent_tasks_stay_and_forget_nothing():
  """Steps without a task are as if they had never been."""
  balancer = make_balancer("uncertainty", {"a": 1.0, "b": 1.0}, lr=0.1)
  losses = [2.0, 0.3, 1.5, 0.1]
  always = run(balancer, [({"a": 1.0, "b": x}, ALL) for x in losses])
  absent = ({"a": 1.0, "b": 0.0}, {"a": True, "b": False})
  steps = [step for x in losses for step in (({"a": 1.0, "b": x}, ALL), absent)]
  sometimes = run(balancer, steps)
  assert [w["b"] for w in sometimes[::2]] == [w["b"] for w in always]
  assert [w["b"] for w in sometimes[1::2]] == [w["b"] for w in always]
  assert sometimes[-1]["a"] != always[-1]["a"]


def test_weights_stay_within_the_bound():
  got = run(
    make_balancer("uncertainty", {"a": 1.0, "b": 1.0}, lr=0.5, bound=4.0),
    [({"a": 0.0, "b": 1e6}, ALL)] * 30,
  )
  assert got[-1] == pytest.approx({"a": 4.0, "b": 0.25})


@pytest.mark.parametrize("weight", [0.005, 200.0])
def test_weights_start_within_the_bound(weight):
  with pytest.raises(ValueError, match=r"'b' is .*\[1 / 100.0, 100.0\]"):
    make_balancer("uncertainty", {"a": 1.0, "b": weight})
