"""Floors against brute force, and against a network that says the same."""

import collections
import io
import itertools
import statistics

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from must_jax import config as config_lib
from must_jax.config import base_config, dataset, smoke, task
from must_jax.input import sources
from must_jax.lab.floors import floor
from must_jax.storage.set_writer import write_image_set
from must_jax.tasks import make_task
from must_jax.train import mesh as mesh_lib
from must_jax.train import runtime
from must_jax.train.build import build_tasks
from must_jax.train.evaluate import Evaluator

SIZE = 32
CLASSES = ["a", "b", "c"]
OPTIONS = {
  "classification": {},
  "segmentation": {},
  "depth": {"unit": "metres", "objective": "berhu"},
  "normals": {},
  "detection": {},
}
# Neither a ratio of two of them nor one with a mean of two is near 1.25.
DEPTHS = (1.0, 1.1, 1.7, 2.3, 2.4)
UNKNOWN = 255


def make_labels(rng, size):
  """Of one image; neighbouring pixels have nothing to do with each other."""
  vectors = rng.normal(size=(*size, 3)) + (0, 0, -1)
  boxes = np.array([[0.1, 0.1, 0.6, 0.7]], np.float32)
  return {
    "label": {"classes": rng.choice(3, 1, p=(0.2, 0.5, 0.3))},
    "mask": {"classes": rng.choice([0, 1, 2, UNKNOWN], size).astype(np.uint8)},
    "depth": {
      "values": rng.choice(DEPTHS, size).astype(np.float32),
      "valid": rng.random(size) < 0.6,
    },
    "normals": {
      "vectors": vectors / np.linalg.norm(vectors, axis=-1, keepdims=True),
      "valid": rng.random(size) < 0.6,
    },
    "objects": {"boxes": boxes, "classes": np.array([1])},
  }


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
  """The directory of an image set, and its labels by split."""
  directory = tmp_path_factory.mktemp("floors") / "it"
  rng = np.random.default_rng(0)
  fields = {
    field: value.describe(CLASSES if value.has_classes else ())
    for kind, options in OPTIONS.items()
    for field, value in make_task(
      kind, "it", tuple(CLASSES), options
    ).fields.items()
  }
  labels = {}
  # The lower part of the input is padding of all images to learn from.
  for split, sizes in (
    ("train", [(24, 32), (24, 32), (20, 32), (24, 32), (16, 32), (24, 32)]),
    ("validation", [(32, 32), (24, 32), (32, 24)]),
  ):
    examples = []
    for i, size in enumerate(sizes):
      file = io.BytesIO()
      pixels = rng.integers(0, 256, (*size, 3), np.uint8)
      Image.fromarray(pixels).save(file, "PNG")
      examples.append(
        {"key": str(i), "image": file.getvalue(), "height": size[0]}
        | {"width": size[1], "labels": make_labels(rng, size)}
      )
    write_image_set(directory, "it", split, examples, fields)
    labels[split] = [example["labels"] for example in examples]
  return directory, labels


def make_config(directory, kind):
  config = base_config()
  for split in ("train", "validation"):
    config.datasets[split] = dataset(str(directory), split)
  config.train_on, config.evaluate_on = ("train",), ("validation",)
  labels = dict.fromkeys(config.datasets, "supervised")
  config.tasks.it = task(kind, labels=labels, **OPTIONS[kind])
  config = smoke(config)
  config.data.update({"image_size": (SIZE, SIZE), "eval_batch_size": 2})
  return config


def measured(sets, tmp_path, kind):
  text = config_lib.to_json(make_config(sets[0], kind))
  return {
    key.removeprefix("validation/it/"): value
    for key, value in floor(tmp_path, text).items()
  }


def pixels(label, field, array):
  """{(row, column): value} of the pixels that are known."""
  values = label[field][array]
  valid = label[field].get("valid", np.ones(values.shape[:2], bool))
  return {
    (y, x): values[y, x]
    for y, x in itertools.product(*map(range, values.shape[:2]))
    if valid[y, x] and not np.array_equal(values[y, x], UNKNOWN)
  }


def by_pixel(labels, field, array):
  """What is known of each pixel of the input, and of all together."""
  found = collections.defaultdict(list)
  for label in labels:
    for place, value in pixels(label, field, array).items():
      found[place].append(value)
  return found, list(itertools.chain(*found.values()))


def test_the_most_frequent_class(sets, tmp_path):
  train, validation = (
    [int(label["label"]["classes"][0]) for label in sets[1][split]]
    for split in ("train", "validation")
  )
  (best, count), (_, next_count) = collections.Counter(train).most_common(2)
  assert count > next_count
  found = measured(sets, tmp_path, "classification")
  assert found["top1"] == pytest.approx(validation.count(best) / 3)


def most_frequent(classes):
  return max(range(3), key=lambda k: (classes.count(k), -k))


