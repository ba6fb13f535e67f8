import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax.fields import ValueMap
from must_jax.tasks import (
  TASKS,
  HeadOptions,
  make_task,
  task_of_field,
  task_options,
)
from must_jax.tasks.task import crop_to_content, sum_of_means

CLASSES = ("ball", "box", "cone")
LABELLED = sorted(set(TASKS) - {"contrastive"})  # which has no labels
B, SIZE, CELLS = 2, (64, 64), (16, 16)
SMALL = {
  "fc_dims": 8,
  "num_rois": 8,
  "rpn_samples": 16,
  "rpn_pre_nms": 16,
  "rpn_post_nms": 8,
  "max_detections": 8,
}


def small_task(kind):
  options = {k: v for k, v in SMALL.items() if k in task_options(kind)}
  return make_task(kind, "it", CLASSES, options)


def empty_labels(present):
  """Labels in which nothing is valid, as the data layer fills them in."""
  flag = jnp.full(B, present)
  return {
    "label": {"probs": jnp.zeros((B, 3)), "present": flag},
    "objects": {
      "boxes": jnp.zeros((B, 4, 4)),
      "classes": jnp.zeros((B, 4), jnp.int32),
      "scores": jnp.zeros((B, 4)),
      "valid": jnp.zeros((B, 4), bool),
      "ignore": jnp.zeros((B, 4), bool),
      "present": flag,
    },
    "mask": {
      "classes": jnp.full((B, *CELLS), 255, jnp.int32),
      "present": flag,
    },
    "depth": {
      "values": jnp.zeros((B, *CELLS)),
      "valid": jnp.zeros((B, *CELLS), bool),
      "present": flag,
    },
    "normals": {
      "vectors": jnp.zeros((B, *CELLS, 3)),
      "valid": jnp.zeros((B, *CELLS), bool),
      "present": flag,
    },
  }


def run_head(task, labels, train):
  options = HeadOptions(8, 2, 4, jnp.float32, 0.9, 1e-3)
  head = task.make_head(options)
  keys = jax.random.split(jax.random.key(0), 5)
  features = {
    level: jax.random.normal(key, (B, 64 >> level, 64 >> level, 8))
    for level, key in zip((2, 3, 4), keys, strict=False)
  }
  features["c5"] = jax.random.normal(keys[3], (B, 2, 2, 8))
  features["p2"] = jax.random.normal(keys[4], (B, *CELLS, 8))
  features["image_size"] = SIZE
  variables = head.init(keys[0], features)
  if not train:
    return head.apply(variables, features)
  outputs, _ = head.apply(
    variables,
    features,
    labels=labels,
    train=True,
    rngs={"sample": keys[1], "dropout": keys[2]},
    mutable=["batch_stats"],
  )
  return outputs


@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize("kind", LABELLED)
def test_loss_is_finite_with_nothing_to_learn_from(kind, present):
  task = small_task(kind)
  labels = {name: empty_labels(present)[name] for name in task.fields}
  outputs = run_head(task, labels, train=True)
  parts = task.loss(outputs, {"labels": {"it": labels}})
  total = sum_of_means(parts)
  assert np.isfinite(float(total))
  if not present:
    assert float(total) == 0.0


@pytest.mark.parametrize("kind", LABELLED)
def test_predictions_become_labels_and_pictures(kind):
  task = small_task(kind)
  outputs = run_head(task, None, train=False)
  predictions = jax.device_get(task.predict(outputs))
  one = {k: np.asarray(v)[0] for k, v in predictions.items()}
  labels = task.to_labels(one, np.array([48.0, 64.0], np.float32), SIZE)
  assert set(labels) == set(task.fields)
  image = np.zeros((*SIZE, 3), np.uint8)
  assert task.draw(image, one).shape == (*SIZE, 3)
  if kind in ("segmentation", "depth", "normals"):
    resized = task.predict(outputs, SIZE)
    assert {v.shape[1:3] for v in resized.values()} == {SIZE}


def test_detection_labels_are_normalised_by_the_content():
  task = small_task("detection")
  prediction = {
    "boxes": np.array([[0, 0, 24, 32], [50, 0, 60, 10], [0, 0, 9, 9.0]]),
    "scores": np.array([0.9, 0.8, 0.7]),
    "classes": np.array([2, 1, 0]),
    "valid": np.array([True, True, False]),
  }
  objects = task.to_labels(prediction, np.array([48.0, 64.0]), SIZE)["objects"]
  # The second lies on the padding below the content, the third is filler.
  np.testing.assert_allclose(objects["boxes"], [[0, 0, 0.5, 0.5]])
  assert objects["classes"].tolist() == [2]


