"""What launchers say of a labelling worker."""

import pytest

from must_jax.train.launcher import find_worker


@pytest.mark.parametrize(
  "environ, index, count",
  [
    ({}, -1, 0),
    ({"MUST_JAX_WORKER_INDEX": "3", "MUST_JAX_WORKER_COUNT": "8"}, 3, 8),
    (
      {
        "SLURM_ARRAY_TASK_ID": "12",
        "SLURM_ARRAY_TASK_COUNT": "5",
        "SLURM_ARRAY_TASK_MIN": "10",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
      },
      2,
      5,
    ),
    (
      {
        "SLURM_ARRAY_TASK_ID": "6",
        "SLURM_ARRAY_TASK_COUNT": "4",
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_STEP": "2",
      },
      3,
      4,
    ),
    ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, 3, 4),
    ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, -1, 0),
    ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, 1, 2),
  ],
)
def test_a_worker_knows_its_number_if_anyone_says(environ, index, count):
  found = find_worker(environ)
  assert (found.process_id, found.num_processes) == (index, count)


@pytest.mark.parametrize(
  "index, count", [("3", ""), ("", "8"), ("x", "8"), ("8", "8")]
)
def test_numbers_that_make_no_sense_are_an_error(index, count):
  environ = {"MUST_JAX_WORKER_INDEX": index, "MUST_JAX_WORKER_COUNT": count}
  with pytest.raises(ValueError, match="MUST_JAX_WORKER_INDEX is"):
    find_worker(environ)
