#!/usr/bin/env bash
#SBATCH --job-name=toroid-worker
#SBATCH --array=0-17%9
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --output=toroid-worker-%A_%a.log
#SBATCH --open-mode=append
# tp 2 x pp 2 x dp 2 = 8 places: 9 nodes of one worker each at a time, 1 of them spare; 9 more tasks wait and take their places
: "${TOROID_COORDINATOR:?name the coordinator, HOST:PORT}"
: "${TOROID_CREDENTIALS:?name the folder with the certificate of workers}"
: "${TOROID_ROOTS:=$PWD}"            # folders that job files name, with colons between
: "${TOROID_DEVICES:=auto}"          # of each node: one worker a device, as in cuda:0,cuda:1
: "${TOROID:=toroid}"                # the program, and what starts it: a container's command may be here

# ---- from here on the same for all jobs ----
# One-node jobs that bring workers to a coordinator that runs elsewhere. No task is special, and tasks that wait are cold spares. Made by `toroid
# slurm array`; docs/slurm.md says what happens when nodes die, and how it was tried.
set -uo pipefail
: "${TOROID_HOLD_S:=600}"            # how long a task stays on a node where the worker cannot run, so that the node takes no further ones

roots=()
IFS=: read -ra named <<<"$TOROID_ROOTS"
for root in "${named[@]}"; do roots+=(--allow-root "$root"); done
node=${SLURMD_NODENAME:-$(hostname)}

# The worker gets SIGTERM before the time limit, by way of this shell: it leaves in good order and ends with exit code 0. It is a child, since
# what follows is for one that ends otherwise.
$TOROID worker --restart --devices "$TOROID_DEVICES" --host "$node" "${roots[@]}" --cache "${TMPDIR:-/tmp}/toroid-$SLURM_JOB_ID" </dev/null &
worker=$!
# Once: a second signal would end it at once.
trap 'kill -TERM $worker 2>/dev/null; trap "" TERM' TERM
# A signal interrupts `wait`; the code of a worker that has ended already is kept for it.
while kill -0 $worker 2>/dev/null; do wait $worker; done
wait $worker
code=$?
[ $code = 0 ] && exit 0

# It starts its worker again by itself, so an end with another code is the node's or the command line's fault. Within a minute such a node would
# take all tasks of the array.
echo "toroid: no worker can run on $node (exit code $code); this task keeps the node for $TOROID_HOLD_S s. If it is the node, leave it out of the" \
    "next array with --exclude=$node" >&2
trap - TERM
sleep "$TOROID_HOLD_S" &
wait $!
exit "$code"
