#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster with JobSet installed: fills in launch/gke_jobset.yaml and applies it. After a
# preemption or a crash JobSet starts all pods again, and they go on from the newest complete checkpoint. What XPK does
# with the same image and command is in launch/README.md.
#
#   launch/gke.sh [--dry-run] train|train-tokenizer|sweep --config FILE --workdir /bucket/... [--config.KEY=VALUE ...]
#
# Environment:
#   NAME              of the JobSet; required. To start it anew: kubectl delete jobset NAME
#   IMAGE             container with infinity-jax[tpu], its working directory this checkout; required
#   BUCKET            Cloud Storage bucket that all pods see as /bucket (without gs://); required
#   TPU               label of the nodes' TPU, like tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice; required
#   TOPOLOGY          of one slice, like 16x16; required
#   CHIPS_PER_HOST    of a node (default 4)
#   SLICES            node pools of that topology, joined by the data centre's network (default 1); set
#                     --config.mesh.slices too
#   SPOT              1: on spot nodes (default empty)
#   SERVICE_ACCOUNT   of Kubernetes, which may write to the bucket (default default)
#   MAX_RESTARTS      of the whole set (default 20)
#   GRACE_SECONDS     between SIGTERM and SIGKILL, for saving; spot nodes give less (default 300)
#   INFINITY_DATA     folder of prepared data (default /bucket/data)
#   LIBTPU_INIT_ARGS  handed on (default empty)
# Sets: --coordinator auto, --processes (all pods), --platform tpu. kubectl's current context and namespace are used.
#
# Example:
#   NAME=infinity-2b IMAGE=us-docker.pkg.dev/PROJECT/REPOSITORY/infinity-jax BUCKET=my-bucket TPU=tpu-v5-lite-podslice \
#   TOPOLOGY=16x16 launch/gke.sh train --config configs/t2i.py:2b --config.mesh.shape=fsdp=256 --workdir /bucket/runs/2b
set -euo pipefail
folder=${BASH_SOURCE[0]%/*}
# shellcheck source=launch/command.sh
source "$folder/command.sh"
CHIPS_PER_HOST=${CHIPS_PER_HOST:-4} SLICES=${SLICES:-1} SPOT=${SPOT:-} SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}
MAX_RESTARTS=${MAX_RESTARTS:-20} GRACE_SECONDS=${GRACE_SECONDS:-300}
INFINITY_DATA=${INFINITY_DATA:-/bucket/data} LIBTPU_INIT_ARGS=${LIBTPU_INIT_ARGS:-}
need NAME IMAGE BUCKET TPU TOPOLOGY
whole_number CHIPS_PER_HOST SLICES MAX_RESTARTS GRACE_SECONDS
one_or_empty SPOT
# shellcheck disable=SC2153
[[ $NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || fail "NAME is '$NAME'; it must be up to 40 of a-z, 0-9 and -"
[[ $TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "TOPOLOGY is '$TOPOLOGY'; it must be like 16x16 or 4x4x8"
[[ $BUCKET != */* ]] || fail "BUCKET is '$BUCKET'; give the bare name, it is mounted as /bucket"
[[ $WORKDIR == /bucket/* ]] || fail "--workdir is '$WORKDIR'; all pods share only /bucket/..."
chips=$((${TOPOLOGY//x/*}))
((chips % CHIPS_PER_HOST == 0)) || fail "TOPOLOGY $TOPOLOGY is no multiple of CHIPS_PER_HOST=$CHIPS_PER_HOST chips"
HOSTS=$((chips / CHIPS_PER_HOST))

json() {  # WORDS as one JSON string each, with commas between
    local word text=
    for word; do
        word=${word//\\/\\\\}
        text+=${text:+, }\"${word//\"/\\\"}\"
    done
    echo "$text"
}

label=cloud.google.com/gke
declare -A values=(
    [ARGUMENTS]="[$(json "${COMMAND[@]}" --coordinator auto --processes "$((HOSTS * SLICES))" --platform tpu)]"
    [NODE_SELECTOR]="{$label-tpu-accelerator: $TPU, $label-tpu-topology: $TOPOLOGY${SPOT:+, $label-spot: \"true\"}}"
)
for name in NAME IMAGE BUCKET SERVICE_ACCOUNT INFINITY_DATA LIBTPU_INIT_ARGS; do values[$name]=$(json "${!name}"); done
for name in MAX_RESTARTS SLICES HOSTS GRACE_SECONDS CHIPS_PER_HOST; do values[$name]=${!name}; done
manifest=$(<"$folder/gke_jobset.yaml")
for name in "${!values[@]}"; do manifest=${manifest//"\${$name}"/"${values[$name]}"}; done

if [[ $DRY_RUN ]]; then
    echo "# kubectl apply --filename=- reads:"
    echo "$manifest"
else
    kubectl apply --filename=- <<<"$manifest"
    echo "its log: kubectl logs --follow job/$NAME-slice-0"
fi
