"""Images with the labels that several sets have of them, record by record."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from must_jax.fields import Field, make_field
from must_jax.storage import records
from must_jax.storage.path import PathLike
from must_jax.storage.sets import ImageSet, LabelSet
from must_jax.storage.tfrecord import CorruptRecord

_BATCH = 64  # records of each set that are read at a time

Labels = Mapping[str, Mapping[str, np.ndarray]]  # field -> arrays, as encoded


class LabelledImage(NamedTuple):
  """An image and its labels.

  Attributes:
    number: of its record.
    key: of its record, for people; bytes that are no text are escaped.
    record: of the image; empty where it cannot be read.
    labels: by set, all that is stored; empty where there are none.
    statuses: by set, see `storage.records`; "" of an image set's own labels.
    problems: what cannot be read.
  """

  number: int
  key: str
  record: bytes
  labels: Sequence[Labels]
  statuses: Sequence[str]
  problems: Sequence[str]


def open_sets(
  labels: Sequence[PathLike],
  images: PathLike,
  truth: PathLike | None = None,
) -> tuple[ImageSet, list[LabelSet | ImageSet]]:
  """Opens label sets of the same images.

  Args:
    labels: finished label sets.
    images: the image set that they were made for.
    truth: an image set with the same records and labels of their own.

  Returns:
    The images; the label sets, and the truth after them.

  Raises:
    ValueError: one is not finished, given twice, or of other images.
  """
  names = [str(place) for place in labels]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f"Label set {name} is given twice.")
  opened = [LabelSet.open(place) for place in labels]
  split = opened[0].manifest["image_set"]["split"]
  image_set = ImageSet.open(images, split)
  for found in opened:
    found.check_images(image_set)
  sets: list[LabelSet | ImageSet] = [*opened]
  if truth is not None:
    true = ImageSet.open(truth, split)
    opened[0].check_images(true)
    sets.append(true)
  return image_set, sets


def read_sets(
  images: ImageSet,
  sets: Sequence[LabelSet | ImageSet],
  indices: Sequence[int] | None = None,
) -> Iterator[LabelledImage]:
  """Reads in the order of the records, a few at a time.

  Args:
    images: whose labels.
    sets: that line up with them, see `open_sets`.
    indices: which records, rising; all by default.
  """
  if indices is None:
    indices = range(images.num_records)
  fields = [
    {name: make_field(spec) for name, spec in found.fields.items()}
    for found in sets
  ]
  for start in range(0, len(indices), _BATCH):
    batch = indices[start : start + _BATCH]
    columns = [found.read_many(batch) for found in (images, *sets)]
    for number, record, *sidecars in zip(batch, *columns, strict=True):
      yield _parse(number, record, sidecars, fields)


def _parse(
  number: int,
  record: bytes | CorruptRecord,
  sidecars: Sequence[bytes | CorruptRecord],
  fields: Sequence[Mapping[str, Field]],
) -> LabelledImage:
  key = b""
  labels: list[Labels] = []
  statuses: list[str] = []
  problems: list[str] = []
  if isinstance(record, CorruptRecord):
    problems.append(f"image: {record.reason}")
    record = b""
  else:
    key = records.key_of(record)
  for sidecar, wanted in zip(sidecars, fields, strict=True):
    found: Labels = {}
    status = ""
    try:
      if isinstance(sidecar, CorruptRecord):
        raise ValueError(sidecar.reason)
      found = records.stored_labels(sidecar, wanted)
      status = records.status_of(sidecar)
      key = key or records.key_of(sidecar)
    except ValueError as error:
      problems.append(f"labels: {error}")
    labels.append(found)
    statuses.append(status)
  name = key.decode(errors="backslashreplace")
  return LabelledImage(number, name, record, labels, statuses, problems)
