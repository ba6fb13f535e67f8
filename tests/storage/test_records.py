import io

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from must_jax.fields import (
  Boxes,
  ClassMap,
  ClassVector,
  ValueMap,
  VectorMap,
)
from must_jax.storage import records

CLASSES = ["cat", "dog", "bird", "fish"]
FIELDS = {
  "label": {"kind": "ClassVector", "classes": CLASSES},
  "objects": {"kind": "Boxes", "classes": CLASSES},
  "mask": {"kind": "ClassMap", "classes": CLASSES},
  "depth": {"kind": "ValueMap"},
  "normals": {"kind": "VectorMap"},
}
READ = {
  "label": ClassVector(4),
  "objects": Boxes(4),
  "mask": ClassMap(4),
  "depth": ValueMap(),
  "normals": VectorMap(),
}
quick = hypothesis.settings(max_examples=30, deadline=None)


def round_trip(name, arrays, field=None):
  record = records.encode_labels("k", "ok", {name: arrays}, fields=FIELDS)
  return records.read_labels(record, {name: field or READ[name]})[name]


def image_bytes(height=4, width=6, kind="PNG", mode="RGB", **kwargs):
  file = io.BytesIO()
  Image.new(mode, (width, height)).save(file, kind, **kwargs)
  return file.getvalue()


def encode(labels, height=4, width=6, **kwargs):
  arguments = {"image": image_bytes(height, width), "key": "key7"} | kwargs
  return records.encode_example(
    height=height, width=width, labels=labels, fields=FIELDS, **arguments
  )


def test_features_are_those_of_the_contract():
  record = encode(
    {
      "label": {"classes": [2]},
      "objects": {"boxes": [[0, 0, 0.5, 1]], "classes": [3], "ignore": [True]},
      "mask": {"classes": np.full((4, 6), 1)},
      "depth": {"values": np.array([[1.0, 3.0]]), "valid": [[True, True]]},
    }
  )
  features = tf.train.Example.FromString(record).features.feature

  def values(name):
    feature = features[name]
    return list(getattr(feature, feature.WhichOneof("kind")).value)

  assert values("key") == [b"key7"]
  assert (values("height"), values("width")) == ([4], [6])
  assert values("image") == [image_bytes()]
  assert values("label/classes") == [2]
  assert values("objects/boxes") == [0, 0, 0.5, 1]
  assert values("objects/classes") == [3]
  assert values("objects/ignore") == [1]
  (mask,) = values("mask/png")
  decoded = Image.open(io.BytesIO(mask))
  assert (decoded.mode, decoded.size) == ("L", (6, 4))
  assert (np.asarray(decoded) == 1).all()
  (depth,) = values("depth/png")
  codes = np.asarray(Image.open(io.BytesIO(depth)))
  assert codes.tolist() == [[1, 65535]]
  scale, shift = values("depth/scale")[0], values("depth/shift")[0]
  np.testing.assert_allclose(scale * codes + shift, [[1, 3]], rtol=1e-6)
  assert "normals/png" not in features


def test_equal_labels_give_equal_bytes():
  labels = {
    "label": {"classes": [1]},
    "mask": {"classes": np.ones((4, 6), int)},
  }
  backwards = dict(reversed(labels.items()))
  assert encode(labels) == encode(backwards)


# Round trips.


def test_class_vector():
  assert round_trip("label", {"classes": [1, 3]})["probs"].tolist() == [
    0,
    1,
    0,
    1,
  ]
  soft = round_trip("label", {"classes": [2, 0], "probs": [0.25, 0.5]})
  assert soft["probs"].tolist() == [0.5, 0, 0.25, 0]
  # No class at all is a label, too (several classes at once).
  assert round_trip("label", {"classes": []})["probs"].tolist() == [0] * 4


def test_boxes():
  boxes = np.array([[0, 0.25, 0.5, 1], [0.125, 0, 0.25, 0.5]], np.float32)
  arrays = {"boxes": boxes, "classes": [3, 0]}
  given = round_trip("objects", arrays)
  np.testing.assert_array_equal(given["boxes"], boxes)
  assert given["classes"].tolist() == [3, 0]
  assert given["ignore"].tolist() == [False, False]
  assert given["scores"].tolist() == [1, 1]
  # Pseudo boxes are kept raw and thresholded when read.
  arrays |= {"scores": [0.25, 0.75], "ignore": [0, 1]}
  for min_score, kept in ((0.0, [3, 0]), (0.5, [0]), (0.75, [0]), (0.8, [])):
    given = round_trip("objects", arrays, Boxes(4, min_score=min_score))
    assert given["classes"].tolist() == kept
    assert given["boxes"].shape == (len(kept), 4)


