"""What an importer plans: items to read, and how to read one.

Items and readers are pickled to other processes and machines, so readers are
module-level functions or frozen dataclasses with `__call__`. Equal ones pickle
to equal bytes, by which a broken off import is known again: they hold no sets.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from must_jax.storage import image_files
from must_jax.storage.image_files import ImageOptions, Picture, Rejected
from must_jax.storage.path import Path


class HasKey(Protocol):
  """A unit of reading; its key puts items into an order for good."""

  @property
  def key(self) -> str:
    """Tells it apart from the others."""

  @property
  def files(self) -> Iterable[Path]:
    """What it is read from; it is read again when one of these changes."""


@dataclasses.dataclass(frozen=True)
class Item:
  """An image file to import.

  Attributes:
    key: names it in the image set.
    image: its file.
    label: what the importer needs to read its labels; their files are paths
      in it, alone or in tuples.
  """

  key: str
  image: Path
  label: Any = None

  @property
  def files(self) -> Iterator[Path]:
    """Of the image and of its labels."""
    yield self.image
    yield from _paths_in(self.label)


def _paths_in(value: Any) -> Iterator[Path]:
  if isinstance(value, os.PathLike):
    yield Path(value)
  elif isinstance(value, tuple):
    for part in value:
      yield from _paths_in(part)


@dataclasses.dataclass(frozen=True)
class Labels:
  """Labels of one image.

  Attributes:
    arrays: {field: arrays} as `records.encode_example` takes them.
    rejected: reasons why parts of the labels were left out.
    counts: summed over all images, for `Plan.summarize`.
  """

  arrays: Mapping[str, Mapping[str, Any]]
  rejected: Sequence[str] = ()
  counts: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Imported:
  """One image as it was read.

  Attributes:
    key: names it in the image set.
    picture: None if the image is rejected; then `labels.rejected` says why.
    labels: of the image.
  """

  key: str
  picture: Picture | None
  labels: Labels

  def left_out(self, reason: str) -> "Imported":
    """The image, rejected for this reason beside those that it has."""
    reasons = [*self.labels.rejected, reason]
    return Imported(self.key, None, Labels({}, reasons))


@dataclasses.dataclass(frozen=True)
class ReadFiles:
  """Reads an `Item`: one image file with its labels.

  Attributes:
    read_labels: labels of an image; raises `Rejected`.
    images: what image files do not say of themselves.
  """

  read_labels: Callable[[Item, Picture], Labels]
  images: ImageOptions = dataclasses.field(default_factory=ImageOptions)

  def __call__(self, item: Item) -> Iterator[Imported]:
    """The image, if only to say why it is rejected."""
    try:
      picture = image_files.read_image(item.image, self.images)
      yield Imported(item.key, picture, self.read_labels(item, picture))
    except Rejected as error:
      yield Imported(item.key, None, Labels({}, [str(error)]))


def _no_lines(counts: Mapping[str, float]) -> list[str]:
  del counts
  return []


@dataclasses.dataclass(frozen=True)
class Plan:
  """What an importer wants to import.

  Attributes:
    fields: as in `index.json`.
    items: files, or parts of a source that hold many images each.
    read: the images of an item, in an order of its own; a dataclass with an
      attribute `images`, see `ImageOptions`.
    num_images: in all items together; None if nobody knows yet.
    shard_per_item: an item becomes a shard, its images keep their order. By
      default an item is one image, and images are put into an order that does
      not depend on how they lie in the source.
    summarize: lines to print from the sums of `Labels.counts`.
    warn: what looks wrong, from the same sums; beside what the kinds of field
      say (`fields.warnings`).
    notes: further lines to print, found while planning.
    warnings: what looks wrong, found while planning.
  """

  fields: Mapping[str, Mapping[str, Any]]
  items: Sequence[HasKey]
  read: Callable[[Any], Iterator[Imported]]
  num_images: int | None = None
  shard_per_item: bool = False
  summarize: Callable[[Mapping[str, float]], list[str]] = _no_lines
  warn: Callable[[Mapping[str, float]], list[str]] = _no_lines
  notes: Sequence[str] = ()
  warnings: Sequence[str] = ()

  def with_images(self, images: ImageOptions) -> "Plan":
    """The plan that reads image files with these options."""
    if images == ImageOptions():
      return self
    read: Any = self.read
    return dataclasses.replace(
      self, read=dataclasses.replace(read, images=images)
    )
