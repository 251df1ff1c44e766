#!/usr/bin/env bash
# Trains on a Cloud TPU pod of TPU VMs and stays with it: requests a queued resource, waits until it is ACTIVE, installs
# the last commit of this checkout on all VMs, starts the command there as a systemd unit, which outlives the ssh, and
# looks every minute. After a preemption it requests anew; after a reboot or a crash it starts the same command again,
# which goes on from the newest complete checkpoint. Ctrl-C ends the watching only; the same line takes it up again.
#
#   launch/tpu_vm.sh [--dry-run] train|train-tokenizer|sweep --config FILE --workdir DIR [--config.KEY=VALUE ...]
#
# Environment:
#   TPU_NAME          of the queued resource and its nodes; required
#   ZONE              required, like us-west4-a; the project is gcloud's (CLOUDSDK_CORE_PROJECT)
#   ACCELERATOR_TYPE  of one slice, like v5litepod-256, v5p-128, v6e-64; required (TPU7x: launch/gke.sh)
#   HOSTS             TPU VMs of all slices together, mostly chips / 4; required, a start with others fails
#   SLICES            slices joined by the data centre's network (default 1); set --config.mesh.slices too
#   SPOT              1: cheap and preemptible (default empty)
#   CREATE_FLAGS      further words for `queued-resources create`, like --reserved (default empty)
#   RUNTIME_VERSION   of the VMs' software (default by ACCELERATOR_TYPE)
#   SETUP             command for every VM before each start; mount the shared folders here (default true)
#   INFINITY_DATA     folder of prepared data, as the VMs see it; required. --workdir must be shared by them as well
#   PYTHON            version that is installed for the run (default 3.11)
#   LIBTPU_INIT_ARGS  handed on (default empty)
# Sets: --coordinator auto, --processes HOSTS, --platform tpu.
#
# Example:
#   TPU_NAME=infinity ZONE=us-west4-a ACCELERATOR_TYPE=v5litepod-256 HOSTS=64 SPOT=1 INFINITY_DATA=/mnt/share/data \
#   SETUP="sudo mkdir -p /mnt/share && { mountpoint -q /mnt/share || sudo mount -t nfs 10.0.0.2:/share /mnt/share; }" \
#       launch/tpu_vm.sh train --config configs/t2i.py:2b --config.mesh.shape=fsdp=256 --workdir /mnt/share/runs/2b
set -euo pipefail
folder=${BASH_SOURCE[0]%/*}
# shellcheck source=launch/command.sh
source "$folder/command.sh"
SLICES=${SLICES:-1} SPOT=${SPOT:-} RUNTIME_VERSION=${RUNTIME_VERSION:-}
need TPU_NAME ZONE ACCELERATOR_TYPE HOSTS INFINITY_DATA
whole_number HOSTS SLICES
one_or_empty SPOT
[[ $RUNTIME_VERSION ]] || case $ACCELERATOR_TYPE in
    v5litepod-*) RUNTIME_VERSION="v2-alpha-tpuv5-lite" ;;
    v5p-*) RUNTIME_VERSION="v2-alpha-tpuv5" ;;
    v6e-*) RUNTIME_VERSION="v2-alpha-tpuv6e" ;;
    v[234]-*) RUNTIME_VERSION="tpu-ubuntu2204-base" ;;
    *) fail "no RUNTIME_VERSION is known for ACCELERATOR_TYPE '$ACCELERATOR_TYPE'; set it" ;;
esac

nodes=(--node-id="$TPU_NAME")
((SLICES == 1)) || nodes=(--node-count="$SLICES" --node-prefix="$TPU_NAME")
read -ra flags <<<"${SPOT:+--spot} ${CREATE_FLAGS:-} --accelerator-type=$ACCELERATOR_TYPE"

tpu() { run gcloud compute tpus queued-resources "$@" --zone="$ZONE" --quiet; }
request() { tpu create "$TPU_NAME" "${nodes[@]}" "${flags[@]}" --runtime-version="$RUNTIME_VERSION"; }
state() { tpu describe "$TPU_NAME" "--format=value(state.state)"; }
on_all() { tpu ssh "$TPU_NAME" --node=all --worker=all --command="$1"; }
on_first() { tpu ssh "$TPU_NAME" --node=0 --worker=0 --command="$1"; }
substate() { on_first 'systemctl show --property=SubState --value infinity_jax'; }
# shellcheck disable=SC2016  # $(...) and $HOME are for the VM's shell
id='$(systemctl show --property=InvocationID --value infinity_jax)'
last_lines() { on_first 'sudo journalctl --no-pager --lines=50 _SYSTEMD_INVOCATION_ID='"$id"; }
# shellcheck disable=SC2016
install_and_start() {
    local install="${SETUP:-true} && rm -rf infinity_jax && mkdir infinity_jax && cd infinity_jax"
    install+=' && tar -xzf ../infinity_jax.tar.gz && python3 -m pip install --quiet --user uv'
    install+=" && ~/.local/bin/uv venv --seed --python ${PYTHON:-3.11} .venv && .venv/bin/pip install --quiet '.[tpu]'"
    # KillMode: SIGTERM only to the process that saves. Restart: one host's crash ends all, then all start again.
    local unit='sudo systemd-run --unit=infinity_jax --uid=$(id -u) --working-directory=$HOME/infinity_jax'
    unit+=' --remain-after-exit --property=KillMode=mixed --property=TimeoutStopSec=300 --property=Restart=on-failure'
    unit+=' --property=RestartSec=30 --property=StartLimitIntervalSec=3600 --property=StartLimitBurst=10'
    unit+=' --property=LimitMEMLOCK=infinity '  # the TPU's driver pins memory; a service may pin next to nothing
    unit+=$(quoted --setenv=INFINITY_DATA="$INFINITY_DATA" --setenv=LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS:-}")
    unit+=' $HOME/infinity_jax/.venv/bin/infinity-jax '
    unit+=$(quoted "${COMMAND[@]}" --coordinator auto --processes "$HOSTS" --platform tpu)
    on_all 'for v in stop reset-failed; do sudo systemctl $v infinity_jax; done; sudo rm -f /tmp/libtpu_lockfile' &&
        run git -C "$folder/.." archive --format=tar.gz --output=/tmp/infinity_jax.tar.gz HEAD &&
        tpu scp /tmp/infinity_jax.tar.gz "$TPU_NAME:" --node=all --worker=all && on_all "$install" && on_all "$unit"
}

if [[ $DRY_RUN ]]; then
    request
    echo "# every 60 s until ACTIVE; when SUSPENDED, deleted and requested:" && state && tpu delete "$TPU_NAME" --force
    echo "# once it is ACTIVE:" && install_and_start
    echo "# every 60 s; a run that was stopped before its end is started again:" && substate && last_lines
    exit
fi
start() { install_and_start || [[ $(state) != ACTIVE ]] || exit 1; }  # preempted meanwhile: wait for the next
state >/dev/null 2>&1 || request
while :; do
    state=$(state || echo unknown) unit=
    [[ $state != ACTIVE ]] || unit=$(substate | tail -n 1 || true)
    echo "$(date +%FT%T) $TPU_NAME $state ${unit:+run: $unit}"
    case $state:$unit in
        SUSPENDED:) tpu delete "$TPU_NAME" --force && request ;;
        FAILED:) tpu describe "$TPU_NAME" && exit 1 ;;
        ACTIVE:dead) start ;;
        ACTIVE:failed) last_lines && exit 1 ;;
        ACTIVE:exited)  # with code 0: at its end, or after a SIGTERM
            last=$(last_lines)
            [[ $last == *"stopped at step"* ]] || { echo "$last" && exit 0; }
            start ;;
    esac
    sleep 60
done
