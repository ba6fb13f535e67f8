import jax
import numpy as np
import pytest

from must_jax.fields import Boxes, ClassMap, ClassVector, ValueMap, VectorMap
from must_jax.input.abstract import abstract_batch
from must_jax.input.batches import train_batches
from must_jax.input.origins import SUPERVISED, Source
from must_jax.storage import set_writer

SIZE = (32, 48)
FIELDS = {
  "label": {"kind": "ClassVector", "classes": ["a", "b", "c"]},
  "objects": {"kind": "Boxes", "classes": ["a", "b"]},
  "mask": {"kind": "ClassMap", "classes": ["a"]},
  "depth": {"kind": "ValueMap"},
  "normals": {"kind": "VectorMap"},
}
READ = {
  "what": {
    "label": ClassVector(3),
    "objects": Boxes(2, max_boxes=4),
  },
  "where": {
    "mask": ClassMap(1),
    "depth": ValueMap(),
    "normals": VectorMap(),
  },
}


@pytest.mark.parametrize("stride", [4, 8])
def test_a_batch_has_these_shapes(tmp_path, stride):
  import tensorflow as tf

  image = tf.io.encode_jpeg(np.zeros((*SIZE, 3), np.uint8)).numpy()
  example = {"image": image, "height": SIZE[0], "width": SIZE[1], "labels": {}}
  images = set_writer.write_image_set(
    tmp_path,
    "toy",
    "train",
    [example | {"key": str(i)} for i in range(4)],
    FIELDS,
    num_shards=1,
  )
  source = Source(
    str(images.directory), "train", dict.fromkeys(READ, SUPERVISED)
  )
  batch = next(
    train_batches(
      [source], READ, batch_size=2, image_size=SIZE, label_stride=stride
    )
  )
  del batch["key"]
  expected = abstract_batch(READ, 2, SIZE, stride)

  def describe(tree):
    return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype).name), tree)

  assert describe(batch) == describe(expected)