def test_an_image_without_objects_has_labels():
  none = {"boxes": np.zeros((0, 4)), "classes": np.zeros(0)}
  assert round_trip("objects", none)["boxes"].shape == (0, 4)


def test_absent_fields():
  record = encode({"label": {"classes": [1]}})
  assert set(records.read_labels(record, READ)) == {"label"}
  assert records.read_labels(b"", READ) == {}
  labels = records.parse_labels(tf.constant(b""), READ)
  assert not any(arrays["present"] for arrays in labels.values())


@quick
@hypothesis.given(
  hnp.arrays(np.int64, (3, 5), elements=st.sampled_from([0, 1, 2, 3, 255])),
  hnp.arrays(np.float32, (3, 5), elements=st.floats(0, 1, width=32)),
  st.floats(0, 1),
)
def test_class_map(classes, confidence, min_score):
  np.testing.assert_array_equal(
    round_trip("mask", {"classes": classes})["classes"], classes
  )
  arrays = {"classes": classes, "confidence": confidence}
  given = round_trip("mask", arrays, ClassMap(4, min_score))["classes"]
  # The confidence is known within half a code of 8 bits.
  bound = 1 / 510 + 1e-6
  sure, unsure = confidence > min_score + bound, confidence < min_score - bound
  np.testing.assert_array_equal(given[sure], classes[sure])
  assert (given[unsure] == 255).all()


@quick
@hypothesis.given(
  hnp.arrays(
    np.float32, (4, 5), elements=st.floats(-(2.0**90), 2.0**90, width=32)
  ),
  hnp.arrays(bool, (4, 5)),
)
def test_value_map(values, valid):
  given = round_trip("depth", {"values": values, "valid": valid})
  np.testing.assert_array_equal(given["valid"], valid)
  if not valid.any():
    return
  kept = values[valid].astype(np.float64)
  error = np.abs(given["values"][valid] - kept)
  magnitudes = np.abs(kept[kept != 0])
  high, low = magnitudes.max(initial=0), magnitudes.min(initial=np.inf)
  # TensorFlow takes smaller ones for zero.
  tiny = np.finfo(np.float32).tiny
  if high <= 256 * low:
    step = (kept.max() - kept.min()) / 65534
    assert (error <= 0.501 * step + 4e-7 * high + tiny).all()
  # Whatever else is in the map, a value keeps three digits.
  least = max(min(low, high), 1e-30 * high)
  assert (error <= 0.004 * np.abs(kept) + 0.002 * least + 10 * tiny).all()
  assert (given["values"][~valid] == 0).all()


@pytest.mark.parametrize("sky", [1e10, 65504.0, 1e6])
@pytest.mark.parametrize("part", [0.0001, 0.6, 0.9999])
def test_a_room_beside_a_sky_keeps_its_depth(sky, part):
  rng = np.random.default_rng(0)
  room = 0.5 + 7.5 * rng.random((100, 120)).astype(np.float32)
  is_sky = rng.random(room.shape) < part
  is_sky.flat[:2] = True, False
  given = round_trip("depth", {"values": np.where(is_sky, sky, room)})["values"]
  assert np.abs(given - room)[~is_sky].max() < 0.002  # metres
  np.testing.assert_allclose(given[is_sky], sky, rtol=1e-3)


def test_maps_of_any_size_read_the_same_values():
  rng = np.random.default_rng(0)
  small = np.exp(9 * rng.random((200, 300))).astype(np.float32)
  assert "bend" in ValueMap().encode({"values": small})
  given = round_trip("depth", {"values": small})["values"]
  # More pixels than there are codes, of the same range.
  large = round_trip("depth", {"values": np.tile(small, (2, 1))})["values"]
  np.testing.assert_array_equal(large, np.tile(given, (2, 1)))


def test_even_steps_are_stored_as_they_always_were():
  values = np.array([[1.0, 3.5], [256.0, 0.0]])
  field = ValueMap()
  features = field.encode({"values": values})
  assert set(features) == {"png", "scale", "shift"}
  assert "bend" in field.encode({"values": np.array([[1.0, 257.0]])})


@pytest.mark.parametrize("value", [1e39, -1e39])
def test_values_that_32_bits_cannot_hold_are_refused(value):
  with pytest.raises(ValueError, match="too large for 32 bits"):
    ValueMap().encode({"values": np.array([[value]])})


@pytest.mark.parametrize("value", [0.0, -3.5, 1e-30, 7e7])
def test_constant_value_map(value):
  given = round_trip("depth", {"values": np.full((2, 2), value)})
  assert given["valid"].all()
  np.testing.assert_allclose(given["values"], value, rtol=1e-6)


