import numpy as np
import pytest

from must_jax.metrics.depth import DepthError, align


def update_args(truth, pred, valid=None):
  truth, pred = np.array(truth, np.float32), np.array(pred, np.float32)
  everything = np.ones(len(truth), bool)
  valid = np.ones(truth.shape, bool) if valid is None else np.array(valid, bool)
  return (
    {"values": pred},
    {"values": truth, "valid": valid, "present": everything},
    {"valid": everything},
  )


def compute(truth, pred, valid=None, **kwargs):
  """Of images that are rows of pixels."""
  metric = DepthError(**kwargs)
  args = update_args(truth, pred, valid)
  args[0]["values"] = args[0]["values"][:, None]
  for name in ("values", "valid"):
    args[1][name] = args[1][name][:, None]
  metric.update(*args)
  return metric.compute()


def test_literal_metres():
  result = compute([[1, 2, 4, 5]], [[1.2, 2, 3, 10]])
  np.testing.assert_allclose(result["delta1"], 0.5)  # ratios 1.2 1 1.33 2
  np.testing.assert_allclose(
    result["abs_rel"], (0.2 + 0 + 0.25 + 1) / 4, rtol=1e-6
  )
  np.testing.assert_allclose(
    result["rmse"], np.sqrt((0.04 + 0 + 1 + 25) / 4), rtol=1e-6
  )


def test_averages_images_and_not_pixels():
  result = compute(
    [[1, 1, 1, 1], [2, 2, 2, 2]],
    [[1, 1, 1, 1], [1, 1, 1, 1]],
    [[1, 1, 1, 1], [1, 0, 0, 0]],
  )
  np.testing.assert_allclose(result["delta1"], 0.5)
  np.testing.assert_allclose(result["abs_rel"], 0.25)
  np.testing.assert_allclose(result["rmse"], 0.5)


def test_range():
  """Truth outside does not count, predictions are clipped."""
  result = compute(
    [[0.5, 1, 3, 4, 9]], [[9, 0.1, 99, 4, 0.1]], min_depth=0.5, max_depth=4
  )
  # Counted are 1 -> 0.5 and 3 -> 4; 0.5 and 4 are on the edge, 9 outside.
  np.testing.assert_allclose(result["abs_rel"], (0.5 + 1 / 3) / 2, rtol=1e-6)


def test_alignment_undoes_scale_and_shift_of_inverse_depth():
  truth = np.random.default_rng(0).uniform(1, 8, (3, 50))
  scale, shift = np.array([[2], [500], [-0.1]]), np.array([[7], [-90], [0.3]])
  result = compute(
    truth, scale / truth + shift, unit="inverse", label_unit="metres"
  )
  assert list(result) == ["aligned_delta1", "aligned_abs_rel", "aligned_rmse"]
  np.testing.assert_allclose(list(result.values()), [1, 0, 0], atol=1e-3)


def test_alignment_of_metres_happens_in_inverse_depth():
  truth = np.random.default_rng(0).uniform(1, 8, (2, 50))
  pred = 1 / (0.5 / truth + 0.1)
  result = compute(truth, pred)
  assert result["delta1"] < 0.9
  np.testing.assert_allclose(result["aligned_delta1"], 1)
  np.testing.assert_allclose(result["aligned_abs_rel"], 0, atol=1e-5)


def test_align_is_least_squares():
  rng = np.random.default_rng(0)
  values, target = rng.normal(size=30), rng.normal(size=30)
  design = np.stack([values, np.ones(30)], -1)
  solution = np.linalg.lstsq(design, target, rcond=None)[0]
  np.testing.assert_allclose(align(values, target), design @ solution)
  np.testing.assert_allclose(
    align(np.full(30, 0.1), target), np.full(30, target.mean())
  )


def test_aligned_prediction_stays_within_the_range():
  """Least squares may put far pixels beyond infinity; they are at the limit."""
  truth = [[9.9, 9.0, 8.0, 1.0]]
  pred = [[0.0, 1.0, 2.0, 3.0]]
  x, y = np.array(pred[0]), 1 / np.array(truth[0])
  slope = np.cov(x, y, bias=True)[0, 1] / x.var()
  line = slope * (x - x.mean()) + y.mean()
  assert line.min() < 0
  expected = 1 / np.clip(line, 0.1, 1000)
  result = compute(truth, pred, unit="inverse", label_unit="metres")
  np.testing.assert_allclose(
    result["aligned_rmse"], np.sqrt(np.mean((expected - truth[0]) ** 2)), 1e-6
  )


def test_inverse_labels():
  truth = np.random.default_rng(0).uniform(50, 900, (2, 60))
  result = compute(truth, 3 * truth + 8, unit="inverse")
  assert list(result) == ["aligned_delta1", "correlation"]
  np.testing.assert_allclose(list(result.values()), [1, 1])
  noise = np.random.default_rng(1).normal(size=truth.shape)
  pred = truth / 300 + noise
  result = compute(truth, pred, unit="inverse")
  moved = compute(0.01 * truth + 40, pred, unit="inverse")
  expected = np.mean(
    [np.corrcoef(t, p)[0, 1] for t, p in zip(truth, pred, strict=True)]
  )
  np.testing.assert_allclose(result["correlation"], expected, rtol=1e-5)
  np.testing.assert_allclose(moved["correlation"], expected, rtol=1e-3)
  assert 0.1 < result["aligned_delta1"] < 0.9


def test_inverse_labels_of_zero_are_infinitely_far_and_do_not_count():
  a = compute([[0, 1, 2, 3]], [[99, 1, 2, 2.5]], unit="inverse")
  b = compute([[1, 2, 3]], [[1, 2, 2.5]], unit="inverse")
  assert a == b


