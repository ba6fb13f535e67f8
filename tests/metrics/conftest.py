import copy
import pickle

import numpy as np
import pytest


def _assert_streams(make, update_args):
  """Batches, order, merging and pickling do not alter what a metric computes.

  Args:
    make: () -> a fresh metric.
    update_args: one (prediction, label, batch) for each of some batches.

  Returns:
    What the metric computes from all of them.
  """
  update_args = list(update_args)
  assert len(update_args) >= 3
  before = copy.deepcopy(update_args)
  whole = make()
  for args in update_args:
    whole.update(*args)
  expected = whole.compute()
  assert whole.headline in expected
  assert all(type(value) is float for value in expected.values())
  assert np.isfinite(list(expected.values())).all()

  for order in (range(len(update_args)), reversed(range(len(update_args)))):
    merged = make()
    for i in order:
      part = make()
      part.update(*update_args[i])
      merged.merge(pickle.loads(pickle.dumps(part)))
    assert list(merged.compute()) == list(expected)
    np.testing.assert_allclose(
      list(merged.compute().values()), list(expected.values()), rtol=1e-12
    )
    merged.merge(make())
    np.testing.assert_allclose(
      list(merged.compute().values()), list(expected.values()), rtol=1e-12
    )
  assert whole.compute() == expected, "compute() must not consume"
  assert pickle.dumps(update_args) == pickle.dumps(before), "inputs written"
  return expected


def _assert_skips(make, prediction, label, batch):
  """Filler examples and examples without a label change nothing.

  Args:
    make: () -> a fresh metric.
    prediction: of one batch of at least 3 examples.
    label: arrays of the field that is measured.
    batch: the batch.
  """

  def rows(tree, index):
    if isinstance(tree, dict):
      return {key: rows(value, index) for key, value in tree.items()}
    return np.asarray(tree)[index]

  few = make()
  few.update(rows(prediction, [0]), rows(label, [0]), rows(batch, [0]))
  batch = copy.deepcopy(batch)
  label = copy.deepcopy(label)
  batch["valid"] = np.arange(len(batch["valid"])) != 1
  label["present"] = np.arange(len(batch["valid"])) < 2
  for array in (*prediction.values(), *label.values()):
    if array.dtype.kind == "f":
      array[1:] = np.nan
  some = make()
  some.update(prediction, label, batch)
  assert some.compute() == few.compute()


def _detection_batches(rng, num_batches=4, b=3, g=5, d=9, num_classes=3):
  """Batches of boxes on integers, exact in any arithmetic, distinct scores.

  Images are stored at twice the network's pixels in y and four times in x.
  """
  scores = rng.permutation(num_batches * b * d).astype(np.float32)
  scores = (scores / scores.size).reshape(num_batches, b, d)

  def boxes(n):
    low = rng.integers(0, 20, (b, n, 2))
    return np.concatenate([low, low + rng.integers(8, 30, (b, n, 2))], -1)

  for i in range(num_batches):
    gt_boxes, gt_classes = boxes(g), rng.integers(0, num_classes, (b, g))
    # Some detections near a box of the truth, others anywhere.
    source = rng.integers(0, g, (b, d))
    near = np.take_along_axis(gt_boxes, source[..., None], 1)
    near = near + rng.integers(-1, 2, near.shape)
    hit = rng.uniform(size=(b, d)) < 0.7
    classes = np.take_along_axis(gt_classes, source, 1)
    yield (
      {
        "boxes": np.where(hit[..., None], near, boxes(d)).astype(np.float32),
        "scores": scores[i],
        "classes": np.where(hit, classes, rng.integers(0, num_classes, (b, d))),
        "valid": rng.uniform(size=(b, d)) < 0.8,
      },
      {
        "boxes": gt_boxes.astype(np.float32),
        "classes": gt_classes,
        "valid": rng.uniform(size=(b, g)) < 0.8,
        "ignore": rng.uniform(size=(b, g)) < 0.2,
        "present": np.ones(b, bool),
      },
      {
        "valid": np.ones(b, bool),
        "content_size": np.full((b, 2), (52, 56), np.float32),
        "original_size": np.full((b, 2), (104, 224), np.float32),
        "position": np.arange(b) + b * i,
      },
    )


@pytest.fixture
def detection_batches():
  return _detection_batches


@pytest.fixture
def assert_streams():
  return _assert_streams


@pytest.fixture
def assert_skips():
  return _assert_skips
