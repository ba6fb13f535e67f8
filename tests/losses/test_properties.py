"""What every loss promises, whatever it computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.losses import classification, dense, detection

B = 4
SIZE = (6, 5)


def _normal(rng, *shape):
  return rng.normal(size=(B, *shape)).astype(np.float32)


def _bool(rng, *shape):
  return rng.uniform(size=(B, *shape)) < 0.6


def _boxes(rng, *shape):
  low = rng.uniform(0, 50, (*shape, 2))
  high = low + rng.uniform(5, 60, (*shape, 2))
  return np.concatenate([low, high], -1).astype(np.float32)


def _depth(rng):
  positive = np.abs(_normal(rng, *SIZE)) + 0.2
  return {
    "pred": _normal(rng, *SIZE),
    "target": positive,
    "valid": _bool(rng, *SIZE),
  }


def _normals(rng):
  target = _normal(rng, *SIZE, 3)
  return {
    "pred": _normal(rng, *SIZE, 3),
    "target": target / np.linalg.norm(target, axis=-1, keepdims=True),
    "valid": _bool(rng, *SIZE),
  }


def _rpn(rng):
  return {
    "rpn_logits": _normal(rng, 7),
    "rpn_deltas": _normal(rng, 7, 4),
    "anchor_labels": rng.integers(-1, 2, (B, 7)),
    "anchor_sampled": _bool(rng, 7),
    "anchor_gt_boxes": _boxes(rng, B, 7),
  }


def _rcnn(rng):
  return {
    "class_logits": _normal(rng, 6, 4),
    "box_deltas": _normal(rng, 6, 3, 4),
    "rois": _boxes(rng, B, 6),
    "roi_valid": _bool(rng, 6),
    "roi_positive": _bool(rng, 6),
    "roi_classes": rng.integers(0, 3, (B, 6)),
    "roi_gt_boxes": _boxes(rng, B, 6),
  }


ANCHORS = _boxes(np.random.default_rng(9), 7)

# name -> (inputs, what is predicted, which masks say what counts, loss)
CASES = {
  "softmax": (
    lambda rng: {
      "logits": _normal(rng, 5),
      "probs": rng.dirichlet(np.ones(5), B).astype(np.float32),
    },
    ("logits",),
    (),
    classification.softmax_cross_entropy,
  ),
  "sigmoid": (
    lambda rng: {
      "logits": _normal(rng, 5),
      "targets": _bool(rng, 5).astype(np.float32),
    },
    ("logits",),
    (),
    classification.sigmoid_cross_entropy,
  ),
  "segmentation": (
    lambda rng: {
      "logits": _normal(rng, *SIZE, 3),
      "classes": rng.choice([0, 1, 2, 255], (B, *SIZE)),
    },
    ("logits",),
    (),
    dense.segmentation_cross_entropy,
  ),
  "ssi": (_depth, ("pred",), ("valid",), dense.scale_shift_invariant),
  "l1": (_depth, ("pred",), ("valid",), dense.l1),
  "berhu": (_depth, ("pred",), ("valid",), dense.berhu),
  "silog": (_depth, ("pred",), ("valid",), dense.silog),
  "cosine": (_normals, ("pred",), ("valid",), dense.cosine_loss),
  "rpn": (
    _rpn,
    ("rpn_logits", "rpn_deltas"),
    ("anchor_sampled",),
    lambda present, **outputs: detection.rpn_losses(
      {**outputs, "anchors": ANCHORS}, present
    ),
  ),
  "rcnn": (
    _rcnn,
    ("class_logits", "box_deltas"),
    ("roi_valid",),
    lambda present, **outputs: detection.rcnn_losses(outputs, present),
  ),
}


@functools.cache
def make(name):
  inputs, predicted, masks, loss = CASES[name]

  def parts(inputs, present):
    result = loss(**inputs, present=present)
    return result if isinstance(result, dict) else {"loss": result}

  def total_and_gradient(inputs, present):
    def total(predictions):
      means = parts({**inputs, **predictions}, present)
      return sum(mean.total for mean in means.values())

    return jax.value_and_grad(total)({key: inputs[key] for key in predicted})

  return (
    inputs(np.random.default_rng(0)),
    predicted,
    masks,
    jax.jit(parts),
    jax.jit(total_and_gradient),
  )


@pytest.mark.parametrize("name", CASES)
def test_sums_add_up_over_shards_of_the_batch(name):
  inputs, _, _, parts, _ = make(name)
  present = np.array([True, True, False, True])
  whole = parts(inputs, present)
  shards = [
    parts({k: v[rows] for k, v in inputs.items()}, present[rows])
    for rows in (slice(0, 2), slice(2, 4))
  ]
  for key, mean in whole.items():
    assert mean.count > 0
    np.testing.assert_allclose(
      mean.total, sum(shard[key].total for shard in shards), rtol=1e-5
    )
    np.testing.assert_allclose(
      mean.count, sum(shard[key].count for shard in shards)
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("filler", [np.nan, np.inf, -1e30])
def test_an_absent_example_changes_nothing(name, filler):
  inputs, predicted, _, parts, total_and_gradient = make(name)
  present = np.array([True, False, True, True])
  spoilt = {}
  for key, value in inputs.items():
    spoilt[key] = value.copy()
    if value.dtype == np.float32:
      spoilt[key][1] = filler
    elif value.dtype == bool:
      spoilt[key][1] = True
    else:
      spoilt[key][1] = 2**30
  jax.tree.map(
    np.testing.assert_array_equal,
    parts(spoilt, present),
    parts(inputs, present),
  )
  _, gradient = total_and_gradient(spoilt, present)
  _, expected = total_and_gradient(inputs, present)
  jax.tree.map(np.testing.assert_array_equal, gradient, expected)
  for key in predicted:
    np.testing.assert_array_equal(gradient[key][1], 0)
    assert np.abs(gradient[key][0]).max() > 0


@pytest.mark.parametrize("name", CASES)
def test_zero_with_zero_gradient_without_any_label(name):
  inputs, predicted, masks, parts, total_and_gradient = make(name)
  nothing = [(inputs, np.zeros(B, bool))]
  if masks:
    empty = {key: np.zeros_like(inputs[key]) for key in masks}
    nothing.append(({**inputs, **empty}, np.ones(B, bool)))
  if name == "segmentation":
    ignored = np.full_like(inputs["classes"], 255)
    nothing.append(({**inputs, "classes": ignored}, np.ones(B, bool)))
  for empty_inputs, present in nothing:
    for mean in parts(empty_inputs, present).values():
      assert (mean.total, mean.count, mean.compute()) == (0, 0, 0)
    _, gradient = total_and_gradient(empty_inputs, present)
    for key in predicted:
      np.testing.assert_array_equal(gradient[key], 0)


@pytest.mark.parametrize("name", CASES)
def test_computes_in_float32(name):
  """Whatever the input's type; so bfloat16 costs only its own rounding."""
  inputs, predicted, _, parts, _ = make(name)
  present = np.ones(B, bool)
  coarse = {key: jnp.asarray(inputs[key], jnp.bfloat16) for key in predicted}
  result = parts({**inputs, **coarse}, present)
  rounded = {key: np.asarray(x, np.float32) for key, x in coarse.items()}
  expected = parts({**inputs, **rounded}, present)
  for key, mean in result.items():
    assert mean.total.dtype == mean.count.dtype == jnp.float32
    np.testing.assert_allclose(mean.total, expected[key].total, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_does_not_write_into_its_inputs(name):
  inputs = make(name)[0]
  before = {key: value.copy() for key, value in inputs.items()}
  present = np.array([True, False, True, True])
  # Traced without arguments, the loss sees the arrays themselves.
  jax.make_jaxpr(lambda: CASES[name][3](**inputs, present=present))()
  jax.tree.map(np.testing.assert_array_equal, inputs, before)
