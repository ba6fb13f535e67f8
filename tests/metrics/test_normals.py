import numpy as np
import pytest

from must_jax.metrics.normals import AngularError, angle


def update_args(truth, pred, valid=None):
  truth, pred = np.array(truth, np.float32), np.array(pred, np.float32)
  everything = np.ones(len(truth), bool)
  valid = np.ones(truth.shape[:-1], bool) if valid is None else valid
  return (
    {"vectors": pred},
    {"vectors": truth, "valid": valid, "present": everything},
    {"valid": everything},
  )


def at(degrees):
  """Vectors at these angles from (0, 0, -1)."""
  radians = np.radians(np.array(degrees, np.float64))
  return np.stack(
    [np.sin(radians), np.zeros_like(radians), -np.cos(radians)], -1
  )


def compute(degrees, valid=None):
  metric = AngularError()
  pred = at(degrees)[None, None]
  truth = np.broadcast_to(at(0.0), pred.shape)
  valid = None if valid is None else np.array(valid)[None, None]
  metric.update(*update_args(truth, pred, valid))
  return metric.compute()


def test_literal():
  result = compute([0, 11, 12, 22, 23, 29, 31, 90])
  assert result["within_11.25"] == 2 / 8
  assert result["within_22.5"] == 4 / 8
  assert result["within_30"] == 6 / 8
  np.testing.assert_allclose(result["mean"], 218 / 8, rtol=1e-6)
  np.testing.assert_allclose(result["median"], 22.5, atol=0.0051)


def test_valid_pixels_only():
  assert compute([5, 80, 20], [True, False, True]) == compute([5, 20])


@pytest.mark.parametrize("degrees", [1e-3, 0.5, 89.99, 90, 179, 179.999])
def test_angle_is_exact_at_both_ends(degrees):
  for length in (1e-3, 1.0, 500.0):
    error = angle(length * at([degrees]), at([0.0]))
    np.testing.assert_allclose(error, [degrees], rtol=1e-9)


def test_no_direction_is_wrong():
  broken = [[0, 0, 0], [np.nan, 0, -1], [np.inf, 0, 0]]
  error = angle(np.array(broken), np.repeat(at([0.0]), 3, 0))
  np.testing.assert_array_equal(error, [180, 180, 180])


def test_without_pixels():
  expected = {
    "within_11.25": 0.0,
    "within_22.5": 0.0,
    "within_30": 0.0,
    "mean": 180.0,
    "median": 180.0,
  }
  assert AngularError().compute() == expected
  assert compute([5, 6], [False, False]) == expected


def random_batch(rng, shape=(3, 6, 7)):
  def unit():
    v = rng.normal(size=(*shape, 3))
    return v / np.linalg.norm(v, axis=-1, keepdims=True)

  truth = unit()
  return update_args(truth, truth + 0.4 * unit(), rng.uniform(size=shape) < 0.7)


def test_streams_and_matches_all_angles(assert_streams):
  rng = np.random.default_rng(0)
  batches = [random_batch(rng) for _ in range(3)]
  result = assert_streams(AngularError, batches)
  errors = []
  for prediction, label, _ in batches:
    pred, truth = prediction["vectors"], label["vectors"]
    cosine = (pred.astype(np.float64) * truth).sum(-1)
    cosine /= np.linalg.norm(pred.astype(np.float64), axis=-1)
    cosine /= np.linalg.norm(truth.astype(np.float64), axis=-1)
    errors.append(np.degrees(np.arccos(cosine))[label["valid"]])
  errors = np.concatenate(errors)
  for name, expected in (
    ("within_11.25", np.mean(errors < 11.25)),
    ("within_22.5", np.mean(errors < 22.5)),
    ("within_30", np.mean(errors < 30)),
    ("mean", errors.mean()),
  ):
    np.testing.assert_allclose(result[name], expected, rtol=1e-7)
  np.testing.assert_allclose(result["median"], np.median(errors), atol=0.0051)


def test_skips(assert_skips):
  assert_skips(AngularError, *random_batch(np.random.default_rng(1)))
