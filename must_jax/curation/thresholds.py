"""`must-jax thresholds`: from which scores labels are read, by class."""

import argparse
import dataclasses
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from must_jax.curation import score_curves, threshold_plot
from must_jax.curation.score_curves import ScoreCurve
from must_jax.curation.threshold_plot import ClassChart
from must_jax.fields import KINDS, Description, Kept, kept_of, make_field
from must_jax.fields.field import OTHERS, NamedScores
from must_jax.storage.label_sets import is_corrections, reading_score
from must_jax.storage.path import make_directory, publish, publish_json
from must_jax.storage.sets import LabelSet
from must_jax.train.runtime import keep_tensorflow_off_accelerators

# Scores at which sums over labels are exact, see `fields.statistics`.
GRID = tuple(i / 20 for i in range(20))
_FEW = 10  # images with a class, or elements kept, by which nothing can be told
_LEFT_OUT = 1.0  # the highest that there is: of scores of 1 labels are left


@dataclasses.dataclass(frozen=True)
class Wish:
  """What thresholds are wanted for; one of these, best F1 by default.

  Attributes:
    precision: of what is left, at least; then as much as possible is left.
    count: elements of each class that are left, at least.
    share: of the elements of each class that is left, at least.
  """

  precision: float | None = None
  count: int | None = None
  share: float | None = None

  @property
  def needs_truth(self) -> bool:
    """Whether it can only be told where truth is known."""
    return self.count is None and self.share is None


@dataclasses.dataclass(frozen=True)
class Proposal:
  """A threshold of one class.

  Attributes:
    name: of the class.
    score: the threshold.
    is_default: whether it is that of classes of which nothing is known.
    note: what to know about it.
  """

  name: str
  score: float
  is_default: bool = False
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Thresholds:
  """Proposals for a field of a label set.

  Attributes:
    field: its name.
    description: of it.
    sums: over its labels, see `fields.statistics`.
    default: threshold of classes that are not named.
    proposals: one for each class.
    curves: of each class, where truth is known.
  """

  field: str
  description: Description
  sums: Mapping[str, Any]
  default: float
  proposals: Sequence[Proposal]
  curves: Sequence[ScoreCurve] = ()

  @property
  def min_score(self) -> dict[str, float]:
    """As `config.tasks.NAME.min_score` takes it."""
    named = {p.name: p.score for p in self.proposals if not p.is_default}
    return {OTHERS: self.default} | named

  def kept(self, min_score: NamedScores | None = None) -> Kept:
    """What is left of the labels, by default with these thresholds."""
    wanted = self.min_score if min_score is None else min_score
    return kept_of(self.description, self.sums, wanted)

  def lines(self) -> Iterator[str]:
    """A table."""
    found = self.kept()
    yield f"{self.field}: {found}"
    yield (
      f"  {'class':<24} {'score':>8} {'precision':>10} {'recall':>8}"
      f" {'left of the labels':>24}"
    )
    for k, proposal in enumerate(self.proposals):
      quality = (
        self.curves[k].at(proposal.score) if self.curves else (None,) * 2
      )
      left = found.left_of(k)
      told = ["-" if part is None else f"{part:.1%}" for part in quality]
      yield (
        f"  {proposal.name:<24} {proposal.score:>8.4g} {told[0]:>10}"
        f" {told[1]:>8} {left:>24}"
        + (f"  {proposal.note}" if proposal.note else "")
      )

  def panels(self) -> Iterator[ClassChart]:
    """A chart for each class."""
    for k, proposal in enumerate(self.proposals):
      histogram = np.array(self.sums["class_scores"].get(str(k), [0]))
      left = np.append(np.cumsum(histogram[::-1])[::-1], 0)
      curves = {}
      if self.curves:
        curve = self.curves[k]
        curves = {
          "precision": (curve.scores, curve.precision),
          "recall": (curve.scores, curve.recall),
        }
      edges = np.linspace(0, 1, len(left))
      curves["labels left"] = edges, left / max(left[0], 1)
      yield ClassChart(
        f"{proposal.name} from {proposal.score:.3g}",
        proposal.note.partition(":")[0],
        curves,
        proposal.score,
      )


def fields_with_scores(labels: LabelSet) -> dict[str, Description]:
  """The fields of which thresholds can be chosen.

  Raises:
    ValueError: there is none, or the labels of one have no scores.
  """
  manifest = labels.manifest
  fields = {
    name: description
    for name, description in labels.fields.items()
    if make_field(description).has_threshold
  }
  if not fields or is_corrections(manifest):
    raise ValueError(
      f"{labels.directory} has {sorted(labels.fields)}, which are read whatever"
      " their scores: there is no threshold to choose. Boxes and class maps"
      " that a teacher made have one."
    )
  for name in fields:
    if not manifest.get("statistics", {}).get(name, {}).get("class_scores"):
      raise ValueError(
        f"{labels.directory} has no counts of scores of {name!r}: there are no"
        " labels, they have no scores, or an earlier version counted them. So"
        " there is no threshold to choose."
      )
  return fields


def propose(
  labels: LabelSet,
  wish: Wish,
  curves: Mapping[str, Sequence[ScoreCurve]] | None = None,
) -> list[Thresholds]:
  """Thresholds for each field that is read from a score on.

  Args:
    labels: a finished label set.
    wish: what is wanted.
    curves: `score_curves.measure` of its teacher.

  Raises:
    ValueError: see `fields_with_scores`, or the wish needs curves.
  """
  found = []
  for name, description in fields_with_scores(labels).items():
    measured = (curves or {}).get(name, ())
    if wish.needs_truth and not measured:
      raise ValueError(
        f"Which labels of {name!r} in {labels.directory} are right is not"
        " known. Give their teacher, --validation CHECKPOINT, or ask for a part"
        " of the labels: --count N or --share S."
      )
    found.append(_propose(name, description, labels.manifest, wish, measured))
  return found


