"""How far label sets of the same images agree, without knowing the truth.

Two teachers, two rounds of one, or labels and the truth. What agreeing means is
said by each kind of field (`Field.agreement`). Fields of different kinds, as
boxes and a class map, are compared by where each class is: of the two areas,
as much agrees as lies in both, out of as much as could, which is the smaller
one; of a class that only one of them has, nothing out of its area. Classes are
matched by name, and count if both sets know them.
"""

import collections
import dataclasses
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from must_jax.fields import KINDS, Description, Field
from must_jax.fields.field import Arrays, NamedScores
from must_jax.storage import records
from must_jax.storage.label_sets import reading_score
from must_jax.storage.path import Path, PathLike, is_file
from must_jax.storage.sets import INDEX_FILE, ImageSet, LabelSet
from must_jax.storage.tfrecord import CorruptRecord

# A field of the first set and the one of the second that it is compared with.
Pair: TypeAlias = tuple[str, str]
# {name of the class, "" of fields without: (how much agrees, out of how much)}.
Counts: TypeAlias = dict[str, tuple[int, int]]
_Compared = TypeVar("_Compared", bound=Hashable)

_GRID = 128  # cells along each side of an image, see `Field.regions`
_AT_A_TIME = 256  # records that are read


class Incomparable(ValueError):
  """Two sets have no labels that can be compared."""


@dataclasses.dataclass
class Agreement:
  """Sums of a comparison over images.

  Attributes:
    counts: by pair of fields, of all images.
    num_labelled: by pair of fields: images that have a label in both sets.
    num_images: by pair of fields and class: images where either has the class.
  """

  counts: dict[Pair, Counts] = dataclasses.field(default_factory=dict)
  num_labelled: collections.Counter[Pair] = dataclasses.field(
    default_factory=collections.Counter
  )
  num_images: dict[Pair, collections.Counter[str]] = dataclasses.field(
    default_factory=dict
  )

  def add(self, found: Mapping[Pair, Counts]) -> None:
    """Takes in what `compare` yields of an image."""
    add_counts(self.counts, found)
    for pair, counts in found.items():
      self.num_images.setdefault(pair, collections.Counter()).update([*counts])
      self.num_labelled[pair] += 1

  def lines(self) -> Iterator[str]:
    """Tells it, the classes that agree least first."""
    for pair, counts in self.counts.items():
      part = share(counts)
      told = "they say nothing" if part is None else f"{part:.1%}"
      yield (
        f"{pair[0]} with {pair[1]}: {told}, of {self.num_labelled[pair]:,}"
        " images that both have labelled"
      )
      if [*counts] in ([], [""]):
        continue
      yield f"  {'class':<24} {'agreement':>12} {'images':>12}"
      parts = {name: agreeing / of for name, (agreeing, of) in counts.items()}
      for name in sorted(counts, key=lambda n: (parts[n], n)):
        images = self.num_images[pair][name]
        yield f"  {name:<24} {parts[name]:>12.1%} {images:>12,}"


def add_counts(
  totals: dict[_Compared, Counts], found: Mapping[_Compared, Counts]
) -> None:
  """Adds what agrees in an image to that of others, by what is compared."""
  for compared, counts in found.items():
    sums = totals.setdefault(compared, {})
    for name, (agreeing, of) in counts.items():
      before = sums.get(name, (0, 0))
      sums[name] = before[0] + agreeing, before[1] + of


def share(counts: Counts) -> float | None:
  """Which part agrees, of all classes together; None of nothing."""
  agreeing, of = np.sum([(0, 0), *counts.values()], 0).tolist()
  return agreeing / of if of else None


def disagreement(found: Iterable[Mapping[Pair, Counts]]) -> float | None:
  """How much the labels of an image contradict each other, 0 to 1.

  Args:
    found: what `compare` yields of the image, of one or several comparisons.

  Returns:
    1 less the mean `share` of the pairs of fields of which there is one; None
    if there is none.
  """
  shares = [share(counts) for pairs in found for counts in pairs.values()]
  known = [part for part in shares if part is not None]
  return 1 - sum(known) / len(known) if known else None


