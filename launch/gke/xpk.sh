#!/usr/bin/env bash
# Trains on one TPU slice of a cluster that xpk made; train.yaml is for others.
#
#   CLUSTER=c NAME=student IMAGE=REGISTRY/must_jax:tpu \
#     CONFIG=configs/student.py:root=gs://B/must \
#     WORKDIR=gs://B/must/runs/student launch/gke/xpk.sh [FLAGS OF main.py]
#
# xpk starts a run again that ends with 42 or with 127 to 255. It counts all of
# these: hence the many restarts. DRY_RUN=1 prints the command.
set -euo pipefail

: "${CLUSTER:?is not set: the name of the cluster}"
: "${NAME:?is not set: of the workload}"
: "${IMAGE:?is not set: built with --build-arg EXTRA=tpu}"
: "${CONFIG:?is not set: the config to run, as configs/student.py}"
: "${WORKDIR:?is not set: a directory that outlives the pods, as gs://...}"
TPU_TYPE=${TPU_TYPE:-v5litepod-16}
MAX_RESTARTS=${MAX_RESTARTS:-50}

command=$(printf '%q ' python main.py "--config=$CONFIG" \
  "--workdir=$WORKDIR" "$@")
${DRY_RUN:+echo} xpk workload create "--cluster=$CLUSTER" "--workload=$NAME" \
  "--tpu-type=$TPU_TYPE" --num-slices=1 "--docker-image=$IMAGE" \
  "--max-restarts=$MAX_RESTARTS" --termination-grace-period-seconds=120 \
  "--command=$command"
