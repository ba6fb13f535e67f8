"""A model of two layers, a neck and quadratic losses."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.weighting import Trunk


def run_backbone(backbone, image):
  maps = image * backbone["stem"]["kernel"] * backbone["last"]["kernel"]
  return {3: maps, 4: maps[:, ::2, ::2]}


def run_neck(neck, maps):
  return {level: neck["kernel"] * x for level, x in maps.items()}


def loss_of(features, target):
  return sum(
    jnp.mean(0.5 * jnp.square(x - target).astype(jnp.float32))
    for x in features.values()
  )


@pytest.fixture
def toy():
  """`pieces(weights)`: cotangents and trunk; `plain(weights)`: `jax.grad`."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  image = jnp.abs(draw(2, 4, 4, 3))
  backbone = {"stem": {"kernel": draw(3)}, "last": {"kernel": draw(3)}}
  neck = {"kernel": draw(3)}
  pull = 5 * draw(3)
  targets = {"a": pull, "b": draw(3) - 2 * pull, "c": draw(3)}

  def pieces(weights, dtype=jnp.float32):
    """Cotangents of the weighted losses and the trunk."""

    def cast(tree):
      return jax.tree.map(lambda x: x.astype(dtype), tree)

    maps, pull_backbone = jax.vjp(
      lambda p: run_backbone(cast(p), cast(image)), backbone
    )
    features, pull_neck = jax.vjp(
      lambda p, maps: run_neck(cast(p), maps), neck, maps
    )
    cotangents = {
      task: jax.grad(lambda f, t=task: weights[t] * loss_of(f, targets[t]))(
        features
      )
      for task in weights
    }
    trunk = Trunk(
      maps=maps,
      pull_neck=pull_neck,
      pull_backbone=lambda cotangent: pull_backbone(cotangent)[0],
      last_layer=lambda gradient: gradient["last"],
    )
    return cotangents, trunk

  def losses(params):
    features = run_neck(params[1], run_backbone(params[0], image))
    return {task: loss_of(features, t) for task, t in targets.items()}

  def plain(weights):
    """Gradient of the weighted sum, for backbone and neck."""
    return jax.grad(
      lambda params: sum(w * losses(params)[t] for t, w in weights.items())
    )((backbone, neck))

  return types.SimpleNamespace(pieces=pieces, plain=plain)


@pytest.fixture
def identity():
  """A trunk whose cotangents {"backbone", "neck"} are the gradients."""
  return Trunk(
    maps={},
    pull_neck=lambda cotangent: (cotangent["neck"], cotangent["backbone"]),
    pull_backbone=lambda cotangent: cotangent,
    last_layer=lambda gradient: gradient,
  )


@pytest.fixture
def adam():
  """`adam(gradient)`: steps of Adam in float64, one scalar (Kingma & Ba)."""

  def make(lr):
    state = {"m": 0.0, "v": 0.0, "t": 0}

    def step(gradient):
      state["t"] += 1
      state["m"] = 0.9 * state["m"] + 0.1 * gradient
      state["v"] = 0.999 * state["v"] + 0.001 * gradient**2
      m = state["m"] / (1 - 0.9 ** state["t"])
      v = state["v"] / (1 - 0.999 ** state["t"])
      return -lr * m / (np.sqrt(v) + 1e-8)

    return step

  return make
