"""The labelling job: workers that share a directory and nothing else.

Each worker takes a shard of images, labels it, and commits it whole. There is
no collective and no coordinator: a dead worker delays its one shard by
`lease_seconds` at most, and any number of workers may start, stop or be killed
at any time. Which worker labels a shard does not show in the result.

Workers take their own share first, if they know it, then what the others have
not begun (`storage.work_queue`). One that finds all shards committed writes the
manifest.
"""

import dataclasses
import sys
import time
from collections.abc import (
  Callable,
  Iterable,
  Iterator,
  Mapping,
  Sequence,
)
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from must_jax.fields.statistics import accumulate
from must_jax.pseudo_label.labeller import Batch, Example, Labeller, ToLabels
from must_jax.storage import label_sets, sets
from must_jax.storage.commits import Lease
from must_jax.storage.label_sets import (
  UNKNOWN_KEY,
  LabelCommit,
  LabelDirectory,
)
from must_jax.storage.path import (
  Path,
  PathLike,
  is_file,
  publish_json,
  read_version,
)
from must_jax.storage.sets import (
  MANIFEST_FILE,
  ImageSet,
  LabelSet,
  Shard,
  key_digest,
)
from must_jax.storage.work_queue import ALONE, Worker, WorkQueue
from must_jax.train.runtime import SignOfLife, duration

# Exit status of a job whose labels are there but cannot be right.
ALARM = 3


@dataclasses.dataclass(frozen=True)
class LabelJob:
  """What to label, and where to.

  Attributes:
    image_set: the images.
    output: directory of the label set; made if need be.
    fields: of the labels, as in an index: {field: {"kind", "classes"}}.
    teacher: JSON for the manifest; "digest" identifies the checkpoint.
    settings: JSON for the manifest; all else that decides the labels, as the
      batch size and the size of the network input.
    max_undecodable: fraction of the records. A worker that finds more stops;
      with more in all shards together there is no manifest.
    lease_seconds: a shard whose worker is silent for so long is taken over.
    worker: decides which shards come first.
  """

  image_set: ImageSet
  output: PathLike
  fields: Mapping[str, Mapping[str, Any]]
  teacher: Mapping[str, Any]
  settings: Mapping[str, Any]
  max_undecodable: float = 0.01
  lease_seconds: float = 600.0
  worker: Worker = ALONE

  def describe(self) -> dict[str, Any]:
    """The contents of `job.json`."""
    return label_sets.describe_job(
      self.image_set, self.fields, self.teacher, self.settings
    )


@dataclasses.dataclass(frozen=True)
class Summary:
  """What one worker did.

  Attributes:
    num_records: records this worker labelled.
    manifest: of the finished set; None if the worker was told to stop.
  """

  num_records: int
  manifest: dict[str, Any] | None

  @property
  def alarms(self) -> tuple[str, ...]:
    """Why the labels cannot be right; empty if they look like labels."""
    return tuple(self.manifest["alarms"]) if self.manifest else ()

  @property
  def exit_code(self) -> int:
    """`ALARM` with alarms, else 0."""
    return ALARM if self.alarms else 0


def run(
  job: LabelJob,
  batches: Callable[[int], Iterable[Batch]],
  predict: Callable[[Batch], dict[str, np.ndarray]],
  to_labels: ToLabels,
  stop: Callable[[], bool] = lambda: False,
) -> Summary:
  """Labels until all shards are finished, by this worker or others.

  Args:
    job: what to label.
    batches: shard number -> its batches, as `batches.eval_batches` makes them
      with `shard` and without labels: all of one size, so that labels do not
      depend on the worker; "position" counts from the shard's start; records
      that cannot be decoded are not "valid".
    predict: batch -> arrays or lists of length B, on the host.
    to_labels: arrays of one example, its batch and row -> labels of the image
      in the form they are stored.
    stop: asked between batches; if true, the shard at hand is given back.

  Raises:
    ValueError: the directory belongs to another job, too many records are
      undecodable, or labels do not fit `job.fields`.
    OSError: a shard cannot be written; the message names it, and nothing of it
      is left.
  """
  with Labeller(
    job.image_set, job.fields, batches, predict, to_labels
  ) as labeller:
    return _Worker(job, labeller, stop).run()


class _Taken(Exception):
  """Another worker has committed the shard at hand, or taken it over."""


class _Stopped(Exception):
  """The worker was told to stop."""


