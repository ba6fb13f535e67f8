"""predict == evaluate == label, whatever way an image reaches the network."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import must_jax
from must_jax import config as config_lib
from must_jax.config import base_config, dataset, task
from must_jax.fields import Boxes, ClassMap, ValueMap, VectorMap, make_field
from must_jax.input import geometry, preprocess, sources
from must_jax.input.geometry import AugmentOptions
from must_jax.pseudo_label import worker
from must_jax.storage import records
from must_jax.storage.set_writer import write_image_set
from must_jax.storage.sets import LabelSet
from must_jax.train import mesh as mesh_lib
from must_jax.train.build import build_tasks
from must_jax.train.inference import Predictor, labels_of, take
from must_jax.types import IGNORE_LABEL

SIZES = ((48, 64), (64, 48), (333, 500), (70, 90), (48, 64))
RULES = {"midas_upper_bound": (64, 64), "midas_minimal": (64, 64)} | {
  "shortest_side": (48, 96)
}


def photo(size, seed):
  """A picture with structure at all scales."""
  rng = np.random.default_rng(seed)
  pixels = np.zeros((*size, 3))
  for cells in (3, 9, 40):
    noise = Image.fromarray(rng.integers(0, 80, (cells, cells, 3), np.uint8))
    pixels += np.asarray(noise.resize(size[::-1], Image.Resampling.BICUBIC))
  return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Files, JPEGs and PNGs, and the image set that they are imported to."""
  root = tmp_path_factory.mktemp("photos")
  paths, examples = [], []
  for i, size in enumerate(SIZES):
    file = io.BytesIO()
    form = "PNG" if i == 3 else "JPEG"
    Image.fromarray(photo(size, i)).save(file, form, quality=95)
    paths.append(root / f"{i}.{form.lower()}")
    paths[-1].write_bytes(file.getvalue())
    examples.append({"key": str(i), "image": file.getvalue()})
  examples = [
    e | {"height": h, "width": w, "labels": {}}
    for e, (h, w) in zip(examples, SIZES, strict=True)
  ]
  write_image_set(
    root / "set", "set", "train", examples, {}, "none", num_shards=1
  )
  return paths, root / "set"


def all_tasks():
  detector = {
    "fc_dims": 16,
    "num_rois": 16,
    "rpn_pre_nms": 32,
    "rpn_post_nms": 16,
    "max_detections": 8,
    "score_threshold": 0.0,
    "anchor_scale": 3.5,
    "roi_canonical_size": 32.0,
  }
  names = {"classes": ("cat", "dog")}
  scored = names | {"min_score": 0.0}  # nobody has learned anything
  return {
    "boxes": task("detection", labels={}, **scored, **detector),
    "classes": task("classification", labels={}, **names),
    "distance": task("depth", labels={}),
    "mask": task("segmentation", labels={}, **scored),
    "slope": task("normals", labels={}),
  }


@pytest.mark.parametrize("resize", config_lib.EVAL_RESIZE)
def test_predict_evaluate_and_label_agree(
  resize, photos, make_checkpoint, tmp_path
):
  paths, images = photos
  size = RULES.get(resize, (64, 64))
  path = make_checkpoint(all_tasks(), eval_resize=resize, image_size=size)
  model = must_jax.load(path)
  found = model.predict(paths, batch_size=5)
  assert len(found) == len(SIZES)

  # As in evaluation.
  config = model.config.copy_and_resolve_references()
  with config.unlocked():
    config.datasets.it = dataset(images, "train")
  config.data.eval_batch_size = 5
  mesh = mesh_lib.local_mesh()
  predictor = Predictor(model.model, model.tasks, mesh, map_stride=1)
  (batch,) = sources.eval_batches(config, "it", lambda bad: pytest.fail(bad))
  seen = set()
  for rows, outputs in predictor(model.variables, batch):
    for i, row in enumerate(rows):
      key = int(batch["key"][row])
      seen.add(key)
      for name, arrays in outputs.items():
        labels = labels_of(
          model.tasks[name], take(arrays, i), take(batch, int(row))
        )
        for field, label in labels.items():
          field = model.tasks[name].fields[field]
          check_same(found[key][name], field.at_size(label, SIZES[key]))
  assert seen == set(range(len(SIZES)))

  # As labels, read back.
  config = base_config()
  config.stage = "label"
  config.datasets.it = dataset(images, "train")
  config.label.update({"teacher": str(path), "dataset": "it", "map_stride": 1})
  config.label.batch_size = 5
  for name, task_ in model.tasks.items():
    config.label.task = name
    worker.label(config, tmp_path / name)
    labels = LabelSet.open(tmp_path / name)
    fields = {k: make_field(v) for k, v in labels.fields.items()}
    (field_name,) = fields
    for number in range(labels.num_records):
      record = labels.read(number)
      key = int(records.parse_key(tf.constant(record)).numpy())
      stored = records.read_labels(record, fields)[field_name]
      if set(task_.fields[field_name].needed) <= set(stored):
        stored = task_.fields[field_name].at_size(stored, SIZES[key])
      for array, values in stored.items():
        if array in found[key][name]:
          check_same({array: found[key][name][array]}, {array: values}, 2e-3)


