import numpy as np
import pytest

from must_jax.metrics.miou import MeanIoU

NAMES = ("sky", "road", "tree")


def update_args(truth, pred):
  truth, pred = np.array(truth), np.array(pred)
  everything = np.ones(len(truth), bool)
  return (
    {"classes": pred},
    {"classes": truth, "present": everything},
    {"valid": everything},
  )


def compute(truth, pred):
  metric = MeanIoU(NAMES)
  metric.update(*update_args([[truth]], [[pred]]))
  return metric.compute()


def test_literal():
  result = compute([0, 0, 0, 1, 1, 255], [0, 0, 1, 1, 1, 2])
  # "tree" is predicted only where nothing is labelled, so it does not occur.
  assert result == {
    "mIoU": pytest.approx((2 / 3 + 2 / 3) / 2),
    "pixel_accuracy": pytest.approx(4 / 5),
    "IoU/sky": pytest.approx(2 / 3),
    "IoU/road": pytest.approx(2 / 3),
  }


def test_a_class_that_is_only_predicted_counts_as_zero():
  result = compute([0, 0], [0, 2])
  assert result["IoU/tree"] == 0
  assert "IoU/road" not in result
  assert result["mIoU"] == pytest.approx(0.25)


def test_labels_outside_the_classes_do_not_count():
  assert compute([0, 1, -1, 3, 200], [0, 1, 0, 1, 2]) == compute([0, 1], [0, 1])


@pytest.mark.parametrize("other", [-1, 3, 255])
def test_predictions_outside_the_classes_are_wrong(other):
  result = compute([0, 0, 1], [0, other, 1])
  assert result["IoU/sky"] == 0.5
  assert result["IoU/road"] == 1
  assert result["pixel_accuracy"] == pytest.approx(2 / 3)


def test_zero_without_labelled_pixels():
  assert compute([255], [0]) == {"mIoU": 0.0, "pixel_accuracy": 0.0}
  assert MeanIoU(NAMES).compute() == {"mIoU": 0.0, "pixel_accuracy": 0.0}


def test_wants_maps_of_the_same_size():
  with pytest.raises(ValueError, match="equal shapes"):
    MeanIoU(NAMES).update(
      *update_args(np.zeros((1, 4, 4), int), np.zeros((1, 2, 2), int))
    )


def random_batch(rng):
  truth = rng.choice([0, 1, 2, 255], (3, 5, 4)).astype(np.uint8)
  return update_args(truth, rng.integers(0, 3, truth.shape))


def test_streams_and_matches_sets_of_pixels(assert_streams):
  rng = np.random.default_rng(0)
  batches = [random_batch(rng) for _ in range(3)]
  result = assert_streams(lambda: MeanIoU(NAMES), batches)
  truth = np.concatenate([b[1]["classes"].ravel() for b in batches])
  pred = np.concatenate([b[0]["classes"].ravel() for b in batches])
  truth, pred = truth[truth != 255], pred[truth != 255]
  ious = []
  for k in range(3):
    a, b = set(np.flatnonzero(truth == k)), set(np.flatnonzero(pred == k))
    ious.append(len(a & b) / len(a | b))
    np.testing.assert_allclose(result[f"IoU/{NAMES[k]}"], ious[-1])
  np.testing.assert_allclose(result["mIoU"], np.mean(ious))


def test_skips(assert_skips):
  assert_skips(lambda: MeanIoU(NAMES), *random_batch(np.random.default_rng(1)))


def test_a_class_that_an_image_was_not_labelled_for_is_not_measured_there():
  metric = MeanIoU(("a", "b", "c"))
  truth = np.array([[[0, 0], [1, 1]], [[2, 2], [0, 1]]])
  pred = np.array([[[0, 2], [1, 2]], [[2, 0], [0, 1]]])
  known = np.array([[True, True, False], [True, True, True]])
  label = {"classes": truth, "present": np.ones(2, bool), "known": known}
  metric.update({"classes": pred}, label, {"valid": np.ones(2, bool)})
  found = metric.compute()
  # Of the first image both pixels of c are wrong, and none of them c's.
  assert found["IoU/a"] == 2 / 4
  assert found["IoU/b"] == 2 / 3
  assert found["IoU/c"] == 1 / 2
  assert found["pixel_accuracy"] == 5 / 8
