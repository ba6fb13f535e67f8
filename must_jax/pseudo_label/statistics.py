"""Sums over labels that tell whether a teacher worked at all.

All are integers, so that they add up to the same in any order:

  examples   labels
  elements   boxes, valid pixels, or one per class vector
  empty      labels without elements
  constant   maps with one value, class vectors that say nothing
  scores     histogram of scores or confidences over 10 bins of [0, 1]
  score_sum  sum of scores in units of 1/255
  classes    {class id: elements}
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from must_jax.types import IGNORE_LABEL

_BINS = 10


def measure(kind: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """What one example's label adds to the sums.

  Args:
    kind: of the field, the name of a class in `must_jax.types`.
    arrays: as `must_jax.storage.encoders.encode_field` takes them.
  """
  if kind == "ClassVector":
    classes = np.asarray(arrays["classes"])
    probs = np.asarray(arrays.get("probs", np.ones(len(classes))))
    top = np.argsort(-probs, kind="stable")[:1]
    return _sums(
      classes=classes[top],
      scores=probs[top],
      constant=probs.size > 1 and np.ptp(probs) == 0,
    )
  if kind == "Boxes":
    return _sums(classes=arrays["classes"], scores=arrays.get("scores"))
  if kind == "ClassMap":
    classes = np.asarray(arrays["classes"])
    known = classes != IGNORE_LABEL
    scores = arrays.get("confidence")
    return _sums(
      classes=classes[known],
      scores=None if scores is None else np.asarray(scores)[known],
      constant=known.any() and np.ptp(classes[known]) == 0,
    )
  values = np.asarray(
    arrays[{"ValueMap": "values", "VectorMap": "vectors"}[kind]]
  )
  if "valid" in arrays:
    values = values[np.asarray(arrays["valid"])]
  values = values.reshape(-1, 3 if kind == "VectorMap" else 1)
  constant = len(values) > 0 and (values == values[0]).all()
  return _sums(elements=len(values), constant=constant)


def _sums(
  *,
  classes: np.ndarray | None = None,
  scores: np.ndarray | None = None,
  elements: int = 0,
  constant: bool = False,
) -> dict[str, Any]:
  sums: dict[str, Any] = {"classes": {}}
  if classes is not None:
    ids, counts = np.unique(np.asarray(classes), return_counts=True)
    elements = int(counts.sum())
    # JSON has text keys only.
    sums["classes"] = {str(k): int(n) for k, n in zip(ids, counts, strict=True)}
  if scores is not None:
    scores = np.asarray(scores, np.float64).ravel()
    bins = np.clip((scores * _BINS).astype(int), 0, _BINS - 1)
    sums["scores"] = np.bincount(bins, minlength=_BINS).tolist()
    sums["score_sum"] = int(np.rint(scores * 255).sum())
  return {
    "examples": 1,
    "elements": elements,
    "empty": int(elements == 0),
    "constant": int(constant),
    **sums,
  }


def add(a: Any, b: Any) -> Any:
  """Adds two sums, or two dicts of sums; a missing one is zero."""
  if isinstance(a, Mapping):
    return {
      key: add(a[key], b[key])
      if key in a and key in b
      else a.get(key, b.get(key))
      for key in {**a, **b}
    }
  if isinstance(a, list):
    return [x + y for x, y in zip(a, b, strict=True)]
  return a + b


def alarms(
  fields: Mapping[str, Mapping[str, Any]],
  statistics: Mapping[str, Mapping[str, Any]],
) -> list[str]:
  """What is too good to be labels: nothing at all, or always the same.

  Args:
    fields: {field: {"kind", "classes"}}.
    statistics: sums over the whole set by field.
  """
  found = []
  for name, field in fields.items():
    sums = statistics.get(name, {"examples": 0})
    if not sums["examples"]:
      found.append(f"{name}: not one image has a label.")
    elif not sums["elements"]:
      found.append(
        f"{name}: all {sums['examples']} labels are empty; the teacher found"
        " nothing in any image."
      )
    elif sums["constant"] == sums["examples"]:
      found.append(
        f"{name}: each of the {sums['examples']} labels has one value all"
        " over; the teacher does not look at the images."
      )
    elif (
      field["kind"] == "ClassVector"
      and len(field["classes"]) > 1
      and sums["examples"] >= 10
      and len(sums["classes"]) == 1
    ):
      found.append(
        f"{name}: all {sums['examples']} images are of class"
        f" {field['classes'][int(next(iter(sums['classes'])))]!r}."
      )
  return found
