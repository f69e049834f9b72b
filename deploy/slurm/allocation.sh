#!/usr/bin/env bash
#SBATCH --job-name=toroid
#SBATCH --nodes=9
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --output=toroid-%j.log
#SBATCH --open-mode=append
# tp 2 x pp 2 x dp 2 = 8 places on 9 nodes of one worker each, 1 of them spare
: "${TOROID_JOB:=job.toml}"          # the job file
: "${TOROID_DIR:=$PWD/toroid-run}"   # what is kept, on a file system that all nodes share; the next allocation goes on from it
: "${TOROID_ROOTS:=}"                # further folders that the job file names, with colons between
: "${TOROID_DEVICES:=auto}"          # of each node: one worker a device, as in cuda:0,cuda:1
: "${TOROID:=toroid}"                # the program, and what starts it: a container's command may be here

# ---- from here on the same for all jobs ----
# One allocation with everything in it: this script runs a coordinator on the first node and one step of workers on each. Made by `toroid
# slurm allocation`; docs/slurm.md says what happens when nodes die, and how it was tried.
set -uo pipefail
umask 077
say() { echo "$(date -u +%FT%TZ) toroid: $*"; }
fail() { say "$*" >&2; exit 1; }

restart=${SLURM_RESTART_COUNT:-0}
mkdir -p "$TOROID_DIR/logs" || fail "cannot make $TOROID_DIR; name a folder that all nodes share with TOROID_DIR"
say "job $SLURM_JOB_ID, restart $restart, on $SLURM_JOB_NODELIST; everything is kept in $TOROID_DIR"

# Certificates live as long as the allocation: the next one makes its own.
export TOROID_CERTS=$TOROID_DIR/certs
rm -rf "$TOROID_CERTS" "$TOROID_DIR/coordinator"
# An allocation before this one left its port here, which would be read before the new coordinator has said its own.
rm -f "$TOROID_DIR/logs/coordinator.out"
{ $TOROID certs init --cluster "slurm-$SLURM_JOB_ID" &&
    $TOROID certs issue coordinator --role coordinator &&
    $TOROID certs issue pool --role worker &&
    $TOROID certs issue user --role operate; } >"$TOROID_DIR/logs/certs.log" 2>&1 ||
    fail "cannot make certificates, see $TOROID_DIR/logs/certs.log"

roots=(--allow-root "$TOROID_DIR")
IFS=: read -ra named <<<"$TOROID_ROOTS"
for root in "${named[@]}"; do roots+=(--allow-root "$root"); done

# The address that other nodes reach: not by the name of this host, which may stand for its loopback.
address=${TOROID_ADDRESS:-$(hostname -I | cut -d' ' -f1)}
[ -n "$address" ] || fail "this node has no address but the loopback; name one with TOROID_ADDRESS"
[[ $address == *:* ]] && address="[$address]"

# Started again on the same port whenever it dies; ends for good once it was asked to.
coordinate() {
    local port=0
    while :; do
        # Not this script's own child, or SIGTERM to its process group would reach it before the workers have left.
        setsid $TOROID coordinator --listen "$address:$port" --dir "$TOROID_DIR/store" --credentials "$TOROID_CERTS/coordinator" \
            "${roots[@]}" >"$TOROID_DIR/logs/coordinator.out" 2>>"$TOROID_DIR/logs/coordinator.log" &
        echo $! >"$TOROID_DIR/logs/coordinator.pid"
        while [ $port = 0 ]; do
            port=$(sed -n 's/.*listens on .*:\([0-9]*\)$/\1/p' "$TOROID_DIR/logs/coordinator.out" 2>/dev/null)
            : "${port:=0}"
            kill -0 $! 2>/dev/null || break
            sleep 0.1
        done
        # It did not start, and would not the next time.
        [ $port = 0 ] && return 1
        echo "$address:$port" >"$TOROID_DIR/coordinator.new" && mv "$TOROID_DIR/coordinator.new" "$TOROID_DIR/coordinator"
        wait $! && return
        sleep 1
    done
}
trap '' TERM
coordinate &
coordinator=$!
trap 'stop=1' TERM
stop=
until [ -s "$TOROID_DIR/coordinator" ]; do
    kill -0 $coordinator 2>/dev/null || fail "the coordinator did not start, see $TOROID_DIR/logs/coordinator.log"
    sleep 0.1
