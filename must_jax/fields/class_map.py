"""A class for each pixel.

F/png 8 bit, 255 unknown; F/confidence 8 bit PNG, round(255 p)
"""

import dataclasses
import io
from typing import ClassVar

import jax
import numpy as np

from must_jax.fields import field, maps
from must_jax.fields.statistics import make_sums
from must_jax.types import IGNORE_LABEL


@dataclasses.dataclass(frozen=True)
class ClassMap(maps.MapField):
  """Class per pixel: `classes` int32 [B, h, w], `IGNORE_LABEL` where unknown.

  A cell takes the nearest pixel. Stored: classes [h, w], (confidence [h, w]);
  in parentheses what may be left out. Classes are read back exactly,
  confidences within 1/510.

  Attributes:
    num_classes: number of classes, at most 255.
    min_score: pseudo pixels of lower confidence become `IGNORE_LABEL` when
      read; one for all or for each class.
    with_confidence: whether a batch has `confidence` float32 [B, h, w], too; 1
      where nothing is stored or a person has looked, 0 where unknown.
  """

  num_classes: int
  min_score: field.Scores = 0.5
  with_confidence: bool = False

  needed = ("classes",)
  optional = ("confidence",)
  features: ClassVar = {"png": "bytes", "confidence": "bytes"}
  map_array = "classes"
  has_classes = True
  has_background = True
  has_regions = True
  can_be_mended = True
  read_seconds = 1 / 328 - 1 / 370
  store_cost = (2.5e-8, 0.63)
  page_form = "codes"
  predicted: ClassVar = {
    "classes": "number of the class of each pixel, from 0",
    "confidence": "probability of that class, 0 to 1",
  }

  @classmethod
  def check_description(cls, description):
    super().check_description(description)
    if len(description["classes"]) > IGNORE_LABEL:
      raise ValueError(
        f"has {len(description['classes'])} classes; a map holds at most"
        f" {IGNORE_LABEL}."
      )

  def encode(self, arrays):
    classes = maps.check_map("classes", arrays["classes"], 2)
    field.check_class_ids(classes[classes != IGNORE_LABEL], self.num_classes)
    features = {"png": maps.encode_png(classes.astype(np.uint8))}
    if "confidence" in arrays:
      confidence = field.check_unit_range(
        "confidence", arrays["confidence"], classes.shape
      )
      features["confidence"] = maps.encode_png(_codes(confidence))
    return features

  def decode(self, features):
    arrays = {"classes": maps.decode_codes(features["png"])}
    if features["confidence"]:
      codes = maps.decode_codes(features["confidence"])
      arrays["confidence"] = _scores(codes)
    return arrays

  def mend(self, given, stored, size):
    if "confidence" not in stored:
      return dict(given)
    before, classes = self.at_size(stored, size), given["classes"]
    same = classes == before["classes"]
    confidence = np.where(same, before["confidence"], np.float32(1))
    confidence[classes == IGNORE_LABEL] = 0
    return {**given, "confidence": confidence}

  def is_same(self, mended, shown, size):
    classes = self.at_size(shown, size)["classes"]
    return np.array_equal(mended["classes"], classes)

  def parse(self, name, features, table):
    import tensorflow as tf

    classes = maps.decode_map(name, features, 1, tf.uint8)[..., 0]
    if table is not None:
      missing = IGNORE_LABEL - tf.size(table)
      codes = tf.pad(table, [[0, missing]], constant_values=-1)
      codes = tf.concat([codes, [IGNORE_LABEL]], 0)
      classes = tf.gather(codes, tf.cast(classes, tf.int32))
      field.require(tf.reduce_all(classes >= 0), f"{name}: class id")
      classes = tf.cast(classes, tf.uint8)
    known = (classes < self.num_classes) | (classes == IGNORE_LABEL)
    field.require(tf.reduce_all(known), f"{name}: class id")

    def decode() -> tf.Tensor:
      code = maps.decode_png(
        f"{name}/confidence", features["confidence"], 1, tf.uint8
      )
      same = tf.reduce_all(tf.shape(code)[:2] == tf.shape(classes))
      with field.require(same, f"{name}/confidence"):
        return tf.cast(code[..., 0], tf.float32) / 255

    def threshold(confidence: tf.Tensor) -> tf.Tensor:
      sure = confidence >= field.parsed_scores_of(
        self.min_score, tf.cast(classes, tf.int32)
      )
      return tf.where(sure, classes, IGNORE_LABEL)

    has_scores = tf.strings.length(features["confidence"]) > 0
    has_scores &= ~features["checked"]
    if self.with_confidence:
      confidence = tf.cond(
        has_scores, decode, lambda: tf.ones(tf.shape(classes))
      )
      found = threshold(confidence)
      return {"classes": tf.cast(found, tf.int32), "confidence": confidence}
    found = tf.cond(has_scores, lambda: threshold(decode()), lambda: classes)
    return {"classes": tf.cast(found, tf.int32)}

  def move(self, arrays, placement, cells):
    import tensorflow as tf

    classes = cells.nearest(arrays["classes"])
    moved = {"classes": tf.where(cells.inside, classes, IGNORE_LABEL)}
    if self.with_confidence:
      sure = cells.nearest(arrays["confidence"])
      known = moved["classes"] != IGNORE_LABEL
      moved["confidence"] = tf.where(known, sure, 0.0)
    return moved

  def batch_arrays(self, cells):
    arrays = {"classes": jax.ShapeDtypeStruct(cells, np.int32)}
    if self.with_confidence:
      arrays["confidence"] = jax.ShapeDtypeStruct(cells, np.float32)
    return arrays

  def sample(self, arrays, grid):
    unknown = {"classes": IGNORE_LABEL, "confidence": 0}
    return {
      name: np.where(grid.inside, grid.nearest(array), unknown[name])
      for name, array in arrays.items()
    }

  def at_least(self, arrays, min_score):
    wanted = field.scores_of(min_score, arrays["classes"])
    sure = arrays.get("confidence", np.float32(1)) >= wanted
    classes = np.where(sure, arrays["classes"], IGNORE_LABEL)
    return {**arrays, "classes": classes}

  def to_json(self, arrays, classes, min_score=None):
    counts = self.amounts(arrays)
    shares = counts / max(1, arrays["classes"].size)
    return {
      "shares": {
        classes[k]: round(float(shares[k]), 6) for k in field.ranked(counts)
      }
    }

  def to_png(self, arrays, colors):
    from PIL import Image

    image = Image.fromarray(arrays["classes"].astype(np.uint8), "P")
    table = np.zeros((IGNORE_LABEL + 1, 3), np.uint8)
    table[: len(colors)] = colors
    image.putpalette(table.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue(), {"code": "class id", "unknown": IGNORE_LABEL}

  def to_arrays(self, arrays):  # of classes, the PNG has all
    return {k: v for k, v in arrays.items() if k == "confidence"}

  def with_class_ids(self, arrays, ids):
    table = np.full(IGNORE_LABEL + 1, IGNORE_LABEL, np.int32)
    table[: len(ids)] = np.where(ids >= 0, ids, IGNORE_LABEL)
    return {**arrays, "classes": table[arrays["classes"]]}

  def agreement(self, first, second):
    """Intersection over union, over the pixels that both know."""
    a, b = (m["classes"] for m in self.at_finest(first, second))
    known = (a != IGNORE_LABEL) & (b != IGNORE_LABEL)
    of_first, of_second, of_both = (
      np.bincount(ids, minlength=self.num_classes)
      for ids in (a[known], b[known], a[known & (a == b)])
    )
    union = of_first + of_second - of_both
    return {
      int(k): (int(of_both[k]), int(union[k])) for k in np.flatnonzero(union)
    }

  def regions(self, arrays, side):
    classes = self.at_size(arrays, (side, side))["classes"]
    ids = np.arange(self.num_classes)[:, None, None]
    return classes == ids, classes != IGNORE_LABEL

  def score_outcomes(self, found, truth):
    """Of the pixels whose true class is known."""
    found, truth = self.at_finest(found, truth)
    counts = np.zeros((2, self.num_classes, 256), int)
    known = (truth["classes"] != IGNORE_LABEL) & (
      found["classes"] != IGNORE_LABEL
    )
    is_right = (found["classes"] == truth["classes"]).astype(int)
    places = is_right, found["classes"], _codes_of(found)
    np.add.at(counts, tuple(x[known] for x in places), 1)
    classes, codes = np.nonzero(counts.any(0))
    wrong, right = counts[:, classes, codes]
    return field.Outcomes(
      classes, _scores(codes), right, wrong, self.amounts(truth)
    )

  def to_page(self, arrays, size):
    """Red is the class, green the code of its confidence."""
    scored = "confidence" in arrays
    counts = np.bincount(_places(arrays), minlength=256 * 256)
    counts = counts.reshape(256, 256)
    found = np.flatnonzero(counts[: self.num_classes].any(1))
    scores = field.numbers(_scores(np.arange(256)))
    elements = {"classes": found.tolist()}
    if scored:
      elements["scores"] = [
        scores[np.flatnonzero(counts[k])[-1]] for k in found
      ]
    pixels = _page_pixels(self.reduced(arrays, size))
    return field.PageLabel(
      elements,
      {"height": pixels.shape[0], "width": pixels.shape[1]},
      maps.encode_png(pixels),
      {
        int(k): {scores[i]: int(counts[k, i]) for i in counts[k].nonzero()[0]}
        for k in found
      },
    )

  def uncertainty(self, arrays):
    """Mean over the known pixels of 1 - confidence.

    "Least confidence" (Lewis & Gale 1994), averaged as by Lad & Mueller 2023,
    "Estimating label quality and errors in semantic segmentation data via any
    model".
    """
    known = np.asarray(arrays["classes"]) != IGNORE_LABEL
    if "confidence" not in arrays or not known.any():
      return None
    return float(1 - np.mean(arrays["confidence"][known], dtype=np.float64))

  def constant(self, labels):
    """The most frequent class of each pixel."""
    counts = np.zeros(0)
    for label in labels:
      classes = np.asarray(label["classes"])
      if not counts.size:
        counts = np.zeros((*classes.shape, self.num_classes), np.int32)
      rows, cols = np.nonzero(classes != IGNORE_LABEL)
      counts[rows, cols, classes[rows, cols]] += 1  # no pixel comes twice
    overall = counts.sum((0, 1)).argmax()
    classes = np.where(counts.any(-1), counts.argmax(-1), overall)
    return {"classes": classes.astype(np.int32)}

  def sums(self, arrays):
    counts = np.bincount(_places(arrays))  # as short as its classes allow
    known, unknown = np.split(counts, [IGNORE_LABEL * 256])
    places = np.flatnonzero(known)
    classes, codes = np.divmod(places, 256)
    return make_sums(
      classes=classes,
      scores=_scores(codes) if "confidence" in arrays else None,
      counts=known[places],
      constant=bool(classes.size) and classes[0] == classes[-1],
      unknown=int(unknown.sum()),
    )

  def alarm(self, sums, classes):
    return field.one_class_alarm(sums, classes, self.element)

  def warnings(self, sums, classes):
    yield from super().warnings(sums, classes)
    if len(classes) > 1 and len(sums["classes"]) == 1 and sums["unknown"]:
      (k,) = sums["classes"]
      share = sums["unknown"] / (sums["unknown"] + sums["elements"])
      yield (
        f"all pixels are {classes[int(k)]!r} or unknown ({share:.1%} are"
        f" {IGNORE_LABEL}); if {IGNORE_LABEL} is a class in the files, give"
        f' --map with {{"{k}": {k}, "{IGNORE_LABEL}": 1}}.'
      )

  def measure(self, arrays):
    """Part of the pixels of each class, and of the unknown ones."""
    classes = arrays["classes"].reshape(-1)
    counts = np.bincount(classes, minlength=IGNORE_LABEL + 1) / len(classes)
    return np.append(counts[: self.num_classes], counts[IGNORE_LABEL])

  def summarize(self, measured, classes):
    shares = measured.mean(0)
    yield f"  {shares[-1]:.1%} of the pixels are unknown"
    yield from field.list_classes(shares[:-1], classes, "{:.1%}")

  def amounts(self, arrays):
    counts = np.bincount(
      arrays["classes"].reshape(-1), minlength=self.num_classes
    )
    return counts[: self.num_classes]

  def caption(self, arrays, classes):
    counts = self.amounts(arrays)
    parts = counts / arrays["classes"].size
    shown = [f"{classes[k]} {parts[k]:.0%}" for k in field.ranked(counts)]
    return ", ".join(shown) or "none"


def _codes(confidence: np.ndarray) -> np.ndarray:
  return np.rint(255 * confidence).astype(np.uint8)


def _scores(codes: np.ndarray) -> np.ndarray:
  """The confidences as they are read, float32."""
  return codes.astype(np.float32) / np.float32(255)


def _codes_of(arrays: field.Arrays) -> np.ndarray:
  """Of the confidences, uint8 [h, w]; where nothing is said all is sure."""
  if "confidence" in arrays:
    return _codes(np.asarray(arrays["confidence"]))
  return np.full(np.shape(arrays["classes"]), 255, np.uint8)


def _places(arrays: field.Arrays) -> np.ndarray:
  """256 times the class plus the code of confidence of each pixel, int [n]."""
  return (256 * np.asarray(arrays["classes"], int) + _codes_of(arrays)).ravel()


def _page_pixels(arrays: field.Arrays) -> np.ndarray:
  """Class, code of the confidence, and 0 of each pixel, uint8 [h, w, 3]."""
  classes = np.asarray(arrays["classes"], np.uint8)
  return np.stack([classes, _codes_of(arrays), np.zeros_like(classes)], -1)
