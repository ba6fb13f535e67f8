"""What is inside a record: the one place where labels meet bytes.

A record is a `tf.train.Example`. Image records hold key, image, height and
width and the labels the data set came with; label records hold key, status
and the labels a teacher made. A field F of either has `F/present` and, by kind:

  ClassVector  F/classes int64 [k], F/probs float [k] (1 where left out)
  Boxes        F/boxes float [4 G] normalised yxyx, F/classes int64 [G],
               F/ignore int64 [G], F/scores float [G] (1 where left out)
  ClassMap     F/png 8 bit, 255 unknown; F/confidence 8 bit, round(255 p)
  ValueMap     F/png 16 bit, 0 unknown, else value = scale code + shift;
               F/scale, F/shift float, F/unit ("metres", "inverse")
  VectorMap    F/png 16 bit RGB, 0 0 0 unknown, else code = 1 +
               round((v + 1) / 2 * 65534) of each component

A map covers the extent of its image, at any resolution. `encode_*` write here,
`parsing` reads.
"""

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from must_jax import types
from must_jax.storage.encoders import bytes_feature, encode_field, ints_feature
from must_jax.types import IGNORE_LABEL

# Larger images are refused before they are decoded: a PNG of 1 MB can ask for
# 1 GB.
MAX_PIXELS = 1 << 26
STATUSES = ("ok", "undecodable")

# Kinds by their name on disk, and whether they have classes.
KINDS: dict[str, type] = {
  kind.__name__: kind
  for kind in (
    types.ClassVector,
    types.Boxes,
    types.ClassMap,
    types.ValueMap,
    types.VectorMap,
  )
}
_WITH_CLASSES = ("ClassVector", "Boxes", "ClassMap")

Spec = Mapping[str, Any]  # {"kind": ..., "classes": [...]}


def check_fields(fields: Mapping[str, Spec]) -> None:
  """Checks the description of fields as it stands in an index or manifest.

  Raises:
    ValueError: an unknown kind, or classes that are missing, double or too
      many.
  """
  for name, spec in fields.items():
    kind = spec.get("kind")
    if kind not in KINDS:
      raise ValueError(
        f"Field {name!r} has kind {kind!r}; expected one of {sorted(KINDS)}."
      )
    if kind not in _WITH_CLASSES:
      continue
    classes = spec.get("classes") or []
    if not classes or len(set(classes)) != len(classes):
      raise ValueError(
        f"Field {name!r} of kind {kind} has classes {classes!r}; expected a"
        " list of different names."
      )
    if kind == "ClassMap" and len(classes) > IGNORE_LABEL:
      raise ValueError(
        f"Field {name!r} has {len(classes)} classes; a map holds at most"
        f" {IGNORE_LABEL}."
      )


def image_size(image: bytes) -> tuple[int, int]:
  """Height and width from the header of a JPEG or PNG.

  Raises:
    ValueError: another format, a broken header, or more than `MAX_PIXELS`.
  """
  try:
    if image[:8] == b"\x89PNG\r\n\x1a\n":
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
  fields: Mapping[str, Spec],
) -> bytes:
  """An image record.

  Args:
    key: names the example for good, in the whole image set.
    image: JPEG or PNG, upright (no EXIF rotation).
    height: of the image, pixels.
    width: of the image, pixels.
    labels: {field: arrays}, see `encoders.encode_field`; fields may be missing.
    fields: {field: {"kind": ..., "classes": [...]}}.

  Raises:
    ValueError: names the key, what was given and what is expected.
  """
  key = key.encode() if isinstance(key, str) else key
  try:
    given = image_size(image)
  except ValueError as error:
    raise ValueError(f"Example {key!r}: {error}.") from None
  if given != (height, width):
    raise ValueError(
      f"Example {key!r}: the image is {given[0]} x {given[1]} pixels; given"
      f" are height {height} and width {width}."
    )
  features = {
    "key": bytes_feature(key),
    "image": bytes_feature(image),
    "height": ints_feature([height]),
    "width": ints_feature([width]),
  }
  return _serialize(key, features, labels, fields, (height, width))


def encode_labels(
  key: bytes | str,
  status: str,
  labels: Mapping[str, Mapping[str, Any]],
  *,
  fields: Mapping[str, Spec],
) -> bytes:
  """A label record, the sidecar of an image record.

  Args:
    key: of the image record.
    status: "ok", or "undecodable" for an image that gave no labels.
    labels: {field: arrays}, see `encoders.encode_field`.
    fields: {field: {"kind": ..., "classes": [...]}}.

  Raises:
    ValueError: names the key, what was given and what is expected.
  """
  key = key.encode() if isinstance(key, str) else key
  if status not in STATUSES or (status != "ok" and labels):
    raise ValueError(
      f"Example {key!r}: status is {status!r} with {len(labels)} fields;"
      f" expected one of {STATUSES}, with labels only where it is 'ok'."
    )
  features = {
    "key": bytes_feature(key),
    "status": bytes_feature(status.encode()),
  }
  return _serialize(key, features, labels, fields, None)


def _serialize(
  key: bytes,
  features: dict[str, tf.train.Feature],
  labels: Mapping[str, Mapping[str, Any]],
  fields: Mapping[str, Spec],
  size: tuple[int, int] | None,
) -> bytes:
  for name, arrays in labels.items():
    if name not in fields:
      raise ValueError(
        f"Example {key!r} has labels {name!r}; the set has {sorted(fields)}."
      )
    try:
      for array_name, feature in encode_field(arrays, fields[name]).items():
        features[f"{name}/{array_name}"] = feature
      if size is not None:
        check_extent(arrays, size)
    except ValueError as error:
      raise ValueError(f"Example {key!r}, field {name!r}: {error}.") from None
    features[f"{name}/present"] = ints_feature([1])
  example = tf.train.Example(features=tf.train.Features(feature=features))
  return example.SerializeToString(deterministic=True)


def check_extent(arrays: Mapping[str, Any], size: tuple[int, int]) -> None:
  """Checks that maps have the proportions of their image, within a pixel.

  Args:
    arrays: of one field.
    size: height and width of the image.

  Raises:
    ValueError: names the array and both sizes.
  """
  for name in ("classes", "values", "vectors"):
    shape = np.shape(arrays.get(name, ()))
    if len(shape) < 2:
      continue
    if abs(shape[0] * size[1] - shape[1] * size[0]) > sum(size):
      raise ValueError(
        f"{name} are {shape[0]} x {shape[1]} pixels; expected the proportions"
        f" of the image, {size[0]} x {size[1]}"
      )
