"""The labelling job: workers that share a directory and nothing else.

Each worker takes a shard of images, labels it, and commits it whole. There is
no collective and no coordinator: a dead worker delays its one shard by
`lease_seconds` at most, and any number of workers may start, stop or be killed
at any time. Which worker labels a shard does not show in the result.

Workers take their own share first (every `process_count`-th shard), then what
the others have not begun. The one that finds all shards committed writes the
manifest.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from must_jax.fields.statistics import add
from must_jax.pseudo_label.labeller import Batch, Example, Labeller, ToLabels
from must_jax.storage import label_sets, sets
from must_jax.storage.commits import Lease
from must_jax.storage.label_sets import UNKNOWN_KEY, LabelCommit
from must_jax.storage.path import Path, PathLike, publish_json
from must_jax.storage.sets import MANIFEST_FILE, ImageSet, Shard, key_digest
from must_jax.storage.tfrecord import RecordWriter

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
    max_undecodable: fraction of the records; beyond it the job stops.
    lease_seconds: a shard whose worker is silent for so long is taken over.
    process_index, process_count: decide which shards come first.
  """

  image_set: ImageSet
  output: PathLike
  fields: Mapping[str, Mapping[str, Any]]
  teacher: Mapping[str, Any]
  settings: Mapping[str, Any]
  max_undecodable: float = 0.01
  lease_seconds: float = 600.0
  process_index: int = 0
  process_count: int = 1


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
    predict: batch -> arrays with leading dimension B, on the host.
    to_labels: arrays of one example and its content size -> labels in the form
      they are stored (`must_jax.tasks.task.Task.to_labels`).
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
    self._labeller, self._stop = labeller, stop
    self._directory, self._static = label_sets.claim_directory(
      Path(job.output),
      label_sets.describe_job(
        job.image_set, job.fields, job.teacher, job.settings
      ),
    )
    self._dir = self._directory.path
    self._commits: dict[str, LabelCommit] = {}
    self._num_undecodable = 0  # in commits
    self._num_records = 0  # of this worker
    self._order = _order(
      len(self._images.shards), job.process_index, job.process_count
    )
    self._bar = tqdm(
      total=self._images.num_records,
      unit="image",
      disable=not sys.stderr.isatty(),
      leave=False,
    )

  def run(self) -> Summary:
    """Labels shards until none is left."""
    with self._bar:
      return self._run()

  def _run(self) -> Summary:
    while True:
      self._read_commits()
      if len(self._commits) == len(self._order):
        return Summary(self._num_records, self._finish())
      if self._stop():
        return Summary(self._num_records, None)
      index, lease = self._claim()
      if lease is None:
        # All that is left is in other hands. They will finish it or go stale.
        time.sleep(min(self._job.lease_seconds / 4, 30))
        continue
      with lease, contextlib.suppress(_Taken, _Stopped):
        self._label(index, lease)

  def _read_commits(self) -> None:
    """Reads what was committed since; checks the budget of bad records."""
    missing = [
      shard.file
      for shard in self._images.shards
      if shard.file not in self._commits
    ]
    for file, commit in self._directory.read_all(missing).items():
      self._commits[file] = commit
      self._num_undecodable += len(commit.undecodable)
    self._check_budget([])
    self._bar.n = sum(c.shard.num_records for c in self._commits.values())
    self._bar.refresh()

  def _check_budget(self, new: Sequence[dict[str, Any]]) -> None:
    """Stops the job if too many images are bad, `new` ones included."""
    bad, total = self._num_undecodable + len(new), self._images.num_records
    if bad > self._job.max_undecodable * total:
      raise ValueError(
        f"{bad} of the {total} images in {self._images.directory} cannot be"
        " decoded; allowed is a fraction of"
        f" {self._job.max_undecodable:g}. Import them anew, or raise"
        f" label.max_undecodable. The last ones: {list(new[-3:])}"
      )

  def _claim(self) -> tuple[int, Lease | None]:
    """The next shard that nobody labels."""
    for index in self._order:
      file = self._images.shards[index].file
      if file not in self._commits:
        lease = self._directory.lease(file, self._job.lease_seconds)
        if lease is not None:
          self._directory.collect_garbage(self._job.lease_seconds, file)
          return index, lease
    return -1, None

  def _label(self, index: int, lease: Lease) -> None:
    """Labels a shard and commits it; until then nothing of it is there."""
    shard = self._images.shards[index]
    keys: list[bytes] = []
    undecodable: list[dict[str, Any]] = []
    sums: dict[str, Any] = {}
    try:
      with RecordWriter(self._dir / shard.file) as writer:
        for example in self._examples(index, lease):
          writer.write(example.record)
          if example.reason:
            undecodable.append(
              {
                "index": len(keys),
                "key": example.key.decode(errors="backslashreplace"),
                "reason": example.reason,
              }
            )
            self._check_budget(undecodable)
          keys.append(example.key)
          sums = add(sums, example.sums)
        self._check_keys(shard, keys)
        self._check_taken(shard.file)
      self._directory.write(
        LabelCommit(
          dataclasses.replace(
            shard, num_bytes=writer.num_bytes, checksum=writer.checksum
          ),
          self._directory.job,
          self._job.teacher["digest"],
          tuple(undecodable),
          sums,
        )
      )
    except FileNotFoundError as error:
      # Others clean up after us once the set is finished, or where we were
      # silent for too long.
      if not str(error.filename).startswith(str(self._dir)):
        raise
      raise _Taken from error
    except OSError as error:
      raise OSError(
        error.errno,
        f"Labelling {self._dir / shard.file} failed: {error}. Nothing of this"
        " shard was kept, finished shards were. Mend the cause and run the"
        " same command again.",
      ) from error
    self._num_records += len(keys)
    logging.info(
      "Labelled %s: %d records, %d undecodable.",
      shard.file,
      len(keys),
      len(undecodable),
    )

  def _examples(self, index: int, lease: Lease) -> Iterator[Example]:
    """The shard's examples, while the worker shall and need go on."""
    for examples in self._labeller.examples(index):
      if self._stop():
        raise _Stopped
      if lease.beat():
        self._check_taken(self._images.shards[index].file)
      yield from examples
      lease.num_records += len(examples)
      self._bar.update(len(examples))

  def _check_keys(self, shard: Shard, keys: list[bytes]) -> None:
    if UNKNOWN_KEY in keys or key_digest(keys) == shard.keys:
      return
    raise ValueError(
      f"{self._images.directory / shard.file} has other keys than its index"
      " tells. Import the images again."
    )

  def _check_taken(self, file: str) -> None:
    if self._directory.is_committed(file):
      raise _Taken

  def _finish(self) -> dict[str, Any]:
    """Writes the manifest and cleans up; all workers may, any time."""
    commits = [self._commits[s.file] for s in self._images.shards]
    sets.check_shards(self._dir, [dataclasses.asdict(c.shard) for c in commits])
    manifest = label_sets.make_manifest(self._static, commits)
    try:
      publish_json(self._dir / MANIFEST_FILE, manifest)
    except FileNotFoundError:  # cleaned up by another worker that finished
      if not (self._dir / MANIFEST_FILE).exists():
        raise
    self._directory.clean_up()
    for alarm in manifest["alarms"]:
      logging.error("LABELS LOOK WRONG in %s: %s", self._dir, alarm)
    return manifest


def _order(num_shards: int, index: int, count: int) -> list[int]:
  """A worker's own shards, then the others' from their far end.

  Owners begin at the near end, and helpers at places of their own.
  """
  own = [i for i in range(num_shards) if i % count == index]
  others = [i for i in range(num_shards) if i % count != index]
  return [*own, *sorted(others, key=lambda i: (index - i) % num_shards)]