def disputed(found: Iterable[Mapping[Pair, Counts]]) -> list[str]:
  """Classes of which less than half agrees; see `disagreement`."""
  return sorted(
    {
      name
      for pairs in found
      for counts in pairs.values()
      for name, (agreeing, of) in counts.items()
      if 2 * agreeing < of
    }
  )


def compare(
  first: PathLike, second: PathLike, min_score: NamedScores | None = None
) -> Iterator[tuple[str, dict[Pair, Counts]]]:
  """Compares the labels of two sets, image by image.

  Args:
    first: a finished label set.
    second: another one of the same images, or an image set with the same images
      and labels of its own.
    min_score: from which scores labels count, see `fields_as_read`.

  Returns:
    Iterator over the images in order: their keys, and what agrees by pair of
    fields, of those pairs of which both have a label. Which set comes first
    decides nothing but the order of names in pairs.

  Raises:
    Incomparable: they have nothing that can be compared.
    ValueError: a set is not finished, or they are not of the same images. While
      iterating: a record is broken.
  """
  labels = LabelSet.open(first)
  other = _open(second, labels)
  comparer = Comparer(labels, other, min_score)  # raises before it iterates
  both = zip(read_all(labels), read_all(other), strict=True)
  return (
    (_key_of(pair).decode(errors="backslashreplace"), comparer(*pair))
    for pair in both
  )


class Comparer:
  """Compares what two sets say of an image.

  Args:
    first: a label set.
    second: another one of the same images, or an image set with the same images
      and labels of its own.
    min_score: from which scores labels count, see `fields_as_read`.

  Raises:
    Incomparable: they have nothing that can be compared.
  """

  def __init__(
    self,
    first: LabelSet | ImageSet,
    second: LabelSet | ImageSet,
    min_score: NamedScores | None = None,
  ):
    fields = fields_as_read(first, min_score), fields_as_read(second, min_score)
    comparisons = {
      (a, b): _Comparison(
        (a, b),
        (fields[0][a], fields[1][b]),
        (first.fields[a], second.fields[b]),
      )
      for a, b in _next_of_kin(*fields)
    }
    self._comparisons = {pair: c for pair, c in comparisons.items() if c.names}
    self._directories = first.directory, second.directory
    if not self._comparisons:
      raise Incomparable(
        f"{first.directory} has {_list(first.fields)}, {second.directory} has"
        f" {_list(second.fields)}: nothing can be compared. Expected two fields"
        " of one kind, or two that say where things are (boxes, class maps),"
        " with classes of the same names."
      )

  def __call__(self, first: bytes, second: bytes) -> dict[Pair, Counts]:
    """What agrees in two records, of the fields of which both have a label.

    Raises:
      ValueError: one is broken.
    """
    try:
      found = {pair: c(first, second) for pair, c in self._comparisons.items()}
    except ValueError as error:
      raise ValueError(
        f"Image {_key_of((first, second))!r} of"
        f" {' or '.join(map(str, self._directories))}: {error}."
        " Check both with must-jax data verify."
      ) from None
    return {
      pair: counts for pair, counts in found.items() if counts is not None
    }


def _key_of(pair: Iterable[bytes]) -> bytes:
  """The key of an image, of which one record may lack it."""
  return next(filter(None, map(records.key_of, pair)), b"")