@pytest.mark.parametrize(
  ("multi_label", "probs", "hard"),
  [
    (False, [[0.2, 0.5, 0.3], [0.35, 0.4, 0.25]], [[0, 1, 0], [0, 1, 0]]),
    (True, [[0.2, 0.5, 0.9], [0.4, 0.3, 0.1]], [[0, 1, 1], [0, 0, 0]]),
  ],
)
def test_hard_classes_are_learned_as_if_they_were_stored(
  multi_label, probs, hard
):
  def loss(labels, **options):
    options["multi_label"] = multi_label
    task = make_task("classification", "it", CLASSES, options)
    outputs = {"logits": jnp.asarray([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])}
    label = {
      "probs": jnp.asarray(labels, jnp.float32),
      "present": jnp.ones(B, bool),
    }
    return float(
      sum_of_means(task.loss(outputs, {"labels": {"it": {"label": label}}}))
    )

  assert loss(probs, soft_labels=False) == loss(hard) != loss(probs)
  assert loss(hard, soft_labels=False) == loss(hard)


def test_classification_keeps_the_top_k():
  task = make_task("classification", "it", tuple("abcd"), {"top_k": 2})
  label = task.to_labels(
    {"probs": np.array([0.1, 0.4, 0.2, 0.3], np.float32)}, None, SIZE
  )["label"]
  assert label["classes"].tolist() == [1, 3]
  np.testing.assert_allclose(label["probs"], [0.4, 0.3])


def test_crop_to_content_spans_the_content_exactly():
  # A ramp over the input; its value at a place does not depend on the grid.
  ramp = ((np.arange(16) + 0.5) * 4)[:, None] * np.ones((1, 16))
  cropped = crop_to_content(ramp, np.array([50.0, 64.0]), SIZE, nearest=False)
  rows = len(cropped)
  assert rows in (12, 13)
  expected = (np.arange(rows) + 0.5) * 50 / rows
  np.testing.assert_allclose(cropped[:, 0], expected, atol=1e-6)
  classes = np.repeat(np.arange(16)[:, None], 16, 1)
  near = crop_to_content(classes, np.array([32.0, 64.0]), SIZE, nearest=True)
  assert near[:, 0].tolist() == list(range(8))


@pytest.mark.parametrize("nearest", [True, False])
def test_crop_to_content_leaves_a_map_of_content_alone_as_it_is(nearest):
  array = np.random.default_rng(0).random((16, 16, 3)).astype(np.float32)
  whole = crop_to_content(array, np.array(SIZE), SIZE, nearest=nearest)
  np.testing.assert_array_equal(whole, array)
  rows = crop_to_content(
    array, np.array([SIZE[0] / 2, SIZE[1]]), SIZE, nearest=nearest
  )
  np.testing.assert_array_equal(rows, array[:8])


def test_options_are_checked():
  with pytest.raises(ValueError, match=r"no option \['colour'\]; it has"):
    make_task("depth", "it", (), {"colour": 1})
  with pytest.raises(ValueError, match="unit is 'feet'"):
    make_task("depth", "it", (), {"unit": "feet"})
  with pytest.raises(ValueError, match="metric is 'f1'"):
    make_task("detection", "it", CLASSES, {"metric": "f1"})


def test_a_task_of_several_fields_says_which_is_measured():
  class Two(TASKS["depth"]):
    @property
    def fields(self):
      return {"near": ValueMap(), "far": ValueMap()}

  with pytest.raises(
    ValueError, match=r"\['far', 'near'\].*override `measured`"
  ):
    assert Two("it").measured
  assert small_task("depth").measured == "depth"


@pytest.mark.parametrize("kind", LABELLED)
def test_a_field_has_the_task_that_reads_it(kind):
  ((name, field),) = make_task(kind, kind, CLASSES, {}).fields.items()
  description = field.describe(CLASSES)
  assert task_of_field(name, description) == make_task(kind, kind, CLASSES, {})


def test_the_unit_of_a_field_is_that_of_its_task():
  description = {"kind": "ValueMap", "unit": "metres"}
  assert task_of_field("depth", description).unit == "metres"
  assert task_of_field("depth", {"kind": "ValueMap"}).unit == "inverse"
