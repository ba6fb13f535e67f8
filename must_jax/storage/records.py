"""What is inside a record: the one place where examples meet bytes.

A record is a `tf.train.Example`. Image records hold key, image, height and
width and the labels the data set came with; label records hold key, status
and the labels a teacher made. A field F of either has `F/present` (int64, 1)
and the features that its kind names (`must_jax.fields`, a file a kind).

A status is

  ok           labels as they were made; without any nobody has looked
  undecodable  the image could not be read
  corrected    a person has made or confirmed the labels: they are read whatever
               their scores
  rejected     a person wants no labels of the image, wherever they come from

What a record holds is checked when it is written and when it is read. Whatever
is out of its range then raises one of `BROKEN`, which costs the record, not the
run.
"""

import functools
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from must_jax.fields import Description, Field, make_field
from must_jax.fields.field import Tensors, require
from must_jax.fields.maps import PNG_MAGIC, png_size
from must_jax.quiet_tensorflow import tf
from must_jax.types import MAX_PIXELS, MEAN_COLOR

STATUSES = ("ok", "undecodable", "corrected", "rejected")
_WITH_LABELS = ("ok", "corrected")

# What graphs raise where a record is broken. TensorFlow cannot decode its own
# message where that quotes bytes of the record.
BROKEN = (tf.errors.InvalidArgumentError, UnicodeDecodeError)

# By the types of `Field.features`.
_FEATURES = {
  "bytes": tf.io.FixedLenFeature([], tf.string, ""),
  "int": tf.io.FixedLenFeature([], tf.int64, 0),
  "float": tf.io.FixedLenFeature([], tf.float32, 0.0),
  "ints": tf.io.RaggedFeature(tf.int64),
  "floats": tf.io.RaggedFeature(tf.float32),
}


def read_image_size(image: bytes) -> tuple[int, int]:
  """Height and width from the header of a JPEG or PNG.

  Raises:
    ValueError: nothing, another format, a broken header, or more than
      `MAX_PIXELS`.
  """
  if not image:
    raise ValueError("the file is empty")
  try:
    if image[:8] == PNG_MAGIC:
      width, height = struct.unpack_from(">II", image, 16)
    elif image[:2] == b"\xff\xd8":
      height, width = _jpeg_size(image)
    else:
      raise ValueError(
        f"neither JPEG nor PNG: it begins with {bytes(image[:8])!r}"
      )
  except (struct.error, IndexError):
    raise ValueError("the image ends within its header") from None
  if not 0 < height * width <= MAX_PIXELS:
    raise ValueError(
      f"the image has {height} x {width} pixels; expected at least 1 and at"
      f" most {MAX_PIXELS}"
    )
  return height, width


def _jpeg_size(image: bytes) -> tuple[int, int]:
  place = 2
  while True:
    while image[place] == 0xFF and image[place + 1] == 0xFF:
      place += 1  # fill bytes
    marker, length = struct.unpack_from(">HH", image, place)
    # Frame headers are C0..CF without DHT, JPG and DAC.
    if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
      return struct.unpack_from(">HH", image, place + 5)
    if not 0xFF00 < marker <= 0xFFFE or length < 2:
      raise ValueError("the JPEG header is broken")
    place += 2 + length


def encode_example(
  key: bytes | str,
  image: bytes,
  height: int,
  width: int,
  labels: Mapping[str, Mapping[str, Any]],
  *,
  fields: Mapping[str, Description],
) -> bytes:
  """An image record.

  Args:
    key: names the example for good, in the whole image set.
    image: JPEG or PNG, upright (no EXIF rotation).
    height: of the image, pixels.
    width: of the image, pixels.
    labels: {field: arrays}, see `Field.encode`; fields may be missing.
    fields: {field: {"kind": ..., "classes": [...]}}.

  Raises:
    ValueError: names the key, what was given and what is expected.
  """
  key = key.encode() if isinstance(key, str) else key
  try:
    given = read_image_size(image)
  except ValueError as error:
    raise ValueError(f"Example {key!r}: {error}.") from None
  if given != (height, width):
    raise ValueError(
      f"Example {key!r}: the image is {given[0]} x {given[1]} pixels; given"
      f" are height {height} and width {width}."
    )
  features = {
    "key": key,
    "image": image,
    "height": np.array([height]),
    "width": np.array([width]),
  }
  return _serialize(key, features, labels, fields, (height, width))


