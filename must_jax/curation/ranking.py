"""Which images' labels are likely wrong: what to look at, or correct, first.

Where label sets can be compared, images on which they disagree most come first:
what one of two says and the other does not, one of them has wrong. Among equal
ones, and where there is nothing to compare, those come first of which the
teacher is least sure (`Field.uncertainty`).

Disagreements of a detector and a segmenter are larger than those of two rounds
of one teacher, and uncertainties of boxes are sums, those of maps means. So
each is replaced by its rank among all images, and the ranks are averaged (Borda
count; Aslam & Montague 2001, "Models for metasearch").
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from must_jax.curation import agreement
from must_jax.curation.read_sets import (
  LabelledImage,
  open_sets,
  read_sets,
)
from must_jax.fields import Field
from must_jax.fields.field import NamedScores
from must_jax.storage.path import PathLike
from must_jax.storage.sets import ImageSet, LabelSet

# Numbers of two sets, and the field of each.
Pair: TypeAlias = tuple[int, int, str, str]
# Of an image: how much agrees, by class.
Comparisons: TypeAlias = Mapping[Pair, agreement.Counts]


@dataclasses.dataclass(frozen=True)
class Signals:
  """What tells how far the labels of an image can be trusted.

  Attributes:
    uncertainty: by (number of the label set, field), see `Field.uncertainty`.
    disagreement: 1 - agreement, by what is compared.
  """

  uncertainty: Mapping[Any, float] = dataclasses.field(default_factory=dict)
  disagreement: Mapping[Any, float] = dataclasses.field(default_factory=dict)


def suspicion(signals: Sequence[Signals]) -> np.ndarray:
  """How likely labels are wrong, compared with those of the other images.

  Args:
    signals: of each image.

  Returns:
    float [n], 0 to 1, no two the same where the signals differ; the larger, the
    likelier. Images of which nothing is known come last.
  """
  sure = _mean_ranks([s.uncertainty for s in signals])
  apart = _mean_ranks([s.disagreement for s in signals])
  unknown = np.isnan(apart)
  # Of images with nothing to compare the other measure has to do.
  first = np.where(unknown, np.nan_to_num(sure, nan=-1), apart)
  second = np.nan_to_num(sure, nan=-1)
  order = np.lexsort((second, first))
  pairs = np.stack([first, second], 1)[order]
  step = np.append(0, (np.diff(pairs, axis=0) != 0).any(1).cumsum())
  result = np.zeros(len(signals))
  result[order] = step[: len(signals)] / max(1, step[-1])
  return result


def _mean_ranks(rows: Sequence[Mapping[Any, float]]) -> np.ndarray:
  """The mean of an image's ranks, 0 to 1, by whatever it has; nan for nothing.

  The rank is the share of images with less, and of half of the equal ones.
  """
  totals, counts = np.zeros(len(rows)), np.zeros(len(rows))
  for name in sorted({name for row in rows for name in row}, key=str):
    has = np.array([name in row for row in rows])
    values = np.array([row[name] for row in rows if name in row])
    places = np.sort(values)
    low = np.searchsorted(places, values, "left")
    high = np.searchsorted(places, values, "right")
    totals[has] += (low + high) / 2 / len(values)
    counts[has] += 1
  return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)


def worst_first(signals: Sequence[Signals]) -> list[int]:
  """Numbers of images, those with the likeliest mistakes first."""
  return np.argsort(-suspicion(signals), kind="stable").tolist()


def uncertainties(
  image: LabelledImage, fields: Sequence[Mapping[str, Field]]
) -> dict[tuple[int, str], float]:
  """How unsure teachers were of an image, see `Signals`.

  Args:
    image: with its labels.
    fields: of each label set, see `agreement.fields_as_read`; those of a truth
      are left out.
  """
  found = {}
  for number, of_set in enumerate(fields):
    for name, field in of_set.items():
      arrays = image.labels[number].get(name)
      if arrays is None or image.statuses[number] != "ok":
        continue  # what a person has looked at is sure
      value = field.uncertainty(arrays)
      if value is not None:
        found[number, name] = value
  return found


def compare_sets(
  sets: Sequence[LabelSet | ImageSet],
  indices: Sequence[int],
  min_score: NamedScores | None = None,
) -> Iterator[Comparisons]:
  """Compares each set with each other, image by image; reads each once.

  Args:
    sets: of labels of the same images, see `open_sets`.
    indices: of the images.
    min_score: see `agreement.compare`.

  Yields:
    Of each image, in order, what agrees.
  """
  comparers = {}
  for (i, first), (j, second) in itertools.combinations(enumerate(sets), 2):
    # Of labels that have nothing in common there is nothing to say.
    with contextlib.suppress(agreement.Incomparable):
      comparers[i, j] = agreement.Comparer(first, second, min_score)
  read = {
    number: agreement.read_all(sets[number], indices)
    for number in {*itertools.chain(*comparers)}
  }
  for _ in indices:
    records = {number: next(found) for number, found in read.items()}
    yield {
      (i, j, a, b): counts
      for (i, j), comparer in comparers.items()
      for (a, b), counts in comparer(records[i], records[j]).items()
    }


def disagreements(found: Comparisons) -> dict[Pair, float]:
  """What contradicts in an image, 0 to 1; where both say nothing, nothing."""
  shares = {pair: agreement.share(counts) for pair, counts in found.items()}
  return {k: 0.0 if s is None else 1 - s for k, s in shares.items()}


def rank(
  labels: Sequence[PathLike],
  images: PathLike,
  truth: PathLike | None = None,
  min_score: NamedScores | None = None,
  progress: Callable[[int], Any] = lambda count: None,
) -> list[str]:
  """Keys of all images, those whose labels are likeliest wrong first.

  This is what the page of `must-jax inspect --out` calls "worst first".

  Args:
    labels: finished label sets of the same images; several are compared.
    images: the image set.
    truth: an image set with the true labels, to compare with.
    min_score: at which labels are compared, see `Field.as_read`; by default
      that at which they are read.
    progress: called with the number of images that are done.

  Raises:
    ValueError: sets are not finished, or not of these images.
  """
  image_set, sets = open_sets(labels, images, truth)
  fields = [agreement.fields_as_read(found, min_score) for found in sets]
  keys, signals = [], []
  compared = compare_sets(sets, range(image_set.num_records), min_score)
  for image, found in zip(read_sets(image_set, sets), compared, strict=True):
    keys.append(image.key)
    unsure = uncertainties(image, fields)
    signals.append(Signals(unsure, disagreements(found)))
    progress(1)
  return [keys[i] for i in worst_first(signals)]
