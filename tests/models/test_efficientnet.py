import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.models.efficientnet import EfficientNet, round_channels

# Channels of levels 2 to 5 and "top", and trainable parameters with a 1000-way
# classifier: published for B0, B7, L2 and the Lites, else timm's count.
PUBLISHED = {
  "b0": ((24, 40, 112, 320, 1280), 5_288_548),
  "b3": ((32, 48, 136, 384, 1536), 12_233_232),
  "b7": ((48, 80, 224, 640, 2560), 66_347_960),
  "l2": ((104, 176, 480, 1376, 5504), 480_309_308),
  "lite0": ((24, 40, 112, 320, 1280), 4_652_008),
  "lite1": ((24, 40, 112, 320, 1280), 5_416_680),
  "lite2": ((24, 48, 120, 352, 1280), 6_092_072),
  "lite3": ((32, 48, 136, 384, 1280), 8_197_096),
  "lite4": ((32, 56, 160, 448, 1280), 13_006_568),
}


def initialised(model, image):
  """Features by name of the level (no tree has ints and strings), variables."""
  features, variables = model.init_with_output(jax.random.key(0), image)
  return {str(level): x for level, x in features.items()}, variables


def shapes(size, **attributes):
  model = EfficientNet(**attributes)
  return jax.eval_shape(lambda: initialised(model, jnp.zeros((2, *size, 3))))


def tiny(**attributes):
  return EfficientNet(width=8, **attributes)


def images(*shape):
  return np.random.default_rng(1).normal(size=(*shape, 3)).astype(np.float32)


