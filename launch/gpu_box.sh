#!/usr/bin/env bash
# One machine with GPUs: trains with all of them, or labels with a worker each.
#
#   CONFIG=configs/student.py:images=data/pile \
#     WORKDIR=runs/student launch/gpu_box.sh train [FLAGS OF main.py]
#   CONFIG=configs/label.py:kind=detection,images=data/pile \
#     WORKDIR=labels/pile/detection launch/gpu_box.sh label
#
# What ends with status 42 has saved itself and is started again. SIGTERM and
# Ctrl-C let the runs save themselves, and then nothing is started again.
set -euo pipefail

# Jobs of a script's background ignore Ctrl-C, and bash cannot trap it then.
if [[ $(trap -p INT) == "trap -- '' SIGINT" ]]; then
  if env --default-signal=INT true 2>/dev/null; then
    exec env --default-signal=INT "$BASH" "$0" "$@"
  fi
  echo "Ctrl-C (SIGINT) is ignored here; SIGTERM ends this in good order."
fi

: "${CONFIG:?is not set: the config to run, as configs/student.py}"
: "${WORKDIR:?is not set: the directory of the run}"
PYTHON=${PYTHON:-python}
LOGS=${LOGS:-logs/$(basename "$WORKDIR")}
GPUS=${GPUS:-} # for labelling, as "0 1"; all by default
# Of several such machines that label one set: which this is, from 0.
BOX=${BOX:-0} BOXES=${BOXES:-1}
RESTART_SECONDS=${RESTART_SECONDS:-10} # a pause before each new start

PREEMPTED=42
mode=${1:?is missing: train or label}
shift

# A trapped signal ends `wait` early; the child's status is still to be had.
await() {
  while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
  wait "$1"
}

# Runs its arguments until they end for good; prints to LOGS/NAME.log.
attend() {
  local name=$1 child='' status=$PREEMPTED stopping=''
  local log=$LOGS/$name.log
  shift
  # Told to the run, too: only one that is at work hears Ctrl-C by itself.
  trap 'stopping=1; kill -TERM "$child" 2>/dev/null || true' TERM INT
  while [[ $status == "$PREEMPTED" && -z $stopping ]]; do
    status=0
    "$@" >>"$log" 2>&1 &
    child=$!
    await "$child" || status=$?
    echo "$name ended with status $status, see $log"
    [[ $status != "$PREEMPTED" ]] || sleep "$RESTART_SECONDS"
  done
  return "$status"
}

run=("$PYTHON" main.py "--config=$CONFIG" "--workdir=$WORKDIR")
mkdir -p "$LOGS"
case $mode in
  train) attend train "${run[@]}" "$@" ;;
  label)
    [[ -n $GPUS ]] || GPUS=$(nvidia-smi --query-gpu=index --format=csv,noheader)
    read -ra gpus <<<"${GPUS//$'\n'/ }"
    # Each worker would start as many decoding threads as there are cores.
    threads=$(($(nproc) / ${#gpus[@]}))
    run+=("--config.data.num_threads=$((threads > 0 ? threads : 1))")
    workers=()
    # Workers begin at shards of their own if they know how many they are.
    export MUST_JAX_WORKER_COUNT=$((BOXES * ${#gpus[@]}))
    for gpu in "${gpus[@]}"; do
      export MUST_JAX_WORKER_INDEX=$((BOX * ${#gpus[@]} + ${#workers[@]}))
      CUDA_VISIBLE_DEVICES=$gpu attend "gpu-$gpu" "${run[@]}" "$@" &
      workers+=($!)
    done
    trap 'kill -TERM "${workers[@]}" 2>/dev/null || true' TERM INT
    # Workers are independent: the others go on where one fails.
    result=0
    for worker in "${workers[@]}"; do
      await "$worker" || result=$?
    done
    exit "$result"
    ;;
  *)
    echo "$mode is no mode; expected train or label" >&2
    exit 2
    ;;
esac
