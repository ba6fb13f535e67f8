import numpy as np
import pytest

from must_jax.metrics.coco import CocoAP
from must_jax.metrics.detections import DetectionMetric
from must_jax.metrics.voc import VocAP


class Collect(DetectionMetric):
  headline = "count"

  def compute(self):
    return {"count": float(len(self._images))}


def test_boxes_go_to_the_pixels_of_the_stored_image():
  metric = Collect(("a", "b"))
  prediction = {
    "boxes": np.array(
      [
        [
          [10, 10, 20, 30],
          [-5, 50, 40, 90],  # clipped to the content
          [0, 65, 10, 80],  # on padding only
          [1, 1, 2, 2],  # filler
        ]
      ],
      np.float32,
    ),
    "scores": np.array([[0.5, 0.25, 0.9, 0.0]], np.float32),
    "classes": np.array([[1, 0, 1, 0]]),
    "valid": np.array([[True, True, True, False]]),
  }
  objects = {
    "boxes": np.array([[[0, 0, 32, 64], [9, 9, 9, 9]]], np.float32),
    "classes": np.array([[1, 0]]),
    "valid": np.array([[True, False]]),
    "ignore": np.array([[True, False]]),
    "present": np.array([True]),
  }
  batch = {
    "valid": np.array([True]),
    "content_size": np.array([[32, 64]], np.float32),
    "original_size": np.array([[96, 128]], np.float32),
    "position": np.array([7]),
  }
  metric.update(prediction, objects, batch)
  (image,) = metric.images()
  assert image.position == 7
  np.testing.assert_array_equal(image.size, [96, 128])
  np.testing.assert_array_equal(
    image.boxes, [[30, 20, 60, 60], [0, 100, 96, 128]]
  )
  np.testing.assert_array_equal(image.scores, [0.5, 0.25])
  np.testing.assert_array_equal(image.classes, [1, 0])
  np.testing.assert_array_equal(image.gt_boxes, [[0, 0, 96, 128]])
  np.testing.assert_array_equal(image.gt_classes, [1])
  np.testing.assert_array_equal(image.gt_ignore, [True])


def test_images_come_in_the_order_of_the_data_set(detection_batches):
  batches = list(detection_batches(np.random.default_rng(0)))
  metric = Collect(("a", "b", "c"))
  for args in reversed(batches):
    other = Collect(("a", "b", "c"))
    other.update(*args)
    metric.merge(other)
  assert [image.position for image in metric.images()] == list(range(12))


@pytest.mark.parametrize("kind", [CocoAP, VocAP])
def test_a_class_is_measured_on_the_images_that_know_it(
  detection_batches, kind
):
  names = ("a", "b", "c")
  rng = np.random.default_rng(1)
  metric = kind(names)
  alone = [kind(names) for _ in names]
  for prediction, truth, batch in detection_batches(rng):
    known = rng.random((3, 3)) < 0.6
    labelled = np.take_along_axis(known, truth["classes"], 1)
    truth = truth | {"valid": truth["valid"] & labelled}
    metric.update(prediction, truth | {"known": known}, batch)
    for k, other in enumerate(alone):
      seen = truth | {"present": truth["present"] & known[:, k]}
      other.update(prediction, seen, batch)
  found = metric.compute()
  for name, other in zip(names, alone, strict=True):
    key = next(key for key in found if key.endswith(f"/{name}"))
    assert 0 < found[key] < 1
    assert found[key] == pytest.approx(other.compute()[key], abs=1e-12)
