# shellcheck shell=bash
# To be sourced by the batch scripts here: attend COMMAND... runs a job step,
# and puts the job back into the queue if the step saved itself (status 42).

PREEMPTED=42

# A trapped signal ends `wait` early; the child's status is still to be had.
await() {
  while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
  wait "$1"
}

# A job is SIGNALING for a moment after it was told to end, and in other states
# once it is cancelled.
is_running() {
  local state
  state=$(squeue --noheader --format=%T --jobs="$1")
  [[ $state == RUNNING || $state == SIGNALING ]]
}

attend() {
  local job=$SLURM_JOB_ID status=0
  # The bare number of an array's task may stand for the whole array.
  if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
    job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  fi
  # SIGTERM comes 120 s before the time limit (--signal=B:TERM@120), to this
  # shell alone. srun answers SIGTERM by killing its tasks; scancel passes it
  # on to them as it is. Of a job that is cancelled SLURM tells them itself.
  # shellcheck disable=SC2064 # of this job, whatever `job` is by then
  trap "is_running '$job' && scancel --signal=TERM '$job' || true" TERM
  "$@" &
  await $! || status=$?
  if ((status != PREEMPTED)); then
    return "$status"
  fi
  # Whoever cancels a job doesn't want it back: only a running one is requeued.
  if is_running "$job"; then
    echo "The run saved itself; job $job goes back into the queue."
    scontrol requeue "$job"
  fi
  return "$status"
}
