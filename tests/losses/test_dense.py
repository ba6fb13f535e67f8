import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.losses import dense
from must_jax.types import IGNORE_LABEL


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def reference_segmentation(logits, classes, present):
  """Total and count, pixel by pixel."""
  total, count = 0.0, 0
  for b, i, j in np.ndindex(classes.shape):
    if present[b] and 0 <= classes[b, i, j] < logits.shape[-1]:
      total -= log_softmax(logits[b, i, j].astype(np.float64))[classes[b, i, j]]
      count += 1
  return total, count


def test_unknown_classes_are_out_of_the_softmax_of_their_images():
  rng = np.random.default_rng(3)
  logits = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
  known = np.array([[True, False, True], [False, True, False]])
  classes = np.array([0, 1])[:, None, None] + np.zeros((2, 4, 5), int)
  classes[0, 0] = 2
  classes[:, :, 0] = IGNORE_LABEL
  total, count = 0.0, 0
  for b, y, x in np.ndindex(classes.shape):
    if classes[b, y, x] != IGNORE_LABEL:
      row = logits[b, y, x].astype(np.float64)
      total += np.log(np.exp(row[known[b]]).sum()) - row[classes[b, y, x]]
      count += 1

  def loss(logits, known):
    return dense.segmentation_cross_entropy(
      logits, classes, np.ones(2, bool), known
    )

  np.testing.assert_allclose(loss(logits, known), (total, count), rtol=1e-5)
  gradient = jax.grad(lambda x: loss(x, known).total)(logits)
  assert np.isfinite(gradient).all()
  unknown = np.broadcast_to(~known[:, None, None], logits.shape)
  assert (np.asarray(gradient)[unknown] == 0).all()
  np.testing.assert_array_equal(
    loss(logits, np.ones((2, 3), bool)), loss(logits, None)
  )


@pytest.mark.parametrize("partly_known", [False, True])
@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize("soften", [False, True])
@pytest.mark.parametrize("trim", [0.0, 0.3])
def test_uses_of_confidence_pixel_by_pixel(partly_known, weigh, soften, trim):
  rng = np.random.default_rng(4)
  logits = rng.normal(size=(2, 4, 5, 4)).astype(np.float32)
  known = np.array([[True, False, True, True], [False, True, False, True]])
  classes = np.where(
    rng.random((2, 4, 5)) < 0.5, [[[0]], [[1]]], [[[2]], [[1]]]
  )
  classes[:, 1, 1:3] = IGNORE_LABEL
  confidence = rng.uniform(0.5, 1, classes.shape).astype(np.float32)
  known_or_all = known if partly_known else np.ones_like(known)
  total = count = 0.0
  for b in range(2):
    found = []
    for y, x in np.ndindex(4, 5):
      k = classes[b, y, x]
      if k == IGNORE_LABEL:
        continue
      row = logits[b, y, x].astype(np.float64)
      logs = {j: row[j] for j in np.flatnonzero(known_or_all[b])}
      norm = np.log(sum(np.exp(v) for v in logs.values()))
      targets = dict.fromkeys(logs, 0.0) | {k: 1.0}
      if soften and len(logs) > 1:
        sure = float(confidence[b, y, x])
        targets = dict.fromkeys(logs, (1 - sure) / (len(logs) - 1)) | {k: sure}
      loss = sum(t * (norm - logs[j]) for j, t in targets.items())
      found.append((loss, float(confidence[b, y, x]) if weigh else 1.0))
    found.sort()
    for loss, weight in found[: int((1 - trim) * len(found) + 1e-9)]:
      total, count = total + weight * loss, count + weight

  def loss(logits):
    return dense.segmentation_cross_entropy(
      logits,
      classes,
      np.ones(2, bool),
      known if partly_known else None,
      confidence,
      weigh=weigh,
      soften=soften,
      trim=trim,
    )

  np.testing.assert_allclose(loss(logits), (total, count), rtol=1e-5)
  assert np.isfinite(jax.grad(lambda x: loss(x).total)(logits)).all()


def reference_normalise(values):
  values = values - np.median(values)
  return values / np.abs(values).mean()