@pytest.mark.parametrize("variant", sorted(PUBLISHED))
def test_levels_and_number_of_parameters_are_the_published_ones(variant):
  features, variables = shapes((64, 97), variant=variant, head_conv=True)
  channels, total = PUBLISHED[variant]
  assert {level: x.shape for level, x in features.items()} == {
    level: (2, 64 // stride, -(-97 // stride), size)
    for level, stride, size in zip(
      ("2", "3", "4", "5", "top"), (4, 8, 16, 32, 32), channels, strict=True
    )
  }
  count = sum(x.size for x in jax.tree.leaves(variables["params"]))
  assert count + 1000 * channels[-1] + 1000 == total


def test_without_a_head_convolution_there_is_no_top():
  features, variables = shapes((32, 32))
  assert set(features) == {"2", "3", "4", "5"}
  assert not {"head_conv", "head_norm"} & set(variables["params"])


@pytest.mark.parametrize(
  ("padding", "cells"),
  [
    ("same", [(25, 17), (13, 9), (7, 5), (4, 3)]),
    ("torch", [(25, 17), (13, 9), (7, 5), (4, 3)]),
    ("align", [(24, 16), (12, 8), (6, 4), (3, 2)]),
  ],
)
def test_cells_of_an_odd_size(padding, cells):
  features, _ = shapes((97, 65), padding=padding)
  assert [features[str(level)].shape[1:3] for level in (2, 3, 4, 5)] == cells


@pytest.mark.parametrize(
  ("channels", "factor", "expected"),
  [
    (32, 1.0, 32),
    (32, 4.3, 136),  # 137.6, nearest
    (16, 1.2, 24),  # 19.2: 16 would be below 90 %
    (40, 1.1, 48),  # 44: half up
    (16, 0.1, 8),  # at least 8
  ],
)
def test_rounding_of_channels(channels, factor, expected):
  assert round_channels(channels, factor) == expected


@pytest.mark.parametrize(("variant", "stem"), [("b4", 48), ("lite3", 32)])
def test_all_widths_scale_with_that_of_the_stem(variant, stem):
  assert shapes((32, 32), variant=variant) == shapes(
    (32, 32), variant=variant, width=stem
  )
  features, variables = shapes((32, 32), variant=variant, width=stem // 2)
  assert variables["params"]["stem_conv"]["kernel"].shape[-1] == stem // 2
  half = {"b4": 224, "lite3": 192}[variant]
  assert features["5"].shape[-1] == half


def test_paddings_differ_where_tensorflow_is_asymmetric(draw_variables):
  image = images(1, 32, 32)
  variables = draw_variables(tiny().init, image)

  @jax.jit
  def run(image):
    return {
      padding: tiny(padding=padding).apply(variables, image)[5]
      for padding in ("same", "torch", "align")
    }

  even = run(image)
  np.testing.assert_allclose(even["same"], even["align"], rtol=1e-5, atol=1e-6)
  assert np.abs(even["same"] - even["torch"]).max() > 0.01
  odd = run(images(1, 33, 33))  # levels have 2**k + 1 cells
  np.testing.assert_allclose(odd["same"], odd["torch"], rtol=1e-5, atol=1e-6)
  assert odd["align"].shape[1:3] == (1, 1)
  assert odd["same"].shape[1:3] == (2, 2)


def test_stochastic_depth_is_off_in_evaluation(draw_variables):
  image = images(1, 32, 32)
  variables = draw_variables(tiny().init, image)
  never = tiny(survival_prob=0.0)
  with pytest.raises(flax.errors.InvalidRngError):
    jax.eval_shape(
      lambda: never.apply(
        variables, image, train=True, mutable=["batch_stats"]
      )[0][5]
    )
  outputs = jax.jit(
    lambda: (
      never.apply(variables, image)[5],
      tiny().apply(variables, image)[5],
    )
  )()
  np.testing.assert_array_equal(*outputs)


def test_stochastic_depth_keeps_the_mean_of_each_block(draw_variables):
  model = tiny(survival_prob=0.2)
  image = np.repeat(images(1, 32, 32), 2, axis=0)
  variables = draw_variables(model.init, image)

  def blocks(key):
    """Input and output of block 15, and what it adds if it survives."""
    _, state = model.apply(
      variables,
      image,
      train=True,
      rngs={"dropout": key},
      mutable=["batch_stats", "intermediates"],
      capture_intermediates=lambda module, _: (
        module.name in ("block14", "block15", "project_norm")
      ),
    )
    found = state["intermediates"]
    return (
      found["block14"]["__call__"][0],
      found["block15"]["__call__"][0],
      found["block15"]["project_norm"]["__call__"][0],
    )

  keys = jax.random.split(jax.random.key(2), 200)
  before, after, branch = jax.jit(lambda keys: jax.lax.map(blocks, keys))(keys)
  survival = 1 - 0.8 * 14 / 16
  change = np.asarray(after - before)
  kept = np.abs(change).max((2, 3, 4)) > 0
  # Examples live and die one by one; survivors make up for the others.
  assert np.any(kept[:, 0] != kept[:, 1])
  np.testing.assert_allclose(
    change,
    kept[:, :, None, None, None] * np.asarray(branch) / survival,
    rtol=1e-3,
    atol=1e-4,
  )
  error = np.sqrt(survival * (1 - survival) / kept.size)
  assert abs(kept.mean() - survival) < 4 * error


def test_norm_statistics_move_in_training_only(draw_variables):
  model = tiny(norm_momentum=0.9, survival_prob=1.0)
  image = images(2, 32, 32)
  variables = draw_variables(model.init, image)

  @jax.jit
  def stem_means(variables):
    return {
      train: model.apply(
        variables, image, train=train, mutable=["batch_stats"]
      )[1]["batch_stats"]["stem_norm"]["mean"]
      for train in (False, True)
    }

  before = variables["batch_stats"]["stem_norm"]["mean"]
  means = stem_means(variables)
  np.testing.assert_array_equal(means[False], before)
  assert np.abs(means[True] - before).max() > 1e-3


def test_compute_dtype_leaves_parameters_and_statistics_float32():
  features, variables = shapes((32, 32), head_conv=True, dtype=jnp.bfloat16)
  assert {x.dtype for x in features.values()} == {jnp.dtype(jnp.bfloat16)}
  assert {x.dtype for x in jax.tree.leaves(variables)} == {
    jnp.dtype(jnp.float32)
  }


def test_parameters_have_descriptive_names():
  _, variables = shapes((32, 32), head_conv=True)
  params = variables["params"]
  assert set(params) == {
    *(f"block{i}" for i in range(1, 17)),
    *("stem_conv", "stem_norm", "head_conv", "head_norm"),
  }
  block = {
    *("expand_conv", "expand_norm", "depthwise_conv", "depthwise_norm"),
    *("se_reduce", "se_expand", "project_conv", "project_norm"),
  }
  assert set(params["block2"]) == block
  assert set(params["block1"]) == block - {"expand_conv", "expand_norm"}


@pytest.mark.parametrize(
  ("attributes", "message"),
  [
    ({"variant": "b9"}, r"variant is 'b9'; .*'b0', 'b1'"),
    ({"padding": "valid"}, r"padding is 'valid'; .*'same', 'torch', 'align'"),
  ],
)
def test_unknown_names_are_answered_with_the_known_ones(attributes, message):
  with pytest.raises(ValueError, match=message):
    shapes((32, 32), **attributes)