def encode_labels(
  key: bytes | str,
  status: str,
  labels: Mapping[str, Mapping[str, Any]],
  *,
  fields: Mapping[str, Description],
) -> bytes:
  """A label record, the sidecar of an image record.

  Args:
    key: of the image record.
    status: one of `STATUSES`.
    labels: {field: arrays}, see `Field.encode`.
    fields: {field: {"kind": ..., "classes": [...]}}.

  Raises:
    ValueError: names the key, what was given and what is expected.
  """
  key = key.encode() if isinstance(key, str) else key
  if status not in STATUSES or (labels and status not in _WITH_LABELS):
    raise ValueError(
      f"Example {key!r}: status is {status!r} with {len(labels)} fields;"
      f" expected one of {STATUSES}, with labels only where it is one of"
      f" {_WITH_LABELS}."
    )
  features = {"key": key, "status": status.encode()}
  return _serialize(key, features, labels, fields, None)


def _serialize(
  key: bytes,
  features: dict[str, Any],
  labels: Mapping[str, Mapping[str, Any]],
  fields: Mapping[str, Description],
  size: tuple[int, int] | None,
) -> bytes:
  for name, arrays in labels.items():
    if name not in fields:
      raise ValueError(
        f"Example {key!r} has labels {name!r}; the set has {sorted(fields)}."
      )
    try:
      field, given = make_field(fields[name]), dict(arrays)
      for feature, value in _encode(field, given).items():
        features[f"{name}/{feature}"] = value
      if size is not None:
        field.check_extent(given, size)
    except ValueError as error:
      raise ValueError(f"Example {key!r}, field {name!r}: {error}.") from None
    features[f"{name}/present"] = np.array([1])
  return serialize(features)


def _encode(field: Field, arrays: dict[str, Any]) -> dict[str, Any]:
  """The features of a label, after a look at the names of its arrays."""
  needed, optional = field.needed, field.optional
  if not set(needed) <= set(arrays) <= {*needed, *optional}:
    raise ValueError(
      f"given are {sorted(arrays)}; a {type(field).__name__} has {needed} and"
      f" may have {optional}"
    )
  return field.encode({k: np.asarray(v) for k, v in arrays.items()})


def serialize(features: Mapping[str, bytes | np.ndarray]) -> bytes:
  """A record; equal features give equal bytes."""
  example = tf.train.Example(
    features=tf.train.Features(
      feature={name: make_feature(value) for name, value in features.items()}
    )
  )
  return example.SerializeToString(deterministic=True)


def make_feature(value: bytes | np.ndarray) -> tf.train.Feature:
  """A feature of one byte string, or of integers or floats [n]."""
  if isinstance(value, bytes):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
  if value.dtype.kind == "f":
    return tf.train.Feature(float_list=tf.train.FloatList(value=value))
  return tf.train.Feature(int64_list=tf.train.Int64List(value=value))


def parse_image(record: tf.Tensor) -> Tensors:
  """Key, encoded image and its size from image records.

  Args:
    record: string [] or [n]. An empty one, or one with the status
      "undecodable", gives an empty image of one pixel; others must have an
      image.

  Returns:
    Strings "key" and "image" [...]; "size" int32 [..., 2], height and width.
  """
  one = tf.io.FixedLenFeature([], tf.int64, 1)
  parsed = tf.io.parse_example(
    record,
    {
      "key": _FEATURES["bytes"],
      "image": _FEATURES["bytes"],
      "height": one,
      "width": one,
      "status": _FEATURES["bytes"],
    },
  )
  is_filler = (tf.strings.length(record) == 0) | (
    parsed["status"] == b"undecodable"
  )
  has_image = is_filler | (tf.strings.length(parsed["image"]) > 0)
  require(tf.reduce_all(has_image), "image")
  size = tf.stack([parsed["height"], parsed["width"]], -1)
  sides = (size > 0) & (size <= MAX_PIXELS)  # no overflow
  fine = tf.reduce_all(sides, -1) & (tf.reduce_prod(size, -1) <= MAX_PIXELS)
  require(tf.reduce_all(fine), "size of the image")
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
  return tf.io.parse_single_example(record, {"key": _FEATURES["bytes"]})["key"]


