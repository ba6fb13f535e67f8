"""Writes what an importer plans, by processes or on a cluster.

Whatever broke off, the same command continues: finished parts (see `parts`)
are not read again.
"""

import argparse
import collections
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from tqdm import tqdm

from must_jax import fields
from must_jax.fields import statistics
from must_jax.importers import names, parts
from must_jax.importers.coarse_maps import with_coarse_maps
from must_jax.importers.items import Plan
from must_jax.importers.parts import ImportCommit, ImportJob, ImportPart
from must_jax.storage import image_files, set_writer
from must_jax.storage.commits import JOB_FILE, CommitDirectory, Lease
from must_jax.storage.image_files import ImageOptions
from must_jax.storage.label_sets import LabelCommit
from must_jax.storage.path import (
  Path,
  list_names,
  make_directory,
  publish_json,
  remove,
  remove_tree,
)
from must_jax.storage.sets import ImageSet

# A process takes three seconds to start, the time of 500 to 10,000 images.
IMAGES_PER_PROCESS = 2000

_LEASE_SECONDS = 600.0  # a process that is silent for so long has died
_SHOWN = 10  # rejected images on the screen; a file of the set has all


class TooManyRejected(ValueError):
  """More images were rejected than allowed; no image set was written."""


class _UselessParts(ValueError):
  """No image set can be made of what was read."""


def write(args: argparse.Namespace) -> None:
  """Imports what `args.plan` plans and prints a summary.

  Args:
    args: see `arguments.add_output_arguments`.

  Raises:
    ValueError: options, files or labels that do not fit.
    OSError: a disk is full, or a worker died; finished parts are kept.
    TooManyRejected: more images were rejected than `--max-rejected`; all
      parts are kept.
  """
  check_options(args)
  start = time.monotonic()
  plan = plan_of(args)
  if plan.shard_per_item and args.shards not in (None, len(plan.items)):
    raise ValueError(
      f"--shards is {args.shards}; the source has {len(plan.items)}, which stay"
      " as they are. Leave it out."
    )
  target = set_writer.NewSplit(
    args.out, args.name, args.split, plan.fields, args.licence, args.overwrite
  )
  cut = parts.cut(plan, args.shards, args.records_per_shard)
  digest = parts.digest_of(plan, cut)
  with _stage(target.directory, args.split, digest) as stage:
    job = ImportJob(stage, digest, plan.fields, plan.read, plan.shard_per_item)
    total = plan.num_images
    if total is None and not plan.shard_per_item:
      total = len(plan.items)
    _read(job, cut, total, args)
    commits = list(_finished(job, cut).values())
    if len(commits) < len(cut):
      raise ValueError(
        f"{len(cut) - len(commits)} of {len(cut)} parts are missing in"
        f" {stage}. With --runner all its workers must see --out; else run the"
        " same command again."
      )
    counts: collections.Counter[str] = collections.Counter()
    for commit in commits:
      counts.update(commit.counts)
    warnings = warnings_of(plan, commits, counts)
    image_set = _publish(target, job, commits, args.max_rejected, warnings)
  rejected = [entry for commit in commits for entry in commit.rejected]
  show_rejected(rejected)
  notes = [*plan.notes, *image_files.summarize(counts), *plan.summarize(counts)]
  for line in (*notes, *(f"warning: {text}" for text in warnings)):
    print(f"  {line}")
  print(
    f"{image_set.name}-{image_set.split}: {image_set.num_records} of"
    f" {sum(c.num_images for c in commits)} images in"
    f" {len(image_set.shards)} shards,"
    f" {sum(s.num_bytes for s in image_set.shards) / 1e6:.1f} MB,"
    f" {time.monotonic() - start:.1f} s: {args.out}"
  )


def plan_of(args: argparse.Namespace) -> Plan:
  """What to import, with the options of all importers of image files."""
  plan = args.plan(args).with_images(
    ImageOptions(
      image_files.check_code_range(args.code_range),
      args.labels_of_turned,
    )
  )
  plan = dataclasses.replace(plan, fields=names.clean_classes(plan.fields))
  return with_coarse_maps(plan, args.map_stride)


def check_options(args: argparse.Namespace) -> None:
  """Checks the options that all importers have.

  Raises:
    ValueError: one is out of range, or needs another.
  """
  for option in ("shards", "records_per_shard", "workers", "map_stride"):
    if getattr(args, option) is not None and getattr(args, option) < 1:
      raise ValueError(
        f"--{option.replace('_', '-')} is {getattr(args, option)}; expected 1"
        " or more."
      )
  if not 0 <= args.max_rejected <= 1:
    raise ValueError(
      f"--max-rejected is {args.max_rejected}; expected a fraction from 0 to 1."
    )
  image_files.check_code_range(args.code_range)
  if args.beam_options and not args.runner:
    raise ValueError(
      f"--beam-options is {args.beam_options!r} without --runner; expected"
      " both, or neither to read on this machine."
    )


