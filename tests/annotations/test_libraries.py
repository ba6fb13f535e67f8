"""The libraries of other tools read what is written, and write what is read.

`benchmarks/round_trip.py` does the same with photographs.
"""

import json

import numpy as np
import pytest

from benchmarks import round_trip
from must_jax.annotations import coco, cvat, label_studio
from must_jax.importers import polygons
from must_jax.importers.label_studio import decode_rle


def random_mask(seed):
  rng = np.random.default_rng(seed)
  size = rng.integers(1, 40, 2)
  return rng.random(size) < rng.choice([0.1, 0.5, 0.99])


@pytest.mark.parametrize(
  ("form", "library", "through"),
  round_trip.TRIPS,
  ids=[f"{form}-{library}" for form, library, _ in round_trip.TRIPS],
)
@pytest.mark.filterwarnings("ignore")  # theirs
def test_nothing_changes_on_the_way(form, library, through, make, tmp_path):
  pytest.importorskip(library, reason=f"{library} is not installed")
  fields = {"yolo": ["things"], "masks": ["areas"]}
  # Datumaro takes folders of YOLO for subsets.
  flat = (form, library) == ("yolo", "datumaro")
  for field in fields.get(form, ["things", "areas"]):
    sets = make([field], field, flat=flat)
    (tmp_path / f"work-{field}").mkdir()
    found = round_trip.travel(
      sets.labels, sets.images, tmp_path / f"work-{field}", form, through
    )
    assert (found["images"], found["lost"]) == (len(sets.truth), 0)
    assert found["changed"] == 0
    assert found["boxes"] + found["masks"] > 10
    assert found["in_file"] < 0.02  # pixels; some write two digits
    assert found["in_set"] == 0


@pytest.mark.parametrize("seed", range(20))
def test_coco_masks_are_those_of_pycocotools(seed):
  rle = pytest.importorskip("pycocotools.mask")
  mask = random_mask(seed)
  encoded = rle.encode(np.asfortranarray(mask, np.uint8))
  segmentation = {"size": [*mask.shape], "counts": encoded["counts"].decode()}
  assert (coco.pixels_of(segmentation, mask.shape) == mask).all()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.filterwarnings("ignore")
def test_outlines_are_those_of_pycocotools(seed):
  rle = pytest.importorskip("pycocotools.mask")
  mask = random_mask(seed)
  theirs, ours = np.zeros_like(mask), np.zeros_like(mask)
  for corners in polygons.outlines(mask):
    flat = [float(number) for number in corners[:, ::-1].reshape(-1)]
    theirs |= rle.decode(rle.frPyObjects([flat], *mask.shape))[..., 0] > 0
    window, inside = polygons.fill(corners * 1.0, mask.shape)
    assert not ours[window][inside].any()  # no pixel belongs to two
    ours[window] |= inside
  assert (ours == mask).all() and (theirs == mask).all()


@pytest.mark.parametrize("seed", range(20))
def test_brushed_masks_are_those_of_label_studio(seed):
  mask = random_mask(seed)
  packed = label_studio.encode_rle(mask)
  expected = np.repeat(np.where(mask, 255, 0).reshape(-1), 4)
  assert (
    decode_rle(np.array(packed, np.uint8), expected.size) == expected
  ).all()
  brush = pytest.importorskip("label_studio_sdk.converter.brush")
  assert (brush.decode_rle(packed) == expected).all()


def test_long_runs_of_brushed_masks_are_split():
  mask = np.zeros((300, 300), bool)
  mask[100:] = True
  packed = np.array(label_studio.encode_rle(mask), np.uint8)
  assert (decode_rle(packed, 4 * mask.size)[3::4] > 0).reshape(
    300, 300
  ).tolist() == (mask.tolist())


@pytest.mark.parametrize("seed", range(20))
def test_runs_are_those_of_cvat(seed):
  masks = pytest.importorskip("cvat_sdk.masks")
  mask = random_mask(seed)
  height, width = mask.shape
  runs = [*cvat.encode_runs(mask), 0, 0, width - 1, height - 1]
  found = masks.decode_mask(runs, image_width=width, image_height=height)
  assert (found == mask).all()


@pytest.mark.filterwarnings("ignore")
def test_all_that_label_studio_shows_is_valid(make, export):
  sdk = pytest.importorskip("label_studio_sdk.label_interface")
  sets = make(["things", "areas", "kind"])
  path, _ = export(sets, "label-studio")
  interface = sdk.LabelInterface((path / "label_config.xml").read_text())
  interface.validate()
  tasks = json.loads((path / "tasks.json").read_text())
  for task in tasks:
    (prediction,) = task["predictions"]
    assert interface.validate_prediction(prediction, return_errors=True) == []
    assert all(0 <= region["score"] <= 1 for region in prediction["result"])
    assert interface.load_task(task["data"])
