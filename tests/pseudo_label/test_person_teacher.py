"""The published network of docs/examples sees what its own program sees."""

import importlib.util
import io
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from must_jax.curation import inspect
from must_jax.pseudo_label.worker import label_images
from must_jax.storage.set_writer import write_image_set
from must_jax.storage.sets import LabelSet

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(__file__).parent / "golden" / "person.png"


@pytest.fixture(scope="module")
def example():
  path = ROOT / "docs" / "examples" / "person_teacher.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def teacher(example):
  pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")
  weights = os.environ.get("PERSON_WEIGHTS", ROOT / example.WEIGHTS)
  if not os.path.exists(weights):
    pytest.skip(
      "needs selfie_segmentation.tflite, as the head of"
      " docs/examples/person_teacher.py gets it, or where PERSON_WEIGHTS says"
    )
  return example.PersonTeacher(weights)


@pytest.fixture(scope="module")
def photo():
  cbook = pytest.importorskip("matplotlib.cbook")
  with cbook.get_sample_data("grace_hopper.jpg") as file:
    return np.asarray(Image.open(file).convert("RGB"))


def test_it_sees_what_mediapipe_sees(teacher, photo):
  expected = np.asarray(Image.open(GOLDEN)) / 255
  found = teacher.probability(photo, photo.shape[:2])
  assert np.abs(found - expected).mean() < 5e-4
  assert ((found > 0.5) == (expected > 0.5)).mean() > 0.9998


def test_it_labels_an_image_set(teacher, photo, tmp_path):
  """Of photos of any proportions, each pixel."""
  expected = (np.asarray(Image.open(GOLDEN)) > 127).astype(np.int32)
  photos = {
    "narrow": (photo[:, 100:412], expected[:, 100:412]),
    "wide": (photo[:300], expected[:300]),
    "large": (photo.repeat(2, 0).repeat(2, 1), expected),
  }
  images, labels = tmp_path / "photos", tmp_path / "labels"
  write_image_set(images, "photos", "all", examples(photos), teacher.fields)
  label_images(teacher, images, "all", labels)
  assert inspect.quality(labels, images)["IoU/person"] > 0.97
  manifest = LabelSet.open(labels).manifest
  assert manifest["teacher"]["licence"] == "Apache-2.0"


def examples(photos):
  for key, (pixels, mask) in photos.items():
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    height, width = pixels.shape[:2]
    yield {
      "key": key,
      "image": file.getvalue(),
      "height": height,
      "width": width,
      "labels": {"mask": {"classes": mask}},
    }


def test_missing_weights_are_said(example, tmp_path):
  with pytest.raises(ValueError, match=r"none\.tflite is missing; the head of"):
    example.PersonTeacher(tmp_path / "none.tflite")


def test_the_page_has_the_same_commands(example):
  page = (ROOT / "docs" / "your-own-teacher.md").read_text()
  lines = [line for line in example.__doc__.splitlines() if line[:2] == "  "]
  assert len(lines) == 4
  assert "\n".join(line[2:] for line in lines) in page