class _Worker:
  """One process's part in a job."""

  def __init__(
    self, job: LabelJob, labeller: Labeller, stop: Callable[[], bool]
  ):
    self._job, self._images = job, job.image_set
    self._stop = stop
    self._directory, self._static, is_new = label_sets.claim_directory(
      Path(job.output), job.describe()
    )
    self._dir = self._directory.path
    self._files = [shard.file for shard in self._images.shards]
    self._writer = ShardWriter(job, labeller, self._directory)
    self._queue = WorkQueue(
      self._directory, self._files, job.lease_seconds, job.worker, is_new
    )
    self._bar = tqdm(
      total=self._images.num_records,
      unit="image",
      disable=not sys.stderr.isatty(),
      leave=False,
    )
    self._progress = _Progress(self._images, self._bar)
    self._took_part = not self._queue.is_done
    logging.info(
      "Labels %d images in %d shards into %s.",
      self._images.num_records,
      len(self._files),
      self._dir,
    )
    self._look_up = 0.0  # when to see whether there is a manifest

  def run(self) -> Summary:
    """Labels shards until none is left."""
    with self._bar:
      manifest = None
      while manifest is None and not self._stop():
        self._progress.found(len(self._queue.done))
        manifest = self._finish() if self._queue.is_done else self._next()
      return Summary(self._writer.num_records, manifest)

  def _next(self) -> dict[str, Any] | None:
    """Labels a shard, or waits for others; the manifest once there is one."""
    # Whoever was silent for long may have missed the end of the job.
    if time.monotonic() > self._look_up:
      return self._read_manifest()
    claimed = self._queue.claim()
    if claimed is None:
      if self._queue.is_done:
        return None
      # All that is left is in other hands. They will finish it or go stale.
      self._queue.wait()
      return self._read_manifest()
    index, lease = claimed
    try:
      with lease:
        self._writer.label(index, lease, self._stop, self._progress.labelled)
        lease.kept = True
    except _Stopped:
      return None
    except _Taken:
      return self._read_manifest()
    self._queue.finished(self._files[index])
    return None

  def _read_manifest(self) -> dict[str, Any] | None:
    self._look_up = time.monotonic() + self._job.lease_seconds
    version = read_version(self._dir / MANIFEST_FILE)
    return version.value if version else None

  def _finish(self) -> dict[str, Any] | None:
    # Whoever took part need not look at all of the set again.
    if self._took_part and (found := self._read_manifest()):
      return found
    manifest = finish(self._job, self._directory, self._static)
    self._took_part = True
    if manifest is None:
      self._queue.wait()
    return manifest


class _Progress:
  """Says how far the job is, and this worker in its shard."""

  def __init__(self, images: ImageSet, bar: tqdm):
    self._images, self._bar = images, bar
    self._num_done = 0  # shards, of all workers
    # Records that this worker labelled: in all, and before this shard.
    self._labelled = self._before = 0
    self._begin = time.monotonic()
    self._life = SignOfLife()

  def found(self, num_done: int) -> None:
    """So many shards are there."""
    self._num_done, self._before = num_done, self._labelled
    self._show(0)

  def labelled(self, shard: Shard, count: int) -> None:
    """So many records of a shard are done."""
    self._labelled = self._before + count
    done = self._show(count)
    rate = max(1e-9, self._labelled / (time.monotonic() - self._begin))
    self._life.say(
      "%s: %d of %d images; %d of %d shards are done; %.1f images/s, alone %s"
      " left.",
      *(shard.file, count, shard.num_records),
      *(self._num_done, len(self._images.shards)),
      *(rate, duration((self._images.num_records - done) / rate)),
    )

  def _show(self, count: int) -> int:
    """About how many records are done."""
    share = self._num_done / len(self._images.shards)
    self._bar.n = round(share * self._images.num_records) + count
    self._bar.refresh()
    return self._bar.n


