"""Label arrays to features, by kind of field; `schema` lists the features.

Maps become PNGs of integer codes. Reading them back gives class maps exactly,
confidences within 1/510, values within half of `scale` (1/65534 of the map's
range) and components of vectors within 1/65534.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from must_jax.types import IGNORE_LABEL

MAX_CODE = 65535  # of 16 bits; 0 is kept for invalid pixels
_BOX_SLACK = 1e-5  # of the image size, rounding that is forgiven


def encode_field(
  arrays: Mapping[str, Any], spec: Mapping[str, Any]
) -> dict[str, tf.train.Feature]:
  """The features of one field of one example.

  Args:
    arrays: by kind; those in parentheses may be left out.
      ClassVector: classes [k], (probs [k])
      Boxes: boxes [G, 4] normalised yxyx, classes [G], (ignore [G] bool),
        (scores [G])
      ClassMap: classes [h, w], (confidence [h, w])
      ValueMap: values [h, w], (valid [h, w] bool)
      VectorMap: vectors [h, w, 3] of length 1, (valid [h, w] bool)
    spec: {"kind": ..., "classes": [...], "unit": ...}, the last two if any.

  Raises:
    ValueError: a value out of its range, or a shape that does not fit.
  """
  kind, num_classes = spec["kind"], len(spec.get("classes", ()))
  arrays = {k: np.asarray(v) for k, v in arrays.items()}
  needed, optional = _ARRAYS[kind]
  if not set(needed) <= set(arrays) <= {*needed, *optional}:
    raise ValueError(
      f"given are {sorted(arrays)}; a {kind} has {needed} and may have"
      f" {optional}"
    )
  features = _ENCODERS[kind](arrays, num_classes)
  if "unit" in spec:
    features["unit"] = bytes_feature(spec["unit"].encode())
  return features


def _encode_class_vector(
  arrays: dict[str, np.ndarray], num_classes: int
) -> dict[str, tf.train.Feature]:
  classes = _class_ids(arrays["classes"].reshape(-1), num_classes)
  if len(np.unique(classes)) != len(classes):
    raise ValueError(f"a class comes twice in {classes.tolist()}")
  features = {"classes": ints_feature(classes)}
  if "probs" in arrays:
    features["probs"] = floats_feature(
      _unit_range("probs", arrays, classes.shape)
    )
  return features


def _encode_boxes(
  arrays: dict[str, np.ndarray], num_classes: int
) -> dict[str, tf.train.Feature]:
  classes = _class_ids(arrays["classes"].reshape(-1), num_classes)
  boxes = np.asarray(arrays["boxes"], np.float32).reshape(-1, 4)
  if len(boxes) != len(classes):
    raise ValueError(f"{len(boxes)} boxes with {len(classes)} classes")
  inside = (boxes >= -_BOX_SLACK) & (boxes <= 1 + _BOX_SLACK)  # no nan is
  boxes = np.clip(boxes, 0, 1)
  fine = inside.all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
  if not fine.all():
    raise ValueError(
      f"box {np.argmin(fine)} is {boxes[np.argmin(fine)].tolist()}; expected"
      " 0 <= ymin < ymax <= 1 and 0 <= xmin < xmax <= 1, parts of the image"
    )
  ignore = arrays.get("ignore", np.zeros(len(boxes), bool)).reshape(-1)
  if ignore.shape != classes.shape:
    raise ValueError(f"{len(ignore)} ignore flags for {len(boxes)} boxes")
  features = {
    "boxes": floats_feature(boxes.reshape(-1)),
    "classes": ints_feature(classes),
    "ignore": ints_feature(ignore.astype(bool)),
  }
  if "scores" in arrays:
    features["scores"] = floats_feature(
      _unit_range("scores", arrays, classes.shape)
    )
  return features


def _encode_class_map(
  arrays: dict[str, np.ndarray], num_classes: int
) -> dict[str, tf.train.Feature]:
  classes = _map("classes", arrays, 2)
  known = classes[classes != IGNORE_LABEL]
  _class_ids(known, num_classes)
  features = {"png": _png(classes.astype(np.uint8))}
  if "confidence" in arrays:
    confidence = _unit_range("confidence", arrays, classes.shape)
    features["confidence"] = _png(np.rint(255 * confidence).astype(np.uint8))
  return features


def _encode_value_map(
  arrays: dict[str, np.ndarray], num_classes: int
) -> dict[str, tf.train.Feature]:
  del num_classes
  values = _map("values", arrays, 2).astype(np.float64)
  valid = _valid(arrays, values.shape)
  _finite("values", values[valid])
  low = high = 0.0
  if valid.any():
    low, high = values[valid].min(), values[valid].max()
  # Rounded as they are stored, so that the codes make up for the rounding.
  scale = float(np.float32((high - low) / (MAX_CODE - 1)))
  shift = float(np.float32(low - scale))
  codes = np.zeros(values.shape)
  codes[valid] = 1
  if scale > 0:
    codes[valid] = np.clip(
      np.rint((values[valid] - shift) / scale), 1, MAX_CODE
    )
  return {
    "png": _png(codes.astype(np.uint16)),
    "scale": floats_feature([scale]),
    "shift": floats_feature([shift]),
  }


def _encode_vector_map(
  arrays: dict[str, np.ndarray], num_classes: int
) -> dict[str, tf.train.Feature]:
  del num_classes
  vectors = _map("vectors", arrays, 3).astype(np.float64)
  valid = _valid(arrays, vectors.shape[:2])
  _finite("vectors", vectors[valid])
  norm = np.linalg.norm(vectors[valid], axis=-1, keepdims=True)
  if vectors.shape[2] != 3 or (np.abs(norm - 1) > 0.01).any():
    raise ValueError("vectors are not of 3 components and length 1")
  codes = np.zeros(vectors.shape)
  codes[valid] = 1 + np.rint((vectors[valid] / norm + 1) / 2 * (MAX_CODE - 1))
  return {"png": _png(codes.astype(np.uint16))}


_ARRAYS = {
  "ClassVector": (("classes",), ("probs",)),
  "Boxes": (("boxes", "classes"), ("ignore", "scores")),
  "ClassMap": (("classes",), ("confidence",)),
  "ValueMap": (("values",), ("valid",)),
  "VectorMap": (("vectors",), ("valid",)),
}
_ENCODERS = {
  "ClassVector": _encode_class_vector,
  "Boxes": _encode_boxes,
  "ClassMap": _encode_class_map,
  "ValueMap": _encode_value_map,
  "VectorMap": _encode_vector_map,
}


def bytes_feature(value: bytes) -> tf.train.Feature:
  """A feature of one byte string."""
  return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def ints_feature(values: Sequence[int] | np.ndarray) -> tf.train.Feature:
  """A feature of int64 values."""
  values = np.asarray(values).astype(np.int64)
  return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def floats_feature(values: Sequence[float] | np.ndarray) -> tf.train.Feature:
  """A feature of float32 values."""
  values = np.asarray(values, np.float32)
  return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def _png(codes: np.ndarray) -> tf.train.Feature:
  if codes.ndim == 2:
    codes = codes[..., None]
  return bytes_feature(tf.io.encode_png(codes).numpy())


def _class_ids(classes: np.ndarray, num_classes: int) -> np.ndarray:
  wrong = classes[(classes < 0) | (classes >= num_classes)]
  if wrong.size or (classes.size and classes.dtype.kind not in "iu"):
    raise ValueError(
      f"class {wrong[:1].tolist() or classes.dtype}; expected integers from 0"
      f" to {num_classes - 1}"
    )
  return classes


def _finite(name: str, values: np.ndarray) -> None:
  if not np.isfinite(values).all():
    raise ValueError(f"{name} are not finite where they are valid")


def _unit_range(
  name: str, arrays: dict[str, np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
  values = np.asarray(arrays[name], np.float32)
  if values.shape != shape:
    raise ValueError(f"{name} have shape {values.shape}; expected {shape}")
  if not ((values >= 0) & (values <= 1 + 1e-5)).all():  # no nan is
    raise ValueError(f"{name} are not within 0 and 1")
  return np.minimum(values, 1)


def _map(name: str, arrays: dict[str, np.ndarray], ndim: int) -> np.ndarray:
  array = arrays[name]
  if array.ndim != ndim or 0 in array.shape:
    raise ValueError(
      f"{name} have shape {array.shape}; expected {ndim} dimensions and at"
      " least 1 pixel"
    )
  return array


def _valid(arrays: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
  valid = arrays.get("valid", np.ones(shape, bool)).astype(bool)
  if valid.shape != shape:
    raise ValueError(f"valid has shape {valid.shape}; expected {shape}")
  return valid
