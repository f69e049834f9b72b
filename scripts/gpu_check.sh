#!/usr/bin/env bash
# Everything that can only be seen on a GPU. It runs in the folder that gpu_bundle.sh made, and needs a driver, NVRTC and cuBLASLt.
#
#   gpu_check.sh [all|tests|sanitize|kills|bench]
#
#   tests   every operation, the model against its reference, equal runs with equal bits, with and without CUDA graphs; sums between two
#           GPUs where there are two and NCCL
#   sanitize  the operations again under compute-sanitizer, for races and accesses outside of memory; not part of all
#   kills   eight workers on one GPU at tp 2, pp 2, dp 2, killed one by one; the end is compared to the bit with an undisturbed run
#   bench   each kernel against its floor, tokens/s of preset 1b in bf16, with and without CUDA graphs; the same model in PyTorch where
#           python3 has it
#
# A part that fails does not keep the others from running; what it left stays, and the end says which failed. TOROID_CUDA_GRAPHS=off does
# without CUDA graphs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
part=${1:-all}
case $part in
all | tests | sanitize | kills | bench) ;;
*)
    echo "gpu_check: expected all, tests, sanitize, kills or bench, found $part" >&2
    exit 2
    ;;
esac

for needed in numerics bench_gpu toroid text.txt moe.py bench_gpu.py; do
    [ -e "$here/$needed" ] || { echo "gpu_check: $here/$needed is missing; make gpu-bundle makes the folder" >&2; exit 1; }
done

date -u
# Without a GPU that works this says in one line what is missing.
"$here/bench_gpu" --probe
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
work=$(mktemp -d)
failed=()

# run NAME COMMAND...: a failure is noted.
run() {
    local name=$1
    shift
    echo "== $name"
    "$@" || failed+=("$name")
}

kills() {
    cat >"$work/job-$1.toml" <<END
preset = "tiny"
products = "$1"
steps = 160
[shape]
tp = 2
pp = 2
dp = 2
[data]
path = "$here/text.txt"
[checkpoint]
interval_steps = 50
END
    "$here/toroid" chaos --verify --device cuda:0 --job "$work/job-$1.toml" --kills 8 --spares 2 --dir "$work/chaos-$1"
}

if [ "$part" = all ] || [ "$part" = tests ]; then
    # One at a time: they share the GPU's scratch.
    run tests "$here/numerics" --test-threads 1 ::gpu::
fi

if [ "$part" = sanitize ]; then
    for tool in memcheck racecheck; do
        run "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 "$here/numerics" --test-threads 1 ops::gpu::
    done
fi

if [ "$part" = all ] || [ "$part" = kills ]; then
    run "kills, f32" kills f32
    run "kills, bf16" kills bf16
fi

if [ "$part" = all ] || [ "$part" = bench ]; then
    run bench "$here/bench_gpu" 1b bf16
    if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        run "bench, the same model in PyTorch" python3 "$here/bench_gpu.py" 1b
    else
        echo "python3 has no PyTorch with CUDA here: nothing to compare with"
    fi
fi

if [ ${#failed[@]} -gt 0 ]; then
    printf 'gpu_check: failed: %s\n' "${failed[@]}" >&2
    echo "gpu_check: jobs and logs are in $work" >&2
    exit 1
fi
rm -rf "$work"
echo "gpu_check: $part passed"
