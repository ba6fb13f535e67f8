"""Corrections: what people say of a label set, as a label set of its own.

It is aligned with the images like that of a teacher, whose labels it takes the
place of: its records are "corrected" (a person made or confirmed the labels,
and all of them are read), "rejected" (no labels of this image, wherever they
come from), or have no labels where nobody has looked. Its `teacher` in
`job.json` and `manifest.json` is

  {"digest": of the records,
   "corrections": {"by": who, "when": ISO 8601 in UTC,
                   "of": digest of the label set's teacher, "format": ...}}
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from must_jax.fields import Description, make_field
from must_jax.fields.field import NamedScores
from must_jax.fields.statistics import accumulate
from must_jax.importers import aligned
from must_jax.importers import write as write_lib
from must_jax.importers.items import Labels
from must_jax.storage import label_sets
from must_jax.storage.image_files import Rejected
from must_jax.storage.label_sets import UNKNOWN_KEY, LabelCommit
from must_jax.storage.path import Path
from must_jax.storage.sets import ImageSet, LabelSet
from must_jax.storage.tfrecord import CorruptRecord, RecordWriter, ShardReader

ENTRY = "corrections"  # in the entry `teacher` of a job
_SHOWN = 3  # reasons for one image


@dataclasses.dataclass(frozen=True)
class Correction:
  """What a person said of an image.

  Attributes:
    status: "corrected" or "rejected".
    labels: that a person returned, by field, as `Field.mend` takes them; None
      confirms what is stored.
    min_score: thresholds at which the stored labels were shown, by field. Of
      labels that come back as they were shown, it says that nobody has looked.
  """

  status: str
  labels: Labels | None = None
  min_score: Mapping[str, NamedScores] | None = None


# Gets height and width of an image; raises `Rejected` for what cannot be read.
Corrector: TypeAlias = Callable[[tuple[int, int]], Correction]


@dataclasses.dataclass
class Written:
  """What became of corrections.

  Attributes:
    statuses: number of records by status; "" of images nobody looked at.
    same: images among these whose labels came back as they were.
    without: images among these that were accepted and have no labels.
    counts: sums of `Labels.counts`.
    rejected: {"key", "reason"} of what could not be read.
    manifest: of the correction set.
  """

  statuses: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  same: int = 0
  without: int = 0
  counts: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  rejected: list[dict[str, str]] = dataclasses.field(default_factory=list)
  manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write(
  directory: Path,
  images: ImageSet,
  labels: LabelSet,
  correctors: Mapping[str, Corrector],
  descriptions: Mapping[str, Description],
  *,
  by: str,
  when: str,
  form: str,
  max_rejected: float = 0.0,
  overwrite: bool = False,
) -> Written:
  """Writes a correction set.

  Args:
    directory: of the corrections.
    images: that were looked at.
    labels: that are corrected.
    correctors: {key: what was said of the image}; nobody looked at others.
    descriptions: of the fields that were looked at, as in a manifest.
    by: who made it.
    when: in ISO 8601.
    form: format that it came in.
    max_rejected: part of the corrections that may be unreadable.
    overwrite: whether corrections that are there are replaced.

  Raises:
    ValueError: the directory holds something else, or nobody looked at any
      image.
    TooManyRejected: too much is unreadable; nothing was written.
  """
  aligned.check_room(directory, overwrite, ENTRY, "corrections")
  writer = _Writer(images, labels, correctors, descriptions)
  written = writer.written
  with aligned.open_stage(directory) as stage:
    commits = [writer.write(stage, i) for i in range(len(images.shards))]
    share = len(written.rejected) / len(correctors)
    if share > max_rejected:
      write_lib.show_rejected(written.rejected)
      raise write_lib.TooManyRejected(
        f"{len(written.rejected)} of {len(correctors)} corrections cannot be"
        " read. None was written. Mend the file and run the same command, or"
        " leave these images out with --max-rejected"
        f" {np.ceil(1000 * share) / 1000:g}."
      )
    if not any(status for status in written.statuses):
      raise ValueError(
        f"Nobody looked at any of {len(correctors)} images: {written.same} came"
        f" back as they were, {written.without} were accepted without labels."
        " No correction set was written."
      )
    teacher = {
      "digest": aligned.content_of(commits),
      ENTRY: {
        "by": by,
        "when": when,
        "of": labels.manifest["teacher"].get("digest"),
        "format": form,
      },
    }
    job = label_sets.describe_job(images, descriptions, teacher, {})
    written.manifest = aligned.publish(
      directory, images, job, commits, written.rejected
    )
  return written


class _Writer:
  """Writes corrections in the order of the images; counts what there was."""

  def __init__(
    self,
    images: ImageSet,
    labels: LabelSet,
    correctors: Mapping[str, Corrector],
    descriptions: Mapping[str, Description],
  ):
    self._images, self._labels = images, labels
    self._correctors, self._descriptions = correctors, descriptions
    self._fields = {n: make_field(d) for n, d in descriptions.items()}
    self.written = Written()

  def write(self, directory: Path, index: int) -> LabelCommit:
    """Writes the corrections of a shard; they do not count yet."""
    from must_jax.storage import records

    shard = self._images.shards[index]
    images = self._images.reader(index)
    sums: dict[str, Any] = {}
    undecodable = []
    with RecordWriter(directory / shard.file, by_content=True) as writer:
      for place, label in enumerate(self._labels.reader(index)):
        record, status, found = self._correct(images, place, label)
        if records.key_of(label) == UNKNOWN_KEY:
          reason = "the image has no key"
          undecodable.append({"index": place, "key": "", "reason": reason})
        writer.write(record)
        self.written.statuses[status] += 1
        accumulate(sums, found)
    return LabelCommit(
      shard.written_by(writer), "", "", tuple(undecodable), sums
    )

  def _correct(
    self, images: ShardReader, place: int, label: bytes
  ) -> tuple[bytes, str, Mapping[str, Any]]:
    """A record, its status, and what it adds to the statistics."""
    from must_jax.storage import records

    key = records.key_of(label)
    name = key.decode(errors="surrogateescape")

    def without(status: str) -> bytes:
      return records.encode_labels(key, status, {}, fields=self._descriptions)

    if key == UNKNOWN_KEY:
      return without("undecodable"), "", {}
    if name not in self._correctors:
      return without("ok"), "", {}
    try:
      size = records.size_of(images.read(place))
      correction = self._correctors[name](size)
      if correction.status == "rejected":
        return without("rejected"), "rejected", {}
      found = self._corrected(label, size, correction)
    except (CorruptRecord, ValueError) as error:
      self.written.rejected.append({"key": name, "reason": str(error)})
      found = None
    if found is None:
      return without("ok"), "", {}
    record, arrays = found
    sums = {k: self._fields[k].sums(array) for k, array in arrays.items()}
    return record, "corrected", sums

  def _corrected(
    self, label: bytes, size: tuple[int, int], correction: Correction
  ) -> tuple[bytes, Mapping[str, Mapping[str, np.ndarray]]] | None:
    """A record and its labels; None if nobody looked at them."""
    from must_jax.storage import records

    mendable = {n: f for n, f in self._fields.items() if f.can_be_mended}
    stored = shown = records.stored_labels(label, mendable)
    if correction.min_score is not None and records.status_of(label) == "ok":
      shown = {
        name: at_least(
          self._descriptions[name], arrays, correction.min_score[name]
        )
        for name, arrays in stored.items()
      }
    if correction.labels is None:
      others = {n: f for n, f in self._fields.items() if n not in mendable}
      confirmed = shown | records.read_labels(label, others)
      if not confirmed:  # the next place's labels are not confirmed by this
        self.written.without += 1
        return None
      record = records.confirm_labels(label, shown, fields=self._descriptions)
      return record, confirmed
    if correction.labels.rejected:
      raise Rejected("; ".join(correction.labels.rejected[:_SHOWN]))
    mended = {
      name: mendable[name].mend(arrays, stored[name], size)
      if name in stored
      else dict(arrays)
      for name, arrays in correction.labels.arrays.items()
    }
    if correction.min_score is not None and all(
      name in shown and mendable[name].is_same(arrays, shown[name], size)
      for name, arrays in mended.items()
    ):
      self.written.same += 1
      return None
    for name, arrays in mended.items():
      mendable[name].check_extent(arrays, size)
    self.written.counts.update(correction.labels.counts)
    record = records.encode_labels(
      records.key_of(label), "corrected", mended, fields=self._descriptions
    )
    return record, mended


def at_least(
  description: Description,
  arrays: Mapping[str, np.ndarray],
  min_score: NamedScores,
) -> dict[str, np.ndarray]:
  """What a label shows at a threshold.

  Args:
    description: of the field.
    arrays: of the label.
    min_score: as people give it, see `Field.as_read`.
  """
  field = type(make_field(description)).as_read(description, min_score)
  return field.at_least(arrays, getattr(field, "min_score", 0.0))
