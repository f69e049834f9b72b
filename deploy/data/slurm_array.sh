#!/usr/bin/env bash
#SBATCH --job-name=toroid-data
#SBATCH --array=0-15
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=3G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=toroid-data-%A_%a.log
#SBATCH --open-mode=append
# Workers that share the tasks of a plan:
#
#     toroid data plan pipeline.toml --shards 16 --to /shared/plan.json
#     PLAN=/shared/plan.json sbatch deploy/data/slurm_array.sh
#
# Worker k of n does the tasks k, k + n, k + 2n, ... in their order, each when those before it are marked. A worker that dies is requeued
# and passes over what is done. With another --array the number of workers follows.
set -euo pipefail
: "${PLAN:?name the plan, on a folder that all nodes have}"
: "${TOROID_DATA:=toroid-data}"
: "${SLURM_ARRAY_TASK_ID:?start this with sbatch}"

exec "$TOROID_DATA" task "$PLAN" --worker "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))" --workers "$SLURM_ARRAY_TASK_COUNT" \
    --threads "${SLURM_CPUS_PER_TASK:-1}" --memory "${TOROID_MEMORY:-2G}" --scratch "${TMPDIR:-/tmp}"
