import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.weighting import fixed


def test_combine():
  losses = {"det": jnp.float32(2.0), "cls": jnp.float32(3.0)}
  total, weighted = fixed.combine(losses, {"cls": 0.5, "det": 2.0})
  assert total == 5.5
  assert weighted == {"det": 4.0, "cls": 1.5}


def test_combine_scales_the_gradients():
  def total(x):
    return fixed.combine(
      {"a": x["a"] ** 2, "b": x["b"]}, {"a": 3.0, "b": 0.25}
    )[0]

  gradient = jax.jit(jax.grad(total))({"a": 2.0, "b": 5.0})
  assert gradient == {"a": 12.0, "b": 0.25}


@pytest.mark.parametrize("weights", [{}, {"a": 1.0}, {"a": 1.0, "c": 1.0}])
def test_combine_wants_a_weight_for_each_task(weights):
  losses = {"a": jnp.float32(1), "b": jnp.float32(1)}
  with pytest.raises(ValueError, match="one weight for each task"):
    fixed.combine(losses, weights)


def test_paper_weights_literal():
  """The defaults of the student: batch 256, learning rate 0.32."""
  weights = fixed.paper_weights(
    256,
    0.32,
    {"detection": (256, 0.32), "segmentation": (256, 0.08), "cls": (1024, 0.4)},
  )
  assert list(weights) == ["detection", "segmentation", "cls"]
  np.testing.assert_allclose(
    list(weights.values()), [1.0, 0.25, 0.3125], rtol=1e-12
  )


def test_paper_weights_keep_the_step_per_example():
  """w * lr_s / b_s is the teacher's lr / b."""
  weight = fixed.paper_weights(48, 0.7, {"t": (96, 0.03)})["t"]
  np.testing.assert_allclose(weight * 0.7 / 48, 0.03 / 96)


@pytest.mark.parametrize(
  ("batch", "lr", "teacher", "who"),
  [
    (0, 0.1, (8, 0.1), "the student"),
    (8, 0.0, (8, 0.1), "the student"),
    (8, 0.1, (0, 0.1), "the teacher of 'depth'"),
    (8, 0.1, (8, -1.0), "the teacher of 'depth'"),
  ],
)
def test_paper_weights_want_positive_numbers(batch, lr, teacher, who):
  with pytest.raises(ValueError, match=who):
    fixed.paper_weights(batch, lr, {"depth": teacher})