def reference_ssi(pred, target, valid, trim, alpha, scales):
  """Total of one image by loops, from the paper's formulas."""
  pred, target = pred.astype(np.float64), target.astype(np.float64)
  residual = np.full(pred.shape, np.nan)
  residual[valid] = reference_normalise(pred[valid]) - reference_normalise(
    target[valid]
  )
  errors = sorted(np.abs(residual[valid]))
  total = sum(errors[: int((1 - trim) * len(errors) + 1e-9)]) / 2
  for s in (1, 2, 4, 8)[:scales]:
    height, width = pred.shape
    for i in range(0, height, s):
      for j in range(0, width, s):
        for ni, nj in ((i + s, j), (i, j + s)):
          inside = ni < height and nj < width
          if inside and valid[i, j] and valid[ni, nj]:
            difference = abs(residual[ni, nj] - residual[i, j])
            total += alpha * s * s * difference
  return total


def depth_example(seed=0, b=3, h=11, w=9):
  rng = np.random.default_rng(seed)
  pred = rng.normal(size=(b, h, w)).astype(np.float32)
  target = rng.gamma(2, size=(b, h, w)).astype(np.float32)
  valid = rng.uniform(size=(b, h, w)) < 0.7
  present = np.array([True, True, False])[:b]
  return pred, target, valid, present


# Op by op, the losses spend seconds in compilation.
segmentation = jax.jit(dense.segmentation_cross_entropy)
cosine = jax.jit(dense.cosine_loss)
ssi = jax.jit(
  dense.scale_shift_invariant, static_argnames=("trim", "alpha", "scales")
)


# Segmentation.


def test_segmentation_literal():
  logits = jnp.array([[[[0.0, 0.0], [1.0, 0.0], [5.0, -5.0]]]])
  loss = segmentation(logits, jnp.array([[[0, 1, 255]]]), jnp.array([True]))
  np.testing.assert_allclose(loss.total, 0.6931471806 + 1.3132616875, rtol=1e-6)
  assert loss.count == 2


def test_segmentation_matches_float64_with_its_gradient(numeric_gradient):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(3, 3, 4, 5)).astype(np.float32)
  classes = rng.choice([0, 1, 2, 3, 4, 5, 200, 255, -1], (3, 3, 4))
  present = np.array([True, False, True])
  loss = segmentation(logits, classes, present)
  total, count = reference_segmentation(logits, classes, present)
  np.testing.assert_allclose(loss.total, total, rtol=1e-6)
  assert loss.count == count
  gradient = jax.grad(lambda x: segmentation(x, classes, present).total)(logits)
  expected = numeric_gradient(
    lambda x: reference_segmentation(x, classes, present)[0],
    logits.astype(np.float64),
  )
  np.testing.assert_allclose(gradient, expected, atol=2e-6)


# Scale-and-shift invariant.


@pytest.mark.parametrize(
  ("trim", "scales"), [(0.0, 0), (0.2, 0), (0.5, 1), (0.2, 4)]
)
def test_ssi_matches_float64(trim, scales):
  pred, target, valid, present = depth_example()
  loss = ssi(pred, target, valid, present, trim=trim, alpha=0.5, scales=scales)
  expected = sum(
    reference_ssi(pred[b], target[b], valid[b], trim, 0.5, scales)
    for b in np.flatnonzero(present)
  )
  np.testing.assert_allclose(loss.total, expected, rtol=2e-5)
  assert loss.count == valid[present].sum()


def test_ssi_gradient(numeric_gradient):
  pred, target, valid, present = depth_example(4, h=6, w=5)
  gradient = jax.jit(jax.grad(lambda x: ssi(x, target, valid, present).total))(
    pred
  )
  expected = numeric_gradient(
    lambda x: sum(
      reference_ssi(x[b], target[b], valid[b], 0.2, 0.5, 4)
      for b in np.flatnonzero(present)
    ),
    pred.astype(np.float64),
  )
  np.testing.assert_allclose(gradient, expected, atol=2e-4)


@pytest.mark.parametrize(("scale", "shift"), [(1, 7), (0.01, 0), (300, -2000)])
def test_ssi_ignores_scale_and_shift(scale, shift):
  pred, target, valid, present = depth_example(1)
  base = ssi(pred, target, valid, present)
  assert base.total > 1
  for moved in (
    (scale * pred + shift, target),
    (pred, scale * target + shift),
  ):
    loss = ssi(*moved, valid, present)
    np.testing.assert_allclose(loss.total, base.total, rtol=2e-3)


def test_ssi_is_zero_for_an_affine_prediction_and_not_for_a_mirrored_one():
  _, target, valid, present = depth_example(2)
  loss = ssi(3 * target - 5, target, valid, present)
  np.testing.assert_allclose(loss.compute(), 0, atol=1e-5)
  loss = ssi(-target, target, valid, present)
  assert loss.compute() > 0.5


