import numpy as np
import pytest

from must_jax.weighting import paper_weights


def test_paper_weights_literal():
  """The defaults of the student: batch 256, learning rate 0.32."""
  weights = paper_weights(
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
  weight = paper_weights(48, 0.7, {"t": (96, 0.03)})["t"]
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
    paper_weights(batch, lr, {"depth": teacher})