def status_of(record: bytes) -> str:
  """Status of a label record; empty if it has none."""
  return _text_of(record, "status").decode(errors="replace")


def key_of(record: bytes) -> bytes:
  """Key of an image or label record; empty if it has none."""
  return _text_of(record, "key")


def size_of(record: bytes) -> tuple[int, int]:
  """Height and width of an image record."""
  features = tf.train.Example.FromString(record).features.feature
  height, width = (
    features[name].int64_list.value[0] for name in ("height", "width")
  )
  return height, width


def _text_of(record: bytes, feature: str) -> bytes:
  found = tf.train.Example.FromString(record).features.feature[feature]
  values = found.bytes_list.value
  return values[0] if len(values) == 1 else b""


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
    with require(tf.reduce_all(header == size), "size in the header"):
      return tf.io.decode_and_crop_jpeg(image, reduced, channels=3, ratio=ratio)

  def png() -> tf.Tensor:
    header = png_size(image)
    with require(tf.reduce_all(header == size), "size in the header"):
      pixels = tf.io.decode_png(image, channels=3)
    pixels = pixels[y : y + height, x : x + width]
    return tf.cond(reduction > 1, lambda: average(pixels), lambda: pixels)

  def average(pixels: tf.Tensor) -> tf.Tensor:
    shape = [reduced[2], reduction, reduced[3], reduction, 3]
    squares = tf.reshape(tf.cast(pixels, tf.float32), shape)
    return tf.cast(tf.reduce_mean(squares, [1, 3]) + 0.5, tf.uint8)

  def empty() -> tf.Tensor:
    with require(tf.strings.length(image) == 0, "neither JPEG nor PNG"):
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