def check_same(found, expected, tolerance=1e-5):
  for name, array in expected.items():
    np.testing.assert_allclose(
      found[name].astype(float),
      np.asarray(array).astype(float),
      atol=tolerance,
      rtol=tolerance,
    )


def test_what_fills_a_batch_has_no_size_of_its_own(make_checkpoint):
  """Each size is compiled, and a filler's is of one pixel, scaled up."""
  kind = task("classification", labels={}, classes=("cat", "dog"))
  model = must_jax.load(make_checkpoint({"kind": kind}))
  predictor = Predictor(model.model, model.tasks, mesh_lib.local_mesh())
  canvas = np.array([[32, 64], [64, 64], [32, 64], [64, 64]])
  batch = {
    "image": np.zeros((4, 64, 64, 3), np.uint8),
    "content_size": canvas.astype(np.float32),
    "placement": {"canvas": canvas},
  }

  def rows(**more):
    found = [rows for rows, _ in predictor(model.variables, batch | more)]
    return sorted(map(list, found))

  assert rows() == [[0, 2], [1, 3]]
  assert rows(valid=np.array([True, False, False, False])) == [[0, 2]]
  assert rows(valid=np.array([False, True, False, False])) == [[1, 3]]
  # Where all have one size, processes predict together.
  batch["placement"] = {"canvas": canvas[[1, 1, 1, 1]]}
  assert rows(valid=np.zeros(4, bool)) == [[0, 1, 2, 3]]


SIZE = (120, 160)
OBJECTS = np.array([[0.3, 0.35, 0.6, 0.7], [0.45, 0.4, 0.55, 0.5]], np.float32)
RAMP_Y, RAMP_X = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)


def there_and_back(resize, field, label, size=SIZE, image_size=(64, 64)):
  """A label of a photo as a batch has it, taken for a prediction."""
  options = AugmentOptions(resize=resize)
  sizes = tf.constant([size])
  random = geometry.random_numbers(0, tf.constant([0], tf.int64))
  placement = geometry.choose_placement(sizes, image_size, options, random)
  placement = type(placement)(*(array[0] for array in placement))
  canvas = placement.canvas.numpy()
  features = {k: tf.constant(v) for k, v in label.items()}
  moved = geometry.place_labels(
    {"it": features | {"present": tf.constant(True)}},
    {"it": field},
    placement,
    tuple(canvas.tolist()),
    1,
  )["it"]
  prediction = {k: v.numpy() for k, v in moved.items()}
  example = {
    "content_size": placement.content.numpy().astype(np.float32),
    "placement": {
      "size": placement.size.numpy(),
      "window": placement.window.numpy().astype(np.float32),
      "canvas": canvas,
    },
  }
  return prediction, example


@pytest.mark.parametrize("resize", config_lib.EVAL_RESIZE)
def test_boxes_come_back_to_the_photo(resize):
  label = {
    "boxes": OBJECTS,
    "classes": np.array([1, 0], np.int32),
    "scores": np.array([0.9, 0.8], np.float32),
    "ignore": np.zeros(2, bool),
  }
  field = Boxes(2, 5)
  prediction, example = there_and_back(
    resize, field, label, image_size=RULES.get(resize, (64, 64))
  )
  (task_,) = build_tasks_of("detection", classes=("a", "b"))
  found = labels_of(task_, prediction, example)["objects"]
  pixels = field.at_size(found, SIZE)
  np.testing.assert_allclose(
    pixels["boxes"], OBJECTS * [*SIZE, *SIZE], atol=0.1
  )
  assert pixels["classes"].tolist() == [1, 0]


