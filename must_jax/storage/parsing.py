"""Records to tensors, inside a TensorFlow graph; `schema` lists the features.

What a record holds is checked here once more. Whatever is out of its range
raises `InvalidArgumentError`, which costs the record, not the run.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from must_jax.storage.encoders import MAX_CODE
from must_jax.storage.schema import KINDS, MAX_PIXELS
from must_jax.types import (
  IGNORE_LABEL,
  MEAN_COLOR,
  Boxes,
  ClassMap,
  ClassVector,
  Field,
  ValueMap,
  VectorMap,
)

Tensors = dict[str, tf.Tensor]

# What graphs raise where a record is broken. TensorFlow cannot decode its own
# message where that quotes bytes of the record.
BROKEN = (tf.errors.InvalidArgumentError, UnicodeDecodeError)

_STRING = tf.io.FixedLenFeature([], tf.string, "")
_INT = tf.io.FixedLenFeature([], tf.int64, 0)
_FLOAT = tf.io.FixedLenFeature([], tf.float32, 0.0)
_INTS = tf.io.RaggedFeature(tf.int64)
_FLOATS = tf.io.RaggedFeature(tf.float32)

_FEATURES = {
  ClassVector: {"classes": _INTS, "probs": _FLOATS},
  Boxes: {
    "boxes": _FLOATS,
    "classes": _INTS,
    "ignore": _INTS,
    "scores": _FLOATS,
  },
  ClassMap: {"png": _STRING, "confidence": _STRING},
  ValueMap: {"png": _STRING, "scale": _FLOAT, "shift": _FLOAT, "unit": _STRING},
  VectorMap: {"png": _STRING},
}


def parse_image(record: tf.Tensor) -> Tensors:
  """Key, encoded image and its size from image records.

  Args:
    record: string [] or [n]. An empty one, or one with the status
      "undecodable", gives an empty image of one pixel; others must have an
      image.

  Returns:
    key, image: strings [...]; size: int32 [..., 2], height and width.
  """
  one = tf.io.FixedLenFeature([], tf.int64, 1)
  parsed = tf.io.parse_example(
    record,
    {
      "key": _STRING,
      "image": _STRING,
      "height": one,
      "width": one,
      "status": _STRING,
    },
  )
  is_filler = (tf.strings.length(record) == 0) | (
    parsed["status"] == b"undecodable"
  )
  has_image = is_filler | (tf.strings.length(parsed["image"]) > 0)
  _require(tf.reduce_all(has_image), "image")
  size = tf.stack([parsed["height"], parsed["width"]], -1)
  sides = (size > 0) & (size <= MAX_PIXELS)  # no overflow
  fine = tf.reduce_all(sides, -1) & (tf.reduce_prod(size, -1) <= MAX_PIXELS)
  _require(tf.reduce_all(fine), "size of the image")
  return {
    "key": parsed["key"],
    "image": parsed["image"],
    "size": tf.cast(size, tf.int32),
  }


def is_example(record: bytes) -> bool:
  """Whether bytes are a `tf.train.Example`.

  Ask before a graph parses them: TensorFlow's parser believes what a packed
  list says of its length, and a wrong one can crash the process.
  """
  try:
    tf.train.Example.FromString(record)
  except DecodeError:
    return False
  return True


def parse_key(record: tf.Tensor) -> tf.Tensor:
  """Key of an image or label record; empty for an empty record."""
  return tf.io.parse_single_example(record, {"key": _STRING})["key"]


def decode_image(
  image: tf.Tensor,
  size: tf.Tensor,
  window: tf.Tensor,
  reduction: tf.Tensor | int = 1,
) -> tf.Tensor:
  """A window of an image; only so much of a JPEG is decoded.

  Args:
    image: scalar string, JPEG or PNG; an empty one gives the mean colour.
    size: int32 [2], height and width that the image must have.
    window: int32 [4], the y, x, height and width to return.
    reduction: int32, 1, 2, 4 or 8, a divisor of the window: so many pixels a
      side are averaged into one. A JPEG is decoded at the reduced size.

  Returns:
    uint8 [height / reduction, width / reduction, 3]
  """
  y, x, height, width = tf.unstack(window)
  reduction = tf.convert_to_tensor(reduction)
  reduced = window // reduction

  def jpeg(ratio: int) -> tf.Tensor:
    header = tf.io.extract_jpeg_shape(image)[:2]
    with _require(tf.reduce_all(header == size), "size in the header"):
      return tf.io.decode_and_crop_jpeg(image, reduced, channels=3, ratio=ratio)

  def png() -> tf.Tensor:
    header = _png_size(image)
    with _require(tf.reduce_all(header == size), "size in the header"):
      pixels = tf.io.decode_png(image, channels=3)
    pixels = pixels[y : y + height, x : x + width]
    return tf.cond(reduction > 1, lambda: average(pixels), lambda: pixels)

  def average(pixels: tf.Tensor) -> tf.Tensor:
    shape = [reduced[2], reduction, reduced[3], reduction, 3]
    squares = tf.reshape(tf.cast(pixels, tf.float32), shape)
    return tf.cast(tf.reduce_mean(squares, [1, 3]) + 0.5, tf.uint8)

  def empty() -> tf.Tensor:
    with _require(tf.strings.length(image) == 0, "neither JPEG nor PNG"):
      color = tf.constant(MEAN_COLOR, tf.uint8)
      return tf.broadcast_to(color, tf.concat([reduced[2:], [3]], 0))

  ratios = [1, 2, 4, 8]
  is_jpeg = tf.strings.substr(image, 0, 2) == b"\xff\xd8"
  is_png = tf.strings.substr(image, 0, 4) == b"\x89PNG"
  ratio = tf.reduce_sum(tf.cast(reduction > tf.constant(ratios), tf.int32))
  pixels = tf.switch_case(
    tf.where(is_jpeg, ratio, tf.where(is_png, len(ratios), -1)),
    [*(functools.partial(jpeg, ratio) for ratio in ratios), png],
    default=empty,
  )
  return tf.ensure_shape(pixels, [None, None, 3])


def has_labels(record: tf.Tensor, fields: Sequence[str]) -> tf.Tensor:
  """Whether a record has labels of all these fields, scalar bool."""
  parsed = tf.io.parse_single_example(
    record, {f"{name}/present": _INT for name in fields}
  )
  return tf.reduce_all(tf.stack(list(parsed.values())) > 0)


def parse_labels(
  record: tf.Tensor,
  fields: Mapping[str, Field],
  key: tf.Tensor | None = None,
  tables: Mapping[str, tf.Tensor] | None = None,
) -> dict[str, Tensors]:
  """The labels of a record at their own resolution, thresholds applied.

  Args:
    record: scalar string, an image or label record; an empty one has no
      labels.
    fields: what to read.
    key: the key that the record must have unless it is empty; by default any.
    tables: {field: int32 [K]}, from the record's class ids to those of the
      field, negative for ids that the record may not have; by default they are
      the same.

  Returns:
    {field: arrays}, where every field has `present` (bool) and, by kind,
      ClassVector: probs float32 [K]
      Boxes: boxes float32 [n, 4] normalised yxyx, classes int32 [n], ignore
        bool [n], scores float32 [n]
      ClassMap: classes int32 [h, w]
      ValueMap: values float32 [h, w], valid bool [h, w]
      VectorMap: vectors float32 [h, w, 3], valid bool [h, w]
  """
  spec = {"key": _STRING} | {f"{name}/present": _INT for name in fields}
  for name, field in fields.items():
    for array, feature in _FEATURES[type(field)].items():
      spec[f"{name}/{array}"] = feature
  parsed = tf.io.parse_single_example(record, spec)
  if key is not None:
    same = (parsed["key"] == key) | (tf.strings.length(record) == 0)
    _require(same, "key of the label record")
  labels = {}
  for name, field in fields.items():
    features = {a: parsed[f"{name}/{a}"] for a in _FEATURES[type(field)]}
    table = (tables or {}).get(name)
    present = parsed[f"{name}/present"] > 0
    if "png" in features:
      has_map = tf.strings.length(features["png"]) > 0
      _require(has_map | ~present, f"{name}/png")
    labels[name] = _PARSERS[type(field)](name, features, field, table)
    labels[name]["present"] = present
  return labels


def read_labels(
  record: bytes, fields: Mapping[str, Field]
) -> dict[str, dict[str, np.ndarray]]:
  """`parse_labels` outside of a graph, as numpy arrays; absent fields left out.

  Raises:
    ValueError: the record holds what it may not hold.
  """
  try:
    labels = parse_labels(tf.constant(record), fields)
  except BROKEN as error:
    raise ValueError(f"The label record is broken: {reason(error)}") from None
  return {
    name: {k: v.numpy() for k, v in arrays.items() if k != "present"}
    for name, arrays in labels.items()
    if arrays["present"]
  }


def label_graphs(
  specs: Mapping[str, Mapping[str, Any]],
) -> dict[str, Callable[[bytes], dict[str, Any]]]:
  """For each field a graph that reads its labels from a record.

  They read as `parse_labels` does, but all that is stored, whatever its
  score.

  Args:
    specs: {field: {"kind": ..., "classes": [...]}}, as in an index.
  """

  def graph(name: str, field: Field) -> Callable[[bytes], dict[str, Any]]:
    # Traced here: TensorFlow takes many first calls for a mistake.
    return tf.function(
      lambda record: parse_labels(record, {name: field})[name],
      [tf.TensorSpec([], tf.string)],
      autograph=False,
    ).get_concrete_function()

  graphs = {}
  for name, spec in specs.items():
    kind = KINDS[spec["kind"]]
    options = {"num_classes": len(spec.get("classes", ())), "min_score": 0.0}
    known = {option.name for option in dataclasses.fields(kind)}
    options = {k: v for k, v in options.items() if k in known}
    graphs[name] = graph(name, kind(**options))
  return graphs


def reason(error: Exception) -> str:
  """What one of `BROKEN` says, without where in a graph it was raised."""
  if isinstance(error, UnicodeDecodeError):
    return "it cannot be parsed"
  line = str(error).partition(" [[{{")[0].strip().splitlines()[-1]
  line = re.sub(r"{{.*?}} *", "", line)
  return re.sub(r"assertion failed: \[(.*)\]", r"\1", line)


def _parse_class_vector(
  name: str, features: Tensors, field: ClassVector, table: tf.Tensor | None
) -> Tensors:
  classes = _class_ids(name, features["classes"], field.num_classes, table)
  probs = _or_ones(f"{name}/probs", features["probs"], classes)
  return {"probs": tf.scatter_nd(classes[:, None], probs, [field.num_classes])}


def _parse_boxes(
  name: str, features: Tensors, field: Boxes, table: tf.Tensor | None
) -> Tensors:
  classes = _class_ids(name, features["classes"], field.num_classes, table)
  ignore = features["ignore"] > 0
  scores = _or_ones(f"{name}/scores", features["scores"], classes)
  flat = features["boxes"]
  fine = tf.reduce_all((flat >= 0) & (flat <= 1))  # no nan is
  same = (tf.size(flat) == 4 * tf.size(classes)) & (
    tf.size(ignore) == tf.size(classes)
  )
  with _require(fine & same, f"{name}/boxes"):
    boxes = tf.reshape(flat, [-1, 4])
  # Some may be a rounding error wide; the crop drops what is too small.
  keep = tf.where(scores >= field.min_score)[:, 0]
  return {
    "boxes": tf.gather(boxes, keep),
    "classes": tf.gather(classes, keep),
    "ignore": tf.gather(ignore, keep),
    "scores": tf.gather(scores, keep),
  }


def _parse_class_map(
  name: str, features: Tensors, field: ClassMap, table: tf.Tensor | None
) -> Tensors:
  classes = _decode_map(name, features["png"], 1, tf.uint8)[..., 0]
  if table is not None:
    missing = IGNORE_LABEL - tf.size(table)
    codes = tf.pad(table, [[0, missing]], constant_values=-1)
    codes = tf.concat([codes, [IGNORE_LABEL]], 0)
    classes = tf.gather(codes, tf.cast(classes, tf.int32))
    _require(tf.reduce_all(classes >= 0), f"{name}: class id")
    classes = tf.cast(classes, tf.uint8)
  known = (classes < field.num_classes) | (classes == IGNORE_LABEL)
  _require(tf.reduce_all(known), f"{name}: class id")

  def threshold() -> tf.Tensor:
    code = _decode_map(
      f"{name}/confidence", features["confidence"], 1, tf.uint8
    )
    same = tf.reduce_all(tf.shape(code)[:2] == tf.shape(classes))
    with _require(same, f"{name}/confidence"):
      confidence = tf.cast(code[..., 0], tf.float32) / 255
    return tf.where(confidence >= field.min_score, classes, IGNORE_LABEL)

  classes = tf.cond(
    tf.strings.length(features["confidence"]) > 0, threshold, lambda: classes
  )
  return {"classes": tf.cast(classes, tf.int32)}


def _parse_value_map(
  name: str, features: Tensors, field: ValueMap, table: None
) -> Tensors:
  del table
  codes = _decode_map(name, features["png"], 1, tf.uint16)[..., 0]
  scale, shift = features["scale"], features["shift"]
  finite = tf.math.is_finite(scale * MAX_CODE) & tf.math.is_finite(shift)
  _require(finite, f"{name}/scale")
  valid = codes > 0
  values = scale * tf.cast(codes, tf.float32) + shift
  if field.unit == "inverse":
    is_metres = features["unit"] == "metres"
    valid &= ~is_metres | (values > 0)
    values = tf.where(is_metres, tf.math.divide_no_nan(1.0, values), values)
  values = tf.where(valid, values, 0)
  with _require(tf.reduce_all(tf.math.is_finite(values)), f"{name}/scale"):
    return {"values": tf.identity(values), "valid": valid}


def _parse_vector_map(
  name: str, features: Tensors, field: VectorMap, table: None
) -> Tensors:
  del field, table
  codes = _decode_map(name, features["png"], 3, tf.uint16)
  valid = tf.reduce_all(codes > 0, -1)
  vectors = 2 * (tf.cast(codes, tf.float32) - 1) / (MAX_CODE - 1) - 1
  vectors = tf.math.l2_normalize(vectors, -1)
  return {"vectors": tf.where(valid[..., None], vectors, 0), "valid": valid}


_PARSERS: dict[type, Callable[..., Tensors]] = {
  ClassVector: _parse_class_vector,
  Boxes: _parse_boxes,
  ClassMap: _parse_class_map,
  ValueMap: _parse_value_map,
  VectorMap: _parse_vector_map,
}


def _decode_map(
  name: str, png: tf.Tensor, channels: int, dtype: tf.DType
) -> tf.Tensor:
  """A map [h, w, channels]; one pixel of zeros where there is none."""

  def decode() -> tf.Tensor:
    pixels = tf.reduce_prod(tf.cast(_png_size(png), tf.int64))
    fine = (pixels > 0) & (pixels <= MAX_PIXELS)
    with _require(fine, f"{name}: size of the map"):
      return tf.io.decode_png(png, channels, dtype)

  codes = tf.cond(
    tf.strings.length(png) > 0,
    decode,
    lambda: tf.zeros([1, 1, channels], dtype),
  )
  return tf.ensure_shape(codes, [None, None, channels])


def _png_size(png: tf.Tensor) -> tf.Tensor:
  """Height and width from the header, int32 [2]."""
  magic = tf.strings.substr(png, 0, 8) == b"\x89PNG\r\n\x1a\n"
  with _require(magic, "PNG"):
    header = tf.strings.substr(png, 16, 8)
  return tf.io.decode_raw(header, tf.int32, little_endian=False)[::-1]


def _class_ids(
  name: str, ids: tf.Tensor, num_classes: int, table: tf.Tensor | None
) -> tf.Tensor:
  """A field's class ids, int32 [n], of those in a record."""
  limit = num_classes if table is None else tf.size(table, tf.int64)
  fine = tf.reduce_all((ids >= 0) & (ids < limit))
  with _require(fine, f"{name}: class id"):
    ids = tf.cast(ids, tf.int32)
  if table is None:
    return ids
  ids = tf.gather(table, ids)
  with _require(tf.reduce_all(ids >= 0), f"{name}: class id"):
    return tf.identity(ids)


def _or_ones(name: str, values: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
  """Scores of the classes; 1 where a record has none."""
  none = tf.size(values) == 0
  values = tf.cond(none, lambda: tf.ones(tf.shape(classes)), lambda: values)
  fine = tf.reduce_all((values >= 0) & (values <= 1))  # no nan is
  with _require(fine & (tf.size(values) == tf.size(classes)), name):
    return tf.identity(values)


def _require(condition: tf.Tensor, what: str):
  """Raises where a record is broken, before what is done in its context."""
  check = tf.debugging.Assert(condition, [f"{what} is not as it must be"])
  return tf.control_dependencies([check] if check is not None else [])
