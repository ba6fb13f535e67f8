"""A checkpoint as a thing that predicts: what it takes, and what it refuses."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import must_jax
from must_jax.config import task
from must_jax.storage.image_files import ImageOptions, read_image


@pytest.fixture
def model(make_checkpoint):
  return must_jax.load(
    make_checkpoint(
      {
        "kind": task("classification", labels={}, classes=("cat", "dog")),
        "distance": task("depth", labels={}),
      }
    )
  )


def noise(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(
  "images, message",
  [
    (noise(1, 64, 64, 3) / np.float32(255), r"Convert 0\.\.1 by"),
    (noise(1, 64, 64, 3).astype(np.int64), "images are int64"),
    (noise(64, 64, 3), r"a batch of one is images\[None\]"),
    (noise(1, 64, 64, 1), r"uint8 \[1, 64, 64, 1\]; expected"),
    (noise(1, 64, 64, 4), r"\[1, 64, 64, 4\]"),
    (noise(1, 3, 64, 64), r"\[1, 3, 64, 64\]"),
    (noise(0, 64, 64, 3), "at least one image"),
    (noise(1, 48, 64, 3), "`predict` takes images of any size"),
    ([noise(64, 64), noise(64, 64)], r"\[2, 64, 64\]"),
    (["photo.jpg"], "images are <U9"),
  ],
)
def test_predictor_says_what_it_takes(model, images, message):
  predict = model.predictor()
  with pytest.raises(ValueError, match=message) as caught:
    predict(images)
  assert "\n" not in str(caught.value)


def test_predictor_checks_content_sizes(model):
  with pytest.raises(ValueError, match=r"content_size has shape \[2\]"):
    model.predictor()(noise(1, 64, 64, 3), np.array([48, 64]))
  found = model.predictor()(noise(1, 64, 64, 3), [[48, 64]])
  assert found["kind"]["probs"].shape == (1, 2)


def test_tasks_must_be_the_models(model):
  with pytest.raises(ValueError, match=r"\['kinds'\].*\['distance', 'kind'\]"):
    model.predictor(("kinds",))
  with pytest.raises(ValueError, match="kinds"):
    model.predict([noise(9, 9, 3)], tasks=["kinds"])
  (found,) = model.predict([noise(9, 9, 3)], tasks=["kind"])
  assert list(found) == ["kind"]


@pytest.mark.parametrize(
  "images, message",
  [
    ("photo.jpg", "got one image"),
    (noise(48, 64, 3), "got one image"),
    ([noise(48, 64, 3) / 255], r"images\[0\] is float64 \[48, 64, 3\]"),
    ([noise(48, 64, 3), noise(48, 64, 4)], r"images\[1\] is uint8 \[48, 64, 4"),
    ([noise(0, 64, 3)], r"\[0, 64, 3\]"),
    (["/nowhere/photo.jpg"], "there is no file /nowhere/photo.jpg"),
    (["gs:/b/photo.jpg"], r"expected a local path, or gs://b/photo.jpg of a b"),
    (
      [noise(9, 9)] * 9 + [np.zeros((9000, 9000), np.uint8)],
      r"images\[9\] has 9000 x 9000 pixels",
    ),
  ],
)
def test_predict_says_what_it_takes(model, images, message):
  with pytest.raises(ValueError, match=message) as caught:
    model.predict(images)
  assert "\n" not in str(caught.value)


def test_photos_of_any_size_as_arrays_or_files(model, tmp_path):
  arrays = [noise(*size, 3, seed=i) for i, size in enumerate(SIZES)]
  paths = [tmp_path / f"{i}.png" for i in range(len(arrays))]
  for path, array in zip(paths, arrays, strict=True):
    Image.fromarray(array).save(path)
  together = model.predict(arrays, batch_size=2)
  assert model.predict([]) == []
  for array, path, found in zip(arrays, paths, together, strict=True):
    for given in (array, str(path), path):
      (alone,) = model.predict([given])
      for name, values in alone["distance"].items():
        assert values.shape == array.shape[:2]
        np.testing.assert_allclose(values, found["distance"][name], atol=1e-4)
      np.testing.assert_allclose(
        alone["kind"]["probs"], found["kind"]["probs"], atol=1e-5
      )
  grey = noise(40, 50)
  (found,) = model.predict([grey])
  (expected,) = model.predict([np.repeat(grey[..., None], 3, -1)])
  np.testing.assert_allclose(found["kind"]["probs"], expected["kind"]["probs"])


SIZES = ((64, 64), (48, 64), (300, 200), (1, 5), (65, 33))


def test_results_are_mappings_that_draw_and_tell(make_checkpoint, tmp_path):
  detector = {
    "fc_dims": 16,
    "num_rois": 16,
    "rpn_pre_nms": 32,
    "rpn_post_nms": 16,
    "max_detections": 8,
    "score_threshold": 0.0,
  }
  path = make_checkpoint(
    {
      "things": task(
        "detection", labels={}, classes=("cat", "dog"), **detector
      ),
      "mask": task("segmentation", labels={}, classes=("sky", "dog", "cat")),
      "slope": task("normals", labels={}),
    }
  )
  model = must_jax.load(path)
  array = noise(60, 90, 3)
  (found,) = model.predict([array])
  assert {*found} == {"things", "mask", "slope"}
  assert found.size == (60, 90) and (found.image == array).all()
  things = found["things"]
  assert things.classes == ("cat", "dog")
  assert {**things}.keys() == {"boxes", "classes", "scores"}
  assert "'things'" in repr(found) and "array" not in repr(found)

  y0, x0, y1, x1 = things["boxes"].T
  results = things.to_coco(7)
  assert results == found.to_coco(7) and len(results) == len(y0) > 0
  np.testing.assert_allclose(
    [entry["bbox"] for entry in results],
    np.stack([x0, y0, x1 - x0, y1 - y0], 1),
  )
  assert [e["category_id"] for e in results] == (things["classes"] + 1).tolist()
  assert {e["image_id"] for e in results} == {7}
  other = things.to_coco(category_ids={"cat": 17, "dog": 18})
  assert {e["category_id"] for e in other} <= {17, 18}
  with pytest.raises(ValueError, match=r"category_ids has no \['dog'\]"):
    things.to_coco(category_ids={"cat": 17})
  json.dumps(found.to_json())

  best = float(things["scores"].max())
  assert (
    len(things.at_least(best)["scores"]) == (things["scores"] == best).sum()
  )
  assert things.to_json(min_score=best)["num_objects"] < len(results)
  # One name has one colour in all tasks; the photo is where it was.
  colors = [tuple(c) for c in things.table.colors("things").tolist()]
  dog, cat = found["mask"].table.colors("mask").tolist()[1:]
  assert colors == [tuple(cat), tuple(dog)]
  drawn = things.draw(min_score=0.0)
  changed = (drawn[:60, :90] != array).any(-1)
  shown = {tuple(c) for c in drawn[:60, :90][changed].tolist()}
  assert shown <= {*colors} and 0 < changed.mean() < 1
  assert (things.draw(min_score=1.0)[:60, :90] == array).all()
  assert found["slope"].draw(max_side=45)[:30, :45].any()
  assert found.draw().shape[1] == 3 * 240


def test_a_dark_photo_of_16_bits_is_told(model, tmp_path, caplog):
  codes = np.linspace(0, 4095, 1200).astype(np.uint16).reshape(30, 40)
  path = tmp_path / "deep.png"
  Image.fromarray(codes).save(path)
  (dark,) = model.predict([path])
  assert "images[0]: 1 images of 16 bits" in caplog.text
  caplog.clear()
  picture = read_image(path, ImageOptions(code_range=(0, 4095)))
  (seen,) = model.predict([picture])
  assert not caplog.text
  (expected,) = model.predict([(codes >> 4).astype(np.uint8)])
  for found, same in ((seen, True), (dark, False)):
    values = found["distance"]["values"], expected["distance"]["values"]
    assert np.allclose(*values, atol=1e-4) == same


def test_a_turned_photo_is_seen_upright(model, tmp_path):
  array = noise(40, 60, 3)
  exif = Image.Exif()
  exif[0x0112] = 6  # a quarter to the right
  Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
  (found,) = model.predict([tmp_path / "turned.png"])
  (expected,) = model.predict([np.rot90(array, -1)])
  assert found["distance"]["values"].shape == (60, 40)
  np.testing.assert_allclose(
    found["distance"]["values"], expected["distance"]["values"], atol=1e-5
  )


# Predicts any number of images on four devices; prints the probabilities.
PROGRAM = """
import json, sys
import jax, numpy as np
import must_jax

assert jax.local_device_count() == 4
model = must_jax.load(sys.argv[1])
images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
found = [
  model.predictor()(images[:count])["kind"]["probs"].tolist()
  for count in (1, 3, 5)
]
photos = [p["kind"]["probs"].tolist() for p in model.predict(list(images))]
print(json.dumps([*found, photos]))
"""


def test_any_number_of_images_on_any_number_of_devices(model):
  flags = "--xla_force_host_platform_device_count=4"
  result = subprocess.run(
    [sys.executable, "-c", PROGRAM, str(model.path)],
    env=os.environ | {"XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
  expected = model.predictor()(images)["kind"]["probs"]
  for probs in json.loads(result.stdout.splitlines()[-1]):
    np.testing.assert_allclose(probs, expected[: len(probs)], atol=1e-5)


def test_ctrl_c_is_not_lost_in_a_batch_of_photos(model, monkeypatch):
  def interrupt(spec):
    raise KeyboardInterrupt  # of which NumPy makes a ValueError

  path = "numpy._core._internal._dtype_from_pep3118"
  monkeypatch.setattr(path, interrupt, raising=False)
  assert model.predict([noise(40, 60, 3)])[0]["kind"]["probs"].shape == (2,)
