"""What a kind of label field is: everything that the rest asks of one.

Importing, storing, reading, cropping, labelling, planning and reports go
through this interface; nothing outside `fields/` asks which kind a field is of.
A kind imports TensorFlow inside the functions that store, parse and move with
it, so that the core runs where TensorFlow is not installed.
"""

import abc
import collections
import dataclasses
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypeAlias

import jax
import numpy as np

from must_jax.fields.kept import Kept, count_kept
from must_jax.fields.placement import Cells, Placement

if TYPE_CHECKING:
  import tensorflow as tf

Arrays: TypeAlias = Mapping[str, np.ndarray]
Tensors: TypeAlias = "dict[str, tf.Tensor]"
# How a field is listed in an index or manifest: {"kind": ..., "classes": [...],
# "unit": ...}, the last two where it has them.
Description: TypeAlias = Mapping[str, Any]
# A threshold of scores: one for all, or as people give it by name of the class,
# `OTHERS` for those that are not named.
NamedScores: TypeAlias = float | Mapping[str, float]
# The same as fields hold it: one for all, or one for each class id.
Scores: TypeAlias = float | tuple[float, ...]
OTHERS = "*"

_MAX_LISTED = 20  # classes named in a summary
_MAX_NUMBERS = 1000  # of an array that JSON lists
_MAX_NAMED = 5  # and in a warning
_MANY = 10  # labels, by which can be told whether they are all alike


class Outcomes(NamedTuple):
  """What is right of labels, and at which scores.

  Attributes:
    classes: int [n], class ids.
    scores: float32 [n], of elements of these classes.
    right, wrong: int [n], how many of this class and score are. Those of which
      nobody can tell are neither.
    positives: int [K], what there is to be found of each class.
  """

  classes: np.ndarray
  scores: np.ndarray
  right: np.ndarray
  wrong: np.ndarray
  positives: np.ndarray


class PageLabel(NamedTuple):
  """A label as the page of labels gets it.

  Attributes:
    elements: {"classes": [n], "scores": [n]}, which the page counts and filters
      by, without a look at the rest: boxes, classes of an image, or each class
      of a map with its best score. Without "scores" all are sure.
    drawing: values of JSON that are drawn.
    png: the map that is drawn; None for what is no map.
    histogram: {class id: {score: pixels}} of maps, whose elements are not all
      that there is to count.
  """

  elements: dict[str, list[Any]]
  drawing: dict[str, Any]
  png: bytes | None = None
  histogram: Mapping[int, Mapping[float, int]] = {}


