import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.weighting import Trunk, make_balancer

TASKS = "abc"


def run(balancer, steps):
  """Weights [steps, T] after each of steps (losses, norms, present), each [T].

  Norms are those of the unweighted losses.
  """
  tasks = sorted(balancer.weights)

  def by_task(values):
    return dict(zip(tasks, values, strict=True))

  @jax.jit
  def update(state, losses, norms, present):
    weights = balancer.weigh(state)
    weighted = {task: weights[task] * by_task(norms)[task] for task in tasks}
    return balancer.update(state, by_task(losses), by_task(present), weighted)

  state, history = balancer.init(), []
  for losses, norms, present in steps:
    state = update(
      state, jnp.float32(losses), jnp.float32(norms), jnp.array(present)
    )
    history.append([float(balancer.weigh(state)[task]) for task in tasks])
  return np.array(history)


def random_steps(num, absent=0.0):
  rng = np.random.default_rng(1)
  return [
    (
      rng.uniform(0.1, 3, 3),
      rng.uniform(0.1, 3, 3),
      rng.uniform(size=3) >= absent,
    )
    for _ in range(num)
  ]


def test_norms_are_of_the_last_layer():
  """Of two quadratics |w n v s x - t|^2 / 2 with respect to v."""
  stem, last, neck = 2.0, jnp.array([3.0, -1.0]), 0.5
  targets = {"a": np.array([1.0, 0.0]), "b": np.array([0.0, 4.0])}
  weights = {"a": 2.0, "b": 0.25}
  params = {"stem": jnp.float32(stem), "last": last}
  maps, pull_backbone = jax.vjp(
    lambda p: {5: p["stem"] * p["last"][None, None, None]}, params
  )
  features, pull_neck = jax.vjp(
    lambda p, maps: jax.tree.map(lambda x: p * x, maps), jnp.float32(neck), maps
  )
  trunk = Trunk(
    maps, pull_neck, lambda c: pull_backbone(c)[0], lambda grad: grad["last"]
  )
  cotangents = {
    task: jax.tree.map(
      lambda x, t=task: weights[t] * (x - targets[t]), features
    )
    for task in targets
  }
  balancer = make_balancer("gradnorm", weights)
  _, norms = balancer.merge(cotangents, trunk, jax.random.key(0))
  for task, target in targets.items():
    residual = neck * stem * np.asarray(last) - target
    expected = weights[task] * neck * stem * np.linalg.norm(residual)
    assert float(norms[task]) == pytest.approx(expected, rel=1e-6)


def test_merge_is_the_gradient_of_the_weighted_sum(toy):
  weights = {"a": 2.0, "b": 0.5, "c": 1.0}
  got, _ = make_balancer("gradnorm", weights).merge(
    *toy.pieces(weights), jax.random.key(0)
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5),
    got,
    toy.plain(weights),
  )


def test_steps_are_those_of_the_paper(adam):
  """Three tasks from weights of 1, in float64."""
  steps = random_steps(20)
  balancer = make_balancer(
    "gradnorm", dict.fromkeys(TASKS, 1.0), lr=0.05, alpha=1.5
  )
  got = run(balancer, steps)
  w, optimizers = np.ones(3), [adam(0.05) for _ in TASKS]
  first = steps[0][0]
  for (losses, norms, _), weights in zip(steps, got, strict=True):
    ratio = losses / first
    rate = ratio / ratio.mean()
    target = (w * norms).mean() * rate**1.5
    gradient = norms * np.sign(w * norms - target)
    w = w + [step(g) for step, g in zip(optimizers, gradient, strict=True)]
    w = 3 * w / w.sum()
    np.testing.assert_allclose(weights, w, rtol=1e-4)


def test_slow_tasks_gain_and_steep_ones_lose():
  balancer = make_balancer("gradnorm", {"a": 1.0, "b": 1.0}, lr=0.1)
  both = (True, True)
  slow = run(balancer, [((1, 1), (1, 1), both), ((1, 0.5), (1, 1), both)])
  np.testing.assert_allclose(slow[0], [1, 1])
  assert slow[1, 0] > 1 > slow[1, 1]
  steep = run(balancer, [((1, 1), (3, 1), both)])
  np.testing.assert_allclose(steep, [[0.9, 1.1]], rtol=1e-5)


def test_weights_go_in_proportion_to_their_mean():
  """Ten times the starting weights are ten times the weights."""
  steps = random_steps(10, absent=0.3)
  start = {"a": 0.5, "b": 1.0, "c": 1.5}
  got = run(make_balancer("gradnorm", start), steps)
  tenfold = {task: 10 * weight for task, weight in start.items()}
  np.testing.assert_allclose(
    run(make_balancer("gradnorm", tenfold), steps), 10 * got, rtol=1e-4
  )


def test_weights_keep_their_sum_and_absent_tasks_their_weight():
  steps = random_steps(60, absent=0.4)
  start = {"a": 0.5, "b": 2.0, "c": 0.5}
  got = run(make_balancer("gradnorm", start, lr=0.1), steps)
  np.testing.assert_allclose(got.sum(1), 3.0, rtol=1e-5)
  before = np.concatenate([[[0.5, 2.0, 0.5]], got[:-1]])
  absent = ~np.array([present for *_, present in steps])
  assert absent.any(0).all()
  np.testing.assert_allclose(got[absent], before[absent], rtol=1e-6)


def test_absent_tasks_are_in_no_mean():
  """Two tasks of three are as two tasks."""
  rng = np.random.default_rng(2)
  steps = [(rng.uniform(1, 3, 2), rng.uniform(1, 3, 2)) for _ in range(10)]
  two = run(
    make_balancer("gradnorm", {"a": 1.0, "b": 1.0}),
    [(*step, (True, True)) for step in steps],
  )
  three = run(
    make_balancer("gradnorm", dict.fromkeys(TASKS, 1.0)),
    [
      ((*losses, 0.0), (*norms, 0.0), (True, True, False))
      for losses, norms in steps
    ],
  )
  np.testing.assert_allclose(three, np.c_[two, np.ones(10)], rtol=1e-6)


def test_first_loss_is_that_of_the_first_step_with_labels():
  balancer = make_balancer("gradnorm", {"a": 1.0, "b": 1.0})
  state = balancer.init()
  for loss, present in ((0.0, False), (4.0, True), (2.0, True)):
    state = balancer.update(
      state,
      {"a": jnp.float32(5), "b": jnp.float32(loss)},
      {"a": jnp.bool_(True), "b": jnp.bool_(present)},
      {"a": jnp.float32(1), "b": jnp.float32(1)},
    )
  np.testing.assert_array_equal(state["first_losses"], [5, 4])


def test_weights_stay_positive():
  steps = [((1, 1, 1), (1e6, 1, 1), (True,) * 3)] * 100
  got = run(make_balancer("gradnorm", dict.fromkeys(TASKS, 1.0), lr=0.2), steps)
  assert (got > 0).all()
  assert got[-1, 0] == pytest.approx(1e-3, rel=0.2)


@pytest.mark.parametrize("losses", [(0, 0, 0), (0, 1, 2), (-1, 1, 1)])
def test_weights_stay_finite_without_losses_and_norms(losses):
  """No labels at all; nothing to learn; a loss that is negative."""
  steps = [((1, 1, 1), (1, 1, 1), (True,) * 3)] + [
    (losses, (0, 0, 0), present)
    for present in ((True,) * 3, (False,) * 3, (True,) * 3)
  ]
  got = run(make_balancer("gradnorm", dict.fromkeys(TASKS, 1.0)), steps)
  np.testing.assert_allclose(got.sum(1), 3, rtol=1e-5)