@contextlib.contextmanager
def _stage(directory: Path, split: str, digest: str) -> Iterator[Path]:
  """The directory of unfinished parts; it goes when they are published.

  Its name tells imports apart, so that none ever meets files of another. That
  of an import that was broken off goes as soon as another one begins.

  Args:
    directory: of the image set.
    split: that is imported.
    digest: of the job.

  Raises:
    ValueError: another process imports this split right now.
  """
  prefix = f".{split}.import"
  stage = directory / f"{prefix}-{digest[:8]}"
  make_directory(directory)
  for name in list_names(directory) - {stage.name}:
    if name.startswith(prefix):
      with claim(directory / name, digest):
        print(f"{directory / name} is of another import; it is begun anew.")
        remove_tree(directory / name)
  with claim(stage, digest) as ours:
    with ours.beating():
      for name in list_names(stage):
        if name.startswith("."):  # of a process that died
          remove(stage / name)
      publish_json(stage / JOB_FILE, {"job": digest})
      useless = None
      try:
        yield stage
      except _UselessParts as error:
        useless = error
    # Nobody writes into it any more.
    remove_tree(stage)
  if useless:
    raise useless


def claim(stage: Path, digest: str = "") -> Lease:
  """Takes the lease of a stage: one process reads all parts, or hands them out.

  Args:
    stage: directory of what is unfinished.
    digest: of the job that it is for.

  Raises:
    ValueError: another process has it.
  """
  commits = CommitDirectory(stage, digest, ImportCommit)
  commits.prepare()
  if lease := commits.lease(JOB_FILE, _LEASE_SECONDS):
    return lease
  holder = commits.holder(JOB_FILE)
  if holder is None:  # given back this moment
    raise ValueError(f"{stage} was in use. Run the same command again.")
  silent = time.time() - holder["beat"]
  raise ValueError(
    f"{stage} is in use by another import (process {holder['pid']} on"
    f" {holder['host']}, last heard of {silent:.0f} s ago). Wait until it is"
    " done, or write to another directory or split; one that was killed counts"
    f" as gone after {_LEASE_SECONDS:.0f} s."
  )


def _finished(
  job: ImportJob, cut: Sequence[ImportPart]
) -> dict[int, ImportCommit]:
  """The commits of parts whose labels and files are what they were."""
  return {
    number: commit
    for number, commit in job.read_commits(cut).items()
    if commit.inputs == cut[number].inputs
  }


def _discard_useless(
  job: ImportJob, cut: Sequence[ImportPart], max_rejected: float
) -> dict[int, ImportCommit]:
  """Makes parts that have to be read again unfinished; returns the others."""
  commits = job.read_commits(cut)
  done = {n: c for n, c in commits.items() if c.inputs == cut[n].inputs}
  if changed := len(commits) - len(done):
    print(
      f"labels or files of {changed} of {len(cut)} parts have changed; they are"
      " read again."
    )
  num_allowed = max_rejected * _num_images(done.values())
  if _num_rejected(done.values()) > num_allowed:
    # The import failed for these, and runs again because they were mended,
    # perhaps by what no file tells: a right to read it, or a mounted disk.
    done = {n: c for n, c in done.items() if not c.rejected}
  if done and len(done) < len(cut):
    # Some may have their names already, of an import that was broken off then.
    there = list_names(job.stage)
    done = {n: c for n, c in done.items() if c.shard.file in there}
  for number in commits.keys() - done.keys():
    job.discard(cut[number])
  return done


def _read(
  job: ImportJob,
  cut: Sequence[ImportPart],
  total: int | None,
  args: argparse.Namespace,
) -> None:
  """Reads the parts that are not finished."""
  done = _discard_useless(job, cut, args.max_rejected)
  todo = [part for part in cut if part.number not in done]
  if done:
    print(
      f"{len(done)} of {len(cut)} parts are read already; delete {job.stage}"
      " to begin anew."
    )
  if not todo:
    return
  if args.runner:
    from must_jax.importers import beam

    beam.read(job, todo, args.runner, args.beam_options)
    return
  num_done = _num_images(done.values())
  with tqdm(
    total=total,
    initial=num_done,
    unit="image",
    disable=not sys.stderr.isatty(),
    leave=False,
  ) as bar:
    expected = None if total is None else total - num_done
    for num_images in _read_here(job, todo, args.workers, expected):
      bar.update(num_images)