def test_ssi_trims_the_outliers_of_each_image():
  """A fifth of one image is absurd; the other image's pixels all count."""
  target = np.tile(np.linspace(-2, 2, 50, dtype=np.float32), (2, 1))
  pred = target.copy()
  pred[0, 45:] += 1e3  # of 50 pixels 5: less than a fifth
  shape = (2, 1, 50)
  valid, present = np.ones(shape, bool), np.ones(2, bool)

  def total(trim):
    return ssi(
      pred.reshape(shape),
      target.reshape(shape),
      valid,
      present,
      trim=trim,
      scales=0,
    ).total

  d0 = reference_normalise(pred[0].astype(np.float64))
  d1 = reference_normalise(target[0].astype(np.float64))
  errors = np.sort(np.abs(d0 - d1))
  np.testing.assert_allclose(total(0.0), errors.sum() / 2, rtol=1e-4)
  np.testing.assert_allclose(total(0.2), errors[:40].sum() / 2, rtol=1e-4)
  assert total(0.2) < 0.9 * total(0.0)


def test_ssi_trims_exactly_among_equal_residuals():
  pred = np.array([[[-1, 1, -1, 1]]], np.float32)  # errors are 2, 2, 2, 2
  valid, present = np.ones(pred.shape, bool), np.ones(1, bool)
  loss = ssi(pred, -pred, valid, present, trim=0.5, scales=0)
  np.testing.assert_allclose(loss.total, (2 + 2) / 2)


def test_ssi_median_sees_valid_pixels_only():
  pred, target, valid, present = depth_example(3)
  base = ssi(pred, target, valid, present)
  filler = np.where(valid, 0, np.float32(-1e6))
  loss = ssi(pred + filler, target - filler, valid, present)
  np.testing.assert_array_equal(loss.total, base.total)


def test_ssi_is_finite_where_nothing_varies():
  valid, present = np.ones((2, 4, 4), bool), np.ones(2, bool)
  both = jax.jit(
    jax.value_and_grad(lambda x, t: ssi(x, t, valid, present).total)
  )
  flat = np.full((2, 4, 4), 3, np.float32)
  ramp = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
  for pred, target in ((flat, flat), (ramp, flat), (flat, ramp)):
    loss, gradient = both(pred, target)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
  one = np.zeros((2, 4, 4), bool)
  one[0, 1, 2] = True
  loss = ssi(ramp, flat, one, present)
  assert (loss.total, loss.count) == (0, 1)


# Metric depth.


def reference_l1(pred, target):
  return np.abs(pred - target).sum()


def reference_berhu(pred, target):
  error = np.abs(pred - target)
  c = error.max() / 5
  return sum(e if e <= c else (e * e + c * c) / (2 * c) for e in error)


def reference_silog(pred, target):
  d = np.log(pred) - np.log(target)
  return len(d) * (np.mean(d**2) - 0.85 * np.mean(d) ** 2)


METRIC_DEPTH = {
  "l1": (jax.jit(dense.l1), reference_l1),
  "berhu": (jax.jit(dense.berhu), reference_berhu),
  "silog": (jax.jit(dense.silog), reference_silog),
}


@pytest.mark.parametrize("name", METRIC_DEPTH)
def test_metric_depth_matches_float64(name):
  loss_fn, reference = METRIC_DEPTH[name]
  pred, target, valid, present = depth_example()
  pred, target = np.exp(pred) + 0.2, target + 0.2
  loss = loss_fn(pred, target, valid, present)
  expected = sum(
    reference(
      pred[b][valid[b]].astype(np.float64),
      target[b][valid[b]].astype(np.float64),
    )
    for b in np.flatnonzero(present)
  )
  np.testing.assert_allclose(loss.total, expected, rtol=1e-5)
  assert loss.count == valid[present].sum()


METRIC_DEPTH_LITERAL = [
  # name, pred, target, mean
  ("l1", [1.0, 2.0, 5.0], [1.0, 4.0, 4.0], 1.0),
  # c = 0.4; errors 0.2 (linear), 1 and 2 (square)
  ("berhu", [1.2, 3.0, 2.0], [1.0, 2.0, 4.0], (0.2 + 1.45 + 5.2) / 3),
  ("silog", [2.0, 2.0], [1.0, 1.0], 0.15 * 0.4804530139),  # ln(2)^2
  ("silog", [2.0, 1.0], [1.0, 2.0], 0.4804530139),
]


