import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.models.resnet import ResNet

# Published totals with a 1000-way classifier (torchvision, norms included).
PUBLISHED = {
  18: 11_689_512,
  34: 21_797_672,
  50: 25_557_032,
  101: 44_549_160,
  152: 60_192_808,
}


def count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


def conv(x, kernel, stride):
  """float64 [h, w, c] convolution with (k - 1) // 2 zeros on every side."""
  k = kernel.shape[0]
  pad = (k - 1) // 2
  x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), (0, 1))
  return np.einsum("ijckl,klco->ijo", windows[::stride, ::stride], kernel)


def reference(variables, image, blocks, bottleneck, eps):
  """The network of He et al. (v1.5) on one image, in float64."""
  tree = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
  params, stats = tree["params"], tree["batch_stats"]

  def layer(x, scope, index, stride):
    p = params[scope] if scope else params
    s = stats[scope] if scope else stats
    x = conv(x, p[f"conv{index}"]["kernel"], stride)
    p, s = p[f"norm{index}"], s[f"norm{index}"]
    x = (x - s["mean"]) / np.sqrt(s["var"] + eps)
    return x * p["scale"] + p["bias"]

  x = np.maximum(layer(np.asarray(image, np.float64), None, 1, 2), 0)
  x = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (0, 1))
  x = windows[::2, ::2].max((-2, -1))
  strides = (1, None, 1) if bottleneck else (None, 1)
  features = {}
  for level, n in enumerate(blocks, start=2):
    for b in range(1, n + 1):
      scope = f"c{level}_block{b}"
      stride = 2 if b == 1 and level > 2 else 1
      skip = x
      for i, s in enumerate(strides, start=1):
        x = layer(x, scope, i, stride if s is None else s)
        if i < len(strides):
          x = np.maximum(x, 0)
      if "conv_skip" in params[scope]:
        skip = layer(skip, scope, "_skip", stride)
      x = np.maximum(x + skip, 0)
    features[level] = x
  return features


@pytest.mark.parametrize(
  ("depth", "blocks", "bottleneck"),
  [(18, (2, 2, 2, 2), False), (50, (3, 4, 6, 3), True)],
)
def test_matches_float64_numpy(depth, blocks, bottleneck, draw_variables):
  image = np.random.default_rng(1).normal(size=(1, 37, 50, 3))
  image = image.astype(np.float32)
  model = ResNet(depth=depth, width=4, norm_epsilon=0.02)
  variables = draw_variables(model.init, image)
  features = jax.jit(model.apply)(variables, image)
  expected = reference(variables, image[0], blocks, bottleneck, 0.02)
  for level in (2, 3, 4, 5):
    np.testing.assert_allclose(
      features[level][0], expected[level], rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("depth", sorted(PUBLISHED))
def test_parameter_count_is_the_published_one(depth):
  shapes = jax.eval_shape(
    ResNet(depth=depth).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )
  channels = 2048 if depth >= 50 else 512
  assert count(shapes["params"]) + 1000 * channels + 1000 == PUBLISHED[depth]


@pytest.mark.parametrize("size", [(64, 96), (33, 47), (1, 129)])
def test_a_level_has_ceil_size_over_stride_cells(size):
  model = ResNet(depth=18, width=4)
  image = jnp.zeros((2, *size, 3))
  features = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), image)[0]
  )
  assert {level: x.shape for level, x in features.items()} == {
    level: (
      2,
      -(-size[0] // 2**level),
      -(-size[1] // 2**level),
      4 * 2 ** (level - 2),
    )
    for level in (2, 3, 4, 5)
  }


def test_hflip_with_mirrored_kernels_flips_features_at_odd_sizes(
  draw_variables,
):
  # Symmetric padding and 2**k + 1 columns leave no side preferred.
  model = ResNet(depth=18, width=4)
  image = np.random.default_rng(2).normal(size=(1, 33, 65, 3))
  image = image.astype(np.float32)
  variables = draw_variables(model.init, image)
  mirrored = jax.tree.map(lambda x: x[:, ::-1] if x.ndim == 4 else x, variables)
  features = jax.jit(model.apply)(variables, image)
  flipped = jax.jit(model.apply)(mirrored, image[:, :, ::-1])
  for level in (2, 3, 4, 5):
    assert np.abs(features[level]).max() > 0.1
    np.testing.assert_allclose(
      flipped[level][:, :, ::-1], features[level], rtol=1e-4, atol=1e-5
    )


def test_norm_statistics_move_in_training_only(draw_variables):
  model = ResNet(depth=18, width=4, norm_momentum=0.9)
  image = np.random.default_rng(3).normal(size=(2, 32, 32, 3))
  variables = draw_variables(model.init, image)
  apply = jax.jit(model.apply, static_argnames=("train", "mutable"))
  _, kept = apply(variables, image, train=False, mutable=("batch_stats",))
  _, moved = apply(variables, image, train=True, mutable=("batch_stats",))
  before = variables["batch_stats"]["norm1"]
  np.testing.assert_array_equal(
    kept["batch_stats"]["norm1"]["mean"], before["mean"]
  )
  kernel = variables["params"]["conv1"]["kernel"].astype(np.float64)
  stem = np.stack([conv(x, kernel, 2) for x in image])
  np.testing.assert_allclose(
    moved["batch_stats"]["norm1"]["mean"],
    0.9 * before["mean"] + 0.1 * stem.mean((0, 1, 2)),
    rtol=1e-4,
    atol=1e-5,
  )
  np.testing.assert_allclose(
    moved["batch_stats"]["norm1"]["var"],
    0.9 * before["var"] + 0.1 * stem.var((0, 1, 2)),
    rtol=1e-4,
  )


def test_compute_dtype_leaves_parameters_and_statistics_float32():
  model = ResNet(depth=18, width=4, dtype=jnp.bfloat16)
  features, variables = jax.eval_shape(
    model.init_with_output, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
  )
  assert {x.dtype for x in features.values()} == {jnp.dtype(jnp.bfloat16)}
  assert {x.dtype for x in jax.tree.leaves(variables)} == {
    jnp.dtype(jnp.float32)
  }


def test_unknown_depth_names_the_known_ones():
  with pytest.raises(ValueError, match=r"depth is 42; .*18, 34, 50"):
    jax.eval_shape(
      ResNet(depth=42).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
