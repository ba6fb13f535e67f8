"""Our detector as torchvision's, see `make_golden_detector.py`."""

import functools
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest

from must_jax.convert import conversion
from must_jax.convert.torchvision_detection import (
  KINDS,
  class_names,
  detector_config,
)
from must_jax.models.must import IMAGENET_MEAN
from must_jax.train.build import build_model, build_tasks
from must_jax.train.state import init_variables

HERE = pathlib.Path(__file__).parent
GOLDEN = HERE / "golden" / "torchvision_detector.npz"
make_weights = runpy.run_path(str(HERE / "weights.py"))["make_weights"]
(KIND,) = KINDS


def expected_tree(config):
  model = build_model(config, build_tasks(config))
  init = functools.partial(init_variables, model, config.data.image_size)
  return model, jax.eval_shape(init, jax.random.key(0))


def pad(image):
  """As torchvision does: a canvas in multiples of 32, 0 once normalised."""
  height, width = image.shape[:2]
  canvas = np.empty((-(-height // 32) * 32, -(-width // 32) * 32, 3), "float32")
  canvas[:] = 255 * np.float32(IMAGENET_MEAN)
  canvas[:height, :width] = image
  return canvas


def compare(golden, backbone, min_matched):
  """Compares every image of a golden file; prints the differences.

  Args:
    golden: from `make_golden_detector.make`.
    backbone: of its network.
    min_matched: so many of torchvision's proposals and detections are ours.
      Rounding decides near ties, of scores and of overlaps in NMS.
  """
  shapes = json.loads(str(golden["shapes"]))
  weights = make_weights({k: tuple(v) for k, v in shapes.items()})
  last = {k: v for k, v in golden.items() if k.startswith("last/")}
  weights |= {k.removeprefix("last/"): v for k, v in last.items()}
  config = detector_config(weights, backbone=backbone)
  tasks = build_tasks(config)
  model, tree = expected_tree(config)
  variables, _ = conversion.convert(KIND, weights, tree)

  @jax.jit
  def run(variables, image, content_size):
    outputs, state = model.apply(
      variables,
      image,
      content_size=content_size,
      capture_intermediates=lambda module, _: module.name == "fpn",
      mutable=["intermediates"],
    )
    (pyramid,) = state["intermediates"]["fpn"]["__call__"]
    outputs = outputs["detection"]
    return pyramid, outputs, tasks["detection"].predict(outputs)

  for i in range(3):
    expected = {
      key.removeprefix(f"{i}/"): value
      for key, value in golden.items()
      if key.startswith(f"{i}/")
    }
    image = expected["image"]
    pyramid, outputs, found = jax.device_get(
      run(variables, pad(image)[None], np.float32([image.shape[:2]]))
    )
    for level, x in pyramid.items():
      x, y = x[0, ::4, ::4, ::4], expected[f"p{level}"]
      np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4 * np.abs(y).max())

    rois = outputs["rois"][0][outputs["roi_valid"][0]]
    assert len(rois) == len(expected["proposals"])
    distance = np.abs(rois[:, None] - expected["proposals"]).max(-1).min(0)
    proposals = (distance < 1e-2).mean()

    valid = found["valid"][0]
    found = {key: value[0][valid] for key, value in found.items()}
    assert len(found["boxes"]) == len(expected["boxes"])
    boxes = np.abs(found["boxes"][:, None] - expected["boxes"]).max(-1)
    scores = np.abs(found["scores"][:, None] - expected["scores"])
    same = found["classes"][:, None] == expected["classes"]
    same &= (boxes < 1e-2 + 1e-4 * expected["boxes"].max(-1)) & (scores < 1e-4)
    assert (same.sum(0) <= 1).all()
    detections = same.any(0).mean()
    print(
      f"{image.shape[:2]}: {proposals:.1%} of {len(rois)} proposals,"
      f" {detections:.1%} of {len(valid[valid])} detections of"
      f" {len(set(found['classes']))} classes; largest difference of boxes"
      f" {boxes[same].max():.1e} px, of scores {scores[same].max():.1e}"
    )
    assert min(proposals, detections) >= min_matched


def test_detections_are_those_of_torchvision():
  golden = dict(np.load(GOLDEN))
  # Not an easy case: many detections, of several classes, of all scores.
  for i in range(3):
    scores, classes = golden[f"{i}/scores"], golden[f"{i}/classes"]
    assert len(scores) > 20
    assert len(set(classes)) > 3
    assert np.ptp(scores) > 0.5
  compare(golden, "resnet18", min_matched=0.995)


@pytest.mark.slow
def test_full_size(parity_file):
  golden = dict(np.load(parity_file(KIND.name)))
  compare(golden, "resnet50", min_matched=0.98)


def test_published_tensors_have_their_places():
  shapes = json.loads(str(np.load(GOLDEN)["full_shapes"]))
  weights = {
    k: np.broadcast_to(np.float32(0), shape) for k, shape in shapes.items()
  }
  config = KIND.make_config(weights)
  variables, unused = conversion.convert(
    KIND, weights, expected_tree(config)[1]
  )
  head = variables["params"]["head_detection"]
  assert head["fast_rcnn"]["class_logits"]["kernel"].shape == (1024, 91)
  assert head["fast_rcnn"]["box_deltas"]["kernel"].shape == (1024, 360)
  assert all(name.endswith("num_batches_tracked") for name in unused)


def test_other_weights_are_refused():
  shapes = json.loads(str(np.load(GOLDEN)["full_shapes"]))
  weights = {
    k: np.broadcast_to(np.float32(0), shape)
    for k, shape in shapes.items()
    if k.startswith("backbone.body")
  }
  config = KIND.make_config(weights)
  with pytest.raises(
    conversion.ConversionError, match=r"missing: backbone\.fpn"
  ):
    conversion.convert(KIND, weights, expected_tree(config)[1])


def test_classes_are_coco_s_by_number():
  names = class_names(90)
  assert len(set(names)) == 90
  # Category ids of COCO, less 1.
  assert names[0] == "person"
  assert names[11] == "unused_12"
  assert names[12] == "stop sign"
  assert names[89] == "toothbrush"
  assert sum(name.startswith("unused_") for name in names) == 10
  assert class_names(2) == ("class_1", "class_2")
