import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.models.midas import DECODERS, MidasHead, ResidualUnit
from must_jax.models.must import BACKBONES, build_backbone
from must_jax.models.vit import DptEncoder
from must_jax.tasks import HeadOptions, make_task

OPTIONS = HeadOptions(
  channels=8,
  min_level=3,
  max_level=7,
  dtype=jnp.bfloat16,
  norm_momentum=0.9,
  norm_epsilon=1e-3,
)


def pyramid(height, width, channels=(3, 4, 5, 6), dtype=np.float32):
  """Random features of an image of that size, as `MustModel` gives them."""
  rng = np.random.default_rng(0)
  levels = {
    level: rng.normal(
      size=(2, -(-height // 2**level), -(-width // 2**level), c)
    ).astype(dtype)
    for level, c in enumerate(channels, start=2)
  }
  return {"backbone": levels}


@pytest.mark.parametrize("size", [(64, 96), (48, 80), (32, 32)])
@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_decoders_give_a_float32_map_of_the_image_size(decoder, size):
  task = make_task("depth", "depth", (), {"decoder": decoder})
  features = pyramid(*size)
  out = jax.eval_shape(
    lambda: task.make_head(OPTIONS).init_with_output(
      jax.random.key(0), features
    )[0]
  )
  assert out["map"].shape == (2, *size, 1)
  assert out["map"].dtype == jnp.float32


def test_unknown_decoder_is_refused():
  with pytest.raises(ValueError, match=r"'dpt', 'midas_v21', .*'pixel'"):
    make_task("depth", "depth", (), {"decoder": "midas"})


def test_map_is_not_negative_and_reads_all_levels(draw_variables):
  features = pyramid(32, 64)
  head = MidasHead(channels=(8, 8, 8, 8))
  variables = draw_variables(head.init, features)

  def total(levels):
    out = head.apply(variables, {"backbone": levels})["map"]
    return out.sum(), out

  grads, out = jax.jit(jax.grad(total, has_aux=True))(features["backbone"])
  assert out.min() == 0 and out.max() > 0
  for level, grad in grads.items():
    assert np.any(grad), level


@pytest.mark.parametrize("relu_skip", [False, True])
def test_residual_skips(relu_skip):
  """Where the convolutions give 0, the skip is what is left."""
  x = np.random.default_rng(0).normal(size=(1, 4, 5, 3)).astype(np.float32)
  unit = ResidualUnit(relu_skip, jnp.float32)
  shapes = jax.eval_shape(unit.init, jax.random.key(0), x)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
  expected = np.maximum(x, 0) if relu_skip else x
  np.testing.assert_array_equal(unit.apply(zeros, x), expected)


def test_only_v21_large_has_relu_skips_and_only_dpt_aligns_the_last_corners():
  heads = {name: make() for name, make in DECODERS.items()}
  assert {k for k, v in heads.items() if v.relu_skip} == {"midas_v21"}
  assert {k for k, v in heads.items() if v.align_corners} == {"dpt"}
  assert {k for k, v in heads.items() if not v.project} == {"midas_v21"}


def test_align_corners_changes_the_last_doubling(draw_variables):
  features = pyramid(32, 64)
  maps = []
  for align_corners in (False, True):
    head = MidasHead(channels=(8, 8, 8, 8), align_corners=align_corners)
    variables = draw_variables(head.init, features)
    maps.append(np.asarray(jax.jit(head.apply)(variables, features)["map"]))
  assert np.abs(maps[0] - maps[1]).max() > 0.01 * maps[0].std()


@pytest.mark.parametrize(
  ("name", "channels"),
  [
    ("dpt_large", (256, 512, 1024, 1024)),
    ("dpt_hybrid", (256, 512, 768, 768)),
  ],
)
def test_dpt_encoders_give_levels_2_to_5(name, channels):
  encoder = build_backbone(
    name, width=0, dtype=jnp.bfloat16, norm_momentum=0.9, norm_epsilon=1e-3
  )
  out, variables = jax.eval_shape(
    encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 48, 96, 3))
  )
  assert {level: x.shape for level, x in out.items()} == {
    2: (1, 12, 24, channels[0]),
    3: (1, 6, 12, channels[1]),
    4: (1, 3, 6, channels[2]),
    5: (1, 2, 3, channels[3]),
  }
  assert {x.dtype for x in out.values()} == {jnp.dtype(jnp.bfloat16)}
  params = jax.tree.leaves(variables["params"])
  assert {x.dtype for x in params} == {jnp.dtype(jnp.float32)}


def test_positions_are_not_resized_on_their_own_grid(draw_variables):
  """Moving the image by a token and the positions as well moves the map."""
  encoder = DptEncoder(
    dim=8, num_heads=2, taps=(1, 2, 3, 4), channels=(4,) * 4, grid=3
  )
  image = np.random.default_rng(0).normal(size=(1, 48, 48, 3))
  image = image.astype(np.float32)
  variables = draw_variables(encoder.init, image)
  moved = jax.tree.map(lambda x: x, variables)
  moved["params"]["grid_position"] = np.roll(
    variables["params"]["grid_position"], 1, axis=0
  )
  apply = jax.jit(encoder.apply)
  straight = apply(variables, image)[4]
  np.testing.assert_allclose(
    apply(moved, np.roll(image, 16, axis=1))[4],
    np.roll(straight, 1, axis=1),
    atol=1e-5,
  )


@pytest.mark.parametrize("name", ["dpt_large", "dpt_hybrid"])
def test_dpt_refuses_widths_and_odd_sizes(name):
  image = jnp.zeros((1, 32, 40, 3))
  with pytest.raises(ValueError, match="32 x 40; expected multiples of 16"):
    jax.eval_shape(BACKBONES[name]().init, jax.random.key(0), image)
  with pytest.raises(ValueError, match=r"width 8.*model\.width to 0"):
    jax.eval_shape(BACKBONES[name](width=8).init, jax.random.key(0), image)
