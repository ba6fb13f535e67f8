import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.models.fpn import FPN, fuse

CHANNELS = {2: 2, 3: 3, 4: 4, 5: 5}


def backbone_features(size, seed=0):
  rng = np.random.default_rng(seed)
  return {
    level: rng.normal(
      size=(2, -(-size[0] // 2**level), -(-size[1] // 2**level), channels)
    ).astype(np.float32)
    for level, channels in CHANNELS.items()
  }


def conv(x, params, stride=1):
  kernel = np.asarray(params["kernel"], np.float64)
  k = kernel.shape[0]
  pad = (k - 1) // 2
  x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (1, 2))
  return np.einsum(
    "bijckl,klco->bijo", windows[:, ::stride, ::stride], kernel
  ) + params.get("bias", 0)


def norm(x, variables, name):
  s, p = variables["batch_stats"][name], variables["params"][name]
  return (x - s["mean"]) / np.sqrt(s["var"] + 1e-3) * p["scale"] + p["bias"]


def test_matches_float64_numpy_at_odd_sizes(draw_variables):
  features = backbone_features((75, 90))
  model = FPN(channels=6)
  variables = draw_variables(model.init, features)
  pyramid = jax.jit(model.apply)(variables, features)

  params = variables["params"]
  lateral = {
    level: conv(features[level], params[f"lateral{level}"])
    for level in (3, 4, 5)
  }
  for level in (4, 3):
    h, w = lateral[level].shape[1:3]
    coarse = lateral[level + 1].repeat(2, 1).repeat(2, 2)
    lateral[level] = lateral[level] + coarse[:, :h, :w]
  expected = {
    level: conv(lateral[level], params[f"p{level}"]) for level in lateral
  }
  expected[6] = conv(expected[5], params["p6"], 2)
  expected[7] = conv(np.maximum(expected[6], 0), params["p7"], 2)
  for level, x in expected.items():
    x = norm(x, variables, f"norm{level}")
    np.testing.assert_allclose(pyramid[level], x, rtol=1e-4, atol=1e-3)
  assert list(pyramid) == [3, 4, 5, 6, 7]


def test_norms_of_convolutions_and_pooled_levels_match_float64(draw_variables):
  features = backbone_features((75, 90))
  model = FPN(min_level=4, max_level=7, channels=6, norm="convs", top="pool")
  variables = draw_variables(model.init, features)
  pyramid = jax.jit(model.apply)(variables, features)

  params = variables["params"]
  assert "bias" not in params["lateral4"]
  assert "norm6" not in params
  lateral = {
    level: norm(
      conv(features[level], params[f"lateral{level}"]),
      variables,
      f"norm_lateral{level}",
    )
    for level in (4, 5)
  }
  h, w = lateral[4].shape[1:3]
  lateral[4] += lateral[5].repeat(2, 1).repeat(2, 2)[:, :h, :w]
  expected = {
    level: norm(conv(x, params[f"p{level}"]), variables, f"norm{level}")
    for level, x in lateral.items()
  }
  expected[6] = expected[5][:, [0, 2]][:, :, [0, 2]]
  expected[7] = expected[5][:, :1, :1]
  for level, x in expected.items():
    np.testing.assert_allclose(pyramid[level], x, rtol=1e-4, atol=1e-3)
  assert list(pyramid) == [4, 5, 6, 7]


@pytest.mark.parametrize("options", [{"norm": "none"}, {"top": "linear"}])
def test_unknown_options_are_refused(options):
  (name,) = options
  with pytest.raises(ValueError, match=f"FPN {name} is .*expected one of"):
    FPN(**options).init(jax.random.key(0), backbone_features((32, 32)))


@pytest.mark.parametrize(
  ("min_level", "max_level"), [(2, 5), (2, 6), (3, 4), (3, 7)]
)
@pytest.mark.parametrize("size", [(64, 128), (65, 33)])
def test_has_the_levels_and_sizes_asked_for(min_level, max_level, size):
  model = FPN(min_level=min_level, max_level=max_level, channels=6)
  features = backbone_features(size)
  pyramid = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), features)[0]
  )
  assert {level: x.shape for level, x in pyramid.items()} == {
    level: (2, -(-size[0] // 2**level), -(-size[1] // 2**level), 6)
    for level in range(min_level, max_level + 1)
  }


def test_min_level_must_be_a_level_of_the_backbone():
  with pytest.raises(ValueError, match=r"min_level is 1, .* \[2, 3, 4, 5\]"):
    FPN(min_level=1).init(jax.random.key(0), backbone_features((32, 32)))


def bilinear_matrix(source, target):
  """[target, source] weights, half-pixel centres, edges repeated."""
  x = (np.arange(target) + 0.5) * source / target - 0.5
  x = np.clip(x, 0, source - 1)
  return np.maximum(0, 1 - np.abs(x[:, None] - np.arange(source)))


def test_fuse_is_the_sum_of_the_rescaled_levels():
  rng = np.random.default_rng(0)
  sizes = {3: (9, 12), 4: (5, 6), 5: (3, 3), 6: (2, 2), 7: (1, 1)}
  pyramid = {
    level: rng.normal(size=(2, *size, 3)).astype(np.float32)
    for level, size in sizes.items()
  }
  expected = sum(
    np.einsum(
      "ih,jw,bhwc->bijc",
      bilinear_matrix(x.shape[1], 18),
      bilinear_matrix(x.shape[2], 23),
      x,
    )
    for x in pyramid.values()
  )
  np.testing.assert_allclose(
    fuse(pyramid, (18, 23)), expected, rtol=1e-5, atol=1e-5
  )


def test_fuse_accumulates_in_float32_and_keeps_the_dtype():
  # 1 + 4 * 2**-8 is 1 in bfloat16 when added one at a time.
  pyramid = {
    level: jnp.full((1, 2, 2, 1), 1.0 if level == 3 else 2**-8, jnp.bfloat16)
    for level in (3, 4, 5, 6, 7)
  }
  fused = fuse(pyramid, (4, 4))
  assert fused.dtype == jnp.bfloat16
  np.testing.assert_array_equal(fused.astype(np.float32), 1 + 2**-6)
