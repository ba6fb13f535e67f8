"""Image sets and label sets of every version that was written still read."""

import importlib.util
import pathlib
import shutil
import zlib

import numpy as np
import pytest

from must_jax.fields import Boxes, ClassMap, ClassVector, ValueMap, VectorMap
from must_jax.input.batches import eval_batches
from must_jax.input.origins import SUPERVISED, Source
from must_jax.pseudo_label import worker
from must_jax.storage.set_writer import write_image_set
from must_jax.storage.sets import LabelSet
from must_jax.storage.verify import verify

READ = {
  "label": ClassVector(3),
  "objects": Boxes(3, max_boxes=4),
  "mask": ClassMap(3),
  "depth": ValueMap("inverse"),
  "normals": VectorMap(),
}


def _script():
  path = pathlib.Path(__file__).with_name("make_golden_sets.py")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


golden = _script()


@pytest.fixture(params=golden.NAMES)
def sets(request, tmp_path):
  shutil.unpack_archive(golden.GOLDEN / f"{request.param}.zip", tmp_path)
  return tmp_path


latest = pytest.mark.parametrize("sets", [golden.NAMES[-1]], indirect=True)
same_zlib = pytest.mark.skipif(
  "ng" in zlib.ZLIB_RUNTIME_VERSION,
  reason="zlib-ng may make other bytes of the same codes than zlib",
)


def contents(directory):
  return {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file()}


def assert_read(sets, labels, expected):
  """The batch of a label set, or of the image set's own, is as expected."""
  origin = SUPERVISED if labels == "supervised" else str(sets / labels)
  source = Source(str(sets / "images"), "train", dict.fromkeys(READ, origin))
  batch = next(
    eval_batches(
      [source],
      {name: {name: field} for name, field in READ.items()},
      batch_size=golden.COUNT,
      image_size=(24, 24),
    )
  )
  del batch["placement"]  # was not there then
  found = golden.flatten(batch)
  # Neither was this; old sets know all of their classes.
  known = [found.pop(name) for name in [*found] if name.endswith("/known")]
  assert len(known) == 2 and all(array.all() for array in known)
  with np.load(golden.GOLDEN / "sets_v1.npz") as file:
    arrays = {
      name.removeprefix(expected): file[name]
      for name in file.files
      if name.startswith(f"{expected}/")
    }
  assert set(found) == set(arrays)
  for name, array in arrays.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_allclose(found[name], array, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("labels", ["supervised", "labels"])
def test_batches_are_what_they_were(sets, labels):
  assert_read(sets, labels, labels)


@latest
@same_zlib
def test_an_image_set_has_the_same_bytes(sets, tmp_path):
  write_image_set(
    tmp_path / "again",
    "golden",
    "train",
    golden.make_examples(),
    golden.FIELDS,
    "CC0-1.0",
    num_shards=2,
  )
  assert contents(tmp_path / "again") == contents(sets / "images")


def test_a_labelling_job_goes_on(sets):
  """Shards of before stay; what is new has the labels it would have had."""
  unfinished = sets / "unfinished"
  before = contents(unfinished)
  worker.label_images(
    golden.Teacher(), sets / "images", "train", unfinished, batch_size=4
  )
  after = contents(unfinished)
  assert_read(sets, "unfinished", "labels")
  assert not [p for report in verify(unfinished) for p in report.problems]
  assert {name: after[name] for name in before} == before


@latest
@same_zlib
def test_a_labelling_job_that_goes_on_has_the_same_bytes(sets):
  worker.label_images(
    golden.Teacher(),
    sets / "images",
    "train",
    sets / "unfinished",
    batch_size=4,
  )
  new, old = (LabelSet.open(sets / name) for name in ("unfinished", "labels"))
  assert [new.read(i) for i in range(new.num_records)] == [
    old.read(i) for i in range(old.num_records)
  ]