@pytest.mark.parametrize(
  "stored, wanted, expected",
  [
    ("metres", "metres", [[2, 4], [0, 0]]),
    ("metres", "inverse", [[0.5, 0.25], [0, 0]]),
    ("metres", "", [[2, 4], [0, 0]]),
    ("inverse", "inverse", [[2, 4], [0, 0]]),
  ],
)
def test_units_of_depth(stored, wanted, expected):
  fields = {"depth": {"kind": "ValueMap", "unit": stored}}
  values = np.array([[2.0, 4.0], [1.0, 0.0]])
  # Nothing is at 0 metres, whoever says so.
  valid = [[True, True], [False, stored == "metres" and wanted == "inverse"]]
  arrays = {"values": values, "valid": valid}
  record = records.encode_labels("k", "ok", {"depth": arrays}, fields=fields)
  read = {"depth": ValueMap(unit=wanted)}
  given = records.read_labels(record, read)["depth"]
  np.testing.assert_allclose(given["values"], expected, atol=1e-4)
  assert given["valid"].tolist() == [[True, True], [False, False]]


@quick
@hypothesis.given(st.integers(0, 2**32 - 1))
def test_vector_map(seed):
  rng = np.random.default_rng(seed)
  vectors = rng.normal(size=(4, 5, 3))
  vectors[0] = [[1, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 1], [-1, 0, 0]]
  vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
  valid = rng.random((4, 5)) < 0.7
  given = round_trip("normals", {"vectors": vectors, "valid": valid})
  np.testing.assert_array_equal(given["valid"], valid)
  # 1/65534 by the code, and as much again by making it a unit vector.
  error = np.abs(given["vectors"] - vectors)[valid]
  assert error.max(initial=0) < 2 / 65534
  norms = np.linalg.norm(given["vectors"][valid], axis=-1)
  np.testing.assert_allclose(norms, 1, atol=1e-6)
  assert (given["vectors"][~valid] == 0).all()


# Refusals.

BOX = {"boxes": [[0, 0, 0.5, 0.5]], "classes": [0]}
UP = np.tile(np.array([0.0, 0.0, -1.0]), (4, 6, 1))


@pytest.mark.parametrize(
  "name, arrays, message",
  [
    ("label", {"classes": [4]}, r"class \[4\]; expected integers from 0 to 3"),
    ("label", {"classes": [-1]}, r"class \[-1\]"),
    ("label", {"classes": [0.5]}, "class float64"),
    ("label", {"classes": [1, 1]}, "twice"),
    ("label", {"classes": [1], "probs": [1.5]}, "within 0 and 1"),
    ("label", {"classes": [1], "probs": [np.nan]}, "within 0 and 1"),
    ("label", {"classes": [1], "probs": [0.5, 0.5]}, r"expected \(1,\)"),
    ("label", {"probs": [1.0]}, "'classes'"),
    ("objects", {**BOX, "classes": [9]}, r"\[9\]"),
    ("objects", {**BOX, "classes": [0, 1]}, "1 boxes with 2 classes"),
    ("objects", {**BOX, "boxes": [[0.5, 0, 0.5, 1]]}, "box 0 is .*ymin < ymax"),
    ("objects", {**BOX, "boxes": [[0, 0, 1.1, 1]]}, "parts of the image"),
    ("objects", {**BOX, "boxes": [[0, np.nan, 1, 1]]}, "nan"),
    ("objects", {**BOX, "scores": [-0.5]}, "within 0 and 1"),
    ("objects", {**BOX, "ignore": [0, 1]}, "2 ignore flags"),
    ("mask", {"classes": np.full((4, 6), 4)}, r"class \[4\]"),
    ("mask", {"classes": np.full((6, 4), 1)}, "6 x 4 pixels.*4 x 6"),
    ("mask", {"classes": np.zeros((4, 6, 1), int)}, "2 dimensions"),
    (
      "mask",
      {"classes": np.zeros((4, 6), int), "confidence": np.zeros((2, 3))},
      r"\(2, 3\)",
    ),
    ("depth", {"values": np.full((4, 6), np.nan)}, "not finite"),
    ("depth", {"values": np.ones((4, 6)), "valid": [True]}, "valid has shape"),
    ("depth", {"values": np.ones((0, 6))}, "at least 1 pixel"),
    ("normals", {"vectors": 2 * UP}, "length 1"),
    ("normals", {"vectors": UP[..., :2]}, "3 components"),
    ("normals", {"vectors": np.full((4, 6, 3), np.inf)}, "not finite"),
    ("flow", {}, "the set has"),
  ],
)
def test_labels_out_of_range_are_refused(name, arrays, message):
  with pytest.raises(ValueError, match="(?s)'key7'.*" + message):
    encode({name: arrays})


