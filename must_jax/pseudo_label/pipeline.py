"""`must-jax label --runner`: a labelling job as a pipeline of Apache Beam.

For those who have Dataflow, Flink or Spark. An element is a shard; a worker
loads the teacher once, labels shards whole and commits them, as the workers of
`job` do, with the same bytes. The engine spreads, repeats and scales; leases
are not needed.
"""

import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.shared import Shared

from must_jax import config as config_lib
from must_jax.pseudo_label import job as job_lib
from must_jax.pseudo_label import worker
from must_jax.storage import label_sets
from must_jax.storage.path import Path


def run(
  config: config_lib.ConfigDict, workdir: str, runner: str, options: list[str]
) -> dict[str, Any]:
  """Labels an image set; returns when all of it is done.

  Args:
    config: a valid one of the stage "label".
    workdir: the label set, unless `config.label.output` names another place.
      All workers see it, the images and the teacher.
    runner: name of the runner.
    options: of the runner, as words of a command line.

  Returns:
    The manifest.

  Raises:
    ValueError: the output belongs to another job.
    ChildProcessError: the pipeline failed; finished shards are kept.
  """
  labelling = worker.prepare(config, workdir)
  job = labelling.job
  directory, static, _ = label_sets.claim_directory(
    Path(job.output), job.describe()
  )
  files = [shard.file for shard in job.image_set.shards]
  done = directory.committed(files)
  todo = [i for i, file in enumerate(files) if file not in done]
  if todo:
    text = config_lib.to_json(config)
    try:
      pipeline = beam.Pipeline(runner, PipelineOptions(options))
      (
        pipeline
        | "Shards" >> beam.Create(todo)
        | "Spread" >> beam.Reshuffle()
        | "Label" >> beam.ParDo(_LabelShards(text, workdir))
      )
      pipeline.run().wait_until_finish()
    except Exception as error:  # runners raise of all kinds
      lines = str(error).strip().splitlines() or [repr(error)]
      reason = lines[-1]  # after a traceback
      raise ChildProcessError(
        f"The pipeline of {runner} failed: {reason} Finished shards are kept:"
        " run the same command again."
      ) from None
  while (manifest := job_lib.finish(job, directory, static)) is None:
    time.sleep(1.0)  # workers without Beam are at it
  return manifest


class _LabelShards(beam.DoFn):
  """Labels shards by their numbers."""

  def __init__(self, config: str, workdir: str):
    """Pickled to the workers.

    Args:
      config: as JSON.
      workdir: of the label set.
    """
    self._config, self._workdir = config, workdir
    self._shared = Shared()  # by the threads of a worker's process

  def setup(self) -> None:
    """Loads the teacher, unless another thread of the process has it."""
    self._writer = self._shared.acquire(
      lambda: _Writer(self._config, self._workdir)
    )

  def process(self, index: int) -> Iterator[int]:
    """Labels a shard, unless it is there."""
    self._writer.label(index)
    yield index


class _Writer:
  """Labels shards by the teacher of a config."""

  def __init__(self, config: str, workdir: str):
    labelling = worker.prepare(config_lib.from_json(config), workdir)
    job = labelling.job
    self._files = [shard.file for shard in job.image_set.shards]
    # Checks that this worker's teacher is the job's.
    self._directory, _, _ = label_sets.claim_directory(
      Path(job.output), job.describe()
    )
    labeller = labelling.labeller().__enter__()  # until the process ends
    self._writer = job_lib.ShardWriter(job, labeller, self._directory)

  def label(self, index: int) -> None:
    """Labels a shard, unless it is there: engines repeat."""
    if not self._directory.is_committed(self._files[index]):
      self._writer.label(index)
