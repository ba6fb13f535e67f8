#!/usr/bin/env bash
# Runs main.py on all workers of a Cloud TPU slice, until the run is done.
#
#   NAME=student ZONE=us-west4-a ACCELERATOR=v5litepod-16 \
#     CONFIG=configs/student.py:root=gs://B/must \
#     WORKDIR=gs://B/must/runs/student launch/tpu_vm.sh [FLAGS OF main.py]
#
# It waits for the slice, copies the last commit there, starts the run and looks
# at it every POLL_SECONDS. A run that saved itself (status 42) is started
# again; a slice that was preempted is asked for again; any other failure ends
# it. The run lives on the slice, not in this script: stop the script whenever
# you like, and the same command finds the run again. DRY_RUN=1 prints the
# commands and runs nothing. The project is that of `gcloud config`.
set -euo pipefail

: "${NAME:?is not set: of the queued resource and its TPU, as student}"
: "${ZONE:?is not set: where the TPUs are, as us-west4-a}"
: "${CONFIG:?is not set: the config to run, as configs/student.py}"
: "${WORKDIR:?is not set: a directory that outlives the slice, as gs://...}"
ACCELERATOR=${ACCELERATOR:-v5litepod-16}
# v5e; v2-alpha-tpuv5 for v5p, v2-alpha-tpuv6e for v6e
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
SPOT=${SPOT-1}     # SPOT= asks for a slice that isn't preempted, at full price
DELETE=${DELETE:-} # 1: give the slice back once the run has ended
# As whom the slice reads and writes buckets; by default as Compute Engine's
# service account.
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-}
# Of several slices that label one set: which this is, from 0. Each has a NAME
# and a script of its own.
SLICE=${SLICE:-} SLICES=${SLICES:-}
LOGS=${LOGS:-logs/$NAME}
POLL_SECONDS=${POLL_SECONDS:-60}
DRY_RUN=${DRY_RUN:-}

PREEMPTED=42

run() {
  if [[ -n $DRY_RUN ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpus() { run gcloud compute tpus "$1" "$2" "${@:3}" "--zone=$ZONE" --quiet; }

# Runs a shell command on the workers that --worker= names.
remote() { tpus tpu-vm ssh "$NAME" "--worker=$1" "--command=$2"; }

# Of the queued resource; nothing if there is none. Unlike `describe`, `list`
# fails only where the answer is not known.
state() {
  tpus queued-resources list "--filter=name~/$NAME\$" \
    "--format=value(state.state)"
}

create() {
  tpus queued-resources create "$NAME" "--node-id=$NAME" \
    "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME" \
    ${SPOT:+--spot} ${SERVICE_ACCOUNT:+"--service-account=$SERVICE_ACCOUNT"}
}

# --force: with the slice it holds.
delete() { tpus queued-resources delete "$NAME" --force; }

# Returns when the slice is there.
obtain() {
  local now
  while true; do
    if now=$(state); then
      case $now in
        ACTIVE) return ;;
        "") create ;;
        SUSPENDED) # preempted: such a slice never comes back
          echo "The slice is gone; asking for another."
          delete
          continue
          ;;
        FAILED)
          echo "The request for $ACCELERATOR in $ZONE failed:" >&2
          tpus queued-resources describe "$NAME" >&2
          exit 1
          ;;
        *) echo "The slice is $now." ;;
      esac
    fi
    sleep "$POLL_SECONDS"
  done
}

# Copies the last commit and installs it. TPU VMs may come with Python 3.10,
# which is too old; uv brings the one that constraints.txt is tested with.
prepare() {
  local archive=${TMPDIR:-/tmp}/must_jax-$NAME.tar.gz
  run git -C "$(dirname "$0")/.." archive --format=tar.gz \
    "--output=$archive" HEAD
  tpus tpu-vm scp "$archive" "$NAME:must_jax.tar.gz" --worker=all
  remote all "set -e; rm -rf must_jax; mkdir must_jax; cd must_jax
    tar xzf ../must_jax.tar.gz
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --python 3.11
    python3 -m uv pip install --quiet -c constraints.txt '.[tpu]'"
}