def test_rounding_of_boxes_is_forgiven():
  arrays = {"boxes": [[-1e-6, 0, 1 + 1e-6, 1]], "classes": [0]}
  assert round_trip("objects", arrays)["boxes"].tolist() == [[0, 0, 1, 1]]


def test_invalid_pixels_may_hold_anything():
  values = np.array([[np.nan, 1.0], [np.inf, 2.0]])
  arrays = {"values": values, "valid": np.isfinite(values)}
  given = round_trip("depth", arrays)
  np.testing.assert_allclose(given["values"], [[0, 1], [0, 2]])


@pytest.mark.parametrize(
  "kwargs, message",
  [
    ({"image": b""}, "the file is empty"),
    ({"image": b"<html>"}, "neither JPEG nor PNG"),
    ({"image": image_bytes(kind="GIF")}, "neither JPEG nor PNG"),
    ({"image": image_bytes()[:20]}, "ends within its header"),
    ({"image": image_bytes(kind="JPEG")[:30]}, "ends within its header"),
    ({"image": image_bytes(6, 4)}, "6 x 4 pixels; given are height 4"),
  ],
)
def test_images_are_checked(kwargs, message):
  with pytest.raises(ValueError, match="'key7': .*" + message):
    encode({}, **kwargs)


@pytest.mark.parametrize(
  "kind, kwargs",
  [
    ("PNG", {}),
    ("PNG", {"mode": "P"}),
    ("PNG", {"mode": "I;16"}),
    ("JPEG", {}),
    ("JPEG", {"mode": "L"}),
    ("JPEG", {"mode": "CMYK"}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"exif": b"Exif\0\0" + b"x" * 5000, "comment": b"\xff\xc0"}),
  ],
)
def test_image_size(kind, kwargs):
  image = image_bytes(31, 57, kind, **kwargs)
  assert records.read_image_size(image) == (31, 57)


def test_image_bombs_are_refused_by_their_header():
  bomb = bytearray(image_bytes())
  bomb[16:24] = (20_000).to_bytes(4, "big") * 2
  with pytest.raises(ValueError, match="20000 x 20000"):
    records.read_image_size(bytes(bomb))


@pytest.mark.parametrize(
  "status, labels", [("fine", {}), ("undecodable", {"label": {"classes": [1]}})]
)
def test_status(status, labels):
  with pytest.raises(ValueError, match="status"):
    records.encode_labels("k", status, labels, fields=FIELDS)


# Records of other origin: whatever they hold, reading says what is wrong.


def foreign(features):
  make = {
    bytes: bytes,
    int: lambda v: np.array([v]),
    float: lambda v: np.array([v]),
    list: lambda v: np.array(v, float),
    tuple: np.array,
  }
  return records.serialize({k: make[type(v)](v) for k, v in features.items()})


def png(array):
  return tf.io.encode_png(np.asarray(array)).numpy()


HUGE = image_bytes()[:16] + b"\0\0\xff\xff\0\0\xff\xff" + image_bytes()[24:]


@pytest.mark.parametrize(
  "record, message",
  [
    (b"no example", "broken"),
    (foreign({"label/present": 1, "label/classes": (7,)}), "class id"),
    (
      foreign({"label/present": 1, "label/classes": (1,), "label/probs": [2]}),
      "label/probs",
    ),
    (
      foreign(
        {"label/present": 1, "label/classes": (1,), "label/probs": [0.1, 0.1]}
      ),
      "label/probs",
    ),
    (
      foreign({"objects/present": 1, "objects/boxes": [0, 0, 1]}),
      "objects/boxes",
    ),
    (
      foreign(
        {
          "objects/present": 1,
          "objects/boxes": [0, np.nan, 1, 1],
          "objects/classes": (1,),
          "objects/ignore": (0,),
        }
      ),
      "objects/boxes",
    ),
    (
      foreign({"mask/png": png(np.full((2, 2, 1), 9, np.uint8))}),
      "mask: class id",
    ),
    (
      foreign(
        {
          "mask/png": png(np.ones((2, 2, 1), np.uint8)),
          "mask/confidence": png(np.ones((3, 2, 1), np.uint8)),
        }
      ),
      "mask/confidence",
    ),
    (foreign({"mask/png": HUGE}), "size of the map"),
    (foreign({"mask/png": image_bytes(kind="JPEG")}), "PNG"),
    (foreign({"depth/scale": float("nan")}), "depth/scale"),
  ],
  ids=lambda value: value if isinstance(value, str) else "record",
)
def test_broken_records_are_refused(record, message):
  with pytest.raises(ValueError, match=message):
    records.read_labels(record, READ)
