"""Reads the parts of an import on a cluster, with Apache Beam."""

import functools
import hashlib
import pickle
import shlex
from collections.abc import Sequence
from concurrent import futures

from must_jax.importers import parts
from must_jax.importers.parts import ImportJob, ImportPart
from must_jax.storage.path import publish, read_file


def read(
  job: ImportJob,
  todo: Sequence[ImportPart],
  runner: str,
  options: str,
) -> None:
  """Reads parts; returns when all are finished.

  Args:
    job: of the parts; every worker of the runner sees its stage.
    todo: the parts to read.
    runner: name of the runner.
    options: of the runner, as on a command line.

  Raises:
    ValueError: Apache Beam is not installed.
    ChildProcessError: there is no such runner, or the pipeline failed;
      finished parts are kept.
  """
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ModuleNotFoundError:
    raise ValueError(
      f"--runner {runner} needs Apache Beam: pip install 'must_jax[beam]'."
    ) from None
  try:
    pipeline = beam.Pipeline(runner, PipelineOptions(shlex.split(options)))
    # The description of a pipeline is too small for millions of items.
    with futures.ThreadPoolExecutor(16) as pool:
      saved = list(pool.map(lambda part: _save(job, part), todo))
    (
      pipeline
      | "Parts" >> beam.Create(saved)
      | "Spread" >> beam.Reshuffle()
      | "Read" >> beam.Map(functools.partial(_write_part, job))
    )
    pipeline.run().wait_until_finish()
  except Exception as error:  # runners raise of all kinds
    lines = str(error).strip().splitlines() or [repr(error)]
    reason = lines[-1]  # after a worker's traceback
    raise ChildProcessError(
      f"The pipeline of {runner} failed: {reason} Finished parts are kept: run"
      " the same command again."
    ) from None


def _save(job: ImportJob, part: ImportPart) -> tuple[str, str]:
  """Writes a part for `_write_part`; returns the file's name and digest."""
  name, data = job.file(part, ".part"), pickle.dumps(part)
  with publish(job.stage / name) as file:
    file.write(data)
  return name, _digest(data)


def _write_part(job: ImportJob, saved: tuple[str, str]) -> int:
  name, digest = saved
  data = read_file(job.stage / name)
  if _digest(data) != digest:  # unpickling runs code
    raise ValueError(f"{job.stage / name} was changed by others.")
  return parts.write_part(job, pickle.loads(data))


def _digest(data: bytes) -> str:
  return hashlib.blake2b(data, digest_size=16).hexdigest()