def _propose(
  name: str,
  description: Description,
  manifest: Mapping[str, Any],
  wish: Wish,
  curves: Sequence[ScoreCurve],
) -> Thresholds:
  classes, sums = description["classes"], manifest["statistics"][name]
  kind = KINDS[description["kind"]]
  own = reading_score(manifest)
  scores = kind.as_read(description, own).min_score  # type: ignore[attr-defined]
  by_class = np.broadcast_to(scores, len(classes)).tolist()
  default = scores
  if isinstance(scores, tuple):
    rest = kind.as_read(description).min_score  # type: ignore[attr-defined]
    default = own.get(OTHERS, rest) if isinstance(own, Mapping) else rest
  proposals = []
  for k, class_name in enumerate(classes):
    if wish.needs_truth:
      score, note = _by_truth(curves[k], wish.precision)
    else:
      histogram = sums["class_scores"].get(str(k), [])
      score, note = _by_amount(histogram, wish)
    if score is None:
      score = by_class[k]
      note = f"stays: {note}"
    proposals.append(Proposal(class_name, score, score == default, note))
  return Thresholds(name, description, sums, default, proposals, curves)


def _by_truth(
  curve: ScoreCurve, precision: float | None
) -> tuple[float | None, str]:
  """A score and what to know about it; None if nothing can be told."""
  if curve.num_images < _FEW:
    return None, f"only {curve.num_images} validation images have any"
  if precision is None:
    best = int(curve.f1.argmax()) if len(curve.scores) else 0
    if not curve.right[best : best + 1].any():
      return _LEFT_OUT, "LEFT OUT: none of the validation is right"
    return _number(curve.scores, best), ""
  # One that happens to be right at the top says little.
  good = (curve.precision >= precision) & (curve.kept >= _FEW)
  if not good.any():
    best = curve.precision[curve.kept >= _FEW].max(initial=0)
    return _LEFT_OUT, (
      f"LEFT OUT: no score reaches {precision:.1%}, the best is {best:.1%}"
    )
  return _number(curve.scores, int(np.flatnonzero(good)[-1])), ""


def _by_amount(
  histogram: Sequence[int], wish: Wish
) -> tuple[float | None, str]:
  """The highest score of the grid that leaves as much as is wanted."""
  stored = sum(histogram)
  if not stored:
    return None, "nothing is stored"
  wanted = float(wish.count or 0)
  if wish.share is not None:
    wanted = wish.share * stored
  left = np.cumsum(histogram[::-1])[::-1]
  enough = np.flatnonzero(left >= wanted)
  if not enough.size:
    return 0.0, "all are left, which is less than wanted"
  return GRID[enough[-1]], ""


def _number(scores: np.ndarray, i: int) -> float:
  """The shortest number that leaves the first scores up to the i-th."""
  below = scores[i + 1] if i + 1 < len(scores) else np.float32(-1)
  for digits in range(1, 10):
    number = math.floor(float(scores[i]) * 10**digits) / 10**digits
    if np.float32(number) > below:
      return number
  return float(scores[i])


def run(args: argparse.Namespace) -> int:
  """Does what the arguments of `must-jax thresholds` ask for; returns 0.

  Raises:
    ValueError: an argument is out of range or missing, or the label set has no
      scores.
  """
  for name in ("precision", "share"):
    value = getattr(args, name)
    if value is not None and not 0 < value <= 1:
      raise ValueError(
        f"--{name} is {value:g}; expected more than 0, at most 1."
      )
  if args.count is not None and args.count < 1:
    raise ValueError(f"--count is {args.count}; expected 1 or more.")
  if args.out.suffix != ".json":
    raise ValueError(
      f"--out is {args.out}; expected a name that ends in .json."
    )
  if args.dataset and not args.validation:
    raise ValueError("--dataset needs --validation, the teacher to measure.")
  keep_tensorflow_off_accelerators()
  labels = LabelSet.open(args.labels)
  wish = Wish(args.precision, args.count, args.share)
  fields_with_scores(labels)  # before the teacher works
  make_directory(args.out.parent)
  curves = None
  if args.validation:
    datasets = [_dataset(text) for text in args.dataset]
    curves = score_curves.measure(labels, args.validation, datasets)
  found = propose(labels, wish, curves)
  for thresholds in found:
    for line in thresholds.lines():
      print(line)
    print(f"  before: {thresholds.kept(reading_score(labels.manifest))}\n")
  publish_json(args.out, {t.field: t.min_score for t in found})
  plot = args.out.with_suffix(".svg")
  with publish(plot) as file:
    panels = [panel for thresholds in found for panel in thresholds.panels()]
    file.write(threshold_plot.draw(panels).encode())
  print(
    f"Wrote {args.out} and {plot}. To read labels so, in a config or a run:"
  )
  print(f"  --config.tasks.NAME.min_score={shlex.quote(str(args.out))}")
  return 0


def _dataset(text: str) -> tuple[str, str]:
  """Directory and split.

  Raises:
    ValueError: there is no split.
  """
  directory, _, split = text.rpartition(":")
  if not directory or "/" in split:
    raise ValueError(
      f"--dataset is {text}; expected IMAGE_SET:SPLIT, such as"
      " data/photos:validation."
    )
  return directory, split