@dataclasses.dataclass(frozen=True)
class Field(abc.ABC):
  """One kind of label field. Subclasses say how it is read as attributes.

  Every field of a batch also has `present` [B] bool: False where an example has
  no such label. One that `has_background` has `known` [B, K] bool, too: the
  classes of which the origin of the label knows.

  Attributes:
    needed: names of the arrays that a label has when it is stored.
    optional: names of those that it may have.
    features: {name: type} of a record's features that hold a label, where type
      is "bytes", "float" (one of them), "ints" or "floats" (any number).
    has_classes: whether its labels name classes; then it has `num_classes`.
    has_background: whether what a label does not name counts as something
      else: then it matters which classes whoever made it did not know.
    element: what is counted in a label, in the plural.
    has_objects: whether a label is a list of objects, as COCO's annotations.
    has_regions: whether it says where its classes are, see `regions`.
    is_map: whether it has values for pixels.
    can_be_mended: whether people draw such labels in tools of annotation; then
      it has `mend` and `is_same`.
    read_seconds: core-seconds that a label of 640 x 640 pixels adds to the
      making of an example (docs/speed.md, "Input: read, decode, augment,
      batch").
    store_cost: core-seconds and bytes to store a pseudo label, statistics
      included, for each of `num_elements` (docs/scale.md, "Labels").
    predicted: {name: meaning} of the arrays that tasks predict, with units.
    page_form: how the page of labels draws it, a function of its script.
    tolerances: how large `differences` may be where the same weights predict
      elsewhere; 1e-3 of what is not named.
  """

  needed: ClassVar[tuple[str, ...]]
  optional: ClassVar[tuple[str, ...]] = ()
  features: ClassVar[Mapping[str, str]]
  has_classes: ClassVar[bool] = False
  has_background: ClassVar[bool] = False
  has_objects: ClassVar[bool] = False
  has_regions: ClassVar[bool] = False
  is_map: ClassVar[bool] = False
  can_be_mended: ClassVar[bool] = False
  element: ClassVar[str] = "labels"
  read_seconds: ClassVar[float] = 0.0
  store_cost: ClassVar[tuple[float, float]]
  predicted: ClassVar[Mapping[str, str]] = {}
  page_form: ClassVar[str] = "text"
  tolerances: ClassVar[Mapping[str, float]] = {}

  # What it is.

  @classmethod
  def of(cls, description: Description) -> Self:
    """The field as an index or manifest lists it, whatever its scores."""
    return cls.as_read(description).unfiltered()

  @classmethod
  def as_read(
    cls, description: Description, min_score: NamedScores | None = None
  ) -> Self:
    """The same, as tasks read it.

    Args:
      description: of the field.
      min_score: threshold of scores, of a kind that has one; that of tasks by
        default. Names of classes that the field lacks are passed over, for a
        set may know some of a task's classes only.
    """
    known = {option.name for option in dataclasses.fields(cls)}
    options = {k: v for k, v in description.items() if k in known}
    if cls.has_classes:
      options["num_classes"] = len(description.get("classes", ()))
    if min_score is not None and "min_score" in known:
      options["min_score"] = scores_by_id(
        min_score, description.get("classes", ())
      )
    return cls(**options)

  @classmethod
  def check_description(cls, description: Description) -> None:
    """Checks what an index lists for this kind.

    Raises:
      ValueError: classes are missing or double, or do not fit the kind.
    """
    classes = description.get("classes") or []
    if cls.has_classes and (not classes or len(set(classes)) != len(classes)):
      raise ValueError(
        f"of kind {cls.__name__} has classes {classes!r}; expected a list of"
        " different names."
      )

  def describe(self, classes: Sequence[str]) -> dict[str, Any]:
    """How an index or manifest lists the field.

    Args:
      classes: names in order of their ids.
    """
    description: dict[str, Any] = {"kind": type(self).__name__}
    return description | ({"classes": list(classes)} if classes else {})

  def unfiltered(self) -> Self:
    """The same field without a threshold of scores."""
    if not self.has_threshold:
      return self
    return dataclasses.replace(self, min_score=0.0)  # type: ignore[call-arg]

  @property
  def has_threshold(self) -> bool:
    """Whether elements are read from a score on, `min_score`."""
    return hasattr(self, "min_score")

  def check_stored(self, description: Description) -> None:
    """Checks that stored labels can be read as this field asks.

    Args:
      description: of the stored labels, of the same kind.

    Raises:
      ValueError: they cannot.
    """
    del description

  # On disk.

  @abc.abstractmethod
  def encode(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """One label as features of a record.

    Args:
      arrays: all of `needed` and some of `optional`.

    Returns:
      {feature: bytes, or integers or floats [n]}, names out of `features`.

    Raises:
      ValueError: a value out of its range, or a shape that does not fit.
    """

  @abc.abstractmethod
  def parse(
    self, name: str, features: Tensors, table: "tf.Tensor | None"
  ) -> Tensors:
    """The reverse of `encode`, in a graph, thresholds applied.

    What a record holds is checked once more: what is out of its range raises
    `tf.errors.InvalidArgumentError`, which costs the record, not the run.

    Args:
      name: of the field, for messages.
      features: all of `features`, empty or 0 where the record has none,
        `present` (bool), whether it has a label, and `checked` (bool), whether
        a person has made or confirmed it: then no threshold applies.
      table: int32 [K], from the record's class ids to those of the field,
        negative for ids that the record may not have; None where they are the
        same.
    """

  def decode(self, features: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The reverse of `encode` without a graph: all that is stored.

    By default features are the arrays. `parse` has the checks of values.

    Args:
      features: bytes, or arrays of a record's numbers, by name; empty where the
        record has none.

    Raises:
      ValueError: a map cannot be decoded.
    """
    return {name: np.asarray(value) for name, value in features.items()}

  def mend(
    self, given: Arrays, stored: Arrays, size: tuple[int, int]
  ) -> dict[str, np.ndarray]:
    """A label as a person gave it back, with the scores of what was stored.

    What is as it was keeps its score, and the exact numbers that files of
    annotations round; of what is new or was changed a person is sure: 1.

    Args:
      given: as `encode` takes them, without scores.
      stored: the label that the person was given, whatever of it.
      size: height and width of the image.

    Returns:
      As `encode` takes them; with scores if `stored` has them.

    Raises:
      NotImplementedError: people cannot mend labels of this kind.
    """
    raise NotImplementedError(f"{type(self).__name__} cannot be mended.")

  def is_same(
    self, mended: Arrays, shown: Arrays, size: tuple[int, int]
  ) -> bool:
    """Whether a person left a label as it was.

    Args:
      mended: from `mend`.
      shown: the label that the person was given, as `encode` takes it.
      size: height and width of the image.

    Raises:
      NotImplementedError: people cannot mend labels of this kind.
    """
    raise NotImplementedError(f"{type(self).__name__} cannot be mended.")

  def check_extent(self, arrays: Arrays, size: tuple[int, int]) -> None:
    """Checks that maps have the proportions of their image, within a pixel.

    Args:
      arrays: of a label, as stored or as parsed.
      size: height and width of the image.

    Raises:
      ValueError: names the array and both sizes.
    """
    del arrays, size

  # In a batch.

  @abc.abstractmethod
  def move(
    self, arrays: Tensors, placement: Placement, cells: Cells
  ) -> Tensors:
    """A parsed label as it is in a batch, without `present`.

    Args:
      arrays: from `parse`.
      placement: of the image in the network input.
      cells: where the cells of maps lie.
    """

  @abc.abstractmethod
  def batch_arrays(
    self, cells: tuple[int, int]
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what `move` returns.

    Args:
      cells: height and width of maps.
    """

  def differences(self, expected: Arrays, found: Arrays) -> dict[str, float]:
    """How far apart two predictions of the same images are.

    Args:
      expected: arrays of a task's prediction, [B, ...] each.
      found: the same, computed elsewhere.

    Returns:
      {what: number}; see `differences`.
    """
    return differences(expected, found)

  def scaled(self, arrays: Arrays, scale: np.ndarray) -> dict[str, np.ndarray]:
    """A label or prediction of one example, for a picture of another size.

    Args:
      arrays: as in a batch; maps fit a picture of any size.
      scale: float [2], of height and width.
    """
    del scale
    return dict(arrays)

  # Of a photo.

  def of_window(
    self, arrays: Arrays, window: np.ndarray, size: tuple[int, int]
  ) -> dict[str, np.ndarray]:
    """A label of a part of an image as one of the image; the rest is unknown.

    Args:
      arrays: as `encode` takes them, of the part.
      window: float [4], y, x, height, width of the part in pixels.
      size: height and width of the image.
    """
    del window, size
    return dict(arrays)

  def at_size(
    self, arrays: Arrays, size: tuple[int, int]
  ) -> dict[str, np.ndarray]:
    """A label in the pixels of its image, for people.

    Args:
      arrays: as `encode` takes them.
      size: height and width of the image.

    Returns:
      Arrays as in a batch, of one example and without padding; scores as they
      are, whatever the threshold.
    """
    del size
    return dict(arrays)

  def reduced(self, arrays: Arrays, size: tuple[int, int]) -> Arrays:
    """A map of at most a size; what is not larger, or no map, stays as it is.

    Args:
      arrays: as `encode` takes them.
      size: height and width.
    """
    del size
    return arrays

  # As a result. All take one label as `at_size` gives it.

  def at_least(
    self, arrays: Arrays, min_score: Scores
  ) -> dict[str, np.ndarray]:
    """What is left of a label at a threshold of scores.

    Args:
      arrays: as `at_size` gives them.
      min_score: what has a lower score goes, or becomes unknown.
    """
    del min_score
    return dict(arrays)

  def to_json(
    self,
    arrays: Arrays,
    classes: Sequence[str],
    min_score: float | None = None,
  ) -> dict[str, Any]:
    """What a label says in few words, as values of JSON.

    By default all arrays but large ones, which `to_arrays` gives.

    Args:
      arrays: as `at_size` gives them.
      classes: names in order of their ids.
      min_score: threshold of scores that was asked for, if any; `at_least` has
        applied it.
    """
    del classes, min_score
    return {
      name: numbers(np.asarray(array))
      for name, array in arrays.items()
      if np.size(array) <= _MAX_NUMBERS
    }

  def to_coco(
    self, arrays: Arrays, category_ids: Sequence[int]
  ) -> list[dict[str, Any]]:
    """The objects as COCO's results, without "image_id".

    Args:
      arrays: as `at_size` gives them.
      category_ids: of the classes, in order of their ids.
    """
    del arrays, category_ids
    return []

  def to_png(
    self, arrays: Arrays, colors: np.ndarray
  ) -> tuple[bytes, dict[str, Any]] | None:
    """A map as a PNG of codes, and how to read it, as values of JSON.

    Args:
      arrays: as `at_size` gives them.
      colors: uint8 [K, 3], of the classes.

    Returns:
      None for what is no map.
    """
    del arrays, colors
    return None

  def to_arrays(self, arrays: Arrays) -> dict[str, np.ndarray]:
    """What is worth an .npy file, by a name; "" for the only one.

    By default all arrays that are too large for `to_json`.

    Args:
      arrays: as `at_size` gives them.
    """
    return {
      name: np.asarray(array)
      for name, array in arrays.items()
      if np.size(array) > _MAX_NUMBERS
    }

  # Compared with other labels of the image. All take labels as `parse` gives
  # them, thresholds applied.

  def shared(self, other: "Field") -> Self:
    """The field as which labels of this and another one can be compared.

    Args:
      other: of the same kind.
    """
    del other
    return self

  def with_class_ids(
    self, arrays: Arrays, ids: np.ndarray
  ) -> dict[str, np.ndarray]:
    """The same label with other class ids.

    Args:
      arrays: of a label.
      ids: int [K], from the ids that it has to those that it shall have; what
        is of a class with a negative one is left out, or becomes unknown.
    """
    del ids
    return dict(arrays)

  def agreement(
    self, first: Arrays, second: Arrays
  ) -> dict[int, tuple[int, int]]:
    """How far two labels of an image say the same.

    Args:
      first: a label.
      second: another one, with the same class ids.

    Returns:
      {class id, or 0 of what has no classes: (how much agrees, of how much)},
      without what either label does not know. Both add up over images, and
      neither depends on which label comes first. By default nothing.
    """
    del first, second
    return {}

  def regions(self, arrays: Arrays, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each class is, for comparing labels of different kinds.

    Args:
      arrays: of a label.
      side: of a grid of as many rows as columns over the image.

    Returns:
      Bool [K, side, side], the cells whose centres a class has, and bool [side,
      side], those of which the label says anything.

    Raises:
      NotImplementedError: labels of this kind are nowhere in the image.
    """
    raise NotImplementedError(f"{type(self).__name__} does not say where.")

  def score_outcomes(self, found: Arrays, truth: Arrays) -> "Outcomes":
    """Which elements of a label are right, by their scores.

    Of kinds that are read from a score on.

    Args:
      found: as `encode` takes them; of a score of 1 where it has none.
      truth: of the same image, likewise, with the same class ids.

    Raises:
      NotImplementedError: labels of this kind are not read from a score on.
    """
    raise NotImplementedError(f"{type(self).__name__} has no threshold.")

  # On a page (`must-jax inspect --out`), drawn by its script.

  def to_page(self, arrays: Arrays, size: tuple[int, int]) -> PageLabel:
    """A label as the page gets it, whatever the scores.

    By default its numbers as text.

    Args:
      arrays: as `encode` takes them.
      size: height and width of the picture; larger maps are reduced to it.
    """
    del size
    told = self.to_json(arrays, ()).items()
    return PageLabel({}, {"text": ", ".join(f"{k} {v}" for k, v in told)})

  def uncertainty(self, arrays: Arrays) -> float | None:
    """How unsure whoever made a label was, larger where less sure.

    Args:
      arrays: as `encode` takes them.

    Returns:
      None where the label has no scores.
    """
    del arrays
    return None

  # Without a look at the image.

  def constant(self, labels: Iterable[Arrays]) -> dict[str, np.ndarray]:
    """One prediction for all images, of what is most usual in their labels.

    A network that has learned to see does better.

    Args:
      labels: as in a batch, of one example each and one size; at least one.

    Returns:
      Arrays as a task predicts them, of one example. What no label knows, such
      as the padding of all images, is as the rest is on the whole.

    Raises:
      NotImplementedError: there is none for this kind.
    """
    raise NotImplementedError(f"{type(self).__name__} has no constant.")

  # Summed up.

  @abc.abstractmethod
  def sums(self, arrays: Arrays) -> dict[str, Any]:
    """What a label adds to the statistics of its set, see `fields.statistics`.

    Args:
      arrays: as `encode` takes them.
    """

  def alarm(self, sums: Mapping[str, Any], classes: Sequence[str]) -> str:
    """Why labels with these sums cannot be right; empty if they may be.

    Args:
      sums: over a whole set.
      classes: names in order of their ids.
    """
    del sums, classes
    return ""

  def warnings(
    self, sums: Mapping[str, Any], classes: Sequence[str]
  ) -> Iterator[str]:
    """What looks wrong in labels with these sums, but may be right.

    Args:
      sums: over a whole set, of at least one label.
      classes: names in order of their ids.
    """
    missing = [k for k in range(len(classes)) if str(k) not in sums["classes"]]
    if missing:
      yield (
        f"{len(missing):,} of the {len(classes):,} classes never occur:"
        f" {name_some([f'{classes[k]!r} ({k})' for k in missing])}"
      )
    alike = collections.defaultdict(list)
    for name in classes:
      plain = unicodedata.normalize("NFKC", name).casefold()
      alike["".join(filter(str.isalnum, plain)) or name].append(name)
    doubles = [str(names) for names in alike.values() if len(names) > 1]
    if doubles:
      yield (
        "classes differ by case, spaces or signs alone:"
        f" {name_some(doubles)}; are they the same?"
      )

  def kept(self, sums: Mapping[str, Any]) -> Kept:
    """How much this field reads of labels with these sums.

    Args:
      sums: over a whole set.
    """
    return count_kept(sums, self.element, getattr(self, "min_score", None))

  # For people.

  @abc.abstractmethod
  def measure(self, arrays: Arrays) -> np.ndarray:
    """Numbers [n] of a parsed label, of which `summarize` tells."""

  @abc.abstractmethod
  def summarize(
    self, measured: np.ndarray, classes: Sequence[str]
  ) -> Iterator[str]:
    """Lines about labels.

    Args:
      measured: [labels, n], a row of `measure` for each; at least one.
      classes: names in order of their ids.
    """

  def amounts(self, arrays: Arrays) -> np.ndarray:
    """How much of each class a label in a batch has, [K]; [0] without classes.

    Probability, boxes or pixels.
    """
    del arrays
    return np.zeros(0)

  @abc.abstractmethod
  def caption(self, arrays: Arrays, classes: Sequence[str]) -> str:
    """A line below the picture of a label in a batch."""

  # What it costs.

  @abc.abstractmethod
  def num_elements(self, cells: float) -> float:
    """Of a pseudo label, what `store_cost` counts: classes, boxes or cells.

    Args:
      cells: of a map, those of the image's content.
    """


def differences(expected: Arrays, found: Arrays) -> dict[str, float]:
  """By array: how far numbers are apart, and which part of others differs.

  Args:
    expected: arrays.
    found: arrays of the same names and shapes.

  Returns:
    {name: the largest difference of floats, relative to the largest of
    `expected` where that is more than 1; the part of integers and flags that
    are not equal}.
  """
  result = {}
  for name, array in expected.items():
    other = found[name]
    if array.shape != other.shape or not array.size:
      result[name] = 0.0 if array.shape == other.shape else np.inf
    elif array.dtype.kind != "f":
      result[name] = float(np.mean(array != other))
    else:
      # Only where both are the same infinity or no number they are equal.
      both = np.isfinite(array) & np.isfinite(other)
      odd = np.array_equal(array[~both], other[~both], equal_nan=True)
      apart = np.abs(np.where(both, array.astype(np.float64) - other, 0)).max()
      size = np.abs(np.where(both, array, 0)).max()
      result[name] = float(apart / max(1.0, size)) if odd else np.inf
  return result


def scores_by_id(
  min_score: NamedScores, classes: Sequence[str], default: float = 0.5
) -> Scores:
  """A threshold as fields hold it.

  Args:
    min_score: as people give it.
    classes: names in order of their ids; others may be named, too.
    default: of classes for which nothing is said, not even by `OTHERS`.
  """
  if not isinstance(min_score, Mapping):
    return min_score
  rest = min_score.get(OTHERS, default)
  return tuple(float(min_score.get(name, rest)) for name in classes)


def scores_of(min_score: Scores, classes: np.ndarray) -> np.ndarray:
  """The threshold of each element, float32; any of elements without a class.

  Args:
    min_score: as fields hold it.
    classes: ids of the elements, [n] or of any shape.

  Returns:
    Of the shape of `classes`.
  """
  table = np.atleast_1d(np.asarray(min_score, np.float32))
  return table[np.minimum(classes, len(table) - 1)]


def parsed_scores_of(min_score: Scores, classes: "tf.Tensor") -> "tf.Tensor":
  """The same in a graph."""
  import tensorflow as tf

  table = tf.constant(np.asarray(min_score, np.float32))
  if not table.shape.rank:
    return table  # a look-up for each pixel takes a quarter of a map's time
  last = tf.cast(tf.size(table) - 1, classes.dtype)
  return tf.gather(table, tf.minimum(classes, last))


def one_class_alarm(
  sums: Mapping[str, Any], classes: Sequence[str], elements: str
) -> str:
  """Why labels of one class only cannot be right; empty if they may be.

  Args:
    sums: over a whole set.
    classes: names in order of their ids.
    elements: what has a class, in the plural.
  """
  found = [*sums.get("classes", {})]
  if len(classes) < 2 or sums["examples"] < _MANY or len(found) != 1:
    return ""
  (k,) = found
  return (
    f"all {sums['elements']:,} {elements} are of class {classes[int(k)]!r}."
  )


def name_some(names: Sequence[str]) -> str:
  """The first few of a list, and how many more there are."""
  rest = len(names) - _MAX_NAMED
  return ", ".join(names[:_MAX_NAMED]) + (f" and {rest:,} more" * (rest > 0))


def ranked(amounts: np.ndarray) -> list[int]:
  """Classes of which there is something, the most first.

  Args:
    amounts: [K], of each class.
  """
  return [int(k) for k in np.argsort(-amounts, kind="stable") if amounts[k]]


def list_classes(
  counts: np.ndarray, classes: Sequence[str], form: str
) -> Iterator[str]:
  """Lines on the most frequent classes, and how many others there are.

  Args:
    counts: [K] of each class.
    classes: their names.
    form: of a count, "{:,.0f} boxes".
  """
  for k in np.argsort(-counts, kind="stable")[:_MAX_LISTED]:
    yield f"    {classes[k]:<24} {form.format(counts[k])}"
  if len(classes) > _MAX_LISTED:
    yield f"    ... and {len(classes) - _MAX_LISTED:,} classes more"
  if missing := int((counts == 0).sum()):
    yield f"    {missing:,} of the {len(classes):,} classes do not occur"


def numbers(array: np.ndarray) -> list[Any]:
  """An array of any shape as a list; float32 by as few digits as tell it."""
  if array.dtype != np.float32:
    return array.tolist()
  digits = np.array([float(str(x)) for x in array.reshape(-1)])
  return digits.reshape(array.shape).tolist()


def check_class_ids(classes: np.ndarray, num_classes: int) -> None:
  """Checks ids that are to be stored, of any shape.

  Raises:
    ValueError: one is out of range, or they are no integers.
  """
  wrong = classes[(classes < 0) | (classes >= num_classes)]
  if wrong.size or (classes.size and classes.dtype.kind not in "iu"):
    raise ValueError(
      f"class {wrong[:1].tolist() or classes.dtype}; expected integers from 0"
      f" to {num_classes - 1}"
    )


def check_unit_range(
  name: str, values: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
  """Scores float32 that are to be stored, within 0 and 1.

  Args:
    name: of the scores, for messages.
    values: of any shape.
    shape: that is expected.

  Raises:
    ValueError: they are not, or their shape is another.
  """
  values = np.asarray(values, np.float32)
  if values.shape != shape:
    raise ValueError(f"{name} have shape {values.shape}; expected {shape}")
  if not ((values >= 0) & (values <= 1 + 1e-5)).all():  # no nan is
    raise ValueError(f"{name} are not within 0 and 1")
  return np.minimum(values, 1)


def require(condition: "tf.Tensor", what: str):
  """Raises where a record is broken, before what is done in its context."""
  import tensorflow as tf

  check = tf.debugging.Assert(condition, [f"{what} is not as it must be"])
  return tf.control_dependencies([check] if check is not None else [])


def parse_class_ids(
  name: str, ids: "tf.Tensor", num_classes: int, table: "tf.Tensor | None"
) -> "tf.Tensor":
  """A field's class ids, int32 [n], of those in a record; see `Field.parse`."""
  import tensorflow as tf

  limit = num_classes if table is None else tf.size(table, tf.int64)
  fine = tf.reduce_all((ids >= 0) & (ids < limit))
  with require(fine, f"{name}: class id"):
    ids = tf.cast(ids, tf.int32)
  if table is None:
    return ids
  ids = tf.gather(table, ids)
  with require(tf.reduce_all(ids >= 0), f"{name}: class id"):
    return tf.identity(ids)


def parse_scores(
  name: str, values: "tf.Tensor", classes: "tf.Tensor"
) -> "tf.Tensor":
  """Scores of the classes; 1 where a record has none."""
  import tensorflow as tf

  none = tf.size(values) == 0
  values = tf.cond(none, lambda: tf.ones(tf.shape(classes)), lambda: values)
  fine = tf.reduce_all((values >= 0) & (values <= 1))  # no nan is
  with require(fine & (tf.size(values) == tf.size(classes)), name):
    return tf.identity(values)