def test_the_most_frequent_class_of_each_pixel(sets, tmp_path):
  known, everything = by_pixel(sets[1]["train"], "mask", "classes")
  shared, either = collections.Counter(), collections.Counter()
  right = total = 0
  for label in sets[1]["validation"]:
    for place, truth in pixels(label, "mask", "classes").items():
      pred = most_frequent(known[place] or everything)
      right, total = right + (pred == truth), total + 1
      shared[truth] += pred == truth
      for k in {pred, int(truth)}:
        either[k] += 1
  found = measured(sets, tmp_path, "segmentation")
  ious = [shared[k] / either[k] for k in range(3)]
  assert found["mIoU"] == pytest.approx(statistics.mean(ious))
  assert found["pixel_accuracy"] == pytest.approx(right / total)
  assert right / total > 1 / 3


def test_the_median_depth_of_each_pixel_without_alignment(sets, tmp_path):
  known, everything = by_pixel(sets[1]["train"], "depth", "values")
  within, errors = [], []
  for label in sets[1]["validation"]:
    truths = pixels(label, "depth", "values")
    preds = {p: statistics.median(known[p] or everything) for p in truths}
    within.append(
      statistics.mean(
        float(max(preds[p] / truth, truth / preds[p]) < 1.25)
        for p, truth in truths.items()
      )
    )
    errors.append(
      statistics.mean(float(abs(preds[p] - t) / t) for p, t in truths.items())
    )
  found = measured(sets, tmp_path, "depth")
  assert found["delta1"] == pytest.approx(statistics.mean(within))
  assert found["abs_rel"] == pytest.approx(statistics.mean(errors), rel=1e-4)


def test_the_mean_direction_of_each_pixel(sets, tmp_path):
  known, everything = by_pixel(sets[1]["train"], "normals", "vectors")
  angles = []
  for label in sets[1]["validation"]:
    for place, truth in pixels(label, "normals", "vectors").items():
      pred = np.sum(known[place] or everything, 0)
      cosine = np.dot(pred, truth) / np.linalg.norm(pred)
      angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
  found = measured(sets, tmp_path, "normals")
  assert found["mean"] == pytest.approx(np.mean(angles), abs=0.01)
  share = np.mean(np.array(angles) < 30)
  assert found["within_30"] == pytest.approx(share, abs=2 / len(angles))


def test_no_boxes_have_no_precision(sets, tmp_path):
  found = measured(sets, tmp_path, "detection")
  assert found["AP50"] == 0
  assert "AP/b" in found  # it is the truth that was measured against


class Constant(nn.Module):
  """A network that ignores its images."""

  outputs: dict

  def __call__(self, images, train=False, content_size=None):
    def spread(array):
      return jnp.broadcast_to(array, (len(images), *array.shape))

    return {"it": {k: spread(v) for k, v in self.outputs.items()}}


# From what is usual to what a head gives that predicts it.
OUTPUTS = {
  "classification": lambda x: {"logits": jnp.log(x["probs"] + 1e-9)},
  "segmentation": lambda x: {
    "map": 9.0 * (x["classes"][..., None] == range(3))
  },
  "depth": lambda x: {"map": x["values"][..., None]},
  "normals": lambda x: {"map": 7.0 * x["vectors"]},
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_network_that_says_so_reaches_the_same(sets, tmp_path, kind):
  config = sources.resolve(make_config(sets[0], kind))
  tasks = build_tasks(config)
  quarantine = runtime.open_quarantine(tmp_path)
  (field,) = tasks["it"].fields
  constant = (
    tasks["it"]
    .fields[field]
    .constant(
      {key: array[i] for key, array in batch["labels"]["it"][field].items()}
      for batch in sources.eval_batches(config, "train", quarantine)
      for i in np.flatnonzero(batch["valid"])
    )
  )
  outputs = {
    k: np.asarray(v, np.float32) for k, v in OUTPUTS[kind](constant).items()
  }
  mesh = mesh_lib.make_mesh(1, 1)
  evaluator = Evaluator(config, Constant(outputs), tasks, mesh, quarantine)
  found = evaluator({})
  expected = floor(tmp_path, config_lib.to_json(config))
  assert found.keys() == expected.keys()
  assert found == pytest.approx(expected, abs=1e-5)


def test_a_set_without_labels_has_no_floor(sets, tmp_path):
  directory, _ = sets
  file = io.BytesIO()
  Image.new("RGB", (8, 8)).save(file, "PNG")
  example = {"key": "a", "image": file.getvalue(), "labels": {}}
  write_image_set(
    tmp_path / "it",
    "it",
    "train",
    [example | {"height": 8, "width": 8}],
    {"label": {"kind": "ClassVector", "classes": CLASSES}},
  )
  config = make_config(directory, "classification")
  config.datasets.train = dataset(str(tmp_path / "it"), "train")
  with pytest.raises(ValueError, match="No image of 'train' has a label"):
    floor(tmp_path, config_lib.to_json(config))