@pytest.mark.parametrize("resize", config_lib.EVAL_RESIZE)
def test_maps_come_back_to_the_photo(resize):
  label = {"values": RAMP_Y + 1000 * RAMP_X, "valid": np.ones(SIZE, bool)}
  image_size = RULES.get(resize, (64, 64))
  field = ValueMap()
  prediction, example = there_and_back(
    resize, field, label, image_size=image_size
  )
  (task_,) = build_tasks_of("depth")
  found = labels_of(task_, prediction, example)["depth"]
  pixels = field.at_size(found, SIZE)
  y, x, height, width = example["placement"]["window"]
  inner = np.s_[
    int(y) + 6 : int(y + height) - 6, int(x) + 6 : int(x + width) - 6
  ]
  assert pixels["valid"][inner].all()
  np.testing.assert_allclose(
    pixels["values"][inner], label["values"][inner], atol=1100
  )
  # What the network did not see is unknown.
  rows = (np.arange(SIZE[0]) < y - 3) | (np.arange(SIZE[0]) > y + height + 3)
  assert not pixels["valid"][rows].any()
  cols = (np.arange(SIZE[1]) < x - 3) | (np.arange(SIZE[1]) > x + width + 3)
  assert not pixels["valid"][:, cols].any()


def build_tasks_of(kind, classes=()):
  config = base_config()
  config.tasks.it = task(kind, labels={}, classes=classes)
  return build_tasks(config).values()


def test_unseen_parts_of_maps():
  window, size = np.array([10.0, 20.0, 20.0, 20.0]), (40, 60)
  classes = ClassMap(3).of_window(
    {"classes": np.full((10, 10), 2), "confidence": np.full((10, 10), 0.5)},
    window,
    size,
  )
  expected = np.full((20, 30), IGNORE_LABEL)
  expected[5:15, 10:20] = 2
  np.testing.assert_array_equal(classes["classes"], expected)
  np.testing.assert_array_equal(classes["confidence"] > 0, expected == 2)
  up = np.zeros((10, 10, 3)) + [0, 0, -1]
  vectors = VectorMap().of_window({"vectors": up}, window, size)
  np.testing.assert_array_equal(vectors["valid"], expected == 2)
  np.testing.assert_array_equal(
    vectors["vectors"][expected == 2], [[0, 0, -1]] * 100
  )


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (224, 224), (30, 99)])
@pytest.mark.parametrize("filter_", ["bilinear", "bicubic"])
def test_published_crops_are_what_torchvision_does(size, filter_):
  """`Resize(256)` and `CenterCrop(224)` on a PIL image, written out."""
  image = photo(size, 3)
  short, long = min(size), max(size)
  resized = (256, int(256 * long / short))
  height, width = resized if size[0] <= size[1] else resized[::-1]
  whole = Image.fromarray(image).resize(
    (width, height), getattr(Image.Resampling, filter_.upper())
  )
  top, left = round((height - 224) / 2), round((width - 224) / 2)
  expected = np.asarray(whole.crop((left, top, left + 224, top + 224)))
  rule = preprocess.RULES[f"pillow_{filter_}_crop"]
  placed = preprocess.layout(size, rule, (224, 224), 0.875)
  got = preprocess.prepare(image, rule, placed, np.zeros(3))
  np.testing.assert_array_equal(got, expected)


def test_a_streak_is_not_resized_whole():
  image = np.tile(np.arange(30000) % 251, (2, 1)).astype(np.uint8)
  image = np.repeat(image[..., None], 3, -1)
  rule = preprocess.RULES["pillow_bilinear_crop"]
  placed = preprocess.layout((2, 30000), rule, (224, 224), 0.875)
  assert placed.resized[1] > 3_000_000
  got = preprocess.prepare(image, rule, placed, np.zeros(3))
  assert got.shape == (224, 224, 3)
  assert abs(got.mean() - image[:, 14999:15001].mean()) < 2


def test_names_of_resizes_are_those_of_the_rules():
  own = ("pad", "stretch", "center_crop")
  assert set(config_lib.EVAL_RESIZE) == {*own, *preprocess.RULES}
  assert config_lib.TRAIN_RESIZE == geometry.RESIZE