def decides(record: bytes, fields: Sequence[str]) -> bool:
  """Whether a record says what the labels of an image are.

  Where a record does not, labels from another place count. A broken one does,
  so that whoever reads it finds out.

  Args:
    record: of an image or of labels.
    fields: all of which are wanted.
  """
  try:
    features = tf.train.Example.FromString(record).features.feature
  except DecodeError:
    return True
  if "status" in features and features["status"].bytes_list.value == [
    b"rejected"
  ]:
    return True
  return all(
    name in features and features[name].int64_list.value == [1]
    for name in (f"{field}/present" for field in fields)
  )


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
    {field: what `Field.parse` gives, and `present` (bool)}.
  """
  features: dict[str, Any] = dict.fromkeys(
    ("key", "status"), _FEATURES["bytes"]
  )
  for name, field in fields.items():
    features[f"{name}/present"] = _FEATURES["int"]
    for feature, kind in field.features.items():
      features[f"{name}/{feature}"] = _FEATURES[kind]
  parsed = tf.io.parse_single_example(record, features)
  if key is not None:
    same = (parsed["key"] == key) | (tf.strings.length(record) == 0)
    require(same, "key of the label record")
  labels = {}
  for name, field in fields.items():
    given = {feature: parsed[f"{name}/{feature}"] for feature in field.features}
    given["present"] = parsed[f"{name}/present"] > 0
    given["checked"] = parsed["status"] == b"corrected"
    labels[name] = field.parse(name, given, (tables or {}).get(name))
    labels[name]["present"] = given["present"]
  return labels


def read_labels(
  record: bytes, fields: Mapping[str, Field]
) -> dict[str, dict[str, np.ndarray]]:
  """`parse_labels` outside of a graph, as numpy arrays; absent fields left out.

  Raises:
    ValueError: the record holds what it may not hold.
  """
  return _present(lambda r: parse_labels(r, fields), tf.constant(record))


def stored_labels(
  record: bytes, fields: Mapping[str, Field]
) -> dict[str, dict[str, np.ndarray]]:
  """All that a record holds of its labels, whatever the scores.

  Unlike `read_labels` with all optional arrays, confidences too, and without
  the checks of what readers of training data can meet.

  Args:
    record: an image or label record.
    fields: what to read.

  Returns:
    {field: arrays as `Field.encode` takes them}; absent fields left out.

  Raises:
    ValueError: the record cannot be read.
  """
  try:
    found = tf.train.Example.FromString(record).features.feature
  except DecodeError:
    raise ValueError("The record is no tf.train.Example.") from None
  labels = {}
  for name, field in fields.items():
    if f"{name}/present" not in found:
      continue
    try:
      labels[name] = field.decode(
        {
          feature: _value(found[f"{name}/{feature}"], kind)
          for feature, kind in field.features.items()
        }
      )
    except (KeyError, IndexError, ValueError) as error:
      raise ValueError(f"Field {name!r} is broken: {error}") from None
  return labels


def _value(feature: tf.train.Feature, kind: str) -> bytes | np.ndarray:
  """The reverse of `make_feature`, by the types of `Field.features`."""
  if kind == "bytes":
    return (*feature.bytes_list.value, b"")[0]
  if kind.startswith("float"):
    return np.array(feature.float_list.value, np.float32)
  return np.array(feature.int64_list.value, np.int64)


def confirm_labels(
  record: bytes,
  labels: Mapping[str, Mapping[str, Any]],
  *,
  fields: Mapping[str, Description],
) -> bytes:
  """A label record that a person confirms, with some labels in its place.

  Args:
    record: of labels.
    labels: {field: arrays} that replace the record's.
    fields: {field: {"kind": ..., "classes": [...]}}.

  Raises:
    ValueError: see `encode_labels`.
  """
  features = tf.train.Example.FromString(record).features
  key = features.feature["key"].bytes_list.value[0]
  new = encode_labels(key, "corrected", labels, fields=fields)
  example = tf.train.Example.FromString(new)
  for name, feature in features.feature.items():
    if "/" in name and name.split("/")[0] not in labels:
      example.features.feature[name].CopyFrom(feature)
  return example.SerializeToString(deterministic=True)


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

  return {name: graph(name, make_field(spec)) for name, spec in specs.items()}


def label_reader(
  fields: Mapping[str, Field],
) -> Callable[[bytes], dict[str, dict[str, np.ndarray]]]:
  """`read_labels` of these fields, traced once for many records."""
  parse = tf.function(
    lambda record: parse_labels(record, fields),
    [tf.TensorSpec([], tf.string)],
    autograph=False,
  ).get_concrete_function()

  def read(record: bytes) -> dict[str, dict[str, np.ndarray]]:
    return _present(parse, tf.constant(record))

  return read


def _present(
  parse: Callable[[tf.Tensor], dict[str, Tensors]], record: tf.Tensor
) -> dict[str, dict[str, np.ndarray]]:
  try:
    labels = parse(record)
  except BROKEN as error:
    raise ValueError(f"The label record is broken: {reason(error)}") from None
  return {
    name: {k: v.numpy() for k, v in arrays.items() if k != "present"}
    for name, arrays in labels.items()
    if arrays["present"]
  }


def reason(error: Exception) -> str:
  """What one of `BROKEN` says, without where in a graph it was raised."""
  if isinstance(error, UnicodeDecodeError):
    return "it cannot be parsed"
  line = str(error).partition(" [[{{")[0].strip().splitlines()[-1]
  line = re.sub(r"{{.*?}} *", "", line)
  return re.sub(r"assertion failed: \[(.*)\]", r"\1", line)