def _read_here(
  job: ImportJob,
  todo: Sequence[ImportPart],
  workers: int,
  num_images: int | None,
) -> Iterator[int]:
  """Reads parts on this machine; gives the number of images of each."""
  if num_images is None:
    first, *todo = todo
    given = parts.write_part(job, first, workers)
    yield given
    num_images = given * len(todo)  # as good a guess as any
  processes = min(workers, len(todo), num_images // IMAGES_PER_PROCESS)
  if processes < 2:
    for part in todo:
      yield parts.write_part(job, part, workers)
    return
  # TensorFlow does not survive a fork.
  context = multiprocessing.get_context("spawn")
  alive, end = context.Pipe(duplex=False)
  with futures.ProcessPoolExecutor(
    processes, context, _live_until, (alive,)
  ) as pool:
    try:
      # Ctrl-C is for this process alone: others inherit the mask.
      mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
      running = [
        pool.submit(parts.write_part, job, part, workers // processes)
        for part in todo
      ]
      signal.pthread_sigmask(signal.SIG_SETMASK, mask)
      for done in futures.as_completed(running):
        yield done.result()
    except BrokenProcessPool:
      raise ChildProcessError(
        "A process that read images died; perhaps memory ran out. Finished"
        " parts are kept: run the same command again, with fewer --workers; 1"
        " shows what went wrong."
      ) from None
    except BaseException:
      end.close()
      raise


def _live_until(end: Connection) -> None:
  """Makes a process quiet, and end as soon as its parent does or closes."""

  def wait() -> None:
    end.poll(None)
    os._exit(1)

  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # greetings of TensorFlow
  os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # it would take all their memory
  threading.Thread(target=wait, daemon=True).start()


def warnings_of(
  plan: Plan,
  commits: Sequence[ImportCommit | LabelCommit],
  counts: Mapping[str, float],
) -> list[str]:
  """What looks wrong in all images and labels together."""
  sums: dict[str, Any] = {}
  for commit in commits:
    statistics.accumulate(sums, commit.statistics)
  return [
    *plan.warnings,
    *image_files.warn(counts),
    *plan.warn(counts),
    *fields.warnings(plan.fields, sums),
  ]


def _publish(
  target: set_writer.NewSplit,
  job: ImportJob,
  commits: Sequence[ImportCommit],
  max_rejected: float,
  warnings: Sequence[str],
) -> ImageSet:
  """Makes an image set of the finished parts."""
  rejected = [entry for commit in commits for entry in commit.rejected]
  num_rejected, num_images = _num_rejected(commits), _num_images(commits)
  shards = [commit.shard for commit in commits if commit.shard.num_records]
  if num_rejected > max_rejected * num_images:
    show_rejected(rejected)
    fraction = num_rejected / num_images
    allow = (
      f", or allow more with --max-rejected {np.ceil(1000 * fraction) / 1000:g}"
    )
    raise TooManyRejected(
      f"{num_rejected} of {num_images} images were rejected, whole or in part"
      f" ({fraction:.2%}); allowed are {max_rejected:.2%}. No image set was"
      " written, but what was read is kept. Mend the files and run the same"
      f" command{allow if shards else ''}."
    )
  key = parts.double_key(job, commits)
  if key is not None:
    raise _UselessParts(
      f"Key {key!r} comes twice; keys must tell the examples of a split apart."
    )
  try:
    return target.publish(job.stage, shards, rejected, warnings)
  except ValueError as error:
    if shards:
      raise
    show_rejected(rejected)
    raise _UselessParts(str(error)) from None


def _num_images(commits: Iterable[ImportCommit]) -> int:
  return sum(commit.num_images for commit in commits)


def _num_rejected(commits: Iterable[ImportCommit]) -> int:
  return len(set().union(*(commit.rejected_keys for commit in commits)))


def show_rejected(rejected: Sequence[Mapping[str, str]]) -> None:
  """Prints what was left out, some of it."""
  if not rejected:
    return
  print(f"{len(rejected)} rejected:", file=sys.stderr)
  for entry in sorted(rejected, key=lambda entry: entry["key"])[:_SHOWN]:
    print(f"  {entry['key']}: {entry['reason']}", file=sys.stderr)
  if len(rejected) > _SHOWN:
    print(f"  ... and {len(rejected) - _SHOWN} more", file=sys.stderr)