# Starts the run in the background of all workers, in a process group of its
# own, so that neither a lost connection nor the end of this script ends it.
# Its shell outlives SIGTERM, to write down the status.
start() {
  local command
  command=$(printf '%q ' \
    ${SLICES:+env "MUST_JAX_WORKER_INDEX=$SLICE"} \
    ${SLICES:+"MUST_JAX_WORKER_COUNT=$SLICES"} \
    .venv/bin/python main.py "--config=$CONFIG" "--workdir=$WORKDIR" "$@")
  command="trap : TERM; $command; echo \$? >status.new; mv status.new status"
  remote all "cd must_jax; rm -f status
    setsid nohup bash -c ${command@Q} </dev/null >>run.log 2>&1 &
    echo \$! >pid"
}

# Ends the run everywhere; what doesn't save itself within a minute is killed.
stop() {
  # shellcheck disable=SC2016 # the workers expand it
  remote all 'pid=$(cat must_jax/pid) && kill -TERM -- "-$pid" || exit 0
    timeout 60 tail --pid="$pid" -f /dev/null || kill -KILL -- "-$pid"'
}

# One word a worker: the status its run ended with, or how the run is. After a
# reboot another process may have its number, hence a look at its command.
look() {
  # shellcheck disable=SC2016 # the workers expand it
  remote all 'if [ -f must_jax/status ]; then now=$(cat must_jax/status)
    elif [ ! -f must_jax/pid ]; then now=none
    elif grep -qsa main.py "/proc/$(cat must_jax/pid)/cmdline"; then now=running
    else now=lost; fi; echo "must_jax $now"' | sed -n 's/^must_jax //p'
}

# Copies the log of every worker here.
fetch() {
  local worker
  mkdir -p "$LOGS"
  for ((worker = 0; worker < $1; worker++)); do
    remote "$worker" "cat must_jax/run.log" >"$LOGS/worker-$worker.log" || true
  done
  echo "The logs of $1 workers are in $LOGS."
}

finish() {
  if [[ -n $DELETE ]]; then
    delete
  else
    echo "The slice is still there, and is billed. To give it back:"
    DRY_RUN=1 delete
  fi
  exit "$1"
}

if [[ -n $DRY_RUN ]]; then
  create
  prepare
  start "$@"
  finish 0
fi

known=''   # whether this script has seen or started the run
suspect='' # a status, the last time, that is neither 0 nor 42
while true; do
  obtain
  # Where a worker doesn't answer, the slice may be going: look again.
  if ! found=$(look) || [[ -z $found ]]; then
    sleep "$POLL_SECONDS"
    continue
  fi
  workers=$(wc -l <<<"$found")
  running=$(grep -xc running <<<"$found") || true
  failed=$(grep -vxE "0|$PREEMPTED|running|lost|none" <<<"$found" | head -1) ||
    true
  if grep -qx none <<<"$found" || [[ -z $known && $running == 0 ]]; then
    [[ $running == 0 ]] || stop
    prepare
    start "$@"
  elif grep -qx lost <<<"$found"; then
    # A worker was rebooted, which ends the others with any status.
    echo "A worker lost its run; starting again."
    stop
    start "$@"
  elif [[ -n $failed && -z $suspect ]]; then
    # A machine that is going takes the others down before it is gone itself.
    suspect=$failed
    sleep "$POLL_SECONDS"
    continue
  elif [[ -n $failed ]]; then
    stop
    fetch "$workers"
    echo "The run failed with status $failed." >&2
    finish "$failed"
  elif [[ $running == 0 ]]; then
    fetch "$workers"
    if ! grep -qx "$PREEMPTED" <<<"$found"; then
      finish 0
    fi
    echo "The run saved itself; starting again."
    start "$@"
  fi
  known=1 suspect=''
  sleep "$POLL_SECONDS"
done
