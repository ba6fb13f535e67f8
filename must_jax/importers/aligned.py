"""Labels for images that were imported before: a label set, aligned by key.

`--labels-for DIR` makes of any importer's labels what a teacher's are: a label
set, which a config names beside the image set. So photos have boxes from one
tool and masks from another, and the image set stays as it is.

Unlike an import of images it is not cut into parts, and begins anew when it was
broken off. What was there stays until all is read, and what is new counts once
its manifest is there.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from must_jax.fields import check_descriptions, make_field
from must_jax.fields.statistics import accumulate
from must_jax.importers import parts
from must_jax.importers import write as write_lib
from must_jax.importers.items import HasKey, Plan
from must_jax.storage import image_files, label_sets
from must_jax.storage import path as path_lib
from must_jax.storage.commits import JOB_FILE
from must_jax.storage.label_sets import UNKNOWN_KEY, LabelCommit
from must_jax.storage.path import Path
from must_jax.storage.sets import MANIFEST_FILE, ImageSet, LabelSet
from must_jax.storage.tfrecord import (
  CorruptRecord,
  RecordWriter,
  ShardReader,
  offsets_path,
)

_STAGE = ".import"  # below --out, until all is read
_IMPORTER = "importer"  # in the entry `teacher` of a job


def write(args: argparse.Namespace) -> None:
  """Imports the labels that `args.plan` plans and prints a summary.

  Args:
    args: see `arguments.add_output_arguments`; `args.out` becomes a label set.

  Raises:
    ValueError: options, files or labels that do not fit, or no image of the
      set has labels.
    OSError: a disk is full.
    TooManyRejected: more images were rejected than `--max-rejected`.
  """
  start = time.monotonic()
  write_lib.check_options(args)
  if args.runner:
    raise ValueError(
      f"--runner {args.runner} and --labels-for do not go together; labels are"
      " read on this machine."
    )
  images = ImageSet.open(args.labels_for, args.split)
  check_room(args.out, args.overwrite, _IMPORTER, "imported labels")
  plan = write_lib.plan_of(args)
  check_descriptions(plan.fields)
  if plan.shard_per_item or not plan.fields:
    raise ValueError(
      "--labels-for takes the labels of importers that know their images by key"
      " before they read them; this one does not, or has no labels. Import"
      " images and labels together, without --labels-for."
    )
  reader = _Reader(images, plan, args.workers)
  with open_stage(args.out) as stage:
    commits = []
    with tqdm(
      total=images.num_records,
      unit="image",
      disable=not sys.stderr.isatty(),
      leave=False,
    ) as bar:
      for i, shard in enumerate(images.shards):
        commits.append(reader.write(stage, i))
        bar.update(shard.num_records)
    reader.check(args.max_rejected)
    job = _describe(args, images, plan, commits)
    manifest = publish(args.out, images, job, commits, reader.rejected)
  write_lib.show_rejected(reader.rejected)
  for alarm in manifest["alarms"]:
    print(f"LABELS LOOK WRONG: {alarm}", file=sys.stderr)
  counts = reader.counts
  notes = [*plan.notes, *image_files.summarize(counts), *plan.summarize(counts)]
  warnings = write_lib.warnings_of(plan, commits, counts)
  for line in (
    *notes,
    *reader.notes(),
    *(f"warning: {text}" for text in warnings),
  ):
    print(f"  {line}")
  print(
    f"labels of {images.name}-{images.split}: {reader.num_labelled} of"
    f" {images.num_records} images, {time.monotonic() - start:.1f} s:"
    f" {args.out}"
  )


def check_room(directory: Path, overwrite: bool, entry: str, what: str) -> None:
  """Checks that a directory can become a label set.

  Args:
    directory: of the label set.
    overwrite: whether one of the same sort may be replaced.
    entry: of `teacher` in the jobs of this sort.
    what: such label sets hold, for messages.

  Raises:
    ValueError: it is a file, or holds what must not be replaced.
  """
  if path_lib.is_file(directory):
    raise ValueError(f"{directory} is a file; expected a directory as --out.")
  names = path_lib.list_names(directory) if directory.is_dir() else set()
  if not names - {_STAGE}:
    return
  if JOB_FILE not in names or (
    entry not in label_sets.read_job(directory)["teacher"]
  ):
    raise ValueError(
      f"{directory} holds {min(names)} and what else is not of {what}; expected"
      " a new directory as --out."
    )
  if MANIFEST_FILE in names and not overwrite:
    raise ValueError(
      f"{directory} holds {what}. Give --overwrite to replace them, or another"
      " --out."
    )


@contextlib.contextmanager
def open_stage(directory: Path) -> Iterator[Path]:
  """The directory of what is unfinished, for one import; it goes at the end.

  Args:
    directory: of the label set.

  Raises:
    ValueError: another process imports labels to the same directory right now.
  """
  stage = directory / _STAGE
  with write_lib.claim(stage) as lease:
    try:
      with lease.beating():
        yield stage
    finally:
      with contextlib.suppress(FileNotFoundError):  # a bucket's is gone by now
        path_lib.remove_tree(stage)


@dataclasses.dataclass(frozen=True)
class _Labelled:
  """A label record.

  Attributes:
    record: the bytes to write.
    key: of the image.
    is_labelled: whether the import has the image, and could read its labels.
    sums: by field, see `Field.sums`.
    rejected: reasons why labels were left out.
    counts: for `Plan.summarize`.
  """

  record: bytes
  key: bytes
  is_labelled: bool = False
  sums: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rejected: tuple[str, ...] = ()
  counts: Mapping[str, float] = dataclasses.field(default_factory=dict)


class _Reader:
  """Reads labels in the order of the images; sums up what was found."""

  def __init__(self, images: ImageSet, plan: Plan, threads: int):
    self._images, self._plan, self._threads = images, plan, threads
    self._items: dict[str, HasKey] = {}
    for item in plan.items:
      if self._items.setdefault(item.key, item) is not item:
        raise ValueError(
          f"Key {item.key!r} comes twice; keys must tell images apart."
        )
    self._used: set[str] = set()
    self.counts: collections.Counter[str] = collections.Counter()
    self.rejected: list[dict[str, str]] = []
    self.num_labelled = 0

  def write(self, directory: Path, index: int) -> LabelCommit:
    """Writes the labels of a shard; they do not count yet."""
    shard = self._images.shards[index]
    sums: dict[str, Any] = {}
    undecodable = []
    with RecordWriter(directory / shard.file, by_content=True) as writer:
      for place, found in enumerate(self._labels(index)):
        writer.write(found.record)
        key = found.key.decode(errors="backslashreplace")
        reasons = [{"key": key, "reason": text} for text in found.rejected]
        self.rejected += reasons
        self.counts.update(found.counts)
        self.num_labelled += found.is_labelled
        accumulate(sums, found.sums)
        if reasons and not found.is_labelled:
          undecodable.append({"index": place, **reasons[0]})
    return LabelCommit(
      shard.written_by(writer), "", "", tuple(undecodable), sums
    )

  def _labels(self, index: int) -> Iterator[_Labelled]:
    reader = self._images.reader(index)
    places = range(self._images.shards[index].num_records)
    yield from parts.map_in_order(
      lambda place: self._label(reader, place), places, self._threads
    )

  def _label(self, reader: ShardReader, place: int) -> _Labelled:
    """The labels of a record of the image set."""
    from must_jax.quiet_tensorflow import tf
    from must_jax.storage import records

    fields = self._plan.fields

    def rejected(key: bytes, reasons: Sequence[str]) -> _Labelled:
      record = records.encode_labels(key, "undecodable", {}, fields=fields)
      return _Labelled(record, key, rejected=tuple(reasons))

    try:
      example = tf.train.Example.FromString(reader.read(place))
    except CorruptRecord as error:
      return rejected(UNKNOWN_KEY, [error.reason])
    features = example.features.feature
    key = features["key"].bytes_list.value[0]
    size = tuple(
      features[name].int64_list.value[0] for name in ("height", "width")
    )
    item = self._items.get(key.decode(errors="replace"))
    if item is None:
      record = records.encode_labels(key, "ok", {}, fields=fields)
      return _Labelled(record, key)
    self._used.add(item.key)
    (image,) = self._plan.read(item)
    labels = image.labels
    if image.picture is None:
      return rejected(key, labels.rejected)
    if image.picture.size != size:
      return rejected(
        key,
        [
          "the image is {} x {} (height x width); that of the image set is"
          " {} x {}".format(*image.picture.size, *size)
        ],
      )
    sums = {}
    try:
      record = records.encode_labels(key, "ok", labels.arrays, fields=fields)
      for name, arrays in labels.arrays.items():
        field = make_field(fields[name])
        field.check_extent(arrays, size)
        sums[name] = field.sums({k: np.asarray(v) for k, v in arrays.items()})
    except ValueError as error:
      return rejected(key, [str(error)])
    counts = collections.Counter(labels.counts)
    counts.update(image.picture.counts)
    return _Labelled(record, key, True, sums, tuple(labels.rejected), counts)

  def check(self, max_rejected: float) -> None:
    """Raises where the labels are not those of the images, or too many fail."""
    if not self._used:
      from must_jax.storage import records

      key = records.key_of(self._images.read(0)).decode(errors="replace")
      raise ValueError(
        f"No image of {self._images.directory}, split {self._images.split!r},"
        f" has labels here: a key of it is {key!r}, those of the labels are"
        f" {sorted(self._items)[:3]} and so on. Keys are paths of images below"
        " --images, without extension: give the --images with which the set was"
        " imported."
      )
    rejected = len({entry["key"] for entry in self.rejected})
    if rejected > max_rejected * self._images.num_records:
      write_lib.show_rejected(self.rejected)
      raise write_lib.TooManyRejected(
        f"The labels of {rejected} of {self._images.num_records} images were"
        f" rejected, whole or in part; allowed are {max_rejected:.2%}. No label"
        " set was written. Mend the files and run the same command, or allow"
        " more with --max-rejected."
      )

  def notes(self) -> Iterator[str]:
    """What does not fit together, in numbers."""
    if others := len(self._items) - len(self._used):
      yield f"labels of images that the image set does not have: {others}"
    if missing := self._images.num_records - len(self._used):
      yield f"images of the set that have no labels here: {missing}"


def _describe(
  args: argparse.Namespace,
  images: ImageSet,
  plan: Plan,
  found: Sequence[LabelCommit],
) -> dict[str, Any]:
  """The contents of `job.json`."""
  teacher = {"digest": content_of(found), _IMPORTER: args.kind}
  if args.licence:
    teacher["licence"] = args.licence
  return label_sets.describe_job(images, plan.fields, teacher, {})


def content_of(commits: Sequence[LabelCommit]) -> str:
  """What tells labels from others is what they say: the digest of shards."""
  digest = hashlib.blake2b(digest_size=16)
  for commit in commits:
    digest.update(commit.shard.checksum.encode())
  return digest.hexdigest()


def publish(
  directory: Path,
  images: ImageSet,
  job: dict[str, Any],
  found: Sequence[LabelCommit],
  rejected: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
  """Makes a label set of shards that are written; returns its manifest.

  Args:
    directory: of the label set.
    images: that it is of.
    job: contents of its `job.json`.
    found: the shards, which lie in its stage.
    rejected: {"key", "reason"} of what was left out.
  """
  # Without a manifest, what is there is of an import that was broken off.
  old = path_lib.list_names(directory) - {_STAGE, JOB_FILE}
  for name in sorted(old, key=lambda name: name != MANIFEST_FILE):
    path_lib.remove(directory / name)
  path_lib.publish_json(directory / JOB_FILE, job)
  for commit in found:
    file = commit.shard.file
    for name in (offsets_path(file).name, file):
      path_lib.move(directory / _STAGE / name, directory / name)
  opened = label_sets.open_directory(directory, job)
  commits = [
    dataclasses.replace(c, job=opened.job, teacher=job["teacher"]["digest"])
    for c in found
  ]
  for commit in commits:
    opened.commit(commit)
  if rejected:
    lines = [json.dumps(entry, sort_keys=True) + "\n" for entry in rejected]
    listed = f"{images.name}-{images.split}.rejected.jsonl"
    with path_lib.publish(directory / listed) as output:
      output.write("".join(lines).encode())
  manifest = label_sets.make_manifest(job, commits)
  path_lib.publish_json(directory / MANIFEST_FILE, manifest)
  LabelSet.open(directory).check_images(images)
  return manifest