def test_constant_and_broken_predictions_give_numbers():
  truth = np.linspace(1, 8, 20)[None]
  for unit in ("metres", "inverse"):
    for pred in (np.zeros((1, 20)), np.full((1, 20), 0.1), truth * np.nan):
      for label_unit in ("metres", "inverse"):
        result = compute(truth, pred, unit=unit, label_unit=label_unit)
        assert np.isfinite(list(result.values())).all()
  assert compute(truth, truth * 0 + 0.1, unit="inverse")["correlation"] == 0


@pytest.mark.parametrize(
  ("kwargs", "headline"),
  [
    ({}, "delta1"),
    ({"unit": "metres"}, "delta1"),
    ({"unit": "inverse"}, "aligned_delta1"),
    ({"unit": "inverse", "label_unit": "metres"}, "aligned_delta1"),
  ],
)
def test_zero_without_valid_pixels(kwargs, headline):
  result = compute([[1.0, 2.0]], [[1.0, 2.0]], [[False, False]], **kwargs)
  assert set(result.values()) == {0.0}
  assert DepthError(**kwargs).headline == headline
  assert DepthError(**kwargs).compute() == result


def test_errors():
  with pytest.raises(ValueError, match="'feet'"):
    DepthError("feet")
  with pytest.raises(ValueError, match="0 < min_depth < max_depth"):
    DepthError(min_depth=10, max_depth=1)
  with pytest.raises(ValueError, match="equal shapes"):
    DepthError().update(*update_args(np.ones((1, 4, 4)), np.ones((1, 2, 2))))


def random_batch(rng):
  truth = rng.uniform(0.5, 12, (3, 6, 5))
  return update_args(
    truth,
    truth * rng.uniform(0.5, 1.5, truth.shape),
    rng.uniform(size=truth.shape) < 0.7,
  )


@pytest.mark.parametrize("unit", ["metres", "inverse"])
def test_streams(assert_streams, unit):
  rng = np.random.default_rng(0)
  assert_streams(
    lambda: DepthError(unit), [random_batch(rng) for _ in range(3)]
  )


def test_skips(assert_skips):
  assert_skips(DepthError, *random_batch(np.random.default_rng(1)))


def nyu_args(size, content, seed=0):
  """Two images of the size of the network, with content at the top left."""
  rng = np.random.default_rng(seed)
  truth = rng.uniform(0.5, 12, (2, *size))
  pred = truth * rng.uniform(0.7, 1.4, truth.shape)
  prediction, label, batch = update_args(truth, pred)
  batch["image"] = np.zeros((2, *size, 3), np.uint8)
  batch["content_size"] = np.float32([content, content])
  return prediction, label, batch


def test_crop_of_eigen_on_nyu():
  """Against rows 45:471 and columns 41:601 of 480 x 640, as in BTS."""
  prediction, label, batch = nyu_args((640, 640), (480, 640))
  metric = DepthError(crop="eigen")
  metric.update(prediction, label, batch)
  errors = []
  for pred, truth in zip(prediction["values"], label["values"], strict=True):
    pred, truth = pred[:480], truth[:480]
    mask = np.zeros((480, 640), bool)
    mask[45:471, 41:601] = True
    mask &= (truth > 1e-3) & (truth < 10)
    pred = np.clip(pred, 1e-3, 10)[mask].astype(np.float64)
    truth = truth[mask].astype(np.float64)
    ratio = np.maximum(pred / truth, truth / pred)
    errors.append(
      (
        (ratio < 1.25).mean(),
        (np.abs(truth - pred) / truth).mean(),
        np.sqrt(((truth - pred) ** 2).mean()),
      )
    )
  result = metric.compute()
  np.testing.assert_allclose(
    [result["delta1"], result["abs_rel"], result["rmse"]],
    np.mean(errors, 0),
    rtol=1e-12,
  )


def test_crop_follows_the_content():
  """The same picture at half the size has the same crop, up to edge cells."""
  metric = DepthError(crop="eigen")
  for content, expected in (((480, 640), (426, 560)), ((240, 320), (213, 280))):
    prediction, label, batch = nyu_args((640, 640), content)
    # Right inside of the crop and wrong outside.
    bottom, right = content[0] * 471 / 480, content[1] * 601 / 640
    top, left = content[0] * 45 / 480, content[1] * 41 / 640
    y, x = np.mgrid[:640, :640] + 0.5
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    assert (inside.any(1).sum(), inside.any(0).sum()) == expected
    label["values"] = np.full((2, 640, 640), 2.0, np.float32)
    prediction["values"] = np.where(inside, 2, 9) * np.ones((2, 1, 1))
    metric.update(prediction, label, batch)
  result = metric.compute()
  assert result["delta1"] == 1
  assert result["abs_rel"] == 0
  assert result["whole_delta1"] < 0.9


def test_crop_streams_and_skips(assert_streams, assert_skips):
  def make():
    return DepthError(crop="eigen")

  batches = [nyu_args((32, 32), (24, 32), seed) for seed in range(3)]
  assert_streams(make, batches)
  assert_skips(make, *batches[0])


def test_without_a_crop_nothing_is_whole():
  prediction, label, batch = nyu_args((64, 64), (48, 64))
  cropped, whole = DepthError(crop="eigen"), DepthError()
  for metric in (cropped, whole):
    metric.update(prediction, label, batch)
  assert whole.compute() == {
    name.removeprefix("whole_"): value
    for name, value in cropped.compute().items()
    if name.startswith("whole_")
  }


def test_unknown_crop():
  with pytest.raises(ValueError, match=r"Crop of depth is 'egen'; .*'eigen'"):
    DepthError(crop="egen")