done
TOROID_COORDINATOR=$(<"$TOROID_DIR/coordinator")
export TOROID_COORDINATOR
export TOROID_CREDENTIALS=$TOROID_CERTS/user
say "the coordinator is $TOROID_COORDINATOR"

# One step a node, all from the start: a step that is started after a node died can hang. --no-kill of sbatch does not reach steps.
steps=()
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    srun --nodes=1 --ntasks=1 --nodelist="$node" --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" --mem=0 --no-kill --kill-on-bad-exit=0 \
        --output="$TOROID_DIR/logs/$node.log" --open-mode=append \
        $TOROID worker --restart --devices "$TOROID_DEVICES" --credentials "$TOROID_CERTS/pool" --host "$node" "${roots[@]}" \
        --cache "${TMPDIR:-/tmp}/toroid-$SLURM_JOB_ID-$node" </dev/null &
    steps+=($!)
done

# The first allocation submits the job; later ones go on with it.
if [ ! -s "$TOROID_DIR/job" ]; then
    $TOROID submit "$TOROID_JOB" >"$TOROID_DIR/job.new" 2>"$TOROID_DIR/logs/submit.log" ||
        { cat "$TOROID_DIR/logs/submit.log" >&2; fail "cannot submit $TOROID_JOB"; }
    mv "$TOROID_DIR/job.new" "$TOROID_DIR/job"
fi
job=$(<"$TOROID_DIR/job")
say "trains $job; toroid status $job --coordinator $TOROID_COORDINATOR --credentials $TOROID_CREDENTIALS"
# In a session of its own: it must not end by a signal that was meant for the workers.
setsid $TOROID status --watch "$job" >"$TOROID_DIR/logs/status.log" 2>&1 &
watch=$!
# `wait` is interrupted by a signal.
while [ -z "$stop" ] && kill -0 $watch 2>/dev/null; do wait $watch; done
if [ -z "$stop" ]; then wait $watch; code=$?; fi

# Whatever the reason: workers leave in good order, which saves the job where it is not done. scancel --signal reaches the steps alone; a SIGTERM
# to srun would have them killed at once.
state=$(squeue -h -j "$SLURM_JOB_ID" -o %T)
if [ -n "$stop" ]; then say "asked to end (${state:-gone}): the job is saved"; else say "$job ended"; fi
# By scancel, or at the time limit itself, Slurm has asked the steps already. SIGNALING is the job that --signal was sent to just now.
case $state in
RUNNING | SIGNALING) goes_on=1 && scancel --signal=TERM "$SLURM_JOB_ID" ;;
*) goes_on= ;;
esac
for step in "${steps[@]}"; do while kill -0 "$step" 2>/dev/null; do wait "$step"; done; done
kill -TERM "$(<"$TOROID_DIR/logs/coordinator.pid")" 2>/dev/null
while kill -0 $coordinator 2>/dev/null; do wait $coordinator; done
kill $watch 2>/dev/null
if [ -z "$stop" ]; then
    say "ended with exit code $code"
    exit "$code"
fi
# A signal before the time limit. It begins again as the same Slurm job, which keeps its place in dependencies; not so where a user has cancelled it.
again="submit this script again with TOROID_DIR=$TOROID_DIR, and it goes on from there"
if [ "${TOROID_REQUEUE:-1}" != 1 ] || [ -z "$goes_on" ]; then
    say "saved; $again"
    exit 0
fi
# Said before, since it ends this script.
say "queued again; it goes on from the step that was saved"
scontrol requeue "$SLURM_JOB_ID" || fail "Slurm does not queue it again; $again"