@pytest.mark.parametrize(
  ("name", "pred", "target", "expected"), METRIC_DEPTH_LITERAL
)
def test_metric_depth_literal(name, pred, target, expected):
  shape = (1, 1, len(pred))
  loss = METRIC_DEPTH[name][0](
    jnp.reshape(jnp.array(pred), shape),
    jnp.reshape(jnp.array(target), shape),
    jnp.ones(shape, bool),
    jnp.array([True]),
  )
  np.testing.assert_allclose(loss.compute(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["l1", "silog"])
def test_metric_depth_gradient(name, numeric_gradient):
  # Not berHu, whose c is a constant to the gradient only.
  loss_fn, reference = METRIC_DEPTH[name]
  pred, target, valid, present = depth_example(1, h=4, w=4)
  pred, target = np.exp(pred) + 0.2, target + 0.2
  gradient = jax.grad(lambda x: loss_fn(x, target, valid, present).total)(pred)
  expected = numeric_gradient(
    lambda x: sum(
      reference(x[b][valid[b]], target[b][valid[b]].astype(np.float64))
      for b in np.flatnonzero(present)
    ),
    pred.astype(np.float64),
  )
  np.testing.assert_allclose(gradient, expected, atol=1e-4)


def test_berhu_gradient_is_the_scaled_error_beyond_a_fifth_of_the_largest():
  pred = np.array([[[0.1, -1.0, 2.0]]], np.float32)
  target, valid = np.zeros((1, 1, 3), np.float32), np.ones((1, 1, 3), bool)
  gradient = jax.grad(
    lambda x: METRIC_DEPTH["berhu"][0](x, target, valid, np.ones(1, bool)).total
  )(pred)
  np.testing.assert_allclose(gradient, [[[1, -1 / 0.4, 2 / 0.4]]], rtol=1e-6)


@pytest.mark.parametrize("depth", [0.05, 0.0, -1.0])
def test_silog_pulls_up_a_prediction_of_no_depth(depth):
  pred = np.array([[[depth, 1.0, 1.0]]], np.float32)
  target, valid = np.ones((1, 1, 3), np.float32), np.ones((1, 1, 3), bool)
  loss, gradient = jax.value_and_grad(
    lambda x: METRIC_DEPTH["silog"][0](x, target, valid, np.ones(1, bool)).total
  )(pred)
  assert np.isfinite(loss)
  assert gradient[0, 0, 0] < -1


# Normals.


COSINE_LITERAL = [
  ([0, 0, -1], [0, 0, -1], 0.0),
  ([0, 0, -5], [0, 0, -1], 0.0),  # the length does not matter
  ([0, 0, 1e-3], [0, 0, -1], 2.0),
  ([3, 0, 0], [0, 1, 0], 1.0),
  ([1, 1, 0], [1, 0, 0], 1 - 0.7071067812),
  ([0, 0, 0], [1, 0, 0], 1.0),  # no direction
]


@pytest.mark.parametrize(("pred", "target", "expected"), COSINE_LITERAL)
def test_cosine_literal(pred, target, expected):
  loss = cosine(
    np.array(pred, np.float32).reshape(1, 1, 1, 3),
    np.array(target, np.float32).reshape(1, 1, 1, 3),
    np.ones((1, 1, 1), bool),
    np.ones(1, bool),
  )
  np.testing.assert_allclose(loss.compute(), expected, atol=1e-6)


def test_cosine_matches_float64_with_its_gradient(numeric_gradient):
  rng = np.random.default_rng(0)
  pred = rng.normal(size=(2, 3, 4, 3)).astype(np.float32)
  target = rng.normal(size=(2, 3, 4, 3))
  target /= np.linalg.norm(target, axis=-1, keepdims=True)
  valid, present = rng.uniform(size=(2, 3, 4)) < 0.6, np.array([True, True])

  def reference(x):
    cosine = (x * target).sum(-1) / np.sqrt((x**2).sum(-1))
    return (1 - cosine)[valid].sum()

  loss, gradient = jax.value_and_grad(
    lambda x: cosine(x, target.astype(np.float32), valid, present).total
  )(pred)
  pred = pred.astype(np.float64)
  np.testing.assert_allclose(loss, reference(pred), rtol=1e-6)
  np.testing.assert_allclose(
    gradient, numeric_gradient(reference, pred), atol=1e-5
  )
