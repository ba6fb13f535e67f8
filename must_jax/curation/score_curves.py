"""Precision and recall of a teacher by score and class, where truth is known.

Its labels of images with true labels are made as a labelling job makes them, or
are a label set; `Field.score_outcomes` says what is right of them.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from must_jax import config as config_lib
from must_jax.curation.agreement import read_all
from must_jax.fields import Field, make_field
from must_jax.fields.field import Outcomes
from must_jax.input.origins import SUPERVISED, listed
from must_jax.pseudo_label import worker
from must_jax.storage import records
from must_jax.storage.path import Path, PathLike, is_file
from must_jax.storage.sets import MANIFEST_FILE, ImageSet, LabelSet
from must_jax.train import checkpoint

_MAX_PENDING = 1 << 20  # rows of outcomes before they are added up


@dataclasses.dataclass(frozen=True)
class ScoreCurve:
  """How good the labels of one class are from a score on.

  Attributes:
    scores: float32 [n], those that occur, falling.
    right: int [n], how many of this score or a higher one are right.
    kept: int [n], how many there are.
    positives: how many there are to be found.
    num_images: with any of these.
  """

  scores: np.ndarray
  right: np.ndarray
  kept: np.ndarray
  positives: int
  num_images: int

  @property
  def precision(self) -> np.ndarray:
    """At each score, [n]."""
    return self.right / np.maximum(self.kept, 1)

  @property
  def recall(self) -> np.ndarray:
    """At each score, [n]."""
    return self.right / max(self.positives, 1)

  @property
  def f1(self) -> np.ndarray:
    """At each score, [n]."""
    return 2 * self.right / np.maximum(self.kept + self.positives, 1)

  def at(self, score: float) -> tuple[float | None, float | None]:
    """Precision and recall from a score on; None where they are of nothing."""
    number = np.searchsorted(-self.scores, -np.float32(score), "right")
    right, kept = (
      int(counts[number - 1]) if number else 0
      for counts in (self.right, self.kept)
    )
    return (
      right / kept if kept else None,
      right / self.positives if self.positives else None,
    )


def measure(
  labels: LabelSet,
  validation: PathLike,
  datasets: Sequence[tuple[str, str]] = (),
) -> dict[str, list[ScoreCurve]]:
  """Measures the teacher of a label set by the score of its labels.

  Args:
    labels: whose teacher is measured.
    validation: the teacher, a run or checkpoint; or a label set that it made of
      images whose truth is known.
    datasets: (image set, split) with the true labels; by default those on which
      the teacher's config evaluated it.

  Returns:
    {field that is read from a score on: a curve for each class}.

  Raises:
    ValueError: it is another teacher, or the truth is not known or has other
      fields or classes.
  """
  truths = [
    ImageSet.open(*dataset)
    for dataset in datasets or _own_datasets(labels, validation)
  ]
  fields = {n: make_field(d) for n, d in labels.fields.items()}
  fields = {n: field for n, field in fields.items() if field.has_threshold}
  tables = [_class_ids(labels, truth, fields) for truth in truths]
  if is_file(Path(validation) / MANIFEST_FILE):
    found = LabelSet.open(validation)
    _check_teacher(labels, validation, found.manifest["teacher"]["digest"])
    for truth in truths:
      found.check_images(truth)
    made = [read_all(found) for _ in truths]
  else:
    step = checkpoint.find(validation)
    _check_teacher(labels, step, checkpoint.fingerprint(step))
    made = [_label(labels, step, truth) for truth in truths]
  sums = {name: _Sums(field) for name, field in fields.items()}
  for truth, ids, given in zip(truths, tables, made, strict=True):
    for record, true_record in zip(given, read_all(truth), strict=True):
      own = records.stored_labels(record, fields)
      true = records.stored_labels(true_record, fields)
      for name in own.keys() & true.keys():
        field, (known, to_own) = fields[name], ids[name]
        sums[name].add(
          field.with_class_ids(own[name], known),
          field.with_class_ids(true[name], to_own),
        )
  return {name: total.curves() for name, total in sums.items()}


class _Sums:
  """Outcomes of many labels of a field."""

  def __init__(self, field: Field):
    self._field = field
    self._parts: list[Outcomes] = []
    self._num_images: Any = 0
    self._pending = 0

  def add(self, found: Mapping[str, Any], truth: Mapping[str, Any]) -> None:
    part = self._field.score_outcomes(found, truth)
    self._parts.append(part)
    self._num_images = self._num_images + (part.positives > 0)
    self._pending += len(part.classes)
    if self._pending > _MAX_PENDING:
      self._parts, self._pending = [_add(self._parts)], 0

  def curves(self) -> list[ScoreCurve]:
    if not self._parts:
      return []
    total = _add(self._parts)
    found = []
    for k, positives in enumerate(total.positives.tolist()):
      rows = np.flatnonzero(total.classes == k)[::-1]
      right, wrong = (np.cumsum(x[rows]) for x in (total.right, total.wrong))
      found.append(
        ScoreCurve(
          total.scores[rows],
          right,
          right + wrong,
          positives,
          int(self._num_images[k]),
        )
      )
    return found


def _add(parts: Sequence[Outcomes]) -> Outcomes:
  """One row for each class and score, in their order."""
  columns = [
    np.concatenate(column) for column in list(zip(*parts, strict=True))[:4]
  ]
  classes, scores, right, wrong = columns
  # Bits of floats that are not negative are in their order.
  keys = classes.astype(np.int64) << 32
  keys |= np.ascontiguousarray(scores, np.float32).view(np.int32)
  found, places = np.unique(keys, return_inverse=True)
  right, wrong = (
    np.bincount(places, x, len(found)).astype(int) for x in (right, wrong)
  )
  return Outcomes(
    found >> 32,
    (found & 0xFFFFFFFF).astype(np.int32).view(np.float32),
    right,
    wrong,
    np.sum([part.positives for part in parts], 0),
  )


def _label(labels: LabelSet, step: Path, images: ImageSet) -> Iterator[bytes]:
  """Label records of images, as the job that made the labels makes them."""
  manifest = labels.manifest
  config = config_lib.base_config()
  config.stage = "label"
  config.datasets.images = config_lib.dataset(
    str(images.directory), images.split
  )
  config.label.update(
    {
      "teacher": str(step),
      "dataset": "images",
      "task": manifest["teacher"]["task"],
      "map_stride": manifest["settings"].get("map_stride", 0),
      "max_undecodable": 1.0,
    }
  )
  with worker.prepare(config, "").labeller() as labeller:
    for shard in range(len(images.shards)):
      for examples in labeller.examples(shard):
        yield from (example.record for example in examples)


def _own_datasets(
  labels: LabelSet, validation: PathLike
) -> list[tuple[str, str]]:
  """What the teacher was evaluated on, as its config says."""
  teacher = labels.manifest["teacher"]
  found: list[tuple[str, str]] = []
  if "config" in teacher and not is_file(Path(validation) / MANIFEST_FILE):
    config = config_lib.from_json(json.dumps(teacher["config"]))
    given = config.tasks[teacher["task"]].labels
    found = [
      (config.datasets[name].dir, config.datasets[name].split)
      for name in config.evaluate_on
      if SUPERVISED in listed(given.get(name))
    ]
  if not found:
    raise ValueError(
      f"What the truth for {validation} is, is not known. Give an image set"
      " with true labels: --dataset IMAGE_SET:SPLIT."
    )
  return found


def _check_teacher(labels: LabelSet, place: PathLike, digest: str) -> None:
  own = labels.manifest["teacher"]["digest"]
  if digest != own:
    raise ValueError(
      f"{place} is of teacher {digest}, the labels in {labels.directory} of"
      f" {own}; scores of one say nothing of the other. Give the checkpoint"
      " that made the labels."
    )


def _class_ids(
  labels: LabelSet, truth: ImageSet, fields: Mapping[str, Field]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """By field: to ids of the labels, from those of labels and of the truth.

  Of the labels' classes those that the truth does not know get none: there
  nobody can tell what is right.
  """
  tables = {}
  for name in fields:
    own, true = labels.fields[name], truth.fields.get(name, {"kind": "nothing"})
    if own["kind"] != true["kind"]:
      raise ValueError(
        f"{labels.directory} has {name!r} ({own['kind']}); in"
        f" {truth.directory} it is {true['kind']}. Give an image set with true"
        " labels of this field."
      )
    surplus = sorted({*true["classes"]} - {*own["classes"]})
    if surplus:
      raise ValueError(
        f"{truth.directory} has classes of {name!r} that the teacher does not"
        f" know, as {surplus[:5]}; it knows {own['classes'][:10]}. Import the"
        " validation with the teacher's names, or leave these classes out."
      )
    ids = {k: i for i, k in enumerate(own["classes"])}
    known = {*true["classes"]}
    tables[name] = (
      np.array([i if k in known else -1 for k, i in ids.items()], int),
      np.array([ids[k] for k in true["classes"]], int),
    )
  return tables