class _Comparison:
  """Compares the labels of two fields.

  Attributes:
    names: of the classes that both know, or [""]; empty if they have nothing in
      common.

  Args:
    pair: the names of the fields.
    fields: as they are read.
    descriptions: of the fields.
  """

  def __init__(
    self,
    pair: Pair,
    fields: tuple[Field, Field],
    descriptions: tuple[Description, Description],
  ):
    self._are_alike = type(fields[0]) is type(fields[1])
    if self._are_alike:
      fields = fields[0].shared(fields[1]), fields[1].shared(fields[0])
    self._readers = [
      (name, field, records.label_reader({name: field}))
      for name, field in zip(pair, fields, strict=True)
    ]
    known = [d.get("classes", ()) for d in descriptions]
    self.names = [n for n in known[0] if n in {*known[1]}]
    new_ids = {name: i for i, name in enumerate(self.names)}
    self._ids = [
      np.array([new_ids.get(n, -1) for n in names], int) for names in known
    ]
    # As they are once classes are matched.
    self._fields = [
      dataclasses.replace(f, num_classes=len(self.names))  # type: ignore[call-arg]
      if f.has_classes
      else f
      for f in fields
    ]
    if not any(f.has_classes for f in fields):
      self.names = [""]

  def __call__(self, first: bytes, second: bytes) -> Counts | None:
    """What agrees in two records; None unless both have a label.

    Raises:
      ValueError: a record holds what it may not hold.
    """
    labels: list[Arrays] = []
    for record, ids, (name, field, read) in zip(
      (first, second), self._ids, self._readers, strict=True
    ):
      arrays = read(record).get(name)
      if arrays is None:
        return None
      labels.append(field.with_class_ids(arrays, ids))
    if self._are_alike:
      counts = self._fields[0].agreement(*labels)
    else:
      counts = self._overlap(labels)
    return {self.names[k]: found for k, found in sorted(counts.items())}

  def _overlap(self, labels: list[Arrays]) -> dict[int, tuple[int, int]]:
    """Cells that the regions of each class share, and those they could."""
    regions, known = zip(
      *(
        field.regions(arrays, _GRID)
        for field, arrays in zip(self._fields, labels, strict=True)
      ),
      strict=True,
    )
    a, b = (region & known[0] & known[1] for region in regions)
    areas = np.sort([x.sum((1, 2)) for x in (a, b)], 0)
    of = np.where(areas[0], areas[0], areas[1])
    both = (a & b).sum((1, 2))
    return {int(k): (int(both[k]), int(of[k])) for k in np.flatnonzero(of)}


def read_all(
  records_of: LabelSet | ImageSet, indices: Sequence[int] | None = None
) -> Iterator[bytes]:
  """Records of a set in order; of a bucket many at the same time.

  Args:
    records_of: the set.
    indices: which records; all by default.

  Raises:
    ValueError: one cannot be read.
  """
  if indices is None:
    indices = range(records_of.num_records)
  for start in range(0, len(indices), _AT_A_TIME):
    for record in records_of.read_many(indices[start : start + _AT_A_TIME]):
      if isinstance(record, CorruptRecord):
        raise ValueError(
          f"{record}. Run must-jax data verify {records_of.directory}."
        )
      yield record


def _open(directory: PathLike, labels: LabelSet) -> LabelSet | ImageSet:
  """The other side of a comparison, which must be of the same images."""
  if is_file(Path(directory) / INDEX_FILE):
    images = ImageSet.open(directory, labels.manifest["image_set"]["split"])
    labels.check_images(images)
    return images
  other = LabelSet.open(directory)
  labels.check_same_images(other)
  return other


def fields_as_read(
  opened: LabelSet | ImageSet, min_score: NamedScores | None = None
) -> dict[str, Field]:
  """The fields of a set, at the thresholds at which its labels are read.

  Args:
    opened: the set; an image set's own labels are all read.
    min_score: another threshold, for label sets.
  """
  wanted: NamedScores | None = 0.0
  if isinstance(opened, LabelSet):
    wanted = reading_score(opened.manifest, min_score)
  return {
    name: KINDS[description["kind"]].as_read(description, wanted)
    for name, description in opened.fields.items()
  }


def _next_of_kin(
  first: Mapping[str, Field], second: Mapping[str, Field]
) -> list[Pair]:
  """Pairs of fields of which neither has a closer one on the other side."""

  def kinship(a: str, b: str) -> int:
    if type(first[a]) is type(second[b]):
      return 3 if a == b else 2
    return 1 if first[a].has_regions and second[b].has_regions else 0

  degrees = {(a, b): kinship(a, b) for a in first for b in second}
  closest = collections.Counter[tuple[int, str]]()
  for pair, degree in degrees.items():
    for side in enumerate(pair):
      closest[side] = max(closest[side], degree)
  return [
    pair
    for pair, degree in sorted(degrees.items())
    if degree and all(degree == closest[side] for side in enumerate(pair))
  ]


def _list(fields: Mapping[str, Description]) -> str:
  named = [f"{name} ({d['kind']})" for name, d in sorted(fields.items())]
  return ", ".join(named) or "no labels"
