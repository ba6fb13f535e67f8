import collections

import numpy as np
import pytest

from must_jax.metrics.accuracy import MAX_BY_CLASS, Accuracy


def update_args(truth, probs):
  truth, probs = np.array(truth, np.float32), np.array(probs, np.float32)
  everything = np.ones(len(truth), bool)
  return (
    {"probs": probs},
    {"probs": truth, "present": everything},
    {"valid": everything},
  )


LITERAL = [
  # label, prediction, right
  ([1, 0, 0], [0.5, 0.3, 0.2], 1),
  ([0, 1, 0], [0.5, 0.3, 0.2], 0),
  ([1, 0, 1], [0.2, 0.3, 0.5], 1),  # multi-hot: any of the labels
  ([1, 0, 1], [0.2, 0.5, 0.3], 0),
  ([0.2, 0.5, 0.3], [0.1, 0.6, 0.3], 1),  # soft: the likeliest
  ([0.2, 0.5, 0.3], [0.1, 0.3, 0.6], 0),
  ([1, 0, 0], [0.5, 0.5, 0.0], 1),  # ties go to the lower class
  ([0, 1, 0], [0.5, 0.5, 0.0], 0),
]


@pytest.mark.parametrize(("truth", "probs", "right"), LITERAL)
def test_literal(truth, probs, right):
  metric = Accuracy("abc")
  metric.update(*update_args([truth], [probs]))
  assert metric.compute()["top1"] == right


def test_examples_without_any_class_do_not_count():
  metric = Accuracy("ab")
  metric.update(*update_args([[1, 0], [0, 0], [0, 1]], [[0.9, 0.1]] * 3))
  assert metric.compute() == {"top1": 0.5, "top1/a": 1.0, "top1/b": 0.0}


def test_top5_only_with_more_than_five_classes():
  assert Accuracy("abcde").compute() == {"top1": 0.0}
  assert Accuracy("abcdef").compute() == {"top1": 0.0, "top5": 0.0}
  probs = np.arange(7)[::-1] / 28  # class 0 first, class 6 last
  metric = Accuracy("abcdefg")
  metric.update(*update_args(np.eye(7), [probs] * 7))
  np.testing.assert_allclose(metric.compute()["top1"], 1 / 7)
  np.testing.assert_allclose(metric.compute()["top5"], 5 / 7)


def random_batch(rng, b=6, k=8):
  truth = np.eye(k)[rng.integers(0, k, b)]
  return update_args(truth, rng.dirichlet(np.ones(k), b))


def test_streams_and_matches_counting(assert_streams):
  rng = np.random.default_rng(0)
  batches = [random_batch(rng) for _ in range(4)]
  result = assert_streams(lambda: Accuracy("abcdefgh"), batches)
  top1 = top5 = 0
  for prediction, label, _ in batches:
    for p, t in zip(prediction["probs"], label["probs"], strict=True):
      rank = int((p > p[t.argmax()]).sum())
      top1 += rank == 0
      top5 += rank < 5
  np.testing.assert_allclose(result["top1"], top1 / 24)
  np.testing.assert_allclose(result["top5"], top5 / 24)
  right, count = collections.Counter(), collections.Counter()
  for prediction, label, _ in batches:
    for p, t in zip(prediction["probs"], label["probs"], strict=True):
      count["abcdefgh"[t.argmax()]] += 1
      right["abcdefgh"[t.argmax()]] += p.argmax() == t.argmax()
  found = {k: v for k, v in result.items() if "/" in k}
  assert found == {f"top1/{k}": right[k] / count[k] for k in count}


def test_an_image_with_several_classes_counts_for_each():
  metric = Accuracy("abc")
  metric.update(*update_args([[1, 0, 1], [0, 0, 1]], [[0.8, 0.1, 0.1]] * 2))
  assert metric.compute() == {"top1": 0.5, "top1/a": 1.0, "top1/c": 0.5}


def test_many_classes_are_not_told_one_by_one():
  names = tuple(str(k) for k in range(MAX_BY_CLASS + 1))
  metric = Accuracy(names)
  eye = np.eye(len(names))
  metric.update(*update_args(eye, eye))
  assert metric.compute() == {"top1": 1.0, "top5": 1.0}


def test_skips(assert_skips):
  assert_skips(
    lambda: Accuracy("abcdefgh"), *random_batch(np.random.default_rng(1))
  )
