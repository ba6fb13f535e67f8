"""Which labels are likeliest wrong."""

import numpy as np
import pytest

from must_jax.curation import ranking
from must_jax.curation.ranking import Signals
from must_jax.fields import Boxes, ClassMap, ClassVector, ValueMap

CLASSES = ["cat", "dog"]
FIELDS = {"objects": {"kind": "Boxes", "classes": CLASSES}}


def boxes(*scores, k=0):
  places = np.linspace(0, 0.5, len(scores))[:, None] + [0, 0, 0.4, 0.4]
  return {
    "boxes": places,
    "classes": np.full(len(scores), k),
    "scores": np.float32(scores),
  }


def test_disagreement_goes_first_then_uncertainty():
  signals = [
    Signals({"a": 0.1}, {"p": 0.2}),
    Signals({"a": 0.9}, {"p": 0.2}),
    Signals({"a": 0.0}, {"p": 0.7}),
    Signals({"a": 0.5}, {"p": 0.0}),
  ]
  assert ranking.worst_first(signals) == [2, 1, 0, 3]


def test_scales_do_not_matter():
  rng = np.random.default_rng(0)
  values = rng.random((50, 2))
  small = [Signals({}, {"p": a, "q": b}) for a, b in values]
  large = [Signals({}, {"p": a, "q": 100 + 9 * b**3}) for a, b in values]
  assert ranking.worst_first(small) == ranking.worst_first(large)
  # Whoever is worst by both is worst.
  most = [Signals({}, {"p": 2.0, "q": 2.0}), *small]
  assert ranking.worst_first(most)[0] == 0


def test_without_comparisons_uncertainty_decides():
  values = [0.3, 0.1, 0.9, 0.5]
  signals = [Signals({"a": v}) for v in values]
  assert ranking.worst_first(signals) == [2, 3, 0, 1]
  assert ranking.worst_first([Signals(), *signals])[-1] == 0
  assert ranking.worst_first([]) == []
  assert ranking.suspicion([Signals()] * 3).tolist() == [0, 0, 0]


def test_equals_are_equal():
  signals = [Signals({"a": v}) for v in (0.5, 0.5, 0.1)]
  assert ranking.suspicion(signals).tolist() == [1, 1, 0]


@pytest.mark.parametrize("by_class", [False, True])
def test_boxes_are_unsure_near_the_threshold(by_class):
  field = Boxes(2, min_score=(0.8, 0.2) if by_class else 0.8)
  unsure = [field.uncertainty(boxes(s)) for s in (0.0, 0.4, 0.8, 0.9, 1.0)]
  np.testing.assert_allclose(unsure, [0, 0.5, 1, 0.5, 0], atol=1e-6)
  low = field.uncertainty(boxes(0.2, k=1))
  assert low == pytest.approx(1 if by_class else 0.25)
  # One more box is one more that may be wrong.
  assert field.uncertainty(boxes(0.4, 0.4)) == pytest.approx(1)
  # At 0.5 it is the margin of two classes.
  assert Boxes(2).uncertainty(boxes(0.7)) == pytest.approx(1 - 0.4)
  assert Boxes(2).uncertainty({"classes": [0], "boxes": []}) is None


def test_pixels_and_classes_are_unsure_by_their_probabilities():
  maps = {
    "classes": np.array([[0, 1], [255, 1]]),
    "confidence": np.float32([[0.9, 0.5], [0.1, 1]]),
  }
  assert ClassMap(2).uncertainty(maps) == pytest.approx(0.2)
  del maps["confidence"]
  assert ClassMap(2).uncertainty(maps) is None
  classes = {"classes": [1, 0], "probs": np.float32([0.3, 0.6])}
  assert ClassVector(2).uncertainty(classes) == pytest.approx(0.7)
  assert ClassVector(2).uncertainty({"classes": [1]}) is None
  assert ValueMap().uncertainty({"values": np.zeros((2, 2))}) is None


def test_rank_is_by_what_the_sets_say(scribbles, tmp_path):
  images = scribbles.make_images(tmp_path / "images", [(40, 50)] * 7)
  scores = [0.1, 0.6, 0.49, 0.95, 0.7, 0.2, 0.02]
  labels = [{"objects": boxes(s)} for s in scores]
  labels[5] = {"objects": boxes()}
  scribbles.label(tmp_path / "labels", images, labels, FIELDS)
  keys = ranking.rank([tmp_path / "labels"], images.directory)
  assert keys == [f"i-{i:04}" for i in (2, 1, 4, 0, 3, 6, 5)]
