#!/usr/bin/env bash
# Trains on GPUs under Slurm, one process per GPU: what JAX's own detection of Slurm expects. Submits itself; in the
# job, which starts where it was submitted, srun starts the processes. Before the time limit and at a preemption they
# get SIGTERM, save and leave; the job is then put back into the queue and goes on from the newest complete checkpoint.
#
#   launch/slurm.sh [--dry-run] train|train-tokenizer|sweep --config FILE --workdir DIR [--config.KEY=VALUE ...]
#
# As a job array (SBATCH_ARRAY_INX=0-14%4) each task of a sweep runs the cell of its number.
#
# Environment:
#   NODES          machines; required
#   GPUS           on each of them; required. Take whole machines: JAX counts the GPUs of a machine from 0
#   CPUS           cores for each process (default 8)
#   SBATCH_*       sbatch's own: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, SBATCH_SIGNAL (TERM@120) ...
#   INFINITY_DATA  folder of prepared data that all machines see (default ~/.cache/infinity_jax)
# Sets: --coordinator auto, --processes NODES*GPUS, --platform gpu. infinity-jax must be on the PATH of all machines,
# the workdir must be shared. Writes infinity-jax-JOB-ATTEMPT.log. `scancel JOB` saves if Slurm's KillWait is enough.
#
# Example:
#   SBATCH_PARTITION=h100 SBATCH_TIMELIMIT=1-0 NODES=4 GPUS=8 launch/slurm.sh train --config configs/t2i.py:2b \
#       --config.mesh.shape=fsdp=32 --workdir /shared/runs/2b
#SBATCH --job-name=infinity-jax
#SBATCH --output=infinity-jax-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

# No --gpus-per-task: every process must see all GPUs of its machine, it takes the one of its local number.
start=(srun --kill-on-bad-exit=1 --label)
if [[ ${SLURM_JOB_ID:-} && ${1:-} != --* ]]; then
    log=infinity-jax-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}.log
    cell=()
    if [[ $1 == sweep && ${SLURM_ARRAY_TASK_ID:-} ]]; then cell=(--cell "$SLURM_ARRAY_TASK_ID"); fi
    "${start[@]}" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --output="$log" \
        infinity-jax "$@" "${cell[@]}" --coordinator auto --processes "$SLURM_NTASKS" --platform gpu
    # Both a finished and a stopped run leave with 0; only the stopped one says so.
    if grep -q "stopped at step" "$log"; then
        echo "stopped before the end, see $log: back into the queue"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit 0
fi

# shellcheck source=launch/command.sh
source "${BASH_SOURCE[0]%/*}/command.sh"
NODES=${NODES:-} GPUS=${GPUS:-} CPUS=${CPUS:-8}
need NODES GPUS
whole_number NODES GPUS CPUS
processes=$((NODES * GPUS))
if [[ $DRY_RUN ]]; then echo "# submitted:"; fi
run sbatch --nodes="$NODES" --ntasks="$processes" --ntasks-per-node="$GPUS" --gpus-per-node="$GPUS" \
    --cpus-per-task="$CPUS" "$0" "${COMMAND[@]}"
if [[ $DRY_RUN ]]; then
    echo "# in the job:"
    run "${start[@]}" --cpus-per-task="$CPUS" --output=infinity-jax-JOB-ATTEMPT.log \
        infinity-jax "${COMMAND[@]}" --coordinator auto --processes "$processes" --platform gpu
fi