class ShardWriter:
  """Labels shards and commits them; knows nothing of other workers."""

  def __init__(
    self, job: LabelJob, labeller: Labeller, directory: LabelDirectory
  ):
    """See `run`.

    Args:
      job: what to label.
      labeller: makes label records.
      directory: of the job.
    """
    self._job, self._images = job, job.image_set
    self._labeller, self._directory = labeller, directory
    self.num_records = self._num_undecodable = 0

  def label(
    self,
    index: int,
    lease: Lease | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[Shard, int], None] = lambda shard, count: None,
  ) -> None:
    """Labels a shard and commits it; until then nothing of it is there.

    Args:
      index: of the shard.
      lease: on it, which is kept alive; with None others are not told.
      stop: as for `run`.
      progress: told after each batch how many of the shard's records are done.

    Raises:
      ValueError: too many records cannot be decoded, or the keys are not those
        of the image set.
    """
    shard = self._images.shards[index]
    keys: list[bytes] = []
    undecodable: list[dict[str, Any]] = []
    sums: dict[str, Any] = {}
    try:
      with self._directory.writer(shard.file) as writer:
        for example in self._examples(index, lease, stop, progress):
          writer.write(example.record)
          if example.reason:
            undecodable.append(
              {
                "index": len(keys),
                "key": example.key.decode(errors="backslashreplace"),
                "reason": example.reason,
              }
            )
            _check_budget(
              self._job, self._num_undecodable + len(undecodable), undecodable
            )
          keys.append(example.key)
          accumulate(sums, example.sums)
        self._check_keys(shard, keys)
        # Where we were silent for too long, another is at it.
        if lease is not None and not lease.beat():
          raise _Taken
      made = self._directory.commit(
        LabelCommit(
          shard.written_by(writer),
          self._directory.job,
          self._job.teacher["digest"],
          tuple(undecodable),
          sums,
        )
      )
      if not made:
        raise _Taken
    except FileNotFoundError as error:
      # Others clean up after us once the set is finished, or where we were
      # silent for too long.
      if not str(error.filename).startswith(f"{self._directory.path}/"):
        raise
      raise _Taken from error
    except OSError as error:
      raise OSError(
        error.errno,
        f"Labelling {self._directory.path / shard.file} failed: {error}."
        " Nothing of this shard was kept, finished shards were. Mend the cause"
        " and run the same command again.",
      ) from error
    self.num_records += len(keys)
    self._num_undecodable += len(undecodable)
    logging.info(
      "Labelled %s: %d records, %d undecodable.",
      shard.file,
      len(keys),
      len(undecodable),
    )

  def _examples(
    self,
    index: int,
    lease: Lease | None,
    stop: Callable[[], bool],
    progress: Callable[[Shard, int], None],
  ) -> Iterator[Example]:
    """The shard's examples, while the worker shall and need go on."""
    count = 0
    for examples in self._labeller.examples(index):
      if stop():
        raise _Stopped
      yield from examples
      count += len(examples)
      progress(self._images.shards[index], count)
      if lease is not None:
        lease.num_records += len(examples)
        if lease.is_due() and not lease.beat():
          raise _Taken

  def _check_keys(self, shard: Shard, keys: list[bytes]) -> None:
    if UNKNOWN_KEY in keys or key_digest(keys) == shard.keys:
      return
    raise ValueError(
      f"{self._images.directory / shard.file} has other keys than its index"
      " tells. Import the images again."
    )


def _check_budget(
  job: LabelJob, num_bad: int, latest: Sequence[Mapping[str, Any]]
) -> None:
  """Stops the job if too many images are bad."""
  total = job.image_set.num_records
  if num_bad > job.max_undecodable * total:
    raise ValueError(
      f"{num_bad} of the {total} images in {job.image_set.directory} cannot be"
      f" decoded; allowed is a fraction of {job.max_undecodable:g}. Import them"
      " anew, or raise label.max_undecodable. The last ones:"
      f" {list(latest[-3:])}"
    )


def finish(
  job: LabelJob, directory: LabelDirectory, static: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Makes a set of shards that are all committed, and cleans up.

  One worker does it; a set that is made already is looked at, and stays.

  Args:
    job: what was labelled.
    directory: of the job.
    static: the job as it is there.

  Returns:
    The manifest; None while another worker is at it.

  Raises:
    ValueError: a shard is missing, damaged or of another teacher, or too many
      are undecodable.
  """
  if is_file(directory.path / MANIFEST_FILE):
    labels = LabelSet.open(directory.path)
    if directory.has_leases():
      # Of a worker that died while it cleaned up, unless it is at it.
      lease = directory.lease(MANIFEST_FILE, job.lease_seconds)
      if lease is not None:
        with lease, lease.beating():
          directory.clean_up(labels.shards)
    return dict(labels.manifest)
  lease = directory.lease(MANIFEST_FILE, job.lease_seconds)
  if lease is None:
    return None
  with lease, lease.beating():
    manifest = _make_manifest(job, directory, static)
    publish_json(directory.path / MANIFEST_FILE, manifest)
    for alarm in manifest["alarms"]:
      logging.error("LABELS LOOK WRONG in %s: %s", directory.path, alarm)
    directory.clean_up([Shard(**entry) for entry in manifest["shards"]])
  return manifest


def _make_manifest(
  job: LabelJob, directory: LabelDirectory, static: Mapping[str, Any]
) -> dict[str, Any]:
  files = [shard.file for shard in job.image_set.shards]
  commits = _commits(directory, files, static["teacher"]["digest"])
  manifest = label_sets.make_manifest(static, commits)
  sets.check_shards(directory.path, manifest["shards"])
  _check_budget(job, manifest["num_undecodable"], manifest["undecodable"])
  return manifest


def _commits(
  directory: LabelDirectory, files: Sequence[str], teacher: str
) -> Iterator[LabelCommit]:
  """Those of all shards, in order.

  Raises:
    ValueError: one is missing, or of another teacher.
  """
  missing = dict.fromkeys(files)
  for file, commit in directory.read_each(files):
    if commit.teacher != teacher:
      raise ValueError(
        f"{directory.commit_path(file)} is of teacher {commit.teacher}, the job"
        f" of {teacher}. Move it away and run the same command again."
      )
    del missing[file]
    yield commit
  if missing:
    raise ValueError(
      f"{len(missing)} of {len(files)} shards of {directory.path} are not"
      f" labelled, as {next(iter(missing))}. Run the same command again."
    )
