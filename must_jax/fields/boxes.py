"""Objects with a class and a box.

F/boxes float [4 G] yxyx in 0..1 of the image, F/classes int64 [G],
F/ignore int64 [G], F/scores float [G] (1 where left out)
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import numpy as np

from must_jax.fields import field
from must_jax.fields.statistics import count_octaves, make_sums

_SLACK = 1e-5  # of the image size, rounding that is forgiven
# Pixels by which an edge may differ in files: CVAT and Datumaro round a place
# and an extent to 0.01 each.
_ROUNDING = 0.02
_MIN_SIDE = 1.0  # pixels of the network input
_MANY = 100  # boxes, by which can be told whether all are alike
_ALIKE = 0.99  # of the boxes, within two bins: a fifth of area and of aspect
_SAME_IOU = 0.5  # of boxes that are one object, as in PASCAL VOC and AP50


@dataclasses.dataclass(frozen=True)
class Boxes(field.Field):
  """Objects: `boxes` [B, G, 4], `classes`, `scores`, `valid`, `ignore` [B, G].

  `ignore` marks crowds and difficult objects: neither a target nor a mistake.
  Stored: boxes [G, 4] normalised yxyx, classes [G], (ignore [G] bool),
  (scores [G]); in parentheses what may be left out.

  Attributes:
    num_classes: number of classes; ids are 0..K-1, there is no background id.
    max_boxes: G, boxes beyond it are dropped (lowest scores first).
    min_score: pseudo boxes with a lower score are dropped when read; one for
      all or for each class. Those that a person has looked at have a score
      of 1.
  """

  num_classes: int
  max_boxes: int = 100
  min_score: field.Scores = 0.5

  needed = ("boxes", "classes")
  optional = ("ignore", "scores")
  features: ClassVar = {
    "boxes": "floats",
    "classes": "ints",
    "ignore": "ints",
    "scores": "floats",
  }
  has_classes = True
  has_background = True
  has_objects = True
  has_regions = True
  can_be_mended = True
  element = "boxes"
  read_seconds = 1 / 344 - 1 / 370
  store_cost = (2.7e-6, 23.6)
  page_form = "shapes"
  predicted: ClassVar = {
    "boxes": "ymin, xmin, ymax, xmax in pixels of the images input, from its"
    " upper left corner",
    "classes": "number of the class, from 0",
    "scores": "0 to 1, falling",
    "valid": "whether it is a detection; the rest is filled with 0",
  }
  # Scores at a threshold, and overlaps at that of NMS, fall on either side.
  tolerances: ClassVar = {"boxes": 0.1, "unmatched": 0.02}

  def encode(self, arrays):
    classes = arrays["classes"].reshape(-1)
    field.check_class_ids(classes, self.num_classes)
    boxes = np.asarray(arrays["boxes"], np.float32).reshape(-1, 4)
    if len(boxes) != len(classes):
      raise ValueError(f"{len(boxes)} boxes with {len(classes)} classes")
    inside = (boxes >= -_SLACK) & (boxes <= 1 + _SLACK)  # no nan is
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
      "boxes": boxes.reshape(-1),
      "classes": classes.astype(np.int64),
      "ignore": ignore.astype(bool).astype(np.int64),
    }
    if "scores" in arrays:
      features["scores"] = field.check_unit_range(
        "scores", arrays["scores"], classes.shape
      )
    return features

  def decode(self, features):
    arrays: dict[str, np.ndarray] = {
      "boxes": np.asarray(features["boxes"], np.float32).reshape(-1, 4),
      "classes": np.asarray(features["classes"], np.int64),
      "ignore": np.asarray(features["ignore"], bool),
    }
    scores = np.asarray(features["scores"], np.float32)
    if scores.shape == arrays["classes"].shape:
      arrays["scores"] = scores
    return arrays

  def mend(self, given, stored, size):
    boxes, classes = given["boxes"].copy(), given["classes"]
    ignore = given.get("ignore", np.zeros(len(classes), bool)).copy()
    scores = np.ones(len(classes), np.float32)
    edges = np.tile(size, 2)
    sure = np.ones(len(stored["classes"]), np.float32)
    before = stored.get("scores", sure)
    left = sure > 0
    for i, (box, k) in enumerate(zip(boxes, classes, strict=True)):
      apart = np.abs((stored["boxes"] - box) * edges).max(1, initial=0)
      same = left & (stored["classes"] == k) & (apart <= _ROUNDING)
      if same.any():
        found = np.argmin(np.where(same, apart, np.inf))
        left[found] = False
        boxes[i] = stored["boxes"][found]
        ignore[i] |= stored["ignore"][found]
        scores[i] = before[found]
    mended = {"boxes": boxes, "classes": classes, "ignore": ignore}
    return mended | ({"scores": scores} if "scores" in stored else {})

  def is_same(self, mended, shown, size):
    columns = ("classes", "boxes", "ignore")
    before, after = (
      sorted(zip(*(arrays[c].tolist() for c in columns), strict=True))
      for arrays in (shown, mended)
    )
    return before == after

  def parse(self, name, features, table):
    import tensorflow as tf

    classes = field.parse_class_ids(
      name, features["classes"], self.num_classes, table
    )
    ignore = features["ignore"] > 0
    scores = field.parse_scores(f"{name}/scores", features["scores"], classes)
    flat = features["boxes"]
    fine = tf.reduce_all((flat >= 0) & (flat <= 1))  # no nan is
    same = (tf.size(flat) == 4 * tf.size(classes)) & (
      tf.size(ignore) == tf.size(classes)
    )
    with field.require(fine & same, f"{name}/boxes"):
      boxes = tf.reshape(flat, [-1, 4])
    # Some may be a rounding error wide; the crop drops what is too small.
    # Whatever the teacher thought, a person is sure.
    scores = tf.where(features["checked"], 1.0, scores)
    sure = scores >= field.parsed_scores_of(self.min_score, classes)
    keep = tf.where(sure)[:, 0]
    return {
      "boxes": tf.gather(boxes, keep),
      "classes": tf.gather(classes, keep),
      "ignore": tf.gather(ignore, keep),
      "scores": tf.gather(scores, keep),
    }

  def move(self, arrays, placement, cells):
    import tensorflow as tf

    corners = tf.reshape(arrays["boxes"], [-1, 2, 2])
    content = tf.cast(placement.content, tf.float32)
    offset, visible = tf.split(tf.cast(placement.window, tf.float32), 2)
    corners = corners * tf.cast(placement.size, tf.float32) - offset
    corners = corners * (content / visible)
    y0, x0, y1, x1 = tf.unstack(tf.reshape(corners, [-1, 4]), axis=1)
    x0, x1 = (
      tf.where(placement.flip, content[1] - x1, x0),
      tf.where(placement.flip, content[1] - x0, x1),
    )
    boxes = tf.stack([y0, x0, y1, x1], 1)
    boxes = tf.clip_by_value(boxes, 0.0, tf.tile(content, [2]))
    keep = tf.reduce_all(boxes[:, 2:] - boxes[:, :2] >= _MIN_SIDE, 1)
    # One table is moved with fewer operations than many arrays; ids of classes
    # are small enough to be exact.
    columns = [
      tf.cast(arrays[name], tf.float32) for name in ("classes", "ignore")
    ]
    rows = tf.stack([*columns, arrays["scores"], tf.cast(keep, tf.float32)], 1)
    rows = tf.concat([boxes, rows], 1)
    ranks = tf.where(keep, arrays["scores"], -1.0)
    best = tf.argsort(ranks, direction="DESCENDING", stable=True)
    rows = tf.gather(rows, best[: self.max_boxes])
    rows = tf.where(rows[:, 7:] > 0, rows, 0.0)
    rows = tf.pad(rows, [[0, self.max_boxes - tf.shape(rows)[0]], [0, 0]])
    rows = tf.ensure_shape(rows, [self.max_boxes, 8])
    return {
      "boxes": rows[:, :4],
      "classes": tf.cast(rows[:, 4], tf.int32),
      "scores": rows[:, 6],
      "ignore": rows[:, 5] > 0,
      "valid": rows[:, 7] > 0,
    }

  def differences(self, expected, found):
    """Detections are matched as sets, since equal scores may change places.

    Those of one class whose corners are within a pixel are the same;
    "unmatched" is the part of both sets that has no partner.
    """
    apart = {"boxes": 0.0, "scores": 0.0}
    total = alone = 0
    rows = [
      [
        {k: v[i][p["valid"][i]] for k, v in p.items()}
        for p in (expected, found)
      ]
      for i in range(len(expected["valid"]))
    ]
    for ours, theirs in rows:
      corners = np.abs(ours["boxes"][:, None] - theirs["boxes"]).max(-1)
      other = ours["classes"][:, None] != theirs["classes"]
      distance = np.where(other | (corners > 1), np.inf, corners)
      total += sum(distance.shape)
      pairs = 0
      while distance.size and np.isfinite(nearest := distance.min()):
        i, j = np.unravel_index(distance.argmin(), distance.shape)
        distance[i], distance[:, j] = np.inf, np.inf
        pairs += 1
        scores = abs(float(ours["scores"][i]) - float(theirs["scores"][j]))
        apart["boxes"] = max(apart["boxes"], float(nearest))
        apart["scores"] = max(apart["scores"], scores)
      alone += sum(distance.shape) - 2 * pairs
    return apart | {"unmatched": alone / max(total, 1)}

  def batch_arrays(self, cells):
    count = self.max_boxes
    return {
      "boxes": jax.ShapeDtypeStruct((count, 4), np.float32),
      "classes": jax.ShapeDtypeStruct((count,), np.int32),
      "scores": jax.ShapeDtypeStruct((count,), np.float32),
      "ignore": jax.ShapeDtypeStruct((count,), np.bool_),
      "valid": jax.ShapeDtypeStruct((count,), np.bool_),
    }

  def scaled(self, arrays, scale):
    return {**arrays, "boxes": arrays["boxes"] * np.tile(scale, 2)}

  def of_window(self, arrays, window, size):
    offset, scale = np.divide(window.reshape(2, 2), size)
    boxes = arrays["boxes"] * np.tile(scale, 2) + np.tile(offset, 2)
    return {**arrays, "boxes": np.clip(boxes, 0, 1)}

  def at_size(self, arrays, size):
    return {**arrays, "boxes": arrays["boxes"] * np.tile(size, 2)}

  def at_least(self, arrays, min_score):
    if "scores" not in arrays:
      return dict(arrays)
    keep = arrays["scores"] >= field.scores_of(min_score, arrays["classes"])
    return {name: array[keep] for name, array in arrays.items()}

  def to_json(self, arrays, classes, min_score=None):
    return {"num_objects": len(arrays["classes"])}

  def to_coco(self, arrays, category_ids):
    boxes = np.asarray(arrays["boxes"], np.float64)
    low, sides = boxes[:, 1::-1], (boxes[:, 2:] - boxes[:, :2])[:, ::-1]
    columns = np.concatenate([low, sides], 1), arrays["classes"]
    scores = arrays.get("scores", np.ones(len(boxes)))
    return [
      {
        "category_id": category_ids[k],
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "score": score,
      }
      for box, k, score in zip(
        *(column.tolist() for column in columns),
        field.numbers(scores),
        strict=True,
      )
    ]

  def with_class_ids(self, arrays, ids):
    classes = ids[arrays["classes"]]
    keep = classes >= 0
    kept = {name: array[keep] for name, array in arrays.items()}
    return kept | {"classes": classes[keep]}

  def agreement(self, first, second):
    """Dice coefficient: twice the pairs, of all boxes of a class.

    Pairs have an IoU of 0.5 or more; of all ways to pair boxes that which
    makes the most pairs counts, the closest ones of equally many. Boxes to be
    ignored do not count, nor do those within one of the other label that find
    no partner.
    """
    from scipy.optimize import linear_sum_assignment

    found = {}
    for k in np.union1d(first["classes"], second["classes"]).tolist():
      of_class = [
        {name: arrays[name][arrays["classes"] == k] for name in arrays}
        for arrays in (first, second)
      ]
      boxes = [arrays["boxes"][~arrays["ignore"]] for arrays in of_class]
      crowds = [arrays["boxes"][arrays["ignore"]] for arrays in of_class]
      iou = _ious(*boxes)
      gain = np.where(iou >= _SAME_IOU, 1 + iou / (1 + iou.size), 0)
      rows, columns = linear_sum_assignment(gain, maximize=True)
      is_pair = gain[rows, columns] > 0
      counts = []
      for own, others, paired in zip(
        boxes, reversed(crowds), (rows, columns), strict=True
      ):
        excused = _are_inside(own, others)
        excused[paired[is_pair]] = False
        counts.append(len(own) - int(excused.sum()))
      if sum(counts):
        found[k] = 2 * int(is_pair.sum()), sum(counts)
    return found

  def regions(self, arrays, side):
    centres = (np.arange(side) + 0.5) / side
    low, high = arrays["boxes"][:, None, :2], arrays["boxes"][:, None, 2:]
    places = centres[:, None]
    inside = (places >= low) & (places < high)  # [n, side, 2]
    cells = inside[:, :, None, 0] & inside[:, None, :, 1]
    regions = np.zeros((self.num_classes, side, side), bool)
    ignore = arrays["ignore"]
    np.logical_or.at(regions, arrays["classes"][~ignore], cells[~ignore])
    return regions, ~cells[ignore].any(0)

  def score_outcomes(self, found, truth):
    """As COCO matches at an IoU of 0.5.

    The box of the highest score takes the closest object of its class that is
    left, and so on. What takes none is wrong, unless it is in a crowd.
    """
    ignore = truth.get("ignore", np.zeros(len(truth["classes"]), bool))
    right = np.zeros(len(found["classes"]), int)
    wrong = np.ones_like(right)
    scores = found.get("scores", np.ones(len(right), np.float32))
    order = np.argsort(-scores, kind="stable")
    for k in np.unique(found["classes"]).tolist():
      own = order[found["classes"][order] == k]
      objects = truth["boxes"][(truth["classes"] == k) & ~ignore]
      crowds = truth["boxes"][(truth["classes"] == k) & ignore]
      boxes = found["boxes"][own]
      iou = _ious(boxes, objects)
      for i, row in zip(own, iou, strict=True):
        if row.size and row.max() >= _SAME_IOU:
          right[i], wrong[i] = 1, 0
          iou[:, row.argmax()] = 0
      wrong[own[_are_inside(boxes, crowds)]] = 0
    positives = np.bincount(
      truth["classes"][~ignore], minlength=self.num_classes
    )
    return field.Outcomes(found["classes"], scores, right, wrong, positives)

  def to_page(self, arrays, size):
    elements = {"classes": arrays["classes"].tolist()}
    if "scores" in arrays:
      elements["scores"] = field.numbers(np.asarray(arrays["scores"]))
    drawing = {"boxes": np.round(arrays["boxes"], 5).tolist()}
    ignored = np.flatnonzero(arrays.get("ignore", ()))
    if ignored.size:
      drawing["ignored"] = ignored.tolist()
    return field.PageLabel(elements, drawing)

  def uncertainty(self, arrays):
    """Sum over boxes of how near their scores are to the threshold.

    1 at the threshold, falling linearly to 0 at scores of 0 and 1: at 0.5 it is
    the margin of Brust et al. 2019, "Active Learning for Deep Object
    Detection", summed up as there.
    """
    if "scores" not in arrays:
      return None
    scores = np.asarray(arrays["scores"], np.float64)
    wanted = field.scores_of(self.min_score, arrays["classes"])
    below = scores / np.maximum(wanted, 1e-6)
    above = (1 - scores) / np.maximum(1 - wanted, 1e-6)
    return float(np.where(scores < wanted, below, above).sum())

  def constant(self, labels):
    """No boxes, whose average precision is 0."""
    del labels
    return {
      name: np.zeros(array.shape, array.dtype)
      for name, array in self.batch_arrays((0, 0)).items()
    }

  def sums(self, arrays):
    """Also "areas" and "aspects": {floor(8 log2): boxes} of their parts of the
    image and of height over width.
    """
    sides = np.asarray(arrays["boxes"], np.float64).reshape(-1, 4)
    sides = np.maximum(sides[:, 2:] - sides[:, :2], _SLACK)
    return make_sums(
      classes=arrays["classes"],
      scores=arrays.get("scores"),
      areas=count_octaves(sides.prod(1)),
      aspects=count_octaves(sides[:, 0] / sides[:, 1]),
    )

  def alarm(self, sums, classes):
    if sums["elements"] < _MANY:
      return ""
    if alarm := field.one_class_alarm(sums, classes, self.element):
      return alarm
    # Earlier versions did not count sizes.
    counted = [sums.get(name, {}) for name in ("areas", "aspects")]
    if sum(counted[0].values()) < _MANY or not all(map(_is_narrow, counted)):
      return ""
    return (
      f"nearly all {sum(counted[0].values()):,} boxes have one size and one"
      " shape."
    )

  def measure(self, arrays):
    """Boxes of each class, and those to be ignored."""
    counts = np.bincount(arrays["classes"], minlength=self.num_classes)
    return np.append(counts, arrays["ignore"].sum())

  def summarize(self, measured, classes):
    boxes = measured[:, :-1].sum(1)
    yield (
      f"  {boxes.sum():,} boxes, {boxes.mean():.3g} an image, at most"
      f" {boxes.max()}; {measured[:, -1].sum():,} to be ignored"
    )
    counts = measured.sum(0)[:-1]
    yield from field.list_classes(counts, classes, "{:,.0f} boxes")

  def amounts(self, arrays):
    shown = arrays.get("valid", np.ones(len(arrays["classes"]), bool))
    return np.bincount(arrays["classes"][shown], minlength=self.num_classes)

  def caption(self, arrays, classes):
    counts = self.amounts(arrays)
    shown = [f"{counts[k]} {classes[k]}" for k in field.ranked(counts)]
    return ", ".join(shown) or "none"

  def num_elements(self, cells):
    return self.max_boxes


def _areas(boxes: np.ndarray) -> np.ndarray:
  """Of boxes [n, 4]: float64 [n]."""
  sides = boxes[:, 2:].astype(np.float64) - boxes[:, :2]
  return sides.prod(1)


def _intersections(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Areas that boxes [n, 4] share with boxes [m, 4]: float64 [n, m]."""
  low = np.maximum(first[:, None, :2], second[:, :2])
  high = np.minimum(first[:, None, 2:], second[:, 2:])
  return np.maximum(high.astype(np.float64) - low, 0).prod(-1)


def _ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Intersection over union of boxes [n, 4] with boxes [m, 4]: [n, m]."""
  shared = _intersections(first, second)
  union = _areas(first)[:, None] + _areas(second) - shared
  return shared / np.maximum(union, np.finfo(np.float64).tiny)


def _are_inside(boxes: np.ndarray, crowds: np.ndarray) -> np.ndarray:
  """Which boxes [n, 4] lie by half or more in a crowd of [m, 4], bool [n]."""
  inside = _intersections(boxes, crowds) >= 0.5 * _areas(boxes)[:, None]
  return np.asarray(inside.any(1))


def _is_narrow(histogram: Mapping[str, int]) -> bool:
  """Whether nearly all is in two neighbouring bins."""
  counts = {int(k): n for k, n in histogram.items()}
  most = max(n + counts.get(k + 1, 0) for k, n in counts.items())
  return most >= _ALIKE * sum(counts.values())
