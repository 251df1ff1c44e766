#!/usr/bin/env bash
# Trains on one machine: one process with all its GPUs, TPU chips or CPU.
#
#   launch/one_machine.sh [--dry-run] train|train-tokenizer|sweep --config FILE --workdir DIR [--config.KEY=VALUE ...]
#
# Environment:
#   PLATFORM       gpu, tpu or cpu: what devices must be found, no other is fallen back to; required
#   DEVICES        cpu only: virtual devices of all processes together (default 1)
#   PROCESSES      cpu only: processes that find each other on 127.0.0.1, to try out several hosts (default 1)
#   PORT           of their meeting point (default 8476)
#   INFINITY_DATA  folder of prepared data (default ~/.cache/infinity_jax)
# Sets: --platform; on the CPU JAX_PLATFORMS and XLA_FLAGS; for several processes --coordinator, --processes, --process.
# Ctrl-C and SIGTERM go to every process, which saves first. The same line again goes on.
#
# Examples:
#   PLATFORM=gpu launch/one_machine.sh train --config configs/emoji.py --config.mesh.shape=fsdp=8 --workdir runs/emoji
#   PLATFORM=cpu DEVICES=8 PROCESSES=2 launch/one_machine.sh train --config configs/t2i.py:debug \
#       --config.train.batch_size=8 --config.mesh.shape=data=2,fsdp=4 --workdir /tmp/two_processes
set -euo pipefail
# shellcheck source=launch/command.sh
source "${BASH_SOURCE[0]%/*}/command.sh"
PLATFORM=${PLATFORM:-} DEVICES=${DEVICES:-1} PROCESSES=${PROCESSES:-1} PORT=${PORT:-8476}
need PLATFORM
[[ $PLATFORM =~ ^(gpu|tpu|cpu)$ ]] || fail "PLATFORM is '$PLATFORM'; it must be gpu, tpu or cpu"
whole_number DEVICES PROCESSES PORT

if [[ $PLATFORM != cpu ]]; then
    ((DEVICES == 1 && PROCESSES == 1)) || fail "DEVICES and PROCESSES are for PLATFORM=cpu only"
    process=(infinity-jax "${COMMAND[@]}" --platform "$PLATFORM")
    [[ $DRY_RUN ]] || exec "${process[@]}"
    quoted "${process[@]}" && exit
fi
((DEVICES % PROCESSES == 0)) || fail "DEVICES is $DEVICES; it must be a multiple of PROCESSES, $PROCESSES"
flags="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$((DEVICES / PROCESSES))"
process=(env JAX_PLATFORMS=cpu "XLA_FLAGS=$flags" infinity-jax "${COMMAND[@]}" --platform cpu)
if ((PROCESSES == 1)); then
    [[ $DRY_RUN ]] || exec "${process[@]}"
    quoted "${process[@]}" && exit
fi

set -m  # every process in a group of its own, so that Ctrl-C reaches it once, through the trap
processes=() stopped=
trap 'stopped=1; kill -TERM "${processes[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < PROCESSES; i++)); do
    one=("${process[@]}" --coordinator "127.0.0.1:$PORT" --processes "$PROCESSES" --process "$i")
    if [[ $DRY_RUN ]]; then
        quoted "${one[@]}"
    else
        "${one[@]}" &
        processes+=($!)
    fi
done
status=0
for i in "${processes[@]}"; do
    code=0
    wait "$i" || code=$?
    # The trap cuts a `wait` short: once more, for the exit code of the process itself.
    if [[ $stopped ]] && ((code > 128)); then code=0 && { wait "$i" || code=$?; }; fi
    ((code == 0)) || status=$code
done
exit "$status"
