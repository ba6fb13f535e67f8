"""Classes of an image as a whole.

F/classes int64 [k], F/probs float [k] (1 where left out)
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from must_jax.fields import field
from must_jax.fields.statistics import make_sums

_MAX_TOLD = 5  # classes of a prediction


@dataclasses.dataclass(frozen=True)
class ClassVector(field.Field):
  """Image-level classes: `probs` float32 [B, K] (one-hot, soft, multi-hot).

  Stored: classes [k], (probs [k]); in parentheses what may be left out.
  """

  num_classes: int

  needed = ("classes",)
  optional = ("probs",)
  features: ClassVar = {"classes": "ints", "probs": "floats"}
  has_classes = True
  can_be_mended = True
  element = "classes"
  store_cost = (4.0e-7, 6.0)
  page_form = "chips"
  predicted: ClassVar = {"probs": "probability of each class, 0 to 1"}

  def encode(self, arrays):
    classes = arrays["classes"].reshape(-1)
    field.check_class_ids(classes, self.num_classes)
    if len(np.unique(classes)) != len(classes):
      raise ValueError(f"a class comes twice in {classes.tolist()}")
    features = {"classes": classes.astype(np.int64)}
    if "probs" in arrays:
      features["probs"] = field.check_unit_range(
        "probs", arrays["probs"], classes.shape
      )
    return features

  def decode(self, features):
    arrays = {"classes": np.asarray(features["classes"], np.int64)}
    if len(features["probs"]):
      arrays["probs"] = np.asarray(features["probs"], np.float32)
    return arrays

  def mend(self, given, stored, size):
    """The classes told, confirmed: then all probabilities stay as they are."""
    if "probs" not in stored:
      return dict(given)
    told = stored["classes"][told_classes(stored["probs"])]
    if {*told.tolist()} == {*given["classes"].tolist()}:
      return dict(stored)
    return {**given, "probs": np.ones(len(given["classes"]), np.float32)}

  def is_same(self, mended, shown, size):
    told = [
      {*arrays["classes"][told_classes(arrays["probs"])].tolist()}
      if "probs" in arrays
      else {*arrays["classes"].tolist()}
      for arrays in (mended, shown)
    ]
    return told[0] == told[1]

  def parse(self, name, features, table):
    import tensorflow as tf

    classes = field.parse_class_ids(
      name, features["classes"], self.num_classes, table
    )
    probs = field.parse_scores(f"{name}/probs", features["probs"], classes)
    once = tf.size(tf.unique(classes).y) == tf.size(classes)  # or they add up
    with field.require(once, f"{name}: class id"):
      places = classes[:, None]
    return {"probs": tf.scatter_nd(places, probs, [self.num_classes])}

  def move(self, arrays, placement, cells):
    return {"probs": arrays["probs"]}

  def batch_arrays(self, cells):
    return {"probs": jax.ShapeDtypeStruct((self.num_classes,), np.float32)}

  def at_size(self, arrays, size):
    probs = np.zeros(self.num_classes, np.float32)
    probs[arrays["classes"]] = arrays.get("probs", 1)
    return {"probs": probs}

  def to_json(self, arrays, classes, min_score=None):
    """The five most probable classes, or all that reach the threshold."""
    probs = arrays["probs"]
    told = np.argsort(-probs, kind="stable")
    told = (
      told[:_MAX_TOLD]
      if min_score is None
      else told[: (probs >= min_score).sum()]
    )
    return {
      "classes": [
        {"id": int(k), "name": classes[k], "probability": p}
        for k, p in zip(told, field.numbers(probs[told]), strict=True)
      ]
    }

  def with_class_ids(self, arrays, ids):
    probs = np.zeros(ids.max(initial=-1) + 1, np.float32)
    # Of an image of a class that is left out, the rest says little.
    if (ids[told_classes(arrays["probs"])] >= 0).any():
      probs[ids[ids >= 0]] = arrays["probs"][ids >= 0]
    return {"probs": probs}

  def agreement(self, first, second):
    """Dice coefficient of the classes told; of one class each, accuracy."""
    a, b = (
      told_classes(x["probs"]) & (x["probs"] > 0) for x in (first, second)
    )
    if not a.any() or not b.any():
      return {}
    return {
      int(k): (2 * int(a[k] and b[k]), int(a[k]) + int(b[k]))
      for k in np.flatnonzero(a | b)
    }

  def to_page(self, arrays, size):
    classes = np.asarray(arrays["classes"])
    probs = np.asarray(arrays.get("probs", np.ones(len(classes))))
    told = told_classes(probs)
    best = np.argsort(-probs, kind="stable")[:_MAX_TOLD]
    chips = {"classes": classes[best].tolist()}
    elements = {"classes": classes[told].tolist()}
    if "probs" in arrays:
      chips["scores"] = field.numbers(probs[best])
      elements["scores"] = field.numbers(probs[told])
    return field.PageLabel(elements, chips)

  def uncertainty(self, arrays):
    """1 - margin between the two best classes (Scheffer et al. 2001)."""
    if "probs" not in arrays or not np.size(arrays["probs"]):
      return None
    first, second = np.sort(np.append(arrays["probs"], 0))[:-3:-1]
    return float(1 - (first - second))

  def constant(self, labels):
    """The mean: the most probable class is the most frequent one."""
    return {"probs": np.mean([label["probs"] for label in labels], 0)}

  def sums(self, arrays):
    classes = np.asarray(arrays["classes"])
    probs = np.asarray(arrays.get("probs", np.ones(len(classes))))
    told = told_classes(probs)
    return make_sums(
      classes=classes[told],
      scores=probs[told],
      constant=probs.size > 1 and np.ptp(probs) == 0,
    )

  def alarm(self, sums, classes):
    return field.one_class_alarm(sums, classes, "images")

  def measure(self, arrays):
    return arrays["probs"] > 0

  def summarize(self, measured, classes):
    yield f"  {measured.sum(1).mean():.3g} classes an image"
    yield from field.list_classes(measured.sum(0), classes, "{:,.0f} images")

  def amounts(self, arrays):
    return arrays["probs"]

  def caption(self, arrays, classes):
    probs = self.amounts(arrays)
    form = "{0}" if set(probs) <= {0, 1} else "{0} {1:.2f}"
    shown = [form.format(classes[k], probs[k]) for k in field.ranked(probs)]
    return ", ".join(shown) or "none"

  def num_elements(self, cells):
    return self.num_classes


def told_classes(probs: np.ndarray) -> np.ndarray:
  """Which classes an image is said to be of, bool [n].

  The most probable one, and those of probability 0.5 or more.
  """
  told = probs >= 0.5
  if probs.size:
    told[probs.argmax()] = True
  return told
