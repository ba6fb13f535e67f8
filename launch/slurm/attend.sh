# shellcheck shell=bash
# To be sourced by the batch scripts here: attend COMMAND... runs a job step,
# and puts the job back into the queue if the step saved itself (status 42).

PREEMPTED=42

# A trapped signal ends `wait` early; the child's status is still to be had.
await() {
  while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
  wait "$1"
}

attend() {
  local job=$SLURM_JOB_ID status=0
  # The bare number of an array's task may stand for the whole array.
  if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
    job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  fi
  # SIGTERM comes 120 s before the time limit (--signal=B:TERM@120), to this
  # shell alone. srun answers SIGTERM by killing its tasks; scancel passes it
  # on to them as it is.
  # shellcheck disable=SC2064 # of this job, whatever `job` is by then
  trap "scancel --signal=TERM '$job'" TERM
  "$@" &
  await $! || status=$?
  if ((status != PREEMPTED)); then
    return "$status"
  fi
  # Whoever cancels a job doesn't want it back: only a running one is requeued.
  if [[ $(squeue --noheader --format=%T --jobs="$job") == RUNNING ]]; then
    echo "The run saved itself; job $job goes back into the queue."
    scontrol requeue "$job"
  fi
  return "$status"
}
