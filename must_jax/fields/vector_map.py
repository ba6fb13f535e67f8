"""A direction for each pixel.

F/png 16 bit RGB, 0 0 0 unknown, else code = 1 + round((v + 1) / 2 * 65534) of
each component
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from must_jax.fields import maps
from must_jax.fields.field import PageLabel
from must_jax.fields.statistics import make_sums

_MIN_SIDE = 0.001  # part of the pixels whose x, or y, have the rarer sign
_MANY = 1000  # pixels, by which that can be told
_SAME_ANGLE = 30  # degrees between directions that agree


@dataclasses.dataclass(frozen=True)
class VectorMap(maps.MapField):
  """Unit vector per pixel: `vectors` float32 [B, h, w, 3], `valid` bool.

  A cell interpolates the valid pixels beside it, normalised. Crops and
  scales, unequal ones too, leave normals as they are: a stretched image is the
  same surface seen by a camera of other focal lengths. A mirrored image is
  another surface, whose normals have the opposite x. Stored: vectors
  [h, w, 3] of length 1, (valid [h, w] bool); in parentheses what may be left
  out. Components are read back within 1/65534.
  """

  needed = ("vectors",)
  optional = ("valid",)
  features: ClassVar = {"png": "bytes"}
  map_array = "vectors"
  read_seconds = 1 / 253 - 1 / 370
  store_cost = (1.7e-7, 4.6)
  page_form = "colors"
  predicted: ClassVar = {
    "vectors": "unit vector at each pixel: x right, y down, z forward, so that"
    " surfaces that face the camera have z < 0"
  }

  def encode(self, arrays):
    vectors = maps.check_map("vectors", arrays["vectors"], 3).astype(np.float64)
    valid = maps.check_valid(arrays, vectors.shape[:2])
    maps.check_finite("vectors", vectors[valid])
    norm = np.linalg.norm(vectors[valid], axis=-1, keepdims=True)
    if vectors.shape[2] != 3 or (np.abs(norm - 1) > 0.01).any():
      raise ValueError("vectors are not of 3 components and length 1")
    codes = np.zeros(vectors.shape)
    units = vectors[valid] / norm
    codes[valid] = 1 + np.rint((units + 1) / 2 * (maps.MAX_CODE - 1))
    return {"png": maps.encode_png(codes.astype(np.uint16))}

  def decode(self, features):
    codes = maps.decode_codes(features["png"], np.uint16, 3)
    valid = np.asarray((codes > 0).all(-1))
    vectors = 2 * (codes.astype(np.float64) - 1) / (maps.MAX_CODE - 1) - 1
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return {
      "vectors": np.where(valid[..., None], vectors / norm, 0),
      "valid": valid,
    }

  def to_page(self, arrays, size):
    """The usual colours: x red, y up green, towards the camera blue."""
    arrays = self.reduced(arrays, size)
    vectors = np.asarray(arrays["vectors"])
    valid = maps.check_valid(arrays, vectors.shape[:2])
    # At least 1 where it is known: black is what is not.
    colors = np.rint(128 + 127 * vectors * (1, -1, -1)).clip(1, 255)
    colors = np.where(valid[..., None], colors, 0).astype(np.uint8)
    drawing = {"height": vectors.shape[0], "width": vectors.shape[1]}
    return PageLabel({}, drawing, maps.encode_png(colors))

  def to_json(self, arrays, classes, min_score=None):
    return {"frame": "x right, y down, z forward"}

  def to_png(self, arrays, colors):
    how = {
      "vector": f"2 * (code - 1) / {maps.MAX_CODE - 1} - 1, of R, G and B",
      "unknown": [0, 0, 0],
    }
    return self.encode(dict(arrays))["png"], how

  def to_arrays(self, arrays):
    return {"": np.where(arrays["valid"][..., None], arrays["vectors"], np.nan)}

  def parse(self, name, features, table):
    import tensorflow as tf

    codes = maps.decode_map(name, features, 3, tf.uint16)
    valid = tf.reduce_all(codes > 0, -1)
    step = 2 / (maps.MAX_CODE - 1)
    vectors = step * tf.cast(codes, tf.float32) - (1 + step)
    vectors /= tf.maximum(_lengths(vectors), 1e-6)  # 0.99999 to 1.00001 of ours
    vectors = tf.cond(
      tf.reduce_all(valid),
      lambda: vectors,
      lambda: tf.where(valid[..., None], vectors, 0),
    )
    return {"vectors": vectors, "valid": valid}

  def move(self, arrays, placement, cells):
    import tensorflow as tf

    vectors, valid = cells.mean_of_valid(arrays["vectors"], arrays["valid"])
    lengths = _lengths(vectors)
    # Opposite neighbours cancel; such a mean has no direction.
    valid &= lengths[..., 0] > 0.1
    mirror = tf.where(cells.flip, [[-1.0, 1.0, 1.0]], [[1.0, 1.0, 1.0]])
    signs = tf.matmul(tf.reshape(tf.cast(valid, tf.float32), [-1, 1]), mirror)
    vectors *= tf.reshape(signs, tf.shape(vectors)) / tf.maximum(lengths, 0.1)
    return {"vectors": vectors, "valid": valid}

  def batch_arrays(self, cells):
    return {
      "vectors": jax.ShapeDtypeStruct((*cells, 3), np.float32),
      "valid": jax.ShapeDtypeStruct(cells, np.bool_),
    }

  def sample(self, arrays, grid):
    valid = maps.check_valid(arrays, arrays["vectors"].shape[:2])
    vectors, valid = grid.mean_of_valid(arrays["vectors"], valid)
    norm = np.linalg.norm(vectors, axis=-1)
    valid &= norm > 0.1  # opposite neighbours cancel
    vectors = vectors / np.maximum(norm, 0.1)[..., None]
    return {"vectors": np.where(valid[..., None], vectors, 0), "valid": valid}

  def agreement(self, first, second):
    """Pixels whose directions are within 30 degrees."""
    first, second = self.at_finest(first, second)
    valid = first["valid"] & second["valid"]
    cosine = (first["vectors"][valid] * second["vectors"][valid]).sum(-1)
    agreeing = int((cosine >= np.cos(np.radians(_SAME_ANGLE))).sum())
    return {0: (agreeing, len(cosine))} if len(cosine) else {}

  def constant(self, labels):
    """The mean direction of each pixel."""
    total = np.zeros(3)
    for label in labels:
      total = total + np.where(label["valid"][..., None], label["vectors"], 0)
    known = np.linalg.norm(total, axis=-1, keepdims=True) > 0.1  # as `sample`
    total = np.where(known, total, total.sum((0, 1)))
    norm = np.linalg.norm(total, axis=-1, keepdims=True)
    return {"vectors": (total / np.maximum(norm, 1e-6)).astype(np.float32)}

  def sums(self, arrays):
    vectors = np.asarray(arrays["vectors"])
    if "valid" in arrays:
      vectors = vectors[np.asarray(arrays["valid"])]
    vectors = vectors.reshape(-1, 3)
    constant = len(vectors) > 0 and (vectors == vectors[0]).all()
    return make_sums(
      elements=len(vectors),
      constant=constant,
      positive=[int((axis > 0).sum()) for axis in vectors.T],
      negative=[int((axis < 0).sum()) for axis in vectors.T],
    )

  def alarm(self, sums, classes):
    return maps.constant_alarm(sums)

  def warnings(self, sums, classes):
    if not sums["elements"]:
      return
    positive = np.array(sums["positive"]) / sums["elements"]
    negative = np.array(sums["negative"]) / sums["elements"]
    shares = ", ".join(
      f"{axis} > 0 in {share:.1%}"
      for axis, share in zip("xyz", positive, strict=True)
    )
    if positive[2] > 0.5:
      yield (
        f"most vectors have z > 0 ({shares} of the pixels); here surfaces that"
        " face the camera have z < 0 (x right, y down, z forward). Check the"
        " frame of the data and give --flip-axes, such as yz for OpenGL's."
      )
    signs = np.minimum(positive, negative), np.maximum(positive, negative)
    one_sided = [
      axis
      for axis, rare, common in zip("xy", *(s[:2] for s in signs), strict=True)
      if rare < _MIN_SIDE and common > 0.5
    ]
    if one_sided and sums["elements"] >= _MANY:
      yield (
        f"{' and '.join(one_sided)} always of one sign ({shares} of the"
        " pixels); are these absolute values, codes from 0 to 1, or channels in"
        " the order BGR?"
      )

  def measure(self, arrays):
    """Part of the pixels that are valid."""
    return np.array([arrays["valid"].mean()])

  def summarize(self, measured, classes):
    yield f"  {measured.mean():.1%} of the pixels are valid"

  def caption(self, arrays, classes):
    return f"{arrays['valid'].mean():.0%} is known"


def _lengths(vectors):
  """Of vectors [h, w, 3], in each of their components, as a tensor.

  Small matrix products take a third of the time of sums over three components
  and of broadcasting to them.
  """
  import tensorflow as tf

  squares = tf.matmul(tf.reshape(vectors**2, [-1, 3]), tf.ones([3, 3]))
  return tf.sqrt(tf.reshape(squares, tf.shape(vectors)))
