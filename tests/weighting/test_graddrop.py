import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.weighting import Trunk, make_balancer

KEY = jax.random.key(0)


def merge(maps, cotangents, key=KEY, leak=0.0):
  """What is left at one map [B, h, w, C] of the tasks' gradients there."""
  balancer = make_balancer(
    "graddrop", dict.fromkeys(cotangents, 1.0), leak=leak
  )
  trunk = Trunk(
    maps={5: jnp.float32(maps)},
    pull_neck=lambda cotangent: (jnp.sum(cotangent[5]), cotangent),
    pull_backbone=lambda cotangent: cotangent,
    last_layer=lambda gradient: gradient,
  )
  (backbone, neck), norms = balancer.merge(
    {task: {5: jnp.float32(g)} for task, g in cotangents.items()}, trunk, key
  )
  assert norms == {}
  np.testing.assert_allclose(
    neck, sum(np.sum(g) for g in cotangents.values()), rtol=1e-4, atol=1e-4
  )
  return np.asarray(backbone[5])


def everywhere(*values, num=20_000):
  """A map [B, 1, num, 1] of one value for each example."""
  return np.tile(np.reshape(values, (-1, 1, 1, 1)), (1, 1, num, 1))


def random_case(seed, batch=2):
  rng = np.random.default_rng(seed)
  shape = (batch, 3, 4, 5)
  return rng.normal(size=shape), {t: rng.normal(size=shape) for t in "abc"}


def test_sign_is_drawn_in_proportion_to_the_gradients():
  """3 against 1: the 3 is kept with the probability 3/4, else the 1."""
  got = merge(everywhere(1.0), {"a": everywhere(3.0), "b": everywhere(-1.0)})
  assert set(got.ravel()) == {3.0, -1.0}
  assert np.mean(got == 3.0) == pytest.approx(0.75, abs=0.015)


def test_mean_over_draws_has_a_closed_form():
  """P of what pulls up and 1 - P of what pulls down, of three tasks."""
  maps, cotangents = random_case(0)
  keys = jax.random.split(KEY, 4000)
  drawn = jax.vmap(
    lambda key: make_balancer("graddrop", dict.fromkeys("abc", 1.0)).merge(
      {task: {5: jnp.float32(g)} for task, g in cotangents.items()},
      Trunk({5: jnp.float32(maps)}, lambda c: ((), c), lambda c: c, dict),
      key,
    )[0][0][5]
  )(keys)
  tasks = np.stack(list(cotangents.values()))
  votes = (tasks * np.sign(maps)).sum(1)
  up = 0.5 * (1 + votes.sum(0) / np.abs(votes).sum(0))
  chance = np.where(votes > 0, up, 1 - up)
  expected = (tasks * chance[:, None]).sum(0)
  scale = np.abs(tasks).sum(0) / np.sqrt(len(keys))
  assert np.all(np.abs(np.mean(drawn, 0) - expected) < 5 * scale)


def test_a_pull_is_with_respect_to_the_sign_of_the_feature():
  """Where the feature is negative the same gradients agree, or do not."""
  up, down = everywhere(1.0, 1.0), everywhere(2.0, -2.0)
  # Both make the feature's size grow on the whole, so nothing is dropped.
  got = merge(everywhere(1.0, -1.0), {"a": everywhere(3, 2), "b": down})
  np.testing.assert_array_equal(got, everywhere(5.0, 0.0))
  # The pulls of "a" on its examples cancel out: it goes with either side.
  got = merge(everywhere(1.0, -1.0), {"a": up, "b": down})
  np.testing.assert_array_equal(got, everywhere(3.0, -1.0))


def test_a_draw_is_for_the_whole_batch():
  """One example against the other two: a task is kept whole or not at all."""
  a, b = everywhere(3.0, -1.0, 2.0), everywhere(-2.0, 0.5, -0.5)
  got = merge(everywhere(1.0, 1.0, 1.0), {"a": a, "b": b})
  kept_a = np.all(got == a, axis=0)
  kept_b = np.all(got == b, axis=0)
  assert np.all(kept_a ^ kept_b)
  assert np.mean(kept_a) == pytest.approx(4 / 6, abs=0.02)


def test_places_and_channels_are_drawn_apart():
  shape = (1, 8, 8, 16)
  got = merge(np.ones(shape), {"a": np.ones(shape), "b": -np.ones(shape)})
  for axes in ((1, 2), (3,)):
    assert np.std(got, axis=axes).min() > 0


def test_levels_are_drawn_apart():
  balancer = make_balancer("graddrop", {"a": 1.0, "b": 1.0})
  ones = {3: jnp.ones((1, 8, 8, 4)), 4: jnp.ones((1, 8, 8, 4))}
  trunk = Trunk(ones, lambda c: ((), c), lambda c: c, dict)
  cotangents = {"a": ones, "b": jax.tree.map(jnp.negative, ones)}
  (got, _), _ = balancer.merge(cotangents, trunk, KEY)
  assert np.any(np.asarray(got[3] != got[4]))


def test_agreement_is_the_plain_sum():
  maps, cotangents = random_case(1)
  agreeing = {t: np.abs(g) * np.sign(maps) for t, g in cotangents.items()}
  for sign in (1, -1):
    got = merge(maps, {t: sign * g for t, g in agreeing.items()})
    np.testing.assert_allclose(got, sign * sum(agreeing.values()), rtol=1e-6)


def test_a_task_alone_is_kept_whole():
  """Also where it pulls down, and where the features are all zero."""
  maps, cotangents = random_case(2)
  maps[:, 0] = 0
  zeros = np.zeros_like(maps)
  got = merge(maps, {"a": cotangents["a"], "b": zeros, "c": zeros})
  np.testing.assert_allclose(got, cotangents["a"], rtol=1e-6)


def test_leak_of_one_is_the_plain_sum():
  maps, cotangents = random_case(3)
  got = merge(maps, cotangents, leak=1.0)
  np.testing.assert_allclose(got, sum(cotangents.values()), rtol=1e-5)


def test_leak_is_the_part_that_is_never_dropped():
  got = merge(
    everywhere(1.0), {"a": everywhere(1.0), "b": everywhere(-1.0)}, leak=0.25
  )
  assert set(got.ravel()) == {1 - 0.25, 0.25 - 1}


def test_votes_of_bfloat16_are_summed_in_float32():
  """512 examples of 1 against one of -256; bfloat16 stops counting at 256."""
  up = jnp.ones((512, 1, 5000, 1), jnp.bfloat16)
  down = jnp.zeros_like(up).at[0].set(-256)
  balancer = make_balancer("graddrop", {"a": 1.0, "b": 1.0})
  trunk = Trunk({5: up}, lambda c: ((), c), lambda c: c, dict)
  (got, _), _ = balancer.merge({"a": {5: up}, "b": {5: down}}, trunk, KEY)
  assert got[5].dtype == jnp.bfloat16
  assert float(np.mean(got[5][1] == 1)) == pytest.approx(2 / 3, abs=0.03)


@pytest.mark.parametrize("leak", [-0.1, 1.5])
def test_leak_is_a_part(leak):
  with pytest.raises(ValueError, match=f"leak is {leak}"):
    make_balancer("graddrop", {"a": 1.0}, leak=leak)
