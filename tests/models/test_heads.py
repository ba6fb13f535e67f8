import jax
import jax.numpy as jnp
import numpy as np

from must_jax.models.heads import ClassificationHead, PixelHead


def test_classification_is_linear_in_the_mean_of_c5():
  c5 = np.random.default_rng(0).normal(size=(3, 2, 5, 4)).astype(np.float32)
  head = ClassificationHead(num_classes=7)
  features = {"c5": c5, "image_size": (64, 160)}
  outputs, variables = head.init_with_output(jax.random.key(0), features)
  kernel = np.asarray(variables["params"]["logits"]["kernel"])
  assert kernel.shape == (4, 7)
  assert 0.005 < kernel.std() < 0.02
  np.testing.assert_allclose(
    outputs["logits"], c5.mean((1, 2)) @ kernel, rtol=1e-4, atol=1e-7
  )


def test_dropout_acts_in_training_only():
  features = {"c5": jnp.ones((64, 1, 1, 100))}
  head = ClassificationHead(num_classes=1, dropout=0.25)
  variables = {
    "params": {"logits": {"kernel": jnp.ones((100, 1)), "bias": jnp.zeros(1)}}
  }
  evaluated = head.apply(variables, features)["logits"]
  np.testing.assert_allclose(evaluated, 100.0)
  trained = head.apply(
    variables, features, train=True, rngs={"dropout": jax.random.key(0)}
  )["logits"]
  assert trained.std() > 1  # 5.8 expected
  np.testing.assert_allclose(trained.mean(), 100, atol=4)


def test_pixel_head_predicts_float32_per_cell_of_p2():
  features = {"p2": jnp.ones((2, 9, 12, 4), jnp.bfloat16)}
  head = PixelHead(num_outputs=5, num_convs=3, channels=6, dtype=jnp.bfloat16)
  outputs, variables = jax.eval_shape(
    head.init_with_output, jax.random.key(0), features
  )
  assert outputs["map"].shape == (2, 9, 12, 5)
  assert outputs["map"].dtype == jnp.float32
  assert jax.tree.map(lambda x: x.shape, variables["params"]) == {
    "conv1": {"kernel": (3, 3, 4, 6)},
    "conv2": {"kernel": (3, 3, 6, 6)},
    "conv3": {"kernel": (3, 3, 6, 6)},
    "norm1": {"scale": (6,), "bias": (6,)},
    "norm2": {"scale": (6,), "bias": (6,)},
    "norm3": {"scale": (6,), "bias": (6,)},
    "map": {"kernel": (1, 1, 6, 5), "bias": (5,)},
  }


def test_pixel_head_without_hidden_layers_is_linear():
  x = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype(np.float32)
  head = PixelHead(num_outputs=3, num_convs=0)
  outputs, variables = head.init_with_output(jax.random.key(0), {"p2": x})
  kernel = np.asarray(variables["params"]["map"]["kernel"])[0, 0]
  np.testing.assert_allclose(outputs["map"], x @ kernel, rtol=1e-5, atol=1e-7)
