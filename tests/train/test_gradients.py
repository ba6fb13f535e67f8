"""Gradients task by task, put together, are the gradient of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax import weighting
from must_jax.config import base_config, small, task
from must_jax.losses.contrastive import nt_xent
from must_jax.tasks.task import sum_of_means
from must_jax.train import mesh as mesh_lib
from must_jax.train.build import build_model, build_tasks
from must_jax.train.gradients import make_gradients
from must_jax.train.state import init_variables

SIZE = 64
BATCH = 8


def make_config(**model):
  config = base_config()
  config.tasks.kind = task("classification", labels={}, classes=("a", "b", "c"))
  config.tasks.pixels = task(
    "segmentation", labels={}, classes=("a", "b", "c", "d")
  )
  config.tasks.range = task("depth", labels={})
  config = small(config)
  config.model.update({"width": 8, "channels": 8, "norm_epsilon": 0.1} | model)
  return config


def make_batch(present):
  """Random images; `present` says for each task which have labels."""
  rng = np.random.default_rng(0)
  maps = (BATCH, SIZE // 2, SIZE // 2)
  labels = {
    "kind": {"classes": {"probs": np.eye(3)[rng.integers(0, 3, BATCH)]}},
    "pixels": {"segmentation": {"classes": rng.integers(0, 4, maps)}},
    "range": {
      "depth": {
        "values": rng.uniform(1, 3, maps),
        "valid": np.ones(maps, bool),
      }
    },
  }
  tasks = build_tasks(make_config())
  for name, fields in labels.items():
    (field,) = tasks[name].fields
    (arrays,) = fields.values()
    arrays["present"] = np.array(present[name])
    labels[name] = {field: arrays}
  return jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float32 if x.dtype == float else None),
    {
      "image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
      "valid": np.ones(BATCH, bool),
      "labels": labels,
    },
  )


EVERYWHERE = dict.fromkeys(("kind", "pixels", "range"), [True] * BATCH)
SOMEWHERE = {
  "kind": [True] * BATCH,
  "pixels": [True, False] * (BATCH // 2),
  "range": [False] * BATCH,
}
WEIGHTS = {"kind": 0.5, "pixels": 2.0, "range": 3.0}


def setup(**model):
  config = make_config(**model)
  tasks = build_tasks(config)
  model = build_model(config, tasks)
  variables = jax.jit(lambda key: init_variables(model, (SIZE, SIZE), key))(
    jax.random.key(0)
  )
  return model, tasks, variables


def gradients(setup, batch, method="fixed", accumulate=1):
  model, tasks, variables = setup
  weights = {name: WEIGHTS.get(name, 1.0) for name in tasks}
  balancer = weighting.make_balancer(method, weights)
  function = make_gradients(
    model, tasks, balancer, mesh_lib.make_mesh(), accumulate
  )
  return jax.jit(function)(
    variables["params"],
    variables["batch_stats"],
    batch,
    balancer.weigh(balancer.init()),
    jax.random.key(1),
  )


def assert_close(got, expected, rtol=2e-4):
  """Arrays of trees, to a part of the largest value of each array."""

  def check(a, b):
    np.testing.assert_allclose(
      a, b, atol=rtol * (float(jnp.abs(b).max()) + 1e-9)
    )

  jax.tree.map(check, got, expected)


@pytest.mark.parametrize("present", [EVERYWHERE, SOMEWHERE])
@pytest.mark.parametrize("options", [{}, {"remat": (2, 4, 5)}])
def test_the_sum_is_the_gradient_of_the_weighted_sum(present, options):
  batch = make_batch(present)
  model, tasks, variables = setup()

  def loss(params):
    outputs, mutated = model.apply(
      {"params": params, "batch_stats": variables["batch_stats"]},
      batch["image"],
      batch["labels"],
      train=True,
      mutable=["batch_stats"],
    )
    losses = {
      name: sum_of_means(task.loss(outputs[name], batch))
      for name, task in tasks.items()
    }
    total = sum(WEIGHTS[name] * losses[name] for name in tasks)
    return total, (losses, mutated["batch_stats"])

  grads, (losses, stats) = jax.jit(jax.grad(loss, has_aux=True))(
    variables["params"]
  )
  result = gradients(setup(**options), batch)
  assert_close(result.grads, grads)
  assert_close(result.batch_stats, stats)
  assert_close(result.losses, losses)
  for name in tasks:
    assert bool(result.present[name]) == any(present[name])
    assert (float(result.feature_norms[name]) > 0) == any(present[name])


@pytest.mark.parametrize("present", [EVERYWHERE, SOMEWHERE])
def test_gradnorm_measures_where_all_tasks_read(present):
  result = gradients(setup(max_level=5), make_batch(present), "gradnorm")
  for name, norm in result.norms.items():
    assert (float(norm) > 0) == any(present[name])


@pytest.mark.parametrize(
  "labelled", [[True] * 8, [True] * 5 + [False] * 3, [True] + [False] * 7]
)
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_add_up_to_the_batch(labelled, parts):
  model, tasks, variables = setup()
  # A part's norms have other statistics than the batch's, so none here.
  model = model.clone(frozen=("backbone", "fpn"))
  names = {"backbone", "fpn", "head_kind"}
  made = (
    model,
    {"kind": tasks["kind"]},
    {
      kind: {name: x for name, x in tree.items() if name in names}
      for kind, tree in variables.items()
    },
  )
  batch = make_batch(EVERYWHERE | {"kind": labelled})
  batch["labels"] = {"kind": batch["labels"]["kind"]}
  whole = gradients(made, batch)
  split = gradients(made, batch, accumulate=parts)
  kernel = whole.grads["head_kind"]["logits"]["kernel"]
  assert float(jnp.abs(kernel).max()) > 0
  assert_close(split.grads["head_kind"], whole.grads["head_kind"], 1e-5)
  assert_close(split.losses, whole.losses, 1e-5)
  assert_close(split.feature_norms, whole.feature_norms, 1e-5)


def test_views_of_an_image_are_rows_of_their_own():
  config = base_config()
  config.tasks.pair = task("contrastive", labels={})
  config = small(config)
  config.model.width = 8
  tasks = build_tasks(config)
  model = build_model(config, tasks)
  variables = init_variables(model, (32, 32), jax.random.key(0))
  images = np.random.default_rng(0).integers(0, 256, (4, 2, 32, 32, 3))
  batch = {
    "image": jnp.array(images, jnp.uint8),
    "valid": jnp.array([True, True, False, True]),
    "labels": {},
  }
  result = gradients((model, tasks, variables), batch)
  flat = batch["image"].reshape(8, 32, 32, 3)
  outputs, _ = model.apply(variables, flat, train=True, mutable=["batch_stats"])
  embeddings = outputs["pair"]["embedding"].reshape(4, 2, -1)
  expected = nt_xent(embeddings, batch["valid"], 0.1).compute()
  np.testing.assert_allclose(result.losses["pair"], expected, rtol=1e-4)
  assert bool(result.present["pair"])


@pytest.mark.parametrize("method", sorted(weighting.METHODS))
def test_every_method_keeps_the_tree_of_the_parameters(method):
  made = setup()
  result = gradients(made, make_batch(SOMEWHERE), method)
  params = made[2]["params"]
  assert jax.tree.structure(result.grads) == jax.tree.structure(params)
  assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(result.grads))


def test_remat_computes_the_chosen_levels_again():
  batch = make_batch(EVERYWHERE)

  def barriers(options):
    model, tasks, variables = setup(**options)
    balancer = weighting.make_balancer("fixed", WEIGHTS)
    function = make_gradients(model, tasks, balancer, mesh_lib.make_mesh())
    lowered = jax.jit(function).lower(
      variables["params"],
      variables["batch_stats"],
      batch,
      balancer.weigh({}),
      jax.random.key(1),
    )
    return lowered.as_text().count("optimization_barrier")

  assert barriers({}) == 0
  assert barriers({"remat": (3,)}) > 0
