"""What goes out comes back as it was: keys, boxes, pixels, scores, classes."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from must_jax.annotations import FORMATS
from must_jax.storage.path import list_tree, publish_json, read_files
from must_jax.storage.sets import read_manifest
from must_jax.types import IGNORE_LABEL

FIELDS = {
  "coco": ("things", "areas", "depth"),
  "masks": ("areas", "things"),
  "yolo": ("things", "areas"),
  "label-studio": ("things", "areas", "kind"),
  "cvat": ("things", "areas", "kind"),
}
ROLES = {"things": "objects", "areas": "mask", "kind": "label"}
# Of what a float32 of a share of an image of 40 pixels can tell.
PIXEL = 1e-5


def submit(path):
  """What an annotator does who agrees with all of Label Studio's tasks."""
  tasks = json.loads((path / "tasks.json").read_text())
  for i, task in enumerate(tasks):
    (prediction,) = task.pop("predictions")
    task["annotations"] = [
      {
        "id": i,
        "completed_by": {"email": "ann@example.org"},
        "result": prediction["result"],
        "was_cancelled": False,
        "updated_at": f"2026-01-02T03:04:{i:02d}.5Z",
      }
    ]
  (path / "tasks.json").write_text(json.dumps(tasks))


def shown(arrays, min_score):
  """What a threshold leaves of a label."""
  if "boxes" in arrays:
    keep = arrays["scores"] >= np.float32(min_score)
    return {name: array[keep] for name, array in arrays.items()}
  if "confidence" in arrays:
    codes = np.rint(arrays["confidence"] * 255).astype(np.float32) / np.float32(
      255
    )
    classes = np.where(
      codes >= np.float32(min_score), arrays["classes"], IGNORE_LABEL
    )
    return {"classes": classes, "confidence": codes}
  return arrays


def check(found, truth, size, min_score=0.5):
  """Compares a corrected label with what the teacher had said."""
  for name, arrays in found.items():
    wanted = shown(truth[name], min_score)
    if "boxes" in wanted:
      order = np.lexsort(arrays["boxes"].T), np.lexsort(wanted["boxes"].T)
      for array in ("boxes", "classes", "scores", "ignore"):
        a, b = arrays[array][order[0]], wanted[array][order[1]]
        np.testing.assert_allclose(a, b, atol=PIXEL / max(size))
    elif "confidence" in wanted:
      np.testing.assert_array_equal(arrays["classes"], wanted["classes"])
      known = wanted["classes"] != IGNORE_LABEL
      np.testing.assert_array_equal(
        arrays["confidence"][known], wanted["confidence"][known]
      )
    else:
      np.testing.assert_allclose(arrays["probs"], wanted["probs"])


@pytest.mark.parametrize("form", list(FORMATS))
def test_all_that_a_format_holds_comes_back(
  form, make, export, take_back, corrections_of
):
  sets = make(FIELDS[form])
  path, printed = export(sets, form)
  assert "labels of 20 images" in printed
  if form == "label-studio":
    submit(path)
  status, printed, error = take_back(sets, path, "--by", "me")
  assert (status, error) == (0, "")
  assert (
    "corrections by me: 20 images corrected, 0 rejected, 0 of 20" in printed
  )
  held = {n for n in FIELDS[form] if ROLES.get(n) in FORMATS[form].FIELDS}
  found = corrections_of(sets.directory / "corrections")
  assert found.keys() == sets.truth.keys()
  for key, (status, labels) in found.items():
    assert status == "corrected" and labels.keys() == held
    check(labels, sets.truth[key], sets.sizes[key])


@pytest.mark.parametrize("form", list(FORMATS))
@settings(
  max_examples=5,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# Has a mask of one pixel, the first of the image.
@example(seed=30183, min_score=0.3)
@given(seed=st.integers(0, 2**31), min_score=st.sampled_from([0, 0.3, 1]))
def test_random_labels_come_back(
  form,
  seed,
  min_score,
  tmp_path_factory,
  make,
  export,
  take_back,
  corrections_of,
):
  directory = tmp_path_factory.mktemp("random")
  sets = make(FIELDS[form], directory, keys=("a", "b/c", "d e"), seed=seed)
  path, _ = export(sets, form, "out", "--min-score", min_score)
  if form == "label-studio":
    submit(path)
  status, _, error = take_back(sets, path)
  assert (status, error) == (0, "")
  for key, (_, labels) in corrections_of(
    sets.directory / "corrections"
  ).items():
    check(labels, sets.truth[key], sets.sizes[key], min_score)


@pytest.mark.parametrize("form", list(FORMATS))
def test_a_bucket_is_like_a_disk(
  form, bucket, tmp_path, make, export, take_back
):
  made = {}
  for root in (bucket.root, str(tmp_path)):
    sets = make(FIELDS[form], root=root, keys=("a", "b/c", "d e"))
    path, _ = export(sets, form, "out", "--min-score", 0)
    names = list_tree(path)
    contents = [read_files([path / name])[0] for name in names]
    if form == "label-studio":
      tasks = json.loads(read_files([path / "tasks.json"])[0])
      for task in tasks:
        task["annotations"] = task.pop("predictions")
      publish_json(path / "tasks.json", tasks)
    status, printed, error = take_back(sets, path, "--by", "me")
    assert (status, error) == (0, "") and "3 images corrected" in printed
    manifest = read_manifest(sets.directory / "corrections")
    shards = [shard["checksum"] for shard in manifest["shards"]]
    made[root] = dict(zip(names, contents, strict=True)), shards
  on_bucket, on_disk = made.values()
  assert on_bucket == on_disk
